//! The steps of the demo: what is done, what is waited for, and what is compared.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tussock::proto::topology::Standing;
use tussock::{Event, Failing, NodeId, Subsystem, Target};

use crate::demo::Check;
use crate::demo::mesh::{Member, Mesh};

/// How long a step may wait for what it expects.
const PATIENCE: Duration = Duration::from_secs(45);

type Outcome = (Vec<Check>, String);

pub async fn run(step: &str, mesh: &mut Mesh) -> Outcome {
    match step {
        "form" => form(mesh).await,
        "telemetry" => telemetry(mesh).await,
        "command" => command(mesh).await,
        "kill_leader" => kill_leader(mesh).await,
        "crash_actor" => crash_actor(mesh).await,
        "partition" => partition(mesh).await,
        "heal" => heal(mesh).await,
        _ => stop(mesh).await,
    }
}

fn equal(check: &str, expected: impl Into<Value>, actual: impl Into<Value>) -> Check {
    let (expected, actual) = (expected.into(), actual.into());
    Check { check: check.to_owned(), passed: expected == actual, expected, actual }
}

fn at_least(check: &str, least: u64, actual: u64) -> Check {
    Check {
        check: check.to_owned(),
        expected: json!(format!("at least {least}")),
        actual: actual.into(),
        passed: actual >= least,
    }
}

