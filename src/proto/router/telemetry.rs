//! Samples on their way up: the origin's offers, the relay's units, the root's commits and the marks that come down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::level::Level;
use crate::limits::Limits;
use crate::proto::account::{AccountId, Mark};
use crate::proto::aggregate::{Decoder, Encoder, Provenance, Source, Unit, Unreadable, WireUnit};
use crate::proto::durable::{Durable, Record};
use crate::proto::event::Event;
use crate::proto::outbox::{NOBODY, Offer, WhenFull};
use crate::proto::packet::{DataPacket, Direction, PacketType, Payload, RouterFrame, Target};
use crate::proto::relay::{Group, Relay};
use crate::proto::router::early::Early;
use crate::proto::router::flow::Flow;
use crate::proto::router::machine::{Effect, Machine, RequestId, Settings};
use crate::proto::router::receipts::Receipts;
use crate::proto::router::route::decide;
use crate::proto::router::strays::{Passing, Strays};
use crate::proto::sample::{InvalidTelemetry, Sample, Telemetry};
use crate::proto::topology::{Tenure, View};
use crate::time::{Time, earliest};

/// How long an origin waits for a mark before it offers everything again, and how long at most when none comes again and
/// again.
const PROGRESS: Duration = Duration::from_secs(30);
const LONGEST_PROGRESS: Duration = Duration::from_secs(120);

/// A sample's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleId {
    pub origin: NodeId,
    pub journal: u64,
    pub sequence: u64,
}

/// A sample is in the outbox: acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub sample: SampleId,
    /// Whether it is on its way, or waits for one.
    pub sent: bool,
    /// Samples not yet committed.
    pub depth: usize,
}

/// Why a sample was not taken. The outbox is as it was.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Invalid(#[from] InvalidTelemetry),
    #[error("the outbox is full ({bytes} bytes of {most}); samples are taken again when a root has committed some")]
    Full { bytes: usize, most: usize },
    #[error("the journal cannot keep the sample; is the disk full?")]
    Journal,
    #[error("the journal is behind; publish again when it has caught up")]
    Behind,
}

/// Counters of what became of samples here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub acknowledged: u64,
    pub rejected: u64,
    pub evicted: u64,
    /// Own samples settled by a root.
    pub committed: u64,
    /// Samples of children that came one by one, and as part of a summary.
    pub received_raw: u64,
    pub received_summarised: u64,
    pub forwarded: u64,
    pub reoffered: u64,
    /// Units asked for again in parts.
    pub split_units: u64,
    /// Units that left a relay's memory for lack of room before they were known to be committed.
    pub forgotten_units: u64,
}

/// What the router remembers of samples beside the durable state. All of it may be lost.
#[derive(Debug)]
pub(super) struct Telemetrist {
    pub relay: Relay,
    pub counts: Counts,
    /// The next own sample to offer, and the highest ever offered.
    cursor: u64,
    offered: u64,
    progress_at: Time,
    patience: Duration,
    /// The attachment that frames are numbered within.
    attachment: Option<(NodeId, u64, Tenure)>,
    pub flow: Flow,
    encoder: Encoder,
    decoders: BTreeMap<NodeId, Decoder>,
    pub early: Early,
    receipts: Receipts,
    pub unmarked: BTreeSet<Source>,
    pub marks_at: Option<Time>,
    strays: Strays,
    passing: Passing,
}

impl Telemetrist {
    pub fn new(now: Time, settings: &Settings, durable: &Durable, counts: Counts) -> Self {
        Self {
            relay: Relay::new(settings.window, settings.window_count, settings.quantiles, now.as_micros()),
            counts,
            cursor: 1,
            // What was offered before a restart is not known; all of it counts as offered.
            offered: durable.outbox.next_sequence() - 1,
            progress_at: now,
            patience: PROGRESS,
            attachment: None,
            flow: Flow::new(now),
            encoder: Encoder::new(now.as_micros() as u32),
            decoders: BTreeMap::new(),
            early: Early::default(),
            receipts: Receipts::default(),
            unmarked: BTreeSet::new(),
            marks_at: None,
            strays: Strays::default(),
            passing: Passing::default(),
        }
    }

    pub fn deadline(&self) -> Option<Time> {
        let progress = (self.cursor > 1).then_some(self.progress_at + self.patience);
        let later = earliest(earliest(self.marks_at, progress), self.flow.lost_at());
        earliest(earliest(self.relay.deadline(), self.receipts.due), earliest(later, self.strays.due))
    }

    pub fn begin_dictionary_anew(&mut self) {
        self.encoder.reset();
        self.relay.resend_all();
    }
}

