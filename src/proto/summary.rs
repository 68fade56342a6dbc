//! How the nodes below are: each node's latest state, merged at every level into a summary of the same shape.
//!
//! State is not counted: a newer view of a node replaces the older one. What must be counted travels as samples.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::proto::aggregate::Totals;
use crate::proto::beacon::Capability;
use crate::proto::geo::{EARTH_RADIUS_M, GeoPoint};
use crate::proto::sample::Condition;

/// One node as it is now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeState {
    pub position: Option<GeoPoint>,
    /// What is left of its battery or fuel, 0..1; absent on mains.
    pub battery: Option<f64>,
    pub condition: Condition,
    pub capabilities: Vec<Capability>,
    /// For the host's own aggregator.
    pub opaque: Option<Vec<u8>>,
}

/// Merges what only the host understands: every node of a mesh has the same one.
pub trait Aggregator: std::fmt::Debug + Send + Sync {
    /// One value for several, in any order; at most [`Limits::OPAQUE_BYTES`].
    fn merge(&self, parts: &[&[u8]]) -> Vec<u8>;
}

/// Where the located members are: the sum of their unit vectors from the centre of the Earth, so that no meridian and
/// no pole is special.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Place {
    pub located: u32,
    sum: [f64; 3],
    /// Every member is within this many metres of the centroid.
    pub radius_m: f64,
    pub bounds: Option<Bounds>,
}

/// The smallest box around the located members; it may cross the antimeridian.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    pub south: f64,
    pub north: f64,
    pub west: f64,
    /// Degrees eastwards from `west`.
    pub width: f64,
}

/// Charge of the members that run on batteries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Batteries {
    pub count: u32,
    pub sum: f64,
    pub lowest: f64,
}

/// What a capability amounts to below: how many have it, and how sure the best is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skill {
    pub count: u32,
    pub best_percent: u8,
}

/// A group of nodes as it is now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub members: u32,
    pub place: Place,
    /// Members by condition: nominal, degraded, critical, failed.
    pub conditions: [u32; 4],
    pub batteries: Batteries,
    pub skills: BTreeMap<String, Skill>,
    pub opaque: Option<Vec<u8>>,
    /// In a partition, what the members' samples add up to that wait to be committed.
    pub provisional: Option<Box<Totals>>,
}

impl Summary {
    /// A single node.
    pub fn of(state: &NodeState) -> Self {
        let mut conditions = [0; 4];
        conditions[state.condition as usize] = 1;
        let batteries = state.battery.map(|charge| Batteries { count: 1, sum: charge, lowest: charge });
        let skill = |c: &Capability| (c.kind.clone(), Skill { count: 1, best_percent: c.confidence_percent });
        Self {
            members: 1,
            place: state.position.map(Place::of).unwrap_or_default(),
            conditions,
            batteries: batteries.unwrap_or_default(),
            skills: state.capabilities.iter().map(skill).collect(),
            opaque: state.opaque.clone(),
            provisional: None,
        }
    }

