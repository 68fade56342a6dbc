//! What a host can do: answer commands, supervise its own actors, stop in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tussock::actors::{HostActor, NodeExit};
use tussock::metrics::NoMetrics;
use tussock::proto::packet::Verdict;
use tussock::proto::sample::Condition;
use tussock::proto::summary::Aggregator;
use tussock::transport::memory::{Switchboard, Wires};
use tussock::{Config, GeoPoint, Level, Node, Target, Telemetry};

use crate::support::{SmallMesh, builder, eventually, key};

#[tokio::test(start_paused = true)]
async fn a_host_answers_commands_and_one_that_did_not_ask_refuses() {
    let mesh = SmallMesh::formed(11).await;
    let mut commands = mesh.leaf.commands();
    let host = tokio::spawn(async move {
        let command = commands.next().await.unwrap();
        assert_eq!(command.body(), "hold");
        command.refuse("low battery");
        commands
    });
    let outcome = mesh.root.command(Target::Everyone, "hold").await.unwrap();
    assert_eq!(outcome.expected.len(), 4);
    assert_eq!(outcome.missing().count(), 0);
    let leaf = &outcome.replies[&mesh.leaf.id()];
    assert_eq!((leaf.verdict, leaf.text.as_str()), (Verdict::Refused, "low battery"));
    let squad = &outcome.replies[&mesh.squads[0].id()];
    assert_eq!((squad.verdict, squad.text.as_str()), (Verdict::Refused, "no handler"));

    // A command that the host drops counts as failed.
    let mut commands = host.await.unwrap();
    let asked = mesh.root.command(Target::Node(mesh.leaf.id()), "go");
    let (outcome, ()) = tokio::join!(asked, async { drop(commands.next().await) });
    assert_eq!(outcome.unwrap().replies[&mesh.leaf.id()].verdict, Verdict::Failed);
}

