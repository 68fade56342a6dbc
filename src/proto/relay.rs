//! A relay's memory: windows that fill, and units that were sent but are not known to be committed.
//!
//! All of it is volatile: a relay may lose everything, the origins offer again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::id::NodeId;
use crate::level::Level;
use crate::limits::Limits;
use crate::proto::account::{AccountId, Mark};
use crate::proto::aggregate::{Provenance, Source, Unit};
use crate::proto::outbox::Offer;
use crate::proto::ranges::RangeSet;
use crate::proto::sample::Sample;
use crate::time::Time;

/// How long a unit is kept for whoever asks for its parts; its origins offer again after less.
const KEEP: Duration = Duration::from_secs(60);

/// What a unit was folded from.
#[derive(Clone, Debug)]
enum Part {
    Sample(Source, Arc<Sample>),
    /// A child's unit, by the child's number for it.
    Unit {
        child: NodeId,
        number: u64,
        unit: Arc<Unit>,
    },
}

impl Part {
    fn counted(&self) -> Provenance {
        match self {
            Self::Sample(source, sample) => {
                let mut provenance = Provenance::default();
                provenance.0.entry(*source).or_default().counted.insert(sample.sequence, sample.sequence);
                provenance
            }
            Self::Unit { unit, .. } => unit.provenance.clone(),
        }
    }
}

impl Part {
    /// What it takes in memory, about.
    fn bytes(&self) -> usize {
        match self {
            Self::Sample(_, sample) => 64 + sample.bytes(),
            Self::Unit { unit, .. } => 64 + unit.bytes(),
        }
    }
}

/// What one window takes: samples for one account, from one group. A group is the level that its members have here.
type Group = (AccountId, Level);

#[derive(Clone, Debug)]
struct Window {
    unit: Unit,
    parts: Vec<Part>,
    opened: Time,
    bytes: usize,
    quantiles: bool,
}

impl Window {
    fn new(account: AccountId, opened: Time, quantiles: bool) -> Self {
        Self { unit: Unit::empty(account), parts: Vec::new(), opened, bytes: 0, quantiles }
    }

    fn push(&mut self, part: Part) {
        self.bytes += part.bytes();
        match &part {
            Part::Sample(source, sample) => {
                self.unit.add(*source, sample);
                if self.quantiles {
                    self.unit.totals.sketch(sample);
                }
            }
            Part::Unit { unit, .. } => self.unit.merge(unit),
        }
        self.parts.push(part);
    }

    /// Whether a unit can be folded in without overlap, and without growing beyond what a frame takes.
    fn has_room_for(&self, unit: &Unit) -> bool {
        !self.unit.provenance.overlaps(&unit.provenance)
            && self.unit.totals.metrics.len() + unit.totals.metrics.len() <= Limits::UNIT_METRICS
            && self.unit.provenance.0.len() + unit.provenance.0.len() <= Limits::UNIT_SOURCES
    }
}

#[derive(Clone, Debug)]
struct Kept {
    level: Level,
    unit: Arc<Unit>,
    parts: Vec<Part>,
    since: Time,
    bytes: usize,
}

/// What somebody further down is to send again.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    pub child: NodeId,
    pub unit: u64,
    pub have: Provenance,
}

/// Windows by account and group, and the units sent.
#[derive(Clone, Debug)]
pub struct Relay {
    window: Duration,
    window_count: u64,
    quantiles: bool,
    open: BTreeMap<Group, Window>,
    kept: BTreeMap<u64, Kept>,
    kept_bytes: usize,
    unsent: VecDeque<u64>,
    next: u64,
    /// Units that left before they were known to be committed, for lack of room.
    pub evicted: u64,
}

impl Relay {
    /// `first` must be above every number used before in this process.
    pub fn new(window: Duration, window_count: u64, quantiles: bool, first: u64) -> Self {
        Self {
            window,
            window_count,
            quantiles,
            open: BTreeMap::new(),
            kept: BTreeMap::new(),
            kept_bytes: 0,
            unsent: VecDeque::new(),
            next: first,
            evicted: 0,
        }
    }

    /// Folds in samples from their origin, a member of the group of `level`. One that is in the open window already is
    /// left aside.
    pub fn fold_offer(&mut self, now: Time, level: Level, offer: &Offer) {
        let (group, source) = ((offer.account, level), offer.source());
        for sample in &offer.samples {
            let window = self.window(now, group);
            let spans = window.unit.provenance.0.get(&source);
            if spans.is_some_and(|spans| spans.counted.contains(sample.sequence)) {
                continue;
            }
            window.push(Part::Sample(source, sample.clone()));
            // Before the window closes: without it the root would wait for what never comes.
            window.unit.provenance.0.entry(source).or_default().void.extend(&offer.void);
            self.close_if_full(now, group);
        }
    }