    /// The group that several make; what is opaque is merged by the host's aggregator, or left out without one.
    pub fn merged<'a>(parts: impl Iterator<Item = &'a Self>, aggregator: Option<&dyn Aggregator>) -> Self {
        let parts: Vec<_> = parts.collect();
        let mut whole = Self { place: Place::merged(parts.iter().map(|part| &part.place)), ..Self::default() };
        for part in &parts {
            whole.members = whole.members.saturating_add(part.members);
            for (sum, count) in whole.conditions.iter_mut().zip(part.conditions) {
                *sum = sum.saturating_add(count);
            }
            whole.batteries.merge(&part.batteries);
            for (kind, skill) in &part.skills {
                let full = whole.skills.len() >= Limits::SKILLS;
                match whole.skills.get_mut(kind) {
                    Some(known) => {
                        known.count = known.count.saturating_add(skill.count);
                        known.best_percent = known.best_percent.max(skill.best_percent);
                    }
                    None if full => {}
                    None => drop(whole.skills.insert(kind.clone(), *skill)),
                }
            }
            if let Some(provisional) = &part.provisional {
                let whole = whole.provisional.get_or_insert_default();
                whole.merge(provisional);
                whole.truncate(Limits::UNIT_METRICS);
            }
        }
        let opaque: Vec<_> = parts.iter().filter_map(|part| part.opaque.as_deref()).collect();
        whole.opaque = match (opaque.as_slice(), aggregator) {
            ([], _) => None,
            ([one], _) => Some(one.to_vec()),
            (several, Some(aggregator)) => Some(aggregator.merge(several)),
            (_, None) => None,
        };
        whole.opaque = whole.opaque.filter(|opaque| opaque.len() <= Limits::OPAQUE_BYTES);
        whole
    }

    /// The worst condition of any member; failed ones stay visible.
    pub fn worst(&self) -> Condition {
        let all = [Condition::Failed, Condition::Critical, Condition::Degraded];
        all.into_iter().find(|condition| self.conditions[*condition as usize] > 0).unwrap_or_default()
    }

    /// The share of members that can do their work: nominal or degraded.
    pub fn readiness(&self) -> f64 {
        let able = self.conditions[0] + self.conditions[1];
        f64::from(able) / f64::from(self.members.max(1))
    }

    /// Whether a summary from outside can be true.
    pub fn is_possible(&self) -> bool {
        let counted = self.conditions.iter().try_fold(0u32, |sum, count| sum.checked_add(*count));
        let skill = |(kind, skill): (&String, &Skill)| {
            (1..=Limits::CAPABILITY_BYTES).contains(&kind.len())
                && (1..=self.members).contains(&skill.count)
                && skill.best_percent <= 100
        };
        (1..=Limits::DESCENDANTS as u32 + 1).contains(&self.members)
            && counted == Some(self.members)
            && self.place.is_possible(self.members)
            && self.batteries.is_possible(self.members)
            && self.skills.len() <= Limits::SKILLS
            && self.skills.iter().all(skill)
            && self.opaque.as_ref().is_none_or(|opaque| opaque.len() <= Limits::OPAQUE_BYTES)
            && self.provisional.as_ref().is_none_or(|totals| totals.is_possible())
    }
}

impl Place {
    fn of(point: GeoPoint) -> Self {
        let (lat, lon) = (point.lat().to_radians(), point.lon().to_radians());
        let bounds = Bounds { south: point.lat(), north: point.lat(), west: point.lon(), width: 0.0 };
        let sum = [lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()];
        Self { located: 1, sum, radius_m: 0.0, bounds: Some(bounds) }
    }

    fn merged<'a>(parts: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let mut whole = Self::default();
        for part in parts.clone() {
            whole.located = whole.located.saturating_add(part.located);
            whole.sum.iter_mut().zip(part.sum).for_each(|(sum, more)| *sum += more);
            whole.bounds = match (whole.bounds, part.bounds) {
                (Some(a), Some(b)) => Some(a.united(&b)),
                (a, b) => a.or(b),
            };
        }
        let Some(centre) = whole.centroid() else { return whole };
        let reach = parts.filter_map(|part| Some(centre.distance_m(&part.centroid()?) + part.radius_m));
        whole.radius_m = reach.fold(0.0, f64::max).min(EARTH_RADIUS_M * std::f64::consts::PI);
        whole
    }

    /// The point in the middle of the located members, each weighing the same.
    pub fn centroid(&self) -> Option<GeoPoint> {
        let [x, y, z] = self.sum;
        let level = x.hypot(y);
        // Members on opposite sides of the Earth have no middle.
        let somewhere = self.located > 0 && level.hypot(z) > 1e-9;
        somewhere.then(|| GeoPoint::new(z.atan2(level).to_degrees(), y.atan2(x).to_degrees()).ok()).flatten()
    }

    fn is_possible(&self, members: u32) -> bool {
        let [x, y, z] = self.sum;
        let length = x.hypot(y).hypot(z);
        self.located <= members
            && length.is_finite()
            && length <= f64::from(self.located) * (1.0 + 1e-9) + 1e-9
            && (0.0..=EARTH_RADIUS_M * std::f64::consts::PI).contains(&self.radius_m)
            && self.bounds.is_some() == (self.located > 0)
            && self.bounds.is_none_or(|bounds| bounds.is_possible())
    }
}

