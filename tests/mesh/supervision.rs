//! A subsystem ends in each way there is; the node goes on with its state.

use std::time::Duration;

use tussock::actors::{ExitKind, NodeExit};
use tussock::proto::topology::{Tenure, View};
use tussock::time::Time;
use tussock::{Event, EventRecord, Failing, Node, NodeId, Subsystem, Telemetry};

use crate::support::{SmallMesh, eventually};

#[derive(Clone, Copy, Debug)]
enum Way {
    Fail(Failing),
    Kill,
}

const WAYS: [(Way, ExitKind); 4] = [
    (Way::Fail(Failing::Panic), ExitKind::Panic),
    (Way::Fail(Failing::Error), ExitKind::Error),
    (Way::Kill, ExitKind::Kill),
    (Way::Fail(Failing::Freeze), ExitKind::Freeze),
];

async fn restarts(node: &Node, subsystem: Subsystem) -> u64 {
    let reports = node.actors().await.unwrap();
    reports.iter().find(|report| report.actor == subsystem).unwrap().restarts
}

async fn crash(node: &Node, subsystem: Subsystem, way: Way) {
    let before = restarts(node, subsystem).await;
    match way {
        Way::Fail(failing) => node.fail(subsystem, failing).unwrap(),
        Way::Kill => node.kill(subsystem).unwrap(),
    }
    if matches!(way, Way::Kill) {
        // A kill takes effect at the next await: any message leads there.
        let _ = node.janitor().sweep();
    }
    eventually("the subsystem restarts", async || restarts(node, subsystem).await > before).await;
}

/// Changes of place in the tree since the record `since`.
async fn upheavals(node: &Node, since: u64) -> Vec<EventRecord> {
    let upheaval = |record: &EventRecord| {
        matches!(
            record.event,
            Event::PeerLost { .. }
                | Event::PeerChanged { .. }
                | Event::PeerSelected { .. }
                | Event::PeerRemoved { .. }
                | Event::RoleChanged { .. }
                | Event::LevelChanged { .. }
        )
    };
    node.metrics()
        .history()
        .await
        .unwrap()
        .into_iter()
        .filter(|record| record.seq > since && upheaval(record))
        .collect()
}

async fn last_event(node: &Node) -> u64 {
    node.metrics().history().await.unwrap().last().map_or(0, |record| record.seq)
}

#[tokio::test(start_paused = true)]
async fn every_subsystem_comes_back_from_every_end_and_its_state_is_kept() {
    let mesh = SmallMesh::formed(1).await;
    let mut delivered = mesh.leaf.commands();
    let mut published = 0;
    let node = mesh.parent();
    for subsystem in Subsystem::ALL {
        for (way, kind) in WAYS {
            // A frozen transport is silent: its peers are right to give it up. That case has its own test.
            if subsystem == Subsystem::Transport && kind == ExitKind::Freeze {
                continue;
            }
            // Past the budget's window, so that each of these is a first crash.
            tokio::time::sleep(Duration::from_secs(31)).await;
            let before = node.view();
            let neighbours = node.beacons().neighbours().await.unwrap().len();
            let mut seen = Vec::new();
            for other in mesh.all() {
                seen.push(last_event(other).await);
            }
            crash(node, subsystem, way).await;
            mesh.leaf.publish(Telemetry::new().metric("n", 1.0)).await.unwrap();
            published += 1;
            tokio::time::sleep(Duration::from_secs(5)).await;

            let case = format!("{subsystem:?} by {way:?}");
            let report = node.actors().await.unwrap().into_iter().find(|r| r.actor == subsystem).unwrap();
            assert_eq!(report.last_exit.unwrap().kind, kind, "{case}");
            assert!(report.warm, "{case}");
            let after = node.view();
            assert_eq!(after.parent, before.parent, "{case}");
            assert_eq!(after.tenure, before.tenure, "{case}");
            assert_eq!(attachments(&after), attachments(&before), "{case}");
            assert_eq!(after.role, before.role, "{case}");
            assert_eq!(node.beacons().neighbours().await.unwrap().len(), neighbours, "{case}");
            for (other, since) in mesh.all().into_iter().zip(seen) {
                // The metrics actor keeps the history: its own crash forgets it.
                assert_eq!(upheavals(other, since).await, [], "{case} at {}", other.name());
            }
            // And it does its work: a command passes through the node, once.
            let asked = mesh.root.command(tussock::Target::Node(mesh.leaf.id()), case.clone());
            let (outcome, ()) = tokio::join!(asked, async {
                let command = delivered.next().await.unwrap();
                assert_eq!(command.body(), case);
                command.accept("");
            });
            assert_eq!(outcome.unwrap().replies.len(), 1, "{case}");
        }
    }
    let (root, leaf) = (&mesh.root, mesh.leaf.id());
    eventually("every sample is counted", async || {
        root.router().report().await.unwrap().counted_by_origin.get(&leaf) == Some(&published)
    })
    .await;
    assert_eq!(mesh.leaf.router().report().await.unwrap().commands_duplicate, 0);
}

