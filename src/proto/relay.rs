//! A relay's memory: windows that fill, and units that were sent but are not known to be committed.
//!
//! All of it is volatile: a relay may lose everything, the origins offer again.

use std::collections::{BTreeMap, BTreeSet};
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

/// How long a unit that went is kept for whoever asks for its parts; its origins offer again sooner, at first.
const KEEP: Duration = Duration::from_secs(60);

/// How long a unit is under way at least before it is sent again because its samples are.
const AGAIN: Duration = Duration::from_secs(15);

/// What share of a relay's memory may wait to go before it takes in no more; the rest is for what went.
const BACKLOG: usize = 4;

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

    /// What it takes in memory, about.
    fn bytes(&self) -> usize {
        match self {
            Self::Sample(_, sample) => 64 + sample.bytes(),
            Self::Unit { unit, .. } => 64 + unit.bytes(),
        }
    }
}

/// What one window takes: samples for one account, from the members of one level here. What goes again may be on its way
/// already, and what it is folded with would be asked for in parts: it stays apart from what is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    pub account: AccountId,
    pub level: Level,
    pub again: bool,
}

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
    /// Whether it was sent before, or what is in it was.
    again: bool,
    unit: Arc<Unit>,
    parts: Vec<Part>,
    since: Time,
    /// When it went, unless it waits to go.
    sent: Option<Time>,
    bytes: usize,
}