impl Machine {
    /// What became of samples here. What the journal knows is counted from it, so that no restart forgets it.
    pub fn counts(&self) -> Counts {
        let outbox = &self.durable.outbox;
        let (acknowledged, evicted) = (outbox.acknowledged(), outbox.evicted());
        let committed = acknowledged - evicted - outbox.depth() as u64;
        Counts {
            acknowledged,
            evicted,
            committed,
            forgotten_units: self.telemetry.relay.evicted,
            ..self.telemetry.counts
        }
    }

    /// Units a relay keeps.
    pub fn relayed_units(&self) -> usize {
        self.telemetry.relay.kept()
    }

    /// Whether own samples are folded here rather than sent raw.
    fn folds(&self) -> bool {
        !self.view.children.is_empty()
    }

    pub(super) fn placed(&mut self, now: Time, view: Arc<View>, effects: &mut Vec<Effect>) {
        let before = std::mem::replace(&mut self.view, view);
        let had_account = before.account;
        let fence = self.view.fence.filter(|_| self.view.fence > self.durable.fence).map(Record::Fence);
        let root = self.view.known_root.filter(|_| self.view.known_root > self.durable.known_root);
        let news: Vec<_> = fence.into_iter().chain(root.map(Record::KnownRoot)).collect();
        if !news.is_empty() && self.keeps() {
            self.persist(news, effects);
        }
        let own = self.durable.account.as_ref().map(|account| account.id);
        if self.view.own_account.is_some() && self.view.own_account != own {
            effects.extend(own.map(Effect::Account));
        }
        self.tell_returned_owners(effects);
        self.commands_placed(now, &before, effects);
        self.state_placed(now, &before);
        let children = &self.view.children;
        self.telemetry.decoders.retain(|child, _| children.contains_key(child));
        self.telemetry.receipts.keep(|child| children.contains_key(child));
        let parent = self.view.parent_id();
        self.telemetry.passing.keep(|way| children.contains_key(way) || parent == Some(*way));
        let attachment = self.view.way_up().map(|parent| (parent.id, parent.serial, parent.tenure));
        if attachment != self.telemetry.attachment {
            self.telemetry.attachment = attachment;
            self.telemetry.flow = Flow::new(now);
            self.telemetry.encoder.reset();
            self.moved(now);
        } else if had_account != self.view.account {
            self.moved(now);
        }
        self.pump(now, effects);
        self.take_early(now, effects);
    }

    /// The way up is another: what is not known to be committed goes that way again. A relay's own samples are in its
    /// units, a leaf's in its outbox.
    fn moved(&mut self, now: Time) {
        self.telemetry.patience = PROGRESS;
        self.go_again(now);
    }

    fn go_again(&mut self, now: Time) {
        self.telemetry.relay.resend_all();
        if !self.folds() {
            self.offer_again(now);
        }
    }

    pub(super) fn offer_again(&mut self, now: Time) {
        let cursor = std::mem::replace(&mut self.telemetry.cursor, 1);
        let again = self.durable.outbox.sequences().take_while(|sequence| *sequence < cursor).count();
        self.telemetry.counts.reoffered += again as u64;
        self.telemetry.progress_at = now;
    }

    pub(super) fn publish(&mut self, now: Time, request: RequestId, telemetry: Telemetry, effects: &mut Vec<Effect>) {
        if let Err(invalid) = telemetry.check() {
            return self.reject(request, invalid.into(), effects);
        }
        if !self.keeps() {
            return self.reject(request, PublishError::Journal, effects);
        }
        if self.is_behind() {
            return self.reject(request, PublishError::Behind, effects);
        }
        self.take_state(now, &telemetry);
        if self.view.partition.is_some() {
            // The root of this part shows what waits.
            self.state_changed(now);
        }
        let outbox = &self.durable.outbox;
        let sequence = outbox.next_sequence();
        let sample = Arc::new(Sample { sequence, priority: telemetry.priority, metrics: telemetry.metrics });
        let (most, mut bytes) = (self.settings.outbox_bytes, outbox.bytes() + sample.bytes());
        let mut records = Vec::new();
        if bytes > most
            && self.settings.when_full == WhenFull::DropOldestLowestPriority
            && let Some(given_up) = outbox.least_wanted(bytes - most, sample.priority)
        {
            records.extend(given_up.into_iter().map(Record::Evict));
            bytes = most;
        }
        if bytes > most {
            return self.reject(request, PublishError::Full { bytes: self.durable.outbox.bytes(), most }, effects);
        }
        if !records.is_empty() {
            let reason = format!("the outbox is full: {} given up", records.len());
            effects.push(Effect::Event(Event::SampleRefused { reason }));
        }
        records.push(Record::Sample(sample));
        self.persist(records, effects);
        self.pump(now, effects);
        let outbox = &self.durable.outbox;
        let sample = SampleId { origin: self.settings.me, journal: outbox.journal, sequence };
        let published = Published { sample, sent: self.telemetry.cursor > sequence, depth: outbox.depth() };
        effects.push(Effect::Published { request, result: Ok(published) });
    }