/// What makes the links downward what they are; a child that confirms its own may know of a newer term.
fn attachments(view: &View) -> Vec<(NodeId, Tenure, u64, Time)> {
    view.children.iter().map(|(&id, child)| (id, child.tenure, child.serial, child.since)).collect()
}

/// Whether a subsystem does its work: the host's question to it is answered, or its work is seen at the root.
async fn works(mesh: &SmallMesh, node: &Node, subsystem: Subsystem) -> bool {
    let counted = async || {
        let report = mesh.root.router().report().await.unwrap();
        report.counted_by_origin.get(&node.id()).copied().unwrap_or(0)
    };
    let handled = async || {
        let reports = node.actors().await.unwrap();
        reports.iter().find(|report| report.actor == subsystem).unwrap().handled
    };
    let work = async {
        match subsystem {
            Subsystem::Metrics => node.metrics().history().await.is_ok(),
            Subsystem::Transport => node.transport().links().await.is_ok(),
            Subsystem::Discovery => node.discovery().peers().await.is_ok(),
            Subsystem::Beacon => node.beacons().neighbours().await.is_ok(),
            Subsystem::Topology => node.topology().why().await.is_ok_and(|why| why.parent.is_some()),
            Subsystem::Router => {
                let before = counted().await;
                let published = node.publish(Telemetry::new().metric("n", 1.0)).await.is_ok();
                eventually("the sample is counted at the root", async || counted().await > before).await;
                published
            }
            Subsystem::Janitor => {
                let before = handled().await;
                node.janitor().sweep().unwrap();
                eventually("the janitor sweeps", async || handled().await > before).await;
                true
            }
        }
    };
    // Together shorter than a handler may take and than heartbeats may be missing; a relay's window is a second.
    let patience = Duration::from_millis(if subsystem == Subsystem::Router { 1_500 } else { 200 });
    tokio::time::timeout(patience, work).await.unwrap_or(false)
}

