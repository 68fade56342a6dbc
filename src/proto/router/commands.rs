//! Commands on their way down, and what is said to them on its way back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::durable::Record;
use crate::proto::packet::{
    Command, DataPacket, Direction, Order, PacketType, Payload, Response, RouterFrame, Target, Verdict,
};
use crate::proto::router::machine::{Effect, Machine, Pending, RequestId};
use crate::proto::router::route::{RoutingDecision, decide};
use crate::proto::topology::Why;
use crate::time::Time;

/// How long the way back is remembered after a command has expired.
const LINGER: Duration = Duration::from_secs(60);

/// One node's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    pub verdict: Verdict,
    pub text: String,
    /// What an [`Order::Explain`] asked for.
    pub why: Option<Box<Why>>,
    pub after: Duration,
}

/// What became of a command by its deadline.
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
pub struct Issued {
    request: Option<RequestId>,
    outcome: Outcome,
    at: Time,
    deadline: Time,
}

/// A command that came by.
#[derive(Clone, Debug)]
struct Passed {
    /// Where it came from, and so where answers go; absent for the issuer.
    back: Option<NodeId>,
    issuer: NodeId,
    forget_at: Time,
}

#[derive(Clone, Debug, Default)]
pub struct Commands {
    issued: BTreeMap<Uuid, Issued>,
    passed: BTreeMap<Uuid, Passed>,
    pub(super) issued_count: u64,
    pub(super) delivered_count: u64,
    pub(super) duplicates: u64,
}

impl Commands {
    pub fn deadline(&self) -> Option<Time> {
        self.issued.values().filter(|issued| issued.request.is_some()).map(|issued| issued.deadline).min()
    }

    pub fn sweep(&mut self, now: Time) -> usize {
        let before = self.passed.len();
        self.passed.retain(|_, passed| now < passed.forget_at);
        let passed = &self.passed;
        self.issued.retain(|id, issued| issued.request.is_some() || passed.contains_key(id));
        before - self.passed.len()
    }

    fn remember(&mut self, now: Time, command: &Command, back: Option<NodeId>) {
        if self.passed.len() >= Limits::COMMANDS {
            let oldest = self.passed.iter().min_by_key(|(_, passed)| passed.forget_at).map(|(&id, _)| id);
            if let Some(id) = oldest {
                self.passed.remove(&id);
            }
        }
        let forget_at = now + Duration::from_millis(u64::from(command.remaining_ms)) + LINGER;
        self.passed.insert(command.id, Passed { back, issuer: command.issuer, forget_at });
    }
}

impl Machine {
    pub fn delivered(&self) -> u64 {
        self.commands.delivered_count
    }

    pub fn duplicate_commands(&self) -> u64 {
        self.commands.duplicates
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
        let command = Command { id: self.random_id(), issuer: self.settings.me, order, remaining_ms };
        let outcome = Outcome { command: command.id, expected: BTreeSet::new(), replies: BTreeMap::new() };
        let issued = Issued { request: Some(request), outcome, at: now, deadline: now + deadline };
        self.commands.issued.insert(command.id, issued);
        self.commands.issued_count += 1;
        if let Target::Node(node) = target {
            self.expect(command.id, [node]);
        }
        let direction = Direction::Downward;
        let packet = self.packet(target, direction, PacketType::Command, Payload::Command(command), effects);
        self.route_command(now, packet, None, effects);
    }

    pub(super) fn route_command(
        &mut self,
        now: Time,
        packet: DataPacket,
        from: Option<NodeId>,
        effects: &mut Vec<Effect>,
    ) {
        let Payload::Command(command) = &packet.payload else { return };
        if from.is_some() && self.commands.passed.contains_key(&command.id) {
            self.commands.duplicates += 1;
            return effects.push(Effect::Dropped("duplicate_command"));
        }
        if command.remaining_ms == 0 {
            return effects.push(Effect::Dropped("expired_command"));
        }
        self.commands.remember(now, command, from);
        let command = command.clone();
        match decide(&self.view, &packet, from) {
            RoutingDecision::Consume => self.consume(command, effects),
            RoutingDecision::Forward(peer) => self.pass_on(now, packet, vec![peer], false, effects),
            RoutingDecision::ForwardMulticast(peers) => self.pass_on(now, packet, peers, true, effects),
            RoutingDecision::ConsumeAndForwardMulticast(peers) => {
                self.pass_on(now, packet, peers, true, effects);
                self.consume(command, effects);
            }
            RoutingDecision::ConsumeAndForward(peer) => {
                self.pass_on(now, packet, vec![peer], true, effects);
                self.consume(command, effects);
            }
            RoutingDecision::Drop(why) => effects.push(Effect::Dropped(why)),
        }
        self.conclude_if_complete(now, effects);
    }