    fn reject(&mut self, request: RequestId, error: PublishError, effects: &mut Vec<Effect>) {
        self.rejected(error.to_string(), effects);
        effects.push(Effect::Published { request, result: Err(error) });
    }

    pub(super) fn rejected(&mut self, reason: String, effects: &mut Vec<Effect>) {
        self.telemetry.counts.rejected += 1;
        effects.push(Effect::Event(Event::SampleRefused { reason }));
    }

    /// Moves own samples and relayed units as far as they may go.
    pub(super) fn pump(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some(account) = self.view.account else {
            // Nothing is offered to anybody.
            self.telemetry.strays.due = None;
            return;
        };
        self.offer_own(now, account, effects);
        self.offer_strays(now, account, effects);
        if let Some(way) = self.address_up() {
            while self.telemetry.flow.room() > 0 {
                let Some((number, unit, again)) = self.telemetry.relay.next_unsent(now, account) else { break };
                let wire = WireUnit { again, ..self.telemetry.encoder.encode(number, &unit) };
                self.telemetry.counts.forwarded += unit.totals.samples;
                self.send_up(now, way, Payload::Unit(wire), effects);
            }
        }
        if self.telemetry.receipts.are_withheld() && self.takes_in(account) {
            self.send_receipts(now, effects);
        }
    }

    /// Whether this node has room for more samples for an account. Children wait for their receipts until it has.
    fn takes_in(&self, account: AccountId) -> bool {
        self.commits(account) || self.telemetry.relay.has_room(account)
    }

    /// The tree's link up: the parent, and both tenures.
    fn address_up(&self) -> Option<(NodeId, Tenure, Tenure)> {
        self.view.way_up().map(|parent| (parent.id, self.view.tenure, parent.tenure))
    }

    fn offer_own(&mut self, now: Time, account: AccountId, effects: &mut Vec<Effect>) {
        if self.telemetry.cursor >= self.durable.outbox.next_sequence() {
            return;
        }
        if self.durable.outbox.needs_binding(account) {
            // What was offered under another binding keeps it; a journal that was never bound has offered nothing.
            let from = if self.durable.outbox.was_bound() { self.telemetry.offered + 1 } else { 1 };
            if !self.keeps() {
                return;
            }
            let settled = self.durable.outbox.settled_bindings();
            let settled = settled.map(|upto| Record::Truncate { account: NOBODY, upto });
            self.persist(settled.into_iter().chain([Record::Bind { from, account }]).collect(), effects);
        }
        loop {
            let (cursor, me) = (self.telemetry.cursor, self.settings.me);
            let raw = !self.commits(account) && !self.folds();
            let room = if raw { self.telemetry.flow.room() } else { Limits::OFFER_BYTES };
            let waits = if raw { self.address_up().is_none() } else { !self.takes_in(account) };
            if room == 0 || waits {
                return;
            }
            let offer = self.durable.outbox.offer(me, account, cursor, room);
            let Some((mut offer, after)) = offer else { return };
            offer.again = offer.samples.first().is_some_and(|first| first.sequence <= self.telemetry.offered);
            self.telemetry.cursor = after;
            self.telemetry.offered = self.telemetry.offered.max(after - 1);
            if self.commits(account) {
                self.commit_offer(now, &offer, effects);
            } else if raw {
                let Some(way) = self.address_up() else { return };
                self.send_up(now, way, Payload::Samples(offer), effects);
            } else {
                self.telemetry.relay.fold_offer(now, self.view.level, &offer);
            }
        }
    }

    /// Samples bound to another account than the root's go to its owner, wherever it is in the tree.
    fn offer_strays(&mut self, now: Time, main: AccountId, effects: &mut Vec<Effect>) {
        if self.telemetry.strays.due.is_some_and(|at| now < at) {
            return;
        }
        if self.view.switching_to.is_some() {
            // They find their way when there is a parent.
            self.telemetry.strays.due = None;
            return;
        }
        let Some(account) = self.durable.outbox.stray(main) else {
            self.telemetry.strays = Strays::default();
            return;
        };
        if now < self.telemetry.strays.begin(now, &mut self.rng) {
            return;
        }
        let room = self.telemetry.strays.offer(now);
        let offer = self.durable.outbox.offer(self.settings.me, account, 1, room);
        let Some((offer, _)) = offer else { return };
        if self.commits(account) {
            return self.commit_offer(now, &offer, effects);
        }
        let (target, payload) = (Target::Account(account), Payload::Samples(offer));
        let packet = self.packet(target, Direction::Upward, PacketType::Telemetry, payload, effects);
        self.send_direct(packet, None, effects);
    }

