//! Faults: what begins and ends on a schedule. Causes are counted, so that faults may overlap.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;

use crate::config::Problems;
use crate::proto::beacon::SelfPatch;
use crate::proto::node::{Input, Part};
use crate::proto::{beacon, link, topology};
use crate::sim::network::Obstacle;
use crate::sim::scenario::{Actor, Destination, FaultKind, Jump, LinkProperties, Targets, Text};
use crate::sim::world::{Happening, World};

/// How long a restart keeps a node down.
const RESTART: Duration = Duration::from_secs(1);

/// How long churn keeps a node away, on average.
const CHURN: Duration = Duration::from_secs(10);

/// What a fault holds while it lasts.
#[derive(Clone, Debug, Default)]
pub struct Active {
    pub nodes: Vec<usize>,
}

impl World {
    /// Whether every target can exist.
    pub(super) fn check_targets(&self, text: &Text) -> Result<(), Problems> {
        let mut problems = Vec::new();
        for (i, fault) in self.scenario.faults.iter().enumerate() {
            let far = match &fault.to {
                Some(Destination::Targets(targets)) => Some(targets),
                _ => None,
            };
            let groups = [fault.target.as_ref(), fault.from.as_ref(), far].into_iter().flatten();
            let specs = groups.chain(fault.between.iter().flatten()).flat_map(|targets| &targets.0);
            for spec in specs {
                if let Err((message, fix)) = spec.check(&self.nodes, &self.labels) {
                    problems.push(text.problem(&["fault", &i.to_string(), "target"], message, &fix));
                }
            }
        }
        for (i, plan) in self.scenario.commands.iter().enumerate() {
            let key = i.to_string();
            if let Err((message, fix)) = plan.from.check(&self.nodes, &self.labels) {
                problems.push(text.problem(&["command", &key, "from"], message, &fix));
            }
            if let Err((message, fix)) = self.command_target(0, &plan.target) {
                problems.push(text.problem(&["command", &key, "target"], message, &fix));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    pub(super) fn fault_begins(&mut self, index: usize) {
        let fault = self.scenario.faults[index].clone();
        // Who is concerned, in groups: an obstacle is between them.
        let groups: Vec<_> = match (&fault.between, &fault.from, &fault.to) {
            (Some(parts), ..) => parts.iter().map(|part| self.resolve(Some(part))).collect(),
            (None, Some(from), Some(Destination::Targets(to))) => {
                [from, to].map(|side| self.resolve(Some(side))).into()
            }
            _ => vec![self.resolve(fault.target.as_ref())],
        };
        let there = groups.iter().filter(|group| !group.is_empty()).count();
        let mut nodes = groups.concat();
        self.sort_by_name(&mut nodes);
        self.recorder.hash_fault(self.now, index, fault.kind.label());
        let lasts = match fault.kind {
            FaultKind::Restart => Some(fault.lasts.map_or(RESTART, |span| span.0)),
            _ => fault.lasts.map(|span| span.0),
        };
        let until = lasts.map(|lasts| self.now + lasts);
        let unresolved = (fault.target.is_some() || groups.len() > 1) && there < groups.len().min(2);
        self.recorder.fault(self.now, fault.kind.label(), &nodes, &self.nodes, until, unresolved);
        match fault.kind {
            FaultKind::Crash | FaultKind::Restart => nodes.iter().for_each(|&i| self.hold_down(i)),
            FaultKind::Leave => nodes.iter().for_each(|&i| self.leave(i)),
            FaultKind::Pause => nodes.iter().for_each(|&i| {
                if self.nodes[i].paused == 0 {
                    self.nodes[i].stood_still = Some((self.now, None));
                }
                self.nodes[i].paused += 1;
            }),
            FaultKind::DiskFull => nodes.iter().for_each(|&i| self.disk_filled(i)),
            FaultKind::Churn => self.churn(index),
            FaultKind::ActorCrash => nodes.iter().for_each(|&i| self.crash_actor(i, fault.actor)),
            FaultKind::ClockJump => nodes.iter().for_each(|&i| self.clock_jumps(i, fault.by)),
            FaultKind::Move => nodes.iter().for_each(|&i| self.moves(i, index, fault.to.as_ref())),
            FaultKind::Partition | FaultKind::OneWay | FaultKind::Link => {
                self.obstruct(index, fault.properties, groups)
            }
        }
        self.recorder.active.entry(index).or_default().nodes = nodes;
        if let Some(until) = until {
            self.at(until, Happening::FaultEnds(index));
        }
    }

    pub(super) fn fault_ends(&mut self, index: usize) {
        let Some(active) = self.recorder.active.remove(&index) else { return };
        match self.scenario.faults[index].kind {
            FaultKind::Crash | FaultKind::Restart | FaultKind::Leave => {
                active.nodes.into_iter().for_each(|i| self.let_up(i));
            }
            FaultKind::Pause => {
                for i in active.nodes {
                    self.nodes[i].paused = self.nodes[i].paused.saturating_sub(1);
                    if self.nodes[i].paused == 0 {
                        self.nodes[i].stood_still = self.nodes[i].stood_still.map(|(from, _)| (from, Some(self.now)));
                        for happening in std::mem::take(&mut self.nodes[i].deferred) {
                            self.at(self.now, happening);
                        }
                    }
                }
            }
            FaultKind::Partition | FaultKind::OneWay | FaultKind::Link => {
                self.network.end(index);
                self.recorder.partition_ends(self.now, index, &self.nodes);
            }
            FaultKind::DiskFull => active.nodes.into_iter().for_each(|i| self.disk_freed(i)),
            // Who is down because of it comes back on its own.
            FaultKind::Churn | FaultKind::ActorCrash | FaultKind::ClockJump => {}
            FaultKind::Move => active.nodes.into_iter().for_each(|i| self.moves_back(i, index)),
        }
    }

    /// When the scenario's duration is over, so are the faults that were to end.
    pub(super) fn end_faults(&mut self) {
        let lasting: Vec<_> = self.recorder.active.keys().copied().collect();
        for index in lasting {
            let fault = &self.scenario.faults[index];
            let for_good =
                fault.lasts.is_none() && matches!(fault.kind, FaultKind::Crash | FaultKind::Leave | FaultKind::Move);
            if !for_good {
                self.fault_ends(index);
            }
        }
    }

    fn resolve(&mut self, targets: Option<&Targets>) -> Vec<usize> {
        let mut all = Vec::new();
        for spec in targets.iter().flat_map(|targets| &targets.0) {
            all.extend(spec.resolve(&self.nodes, &self.labels, &mut self.rng));
        }
        self.sort_by_name(&mut all);
        all
    }

    fn sort_by_name(&self, nodes: &mut Vec<usize>) {
        nodes.sort_by(|&a, &b| self.nodes[a].name.cmp(&self.nodes[b].name));
        nodes.dedup();
    }

    fn hold_down(&mut self, i: usize) {
        self.nodes[i].down += 1;
        if self.nodes[i].is_up() {
            self.kill(i);
        }
    }

    /// An orderly stop: every machine says goodbye, then the process ends.
    fn leave(&mut self, i: usize) {
        self.nodes[i].died_at = Some(self.now);
        self.step(i, Input::Beacon(beacon::Input::Leave));
        self.step(i, Input::Topology(topology::Input::Leave));
        self.step(i, Input::Links(link::Input::Leave));
        self.flush(i);
        self.hold_down(i);
    }

    /// One node after the other crashes and comes back, at so many a minute.
    pub(super) fn churn(&mut self, index: usize) {
        let per_minute = self.scenario.faults[index].per_minute.filter(|n| *n > 0.0);
        let Some(apart) = per_minute.map(|n| Duration::from_secs(60).div_f64(n)) else { return };
        let next = apart.mul_f64(self.rng.random_range(0.5..1.5));
        self.at(self.now + next, Happening::Churn(index));
    }

    pub(super) fn churned(&mut self, index: usize) {
        let Some(Active { nodes }) = self.recorder.active.get(&index) else { return };
        // Without a target it meets everyone.
        let node = match nodes.len() {
            0 => self.rng.random_range(0..self.nodes.len()),
            count => nodes[self.rng.random_range(0..count)],
        };
        self.hold_down(node);
        self.away += 1;
        let away = CHURN.mul_f64(self.rng.random_range(0.2..2.0));
        self.at(self.now + away, Happening::Back(node));
        self.churn(index);
    }

    pub(super) fn comes_back(&mut self, i: usize) {
        self.away -= 1;
        self.let_up(i);
    }

    /// What held the node down is over.
    fn let_up(&mut self, i: usize) {
        self.nodes[i].down = self.nodes[i].down.saturating_sub(1);
        if self.nodes[i].down == 0 && !self.nodes[i].is_up() {
            self.boot(i);
        }
    }

    fn crash_actor(&mut self, i: usize, actor: Option<Actor>) {
        let part = match actor {
            Some(Actor::Transport) | None => Part::Links,
            Some(Actor::Beacon) => Part::Beacon,
            Some(Actor::Topology) => Part::Topology,
            Some(Actor::Router) => Part::Router,
        };
        if part == Part::Router {
            self.flush(i);
        }
        let (now, sim) = (self.now, &mut self.nodes[i]);
        let local = sim.local(now);
        let mut out = Vec::new();
        if let Some(node) = &mut sim.node {
            node.crash(local, part, &sim.disk, &mut out);
        }
        self.follow(i, out);
        if part == Part::Links {
            self.announce(i);
        }
        self.rearm(i);
    }

    /// Its own clock goes on from later: everything that waited is due.
    fn clock_jumps(&mut self, i: usize, by: Option<Jump>) {
        self.nodes[i].jumped += by.map_or(Duration::ZERO, |jump| jump.0);
        self.rearm(i);
    }

    fn moves(&mut self, i: usize, index: usize, to: Option<&Destination>) {
        if let Some(Destination::Place(place)) = to {
            self.nodes[i].moved.push((index, *place));
            self.show_place(i);
        }
    }

    fn moves_back(&mut self, i: usize, index: usize) {
        self.nodes[i].moved.retain(|(fault, _)| *fault != index);
        self.show_place(i);
    }

    fn show_place(&mut self, i: usize) {
        let sim = &mut self.nodes[i];
        sim.config.node.position = sim.moved.last().map(|(_, place)| *place).or(sim.home);
        let patch = SelfPatch::Position(sim.config.node.position);
        self.give(i, Input::Beacon(beacon::Input::Describe(patch)));
    }

    /// Puts something in the way between groups of nodes.
    fn obstruct(&mut self, index: usize, properties: Option<LinkProperties>, groups: Vec<Vec<usize>>) {
        let obstacle = match (self.scenario.faults[index].kind, &groups[..]) {
            (FaultKind::Partition, parts) => {
                let mut part_of = vec![0u8; self.nodes.len()];
                for (part, members) in parts.iter().enumerate() {
                    members.iter().for_each(|&i| part_of[i] = part as u8 + 1);
                }
                self.recorder.partitions.begin(self.now, index, groups, &self.nodes);
                Obstacle::Partition(part_of)
            }
            (_, [from, to]) => {
                let [from, to] = [from, to].map(|side| (0..self.nodes.len()).map(|i| side.contains(&i)).collect());
                match properties {
                    Some(properties) => Obstacle::Link(from, to, properties),
                    None => Obstacle::OneWay(from, to),
                }
            }
            _ => return,
        };
        self.network.begin(index, self.now, obstacle);
        self.check_idle_soon();
    }
}

/// Faults under way, by their place in the scenario.
pub type ActiveFaults = BTreeMap<usize, Active>;
