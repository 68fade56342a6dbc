//! The outbox: a node's own samples, kept from `publish` until a root has committed them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::account::{AccountId, Mark};
use crate::proto::aggregate::{JournalId, Source};
use crate::proto::durable::{Record, Restore};
use crate::proto::ranges::RangeSet;
use crate::proto::sample::{Priority, Sample};

/// What a full outbox does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Refuses the new sample.
    #[default]
    Block,
    /// Gives up the oldest of the lowest priority, which is counted and reported; refuses a new sample that is less
    /// important than all.
    DropOldestLowestPriority,
}

/// Samples on their way to a parent, raw, from their origin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    pub origin: NodeId,
    pub journal: JournalId,
    pub account: AccountId,
    /// Sequences of this journal that will never be counted in this account.
    pub void: RangeSet,
    /// Whether some were offered before, and may be on their way.
    pub again: bool,
    pub samples: Vec<Arc<Sample>>,
}

impl Offer {
    pub fn source(&self) -> Source {
        Source { origin: self.origin, journal: self.journal }
    }

    /// Whether an offer from outside names possible samples; what is in them is looked at one by one.
    pub fn is_possible(&self) -> bool {
        let rising = self.samples.windows(2).all(|w| w[0].sequence < w[1].sequence);
        let placed = |sample: &Arc<Sample>| {
            (1..Limits::LAST_SEQUENCE).contains(&sample.sequence) && !self.void.contains(sample.sequence)
        };
        self.samples.len() <= Limits::OFFER_SAMPLES
            && rising
            && self.samples.iter().all(placed)
            && self.void.is_valid(Limits::UNIT_SPANS)
    }
}

/// The new sequences of samples that change accounts: whoever reads them again gives them the same, even if some of the
/// samples are lost by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// The oldest sequence of them, how many lie between it and the newest, and where it goes.
    pub oldest: u64,
    pub span: u64,
    pub first: u64,
}

/// Stands in bindings for accounts whose samples are all settled. No root's account has this id.
pub const NOBODY: AccountId = AccountId([0; 16]);

/// The journal's content. Every change to it is one [`crate::proto::durable::Record`].
#[derive(Clone, Debug, PartialEq)]
pub struct Outbox {
    pub journal: JournalId,
    next: u64,
    samples: BTreeMap<u64, Arc<Sample>>,
    by_priority: BTreeSet<(Priority, u64)>,
    bytes: usize,
    /// From this sequence on: this account, or [`NOBODY`] where all is settled.
    bindings: Vec<(u64, AccountId)>,
    /// How far each account has settled this journal.
    settled: BTreeMap<AccountId, u64>,
    /// How far an account says that it has, if that is less than it once said: its disk was damaged. Not on record.
    receded: BTreeMap<AccountId, u64>,
    /// Given up and not settled yet; between two such ranges there is always a sample.
    evicted: RangeSet,
    evictions: u64,
    /// Sequences that no sample will have.
    skipped: u64,
}

impl Outbox {
    pub fn new(journal: JournalId) -> Self {
        Self {
            journal,
            next: 1,
            samples: BTreeMap::new(),
            by_priority: BTreeSet::new(),
            bytes: 0,
            bindings: Vec::new(),
            settled: BTreeMap::new(),
            receded: BTreeMap::new(),
            evicted: RangeSet::new(),
            evictions: 0,
            skipped: 0,
        }
    }

    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// Samples ever kept here.
    pub fn acknowledged(&self) -> u64 {
        self.next - 1 - self.skipped
    }