    fn pass_on(
        &mut self,
        now: Time,
        packet: DataPacket,
        peers: Vec<NodeId>,
        are_targets: bool,
        effects: &mut Vec<Effect>,
    ) {
        if are_targets && let Payload::Command(command) = &packet.payload {
            self.respond(now, command.id, Response::PassedOn(peers.clone()), effects);
        }
        for peer in peers {
            effects.push(Effect::Send { peer, frame: RouterFrame::Along(packet.clone()) });
        }
    }

    fn consume(&mut self, command: Command, effects: &mut Vec<Effect>) {
        if command.issuer == self.settings.me {
            self.expect(command.id, [self.settings.me]);
        }
        if command.order == Order::Explain {
            return effects.push(Effect::Explain(command.id));
        }
        if self.durable.was_delivered(&command.id) {
            self.commands.duplicates += 1;
            return effects.push(Effect::Dropped("duplicate_command"));
        }
        self.persist(vec![Record::Deliver(command.id)], Pending::Deliver(command), effects);
    }

    /// The id is on record: whatever happens now, the host gets the command at most once.
    pub(super) fn deliver(&mut self, command: Command, effects: &mut Vec<Effect>) {
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
        if text.len() > Limits::COMMAND_BYTES {
            let cut = (0..=Limits::COMMAND_BYTES).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            text.truncate(cut);
        }
        self.respond(now, command, Response::Answer { verdict, text }, effects);
    }

    pub(super) fn explained(&mut self, now: Time, command: Uuid, why: Box<Why>, effects: &mut Vec<Effect>) {
        self.respond(now, command, Response::Explained(why), effects);
    }

    /// Sends something back to the issuer of a command, which may be this node.
    fn respond(&mut self, now: Time, command: Uuid, response: Response, effects: &mut Vec<Effect>) {
        let Some(passed) = self.commands.passed.get(&command) else {
            return effects.push(Effect::Dropped("forgotten_command"));
        };
        let (back, issuer, me) = (passed.back, passed.issuer, self.settings.me);
        match back {
            None => self.heard_response(now, command, me, response, effects),
            Some(peer) => {
                let payload = Payload::Response { command, from: me, response };
                let packet = self.packet(Target::Node(issuer), Direction::Upward, PacketType::Status, payload, effects);
                effects.push(Effect::Send { peer, frame: RouterFrame::Along(packet) });
            }
        }
    }

    pub(super) fn route_response(&mut self, now: Time, packet: DataPacket, effects: &mut Vec<Effect>) {
        if packet.hops > Limits::HOPS {
            return effects.push(Effect::Dropped("too_many_hops"));
        }
        let Payload::Response { command, from, response } = &packet.payload else { return };
        match self.commands.passed.get(command).map(|passed| passed.back) {
            None => effects.push(Effect::Dropped("forgotten_command")),
            Some(None) => self.heard_response(now, *command, *from, response.clone(), effects),
            Some(Some(peer)) => effects.push(Effect::Send { peer, frame: RouterFrame::Along(packet) }),
        }
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
            Response::PassedOn(nodes) => {
                self.expect(command, nodes);
                return self.conclude_if_complete(now, effects);
            }
            Response::Answer { verdict, text } => (verdict, text, None),
            Response::Explained(why) => (Verdict::Accepted, String::new(), Some(why)),
        };
        self.expect(command, [from]);
        let Some(issued) = self.commands.issued.get_mut(&command) else { return };
        if issued.request.is_none() {
            return effects.push(Effect::Dropped("late_answer"));
        }
        let reply = Reply { verdict, text, why, after: now.since(issued.at) };
        issued.outcome.replies.entry(from).or_insert(reply);
        self.conclude_if_complete(now, effects);
    }

    fn expect(&mut self, command: Uuid, nodes: impl IntoIterator<Item = NodeId>) {
        if let Some(issued) = self.commands.issued.get_mut(&command) {
            let room = Limits::ACKS.saturating_sub(issued.outcome.expected.len());
            issued.outcome.expected.extend(nodes.into_iter().take(room));
        }
    }

    fn conclude_if_complete(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.conclude(|issued| now >= issued.deadline || is_complete(&issued.outcome), effects);
    }

    pub(super) fn tick_commands(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.conclude(|issued| now >= issued.deadline, effects);
    }

    fn conclude(&mut self, done: impl Fn(&Issued) -> bool, effects: &mut Vec<Effect>) {
        for issued in self.commands.issued.values_mut() {
            if issued.request.is_some()
                && done(issued)
                && let Some(request) = issued.request.take()
            {
                effects.push(Effect::Concluded { request, outcome: issued.outcome.clone() });
            }
        }
    }
}

/// Whether everyone who is known to be a target has answered. A node's targets below are known before it answers.
fn is_complete(outcome: &Outcome) -> bool {
    outcome.missing().next().is_none()
}
