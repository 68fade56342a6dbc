//! Leaders, laterals and neighbours among whole nodes.

use std::time::Duration;

use tussock::config::StaticPeer;
use tussock::proto::election::Role;
use tussock::transport::memory::{Switchboard, Wires};
use tussock::{Config, Keypair, Level, Node};

use crate::support::{builder, eventually, key};

#[tokio::test(start_paused = true)]
async fn two_nodes_equal_in_everything_name_the_same_single_leader() {
    let board = Switchboard::new(21, Wires::default());
    let a = builder(1, "a", Level::PLATFORM).memory(&board).spawn().await.unwrap();
    let b = builder(2, "b", Level::PLATFORM).memory(&board).spawn().await.unwrap();
    eventually("one leads", async || [a.view().role, b.view().role].contains(&Role::Leader)).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(a.view().leader, b.view().leader);
    let mut roles = [a.view().role, b.view().role];
    roles.sort_by_key(|role| *role != Role::Leader);
    assert_eq!(roles, [Role::Leader, Role::Member]);
    assert_eq!(a.view().leader, a.id().min(b.id()));
}

#[tokio::test(start_paused = true)]
async fn an_eleventh_lateral_changes_nothing() {
    for seed in 1..=5 {
        let board = Switchboard::new(seed, Wires::default());
        let spawn =
            async |n, name: &str, level| builder(n, name, level).memory(&board).seed(seed).spawn().await.unwrap();
        let root = spawn(1, "root", Level::SQUAD).await;
        let mut nodes = Vec::new();
        for n in 2..14 {
            nodes.push(spawn(n, &format!("p-{n}"), Level::PLATFORM).await);
        }
        eventually("all attach", async || root.view().children.len() == nodes.len()).await;
        // Of twelve everyone could have eleven.
        for _ in 0..300 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let most = nodes.iter().map(|node| node.view().laterals.len()).max();
            assert!(most <= Some(10), "seed {seed}: {most:?}");
        }
        let full = nodes.iter().filter(|node| node.view().laterals.len() == 10).count();
        assert!(full > 0, "seed {seed}: the bound is reached");
        for node in &nodes {
            for lateral in &node.view().laterals {
                let other = nodes.iter().find(|other| other.id() == *lateral).unwrap();
                assert!(other.view().laterals.contains(&node.id()), "seed {seed}: a lateral is one on both sides");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_static_peers_load_and_are_dialled_eight_at_a_time() {
    let board = Switchboard::new(23, Wires::default());
    let mut config = Config::default();
    for n in 0..10_000u64 {
        let id = Keypair::from_seed(*blake3::hash(&n.to_le_bytes()).as_bytes()).id();
        config.discovery.fixed.peers.push(StaticPeer { id, addresses: Vec::new(), priority: 0 });
    }
    let node = Node::builder().config(config).name("alone").key(key(1)).memory(&board).spawn().await.unwrap();
    let known = async || node.transport().links().await.unwrap().known.len();
    eventually("all are known", async || known().await == 10_000).await;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let links = node.transport().links().await.unwrap();
        assert!(links.dialling <= 8, "{} dials at once", links.dialling);
    }
}

#[tokio::test(start_paused = true)]
async fn samples_published_during_a_failover_are_counted_once() {
    let mesh = crate::support::SmallMesh::formed(24).await;
    let (leaf, root) = (mesh.leaf.clone(), mesh.root.clone());
    let parent = mesh.parent().clone();
    let gone: std::collections::BTreeSet<_> =
        mesh.all().iter().map(|node| node.id()).filter(|id| *id != parent.id()).collect();
    for n in 0..200u32 {
        if n == 50 {
            // Silent death: everything from and to the parent vanishes, connections stay open.
            parent.transport().shut_out(gone.clone());
        }
        leaf.publish(tussock::Telemetry::new().metric("n", f64::from(n))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_ne!(leaf.view().parent_id(), Some(parent.id()));
    eventually("every sample is counted", async || {
        root.router().report().await.unwrap().counted_by_origin.get(&leaf.id()) == Some(&200)
    })
    .await;
    eventually("the outbox is empty", async || leaf.router().report().await.unwrap().outbox_depth == 0).await;
}