    /// Samples not yet committed.
    pub fn depth(&self) -> usize {
        self.samples.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The samples from a sequence on that are not yet committed.
    pub fn since(&self, sequence: u64) -> impl Iterator<Item = &Sample> {
        self.samples.range(sequence..).map(|(_, sample)| &**sample)
    }

    pub fn sequences(&self) -> impl Iterator<Item = u64> {
        self.samples.keys().copied()
    }

    pub fn put(&mut self, sample: Arc<Sample>) {
        self.next = self.next.max(sample.sequence + 1);
        self.bytes += sample.bytes();
        self.by_priority.insert((sample.priority, sample.sequence));
        self.samples.insert(sample.sequence, sample);
    }

    fn take(&mut self, sequence: u64) {
        if let Some(sample) = self.samples.remove(&sequence) {
            self.bytes -= sample.bytes();
            self.by_priority.remove(&(sample.priority, sequence));
        }
    }

    /// The samples to give up first for one of that priority, so that `bytes` are free; `None` if too many are more
    /// important.
    pub fn least_wanted(&self, bytes: usize, priority: Priority) -> Option<Vec<u64>> {
        let mut free = 0;
        let wanted = self.by_priority.iter().take_while(|(least, sequence)| {
            let gives_way = free < bytes && *least <= priority;
            if gives_way {
                free += self.samples.get(sequence).map_or(0, |sample| sample.bytes());
            }
            gives_way
        });
        let wanted = wanted.map(|&(_, sequence)| sequence).collect();
        (free >= bytes).then_some(wanted)
    }

    /// How many samples were given up.
    pub fn evicted(&self) -> u64 {
        self.evictions
    }

    pub fn evict(&mut self, sequence: u64) {
        self.take(sequence);
        self.evicted.insert(sequence, sequence);
        self.evictions += 1;
    }

    /// Whether samples may be offered to `account` only after another binding. Bindings are bounded; beyond, new
    /// samples wait for the account that the last one names.
    pub fn needs_binding(&self, account: AccountId) -> bool {
        self.bindings.last().is_none_or(|&(_, bound)| bound != account) && self.bindings.len() < Limits::BINDINGS
    }

    pub fn was_bound(&self) -> bool {
        !self.bindings.is_empty()
    }

    /// Binds samples from a sequence on. To do it twice is to do it once.
    pub fn bind(&mut self, from: u64, account: AccountId) {
        if self.bindings.last() != Some(&(from, account)) {
            self.bindings.push((from, account));
        }
    }

    /// Up to where all that was bound is settled, if that is more than one binding. To truncate [`NOBODY`] so far makes them
    /// one: else a node between two roots would have as many as there may be in the end, and wait for the last one for good.
    pub fn settled_bindings(&self) -> Option<u64> {
        let first = self.samples.keys().next().copied().unwrap_or(self.next);
        let kept = self.bindings.partition_point(|&(from, _)| from <= first).saturating_sub(1);
        (kept > 1).then(|| self.bindings[kept].0 - 1)
    }

    /// To every account all of it is void, also to those that have counted some of it: they know it already.
    fn join_bindings(&mut self, upto: u64) {
        let kept = self.bindings.partition_point(|&(from, _)| from <= upto + 1).saturating_sub(1);
        let (Some(&(first, _)), Some(&(from, _))) = (self.bindings.first(), self.bindings.get(kept)) else { return };
        if kept > 0 {
            self.bindings.splice(..kept, [(first, NOBODY)]);
            self.evicted.remove(first, from - 1);
            self.settled.retain(|account, _| self.bindings.iter().any(|(_, bound)| bound == account));
        }
    }

    /// Where what waits for an account would go on, behind everything else.
    pub fn renewal(&self, account: AccountId) -> Renewal {
        let oldest = self.oldest(account).unwrap_or(self.next);
        let newest = self.samples.keys().rev().find(|&&sequence| self.account_of(sequence) == Some(account));
        Renewal { oldest, span: newest.map_or(0, |newest| newest + 1 - oldest), first: self.next }
    }

    /// Gives what waits for an account that will not commit it new sequences: the old ones were told to other accounts as
    /// void. To do it twice is to do it once.
    pub fn renew(&mut self, account: AccountId, heir: AccountId, renewal: &Renewal) {
        let Renewal { oldest, span, first } = *renewal;
        let end = first.saturating_add(span);
        let waiting = self.samples.range(oldest..oldest.saturating_add(span)).map(|(_, sample)| sample);
        let moved: Vec<_> = waiting.filter(|s| self.account_of(s.sequence) == Some(account)).cloned().collect();
        if self.bindings.last().is_some_and(|&(_, bound)| bound == account) {
            self.bindings.push((first, heir));
        }
        self.skipped += end.saturating_sub(self.next.max(first));
        self.next = self.next.max(end);
        for sample in moved {
            self.take(sample.sequence);
            self.evicted.insert(sample.sequence, sample.sequence);
            self.put(Arc::new(Sample { sequence: sample.sequence - oldest + first, ..(*sample).clone() }));
        }
        // No sample will have what is left over in between.
        if span > 0 {
            self.evicted.insert(first, end - 1);
            self.samples.range(first..end).for_each(|(&sequence, _)| self.evicted.remove(sequence, sequence));
        }
    }

    /// How many samples wait for each account, and how many are bound to none yet.
    pub fn waiting(&self) -> BTreeMap<Option<AccountId>, u64> {
        let mut waiting = BTreeMap::new();
        for &sequence in self.samples.keys() {
            *waiting.entry(self.account_of(sequence)).or_default() += 1;
        }
        waiting
    }

    /// The account that a sample is bound to.
    pub fn account_of(&self, sequence: u64) -> Option<AccountId> {
        let i = self.bindings.partition_point(|&(from, _)| from <= sequence);
        i.checked_sub(1).map(|i| self.bindings[i].1)
    }

    /// The oldest sample bound to `account`.
    pub fn oldest(&self, account: AccountId) -> Option<u64> {
        self.samples.keys().copied().find(|&sequence| self.account_of(sequence) == Some(account))
    }

    /// The account of the oldest sample that is bound to another one than `main`.
    pub fn stray(&self, main: AccountId) -> Option<AccountId> {
        let ends = self.bindings.iter().skip(1).map(|&(from, _)| from).chain([u64::MAX]);
        let mut others = self.bindings.iter().zip(ends).filter(|((_, account), _)| *account != main);
        let is_kept = |from: u64, end: u64| from < end && self.samples.range(from..end).next().is_some();
        others.find(|&(&(from, _), end)| is_kept(from, end)).map(|((_, account), _)| *account)
    }

    /// The next offer from `cursor` on, of so many bytes at most or one sample, and where the one after it begins; `None`
    /// if there is nothing to offer.
    ///
    /// The account keeps few gaps: no sample is offered beyond a gap that the offer does not say will never be filled.
    pub fn offer(&self, origin: NodeId, account: AccountId, cursor: u64, room: usize) -> Option<(Offer, u64)> {
        let void = self.void_in(account);
        let horizon = void.ranges().get(Limits::UNIT_SPANS / 2).map_or(u64::MAX, |&(first, _)| first);
        let near = self.samples.range(cursor..).take_while(|(s, _)| **s < horizon);
        let bound = near.filter(|(s, _)| self.account_of(**s) == Some(account));
        let mut bytes = 0;
        let fitting = bound.take(Limits::OFFER_SAMPLES).take_while(|(_, sample)| {
            let first = bytes == 0;
            bytes += sample.bytes();
            first || bytes <= room.min(Limits::OFFER_BYTES)
        });
        let samples: Vec<_> = fitting.map(|(_, sample)| sample.clone()).collect();
        let last = samples.last()?.sequence;
        let offer = Offer { origin, journal: self.journal, account, void: void.before(last), again: false, samples };
        Some((offer, last + 1))
    }

    /// Sequences that will never be counted in `account`, and of which it does not know that: bound elsewhere, or evicted.
    fn void_in(&self, account: AccountId) -> RangeSet {
        let mut void = self.evicted.clone();
        let ends = self.bindings.iter().skip(1).map(|&(from, _)| from - 1);
        for (&(from, bound), end) in self.bindings.iter().zip(ends) {
            if bound != account && from <= end {
                void.insert(from, end);
            }
        }
        let settled = self.settled.get(&account).copied().unwrap_or(0);
        let told = self.receded.get(&account).copied().unwrap_or(settled);
        if told < settled {
            // What it has forgotten nobody has any more.
            self.bound_to(account, settled).for_each(|(first, last)| void.insert(first, last));
        }
        void.remove(0, told);
        void
    }

    /// Notes whether an account has settled less than it once said.
    pub fn heard(&mut self, mark: &Mark) {
        if mark.journal == self.journal {
            match self.settled.get(&mark.account).is_some_and(|settled| mark.prefix < *settled) {
                true => drop(self.receded.insert(mark.account, mark.prefix)),
                false => drop(self.receded.remove(&mark.account)),
            }
        }
    }

    /// Forgets what a mark says is settled; returns how many samples that were.
    pub fn truncate(&mut self, account: AccountId, upto: u64) -> usize {
        if account == NOBODY {
            self.join_bindings(upto);
        }
        let settled: Vec<_> =
            self.samples.range(..=upto).map(|(&s, _)| s).filter(|s| self.account_of(*s) == Some(account)).collect();
        for &sequence in &settled {
            self.take(sequence);
        }
        let known = self.settled.entry(account).or_default();
        *known = upto.max(*known);
        let bound: Vec<_> = self.bound_to(account, upto).collect();
        bound.into_iter().for_each(|(first, last)| self.evicted.remove(first, last));
        settled.len()
    }

    /// What restores this outbox, applied to a new one of the same journal.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let bind = |&(from, account): &(u64, AccountId)| Record::Bind { from, account };
        let settled = |(&account, &upto): (&AccountId, &u64)| Record::Truncate { account, upto };
        let evicted = |&(first, last): &(u64, u64)| Record::Restore(Restore::Evicted { first, last });
        self.bindings
            .iter()
            .map(bind)
            .chain(self.settled.iter().map(settled))
            .chain(self.evicted.ranges().iter().map(evicted))
            .chain(self.samples.values().cloned().map(Record::Sample))
            .chain([Record::Restore(Restore::Outbox {
                next: self.next,
                evictions: self.evictions,
                skipped: self.skipped,
            })])
    }

