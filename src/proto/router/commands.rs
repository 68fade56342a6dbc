//! Commands on their way to their targets, and what is said to them on its way back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::durable::{Answered, Delivery, Record};
use crate::proto::packet::{
    Command, DataPacket, Direction, Order, PacketType, Payload, Response, RouterFrame, Target, Verdict,
};
use crate::proto::router::held::{Held, Store};
use crate::proto::router::machine::{Effect, Machine, RequestId};
use crate::proto::router::route::{RoutingDecision, decide, is_target};
use crate::proto::topology::{View, Why};
use crate::time::Time;

/// How long an answer without a way waits before it tries again.
const RETRY: Duration = Duration::from_secs(1);

/// One node's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    pub verdict: Verdict,
    pub text: String,
    /// What an [`Order::Explain`] asked for.
    pub why: Option<Box<Why>>,
    pub after: Duration,
    /// It came after the deadline.
    pub late: bool,
}

/// What became of a command, by its deadline and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub command: Uuid,
    pub expected: BTreeSet<NodeId>,
    pub replies: BTreeMap<NodeId, Reply>,
}

impl Outcome {
    pub fn missing(&self) -> impl Iterator<Item = &NodeId> {
        self.expected.iter().filter(|node| !self.replies.contains_key(node))
    }
}

/// A command this node issued.
#[derive(Clone, Debug)]
struct Issued {
    request: Option<RequestId>,
    outcome: Outcome,
    /// Who has it to pass it on, as others say, and who has said to whom: either may be heard first.
    transits: BTreeSet<NodeId>,
    passed_on: BTreeSet<NodeId>,
    at: Time,
    deadline: Time,
}

impl Issued {
    /// Whether everyone who is known to be a target has answered, and nobody may still name more.
    fn is_complete(&self) -> bool {
        let spoke = |node| self.passed_on.contains(node) || self.outcome.replies.contains_key(node);
        self.transits.iter().all(spoke) && self.outcome.missing().next().is_none()
    }

