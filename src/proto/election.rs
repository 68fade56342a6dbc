//! Who leads a group: a pure function of its members' profiles, the same at every member.

use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::level::Level;

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
    /// The level it was configured with; one that acts above it leads only if nobody of the level itself is there.
    pub base: Level,
    /// Whether it takes children at all.
    pub able: bool,
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

/// Those of a group who may lead it: who is able, then of the highest base level.
pub fn contenders(group: &[Profile]) -> Vec<Profile> {
    let standing = |member: &Profile| (member.able, member.base);
    let highest = group.iter().map(standing).max();
    group.iter().filter(|member| Some(standing(member)) == highest).copied().collect()
}

/// The leader of a group by election among its [`contenders`]; `None` only for an empty one.
///
/// The best incumbent stays unless somebody is better by [`CHALLENGE`]; ties go to priority, then to the lower id.
pub fn elect(group: &[Profile]) -> Option<NodeId> {
    let contenders = contenders(group);
    let best = best_of(contenders.iter())?;
    match best_of(contenders.iter().filter(|member| member.leads)) {
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

    fn profile(n: u8, score: f64, priority: u8, leads: bool) -> Profile {
        Profile { id: NodeId::from_bytes([n; 32]), base: Level::PLATFORM, able: true, score, priority, leads }
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
}
