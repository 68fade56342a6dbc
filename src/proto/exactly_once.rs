//! The rules by which every acknowledged sample is counted exactly once, alone: random schedules against an oracle, and
//! each rule broken on purpose.
//!
//! Origins, relays and two roots are the real outboxes, relays and accounts; what passes between them is lost, repeated
//! and overtaken, everybody crashes, origins change their way and their root. What a crash leaves is what was kept.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;

use crate::id::NodeId;
use crate::level::Level;
use crate::limits::Limits;
use crate::proto::account::{Account, AccountId, Judgement, Mark};
use crate::proto::aggregate::{Provenance, Source, Unit};
use crate::proto::outbox::{NOBODY, Offer, Outbox};
use crate::proto::ranges::RangeSet;
use crate::proto::relay::{Group, Relay};
use crate::proto::sample::{Priority, Sample};
use crate::time::Time;

const ORIGINS: usize = 3;
const RELAYS: usize = 3;
const ROOTS: usize = 2;
const STEPS: usize = 400;

/// The root that is gone for good after so many steps, where its account is retired into the other one's.
const GONE: usize = 1;
const GONE_AFTER: usize = 250;

/// What must hold so that nothing is lost or counted twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// A sample is acknowledged when it is kept.
    AcknowledgeWhatIsKept,
    /// An offer leaves when its binding is kept.
    OfferWhatIsBound,
    /// What was offered under one binding keeps it.
    BindOnce,
    /// A root commits what is for its own account.
    CommitOwnAccount,
    /// A root commits units of which nothing is counted yet.
    CommitWhatIsNew,
    /// Totals and table are kept together.
    KeepTotalsWithTable,
    /// A mark leaves when what it says is kept.
    MarkWhatIsKept,
    /// A mark says how far everything is settled.
    MarkThePrefix,
    /// An origin forgets what a mark says is settled.
    ForgetWhatIsMarked,
    /// It offers again what is not.
    OfferAgain,
    /// An offer says what will never come.
    SayWhatIsGivenUp,
    /// What waits for a retired account goes on under new sequences.
    RenewWhatWaits,
}

const RULES: [Rule; 12] = [
    Rule::AcknowledgeWhatIsKept,
    Rule::OfferWhatIsBound,
    Rule::BindOnce,
    Rule::CommitOwnAccount,
    Rule::CommitWhatIsNew,
    Rule::KeepTotalsWithTable,
    Rule::MarkWhatIsKept,
    Rule::MarkThePrefix,
    Rule::ForgetWhatIsMarked,
    Rule::OfferAgain,
    Rule::SayWhatIsGivenUp,
    Rule::RenewWhatWaits,
];

#[derive(Clone, Copy, Debug)]
enum Hop {
    Relay(usize),
    Root(usize),
}

#[derive(Clone, Debug)]
enum Message {
    Offer { to: Hop, offer: Offer },
    Unit { to: Hop, from: usize, number: u64, unit: Arc<Unit>, again: bool },
    Split { to: usize, number: u64, have: Provenance },
    Mark(Mark),
}

/// What a node has, what a crash leaves of it, and what waits to leave until it is kept.
#[derive(Clone, Debug)]
struct Durable<T> {
    live: T,
    kept: T,
    held: Vec<Message>,
}

impl<T: Clone> Durable<T> {
    fn new(live: T) -> Self {
        Self { kept: live.clone(), live, held: Vec::new() }
    }

    fn keep(&mut self) -> Vec<Message> {
        self.kept = self.live.clone();
        std::mem::take(&mut self.held)
    }

    fn crash(&mut self) {
        self.live = self.kept.clone();
        self.held.clear();
    }
}

struct Origin {
    outbox: Durable<Outbox>,
    /// What [`GONE`] has settled of it: its heir does not count that.
    settled: Durable<BTreeSet<u64>>,
    /// Given up by policy: counted or not.
    given_up: Durable<BTreeSet<u64>>,
    /// The account that its root owns, where the next offer begins, and how far offers ever went.
    main: usize,
    cursor: u64,
    offered: u64,
    /// Published and not kept yet.
    waiting: Vec<u64>,
}