    /// Tells who asked, once.
    fn conclude(&mut self, effects: &mut Vec<Effect>) {
        if let Some(request) = self.request.take() {
            effects.push(Effect::Concluded { request, outcome: self.outcome.clone() });
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Commands {
    issued: BTreeMap<Uuid, Issued>,
    pub(super) held: Store,
    /// Answers that found no way to the issuer, by whom they came, and when they try again.
    stuck: Vec<(DataPacket, Option<NodeId>)>,
    retry_at: Option<Time>,
    pub(super) issued_count: u64,
    pub(super) delivered_count: u64,
    pub(super) duplicates: u64,
}

impl Commands {
    pub fn deadline(&self) -> Option<Time> {
        let waiting = self.issued.values().filter(|issued| issued.request.is_some());
        waiting.map(|issued| issued.deadline).chain(self.retry_at).min()
    }

    pub fn sweep(&mut self, now: Time) -> usize {
        let swept = self.held.sweep(now);
        let held = &self.held;
        self.issued.retain(|id, issued| issued.request.is_some() || held.contains(id));
        swept
    }
}

impl Machine {
    pub fn delivered(&self) -> u64 {
        self.commands.delivered_count
    }

    pub fn duplicate_commands(&self) -> u64 {
        self.commands.duplicates
    }

    /// Commands kept for who attaches, or for the way back.
    pub fn held_commands(&self) -> usize {
        self.commands.held.len()
    }

    /// What became of a command that this node issued, as far as it is remembered.
    pub fn outcome(&self, command: &Uuid) -> Option<&Outcome> {
        self.commands.issued.get(command).map(|issued| &issued.outcome)
    }

    pub(super) fn issue(
        &mut self,
        now: Time,
        request: RequestId,
        target: Target,
        order: Order,
        deadline: Duration,
        expires: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let remaining_ms = expires.min(Limits::COMMAND_LIFETIME).as_millis() as u32;
        let (issuer, fence) = (self.settings.me, self.view.fence);
        let command = Command { id: self.random_id(), issuer, order, fence, remaining_ms };
        let outcome = Outcome { command: command.id, expected: BTreeSet::new(), replies: BTreeMap::new() };
        let (transits, passed_on) = (BTreeSet::new(), BTreeSet::new());
        let issued = Issued { request: Some(request), outcome, transits, passed_on, at: now, deadline: now + deadline };
        self.commands.issued.insert(command.id, issued);
        self.commands.issued_count += 1;
        if let Target::Node(node) = target {
            self.expect(command.id, [node]);
        }
        let sideways = match &target {
            Target::Laterals => true,
            Target::Node(node) => self.view.laterals.contains(node) && self.view.way_down(node).is_none(),
            _ => false,
        };
        let direction = if sideways { Direction::Lateral } else { Direction::Downward };
        let packet = self.packet(target, direction, PacketType::Command, Payload::Command(command), effects);
        self.route_command(now, packet, None, effects);
    }

    pub(super) fn route_command(
        &mut self,
        now: Time,
        mut packet: DataPacket,
        from: Option<NodeId>,
        effects: &mut Vec<Effect>,
    ) {
        let Payload::Command(command) = &mut packet.payload else { return };
        // It may have been under way when its leader's new term came by.
        if let Some(fence) = self.view.fence {
            command.stamp(fence);
        }
        if self.commands.held.contains(&command.id) {
            self.commands.duplicates += 1;
            return effects.push(Effect::Dropped("duplicate_command"));
        }
        if command.remaining_ms == 0 {
            return effects.push(Effect::Dropped("expired_command"));
        }
        let command = command.clone();
        let evicted = self.commands.held.hold(now, &command, &packet, from);
        effects.extend(std::iter::repeat_n(Effect::Dropped("evicted_command"), evicted));
        let decision = decide(&self.view, &packet, from);
        if let RoutingDecision::Drop(why) = decision {
            effects.push(Effect::Dropped(why));
        }
        self.pass_on(now, &command.id, decision.ways(), Some(decision.consumes()), effects);
        let id = command.id;
        if decision.consumes() {
            self.consume(now, command, effects);
        }
        self.conclude_if_complete(now, &id, effects);
    }

    /// Sends a command to peers, and tells its issuer so; the first time also whether this node is a target.
    fn pass_on(&mut self, now: Time, id: &Uuid, peers: &[NodeId], consumes: Option<bool>, effects: &mut Vec<Effect>) {
        let Some(held) = self.commands.held.get_mut(id) else { return };
        let Some(packet) = held.remaining(now) else { return };
        // Who comes from under a higher term would take this for out of date: it waits until that is settled above, and
        // its issuer for it.
        let settled = |peer: &&NodeId| self.view.children.get(peer).is_none_or(|child| child.fence <= self.view.fence);
        let ready: Vec<_> = peers.iter().filter(settled).copied().collect();
        held.sent.extend(&ready);
        // Of one node its issuer knows already that it is awaited, and who only consumes says so by its answer.
        let is_known = matches!(packet.target, Target::Node(_)) || (peers.is_empty() && consumes == Some(true));
        if !is_known {
            let to = peers.iter().map(|&peer| (peer, is_target(&self.view, &packet.target, peer))).collect();
            let consumes = consumes.unwrap_or(false);
            self.respond(now, *id, Response::PassedOn { consumes, to }, effects);
        }
        let frame = RouterFrame::Along(packet);
        effects.extend(ready.into_iter().map(|peer| Effect::Send { peer, frame: frame.clone() }));
    }

    /// The view is another: who attached says what it knows, and a target that moved is reached its new way.
    pub(super) fn commands_placed(&mut self, now: Time, before: &View, effects: &mut Vec<Effect>) {
        let stays = |view: &View, peer: &NodeId| view.parent_id() == Some(*peer) || view.children.contains_key(peer);
        if before.has_the_same_links(&self.view) {
            return;
        }
        let parent = self.view.parent.as_ref();
        let attached = parent.map(|p| (p.id, p.serial)) != before.parent.as_ref().map(|p| (p.id, p.serial));
        if let Some(parent) = parent.filter(|_| attached).map(|parent| parent.id) {
            self.say_seen(now, parent, true, effects);
        }
        if before.fence != self.view.fence {
            self.under_a_new_term(now, effects);
        }
        let mut again = Vec::new();
        for (id, held) in self.commands.held.living_mut(now) {
            held.sent.retain(|peer| stays(&self.view, peer) || self.view.laterals.contains(peer));
            let decision = decide(&self.view, held.packet(), held.from);
            let missing = decision.ways().iter().filter(|way| !held.sent.contains(way));
            // Those who are new say first what they have seen.
            let ways: Vec<_> = missing.filter(|way| stays(before, way) && stays(&self.view, way)).copied().collect();
            if !ways.is_empty() {
                again.push((*id, ways));
            }
        }
        for (id, ways) in again {
            self.pass_on(now, &id, &ways, None, effects);
        }
    }

    /// What the leader that goes on has under way goes on under its new term; what waited for a term is decided.
    fn under_a_new_term(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if let Some(fence) = self.view.fence {
            self.commands.held.stamp(fence);
        }
        for command in self.commands.held.take_undecided(now) {
            self.consume(now, command, effects);
        }
    }

    fn say_seen(&mut self, now: Time, peer: NodeId, ask: bool, effects: &mut Vec<Effect>) {
        let commands = self.commands.held.living(now).map(|(&id, _)| id).collect();
        effects.push(Effect::Send { peer, frame: RouterFrame::Seen { commands, ask } });
    }

    /// A neighbour that has just been attached names what it has seen: the rest of what concerns it is sent.
    pub(super) fn seen(&mut self, now: Time, peer: NodeId, commands: &[Uuid], ask: bool, effects: &mut Vec<Effect>) {
        let known: BTreeSet<_> = commands.iter().copied().collect();
        let concerns = |id: &Uuid, held: &Held| {
            !known.contains(id) && decide(&self.view, held.packet(), held.from).ways().contains(&peer)
        };
        let missing = self.commands.held.living(now).filter(|(id, held)| concerns(id, held)).map(|(&id, _)| id);
        let missing: Vec<_> = missing.collect();
        for id in commands {
            if let Some(held) = self.commands.held.get_mut(id) {
                held.sent.insert(peer);
            }
        }
        if ask {
            self.say_seen(now, peer, false, effects);
        }
        for id in missing {
            self.pass_on(now, &id, &[peer], None, effects);
        }
    }

    fn consume(&mut self, now: Time, command: Command, effects: &mut Vec<Effect>) {
        if command.issuer == self.settings.me {
            self.expect(command.id, [self.settings.me]);
        }
        if command.order == Order::Explain {
            return effects.push(Effect::Explain(command.id));
        }
        match self.durable.delivery(&command.id) {
            None => {}
            // The host has it and will answer.
            Some(Delivery { incarnation, answer: None }) if *incarnation == self.settings.incarnation => {
                self.commands.duplicates += 1;
                return effects.push(Effect::Dropped("duplicate_command"));
            }
            Some(Delivery { answer: None, .. }) => {
                self.commands.duplicates += 1;
                let text = "the node stopped before its host had answered".to_owned();
                return self.answered(now, command.id, Verdict::Interrupted, text, effects);
            }
            Some(Delivery { answer: Some(Answered { verdict, text }), .. }) => {
                self.commands.duplicates += 1;
                let (verdict, text) = (*verdict, text.clone());
                return self.respond(now, command.id, Response::Answer { verdict, text }, effects);
            }
        }
        match self.term_of(&command) {
            Term::Present => {}
            Term::Over => {
                if let Some(held) = self.commands.held.get_mut(&command.id) {
                    held.fenced = true;
                }
                let text = "issued under a term that is over".to_owned();
                let response = Response::Answer { verdict: Verdict::Fenced, text };
                return self.respond(now, command.id, response, effects);
            }
            Term::Unknown => {
                if let Some(held) = self.commands.held.get_mut(&command.id) {
                    held.undecided = true;
                }
                return;
            }
        }
        let (command_id, incarnation) = (command.id, self.settings.incarnation);
        if !self.keeps() {
            return self.refuse_unrecorded(now, command_id, effects);
        }
        self.persist(vec![Record::Deliver { command: command_id, incarnation }], effects);
        self.deliver(now, command, effects);
    }

    /// What was issued under an earlier term of the present leader still counts.
    fn term_of(&self, command: &Command) -> Term {
        match (command.fence, self.view.fence) {
            (Some(theirs), Some(ours)) if theirs.leader != ours.leader => match theirs < ours {
                true => Term::Over,
                false => Term::Unknown,
            },
            _ => Term::Present,
        }
    }

    /// The id is on record: whatever happens now, the host gets the command at most once.
    fn deliver(&mut self, now: Time, mut command: Command, effects: &mut Vec<Effect>) {
        let held_for = self.commands.held.held_for(now, &command.id).as_millis() as u32;
        command.remaining_ms = command.remaining_ms.saturating_sub(held_for);
        self.commands.delivered_count += 1;
        effects.push(Effect::Deliver(command));
    }

    pub(super) fn answered(
        &mut self,
        now: Time,
        command: Uuid,
        verdict: Verdict,
        mut text: String,
        effects: &mut Vec<Effect>,
    ) {
        shorten(&mut text, Limits::COMMAND_BYTES);
        let mut kept = text.clone();
        shorten(&mut kept, Limits::ANSWER_KEPT_BYTES);
        let record = Record::Answer { command, answer: Answered { verdict, text: kept } };
        self.note(record, effects);
        self.respond(now, command, Response::Answer { verdict, text }, effects);
    }

    /// What cannot be put on record is not delivered: a restart could deliver it again.
    pub(super) fn refuse_unrecorded(&mut self, now: Time, command: Uuid, effects: &mut Vec<Effect>) {
        let text = "the journal cannot keep it; is the disk full?".to_owned();
        self.respond(now, command, Response::Answer { verdict: Verdict::Failed, text }, effects);
    }

    pub(super) fn explained(&mut self, now: Time, command: Uuid, why: Box<Why>, effects: &mut Vec<Effect>) {
        self.respond(now, command, Response::Explained(why), effects);
    }

    /// Sends something back to the issuer of a command, which may be this node.
    fn respond(&mut self, now: Time, command: Uuid, response: Response, effects: &mut Vec<Effect>) {
        let Some(held) = self.commands.held.get(&command) else {
            return effects.push(Effect::Dropped("forgotten_command"));
        };
        let (issuer, me) = (held.issuer(), self.settings.me);
        if issuer == me {
            return self.heard_response(now, command, me, response, effects);
        }
        let payload = Payload::Response { command, response };
        let packet = self.packet(Target::Node(issuer), Direction::Upward, PacketType::Status, payload, effects);
        self.send_back(now, packet, None, effects);
    }

    /// Answers that found no way try again, for as long as their command is remembered.
    fn retry_stuck(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.commands.retry_at = None;
        for (packet, from) in std::mem::take(&mut self.commands.stuck) {
            match packet.payload.command().is_some_and(|command| self.commands.held.contains(&command)) {
                true => self.send_back(now, packet, from, effects),
                false => effects.push(Effect::Dropped("unroutable")),
            }
        }
    }

    pub(super) fn route_response(&mut self, now: Time, packet: DataPacket, from: NodeId, effects: &mut Vec<Effect>) {
        if packet.hops > Limits::HOPS {
            return effects.push(Effect::Dropped("too_many_hops"));
        }
        match packet.payload {
            Payload::Response { command, response } if packet.target == Target::Node(self.settings.me) => {
                self.heard_response(now, command, packet.source, response, effects);
            }
            _ => self.send_back(now, packet, Some(from), effects),
        }
    }

    /// Down to the issuer if it is below, sideways if the command came so, else up. An answer that finds no way, since
    /// its issuer is cut off, waits a while for one.
    fn send_back(&mut self, now: Time, mut packet: DataPacket, from: Option<NodeId>, effects: &mut Vec<Effect>) {
        let command = packet.payload.command();
        let came_by = command.and_then(|command| self.commands.held.get(&command)?.from);
        let sideways = came_by.filter(|peer| self.view.laterals.contains(peer) && Some(*peer) != from);
        let way = sideways.or_else(|| decide(&self.view, &packet, from).ways().first().copied());
        let Some(peer) = way else {
            if self.commands.stuck.len() >= Limits::COMMANDS {
                return effects.push(Effect::Dropped("unroutable"));
            }
            self.commands.retry_at.get_or_insert(now + RETRY);
            return self.commands.stuck.push((packet, from));
        };
        packet.direction = match self.view.laterals.contains(&peer) {
            true => Direction::Lateral,
            false => Direction::Upward,
        };
        effects.push(Effect::Send { peer, frame: RouterFrame::Along(packet) });
    }

    fn heard_response(
        &mut self,
        now: Time,
        command: Uuid,
        from: NodeId,
        response: Response,
        effects: &mut Vec<Effect>,
    ) {
        let (verdict, text, why) = match response {
            Response::PassedOn { consumes, to } => {
                let targets = to.iter().filter(|(_, is_target)| *is_target).map(|(peer, _)| *peer);
                self.expect(command, targets.chain(consumes.then_some(from)));
                if let Some(issued) = self.commands.issued.get_mut(&command) {
                    let transits = to.iter().filter(|(_, is_target)| !is_target).map(|(peer, _)| *peer);
                    extend_within(&mut issued.transits, transits);
                    extend_within(&mut issued.passed_on, [from]);
                }
                return self.conclude_if_complete(now, &command, effects);
            }
            Response::Answer { verdict, text } => (verdict, text, None),
            Response::Explained(why) => (Verdict::Accepted, String::new(), Some(why)),
        };
        self.expect(command, [from]);
        let Some(issued) = self.commands.issued.get_mut(&command) else {
            return effects.push(Effect::Dropped("forgotten_command"));
        };
        // Beyond the bound of those who are awaited nobody's answer is kept.
        if !issued.outcome.expected.contains(&from) {
            return effects.push(Effect::Dropped("unexpected_answer"));
        }
        let late = issued.request.is_none();
        let reply = Reply { verdict, text, why, after: now.since(issued.at), late };
        // The first answer stands, but who refused a term that went on after all has the command by now.
        if issued.outcome.replies.get(&from).is_none_or(|first| first.verdict == Verdict::Fenced) {
            issued.outcome.replies.insert(from, reply);
        }
        self.conclude_if_complete(now, &command, effects);
    }

    fn expect(&mut self, command: Uuid, nodes: impl IntoIterator<Item = NodeId>) {
        if let Some(issued) = self.commands.issued.get_mut(&command) {
            extend_within(&mut issued.outcome.expected, nodes);
        }
    }

    fn conclude_if_complete(&mut self, now: Time, command: &Uuid, effects: &mut Vec<Effect>) {
        let issued = self.commands.issued.get_mut(command);
        if let Some(issued) = issued.filter(|issued| now >= issued.deadline || issued.is_complete()) {
            issued.conclude(effects);
        }
    }

    pub(super) fn tick_commands(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let due = self.commands.issued.values_mut().filter(|issued| now >= issued.deadline);
        due.for_each(|issued| issued.conclude(effects));
        if self.commands.retry_at.is_some_and(|at| now >= at) {
            self.retry_stuck(now, effects);
        }
    }
}

/// How a command's term stands to this node's.
enum Term {
    Present,
    /// Another leader has taken over since.
    Over,
    /// Of another leader, and later than what is known here: word of it is on its way, or it will be deposed.
    Unknown,
}

/// Adds nodes for as long as there is room.
fn extend_within(set: &mut BTreeSet<NodeId>, nodes: impl IntoIterator<Item = NodeId>) {
    let room = Limits::ACKS.saturating_sub(set.len());
    set.extend(nodes.into_iter().take(room));
}

/// Cuts a text to so many bytes at most, between characters.
fn shorten(text: &mut String, most: usize) {
    if text.len() > most {
        let cut = (0..=most).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(cut);
    }
}