    /// Folds in the unit of a child in the group of `level`. If it does not fit into the open window that one is closed
    /// first.
    pub fn fold_unit(&mut self, now: Time, level: Level, child: NodeId, number: u64, unit: Arc<Unit>) {
        let group = (unit.account, level);
        if self.open.get(&group).is_some_and(|window| !window.has_room_for(&unit)) {
            self.close(now, group);
        }
        self.window(now, group).push(Part::Unit { child, number, unit });
        self.close_if_full(now, group);
    }

    fn window(&mut self, now: Time, group: Group) -> &mut Window {
        self.open.entry(group).or_insert_with(|| Window::new(group.0, now, self.quantiles))
    }

    fn close_if_full(&mut self, now: Time, group: Group) {
        let full = |window: &Window| {
            let unit = &window.unit;
            window.bytes * 16 >= Limits::RELAY_BYTES
                || unit.totals.samples >= self.window_count
                || unit.totals.metrics.len() * 2 >= Limits::UNIT_METRICS
                || unit.provenance.0.len() * 2 >= Limits::UNIT_SOURCES
                || unit.provenance.0.values().any(|s| s.counted.ranges().len() * 2 >= Limits::UNIT_SPANS)
        };
        if self.open.get(&group).is_some_and(full) {
            self.close(now, group);
        }
    }