impl Bounds {
    /// The smallest box around both.
    fn united(&self, other: &Self) -> Self {
        let (south, north) = (self.south.min(other.south), self.north.max(other.north));
        // From the west edge of one eastwards over both, whichever of the two is shorter.
        let over = |a: &Self, b: &Self| {
            let to = (b.west - a.west).rem_euclid(360.0) + b.width;
            (a.west, a.width.max(to).min(360.0))
        };
        let (first, second) = (over(self, other), over(other, self));
        let (west, width) = if first.1 <= second.1 { first } else { second };
        Self { south, north, west, width }
    }

    pub fn contains(&self, point: &GeoPoint) -> bool {
        let east = (point.lon() - self.west).rem_euclid(360.0);
        let slack = 1e-9;
        (self.south - slack..=self.north + slack).contains(&point.lat())
            && (east <= self.width + slack || east > 360.0 - slack)
    }

    fn is_possible(&self) -> bool {
        (-90.0..=90.0).contains(&self.south)
            && (self.south..=90.0).contains(&self.north)
            && (-180.0..=180.0).contains(&self.west)
            && (0.0..=360.0).contains(&self.width)
    }
}

impl Batteries {
    fn merge(&mut self, other: &Self) {
        if other.count > 0 {
            self.lowest = if self.count > 0 { self.lowest.min(other.lowest) } else { other.lowest };
            self.count = self.count.saturating_add(other.count);
            self.sum += other.sum;
        }
    }

