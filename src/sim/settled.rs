//! What must hold when a run has settled: nothing waits that could be counted or marked, there is one root per connected
//! part, and each node knows who is below it.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::config::Strategy;
use crate::id::NodeId;
use crate::proto::account::AccountId;
use crate::proto::aggregate::Source;
use crate::sim::invariants::link_up;
use crate::sim::node::SimNode;
use crate::sim::world::World;
use crate::time::Time;

/// How long the tree may take to stand after the last fault, and until all above know of the last node that found a parent.
const TREE_SETTLES: Duration = Duration::from_secs(30);

struct TreeCheck {
    name: &'static str,
    held: bool,
    detail: String,
}

impl World {
    /// Whether everybody is there who is to come back, nothing is left to be done wherever a sink is in reach, and the
    /// tree stands or has had its time.
    pub(super) fn is_settled(&self) -> bool {
        let over_at = Time::ZERO + self.scenario.duration.0;
        let had_its_time = self.now >= self.recorder.attached_last().max(over_at) + TREE_SETTLES;
        self.away == 0
            && self.pending_in_reach() == 0
            && self.kept_in_reach() == 0
            && (had_its_time || self.tree_checks().iter().all(|check| check.held))
    }

    /// Samples on disks of live nodes that a live sink owes a count: those bound to its account, and unbound ones.
    ///
    /// Reach is judged in truth: when the scenario is over nothing is cut any more.
    pub(super) fn pending_in_reach(&self) -> u64 {
        let owed = self.owed();
        let pending = |node: &SimNode| {
            let outbox = &node.disk.outbox;
            let source = Source { origin: node.id, journal: outbox.journal };
            let open = |s: &u64| self.is_uncounted(source, *s) && owed(outbox.account_of(*s));
            outbox.sequences().filter(open).count() as u64
        };
        self.nodes.iter().filter(|node| node.is_up()).map(pending).sum()
    }

    /// Samples that live nodes keep although a live sink is to count and to mark them.
    fn kept_in_reach(&self) -> usize {
        let owed = self.owed();
        let outboxes = self.nodes.iter().filter_map(|node| Some(&node.node.as_ref()?.router.durable().outbox));
        outboxes.map(|outbox| outbox.sequences().filter(|s| owed(outbox.account_of(*s))).count()).sum()
    }

    /// Whether a live sink counts what is bound so.
    fn owed(&self) -> impl Fn(Option<AccountId>) -> bool {
        let live = self.nodes.iter().filter(|node| node.is_up());
        let sinks: BTreeSet<_> = live.filter_map(|node| Some(node.disk.account.as_ref()?.id)).collect();
        move |account| account.map_or(!sinks.is_empty(), |id| sinks.contains(&id))
    }

    fn is_uncounted(&self, source: Source, sequence: u64) -> bool {
        self.truth.is_acknowledged(source, sequence) && !self.truth.is_counted(source, sequence)
    }

    /// Samples on a node's disk that no root has counted.
    pub(super) fn uncounted(&self, node: &SimNode) -> u64 {
        let source = Source { origin: node.id, journal: node.disk.outbox.journal };
        node.disk.outbox.sequences().filter(|&sequence| self.is_uncounted(source, sequence)).count() as u64
    }

    pub(super) fn check_settled(&mut self) {
        let kept = self.kept_in_reach();
        self.invariants.check(self.now, "settled_outboxes", kept == 0, || {
            format!("{kept} samples are kept although a sink in reach counts and marks them")
        });
        for TreeCheck { name, held, detail } in self.tree_checks() {
            self.invariants.check(self.now, name, held, || detail);
        }
    }

    /// What must hold once everything has settled: whoever could have a parent has one, all below a root name it, and each
    /// knows who is below it.
    fn tree_checks(&self) -> Vec<TreeCheck> {
        let (mut checks, nodes) = (Vec::new(), &self.nodes);
        let mut check = |name, held, detail: &dyn Fn() -> String| {
            let detail = if held { String::new() } else { detail() };
            checks.push(TreeCheck { name, held, detail });
        };
        // A path is no longer than there are nodes, unless it is a cycle, which is reported as one.
        let way_up =
            |i: usize| std::iter::successors(link_up(nodes, i), |&above| link_up(nodes, above)).take(nodes.len());
        let mut below = vec![BTreeSet::new(); nodes.len()];
        for (i, node) in nodes.iter().enumerate() {
            way_up(i).for_each(|above| below[above].extend([node.id]));
        }
        for (i, node) in nodes.iter().enumerate() {
            let Some(view) = node.view() else { continue };
            let has_room = |other: usize| {
                nodes[other].view().is_some_and(|above| {
                    let able = above.free_slots > 0 && nodes[other].config.node.can_parent;
                    let there = are_near(node, &nodes[other]) && self.hear_each_other(i, other);
                    above.effective_level > view.effective_level && able && there
                })
            };
            let doubly = node.node.as_ref().map_or(0, |node| node.topology.other_claims());
            check("settled_claims", doubly == 0, &|| {
                format!("{} keeps {doubly} claims of nodes that another child of it claims too", node.name)
            });
            let eligible = (0..nodes.len()).any(has_room);
            let attached = link_up(nodes, i).is_some();
            check("settled_attached", attached || !eligible, &|| {
                format!("{} has no parent, though somebody has a free slot", node.name)
            });
            let top = way_up(i).last().unwrap_or(i);
            check("settled_root", view.root() == nodes[top].id, &|| {
                format!("{} names another root than {}", node.name, nodes[top].name)
            });
            check("settled_subtree", view.descendants.keys().eq(&below[i]), &|| {
                let known: BTreeSet<_> = view.descendants.keys().copied().collect();
                let named = |id: &NodeId| node.index_of(*id).map_or("?", |other| nodes[other].name.as_str());
                let missing: Vec<_> = below[i].difference(&known).map(named).collect();
                let more: Vec<_> = known.difference(&below[i]).map(named).collect();
                format!("{} does not know that {missing:?} are below it, and takes {more:?} to be", node.name)
            });
            let rival = || (i + 1..nodes.len()).find(|&other| self.are_rivals(i, other));
            let rival = if attached { None } else { rival() };
            check("settled_one_root", rival.is_none(), &|| {
                let other = rival.map_or("", |other| nodes[other].name.as_str());
                format!("{} and {other} are both roots, though they can hear each other", node.name)
            });
        }
        checks
    }

    fn hear_each_other(&self, a: usize, b: usize) -> bool {
        self.network.blocked(a, b).is_none() && self.network.blocked(b, a).is_none()
    }

    /// Whether two nodes are both roots although one could be the other's parent.
    fn are_rivals(&self, a: usize, b: usize) -> bool {
        let (one, other) = (&self.nodes[a], &self.nodes[b]);
        let able = |node: &SimNode| node.is_up() && node.config.node.can_parent;
        let free = one.config.topology.strategy != Strategy::Hybrid;
        let roots = link_up(&self.nodes, a).is_none() && link_up(&self.nodes, b).is_none();
        roots && self.hear_each_other(a, b) && free && able(one) && able(other) && are_near(one, other)
    }
}

/// Whether either may be the other's parent, by distance.
fn are_near(one: &SimNode, other: &SimNode) -> bool {
    let reach = one.config.topology.max_distance.min(other.config.topology.max_distance);
    match (one.config.node.position, other.config.node.position) {
        (Some(here), Some(there)) => here.distance_m(&there) <= reach,
        _ => true,
    }
}