/// The units for one account that wait to go.
#[derive(Clone, Debug, Default)]
struct Backlog {
    units: BTreeSet<u64>,
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
    unsent: BTreeMap<AccountId, Backlog>,
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
            unsent: BTreeMap::new(),
            next: first,
            evicted: 0,
        }
    }

    /// Folds in samples from their origin, a member of the group of `level`. Those that are here already are left aside:
    /// folded again they would overlap with themselves all the way up.
    pub fn fold_offer(&mut self, now: Time, level: Level, offer: &Offer) {
        let (account, source) = (offer.account, offer.source());
        let group = Group { account, level, again: offer.again };
        let (Some(first), Some(last)) = (offer.samples.first(), offer.samples.last()) else { return };
        let offered = RangeSet::of(first.sequence, last.sequence);
        let mut here = RangeSet::new();
        let mut holds = |unit: &Unit| {
            let Some(spans) = unit.provenance.0.get(&source) else { return false };
            let common = spans.counted.intersection(&offered);
            here.extend(&common);
            !common.is_empty()
        };
        for window in self.open_for(account) {
            holds(&window.unit);
        }
        self.send_again(now, account, |kept| holds(&kept.unit));
        for sample in &offer.samples {
            if here.contains(sample.sequence) {
                continue;
            }
            let window = self.window(now, group);
            window.push(Part::Sample(source, sample.clone()));
            // Before the window closes: without it the root would wait for what never comes.
            window.unit.provenance.0.entry(source).or_default().void.extend(&offer.void);
            self.close_if_full(now, group);
        }
    }

    /// Folds in the unit of a child, which is in that group. If it does not fit into the open window that one is closed
    /// first.
    pub fn fold_unit(&mut self, now: Time, group: Group, child: NodeId, number: u64, unit: Arc<Unit>) {
        // By what is in it too: a child that has restarted numbers its units from the beginning.
        let same = |part: &Part| {
            matches!(part, Part::Unit { child: c, number: n, unit: u }
                if (*c, *n) == (child, number) && u.provenance == unit.provenance)
        };
        let mut known = self.open_for(group.account).any(|window| window.parts.iter().any(same));
        self.send_again(now, unit.account, |kept| {
            let again = kept.unit.provenance.overlaps(&unit.provenance) && kept.parts.iter().any(same);
            known |= again;
            again
        });
        if known {
            return;
        }
        if self.open.get(&group).is_some_and(|window| !window.has_room_for(&unit)) {
            self.close(now, group);
        }
        self.window(now, group).push(Part::Unit { child, number, unit });
        self.close_if_full(now, group);
    }

    /// What is here and comes once more may have been lost further up: the units that hold it go again, if they were sent
    /// long ago.
    fn send_again(&mut self, now: Time, account: AccountId, mut holds: impl FnMut(&Kept) -> bool) {
        let mut again = Vec::new();
        for (&number, kept) in self.kept.iter().filter(|(_, kept)| kept.unit.account == account) {
            if holds(kept) && kept.sent.is_some_and(|sent| now.since(sent) >= AGAIN) {
                again.push(number);
            }
        }
        again.into_iter().for_each(|number| self.requeue(number));
    }

    fn open_for(&self, account: AccountId) -> impl Iterator<Item = &Window> {
        self.open.iter().filter(move |(group, _)| group.account == account).map(|(_, window)| window)
    }

    fn window(&mut self, now: Time, group: Group) -> &mut Window {
        self.open.entry(group).or_insert_with(|| Window::new(group.account, now, self.quantiles))
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
        let bytes = window.bytes + window.unit.bytes();
        self.kept_bytes += bytes;
        let (Group { level, again, .. }, unit, parts) = (group, Arc::new(window.unit), window.parts);
        self.kept.insert(self.next, Kept { level, again, unit, parts, since: now, sent: None, bytes });
        self.queue(self.next);
        while self.kept.len() > Limits::RELAY_UNITS || self.kept_bytes > Limits::RELAY_BYTES {
            self.make_room();
            self.evicted += 1;
        }
    }

    fn queue(&mut self, number: u64) {
        let Some(kept) = self.kept.get(&number) else { return };
        let backlog = self.unsent.entry(kept.unit.account).or_default();
        if backlog.units.insert(number) {
            backlog.bytes += kept.bytes;
        }
    }

    /// What went before goes once more.
    fn requeue(&mut self, number: u64) {
        if let Some(kept) = self.kept.get_mut(&number) {
            (kept.sent, kept.again) = (None, true);
            self.queue(number);
        }
    }

    /// Takes a unit out of those that wait to go, if it is one.
    fn unqueue(&mut self, account: AccountId, number: u64, bytes: usize) {
        let Some(backlog) = self.unsent.get_mut(&account) else { return };
        if backlog.units.remove(&number) {
            backlog.bytes -= bytes;
        }
        if backlog.units.is_empty() {
            self.unsent.remove(&account);
        }
    }

    /// Of what went the oldest leaves. Of what waits to go the newest: without the oldest nothing that comes after it can
    /// be settled, all of it would come again, and leave again.
    fn make_room(&mut self) {
        let went = self.kept.iter().find(|(_, kept)| kept.sent.is_some()).map(|(&number, _)| number);
        if let Some(number) = went.or_else(|| self.kept.last_key_value().map(|(&number, _)| number)) {
            self.forget(number);
        }
    }

    fn forget(&mut self, number: u64) -> Option<Kept> {
        let kept = self.kept.remove(&number)?;
        self.kept_bytes -= kept.bytes;
        self.unqueue(kept.unit.account, number, kept.bytes);
        Some(kept)
    }

    /// Whether there is room for more that goes to an account. Who brings it waits if not.
    pub fn has_room(&self, account: AccountId) -> bool {
        let backlog = self.unsent.get(&account);
        backlog.is_none_or(|waits| {
            waits.bytes < Limits::RELAY_BYTES / BACKLOG && waits.units.len() < Limits::RELAY_UNITS / BACKLOG
        })
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

    /// The next unit to send to a parent whose root owns `account`, and whether it goes again.
    pub fn next_unsent(&mut self, now: Time, account: AccountId) -> Option<(u64, Arc<Unit>, bool)> {
        let number = *self.unsent.get(&account)?.units.first()?;
        let kept = self.kept.get_mut(&number)?;
        kept.sent = Some(now);
        let (unit, again, bytes) = (kept.unit.clone(), kept.again, kept.bytes);
        self.unqueue(account, number, bytes);
        Some((number, unit, again))
    }

    /// A new parent, or one that lost what it had: everything that is not known to be committed goes again.
    pub fn resend_all(&mut self) {
        let sent = self.kept.iter().filter(|(_, kept)| kept.sent.is_some());
        let sent: Vec<_> = sent.map(|(&number, _)| number).collect();
        sent.into_iter().for_each(|number| self.requeue(number));
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
        }
    }

    /// Forgets what went long ago, and what has waited as long for another account than that of the root. What waits for
    /// the root is not forgotten: nothing that comes after it could be settled.
    pub fn sweep(&mut self, now: Time, main: Option<AccountId>) -> usize {
        let is_old = |kept: &Kept| {
            let may_leave = kept.sent.is_some() || Some(kept.unit.account) != main;
            may_leave && now.since(kept.sent.unwrap_or(kept.since)) > KEEP
        };
        let old: Vec<_> = self.kept.iter().filter(|(_, kept)| is_old(kept)).map(|(&number, _)| number).collect();
        old.into_iter().filter_map(|number| self.forget(number)).count()
    }

    /// The parent has part of a unit already: what it lacks is folded anew, and what is mixed is asked of the child.
    pub fn split(&mut self, now: Time, number: u64, have: &Provenance) -> Vec<Ask> {
        let Some(kept) = self.forget(number) else { return Vec::new() };
        let group = Group { account: kept.unit.account, level: kept.level, again: true };
        let void = kept.unit.provenance.0.iter().map(|(source, spans)| (*source, spans.void.clone()));
        let void: BTreeMap<_, _> = void.collect();
        self.close(now, group);
        let mut asks = Vec::new();
        for part in kept.parts {
            let provenance = part.counted();
            if provenance.is_within(have) {
                continue;
            }
            let have = provenance.common(have);
            match part {
                Part::Unit { child, number, .. } if !have.0.is_empty() => {
                    asks.push(Ask { child, unit: number, have });
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
    use crate::proto::aggregate::Totals;
    use crate::proto::sample::Priority;

    const ACCOUNT: AccountId = AccountId([1; 16]);
    const WINDOW: Duration = Duration::from_secs(1);
    const GROUP: Group = Group { account: ACCOUNT, level: Level::PLATFORM, again: false };

    fn id(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    fn offer(n: u8, account: AccountId) -> Offer {
        let sample = Sample { sequence: 1, priority: Priority::Normal, metrics: vec![("t".into(), 1.0)] };
        Offer {
            origin: id(n),
            journal: 1,
            account,
            void: RangeSet::new(),
            again: false,
            samples: vec![Arc::new(sample)],
        }
    }

    fn origins(relay: &mut Relay, account: AccountId) -> Vec<Vec<NodeId>> {
        let units = std::iter::from_fn(|| relay.next_unsent(Time::ZERO, account));
        units.map(|(_, unit, _)| unit.provenance.0.keys().map(|source| source.origin).collect()).collect()
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
    fn what_goes_again_is_apart_from_what_is_new() {
        let mut relay = Relay::new(WINDOW, 1024, false, 0);
        let again = |n: u8| Offer { again: true, ..offer(n, ACCOUNT) };
        relay.fold_offer(Time::ZERO, Level::PLATFORM, &offer(2, ACCOUNT));
        relay.fold_offer(Time::ZERO, Level::PLATFORM, &again(3));
        // It is in the window of what is new.
        relay.fold_offer(Time::ZERO, Level::PLATFORM, &again(2));
        relay.close_due(Time::ZERO + WINDOW);
        let unsent = |relay: &mut Relay| {
            let units = std::iter::from_fn(|| relay.next_unsent(Time::ZERO, ACCOUNT));
            units.map(|(_, unit, again)| (unit.provenance.0.keys().next().unwrap().origin, again)).collect::<Vec<_>>()
        };
        assert_eq!(unsent(&mut relay), [(id(2), false), (id(3), true)]);
        // To the next parent all goes again but what is sent first now.
        relay.fold_offer(Time::ZERO, Level::PLATFORM, &offer(4, ACCOUNT));
        relay.close_due(Time::ZERO + WINDOW);
        relay.resend_all();
        assert_eq!(unsent(&mut relay), [(id(2), true), (id(3), true), (id(4), false)]);
    }

    #[test]
    fn a_child_is_asked_for_what_lacks_of_its_own_unit() {
        let mut relay = Relay::new(WINDOW, 1024, false, 0);
        let unit = |n: u8, last: u64| {
            let mut unit = Unit::empty(ACCOUNT);
            unit.provenance.0.entry(offer(n, ACCOUNT).source()).or_default().counted = RangeSet::of(1, last);
            Unit { totals: Totals { samples: last, ..Totals::default() }, ..unit }
        };
        for child in 2..=4 {
            relay.fold_unit(Time::ZERO, GROUP, id(child), 5, Arc::new(unit(child, 10)));
        }
        relay.close_due(Time::ZERO + WINDOW);
        let (number, ..) = relay.next_unsent(Time::ZERO, ACCOUNT).unwrap();
        let mut have = unit(2, 10).provenance;
        have.extend(&unit(3, 4).provenance);
        // All of the first child's is there, part of the second's, nothing of the third's.
        let ask = Ask { child: id(3), unit: 5, have: unit(3, 4).provenance };
        assert_eq!(relay.split(Time::ZERO, number, &have), [ask]);
        assert_eq!(origins(&mut relay, ACCOUNT), [[id(4)]]);
    }

    #[test]
    fn what_a_split_unit_lacks_is_folded_in_its_group() {
        let mut relay = Relay::new(WINDOW, 1024, false, 0);
        relay.fold_offer(Time::ZERO, Level::PLATFORM, &offer(2, ACCOUNT));
        relay.fold_offer(Time::ZERO, Level::PLATFORM, &offer(3, ACCOUNT));
        relay.close_due(Time::ZERO + WINDOW);
        let (number, ..) = relay.next_unsent(Time::ZERO, ACCOUNT).unwrap();
        relay.fold_offer(Time::ZERO + WINDOW, Level::SQUAD, &offer(4, ACCOUNT));
        let mut have = Unit::empty(ACCOUNT);
        have.add(offer(2, ACCOUNT).source(), &offer(2, ACCOUNT).samples[0]);
        assert_eq!(relay.split(Time::ZERO + WINDOW, number, &have.provenance), []);
        assert_eq!(origins(&mut relay, ACCOUNT), [[id(3)]]);
    }

    #[test]
    fn what_comes_again_is_sent_again_and_not_folded_again() {
        let mut relay = Relay::new(WINDOW, 1024, false, 0);
        let child = Arc::new({
            let mut unit = Unit::empty(ACCOUNT);
            unit.add(offer(3, ACCOUNT).source(), &offer(3, ACCOUNT).samples[0]);
            unit
        });
        let later = Time::ZERO + WINDOW;
        let again = |relay: &mut Relay, now| {
            relay.fold_offer(now, Level::PLATFORM, &offer(2, ACCOUNT));
            relay.fold_unit(now, GROUP, id(9), 5, child.clone());
            relay.close_due(now + WINDOW);
            origins(relay, ACCOUNT)
        };
        assert_eq!(again(&mut relay, Time::ZERO), [vec![id(2), id(3)]]);
        assert!(again(&mut relay, later).is_empty());
        // After a while it may be lost.
        assert_eq!(again(&mut relay, later + AGAIN), [vec![id(2), id(3)]]);
        // What is not kept any more is folded like anything new.
        relay.sweep(later + KEEP, Some(ACCOUNT));
        assert_eq!(again(&mut relay, later + KEEP), [vec![id(2), id(3)]]);
    }

    #[test]
    fn what_waits_for_the_root_is_not_forgotten_however_old_it_is() {
        let mut relay = Relay::new(WINDOW, 1024, false, 0);
        let other = AccountId([2; 16]);
        relay.fold_offer(Time::ZERO, Level::PLATFORM, &offer(2, ACCOUNT));
        relay.fold_offer(Time::ZERO, Level::PLATFORM, &offer(3, other));
        relay.close_due(Time::ZERO + WINDOW);
        let late = Time::ZERO + WINDOW + 2 * KEEP;
        assert_eq!(relay.sweep(late, Some(ACCOUNT)), 1);
        assert!(relay.next_unsent(late, other).is_none());
        assert!(relay.next_unsent(late, ACCOUNT).is_some());
        // From when it went, it is kept as long as any other.
        assert_eq!(relay.sweep(late + KEEP, Some(ACCOUNT)), 0);
        assert_eq!(relay.sweep(late + KEEP + WINDOW, Some(ACCOUNT)), 1);
    }

    #[test]
    fn a_unit_of_a_restarted_child_is_not_taken_for_that_of_its_last_life() {
        let mut relay = Relay::new(WINDOW, 1024, false, 0);
        let fold = |relay: &mut Relay, sequences: RangeSet| {
            let mut unit = Unit::empty(ACCOUNT);
            unit.provenance.0.entry(offer(3, ACCOUNT).source()).or_default().counted = sequences;
            unit.totals.samples = unit.provenance.samples();
            relay.fold_unit(Time::ZERO, GROUP, id(9), 5, Arc::new(unit));
            relay.close_due(Time::ZERO + WINDOW);
            relay.next_unsent(Time::ZERO, ACCOUNT).map(|(_, unit, _)| unit.totals.samples)
        };
        assert_eq!(fold(&mut relay, RangeSet::of(1, 3)), Some(3));
        assert_eq!(fold(&mut relay, RangeSet::of(1, 3)), None);
        assert_eq!(fold(&mut relay, RangeSet::of(2, 9)), Some(8));
    }
}