struct World {
    broken: Option<Rule>,
    rng: Pcg32,
    now: Time,
    origins: Vec<Origin>,
    relays: Vec<Relay>,
    roots: Vec<Durable<Account>>,
    network: VecDeque<Message>,
    /// Whether [`GONE`] is gone for good.
    retired: bool,
    published: u64,
    acknowledged: BTreeSet<u64>,
}

/// Each value is a bit in one of two sums, so that they tell which values were counted.
const BITS: u64 = 50;
const SUMS: [&str; 2] = ["low", "high"];
const MOST: u64 = BITS * SUMS.len() as u64;

fn account(root: usize) -> AccountId {
    AccountId([root as u8 + 1; 16])
}

fn origin_id(i: usize) -> NodeId {
    NodeId::from_bytes([i as u8 + 1; 32])
}

fn relay_id(i: usize) -> NodeId {
    NodeId::from_bytes([i as u8 + 101; 32])
}

fn relay(now: Time) -> Relay {
    Relay::new(Duration::from_secs(1), 16, false, now.as_micros())
}

/// The number in an id or account made above.
fn index(byte: u8) -> usize {
    usize::from(byte % 100) - 1
}

impl World {
    fn new(seed: u64, broken: Option<Rule>) -> Self {
        let origin = |i: usize| Origin {
            outbox: Durable::new(Outbox::new(i as u64 + 7)),
            settled: Durable::new(BTreeSet::new()),
            given_up: Durable::new(BTreeSet::new()),
            main: 0,
            cursor: 1,
            offered: 0,
            waiting: Vec::new(),
        };
        Self {
            broken,
            rng: Pcg32::seed_from_u64(seed),
            now: Time::ZERO,
            origins: (0..ORIGINS).map(origin).collect(),
            relays: (0..RELAYS).map(|_| relay(Time::ZERO)).collect(),
            roots: (0..ROOTS).map(|i| Durable::new(Account::new(account(i)))).collect(),
            network: VecDeque::new(),
            retired: false,
            published: 0,
            acknowledged: BTreeSet::new(),
        }
    }

    fn breaks(&self, rule: Rule) -> bool {
        self.broken == Some(rule)
    }

    /// Where something for an account goes next: to its root, or a relay that is nearer to it.
    fn hop(&mut self, main: usize, above: usize) -> Hop {
        let to = self.rng.random_range(above..=RELAYS);
        if to == RELAYS { Hop::Root(main) } else { Hop::Relay(to) }
    }

    fn publish(&mut self, i: usize) {
        if self.published == MOST {
            return;
        }
        let value = self.published;
        self.published += 1;
        let origin = &mut self.origins[i];
        let sequence = origin.outbox.live.next_sequence();
        let bit = (SUMS[(value / BITS) as usize].to_owned(), (1u64 << (value % BITS)) as f64);
        let metrics = vec![("value".to_owned(), value as f64), bit];
        origin.outbox.live.put(Arc::new(Sample { sequence, priority: Priority::Normal, metrics }));
        match self.broken {
            Some(Rule::AcknowledgeWhatIsKept) => drop(self.acknowledged.insert(value)),
            _ => origin.waiting.push(value),
        }
    }

    fn offer(&mut self, i: usize) {
        let (main, wanted) = (self.origins[i].main, account(self.origins[i].main));
        let broken = self.broken;
        let origin = &mut self.origins[i];
        let outbox = &mut origin.outbox.live;
        if origin.cursor < outbox.next_sequence() && outbox.needs_binding(wanted) {
            if let Some(upto) = outbox.settled_bindings() {
                outbox.truncate(NOBODY, upto);
            }
            let again = broken == Some(Rule::BindOnce);
            let from = if outbox.was_bound() && !again { origin.offered + 1 } else { 1 };
            outbox.bind(from, wanted);
        }
        let mut offers = Vec::new();
        if let Some((mut offer, after)) = outbox.offer(origin_id(i), wanted, origin.cursor, Limits::OFFER_BYTES) {
            offer.again = offer.samples[0].sequence <= origin.offered;
            origin.cursor = after;
            origin.offered = origin.offered.max(after - 1);
            offers.push((main, offer));
        }
        if let Some(stray) = outbox.stray(wanted) {
            let owner = index(stray.0[0]);
            offers.extend(outbox.offer(origin_id(i), stray, 1, Limits::OFFER_BYTES).map(|(offer, _)| (owner, offer)));
        }
        for (owner, mut offer) in offers {
            if self.breaks(Rule::SayWhatIsGivenUp) {
                offer.void = RangeSet::new();
            }
            if self.breaks(Rule::ForgetWhatIsMarked) {
                let last = offer.samples.last().map_or(0, |sample| sample.sequence);
                self.origins[i].outbox.live.truncate(offer.account, last);
            }
            let to = self.hop(owner, 0);
            self.leaves(Rule::OfferWhatIsBound, i, Message::Offer { to, offer });
        }
    }