    /// Sends a packet for one node on its way.
    pub(super) fn send_direct(&self, packet: DataPacket, from: Option<NodeId>, effects: &mut Vec<Effect>) {
        match decide(&self.view, &packet, from).ways().first() {
            Some(&peer) => effects.push(Effect::Send { peer, frame: RouterFrame::Along(packet) }),
            None => effects.push(Effect::Dropped("unroutable")),
        }
    }

    /// Samples for an account and its marks, routed hop by hop.
    pub(super) fn route_direct(&mut self, now: Time, packet: DataPacket, from: NodeId, effects: &mut Vec<Effect>) {
        if let Payload::Samples(offer) = &packet.payload
            && self.answer_for_retired(offer.account, packet.source, effects)
        {
            return;
        }
        if let (Payload::Marks(_), Target::Node(origin)) = (&packet.payload, &packet.target) {
            self.telemetry.passing.back(&from, origin);
        }
        let decision = decide(&self.view, &packet, Some(from));
        if !decision.consumes() {
            if let (Some(bytes), Some(&way)) = (packet.payload.telemetry_bytes(), decision.ways().first())
                && !self.telemetry.passing.passes(now, way, packet.source, bytes)
            {
                return effects.push(Effect::Dropped("too_many_strays"));
            }
            return self.send_direct(packet, Some(from), effects);
        }
        match packet.payload {
            Payload::Samples(offer) if offer.origin == packet.source => {
                let offer = self.without_bad_samples(&offer, effects);
                self.commit_offer(now, &offer, effects);
            }
            Payload::Marks(marks) => self.marked(now, marks, effects),
            Payload::Retired(retirement) => self.retired(now, retirement, effects),
            _ => effects.push(Effect::Dropped("misplaced_payload")),
        }
    }

    fn send_up(
        &mut self,
        now: Time,
        (parent, mine, its): (NodeId, Tenure, Tenure),
        payload: Payload,
        effects: &mut Vec<Effect>,
    ) {
        let bytes = payload.telemetry_bytes().unwrap_or_default();
        let kind = match payload {
            Payload::Unit(_) => PacketType::AggregatedTelemetry,
            _ => PacketType::Telemetry,
        };
        let packet = self.packet(Target::Node(parent), Direction::Upward, kind, payload, effects);
        let number = self.telemetry.flow.send(now, bytes);
        let frame = RouterFrame::Up { child: mine, parent: its, number, packet };
        effects.push(Effect::Send { peer: parent, frame });
    }

    pub(super) fn received_up(
        &mut self,
        now: Time,
        from: NodeId,
        number: u64,
        packet: DataPacket,
        effects: &mut Vec<Effect>,
    ) {
        if packet.source != from {
            return effects.push(Effect::Dropped("foreign_source"));
        }
        self.telemetry.receipts.arrived(now, from, number);
        if !self.is_new(&packet) {
            return effects.push(Effect::Dropped("duplicate_packet"));
        }
        match packet.payload {
            Payload::Samples(offer) if offer.origin == from => self.received_offer(now, from, &offer, effects),
            Payload::Unit(wire) => {
                let (number, again) = (wire.number, wire.again);
                match self.telemetry.decoders.entry(from).or_default().decode(wire) {
                    Ok(unit) => self.received_unit(now, from, number, Arc::new(unit), again, effects),
                    Err(Unreadable::Dictionary) => {
                        effects.push(Effect::Dropped("unknown_dictionary"));
                        effects.push(Effect::Send { peer: from, frame: RouterFrame::Dictionary });
                    }
                    Err(Unreadable::Impossible) => effects.push(Effect::Dropped("impossible_unit")),
                }
            }
            _ => effects.push(Effect::Dropped("misplaced_payload")),
        }
        if number.is_multiple_of(Limits::IN_FLIGHT as u64 / 2) {
            self.send_receipts(now, effects);
        }
    }

    /// The level of the group that a child is in. The node itself is in that of its own level, also while it leads it.
    fn group_of(&self, child: NodeId) -> Level {
        self.view.children.get(&child).map_or(self.view.level, |known| known.effective_level)
    }