    pub fn restore(&mut self, part: &Restore) {
        match part {
            Restore::Outbox { next, evictions, skipped } => {
                self.next = self.next.max(*next);
                (self.evictions, self.skipped) = (*evictions, *skipped);
            }
            Restore::Evicted { first, last } => self.evicted.insert(*first, *last),
            _ => {}
        }
    }

    /// Leaves out so many sequences.
    pub fn skip(&mut self, sequences: u64) {
        if sequences > 0 {
            self.evicted.insert(self.next, self.next + sequences - 1);
            self.next += sequences;
            self.skipped += sequences;
        }
    }

    /// Gives up the sequences that a damaged journal has lost, so that what comes after them can settle; returns how
    /// many those are.
    pub fn give_up_lost(&mut self) -> u64 {
        let mut known = self.evicted.clone();
        self.samples.keys().for_each(|&sequence| known.insert(sequence, sequence));
        for (&account, &upto) in &self.settled {
            self.bound_to(account, upto).for_each(|(first, last)| known.insert(first, last));
        }
        let mut lost = RangeSet::new();
        if self.next > 1 {
            lost.insert(1, self.next - 1);
        }
        known.ranges().iter().for_each(|&(first, last)| lost.remove(first, last));
        self.evicted.extend(&lost);
        self.evictions += lost.len();
        lost.len()
    }

