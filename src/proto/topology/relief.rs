//! Relieving a crowded parent: where another is as good and has clearly more room, a leaf goes there. All children of the
//! parent see the same, so chance decides who goes, about one in each dwell.

use rand::RngExt;
use rand::seq::IteratorRandom;

use crate::id::NodeId;
use crate::proto::selection::{Rank, UNMEASURED};
use crate::proto::topology::Cause;
use crate::proto::topology::machine::{Effect, Machine};
use crate::time::Time;

/// How much more of its slots another must have free. Less is not worth a move: of twelve slots, two.
const RELIEF: f64 = 0.2;

impl Machine {
    pub(super) fn relieve_parent(&mut self, now: Time, ranking: &[Rank], effects: &mut Vec<Effect>) {
        let Some(parent) = &self.uplink.parent else { return };
        let is_leaf = self.downlink.children.is_empty();
        if now < self.uplink.relief_at || self.uplink.attempt.is_some() || !is_leaf {
            return;
        }
        let Some(present) = ranking.iter().find(|rank| rank.id == parent.id) else { return };
        let slots = |id: &NodeId| self.neighbours.get(id).map_or(1.0, |n| f64::from(n.beacon.slots.max(1)));
        let (weights, quality) = (&self.settings.weights, |id: &NodeId| self.qualities.get(id).copied());
        // A link that is not measured yet may be as good as the present one.
        let hope = quality(&present.id).map_or(0.0, |present| weights.link_quality * (present - UNMEASURED));
        // Room counts for itself here: if the score held it as well, who went would be drawn back.
        let merit = |rank: &Rank| {
            let unmeasured = quality(&rank.id).is_none();
            rank.score - weights.load * rank.room + if unmeasured { hope } else { 0.0 }
        };
        let relieves = |rank: &&Rank| {
            let as_good = rank.is_of_kind(present) && merit(present) <= merit(rank) * (1.0 + self.settings.hysteresis);
            // What one move changes: where it is more, the next child would move back.
            let step = slots(&present.id).recip() + slots(&rank.id).recip();
            as_good && rank.room - present.room >= RELIEF.max(step) - 1e-9
        };
        // A child that skips a level takes no slot that counts.
        let relief = ranking.iter().filter(relieves).filter(|rank| rank.skips == 0).choose(&mut self.rng);
        let crowd = (slots(&present.id) * (1.0 - present.room)).max(1.0);
        if let Some(relief) = relief.filter(|_| self.rng.random_bool(crowd.recip())) {
            let detail = format!("as good, with {:.0} % more of its slots free", (relief.room - present.room) * 100.0);
            self.attempt(now, relief.id, Cause::Better, detail, effects);
        }
        self.put_relief_off(now);
    }

    /// Between one and two dwells, so that those who came together do not go together.
    pub(super) fn put_relief_off(&mut self, now: Time) {
        self.uplink.relief_at = now + self.settings.dwell.mul_f64(self.rng.random_range(1.0..2.0));
    }
}
