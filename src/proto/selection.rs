//! Which parent, and why: hard gates first, then a weighted score, deterministic to the last tie.

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, Prefix};
use crate::level::Level;
use crate::proto::beacon::Beacon;
use crate::proto::geo::GeoPoint;

/// What a candidate's score must exceed the present parent's by.
pub const DEFAULT_HYSTERESIS: f64 = 0.10;

/// The quality of a link that is not measured yet.
pub const UNMEASURED: f64 = 0.5;

/// How much each factor counts; they sum to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weights {
    pub proximity: f64,
    pub mobility: f64,
    pub resources: f64,
    pub battery: f64,
    pub priority: f64,
    pub load: f64,
    pub link_quality: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            proximity: 0.35,
            mobility: 0.10,
            resources: 0.15,
            battery: 0.10,
            priority: 0.10,
            load: 0.10,
            link_quality: 0.10,
        }
    }
}

/// Why weights are refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidWeights {
    #[error("a weight is between 0 and 1, {0} is {1}")]
    Range(&'static str, f64),
    #[error("weights sum to 1, these sum to {0}")]
    Sum(f64),
}

impl Weights {
    pub fn check(&self) -> Result<(), InvalidWeights> {
        let all = [
            ("proximity", self.proximity),
            ("mobility", self.mobility),
            ("resources", self.resources),
            ("battery", self.battery),
            ("priority", self.priority),
            ("load", self.load),
            ("link_quality", self.link_quality),
        ];
        for (name, weight) in all {
            if !(0.0..=1.0).contains(&weight) {
                return Err(InvalidWeights::Range(name, weight));
            }
        }
        let sum: f64 = all.iter().map(|(_, weight)| weight).sum();
        if (sum - 1.0).abs() > 1e-6 { Err(InvalidWeights::Sum(sum)) } else { Ok(()) }
    }
}

/// A condition that a parent must meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateName {
    HigherLevel,
    CanParent,
    Operational,
    Fresh,
    FreeSlot,
    InRange,
    NotDescendant,
}

/// How a candidate fared at one gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    pub gate: GateName,
    pub passed: bool,
    pub detail: String,
}

/// One term of a candidate's score: contribution = value × weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Factor {
    pub factor: String,
    pub value: f64,
    pub weight: f64,
    pub contribution: f64,
}

/// What is known of a candidate beside its beacon.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub beacon: &'a Beacon,
    pub fresh: bool,
    pub descendant: bool,
    /// A slot is ours already: as child, or reserved as backup.
    pub holds_slot: bool,
    /// 0..1, once measured on a link.
    pub link_quality: Option<f64>,
}

/// Who chooses.
#[derive(Clone, Copy, Debug)]
pub struct Chooser<'r> {
    /// The base level: nobody is led by who was configured below it.
    pub level: Level,
    pub effective_level: Level,
    pub position: Option<GeoPoint>,
    pub max_distance_m: f64,
    pub weights: Weights,
    /// The best roots known; a parent below one of them is worth more than any that is cut off.
    pub best_roots: &'r [Prefix],
    /// Cut off from the best roots for long enough that reaching one counts for more than the next level up.
    pub impatient: bool,
    /// The parent that the configuration prefers while it passes the gates.
    pub preferred: Option<NodeId>,
}

/// A candidate's standing. Greater is better; ties have been settled by the lower id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rank {
    pub id: NodeId,
    pub preferred: bool,
    /// Whether one of the best roots is above it.
    pub rooted: bool,
    /// How many levels it skips.
    pub skips: u8,
    /// Whether the level is its own, not one that it acts at.
    pub real: bool,
    /// Whether being rooted comes before the next level up.
    pub rooted_first: bool,
    /// The share of its slots that are free.
    pub room: f64,
    pub score: f64,
}

impl Rank {
    /// What no score makes up for.
    fn kind(&self) -> (bool, bool, std::cmp::Reverse<u8>, bool, bool) {
        let skips = std::cmp::Reverse(self.skips);
        (self.preferred, self.rooted && self.rooted_first, skips, self.rooted, self.real)
    }

    /// Whether only the score tells them apart.
    pub fn is_of_kind(&self, other: &Self) -> bool {
        self.kind() == other.kind()
    }

    fn order(&self, other: &Self) -> std::cmp::Ordering {
        (self.kind().cmp(&other.kind())).then(self.score.total_cmp(&other.score)).then(other.id.cmp(&self.id))
    }

    /// Whether this candidate should replace a live parent: better in kind, or past the hysteresis.
    pub fn displaces(&self, parent: &Self, hysteresis: f64) -> bool {
        match self.kind().cmp(&parent.kind()) {
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Equal => self.score > parent.score * (1.0 + hysteresis),
            std::cmp::Ordering::Less => false,
        }
    }
}