    fn received_offer(&mut self, now: Time, from: NodeId, offer: &Offer, effects: &mut Vec<Effect>) {
        let offer = &self.without_bad_samples(offer, effects);
        self.telemetry.counts.received_raw += offer.samples.len() as u64;
        if self.commits(offer.account) {
            self.commit_offer(now, offer, effects);
        } else {
            self.telemetry.counts.forwarded += offer.samples.len() as u64;
            self.telemetry.relay.fold_offer(now, self.group_of(from), offer);
            self.pump(now, effects);
        }
    }

    /// A bad sample never costs the batch: it is set aside, will not be counted anywhere, and is counted as dropped.
    fn without_bad_samples(&self, offer: &Offer, effects: &mut Vec<Effect>) -> Offer {
        let (good, bad): (Vec<_>, Vec<_>) = offer.samples.iter().cloned().partition(|sample| sample.is_possible());
        let mut void = offer.void.clone();
        for sample in bad {
            effects.push(Effect::Dropped("bad_sample"));
            void.insert(sample.sequence, sample.sequence);
        }
        Offer { samples: good, void, ..offer.clone() }
    }

    fn received_unit(
        &mut self,
        now: Time,
        from: NodeId,
        number: u64,
        unit: Arc<Unit>,
        again: bool,
        effects: &mut Vec<Effect>,
    ) {
        self.telemetry.counts.received_summarised += unit.totals.samples;
        if self.commits(unit.account) {
            return self.commit_unit(now, from, number, unit, effects);
        }
        let group = Group { account: unit.account, level: self.group_of(from), again };
        self.telemetry.relay.fold_unit(now, group, from, number, unit);
        self.pump(now, effects);
    }

    pub(super) fn marked(&mut self, now: Time, marks: Vec<Mark>, effects: &mut Vec<Effect>) {
        self.telemetry.relay.settle(&marks);
        let mut by_child: BTreeMap<NodeId, Vec<Mark>> = BTreeMap::new();
        for mark in marks {
            if mark.origin == self.settings.me {
                self.settle_own(now, &mark, effects);
            } else if let Some(child) = self.view.way_down(&mark.origin) {
                by_child.entry(child).or_default().push(mark);
            }
        }
        effects
            .extend(by_child.into_iter().map(|(peer, marks)| Effect::Send { peer, frame: RouterFrame::Marks(marks) }));
    }

    fn settle_own(&mut self, now: Time, mark: &Mark, effects: &mut Vec<Effect>) {
        self.durable.outbox.heard(mark);
        if !self.durable.outbox.concerns(mark) {
            return;
        }
        let truncate = Record::Truncate { account: mark.account, upto: mark.prefix };
        self.note(truncate, effects);
        (self.telemetry.progress_at, self.telemetry.patience) = (now, PROGRESS);
        if self.view.account != Some(mark.account) {
            self.telemetry.strays.settled(now);
        }
    }

    pub(super) fn split(&mut self, now: Time, unit: u64, have: &Provenance, effects: &mut Vec<Effect>) {
        for ask in self.telemetry.relay.split(now, unit, have) {
            if self.view.children.contains_key(&ask.child) {
                let frame = RouterFrame::Split { unit: ask.unit, have: ask.have };
                effects.push(Effect::Send { peer: ask.child, frame });
            }
        }
        self.pump(now, effects);
    }

    pub(super) fn tick_telemetry(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.telemetry.relay.close_due(now);
        if self.telemetry.flow.lost_at().is_some_and(|at| now >= at) {
            // Room that never comes back would stop the flow.
            self.telemetry.flow.forget();
            self.go_again(now);
        }
        if self.telemetry.receipts.due.is_some_and(|at| now >= at) {
            self.send_receipts(now, effects);
        }
        if self.telemetry.marks_at.is_some_and(|at| now >= at) {
            self.send_marks(now, effects);
        }
        if self.telemetry.cursor > 1 && now >= self.telemetry.progress_at + self.telemetry.patience {
            match self.durable.outbox.depth() {
                0 => self.telemetry.progress_at = now,
                _ => {
                    self.telemetry.patience = (self.telemetry.patience * 2).min(LONGEST_PROGRESS);
                    self.offer_again(now);
                }
            }
        }
        self.pump(now, effects);
    }

    fn send_receipts(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let has_room = self.view.account.is_none_or(|account| self.takes_in(account));
        let receipts = self.telemetry.receipts.tell(now, has_room);
        effects.extend(receipts.map(|(peer, number)| Effect::Send { peer, frame: RouterFrame::Receipt { number } }));
    }

    /// The view as this machine has it.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }
}