#[tokio::test(start_paused = true)]
async fn a_subsystem_that_is_down_breaks_its_own_function_and_no_other() {
    let mesh = SmallMesh::formed(8).await;
    let node = mesh.parent().clone();
    for down in Subsystem::ALL {
        for subsystem in Subsystem::ALL {
            assert!(works(&mesh, &node, subsystem).await, "{subsystem:?} before {down:?}");
        }
        let before = restarts(&node, down).await;
        node.fail(down, Failing::Freeze).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        for subsystem in Subsystem::ALL {
            assert_eq!(works(&mesh, &node, subsystem).await, subsystem != down, "{subsystem:?} without {down:?}");
        }
        eventually("it is back", async || restarts(&node, down).await > before).await;
        mesh.until_formed().await;
        for subsystem in Subsystem::ALL {
            assert!(works(&mesh, &node, subsystem).await, "{subsystem:?} after {down:?}");
        }
        // The next one is this node's first crash again.
        tokio::time::sleep(Duration::from_secs(31)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_frozen_transport_is_killed_and_the_mesh_forms_again() {
    let mesh = SmallMesh::formed(2).await;
    let frozen = mesh.parent().clone();
    crash(&frozen, Subsystem::Transport, Way::Fail(Failing::Freeze)).await;
    let report = frozen.actors().await.unwrap().into_iter().find(|r| r.actor == Subsystem::Transport).unwrap();
    assert_eq!(report.last_exit.unwrap().kind, ExitKind::Freeze);
    mesh.until_formed().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_crash_within_the_window_restarts_from_nothing_and_the_node_finds_its_place() {
    let mesh = SmallMesh::formed(3).await;
    for subsystem in Subsystem::ALL {
        let node = mesh.parent().clone();
        crash(&node, subsystem, Way::Fail(Failing::Panic)).await;
        crash(&node, subsystem, Way::Fail(Failing::Panic)).await;
        let report = node.actors().await.unwrap().into_iter().find(|r| r.actor == subsystem).unwrap();
        assert!(!report.warm, "{subsystem:?}");
        mesh.until_formed().await;
        // Parent and child agree on both sides, even where nothing but heartbeats passes between them.
        let (leaf, parent) = (mesh.leaf.id(), mesh.parent().clone());
        eventually("the parent holds the leaf", async || parent.view().children.contains_key(&leaf)).await;
        tokio::time::sleep(Duration::from_secs(31)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_critical_subsystem_that_keeps_crashing_stops_the_node_with_the_reason() {
    let mesh = SmallMesh::formed(4).await;
    let node = mesh.leaf.clone();
    for _ in 0..5 {
        crash(&node, Subsystem::Topology, Way::Fail(Failing::Panic)).await;
    }
    node.fail(Subsystem::Topology, Failing::Panic).unwrap();
    match node.wait().await {
        NodeExit::SubsystemFailed { subsystem, crashes, .. } => {
            assert_eq!((subsystem, crashes), (Subsystem::Topology, 6));
        }
        other => panic!("{other:?}"),
    }
    assert!(node.publish(Telemetry::new().metric("n", 1.0)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_optional_subsystem_that_keeps_crashing_leaves_the_node_degraded_until_it_is_restarted() {
    let mesh = SmallMesh::formed(5).await;
    let node = &mesh.leaf;
    for _ in 0..5 {
        crash(node, Subsystem::Discovery, Way::Fail(Failing::Panic)).await;
    }
    node.fail(Subsystem::Discovery, Failing::Panic).unwrap();
    eventually("the node is degraded", async || node.degraded() == [Subsystem::Discovery]).await;
    node.publish(Telemetry::new().metric("n", 1.0)).await.unwrap();
    node.restart(Subsystem::Discovery).await.unwrap();
    assert_eq!(node.degraded(), []);
}

#[tokio::test(start_paused = true)]
async fn an_orderly_restart_keeps_everything_and_costs_no_budget() {
    let mesh = SmallMesh::formed(6).await;
    let node = mesh.parent();
    let before = node.view();
    for subsystem in Subsystem::ALL {
        for _ in 0..8 {
            node.restart(subsystem).await.unwrap();
        }
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(node.view().parent, before.parent);
    assert_eq!(attachments(&node.view()), attachments(&before));
}

#[tokio::test(start_paused = true)]
async fn a_run_is_a_function_of_its_seed() {
    async fn trace(seed: u64) -> Vec<String> {
        let mesh = SmallMesh::formed(seed).await;
        crash(mesh.parent(), Subsystem::Router, Way::Fail(Failing::Panic)).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        let mut trace = Vec::new();
        for node in mesh.all() {
            let view = node.view();
            trace.push(format!("{:?} {:?} {:?} {:?}", view.parent_id(), view.backup, view.role, view.children.keys()));
            for record in node.metrics().history().await.unwrap() {
                trace.push(record.event.label().to_owned());
            }
        }
        trace
    }
    assert_eq!(trace(7).await, trace(7).await);
}