impl Chooser<'_> {
    /// The candidate's rank, or `None` if a gate stops it. Allocates nothing.
    pub fn rank(&self, candidate: &Candidate<'_>) -> Option<Rank> {
        let (beacon, metres) = (candidate.beacon, self.distance_m(candidate.beacon));
        let open = GATES.iter().all(|&gate| self.passes(gate, candidate, metres));
        open.then(|| Rank {
            id: beacon.id,
            preferred: self.preferred == Some(beacon.id),
            rooted: self.best_roots.is_empty() || self.best_roots.contains(&beacon.root),
            skips: beacon.effective_level.0 - self.effective_level.0 - 1,
            real: beacon.effective_level == beacon.level,
            rooted_first: self.impatient,
            room: room(beacon),
            score: self.factors(candidate, metres).iter().map(|(_, value, weight)| value * weight).sum(),
        })
    }

    /// The ranks of all who pass, best first, whatever the input order.
    pub fn ranking<'a>(&self, candidates: impl Iterator<Item = Candidate<'a>>) -> Vec<Rank> {
        let mut ranks: Vec<_> = candidates.filter_map(|candidate| self.rank(&candidate)).collect();
        ranks.sort_by(|a, b| b.order(a));
        ranks
    }

    /// The gates in words, for `tussock why`.
    pub fn explain_gates(&self, candidate: &Candidate<'_>) -> Vec<Gate> {
        let metres = self.distance_m(candidate.beacon);
        let gate = |&gate| Gate {
            gate,
            passed: self.passes(gate, candidate, metres),
            detail: self.detail(gate, candidate, metres),
        };
        GATES.iter().map(gate).collect()
    }

    /// The terms of the score, for `tussock why`.
    pub fn explain_factors(&self, candidate: &Candidate<'_>) -> Vec<Factor> {
        let factor = |&(name, value, weight): &(&str, f64, f64)| Factor {
            factor: name.to_owned(),
            value,
            weight,
            contribution: value * weight,
        };
        self.factors(candidate, self.distance_m(candidate.beacon)).iter().map(factor).collect()
    }

    fn passes(&self, gate: GateName, candidate: &Candidate<'_>, metres: Option<f64>) -> bool {
        let beacon = candidate.beacon;
        match gate {
            GateName::HigherLevel => beacon.effective_level > self.effective_level && beacon.level >= self.level,
            GateName::CanParent => beacon.can_parent,
            GateName::Operational => beacon.operational,
            GateName::Fresh => candidate.fresh,
            GateName::FreeSlot => candidate.holds_slot || beacon.free_slots > 0,
            GateName::InRange => metres.is_none_or(|metres| metres <= self.max_distance_m),
            GateName::NotDescendant => !candidate.descendant,
        }
    }

    fn detail(&self, gate: GateName, candidate: &Candidate<'_>, metres: Option<f64>) -> String {
        let beacon = candidate.beacon;
        match gate {
            GateName::HigherLevel if beacon.level < self.level => {
                format!("acts at level {}, its own is {}, below {}", beacon.effective_level, beacon.level, self.level)
            }
            GateName::HigherLevel => format!("level {} above {}", beacon.effective_level, self.effective_level),
            GateName::CanParent => format!("can_parent = {}", beacon.can_parent),
            GateName::Operational => format!("operational = {}", beacon.operational),
            GateName::Fresh => {
                if candidate.fresh { "heard within its ttl" } else { "silent for longer than its ttl" }.into()
            }
            GateName::FreeSlot if candidate.holds_slot => "a slot is ours".into(),
            GateName::FreeSlot => format!("{} of {} slots free", beacon.free_slots, beacon.slots),
            GateName::InRange => match metres {
                Some(metres) => format!("{metres:.0} m of {:.0} m", self.max_distance_m),
                None => "no position to measure".into(),
            },
            GateName::NotDescendant => {
                if candidate.descendant { "below this node" } else { "not below this node" }.into()
            }
        }
    }

    fn factors(&self, candidate: &Candidate<'_>, metres: Option<f64>) -> [(&'static str, f64, f64); 7] {
        let (beacon, weights) = (candidate.beacon, &self.weights);
        let proximity = match metres {
            Some(metres) => (-metres / (self.max_distance_m / 3.0)).exp(),
            None => 0.5,
        };
        [
            ("proximity", proximity, weights.proximity),
            ("mobility", beacon.mobility.score(), weights.mobility),
            ("resources", beacon.resources.score(), weights.resources),
            ("battery", beacon.resources.battery(), weights.battery),
            ("priority", f64::from(beacon.parent_priority) / 255.0, weights.priority),
            ("load", room(beacon), weights.load),
            ("link_quality", candidate.link_quality.unwrap_or(UNMEASURED), weights.link_quality),
        ]
    }

    fn distance_m(&self, beacon: &Beacon) -> Option<f64> {
        Some(self.position?.distance_m(&beacon.point()?))
    }
}

fn room(beacon: &Beacon) -> f64 {
    f64::from(beacon.free_slots) / f64::from(beacon.slots.max(1))
}

