//! Hierarchy strategies: who leads a group, and who may act above its level.

use std::fmt::Debug;

use crate::id::NodeId;
use crate::level::Level;
use crate::proto::election::{Profile, contenders, elect};

/// A change of a node's effective level that its machine is about to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    pub base: Level,
    pub from: Level,
    pub to: Level,
    /// The other members of its group.
    pub peers: usize,
}

/// How a mesh finds its leaders; every node of a formation uses the same one.
pub trait HierarchyStrategy: Debug + Send + Sync {
    /// The leader of a group, `None` only for an empty one.
    ///
    /// Every member asks this of the same profiles in an order of its own, and all must name the same one: an
    /// implementation looks at nothing but the set.
    fn leader(&self, group: &[Profile]) -> Option<NodeId>;

    /// Whether the leader of a group without any parent above may act one level higher.
    fn may_rise(&self, transition: &Transition) -> bool;

    /// Whether an acting parent may step down, now that a real one is there.
    fn may_step_down(&self, transition: &Transition) -> bool;
}

/// Leaders as configured: the highest `parent_priority`, then the lower id.
#[derive(Clone, Copy, Debug, Default)]
pub struct Static;

impl HierarchyStrategy for Static {
    fn leader(&self, group: &[Profile]) -> Option<NodeId> {
        let contenders = contenders(group);
        contenders.iter().max_by(|a, b| a.priority.cmp(&b.priority).then(b.id.cmp(&a.id))).map(|member| member.id)
    }

    fn may_rise(&self, _: &Transition) -> bool {
        true
    }

    fn may_step_down(&self, _: &Transition) -> bool {
        true
    }
}

/// Leaders by election: see [`elect`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Dynamic;

impl HierarchyStrategy for Dynamic {
    fn leader(&self, group: &[Profile]) -> Option<NodeId> {
        elect(group)
    }

    fn may_rise(&self, _: &Transition) -> bool {
        true
    }

    fn may_step_down(&self, _: &Transition) -> bool {
        true
    }
}

/// Leaders as configured, an election where the configuration leaves it open, and transitions within rules.
#[derive(Clone, Debug)]
pub struct Hybrid {
    /// Base levels whose nodes may act above their level.
    pub promote: Vec<Level>,
    /// Base levels whose nodes may step down again while they run.
    pub demote: Vec<Level>,
    /// How many levels above its own a node may act.
    pub max_levels: u8,
    /// How many other members a group has at least for its leader to rise.
    pub min_peers: usize,
}

impl HierarchyStrategy for Hybrid {
    fn leader(&self, group: &[Profile]) -> Option<NodeId> {
        let contenders = contenders(group);
        let highest = contenders.iter().map(|member| member.priority).max();
        let configured: Vec<_> = contenders.into_iter().filter(|member| Some(member.priority) == highest).collect();
        elect(&configured)
    }

    fn may_rise(&self, transition: &Transition) -> bool {
        self.promote.contains(&transition.base)
            && transition.to.0 - transition.base.0 <= self.max_levels
            && transition.peers >= self.min_peers
    }

    fn may_step_down(&self, transition: &Transition) -> bool {
        self.demote.contains(&transition.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn hybrid() -> Hybrid {
        Hybrid { promote: vec![Level::PLATFORM], demote: Vec::new(), max_levels: 1, min_peers: 2 }
    }

    fn profile(n: usize, score: f64, priority: u8, leads: bool) -> Profile {
        let id = NodeId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes());
        Profile { id, base: Level::PLATFORM, able: true, score, priority, leads }
    }

    #[test]
    fn the_configured_priority_leads_however_fit_the_others_are() {
        let group = [profile(1, 0.9, 0, true), profile(2, 0.1, 7, false)];
        assert_eq!(Static.leader(&group), Some(group[1].id));
        assert_eq!(hybrid().leader(&group), Some(group[1].id));
        assert_eq!(Dynamic.leader(&group), Some(group[0].id));
    }

    #[test]
    fn who_cannot_parent_leads_only_if_nobody_can() {
        let mut group = [profile(1, 0.9, 9, true), profile(2, 0.1, 0, false)];
        group[0].able = false;
        for strategy in [&Static as &dyn HierarchyStrategy, &Dynamic, &hybrid()] {
            assert_eq!(strategy.leader(&group), Some(group[1].id));
            assert_eq!(strategy.leader(&group[..1]), Some(group[0].id));
        }
    }

    #[test]
    fn a_real_member_leads_before_one_that_acts() {
        let mut group = [profile(1, 0.9, 9, true), profile(2, 0.1, 0, false)];
        group[1].base = Level::SQUAD;
        for strategy in [&Static as &dyn HierarchyStrategy, &Dynamic, &hybrid()] {
            assert_eq!(strategy.leader(&group), Some(group[1].id));
        }
    }

    #[test]
    fn hybrid_rules_limit_levels_steps_and_peers() {
        let (rules, base) = (hybrid(), Level::PLATFORM);
        let rise =
            |base, to: u8, peers| rules.may_rise(&Transition { base, from: Level(to - 1), to: Level(to), peers });
        assert!(rise(base, 1, 2));
        assert!(!rise(base, 2, 2) && !rise(base, 1, 1) && !rise(Level::SQUAD, 2, 5));
        assert!(!rules.may_step_down(&Transition { base, from: Level(1), to: base, peers: 0 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn every_member_names_the_same_single_leader(
            members in vec((0u8..4, 0u8..3, any::<bool>(), any::<bool>(), 0u8..2), 1..20),
            turn in 0usize..20,
            mirrored: bool,
        ) {
            // Few values, so that ties and groups of equals are common.
            let group: Vec<_> = members
                .iter()
                .enumerate()
                .map(|(n, &(score, priority, leads, able, base))| Profile {
                    base: Level(base),
                    able,
                    ..profile(n, f64::from(score) / 4.0, priority, leads)
                })
                .collect();
            let mut other = group.clone();
            other.rotate_left(turn % group.len());
            if mirrored {
                other.reverse();
            }
            for strategy in [&Static as &dyn HierarchyStrategy, &Dynamic, &hybrid()] {
                let leader = strategy.leader(&group);
                prop_assert!(group.iter().any(|member| Some(member.id) == leader));
                prop_assert_eq!(strategy.leader(&other), leader);
                // Once all know the outcome it stands.
                let settled: Vec<_> =
                    group.iter().map(|member| Profile { leads: Some(member.id) == leader, ..*member }).collect();
                prop_assert_eq!(strategy.leader(&settled), leader);
            }
        }
    }
}