#[tokio::test(start_paused = true)]
async fn a_leaf_can_command_everyone_and_children_are_the_issuers_own() {
    let mesh = SmallMesh::formed(12).await;
    let outcome = mesh.leaf.command(Target::Everyone, "report").await.unwrap();
    assert_eq!((outcome.expected.len(), outcome.replies.len()), (4, 4));
    let outcome = mesh.root.command(Target::Children, "report").await.unwrap();
    let children: Vec<_> = outcome.expected.iter().copied().collect();
    assert_eq!(children, mesh.root.view().children.keys().copied().collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_missing_at_the_deadline() {
    let mesh = SmallMesh::formed(13).await;
    let silent = mesh.leaf.commands();
    let deadline = Duration::from_secs(2);
    let outcome = mesh.root.command(Target::Everyone, "report").deadline(deadline).await.unwrap();
    assert_eq!(outcome.missing().copied().collect::<Vec<_>>(), [mesh.leaf.id()]);
    drop(silent);
}

#[tokio::test(start_paused = true)]
async fn nonsense_is_refused_with_its_reason() {
    let mesh = SmallMesh::formed(14).await;
    let refused = mesh.leaf.publish(Telemetry::new().metric("t", f64::NAN)).await.unwrap_err();
    assert!(refused.to_string().contains("no finite number"), "{refused}");
    assert!(mesh.leaf.publish(Telemetry::new()).await.is_err());
    let too_long = mesh.root.command(Target::Everyone, "x".repeat(20_000)).await.unwrap_err();
    assert!(too_long.to_string().contains("20000"), "{too_long}");
}

struct Host(Arc<AtomicU32>);

impl Actor for Host {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn handle(&self, _: ActorRef<()>, (): (), _: &mut ()) -> Result<(), ActorProcessingErr> {
        panic!("the host's own actor fails")
    }
}

#[tokio::test(start_paused = true)]
async fn an_actor_of_the_hosts_restarts_as_the_subsystems_do() {
    let mesh = SmallMesh::formed(15).await;
    let starts = Arc::new(AtomicU32::new(0));
    let (current, mut currents) = tokio::sync::watch::channel(None);
    let counted = starts.clone();
    let actor: HostActor = Arc::new(move |supervisor| {
        let (starts, current) = (counted.clone(), current.clone());
        async move {
            let (actor, _) = Actor::spawn_linked(None, Host(starts), (), supervisor).await?;
            current.send_replace(Some(actor.clone()));
            Ok(actor.get_cell())
        }
        .boxed()
    });
    mesh.leaf.adopt("camera", actor.clone()).await.unwrap();
    assert!(mesh.leaf.adopt("camera", actor).await.is_err());
    for n in 1..=3 {
        let camera = currents.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert_eq!(starts.load(Ordering::SeqCst), n);
        currents.mark_unchanged();
        camera.cast(()).unwrap();
        eventually("the host's actor restarts", async || starts.load(Ordering::SeqCst) > n).await;
    }
    assert_eq!(mesh.leaf.degraded(), []);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_says_goodbye_and_a_dropped_node_does_not() {
    let mesh = SmallMesh::formed(16).await;
    let parent = mesh.parent().clone();
    let other = mesh.squads.iter().find(|squad| squad.id() != parent.id()).unwrap();
    let asked = tokio::time::Instant::now();
    parent.shutdown().await.unwrap();
    assert_eq!(parent.wait().await, NodeExit::Stopped);
    eventually("the leaf moves", async || mesh.leaf.view().parent_id() == Some(other.id())).await;
    assert!(asked.elapsed() < Duration::from_secs(1), "a goodbye needs no detector: {:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_explains_itself_to_another() {
    let mesh = SmallMesh::formed(33).await;
    let told = mesh.root.why(mesh.leaf.id()).await.unwrap();
    let own = mesh.leaf.topology().why().await.unwrap();
    assert_eq!((told.parent, &told.reason, told.decided_at), (own.parent, &own.reason, own.decided_at));
    assert_eq!(told.candidates.len(), own.candidates.len());
    let stranger = tussock::Keypair::from_seed([99; 32]).id();
    assert!(mesh.root.why(stranger).await.is_err());
}

/// Counts the bytes of all parts: the sum of what every node said.
#[derive(Debug)]
struct Sum;

impl Aggregator for Sum {
    fn merge(&self, parts: &[&[u8]]) -> Vec<u8> {
        let numbers = parts.iter().filter_map(|part| <[u8; 4]>::try_from(*part).ok()).map(u32::from_le_bytes);
        numbers.sum::<u32>().to_le_bytes().to_vec()
    }
}

#[tokio::test(start_paused = true)]
async fn the_root_knows_how_everybody_below_is() {
    let board = Switchboard::new(34, Wires::default());
    let spawn = async |n, name: &str, level| {
        builder(n, name, level).aggregator(Arc::new(Sum)).memory(&board).spawn().await.unwrap()
    };
    let root = spawn(1, "root", Level::COMPANY).await;
    let squad = spawn(2, "squad", Level::SQUAD).await;
    let mut leaves = Vec::new();
    for n in 3..6 {
        leaves.push(spawn(n, &format!("leaf-{n}"), Level::PLATFORM).await);
    }
    let summary = async || root.router().report().await.unwrap().summary;
    eventually("all are members", async || summary().await.members == 5).await;
    for (leaf, lon) in leaves.iter().zip([179.99, -179.99, 180.0]) {
        let position = GeoPoint::new(10.0, lon).unwrap();
        let telemetry = Telemetry::new().metric("n", 1.0).position(position).battery(0.5).opaque(7u32.to_le_bytes());
        leaf.publish(telemetry).await.unwrap();
    }
    eventually("all are located", async || summary().await.place.located == 3).await;
    let centre = summary().await.place.centroid().unwrap();
    assert!(centre.lon().abs() > 179.99, "{centre:?}");
    eventually("what is opaque is merged by the host", async || {
        summary().await.opaque.as_deref() == Some(&21u32.to_le_bytes()[..])
    })
    .await;
    // The newest view of a node replaces the older one; a failed member is seen at the top.
    leaves[0].publish(Telemetry::new().metric("n", 1.0).condition(Condition::Failed)).await.unwrap();
    eventually("the failure is seen", async || summary().await.worst() == Condition::Failed).await;
    leaves[0].publish(Telemetry::new().metric("n", 1.0).condition(Condition::Nominal)).await.unwrap();
    eventually("it is well again", async || summary().await.worst() == Condition::Nominal).await;
    assert_eq!(summary().await.conditions, [5, 0, 0, 0]);
    // Who leaves is in it no more.
    leaves[1].shutdown().await.unwrap();
    eventually("one has left", async || summary().await.members == 4).await;
    assert_eq!(squad.router().report().await.unwrap().summary.members, 3);
}

#[tokio::test(start_paused = true)]
async fn the_runtime_measures_itself() {
    let mesh = SmallMesh::formed(35).await;
    let (leaf, parent) = (mesh.leaf.clone(), mesh.parent().clone());
    for n in 0..10u32 {
        leaf.publish(Telemetry::new().metric("n", f64::from(n))).await.unwrap();
    }
    leaf.metrics().count("missions", 3);
    eventually("all are committed", async || leaf.metrics().snapshot().await.unwrap().performance.committed == 10)
        .await;
    parent.shutdown().await.unwrap();
    eventually("the leaf has another parent", async || leaf.view().parent_id().is_some_and(|id| id != parent.id()))
        .await;
    let snapshot = leaf.metrics().snapshot().await.unwrap();
    assert_eq!((snapshot.failover.parent_changes, snapshot.failover.false_failovers), (1, 0));
    assert!(snapshot.failover.last_attachment_s.unwrap() < 5.0);
    assert_eq!((snapshot.events["peer_selected"], snapshot.events["peer_lost"]), (1, 1));
    assert!(snapshot.connections.parent_connected && snapshot.performance.subsystems["router"].handled > 10);
    assert!(snapshot.performance.subsystems["topology"].decision_p99_s.unwrap() > 0.0);
    let text = snapshot.openmetrics();
    for line in [
        "tussock_samples_committed_total{node=\"leaf\"} 10\n",
        "tussock_events_total{node=\"leaf\",kind=\"peer_lost\"} 1",
        "tussock_host_total{node=\"leaf\",name=\"missions\"} 3",
        "# TYPE tussock_children gauge\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test(start_paused = true)]
async fn a_host_may_keep_no_metrics() {
    let board = Switchboard::new(36, Wires::default());
    let node = builder(1, "quiet", Level::SQUAD).metrics(Arc::new(NoMetrics)).memory(&board).spawn().await.unwrap();
    node.metrics().count("missions", 3);
    let snapshot = node.metrics().snapshot().await.unwrap();
    assert!(snapshot.own.is_empty() && snapshot.events.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_root_knows_quantiles_when_they_are_asked_for() {
    let board = Switchboard::new(37, Wires::default());
    let spawn = async |n, name: &str, level| {
        let mut config = Config::default();
        config.telemetry.quantiles = true;
        Node::builder().config(config).name(name).level(level).key(key(n)).memory(&board).spawn().await.unwrap()
    };
    let root = spawn(1, "root", Level::COMPANY).await;
    spawn_and_publish(&spawn).await;
    let totals = async || root.router().totals().await.unwrap().unwrap();
    eventually("all are committed", async || totals().await.samples == 300).await;
    let median = totals().await.quantile("n", 0.5).unwrap();
    assert!((median - 150.0).abs() <= 0.02 * 150.0 + 1.0, "{median}");
}

/// A squad and two platforms, which publish the numbers from 1 to 300 between them.
async fn spawn_and_publish(spawn: &impl AsyncFn(u8, &'static str, Level) -> Node) {
    let nodes = [
        spawn(2, "squad", Level::SQUAD).await,
        spawn(3, "leaf-a", Level::PLATFORM).await,
        spawn(4, "leaf-b", Level::PLATFORM).await,
    ];
    for n in 0..300u32 {
        let node = &nodes[n as usize % nodes.len()];
        node.publish(Telemetry::new().metric("n", f64::from(n + 1))).await.unwrap();
    }
    for node in &nodes {
        eventually("it is committed", async || node.router().report().await.unwrap().outbox_depth == 0).await;
    }
}