    /// The ranges up to a sequence that are bound to an account.
    fn bound_to(&self, account: AccountId, upto: u64) -> impl Iterator<Item = (u64, u64)> {
        let ends = self.bindings.iter().skip(1).map(|&(from, _)| from - 1).chain([upto]);
        let ranges = self.bindings.iter().zip(ends).map(move |(&(from, bound), end)| (bound, from, end.min(upto)));
        ranges.filter(move |&(bound, from, end)| bound == account && from <= end).map(|(_, from, end)| (from, end))
    }

    /// Whether a mark speaks of this journal and settles something.
    pub fn concerns(&self, mark: &Mark) -> bool {
        let first = self.oldest(mark.account);
        mark.journal == self.journal && mark.prefix < self.next && first.is_some_and(|first| first <= mark.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::account::{Account, Judgement};
    use crate::proto::aggregate::Unit;

    const X: AccountId = AccountId([1; 16]);
    const Y: AccountId = AccountId([2; 16]);

    fn filled(range: std::ops::RangeInclusive<u64>) -> Outbox {
        let mut outbox = Outbox::new(9);
        for sequence in range {
            let metrics = vec![("n".to_owned(), 1.0)];
            outbox.put(Arc::new(Sample { sequence, priority: Priority::Normal, metrics }));
        }
        outbox
    }

    /// Offers to each account what is bound to it, commits and truncates.
    fn offer_once(outbox: &mut Outbox, accounts: &mut [Account]) {
        for account in accounts {
            let mut cursor = 1;
            while let Some((offer, after)) = outbox.offer(me(), account.id, cursor, Limits::OFFER_BYTES) {
                assert!(offer.is_possible());
                cursor = after;
                let mut unit = Unit::empty(account.id);
                offer.samples.iter().for_each(|sample| unit.add(offer.source(), sample));
                unit.provenance.0.entry(offer.source()).or_default().void = offer.void.clone();
                match account.judge(&unit) {
                    Judgement::Commit => account.commit(&unit),
                    _ => account.void(&unit.provenance),
                }
            }
            let source = Source { origin: me(), journal: outbox.journal };
            if let Some(mark) = account.mark(&source) {
                outbox.heard(&mark);
                outbox.truncate(account.id, mark.prefix);
            }
        }
    }

    /// Until nothing is left; returns what was counted in all accounts.
    fn drained(outbox: &mut Outbox, accounts: &mut [Account]) -> u64 {
        let mut rounds = 0;
        while outbox.depth() > 0 {
            rounds += 1;
            assert!(rounds < 10_000, "{} samples are never committed", outbox.depth());
            offer_once(outbox, accounts);
        }
        accounts.iter().map(|account| account.totals.samples).sum()
    }

    #[test]
    fn whatever_was_given_up_in_between_the_rest_is_committed() {
        let odd = (1..=1_000).filter(|s| s % 2 == 1);
        let late = (500..=900).filter(|s| s % 3 != 0);
        for given_up in [odd.collect::<Vec<_>>(), late.collect(), (1..=40).collect()] {
            let mut outbox = filled(1..=1_000);
            outbox.bind(1, X);
            given_up.iter().for_each(|&sequence| outbox.evict(sequence));
            assert_eq!(drained(&mut outbox, &mut [Account::new(X)]), 1_000 - given_up.len() as u64);
            assert_eq!((outbox.evicted(), outbox.evicted.is_empty()), (given_up.len() as u64, true));
        }
    }

    #[test]
    fn samples_of_many_bindings_are_all_committed() {
        let mut outbox = filled(1..=1_000);
        for n in 0..200 {
            outbox.bind(1 + 5 * n, if n % 2 == 0 { X } else { Y });
        }
        (1..=1_000).filter(|s| s % 4 == 0).for_each(|sequence| outbox.evict(sequence));
        assert_eq!(drained(&mut outbox, &mut [Account::new(X), Account::new(Y)]), 750);
    }

    #[test]
    fn a_node_between_two_roots_never_runs_out_of_bindings() {
        let (mut outbox, mut accounts) = (Outbox::new(9), [Account::new(X), Account::new(Y)]);
        let mut longest = 0;
        for n in 0..600 {
            let sample = Sample { sequence: n + 1, priority: Priority::Normal, metrics: vec![("n".into(), 1.0)] };
            outbox.put(Arc::new(sample));
            let main = if n % 2 == 0 { X } else { Y };
            if let Some(upto) = outbox.settled_bindings() {
                outbox.truncate(NOBODY, upto);
            }
            assert!(outbox.needs_binding(main));
            outbox.bind(n + 1, main);
            // Now and then one of them is away, and samples wait for it.
            let there = if n % 100 < 50 { &mut accounts[..] } else { &mut accounts[..1] };
            offer_once(&mut outbox, there);
            longest = longest.max(outbox.bindings.len());
        }
        assert!(longest < 110, "{longest}");
        assert_eq!(drained(&mut outbox, &mut accounts), 600);
        assert_eq!(outbox.settled_bindings().map(|upto| outbox.truncate(NOBODY, upto)), Some(0));
        assert!(outbox.bindings.len() <= 2 && outbox.settled.len() <= 2, "{outbox:?}");
        // As it was, on another disk: what is bound to nobody is not lost.
        let mut copy = crate::proto::durable::Durable::new(9, None);
        outbox.records().for_each(|record| copy.apply(&record));
        assert_eq!((copy.outbox.give_up_lost(), copy.outbox), (0, outbox));
    }

    #[test]
    fn an_account_that_has_lost_some_of_what_it_settled_goes_on() {
        let mut outbox = filled(1..=20);
        outbox.bind(1, X);
        assert_eq!(drained(&mut outbox, &mut [Account::new(X)]), 20);
        for sequence in 21..=40 {
            outbox.put(Arc::new(Sample { sequence, priority: Priority::Normal, metrics: vec![("n".to_owned(), 1.0)] }));
        }
        // The account's disk has lost everything.
        assert_eq!(drained(&mut outbox, &mut [Account::new(X)]), 20);
        assert!(outbox.receded.is_empty());
    }

    fn me() -> NodeId {
        NodeId::from_bytes([1; 32])
    }

    #[test]
    fn nothing_is_offered_unbound() {
        let mut outbox = filled(1..=3);
        assert_eq!(outbox.offer(me(), X, 1, Limits::OFFER_BYTES), None);
        outbox.bind(1, X);
        let (offer, after) = outbox.offer(me(), X, 1, Limits::OFFER_BYTES).unwrap();
        assert_eq!((offer.samples.len(), after, offer.is_possible()), (3, 4, true));
    }

    #[test]
    fn what_is_bound_elsewhere_is_a_stray() {
        let mut outbox = filled(1..=20);
        outbox.bind(1, X);
        assert_eq!(outbox.stray(X), None);
        outbox.bind(11, Y);
        assert_eq!((outbox.stray(X), outbox.stray(Y)), (Some(Y), Some(X)));
        outbox.truncate(X, 10);
        assert_eq!(outbox.stray(Y), None);
    }

    #[test]
    fn what_waits_for_a_retired_account_is_offered_to_its_heir_as_new() {
        let mut outbox = filled(1..=20);
        outbox.bind(1, X);
        outbox.truncate(X, 15);
        let renewal = outbox.renewal(X);
        outbox.renew(X, Y, &renewal);
        outbox.renew(X, Y, &renewal);
        assert_eq!((outbox.acknowledged(), outbox.depth(), outbox.evicted()), (20, 5, 0));
        assert_eq!(outbox.waiting(), BTreeMap::from([(Some(Y), 5)]));
        let (offer, _) = outbox.offer(me(), Y, 1, Limits::OFFER_BYTES).unwrap();
        // What the heir may have been told to be void is not offered to it, and its prefix closes over it.
        assert_eq!((offer.samples[0].sequence, offer.void), (21, RangeSet::of(1, 20)));
    }

    #[test]
    fn what_changes_accounts_gets_the_same_sequences_when_samples_before_it_are_lost() {
        let renewed = |kept: &[u64]| {
            let mut outbox = Outbox::new(9);
            outbox.bind(1, X);
            let all = filled(1..=5);
            all.since(1).filter(|s| kept.contains(&s.sequence)).for_each(|s| outbox.put(Arc::new(s.clone())));
            outbox.renew(X, Y, &Renewal { oldest: 2, span: 4, first: 6 });
            outbox.put(Arc::new(Sample { sequence: 10, priority: Priority::Normal, metrics: vec![("n".into(), 1.0)] }));
            outbox
        };
        let whole = renewed(&[2, 3, 4, 5]);
        assert_eq!((whole.sequences().collect::<Vec<_>>(), whole.acknowledged()), (vec![6, 7, 8, 9, 10], 6));
        let mut damaged = renewed(&[2, 4]);
        assert_eq!((damaged.sequences().collect::<Vec<_>>(), damaged.acknowledged()), (vec![6, 8, 10], 6));
        assert_eq!(damaged.give_up_lost(), 3, "1, 3 and 5, which nobody has settled");
        assert_eq!(drained(&mut damaged, &mut [Account::new(Y)]), 3);
    }

    #[test]
    fn a_mark_settles_only_what_is_bound_to_its_account() {
        let mut outbox = filled(1..=20);
        outbox.bind(1, X);
        outbox.bind(11, Y);
        let (offer, _) = outbox.offer(me(), Y, 1, Limits::OFFER_BYTES).unwrap();
        assert_eq!(offer.samples[0].sequence, 11);
        assert_eq!(offer.void, RangeSet::of(1, 10));
        assert_eq!(outbox.truncate(Y, 15), 5);
        assert_eq!(outbox.oldest(X), Some(1));
        assert_eq!(outbox.depth(), 15);
    }

    #[test]
    fn the_least_wanted_goes_first() {
        let mut outbox = filled(1..=3);
        let critical = Sample { sequence: 4, priority: Priority::Critical, metrics: vec![("n".into(), 1.0)] };
        let low = Sample { sequence: 5, priority: Priority::Low, metrics: vec![("n".into(), 1.0)] };
        outbox.put(Arc::new(critical));
        outbox.put(Arc::new(low));
        assert_eq!(outbox.least_wanted(1, Priority::Low).unwrap(), [5]);
        outbox.evict(5);
        assert_eq!(outbox.least_wanted(1, Priority::Normal).unwrap(), [1]);
        assert_eq!(outbox.least_wanted(outbox.bytes(), Priority::Critical).unwrap(), [1, 2, 3, 4]);
        // Nothing gives way to what is less important than itself.
        assert_eq!(outbox.least_wanted(outbox.bytes(), Priority::Normal), None);
        assert_eq!(outbox.least_wanted(1, Priority::Low), None);
        outbox.bind(1, X);
        // What was given up is said with the first sample after it.
        assert!(outbox.offer(me(), X, 1, Limits::OFFER_BYTES).unwrap().0.void.is_empty());
        outbox.put(Arc::new(Sample { sequence: 6, priority: Priority::Low, metrics: vec![("n".into(), 1.0)] }));
        assert_eq!(outbox.offer(me(), X, 1, Limits::OFFER_BYTES).unwrap().0.void, RangeSet::of(5, 5));
    }
}