    /// The mean charge, 0..1.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / f64::from(self.count))
    }

    fn is_possible(&self, members: u32) -> bool {
        let most = f64::from(self.count) * (1.0 + 1e-9);
        self.count <= members && (0.0..=most).contains(&self.sum) && (0.0..=1.0).contains(&self.lowest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn at(lat: f64, lon: f64) -> Summary {
        let position = Some(GeoPoint::new(lat, lon).unwrap());
        Summary::of(&NodeState { position, ..NodeState::default() })
    }

    fn merged(parts: &[Summary]) -> Summary {
        Summary::merged(parts.iter(), None)
    }

    #[test]
    fn a_squad_on_the_antimeridian_has_its_centroid_where_it_is() {
        let squad = merged(&[at(10.0, 179.99), at(10.0, -179.99), at(10.02, 180.0)]);
        let centre = squad.place.centroid().unwrap();
        assert!(centre.lon().abs() > 179.99 && (centre.lat() - 10.0067).abs() < 0.001, "{centre:?}");
        assert!(squad.place.radius_m < 2_500.0, "{}", squad.place.radius_m);
        let bounds = squad.place.bounds.unwrap();
        assert!((bounds.width - 0.02).abs() < 1e-9 && (bounds.west - 179.99).abs() < 1e-9, "{bounds:?}");
    }

    #[test]
    fn a_failed_member_stays_visible_through_every_level() {
        let with = |condition| Summary::of(&NodeState { condition, ..NodeState::default() });
        let squad = merged(&[with(Condition::Nominal), with(Condition::Failed), with(Condition::Degraded)]);
        let platoon = merged(&[squad, with(Condition::Nominal)]);
        assert_eq!((platoon.worst(), platoon.conditions), (Condition::Failed, [2, 1, 0, 1]));
        assert_eq!(platoon.readiness(), 0.75);
    }

    #[test]
    fn skills_and_batteries_add_up() {
        let camera = |confidence_percent| Capability { kind: "camera".into(), confidence_percent };
        let scout = |confidence, battery| {
            let capabilities = vec![camera(confidence)];
            Summary::of(&NodeState { capabilities, battery, ..NodeState::default() })
        };
        let squad = merged(&[scout(60, Some(0.5)), scout(90, Some(0.7)), scout(10, None)]);
        assert_eq!(squad.skills["camera"], Skill { count: 3, best_percent: 90 });
        assert_eq!((squad.batteries.mean().unwrap(), squad.batteries.lowest), (0.6, 0.5));
    }

    #[derive(Debug)]
    struct Longest;

    impl Aggregator for Longest {
        fn merge(&self, parts: &[&[u8]]) -> Vec<u8> {
            parts.iter().max_by_key(|part| part.len()).map(|part| part.to_vec()).unwrap_or_default()
        }
    }

    #[test]
    fn what_is_opaque_is_the_hosts_to_merge() {
        let with = |opaque: &[u8]| Summary::of(&NodeState { opaque: Some(opaque.to_vec()), ..NodeState::default() });
        let parts = [with(b"ab"), with(b"abcd"), at(0.0, 0.0)];
        assert_eq!(Summary::merged(parts.iter(), Some(&Longest)).opaque.as_deref(), Some(&b"abcd"[..]));
        assert_eq!(merged(&parts).opaque, None);
    }

    #[test]
    fn a_summary_of_a_hundred_is_small_and_nonsense_is_refused() {
        let members: Vec<_> = (0..100).map(|n| at(10.0 + f64::from(n) / 1000.0, 20.0)).collect();
        let good = merged(&members);
        assert!(good.is_possible());
        assert!(codec::encode(&good).len() <= 160, "{}", codec::encode(&good).len());
        type Spoil = fn(&mut Summary);
        let cases: [Spoil; 8] = [
            |s| s.members = 0,
            |s| s.conditions[3] = u32::MAX,
            |s| s.place.radius_m = f64::NAN,
            |s| s.place.sum[0] = 1e6,
            |s| s.place.bounds = None,
            |s| s.batteries = Batteries { count: 1, sum: 2.0, lowest: 0.5 },
            |s| s.skills.extend([(String::new(), Skill { count: 1, best_percent: 1 })]),
            |s| s.opaque = Some(vec![0; Limits::OPAQUE_BYTES + 1]),
        ];
        for (i, spoil) in cases.iter().enumerate() {
            let mut bad = good.clone();
            spoil(&mut bad);
            assert!(!bad.is_possible(), "case {i}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_grouping_all_members_are_within_box_and_radius(
            points in vec((-80.0..80.0f64, -30.0..30.0f64), 1..20),
            turn in -180.0..180.0f64,
            cut in 0usize..20,
        ) {
            let lon = |lon: f64| (lon + turn + 540.0).rem_euclid(360.0) - 180.0;
            let points: Vec<_> = points.into_iter().map(|(a, b)| GeoPoint::new(a, lon(b)).unwrap()).collect();
            let nodes: Vec<_> = points.iter().map(|p| at(p.lat(), p.lon())).collect();
            let cut = cut.min(nodes.len() - 1);
            let grouped = merged(&[merged(&nodes[..cut]), merged(&nodes[cut..])]);
            let direct = merged(&nodes);
            prop_assert_eq!(grouped.members, direct.members);
            for whole in [&grouped, &direct] {
                prop_assert!(whole.is_possible());
                let centre = whole.place.centroid().unwrap();
                let (bounds, radius) = (whole.place.bounds.unwrap(), whole.place.radius_m);
                prop_assert!(bounds.width <= 60.0 + 1e-9);
                for point in &points {
                    prop_assert!(bounds.contains(point), "{:?} {:?}", bounds, point);
                    prop_assert!(centre.distance_m(point) <= radius + 1.0);
                }
            }
            let apart = grouped.place.centroid().unwrap().distance_m(&direct.place.centroid().unwrap());
            prop_assert!(apart < 1.0);
        }
    }
}