/// Looks until it is so, or patience ends.
async fn wait_until(mut so: impl AsyncFnMut() -> bool) -> bool {
    let started = Instant::now();
    while !so().await {
        if started.elapsed() > PATIENCE {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// How many nodes the root and its descendants are.
fn in_tree(mesh: &Mesh) -> usize {
    mesh.root().view().descendants.len() + 1
}

fn names_root(member: &Member, root: NodeId) -> bool {
    member.node.view().root() == root
}

fn agreeing(mesh: &Mesh) -> usize {
    let root = mesh.root().id();
    mesh.members.iter().filter(|member| names_root(member, root)).count()
}

async fn form(mesh: &Mesh) -> Outcome {
    let started = Instant::now();
    let led = |mesh: &Mesh| {
        let leader = mesh.victim.id;
        mesh.root().view().descendants.values().filter(|(_, below)| below.parent == leader).count()
    };
    wait_until(async || in_tree(mesh) == mesh.living() && agreeing(mesh) == mesh.members.len() && led(mesh) > 0).await;
    let checks = vec![
        equal("nodes in the tree", mesh.living(), in_tree(mesh)),
        equal("nodes that name company-0 as root", mesh.members.len(), agreeing(mesh)),
        at_least(&format!("platforms led by {}", mesh.victim.name), 1, led(mesh) as u64),
    ];
    (checks, format!("formed after {:.2} s", started.elapsed().as_secs_f64()))
}

async fn telemetry(mesh: &Mesh) -> Outcome {
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = mesh.acknowledged();
    let arrived = wait_until(async || {
        let counted = mesh.counted().await;
        before.iter().all(|(id, n)| counted.get(id).is_some_and(|counted| counted >= n))
    });
    arrived.await;
    let (counted, total) = (mesh.counted().await, before.values().sum::<u64>());
    let arrived: u64 = before.iter().map(|(id, n)| counted.get(id).copied().unwrap_or(0).min(*n)).sum();
    let checks = vec![
        at_least("samples acknowledged to hosts", 1, total),
        equal("of these committed at the root", total, arrived),
    ];
    (checks, format!("{total} samples"))
}

async fn command(mesh: &Mesh) -> Outcome {
    let asked = mesh.root().command(Target::Everyone, "report").deadline(Duration::from_secs(5)).await;
    match asked {
        Ok(outcome) => {
            let slowest = outcome.replies.values().map(|reply| reply.after).max().unwrap_or_default();
            let checks = vec![
                equal("nodes expected to answer", mesh.living(), outcome.expected.len()),
                equal("nodes that answered", mesh.living(), outcome.replies.len()),
            ];
            (checks, format!("the last answer after {:.1} ms", slowest.as_secs_f64() * 1e3))
        }
        Err(error) => (vec![equal("the command", "answered", error.to_string())], String::new()),
    }
}

async fn kill_leader(mesh: &mut Mesh) -> Outcome {
    let dead = mesh.victim.id;
    let is_orphan = |member: &&Member| member.node.view().parent_id() == Some(dead);
    let orphans: Vec<_> = mesh.members.iter().filter(is_orphan).map(|member| member.name.clone()).collect();
    if let Err(error) = mesh.victim.kill().await {
        return (vec![equal("SIGKILL", "sent", error.to_string())], String::new());
    }
    let killed = Instant::now();
    let has_new = |mesh: &Mesh, name: &String| {
        let parent = mesh.get(name).and_then(|member| member.node.view().parent_id());
        parent.is_some_and(|parent| parent != dead)
    };
    wait_until(async || orphans.iter().all(|name| has_new(mesh, name)) && in_tree(mesh) == mesh.living()).await;
    let found = orphans.iter().filter(|name| has_new(mesh, name)).count();
    let checks = vec![
        at_least("platforms that lost their parent", 1, orphans.len() as u64),
        equal("of these with a new live parent", orphans.len(), found),
        equal("nodes in the tree", mesh.living(), in_tree(mesh)),
    ];
    let moves: Vec<_> = orphans
        .iter()
        .filter_map(|name| Some(format!("{name} to {}", mesh.name_of(mesh.get(name)?.node.view().parent_id()?))))
        .collect();
    (checks, format!("{} after {:.2} s", moves.join(", "), killed.elapsed().as_secs_f64()))
}

async fn crash_actor(mesh: &Mesh) -> Outcome {
    let Some(member) = mesh.get("platoon-0") else {
        return (vec![equal("platoon-0", "there", "missing")], String::new());
    };
    let node = &member.node;
    let (before, mut events) = (node.view(), node.events());
    let crashed = node.fail(Subsystem::Router, Failing::Panic);
    let restarted = async {
        while let Some(record) = events.next().await {
            if let Event::ActorRestarted { took, cause, .. } = record.event {
                return Some((took, cause));
            }
        }
        None
    };
    let restarted = tokio::time::timeout(PATIENCE, restarted).await.ok().flatten();
    let after = node.view();
    let changed = node.metrics().history().await.unwrap_or_default();
    let changed = changed.iter().filter(|r| matches!(r.event, Event::PeerChanged { .. } | Event::PeerLost { .. }));
    let parent = |id: Option<NodeId>| id.map(|id| mesh.name_of(id));
    let answered = wait_until(async || node.router().report().await.is_ok()).await;
    let checks = vec![
        equal("the panic inside the handler", true, crashed.is_ok() && restarted.is_some()),
        equal("parent", parent(before.parent_id()), parent(after.parent_id())),
        equal("epoch", before.tenure.incarnation, after.tenure.incarnation),
        equal("children", before.children.len(), after.children.len()),
        equal("changes of parent", 0, changed.count()),
        equal("the router answers", true, answered),
    ];
    let detail = restarted.map_or(String::new(), |(took, cause)| format!("{cause}; back after {took:.2?}"));
    (checks, detail)
}

/// The platoon with the most below it: cutting it off splits the mesh best.
fn head_of_far_side(mesh: &Mesh) -> Option<&Member> {
    let platoons = mesh.members.iter().filter(|member| member.name.starts_with("platoon"));
    platoons.max_by_key(|member| (member.node.view().descendants.len(), member.name.clone()))
}

async fn partition(mesh: &Mesh) -> Outcome {
    let Some(platoon) = head_of_far_side(mesh) else {
        return (vec![equal("a platoon", "there", "missing")], String::new());
    };
    let below = platoon.node.view().descendants.keys().copied().collect::<Vec<_>>();
    let far: BTreeSet<_> = below.into_iter().chain([platoon.node.id()]).collect();
    let near: BTreeSet<_> = mesh.members.iter().map(|m| m.node.id()).filter(|id| !far.contains(id)).collect();
    let attached_before = platoon.node.view().standing == Standing::Attached;
    for member in &mesh.members {
        let other_side = if far.contains(&member.node.id()) { &near } else { &far };
        member.node.transport().shut_out(other_side.clone());
    }
    let cut = Instant::now();
    let (head, root) = (platoon.node.id(), mesh.root().id());
    let on = |mesh: &Mesh, side: &BTreeSet<NodeId>, root: NodeId| {
        let here = mesh.members.iter().filter(|m| side.contains(&m.node.id()));
        here.filter(|m| m.node.view().root() == root).count()
    };
    let apart = wait_until(async || {
        on(mesh, &far, head) == far.len() && in_tree(mesh) == near.len() && on(mesh, &near, root) == near.len()
    });
    apart.await;
    let took = cut.elapsed();
    // After a while the part that lost its root acts on its own.
    let on_its_own = |side: &BTreeSet<NodeId>| {
        let here = mesh.members.iter().filter(|m| side.contains(&m.node.id()));
        here.filter(|m| m.node.view().partition.is_some()).count()
    };
    wait_until(async || on_its_own(&far) == far.len()).await;
    let (own_after, autonomous) = (cut.elapsed(), platoon.node.view().standing == Standing::Autonomous);
    let placed = platoon.node.view();
    let risen = placed.effective_level.0 - placed.level.0;
    let asked = platoon.node.command(Target::Everyone, "hold").deadline(Duration::from_secs(5)).await;
    let obeyed = asked.map_or(0, |outcome| outcome.replies.len());
    let lost = attached_before && platoon.node.view().parent_id().is_none();
    let checks = vec![
        at_least(&format!("nodes cut off with {}", platoon.name), 2, far.len() as u64),
        equal(&format!("{} lost its parent", platoon.name), true, lost),
        equal(&format!("nodes led by {}", platoon.name), far.len(), on(mesh, &far, head)),
        equal("nodes led by company-0", near.len(), on(mesh, &near, root)),
        equal(&format!("{} is autonomous", platoon.name), true, autonomous),
        equal("levels that it rose by", 0, risen),
        equal("nodes that act without company-0", far.len(), on_its_own(&far)),
        equal("nodes beside company-0 that act without it", 0, on_its_own(&near)),
        equal(&format!("nodes that obey {}", platoon.name), far.len(), obeyed),
    ];
    let (took, own_after) = (took.as_secs_f64(), own_after.as_secs_f64());
    (checks, format!("noticed by all after {took:.2} s, autonomous after {own_after:.2} s"))
}

async fn heal(mesh: &Mesh) -> Outcome {
    for member in &mesh.members {
        member.node.transport().shut_out(BTreeSet::new());
    }
    let healed = Instant::now();
    wait_until(async || in_tree(mesh) == mesh.living() && agreeing(mesh) == mesh.members.len()).await;
    let took = healed.elapsed();
    let apart = || mesh.members.iter().filter(|member| member.node.view().partition.is_some()).count();
    wait_until(async || apart() == 0).await;
    let terms: BTreeSet<_> = mesh.members.iter().map(|member| member.node.view().fence).collect();
    let before = mesh.acknowledged();
    let flushed = wait_until(async || {
        let counted = mesh.counted().await;
        before.iter().all(|(id, n)| counted.get(id).is_some_and(|counted| counted >= n))
    });
    let flushed = flushed.await;
    // Meanwhile nodes may have moved on to nearer parents; while one moves, those below it are not counted.
    wait_until(async || in_tree(mesh) == mesh.living() && agreeing(mesh) == mesh.members.len()).await;
    let checks = vec![
        equal("nodes in the tree", mesh.living(), in_tree(mesh)),
        equal("nodes that name company-0 as root", mesh.members.len(), agreeing(mesh)),
        equal("nodes that still act without company-0", 0, apart()),
        equal("terms of command", 1, terms.len()),
        equal("what was buffered is committed", true, flushed),
    ];
    let detail =
        format!("one tree after {:.2} s, flushed after {:.2} s", took.as_secs_f64(), healed.elapsed().as_secs_f64());
    (checks, detail)
}

async fn stop(mesh: &mut Mesh) -> Outcome {
    mesh.stop_publishing().await;
    let acknowledged = mesh.acknowledged();
    let settled = async || {
        let counted = mesh.counted().await;
        acknowledged.iter().all(|(id, n)| counted.get(id) == Some(n))
    };
    wait_until(settled).await;
    let counted = mesh.counted().await;
    let of_living: u64 = acknowledged.keys().filter_map(|id| counted.get(id)).sum();
    let exact = acknowledged.iter().filter(|(id, n)| counted.get(id) == Some(n)).count();
    let checks = vec![
        equal("samples of living nodes counted at the root", acknowledged.values().sum::<u64>(), of_living),
        equal("nodes whose every sample is counted exactly once", acknowledged.len(), exact),
    ];
    mesh.stop().await;
    (checks, format!("{of_living} samples"))
}
