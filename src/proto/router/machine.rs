//! The router machine: takes what hosts and links bring; nothing leaves it before the records that it rests on are kept.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg32;
use uuid::Uuid;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::account::AccountId;
use crate::proto::dedup::Dedup;
use crate::proto::durable::{Durable, Record};
use crate::proto::event::Event;
use crate::proto::outbox::WhenFull;
use crate::proto::packet::{Command, DataPacket, Direction, Order, PacketType, Payload, RouterFrame, Target, Verdict};
use crate::proto::retirement::{RetireError, Retirement};
use crate::proto::router::commands::{Commands, Outcome};
use crate::proto::router::state::States;
use crate::proto::router::telemetry::{Counts, PublishError, Published, Telemetrist};
use crate::proto::sample::Telemetry;
use crate::proto::summary::Aggregator;
use crate::proto::topology::{Tenure, View, Why};
use crate::time::{Time, earliest};

#[derive(Clone, Debug)]
pub struct Settings {
    pub me: NodeId,
    pub incarnation: u64,
    /// A relay's window: how long, and how many samples at most.
    pub window: Duration,
    pub window_count: u64,
    /// Whether windows take up what quantiles need.
    pub quantiles: bool,
    pub outbox_bytes: usize,
    pub when_full: WhenFull,
    /// What merges the opaque part of states, if the host brought it.
    pub aggregator: Option<Arc<dyn Aggregator>>,
    pub seed: u64,
}

/// A question of the host's, so that it gets its answer.
pub type RequestId = u64;

#[derive(Clone, Debug)]
pub enum Input {
    Placed(Arc<View>),
    Publish {
        request: RequestId,
        telemetry: Telemetry,
    },
    /// The host retires an account into this node's own.
    Retire {
        request: RequestId,
        retirement: Retirement,
    },
    /// The host was given something that is no sample.
    Rejected(String),
    /// The host issues a command; the outcome is due after `deadline`.
    Issue {
        request: RequestId,
        target: Target,
        order: Order,
        deadline: Duration,
        expires: Duration,
    },
    /// The host answers a command it was delivered.
    Answered {
        command: Uuid,
        verdict: Verdict,
        text: String,
    },
    /// The node explains itself to whoever asked by this command.
    Explained {
        command: Uuid,
        why: Box<Why>,
    },
    Frame {
        from: NodeId,
        frame: RouterFrame,
    },
    /// The records of this ticket are kept, and all before them.
    Persisted(u64),
    /// Records could not be kept: this is all that was, and nothing more will be until it is `Writable` again.
    Restored(Box<Durable>),
    Writable,
    Sweep,
}

