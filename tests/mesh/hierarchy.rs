//! Leaders, laterals and neighbours among whole nodes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tussock::config::StaticPeer;
use tussock::proto::election::{Profile, Role};
use tussock::proto::strategy::{HierarchyStrategy, Transition};
use tussock::transport::memory::{Switchboard, Wires};
use tussock::{Config, Event, Keypair, Level, Node, NodeId};

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

/// A strategy of a host's own: the highest id leads, and nobody ever steps down.
#[derive(Debug)]
struct HighestId;

impl HierarchyStrategy for HighestId {
    fn leader(&self, group: &[Profile]) -> Option<NodeId> {
        group.iter().map(|member| member.id).max()
    }

    fn may_rise(&self, _: &Transition) -> bool {
        true
    }

    fn may_step_down(&self, _: &Transition) -> bool {
        false
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_may_bring_a_strategy_of_its_own() {
    let board = Switchboard::new(22, Wires::default());
    let mut nodes = Vec::new();
    for n in 1..=5 {
        let node = builder(n, &format!("p-{n}"), Level::PLATFORM).strategy(Arc::new(HighestId)).memory(&board);
        nodes.push(node.spawn().await.unwrap());
    }
    let highest = nodes.iter().map(Node::id).max().unwrap();
    eventually("the highest id leads", async || nodes.iter().all(|node| node.view().root() == highest)).await;
    let leader = nodes.iter().find(|node| node.id() == highest).unwrap();
    assert_eq!((leader.view().level, leader.view().effective_level), (Level::PLATFORM, Level::SQUAD));
    eventually("all name it", async || nodes.iter().all(|node| node.view().leader == highest)).await;
    // A real squad comes: under this strategy the acting one stays what it is.
    let squad = builder(9, "squad", Level::SQUAD).strategy(Arc::new(HighestId)).memory(&board).spawn().await.unwrap();
    let root = async || nodes.iter().chain([&squad]).map(|node| node.view().root()).collect::<BTreeSet<_>>();
    eventually("one root", async || root().await.len() == 1).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(root().await.len() == 1 && leader.view().effective_level > Level::PLATFORM);
}

#[tokio::test(start_paused = true)]
async fn an_acting_squad_hands_over_when_a_real_one_comes() {
    let board = Switchboard::new(25, Wires::default());
    let mut nodes = Vec::new();
    for n in 1..=6 {
        let node = builder(n, &format!("p-{n}"), Level::PLATFORM).memory(&board).spawn().await.unwrap();
        nodes.push(node);
    }
    eventually("one acts", async || nodes.iter().filter(|node| node.view().children.len() == 5).count() == 1).await;
    let acting = nodes.iter().find(|node| node.view().children.len() == 5).unwrap();
    let before = acting.view();
    assert_eq!((before.role, before.effective_level), (Role::Leader, Level::SQUAD));
    let squad = builder(9, "squad", Level::SQUAD).memory(&board).spawn().await.unwrap();
    eventually("the squad has all", async || {
        squad.view().children.len() == 6 && acting.view().parent_id() == Some(squad.id())
    })
    .await;
    let after = acting.view();
    assert_eq!((after.effective_level, after.parent_id()), (Level::PLATFORM, Some(squad.id())));
    assert!(after.tenure > before.tenure, "who steps down begins a new tenure");
    // Make before break: those below were asked to move, and moved, before their parent stepped down.
    for node in nodes.iter().filter(|node| node.id() != acting.id()) {
        let history = node.metrics().history().await.unwrap();
        assert!(!history.iter().any(|record| matches!(record.event, Event::PeerLost { .. })), "{}", node.name());
    }
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
    // What came with the request, and overtook it, was not thrown away.
    let dropped = mesh.parent().dropped();
    assert!(!dropped.contains_key("stale_tenure") && !dropped.contains_key("early"), "{dropped:?}");
    eventually("every sample is counted", async || {
        root.router().report().await.unwrap().counted_by_origin.get(&leaf.id()) == Some(&200)
    })
    .await;
    eventually("the outbox is empty", async || leaf.router().report().await.unwrap().outbox_depth == 0).await;
}