    fn close(&mut self, now: Time, group: Group) {
        let Some(window) = self.open.remove(&group).filter(|window| !window.unit.is_empty()) else { return };
        self.next += 1;
        self.unsent.push_back(self.next);
        let bytes = window.bytes + window.unit.bytes();
        self.kept_bytes += bytes;
        let kept = Kept { level: group.1, unit: Arc::new(window.unit), parts: window.parts, since: now, bytes };
        self.kept.insert(self.next, kept);
        while self.kept.len() > Limits::RELAY_UNITS || self.kept_bytes > Limits::RELAY_BYTES {
            self.forget_oldest();
            self.evicted += 1;
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((number, kept)) = self.kept.pop_first() {
            self.kept_bytes -= kept.bytes;
            self.unsent.retain(|unsent| *unsent != number);
        }
    }

    fn forget(&mut self, number: u64) -> Option<Kept> {
        let kept = self.kept.remove(&number)?;
        self.kept_bytes -= kept.bytes;
        Some(kept)
    }

    /// Closes the windows whose time is up.
    pub fn close_due(&mut self, now: Time) {
        let due: Vec<_> = self.open.iter().filter(|(_, w)| now >= w.opened + self.window).map(|(&g, _)| g).collect();
        for group in due {
            self.close(now, group);
        }
    }

    pub fn deadline(&self) -> Option<Time> {
        self.open.values().map(|window| window.opened + self.window).min()
    }

    /// The next unit to send to a parent whose root owns `account`.
    pub fn next_unsent(&mut self, account: AccountId) -> Option<(u64, Arc<Unit>)> {
        let i = self.unsent.iter().position(|n| self.kept.get(n).is_some_and(|kept| kept.unit.account == account))?;
        let number = self.unsent.remove(i)?;
        Some((number, self.kept[&number].unit.clone()))
    }

    /// A new parent, or one that lost what it had: everything that is not known to be committed goes again.
    pub fn resend_all(&mut self) {
        self.unsent = self.kept.keys().copied().collect();
    }

    /// Forgets what is committed, and what is too old to be asked for.
    pub fn settle(&mut self, marks: &[Mark]) {
        let settled: BTreeMap<_, _> =
            marks.iter().map(|m| ((m.account, Source { origin: m.origin, journal: m.journal }), m.prefix)).collect();
        let mut done = Vec::new();
        for (&number, kept) in &mut self.kept {
            let account = kept.unit.account;
            let touched = kept.unit.provenance.0.keys().any(|source| settled.contains_key(&(account, *source)));
            if !touched {
                continue;
            }
            let below = |source: &Source, counted: &RangeSet| {
                let prefix = settled.get(&(account, *source)).copied().unwrap_or(0);
                counted.ranges().last().is_none_or(|&(_, last)| last <= prefix)
            };
            // The parts that are settled are not needed any more; when all are, neither is the unit.
            kept.parts.retain(|part| match part {
                Part::Sample(source, sample) => {
                    settled.get(&(account, *source)).is_none_or(|&prefix| sample.sequence > prefix)
                }
                Part::Unit { unit, .. } => !unit.provenance.0.iter().all(|(s, spans)| below(s, &spans.counted)),
            });
            if kept.parts.is_empty() {
                done.push(number);
            }
        }
        for number in done {
            self.forget(number);
            self.unsent.retain(|unsent| *unsent != number);
        }
    }

    pub fn sweep(&mut self, now: Time) -> usize {
        let before = self.kept.len();
        while self.kept.first_key_value().is_some_and(|(_, kept)| now.since(kept.since) > KEEP) {
            self.forget_oldest();
        }
        before - self.kept.len()
    }

    /// The parent has part of a unit already: what it lacks is folded anew, and what is mixed is asked of the child.
    pub fn split(&mut self, now: Time, number: u64, have: &Provenance) -> Vec<Ask> {
        let Some(kept) = self.forget(number) else { return Vec::new() };
        self.unsent.retain(|unsent| *unsent != number);
        let group = (kept.unit.account, kept.level);
        let void = kept.unit.provenance.0.iter().map(|(source, spans)| (*source, spans.void.clone()));
        let void: BTreeMap<_, _> = void.collect();
        self.close(now, group);
        let mut asks = Vec::new();
        for part in kept.parts {
            let provenance = part.counted();
            if provenance.is_within(have) {
                continue;
            }
            let overlaps = provenance.overlaps(have);
            match part {
                Part::Unit { child, number, .. } if overlaps => {
                    asks.push(Ask { child, unit: number, have: have.clone() });
                }
                Part::Unit { child, number, unit } => {
                    self.window(now, group).push(Part::Unit { child, number, unit });
                }
                Part::Sample(source, sample) => {
                    let window = self.window(now, group);
                    window.push(Part::Sample(source, sample));
                    if let Some(void) = void.get(&source) {
                        window.unit.provenance.0.entry(source).or_default().void.extend(void);
                    }
                }
            }
        }
        self.close(now, group);
        asks
    }

    pub fn kept(&self) -> usize {
        self.kept.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::sample::Priority;

    const ACCOUNT: AccountId = AccountId([1; 16]);
    const WINDOW: Duration = Duration::from_secs(1);

    fn id(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    fn offer(n: u8, account: AccountId) -> Offer {
        let sample = Sample { sequence: 1, priority: Priority::Normal, metrics: vec![("t".into(), 1.0)] };
        Offer { origin: id(n), journal: 1, account, void: RangeSet::new(), samples: vec![Arc::new(sample)] }
    }

    fn origins(relay: &mut Relay, account: AccountId) -> Vec<Vec<NodeId>> {
        let units = std::iter::from_fn(|| relay.next_unsent(account));
        units.map(|(_, unit)| unit.provenance.0.keys().map(|source| source.origin).collect()).collect()
    }

    #[test]
    fn groups_and_accounts_never_mix() {
        let mut relay = Relay::new(WINDOW, 1024, false, 0);
        let other = AccountId([2; 16]);
        relay.fold_offer(Time::ZERO, Level::PLATFORM, &offer(2, ACCOUNT));
        relay.fold_offer(Time::ZERO, Level::PLATFORM, &offer(3, ACCOUNT));
        relay.fold_offer(Time::ZERO, Level::SQUAD, &offer(4, ACCOUNT));
        relay.fold_offer(Time::ZERO, Level::PLATFORM, &offer(5, other));
        relay.close_due(Time::ZERO + WINDOW);
        assert_eq!(origins(&mut relay, ACCOUNT), [vec![id(2), id(3)], vec![id(4)]]);
        assert_eq!(origins(&mut relay, other), [[id(5)]]);
    }

    #[test]
    fn what_a_split_unit_lacks_is_folded_in_its_group() {
        let mut relay = Relay::new(WINDOW, 1024, false, 0);
        relay.fold_offer(Time::ZERO, Level::PLATFORM, &offer(2, ACCOUNT));
        relay.fold_offer(Time::ZERO, Level::PLATFORM, &offer(3, ACCOUNT));
        relay.close_due(Time::ZERO + WINDOW);
        let (number, _) = relay.next_unsent(ACCOUNT).unwrap();
        relay.fold_offer(Time::ZERO + WINDOW, Level::SQUAD, &offer(4, ACCOUNT));
        let mut have = Unit::empty(ACCOUNT);
        have.add(offer(2, ACCOUNT).source(), &offer(2, ACCOUNT).samples[0]);
        assert_eq!(relay.split(Time::ZERO + WINDOW, number, &have.provenance), []);
        assert_eq!(origins(&mut relay, ACCOUNT), [[id(3)]]);
    }
}