#[derive(Clone, Debug)]
pub enum Effect {
    Send {
        peer: NodeId,
        frame: RouterFrame,
    },
    /// Keep these, then say so with the ticket; without one nothing rests on them.
    Persist {
        ticket: Option<u64>,
        records: Vec<Record>,
    },
    Published {
        request: RequestId,
        result: Result<Published, PublishError>,
    },
    Retired {
        request: RequestId,
        result: Result<Retirement, RetireError>,
    },
    /// The node's own account is this one from now on.
    Account(AccountId),
    /// To the host, at most once.
    Deliver(Command),
    /// Somebody asks by this command why the node has the parent it has.
    Explain(Uuid),
    Concluded {
        request: RequestId,
        outcome: Outcome,
    },
    /// A child sends under a tenure that is not current.
    Stale(NodeId),
    Event(Event),
    Dropped(&'static str),
    Swept(usize),
}

/// What a warm restart goes on from, beside the durable state: commands under way.
#[derive(Clone, Debug)]
pub struct Snapshot {
    commands: Commands,
    counts: Counts,
}

#[derive(Debug)]
pub struct Machine {
    pub(super) settings: Settings,
    pub(super) view: Arc<View>,
    pub(super) durable: Durable,
    pub(super) telemetry: Telemetrist,
    pub(super) commands: Commands,
    pub(super) states: States,
    dedup: Dedup,
    /// Records that are not known to be kept yet, oldest first, and how many effects wait for them.
    unkept: VecDeque<Unkept>,
    waiting: usize,
    tickets: u64,
    /// Whether records can be kept at present.
    keeps: bool,
    sequence: u64,
    pub(super) rng: Pcg32,
}

/// Records on their way to the journal, and what was to be done after them.
#[derive(Debug)]
struct Unkept {
    ticket: u64,
    then: Vec<Effect>,
}

impl Machine {
    /// A router that goes on from what was kept, and after a warm restart from the commands under way.
    pub fn new(now: Time, settings: Settings, view: Arc<View>, durable: Durable, warm: Option<&Snapshot>) -> Self {
        let counts = warm.map(|snapshot| snapshot.counts).unwrap_or_default();
        let telemetry = Telemetrist::new(now, &settings, &durable, counts);
        Self {
            rng: Pcg32::seed_from_u64(settings.seed ^ now.as_micros()),
            view,
            sequence: durable.reserved,
            durable,
            telemetry,
            commands: warm.map(|snapshot| snapshot.commands.clone()).unwrap_or_default(),
            states: States::new(now),
            dedup: Dedup::default(),
            unkept: VecDeque::new(),
            waiting: 0,
            // Tickets of a former incarnation may still be answered.
            tickets: now.as_micros(),
            keeps: true,
            settings,
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot { commands: self.commands.clone(), counts: self.telemetry.counts }
    }

    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    pub fn commands_issued(&self) -> u64 {
        self.commands.issued_count
    }

    pub fn step(&mut self, now: Time, input: Input, effects: &mut Vec<Effect>) {
        let before = effects.len();
        match input {
            Input::Placed(view) => self.placed(now, view, effects),
            Input::Publish { request, telemetry } => self.publish(now, request, telemetry, effects),
            Input::Retire { request, retirement } => self.retire(now, request, retirement, effects),
            Input::Rejected(reason) => self.rejected(reason, effects),
            Input::Issue { request, target, order, deadline, expires } => {
                self.issue(now, request, target, order, deadline, expires, effects);
            }
            Input::Answered { command, verdict, text } => self.answered(now, command, verdict, text, effects),
            Input::Explained { command, why } => self.explained(now, command, why, effects),
            Input::Frame { from, frame } => self.frame(now, from, frame, effects),
            Input::Persisted(ticket) => return self.persisted(ticket, effects),
            Input::Restored(durable) => return self.fall_back(now, *durable, effects),
            Input::Writable => {
                self.keeps = true;
                self.placed(now, self.view.clone(), effects);
            }
            Input::Sweep => {
                self.drop_late(now, effects);
                let swept = self.telemetry.relay.sweep(now, self.view.account) + self.commands.sweep(now);
                effects.push(Effect::Swept(swept));
            }
        }
        self.hold_back(before, effects);
    }

    pub fn tick(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let before = effects.len();
        self.tick_telemetry(now, effects);
        self.tick_commands(now, effects);
        self.tick_state(now, effects);
        self.hold_back(before, effects);
    }

    pub fn deadline(&self) -> Option<Time> {
        earliest(earliest(self.telemetry.deadline(), self.commands.deadline()), Some(self.states.due()))
    }

    /// Whether records can be kept at present. While they cannot, nothing may be done that needs one.
    pub(super) fn keeps(&self) -> bool {
        self.keeps
    }

    /// Whether the journal is so far behind that nothing more may wait for it.
    pub(super) fn is_behind(&self) -> bool {
        self.waiting >= Limits::HELD_BACK
    }

    /// Applies records here and asks for them to be kept. What is to be done from now on waits until they are.
    pub(super) fn persist(&mut self, records: Vec<Record>, effects: &mut Vec<Effect>) {
        self.tickets += 1;
        self.record(Some(self.tickets), records, effects);
    }

    /// As [`Self::persist`], for a record that may be lost: nothing waits for it.
    pub(super) fn note(&mut self, record: Record, effects: &mut Vec<Effect>) {
        self.record(None, vec![record], effects);
    }

    fn record(&mut self, ticket: Option<u64>, records: Vec<Record>, effects: &mut Vec<Effect>) {
        for record in &records {
            self.durable.apply(record);
        }
        effects.push(Effect::Persist { ticket, records });
    }

    /// Keeps what may rest on records that are not kept yet, which is whatever is done after them, until they are.
    fn hold_back(&mut self, from: usize, effects: &mut Vec<Effect>) {
        let persists = |effect: &Effect| matches!(effect, Effect::Persist { ticket: Some(_), .. });
        if self.unkept.is_empty() && !effects[from..].iter().any(persists) {
            return;
        }
        for effect in effects.split_off(from) {
            match (effect, self.unkept.back_mut()) {
                (Effect::Persist { ticket: Some(ticket), records }, _) => {
                    self.unkept.push_back(Unkept { ticket, then: Vec::new() });
                    effects.push(Effect::Persist { ticket: Some(ticket), records });
                }
                // These tell nobody outside of what is not kept.
                (effect @ (Effect::Persist { .. } | Effect::Event(_) | Effect::Dropped(_) | Effect::Swept(_)), _) => {
                    effects.push(effect);
                }
                (effect, Some(last)) => {
                    self.waiting += 1;
                    last.then.push(effect);
                }
                (effect, None) => effects.push(effect),
            }
        }
    }

    fn persisted(&mut self, ticket: u64, effects: &mut Vec<Effect>) {
        let kept = self.unkept.partition_point(|unkept| unkept.ticket <= ticket);
        let from = effects.len();
        effects.extend(self.unkept.drain(..kept).flat_map(|kept| kept.then));
        self.waiting -= effects.len() - from;
    }

    /// Goes on from what was kept, as after a crash. Who waits for what was not is told so.
    fn fall_back(&mut self, now: Time, durable: Durable, effects: &mut Vec<Effect>) {
        let unkept = std::mem::take(&mut self.unkept);
        let (snapshot, view, tickets) = (self.snapshot(), self.view.clone(), self.tickets);
        *self = Self::new(now, self.settings.clone(), view.clone(), durable, Some(&snapshot));
        (self.tickets, self.keeps) = (tickets, false);
        self.placed(now, view, effects);
        for effect in unkept.into_iter().flat_map(|unkept| unkept.then) {
            match effect {
                Effect::Published { request, .. } => {
                    effects.push(Effect::Published { request, result: Err(PublishError::Journal) });
                }
                Effect::Retired { request, .. } => {
                    effects.push(Effect::Retired { request, result: Err(RetireError::Journal) });
                }
                Effect::Deliver(command) => self.refuse_unrecorded(now, command.id, effects),
                Effect::Concluded { .. } => effects.push(effect),
                _ => {}
            }
        }
    }

    pub(super) fn frame(&mut self, now: Time, from: NodeId, frame: RouterFrame, effects: &mut Vec<Effect>) {
        if self.is_behind() {
            return effects.push(Effect::Dropped("journal_behind"));
        }
        match frame {
            RouterFrame::Up { child, parent, .. } if !self.is_current(&from, child, parent) => {
                if !self.keep_early(now, from, parent, frame, effects) {
                    effects.push(Effect::Dropped("stale_tenure"));
                    effects.push(Effect::Stale(from));
                }
            }
            RouterFrame::Up { number, packet, .. } => self.received_up(now, from, number, packet, effects),
            RouterFrame::State { child, parent, summary } => {
                self.state_below(now, from, (child, parent), *summary, effects);
            }
            RouterFrame::Along(packet) => self.along(now, from, packet, effects),
            RouterFrame::Receipt { number } if self.is_way_up(&from) => {
                self.telemetry.flow.receipt(now, number);
                self.pump(now, effects);
            }
            RouterFrame::Marks(marks) if self.is_way_up(&from) => {
                self.marked(now, marks, effects);
            }
            RouterFrame::Split { unit, have } if self.is_way_up(&from) => {
                self.split(now, unit, &have, effects);
            }
            RouterFrame::Seen { commands, ask } if self.view.is_neighbour(&from) => {
                self.seen(now, from, &commands, ask, effects);
            }
            RouterFrame::Dictionary if self.is_way_up(&from) => {
                self.telemetry.begin_dictionary_anew();
                self.pump(now, effects);
            }
            _ => effects.push(Effect::Dropped("not_from_parent")),
        }
    }

    /// Whether a link is the one to a child, under both present tenures.
    fn is_current(&self, from: &NodeId, child: Tenure, parent: Tenure) -> bool {
        let accepted = self.view.children.get(from).map(|known| known.tenure);
        accepted == Some(child) && parent == self.view.tenure
    }

    fn is_way_up(&self, peer: &NodeId) -> bool {
        self.view.way_up().is_some_and(|parent| parent.id == *peer)
    }

    fn along(&mut self, now: Time, from: NodeId, mut packet: DataPacket, effects: &mut Vec<Effect>) {
        let sideways = self.view.laterals.contains(&from) && packet.direction == Direction::Lateral;
        let in_tree = self.view.parent_id() == Some(from) || self.view.children.contains_key(&from);
        if !in_tree && !sideways {
            return effects.push(Effect::Dropped("not_in_tree"));
        }
        packet.hops = packet.hops.saturating_add(1);
        if !self.is_new(&packet) {
            return effects.push(Effect::Dropped("duplicate_packet"));
        }
        match packet.payload {
            Payload::Command(_) => self.route_command(now, packet, Some(from), effects),
            Payload::Response { .. } => self.route_response(now, packet, from, effects),
            Payload::Samples(_) | Payload::Marks(_) | Payload::Retired(_) => {
                self.route_direct(now, packet, from, effects)
            }
            Payload::Unit(_) => effects.push(Effect::Dropped("misplaced_payload")),
        }
    }

    pub(super) fn is_new(&mut self, packet: &DataPacket) -> bool {
        self.dedup.is_new(packet.source, packet.epoch, packet.sequence)
    }

    /// A packet of this node's. Its number is reserved on record before it is used.
    pub(super) fn packet(
        &mut self,
        target: Target,
        direction: Direction,
        kind: PacketType,
        payload: Payload,
        effects: &mut Vec<Effect>,
    ) -> DataPacket {
        self.sequence += 1;
        if self.sequence > self.durable.reserved {
            self.note(Record::Reserve(self.sequence + Limits::SEQUENCE_BLOCK), effects);
        }
        DataPacket {
            id: self.random_id(),
            source: self.settings.me,
            target,
            direction,
            kind,
            epoch: self.settings.incarnation,
            sequence: self.sequence,
            hops: 0,
            payload,
        }
    }

    pub(super) fn random_id(&mut self) -> Uuid {
        let mut bytes = [0; 16];
        self.rng.fill_bytes(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }
}