    /// What rests on something that is to be kept waits for it, unless that rule is broken.
    fn leaves(&mut self, rule: Rule, i: usize, message: Message) {
        match rule {
            _ if self.breaks(rule) => self.network.push_back(message),
            Rule::MarkWhatIsKept => self.roots[i].held.push(message),
            _ => self.origins[i].outbox.held.push(message),
        }
    }

    fn send_units(&mut self, i: usize) {
        self.relays[i].close_due(self.now + Duration::from_secs(2));
        for owner in 0..ROOTS {
            while let Some((number, unit, again)) = self.relays[i].next_unsent(self.now, account(owner)) {
                let misled = self.breaks(Rule::CommitOwnAccount) && self.rng.random_bool(0.2);
                let to = self.hop(if misled { 1 - owner } else { owner }, i + 1);
                self.network.push_back(Message::Unit { to, from: i, number, unit, again });
            }
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Offer { to: Hop::Root(GONE), .. } | Message::Unit { to: Hop::Root(GONE), .. } if self.retired => {}
            Message::Offer { to: Hop::Relay(j), offer } => self.relays[j].fold_offer(self.now, Level::PLATFORM, &offer),
            Message::Offer { to: Hop::Root(r), offer } => {
                let source = offer.source();
                for sample in &offer.samples {
                    let mut one = Unit::empty(offer.account);
                    one.add(source, sample);
                    one.provenance.0.entry(source).or_default().void.extend(&offer.void);
                    if self.roots[r].live.judge(&one) == Judgement::Commit || self.breaks(Rule::CommitWhatIsNew) {
                        self.roots[r].live.commit(&one);
                    } else {
                        self.roots[r].live.void(&one.provenance);
                    }
                }
                self.mark(r, source);
            }
            Message::Unit { to: Hop::Relay(j), from, number, unit, again } => {
                let group = Group { account: unit.account, level: Level::SQUAD, again };
                self.relays[j].fold_unit(self.now, group, relay_id(from), number, unit);
            }
            Message::Unit { to: Hop::Root(r), from, number, unit, .. } => {
                if unit.account != account(r) && !self.breaks(Rule::CommitOwnAccount) {
                    return;
                }
                match self.roots[r].live.judge(&unit) {
                    Judgement::Split { have } if !self.breaks(Rule::CommitWhatIsNew) => {
                        return self.network.push_back(Message::Split { to: from, number, have });
                    }
                    Judgement::Known if !self.breaks(Rule::CommitWhatIsNew) => {
                        self.roots[r].live.void(&unit.provenance);
                    }
                    _ => self.roots[r].live.commit(&unit),
                }
                let sources: Vec<_> = unit.provenance.0.keys().copied().collect();
                sources.into_iter().for_each(|source| self.mark(r, source));
            }
            Message::Split { to, number, have } => {
                for ask in self.relays[to].split(self.now, number, &have) {
                    let to = index(ask.child.as_bytes()[0]);
                    self.network.push_back(Message::Split { to, number: ask.unit, have: ask.have });
                }
            }
            Message::Mark(mark) => {
                self.relays.iter_mut().for_each(|relay| relay.settle(&[mark]));
                let origin = &mut self.origins[index(mark.origin.as_bytes()[0])];
                let outbox = &mut origin.outbox.live;
                outbox.heard(&mark);
                if outbox.concerns(&mark) {
                    if mark.account == account(GONE) {
                        let settled = outbox.since(0).take_while(|sample| sample.sequence <= mark.prefix);
                        let settled = settled.filter(|s| outbox.account_of(s.sequence) == Some(mark.account));
                        origin.settled.live.extend(settled.map(|sample| sample.metrics[0].1 as u64));
                    }
                    outbox.truncate(mark.account, mark.prefix);
                }
            }
        }
    }

