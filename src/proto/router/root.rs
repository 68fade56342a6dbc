//! The root's side of telemetry: what is counted in its account, and the marks that tell so.

use std::sync::Arc;
use std::time::Duration;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::account::{AccountId, Judgement};
use crate::proto::aggregate::{Source, Unit};
use crate::proto::durable::Record;
use crate::proto::outbox::Offer;
use crate::proto::packet::{Direction, PacketType, Payload, RouterFrame, Target};
use crate::proto::router::machine::{Effect, Machine};
use crate::time::Time;

/// How long marks are gathered.
const GATHER_MARKS: Duration = Duration::from_millis(100);

impl Machine {
    /// Whether this node commits what is for that account: as its owner, root or not.
    pub(super) fn commits(&self, account: AccountId) -> bool {
        self.durable.account.as_ref().is_some_and(|own| own.id == account)
    }

    pub(super) fn commit_unit(
        &mut self,
        now: Time,
        from: NodeId,
        number: u64,
        unit: Arc<Unit>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(account) = &self.durable.account else { return };
        match account.judge(&unit) {
            Judgement::Commit => self.commit(now, unit, effects),
            Judgement::Known => {
                let sources = unit.provenance.0.keys().copied().collect();
                self.void(unit, effects);
                self.owe_marks(now, sources);
            }
            Judgement::Split { have } => {
                self.telemetry.counts.split_units += 1;
                effects.push(Effect::Send { peer: from, frame: RouterFrame::Split { unit: number, have } });
            }
        }
    }

    /// Raw samples at the root: each is new or known, so there is nothing to ask back.
    pub(super) fn commit_offer(&mut self, now: Time, offer: &Offer, effects: &mut Vec<Effect>) {
        let Some(account) = self.durable.account.as_ref().filter(|account| account.id == offer.account) else {
            return effects.push(Effect::Dropped("foreign_account"));
        };
        let source = offer.source();
        let mut fresh = Unit::empty(offer.account);
        for sample in &offer.samples {
            let mut one = Unit::empty(offer.account);
            one.add(source, sample);
            if self.settings.quantiles {
                one.totals.sketch(sample);
            }
            if account.judge(&one) == Judgement::Commit {
                fresh.merge(&one);
            }
        }
        fresh.provenance.0.entry(source).or_default().void = offer.void.clone();
        // Together the samples may close gaps that each would open, or open too many: then they wait for their elders.
        match account.judge(&fresh) {
            Judgement::Commit if !fresh.is_empty() => self.commit(now, Arc::new(fresh), effects),
            _ => {
                self.void(Arc::new(fresh), effects);
                self.owe_marks(now, vec![source]);
            }
        }
    }

    fn commit(&mut self, now: Time, unit: Arc<Unit>, effects: &mut Vec<Effect>) {
        if !self.keeps() {
            // Its origins offer again what gets no mark.
            return effects.push(Effect::Dropped("journal_failed"));
        }
        let sources = unit.provenance.0.keys().copied().collect();
        self.persist(vec![Record::Commit(unit)], effects);
        self.owe_marks(now, sources);
    }

    fn void(&mut self, unit: Arc<Unit>, effects: &mut Vec<Effect>) {
        if unit.provenance.0.values().any(|spans| !spans.void.is_empty()) {
            self.note(Record::Void(unit), effects);
        }
    }

    pub(super) fn owe_marks(&mut self, now: Time, sources: Vec<Source>) {
        if !sources.is_empty() {
            self.telemetry.unmarked.extend(sources);
            self.telemetry.marks_at.get_or_insert(now + GATHER_MARKS);
        }
    }

    pub(super) fn send_marks(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.telemetry.marks_at = None;
        let sources = std::mem::take(&mut self.telemetry.unmarked);
        let Some(account) = &self.durable.account else { return };
        let marks = sources.iter().filter_map(|source| account.mark(source));
        let in_tree = |origin: &NodeId| *origin == self.settings.me || self.view.descendants.contains_key(origin);
        let (below, elsewhere): (Vec<_>, Vec<_>) = marks.partition(|mark| in_tree(&mark.origin));
        for marks in below.chunks(Limits::MARKS) {
            self.marked(now, marks.to_vec(), effects);
        }
        for mark in elsewhere {
            let (target, payload) = (Target::Node(mark.origin), Payload::Marks(vec![mark]));
            let packet = self.packet(target, Direction::Downward, PacketType::Status, payload, effects);
            self.send_direct(packet, None, effects);
        }
    }
}
