//! What must hold at every event, whatever befalls the mesh.

use serde::Serialize;

use crate::sim::node::SimNode;
use crate::time::Time;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Violation {
    pub at_s: f64,
    pub name: &'static str,
    pub detail: String,
}

/// Counts evaluations and keeps the first violations.
#[derive(Debug, Default)]
pub struct Invariants {
    pub checks: u64,
    pub violations_total: u64,
    pub violations: Vec<Violation>,
}

impl Invariants {
    /// Evaluates one predicate.
    pub fn check(&mut self, now: Time, name: &'static str, holds: bool, detail: impl FnOnce() -> String) {
        self.checks += 1;
        if holds {
            return;
        }
        self.violations_total += 1;
        if self.violations.len() < 100 {
            self.violations.push(Violation { at_s: now.as_secs_f64(), name, detail: detail() });
        }
    }

    /// Checks what a node's new view may have broken: only links that it has a part in can have changed.
    pub fn check_view(&mut self, now: Time, nodes: &[SimNode], at: usize) {
        let Some(view) = nodes[at].view() else { return };
        let name = &nodes[at].name;
        self.check(now, "children_within_slots", view.children.len() <= usize::from(view.slots), || {
            format!("{name} has {} children in {} slots", view.children.len(), view.slots)
        });
        let before_tenure = nodes[at].last_tenure;
        self.check(now, "tenures_rise", view.tenure >= before_tenure, || {
            format!("{name} went from {before_tenure:?} to {:?}", view.tenure)
        });
        let before = nodes[at].last_fence;
        self.check(now, "fences_rise", view.fence >= before, || {
            format!("{name} went from {before:?} to {:?}", view.fence)
        });
        let (tenure, level) = (before_tenure, nodes[at].last_level);
        self.check(now, "levels_last", view.tenure != tenure || view.effective_level >= level, || {
            format!("{name} fell from {level} to {} within {tenure:?}", view.effective_level)
        });
        let below = view.children.keys().filter_map(|child| nodes[at].index_of(*child));
        for child in below.chain([at]) {
            let Some(parent) = link_up(nodes, child) else { continue };
            let level = |i: usize| nodes[i].view().map(|view| view.effective_level);
            self.check(now, "levels_rise", level(parent) > level(child), || {
                let names = (&nodes[child].name, &nodes[parent].name);
                format!("{} at level {:?} is below {} at {:?}", names.0, level(child), names.1, level(parent))
            });
        }
        self.check(now, "no_cycle", !is_on_cycle(nodes, at), || format!("{name} is above itself"));
    }

    /// Checks a node's tables against their bounds.
    pub fn check_bounds(&mut self, now: Time, name: &str, tables: &[(&'static str, usize, usize)]) {
        for &(table, size, bound) in tables {
            self.check(now, "within_bounds", size <= bound, || format!("{table} of {name}: {size} of {bound}"));
        }
    }
}

/// The parent at the other end of a link of the tree: the child points to it and it has accepted the child, each
/// under the other's current tenure.
pub fn link_up(nodes: &[SimNode], child: usize) -> Option<usize> {
    let view = nodes[child].view()?;
    let parent = view.parent.as_ref()?;
    let at = nodes[child].index_of(parent.id)?;
    let above = nodes[at].view()?;
    let accepted = above.children.get(&view.me)?;
    (accepted.tenure == view.tenure && above.tenure == parent.tenure).then_some(at)
}

fn is_on_cycle(nodes: &[SimNode], start: usize) -> bool {
    let mut at = start;
    for _ in 0..nodes.len() {
        match link_up(nodes, at) {
            Some(parent) if parent == start => return true,
            Some(parent) => at = parent,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_beyond_its_bound_is_noticed() {
        let mut invariants = Invariants::default();
        invariants.check_bounds(Time::ZERO, "n", &[("outbox", 10, 10), ("descendants", 11, 10)]);
        assert_eq!((invariants.checks, invariants.violations_total), (2, 1));
        assert!(invariants.violations[0].detail.contains("descendants of n: 11 of 10"));
    }

    #[test]
    fn the_first_hundred_violations_are_kept_and_all_are_counted() {
        let mut invariants = Invariants::default();
        (0..1000).for_each(|_| invariants.check(Time::ZERO, "x", false, String::new));
        assert_eq!((invariants.violations.len(), invariants.violations_total), (100, 1000));
    }
}
