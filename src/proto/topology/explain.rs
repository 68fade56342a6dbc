//! Why this parent: every candidate with its gates, factors and score.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::beacon::Beacon;
use crate::proto::selection::{Candidate, Factor, Gate};
use crate::proto::topology::LastChange;
use crate::proto::topology::machine::Machine;
use crate::time::Time;

/// How a candidate stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidateExplained {
    pub node: NodeId,
    pub chosen: bool,
    /// Absent if a gate stops it.
    pub score: Option<f64>,
    pub gates: Vec<Gate>,
    pub factors: Vec<Factor>,
    /// What speaks against it beside gates and score, in words.
    pub doubt: Option<String>,
}

/// The present decision and the last change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// When it was asked, on this node's clock, as all times in here are.
    pub at: Time,
    pub parent: Option<NodeId>,
    pub decided_at: Time,
    pub reason: String,
    pub candidates: Vec<CandidateExplained>,
    pub last_change: Option<LastChange>,
}

impl Why {
    /// Cut to what travels to another node: the best candidates.
    pub fn abridged(mut self) -> Self {
        self.candidates.truncate(Limits::EXPLAINED);
        self
    }

    /// Whether an explanation from outside is within its bounds; its frame bounds the texts.
    pub fn is_possible(&self) -> bool {
        let few = |c: &CandidateExplained| c.gates.len() <= 16 && c.factors.len() <= 16;
        self.candidates.len() <= Limits::EXPLAINED && self.candidates.iter().all(few)
    }
}

impl Machine {
    /// Explains the choice as it would fall now; candidates best first, then those whom a gate stops.
    pub fn why(&self, now: Time) -> Why {
        let parent = self.uplink.parent.as_ref().map(|parent| parent.id);
        let best_roots = self.best_roots(now);
        let chooser = self.chooser(now, &best_roots);
        let ranking = chooser.ranking(self.candidates(now));
        let places: BTreeMap<_, _> = ranking.iter().enumerate().map(|(place, rank)| (rank.id, place)).collect();
        let explain = |candidate: Candidate<'_>| {
            let id = candidate.beacon.id;
            let rank = places.get(&id).map(|&place| ranking[place]);
            let nearer = rank.filter(|rank| ranking[0].skips < rank.skips);
            CandidateExplained {
                node: id,
                chosen: parent == Some(id),
                score: rank.map(|rank| rank.score),
                gates: chooser.explain_gates(&candidate),
                factors: chooser.explain_factors(&candidate),
                doubt: self.doubt(now, candidate.beacon, nearer.map(|rank| rank.skips)),
            }
        };
        let mut candidates: Vec<_> = self.candidates(now).map(explain).collect();
        let place = |id: &NodeId| places.get(id).copied().unwrap_or(usize::MAX);
        candidates.sort_by_key(|candidate| (place(&candidate.node), candidate.node));
        Why {
            at: now,
            parent,
            decided_at: self.uplink.decided_at,
            reason: self.uplink.reason.clone(),
            candidates,
            last_change: self.uplink.last_change.clone(),
        }
    }

    /// What speaks against a candidate; `skips` is how many levels it skips, if the best one skips fewer.
    fn doubt(&self, now: Time, beacon: &Beacon, skips: Option<u8>) -> Option<String> {
        let rests = self.uplink.rests(now, &beacon.id).map(|rest| format!("failed lately, rests for {rest:.1?}"));
        let silent = || "its link died, and it has not been heard since".to_owned();
        let far = |skips| match skips {
            1 => "skips a level: nearer ones come first".to_owned(),
            n => format!("skips {n} levels: nearer ones come first"),
        };
        rests.or_else(|| self.is_doubted(beacon).then(silent)).or_else(|| skips.map(far))
    }

    /// What keeps a node without a parent waiting, in words.
    pub(super) fn waiting_for(&self, now: Time) -> Option<String> {
        if self.uplink.parent.is_some() {
            return None;
        }
        if let Some(attempt) = &self.uplink.attempt {
            return Some(format!("an answer from {}", attempt.id.short()));
        }
        let above = self.candidates(now).count();
        Some(match above {
            0 => "a candidate parent: nobody of a higher level has been heard".into(),
            n => format!("a candidate parent: {n} of a higher level heard, {}", self.uplink.reason),
        })
    }
}