const GATES: [GateName; 7] = [
    GateName::HigherLevel,
    GateName::CanParent,
    GateName::Operational,
    GateName::Fresh,
    GateName::FreeSlot,
    GateName::InRange,
    GateName::NotDescendant,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Keypair;
    use crate::proto::beacon::tests::sample;
    use proptest::prelude::*;

    fn chooser() -> Chooser<'static> {
        Chooser {
            level: Level::PLATFORM,
            effective_level: Level::PLATFORM,
            position: Some(GeoPoint::new(52.52, 13.40).unwrap()),
            max_distance_m: 10_000.0,
            weights: Weights::default(),
            best_roots: &[],
            impatient: false,
            preferred: None,
        }
    }

    fn candidate(beacon: &Beacon) -> Candidate<'_> {
        Candidate { beacon, fresh: true, descendant: false, holds_slot: false, link_quality: None }
    }

    fn beacon(n: u8) -> Beacon {
        sample(&Keypair::from_seed([n; 32]))
    }

    #[test]
    fn each_gate_stops_its_own_case() {
        let good = beacon(1);
        assert!(chooser().rank(&candidate(&good)).is_some());
        type Spoil = fn(&mut Beacon);
        let cases: [(GateName, Spoil); 5] = [
            (GateName::HigherLevel, |b| (b.level, b.effective_level) = (Level::PLATFORM, Level::PLATFORM)),
            (GateName::CanParent, |b| b.can_parent = false),
            (GateName::Operational, |b| b.operational = false),
            (GateName::FreeSlot, |b| b.free_slots = 0),
            (GateName::InRange, |b| b.position = Some(GeoPoint::new(53.0, 13.4).unwrap().into())),
        ];
        for (name, spoil) in cases {
            let mut bad = good.clone();
            spoil(&mut bad);
            assert_eq!(chooser().rank(&candidate(&bad)), None);
            let gates = chooser().explain_gates(&candidate(&bad));
            let closed: Vec<_> = gates.iter().filter(|g| !g.passed).map(|g| g.gate).collect();
            assert_eq!(closed, [name]);
        }
        let stale = Candidate { fresh: false, ..candidate(&good) };
        let below = Candidate { descendant: true, ..candidate(&good) };
        assert!(chooser().rank(&stale).is_none() && chooser().rank(&below).is_none());
    }

    #[test]
    fn contributions_sum_to_the_score_and_stay_within_one() {
        let (chooser, beacon) = (chooser(), beacon(1));
        let sum: f64 = chooser.explain_factors(&candidate(&beacon)).iter().map(|f| f.contribution).sum();
        let score = chooser.rank(&candidate(&beacon)).unwrap().score;
        assert!((sum - score).abs() < 1e-12 && (0.0..=1.0).contains(&score));
    }

    #[test]
    fn the_next_level_up_beats_one_that_skips() {
        let (near, mut far) = (beacon(1), beacon(2));
        far.effective_level = Level::COMPANY;
        far.parent_priority = 255;
        let ranking = chooser().ranking([&far, &near].into_iter().map(candidate));
        assert_eq!(ranking[0].id, near.id);
    }

    #[test]
    fn hysteresis_and_kind() {
        let rank = |score, rooted| Rank {
            id: beacon(1).id,
            preferred: false,
            rooted,
            skips: 0,
            real: true,
            rooted_first: false,
            room: 0.0,
            score,
        };
        assert!(!rank(0.55, true).displaces(&rank(0.50, true), 0.10));
        assert!(rank(0.56, true).displaces(&rank(0.50, true), 0.10));
        assert!(rank(0.10, true).displaces(&rank(0.90, false), 0.10));
        assert!(!rank(0.90, false).displaces(&rank(0.10, true), 0.10));
    }

    #[test]
    fn who_is_cut_off_for_long_would_rather_skip_a_level() {
        let (cut_off, mut rooted) = (beacon(1), beacon(2));
        rooted.effective_level = Level::COMPANY;
        rooted.root = Keypair::from_seed([3; 32]).id().prefix();
        let best_roots = [rooted.root];
        for (impatient, expected) in [(false, cut_off.id), (true, rooted.id)] {
            let chooser = Chooser { best_roots: &best_roots, impatient, ..chooser() };
            let ranking = chooser.ranking([&cut_off, &rooted].into_iter().map(candidate));
            assert_eq!(ranking[0].id, expected);
        }
    }

    #[test]
    fn weights_are_checked() {
        assert_eq!(Weights::default().check(), Ok(()));
        assert!(Weights { load: 0.5, ..Weights::default() }.check().is_err());
        assert!(Weights { load: f64::NAN, ..Weights::default() }.check().is_err());
    }

    proptest! {
        #[test]
        fn the_ranking_ignores_the_input_order(slots in proptest::collection::vec(0u16..=16, 2..10), turn in 0usize..10) {
            let beacons: Vec<_> =
                slots.iter().enumerate().map(|(i, &free_slots)| Beacon { free_slots, ..beacon(i as u8) }).collect();
            let mut other: Vec<_> = beacons.iter().collect();
            other.rotate_left(turn % beacons.len());
            let ids = |ranks: Vec<Rank>| ranks.into_iter().map(|r| r.id).collect::<Vec<_>>();
            prop_assert_eq!(
                ids(chooser().ranking(beacons.iter().map(candidate))),
                ids(chooser().ranking(other.into_iter().map(candidate)))
            );
        }
    }
}