    fn mark(&mut self, r: usize, source: Source) {
        let Some(mut mark) = self.roots[r].live.mark(&source) else { return };
        if self.breaks(Rule::MarkThePrefix) {
            let table = self.roots[r].live.table().find(|(known, _)| **known == source);
            mark.prefix = table.and_then(|(_, ranges)| ranges.ranges().last()).map_or(0, |&(_, last)| last);
        }
        self.leaves(Rule::MarkWhatIsKept, r, Message::Mark(mark));
    }

    fn keep_origin(&mut self, i: usize) {
        let origin = &mut self.origins[i];
        self.acknowledged.extend(origin.waiting.drain(..));
        origin.settled.keep();
        origin.given_up.keep();
        self.network.extend(origin.outbox.keep());
    }

    fn crash_origin(&mut self, i: usize) {
        let origin = &mut self.origins[i];
        origin.outbox.crash();
        origin.settled.crash();
        origin.given_up.crash();
        origin.waiting.clear();
        // What was offered is not known any more: all of it counts as offered.
        (origin.cursor, origin.offered) = (1, origin.outbox.live.next_sequence() - 1);
    }

    /// An outbox is full: its oldest sample is given up.
    fn give_up_oldest(&mut self, i: usize) {
        let Origin { outbox: Durable { live: outbox, .. }, given_up, .. } = &mut self.origins[i];
        let oldest = outbox.since(0).next().map(|sample| (sample.sequence, sample.metrics[0].1 as u64));
        if let Some((sequence, value)) = oldest {
            outbox.evict(sequence);
            given_up.live.insert(value);
        }
    }

    fn offer_again(&mut self, i: usize) {
        if !self.breaks(Rule::OfferAgain) {
            self.origins[i].cursor = 1;
        }
    }

    /// An origin hears that the account of [`GONE`] was retired.
    fn retire(&mut self, i: usize) {
        let renews = !self.breaks(Rule::RenewWhatWaits);
        let origin = &mut self.origins[i];
        let outbox = &mut origin.outbox.live;
        if renews {
            let renewal = outbox.renewal(account(GONE));
            outbox.renew(account(GONE), account(1 - GONE), &renewal);
        } else {
            outbox.bind(1, account(1 - GONE));
        }
        (origin.main, origin.cursor) = (1 - GONE, 1);
    }

    fn crash_root(&mut self, r: usize) {
        let totals = self.roots[r].live.totals.clone();
        self.roots[r].crash();
        if self.breaks(Rule::KeepTotalsWithTable) {
            self.roots[r].live.totals = totals;
        }
    }

    fn step(&mut self) {
        self.now = self.now + Duration::from_millis(100);
        let (i, j, r) =
            (self.rng.random_range(0..ORIGINS), self.rng.random_range(0..RELAYS), self.rng.random_range(0..ROOTS));
        match self.rng.random_range(0..100) {
            0..15 => self.publish(i),
            15..30 => self.offer(i),
            30..60 if !self.network.is_empty() => {
                let any = self.rng.random_range(0..self.network.len());
                let lost = self.rng.random_bool(0.1);
                let repeated = self.rng.random_bool(0.1);
                let message = if repeated { self.network.get(any).cloned() } else { self.network.remove(any) };
                message.into_iter().filter(|_| !lost).for_each(|message| self.deliver(message));
            }
            60..70 => self.send_units(j),
            70..80 => self.keep_origin(i),
            80..88 => {
                let leaving = self.roots[r].keep();
                self.network.extend(leaving);
            }
            88..90 => self.crash_origin(i),
            90..92 => self.crash_root(r),
            92..94 => self.relays[j] = relay(self.now),
            94..96 => self.relays[j].resend_all(),
            96..98 if self.retired => self.retire(i),
            96..98 => (self.origins[i].main, self.origins[i].cursor) = (r, 1),
            98 => self.give_up_oldest(i),
            _ => self.offer_again(i),
        }
    }

