//! Who leads a group: a pure function of its members' profiles, the same at every member.

use serde::{Deserialize, Serialize};

use crate::id::NodeId;

/// A node's role in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Leader,
    Member,
    /// Nobody of this level is in sight.
    #[default]
    Standalone,
}

/// What a challenger's score must exceed the incumbent's by.
pub const CHALLENGE: f64 = 1.10;

/// What an election knows of a member.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    pub id: NodeId,
    /// 0..1; see [`score`].
    pub score: f64,
    pub priority: u8,
    /// Whether the member says that it leads.
    pub leads: bool,
}

/// How fit a node is to lead: 0.4 mobility + 0.4 resources + 0.2 battery, each 0..1.
pub fn score(mobility: f64, resources: f64, battery: f64) -> f64 {
    0.4 * mobility + 0.4 * resources + 0.2 * battery
}

/// The leader of a group; `None` only for an empty one.
///
/// The best incumbent stays unless somebody is better by [`CHALLENGE`]; ties go to priority, then to the lower id.
pub fn elect(group: &[Profile]) -> Option<NodeId> {
    let best = best_of(group.iter())?;
    match best_of(group.iter().filter(|member| member.leads)) {
        Some(incumbent) if best.score <= CHALLENGE * incumbent.score => Some(incumbent.id),
        _ => Some(best.id),
    }
}

fn best_of<'a>(members: impl Iterator<Item = &'a Profile>) -> Option<&'a Profile> {
    members.max_by(|a, b| a.score.total_cmp(&b.score).then(a.priority.cmp(&b.priority)).then(b.id.cmp(&a.id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn profile(n: u8, score: f64, priority: u8, leads: bool) -> Profile {
        Profile { id: NodeId::from_bytes([n; 32]), score, priority, leads }
    }

    #[test]
    fn equal_platforms_have_the_lower_id_as_leader() {
        let group = [profile(2, 0.5, 0, false), profile(1, 0.5, 0, false)];
        assert_eq!(elect(&group), Some(group[1].id));
    }

    #[test]
    fn an_incumbent_yields_only_past_ten_percent() {
        let incumbent = profile(9, 0.50, 0, true);
        assert_eq!(elect(&[incumbent, profile(1, 0.55, 0, false)]), Some(incumbent.id));
        let challenger = profile(1, 0.56, 0, false);
        assert_eq!(elect(&[incumbent, challenger]), Some(challenger.id));
    }

    proptest! {
        #[test]
        fn every_member_names_the_same_leader(
            scores in vec((0.0..=1.0f64, 0u8..3, any::<bool>()), 1..12),
            rotation in 0usize..12,
        ) {
            let group: Vec<_> =
                scores.iter().enumerate().map(|(i, &(s, p, l))| profile(i as u8, s, p, l)).collect();
            let leader = elect(&group).unwrap();
            let mut other = group.clone();
            other.rotate_left(rotation % group.len());
            prop_assert_eq!(elect(&other), Some(leader));
            // Once the outcome is known to all, it stands.
            let settled: Vec<_> = group.iter().map(|m| Profile { leads: m.id == leader, ..*m }).collect();
            prop_assert_eq!(elect(&settled), Some(leader));
        }
    }
}
