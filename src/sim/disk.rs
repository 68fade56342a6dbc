//! The nodes' disks: a write takes a while, what comes meanwhile is kept by the next one, and a crash keeps a part of
//! what was under way.

use std::time::Duration;

use rand::RngExt;

use crate::proto::aggregate::Source;
use crate::proto::durable::Record;
use crate::proto::node::Input;
use crate::proto::router;
use crate::sim::truth::TAG;
use crate::sim::world::{Happening, World};

/// How long a write and its sync take.
const SYNC: Duration = Duration::from_millis(2);

/// What of a node's journal is not on its disk yet.
#[derive(Debug, Default)]
pub struct Unsynced {
    /// Under way.
    writing: Vec<Append>,
    /// For the next write.
    queued: Vec<Append>,
    /// Faults that leave no room.
    pub full: u32,
}

#[derive(Debug)]
struct Append {
    ticket: Option<u64>,
    records: Vec<Record>,
}

fn records_of(appends: impl IntoIterator<Item = Append>) -> Vec<Record> {
    appends.into_iter().flat_map(|append| append.records).collect()
}

impl World {
    pub(super) fn persist(&mut self, i: usize, ticket: Option<u64>, mut records: Vec<Record>) {
        // What is reserved is reserved for this process only, and needs no disk.
        let reserved = records.extract_if(.., |record| matches!(record, Record::Reserve(_)));
        reserved.for_each(|record| self.nodes[i].disk.apply(&record));
        let (incarnation, unsynced) = (self.nodes[i].incarnation, &mut self.nodes[i].unsynced);
        unsynced.queued.push(Append { ticket, records });
        if unsynced.writing.is_empty() {
            unsynced.writing = std::mem::take(&mut unsynced.queued);
            self.at(self.now + SYNC, Happening::Synced { node: i, incarnation });
        }
    }

    /// A write has ended; what was queued meanwhile is the next one.
    pub(super) fn synced(&mut self, i: usize, incarnation: u64) {
        if self.nodes[i].incarnation != incarnation || !self.nodes[i].is_up() {
            return;
        }
        if self.nodes[i].unsynced.full > 0 {
            return self.refuse(i);
        }
        let unsynced = &mut self.nodes[i].unsynced;
        let written = std::mem::replace(&mut unsynced.writing, std::mem::take(&mut unsynced.queued));
        if !unsynced.writing.is_empty() {
            self.at(self.now + SYNC, Happening::Synced { node: i, incarnation });
        }
        let last = written.iter().filter_map(|append| append.ticket).next_back();
        self.keep(i, records_of(written));
        if let Some(ticket) = last {
            self.give(i, Input::Router(router::Input::Persisted(ticket)));
        }
    }

    /// Everything that was written is kept: the journal outlives the router, and an orderly stop waits for it.
    pub(super) fn flush(&mut self, i: usize) {
        if self.nodes[i].unsynced.full == 0 {
            let unsynced = &mut self.nodes[i].unsynced;
            let all = unsynced.writing.drain(..).chain(unsynced.queued.drain(..));
            let records = records_of(all);
            self.keep(i, records);
        }
    }

    /// The process has ended in the middle of a write: as many of its records as are whole are on the disk.
    pub(super) fn tear(&mut self, i: usize) {
        let unsynced = &mut self.nodes[i].unsynced;
        let mut records = records_of(unsynced.writing.drain(..));
        unsynced.queued.clear();
        if unsynced.full == 0 && !records.is_empty() {
            records.truncate(self.rng.random_range(0..=records.len()));
            self.keep(i, records);
        }
    }

    pub(super) fn disk_filled(&mut self, i: usize) {
        self.nodes[i].unsynced.full += 1;
    }

    pub(super) fn disk_freed(&mut self, i: usize) {
        let unsynced = &mut self.nodes[i].unsynced;
        unsynced.full = unsynced.full.saturating_sub(1);
        if unsynced.full == 0 {
            self.give(i, Input::Router(router::Input::Writable));
        }
    }

    /// The disk is full: nothing of what was under way is kept, and the router goes on from what is. Nobody waits for
    /// notes, so nobody hears that they were not kept.
    fn refuse(&mut self, i: usize) {
        let unsynced = &mut self.nodes[i].unsynced;
        let mut lost = unsynced.writing.drain(..).chain(unsynced.queued.drain(..));
        let waits = lost.any(|append| append.ticket.is_some());
        drop(lost);
        if !waits {
            return;
        }
        let kept = Box::new(self.nodes[i].disk.clone());
        self.give(i, Input::Router(router::Input::Restored(kept)));
    }

    fn keep(&mut self, i: usize, records: Vec<Record>) {
        for record in records {
            let sim = &mut self.nodes[i];
            match &record {
                Record::Sample(sample) => {
                    let source = Source { origin: sim.id, journal: sim.disk.outbox.journal };
                    let tag = sample.metrics.iter().find(|(name, _)| name == TAG).map_or(0.0, |(_, tag)| *tag);
                    self.truth.kept(source, sample.sequence, tag);
                }
                Record::Commit(unit) => {
                    let wrong = self.truth.committed(unit.account, unit);
                    let twice = self.truth.double_counted;
                    self.invariants.check(self.now, "totals_are_true", wrong.is_none(), || wrong.unwrap_or_default());
                    self.invariants.check(self.now, "counted_once", twice == 0, || format!("{twice} samples twice"));
                }
                Record::Evict(_) => self.recorder.evicted += 1,
                _ => {}
            }
            self.nodes[i].disk.apply(&record);
        }
        if let Some(account) = &self.nodes[i].disk.account {
            let claimed: u64 = account.counted().values().sum();
            let totals = account.totals.samples;
            self.invariants.check(self.now, "totals_match_table", totals == claimed, || {
                format!("an account holds {totals} samples and claims {claimed}")
            });
        }
    }
}
