//! Commands of a scenario: issued, followed on the wire, answered by every host.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::proto::election::Role;
use crate::proto::frame::Frame;
use crate::proto::node::Input;
use crate::proto::packet::{self, Order, Payload, RouterFrame, Target, Verdict};
use crate::proto::router::{self, Outcome};
use crate::sim::target::TargetSpec;
use crate::sim::truth::CommandTruth;
use crate::sim::world::World;

impl World {
    /// What a command's target means now, and how many live nodes that are in truth; else why it can mean nothing.
    pub(super) fn command_target(&self, from: usize, text: &str) -> Result<(Target, usize), (String, String)> {
        let live = || self.nodes.iter().filter(|node| node.is_up());
        let view = self.nodes[from].view();
        let named = |name: &str| {
            let node = self.nodes.iter().find(|node| node.name.as_str() == name.replace(':', "-"));
            let fix = "use everyone, children, laterals, subtree:NODE, level:LABEL, capability:TYPE, or a node's name";
            node.ok_or_else(|| (format!("`{text}` is no target of a command"), fix.to_owned()))
        };
        match text.split_once(':') {
            _ if text == "everyone" => Ok((Target::Everyone, live().count())),
            _ if text == "children" => Ok((Target::Children, view.map_or(0, |view| view.children.len()))),
            _ if text == "laterals" => Ok((Target::Laterals, self.laterals_reached(from))),
            Some(("subtree", top)) => {
                let top = named(top)?.id;
                let within = live().filter(|node| node.view().is_some_and(|view| view.is_within(&top)));
                Ok((Target::Subtree(top), within.count()))
            }
            Some(("level", label)) => {
                let levels = &self.nodes[from].config.topology.levels;
                let level = levels.parse(label).ok_or_else(|| {
                    (format!("`{label}` is not a level"), format!("use one of: {}", levels.labels().join(", ")))
                })?;
                Ok((Target::Level(level), live().filter(|node| node.level == level).count()))
            }
            Some(("capability", kind)) => {
                let able = live().filter(|node| node.config.node.capabilities.iter().any(|c| c.kind == kind));
                Ok((Target::Capability(kind.to_owned()), able.count()))
            }
            _ => Ok((Target::Node(named(text)?.id), 1)),
        }
    }

    /// A node's laterals, and those of the leaders among them, which pass on to them.
    fn laterals_reached(&self, from: usize) -> usize {
        let Some(view) = self.nodes[from].view() else { return 0 };
        let laterals = view.laterals.iter().filter_map(|id| self.nodes[self.nodes[from].index_of(*id)?].view());
        let further = laterals.filter(|lateral| lateral.role == Role::Leader).flat_map(|leader| &leader.laterals);
        let all: BTreeSet<_> = view.laterals.iter().chain(further).filter(|id| **id != view.me).collect();
        all.len()
    }

    pub(super) fn command(&mut self, plan: usize) {
        let plan = self.scenario.commands[plan].clone();
        let from: &TargetSpec = &plan.from;
        let from = from.resolve(&self.nodes, &self.labels, &mut self.rng);
        let Some(&i) = from.first().filter(|&&i| self.nodes[i].is_up()) else { return };
        let Ok((target, targets)) = self.command_target(i, &plan.target) else { return };
        self.nodes[i].requests += 1;
        let request = self.nodes[i].requests;
        let order = Order::Host(format!("command of {}", self.nodes[i].name));
        let (deadline, expires) = (Duration::from_secs(5), plan.expires.0);
        self.recorder.next_command = Some((self.now.as_secs_f64(), targets));
        self.give(i, Input::Router(router::Input::Issue { request, target, order, deadline, expires }));
    }

    pub(super) fn note_conclusion(&mut self, outcome: &Outcome) {
        let now = self.now.as_secs_f64();
        self.command_truth(outcome.command).concluded_s = Some(now);
        self.note_outcome(outcome);
    }

    /// Takes down what has become of a command, when it is concluded and at the end of the run.
    fn note_outcome(&mut self, outcome: &Outcome) {
        let Some(truth) = self.truth.commands.get_mut(&outcome.command) else { return };
        let with = |verdict| outcome.replies.values().filter(move |reply| reply.verdict == verdict);
        truth.acknowledged = with(Verdict::Accepted).count();
        truth.fenced = with(Verdict::Fenced).count() as u64;
        let last = outcome.replies.values().map(|reply| reply.after.as_secs_f64()).reduce(f64::max);
        truth.last_ack_s = last.map(|after| truth.issued_s + after);
    }

    /// Answers may have come after the deadline.
    pub(super) fn note_late_outcomes(&mut self) {
        let commands: Vec<_> = self.truth.commands.keys().copied().collect();
        for id in commands {
            let nodes = self.nodes.iter().filter_map(|sim| sim.node.as_ref());
            let outcome = nodes.filter_map(|node| node.router.outcome(&id)).next().cloned();
            if let Some(outcome) = outcome {
                self.note_outcome(&outcome);
            }
        }
    }

    /// The record of a command; the first to mention it is its issuer.
    fn command_truth(&mut self, id: uuid::Uuid) -> &mut CommandTruth {
        let next = &mut self.recorder.next_command;
        self.truth.commands.entry(id).or_insert_with(|| {
            let (issued_s, targets) = next.take().unwrap_or_default();
            CommandTruth { issued_s, targets, ..Default::default() }
        })
    }

    pub(super) fn note_transmission(&mut self, from: usize, to: usize, frame: &Frame) {
        let Frame::Router(RouterFrame::Along(packet)) = frame else { return };
        let Payload::Command(command) = &packet.payload else { return };
        let truth = self.command_truth(command.id);
        match truth.links.insert((from, to)) {
            true => truth.transmissions += 1,
            false => truth.retransmissions += 1,
        }
    }

    pub(super) fn deliver_command(&mut self, i: usize, command: &packet::Command) {
        let id = self.nodes[i].id;
        let times = self.command_truth(command.id).delivered.entry(id).or_default();
        *times += 1;
        let (once, name) = (*times == 1, &self.nodes[i].name);
        self.invariants.check(self.now, "delivered_once", once, || format!("{name} was given {} twice", command.id));
        let (command, text) = (command.id, String::new());
        let input = router::Input::Answered { command, verdict: Verdict::Accepted, text };
        self.step(i, Input::Router(input));
    }
}