    /// Nothing is lost any more, until every outbox is empty.
    fn settle(&mut self) -> bool {
        for _ in 0..100 {
            self.now = self.now + Duration::from_secs(1);
            (0..ORIGINS).for_each(|i| self.keep_origin(i));
            if self.origins.iter().all(|origin| origin.outbox.live.depth() == 0) {
                return true;
            }
            for i in 0..ORIGINS {
                if self.retired {
                    self.retire(i);
                }
                self.offer_again(i);
                self.offer(i);
                self.keep_origin(i);
            }
            for j in 0..RELAYS {
                self.send_units(j);
            }
            for _ in 0..10_000 {
                let Some(message) = self.network.pop_front() else { break };
                self.deliver(message);
            }
            for r in 0..ROOTS {
                let leaving = self.roots[r].keep();
                self.network.extend(leaving);
            }
        }
        false
    }
}

/// Runs one schedule and says what came out wrong.
fn run(seed: u64, broken: Option<Rule>, retires: bool) -> Result<(), String> {
    let mut world = World::new(seed, broken);
    for step in 0..STEPS {
        world.retired = retires && step >= GONE_AFTER;
        world.step();
    }
    if !world.settle() {
        return Err("some samples are never settled".into());
    }
    let roots = || world.roots.iter().enumerate().filter(|(r, _)| !(retires && *r == GONE)).map(|(_, root)| &root.live);
    let sum = |name: &str| -> u64 {
        let metrics = roots().filter_map(|root| root.totals.metrics.get(name));
        metrics.map(|stats| stats.sum as u64).sum()
    };
    let sums = SUMS.map(sum);
    let counted: BTreeSet<_> =
        (0..MOST).filter(|value| sums[(value / BITS) as usize] >> (value % BITS) & 1 == 1).collect();
    let samples: u64 = roots().map(|root| root.totals.samples).sum();
    // Of a retired account only that counts which its origins were told.
    let told: BTreeSet<_> = world.origins.iter().flat_map(|origin| &origin.settled.live).copied().collect();
    let given_up: BTreeSet<_> = world.origins.iter().flat_map(|origin| &origin.given_up.live).copied().collect();
    let elsewhere = if retires { told } else { BTreeSet::new() };
    let missing: Vec<_> = world
        .acknowledged
        .iter()
        .filter(|value| ![&counted, &elsewhere, &given_up].iter().any(|s| s.contains(value)))
        .collect();
    match () {
        // The sums of values that are counted twice are those of others, but fewer.
        () if samples != counted.len() as u64 => Err(format!("{samples} are counted, which cannot be {counted:?}")),
        () if !counted.is_subset(&world.acknowledged) => Err("something is counted that was never acknowledged".into()),
        () if !counted.is_disjoint(&elsewhere) => Err("the heir counts what the retired account has".into()),
        () if !missing.is_empty() => Err(format!("{missing:?} are lost")),
        () => Ok(()),
    }
}

#[test]
fn by_the_rules_every_sample_is_counted_once() {
    for seed in 0..2_000 {
        assert_eq!(run(seed, None, false), Ok(()), "seed {seed}");
    }
}

#[test]
fn an_account_that_is_retired_leaves_its_heir_what_it_had_not_settled() {
    for seed in 0..2_000 {
        assert_eq!(run(seed, None, true), Ok(()), "seed {seed}");
    }
}

#[test]
fn whichever_rule_is_broken_it_shows() {
    for rule in RULES {
        let retires = rule == Rule::RenewWhatWaits;
        let wrong = (0..2_000).filter_map(|seed| run(seed, Some(rule), retires).err()).next();
        assert!(wrong.is_some(), "{rule:?} is broken, and nothing is wrong");
    }
}
