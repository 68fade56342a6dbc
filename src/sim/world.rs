//! The run itself: a queue of happenings, the nodes, and what each output of a node leads to.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;

use crate::config::{Identity, Problems};
use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::account::AccountId;
use crate::proto::aggregate::Source;
use crate::proto::beacon::{self, Beacon, Scope};
use crate::proto::durable::Durable;
use crate::proto::link::{self, Beat, ConnId};
use crate::proto::node::{Input, Node, Output};
use crate::proto::router;
use crate::proto::sample::Telemetry;
use crate::proto::topology::Tenure;
use crate::sim::generate::blueprints;
use crate::sim::invariants::Invariants;
use crate::sim::network::Network;
use crate::sim::node::{SimNode, sim_node};
use crate::sim::recorder::Recorder;
use crate::sim::report::Report;
use crate::sim::scenario::{Scenario, Text};
use crate::sim::target::TargetSpec;
use crate::sim::truth::{TAG, Truth};
use crate::time::Time;

/// Changes a node's outputs before they take effect: how tests see that an invariant would notice.
pub type Doctor = Box<dyn FnMut(Time, usize, &mut Vec<Output>)>;

/// Something that happens at an instant.
#[derive(Clone, Debug)]
pub enum Happening {
    Tick(usize),
    /// A dial that began then tries again.
    Dials {
        from: usize,
        incarnation: u64,
        to: NodeId,
        began: Time,
    },
    Dialled {
        from: usize,
        incarnation: u64,
        to: NodeId,
        fails: Time,
    },
    DialFailed {
        from: usize,
        incarnation: u64,
        to: NodeId,
    },
    /// The head of a pipe is due.
    Deliver {
        conn: u64,
        side: usize,
    },
    Beat {
        to: usize,
        conn: ConnId,
        beat: Beat,
    },
    Closed {
        to: usize,
        conn: ConnId,
        reason: String,
    },
    /// A connection whose far end may have vanished.
    IdleCheck {
        conn: ConnId,
    },
    Heard {
        to: usize,
        incarnation: u64,
        beacon: Arc<Beacon>,
    },
    /// A write to the disk has ended.
    Synced {
        node: usize,
        incarnation: u64,
    },
    Publish(usize),
    FaultBegins(usize),
    FaultEnds(usize),
    /// It is time for another node to crash, for a fault of that place in the scenario.
    Churn(usize),
    /// Churn lets go of a node.
    Back(usize),
    Command(usize),
    Second,
}

impl Happening {
    /// The node that must be awake for it.
    fn concerns(&self) -> Option<usize> {
        match self {
            Self::Tick(i) | Self::Synced { node: i, .. } => Some(*i),
            Self::Dialled { from, .. } | Self::DialFailed { from, .. } => Some(*from),
            Self::Beat { to, .. } | Self::Closed { to, .. } | Self::Heard { to, .. } => Some(*to),
            _ => None,
        }
    }
}

struct Entry {
    at: Time,
    order: u64,
    happening: Happening,
}

impl Entry {
    /// At one instant faults end before anything else happens, and what was planned first happens first.
    fn turn(&self) -> (Time, bool, u64) {
        (self.at, !matches!(self.happening, Happening::FaultEnds(_)), self.order)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.turn() == other.turn()
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.turn().cmp(&other.turn())
    }
}

/// A mesh under virtual time.
pub struct World {
    pub(super) now: Time,
    pub(super) scenario: Scenario,
    pub(super) nodes: Vec<SimNode>,
    pub(super) network: Network,
    pub(super) truth: Truth,
    pub(super) invariants: Invariants,
    pub(super) recorder: Recorder,
    pub(super) rng: Pcg32,
    pub(super) labels: Vec<String>,
    queue: BinaryHeap<Reverse<Entry>>,
    order: u64,
    pub(super) overlay: Vec<usize>,
    /// Who listens to each scope.
    pub(super) listeners: BTreeMap<Scope, BTreeSet<usize>>,
    pub(super) indices: Rc<BTreeMap<NodeId, usize>>,
    doctor: Option<Doctor>,
    pub(super) scratch: Vec<u8>,
    /// What outputs are gathered in, empty between steps.
    outputs: Vec<Output>,
    seed: u64,
    over: bool,
    /// Returns of churned nodes that are still to come.
    pub(super) away: usize,
}

impl World {
    /// Builds the mesh of a scenario, checked; `nodes` scales it, `seed` replaces its seed.
    pub fn new(mut scenario: Scenario, text: &Text, nodes: Option<usize>, seed: Option<u64>) -> Result<Self, Problems> {
        scenario.check(text)?;
        let seed = seed.unwrap_or(scenario.seed);
        let mut rng = Pcg32::seed_from_u64(seed);
        let plans = blueprints(&scenario, text, nodes, &mut rng)?;
        let labels = plans[0].config.topology.levels.labels().to_vec();
        let bootstrap = scenario.mesh.bootstrap.as_integer().and_then(|n| usize::try_from(n).ok()).unwrap_or(3);
        let drift = scenario.mesh.drift.as_float().unwrap_or(0.0);
        let indices: Rc<BTreeMap<_, _>> = Rc::new(plans.iter().enumerate().map(|(i, plan)| (plan.id, i)).collect());
        let ids: Vec<_> = plans.iter().map(|plan| plan.id).collect();
        let mut nodes = Vec::new();
        for (i, plan) in plans.into_iter().enumerate() {
            let known = pick_others(&ids, i, bootstrap, &mut rng);
            nodes.push(sim_node(plan, drift, i, known, indices.clone(), &mut rng));
        }
        if let Some(chaos) = &scenario.chaos {
            let names: Vec<_> = nodes.iter().map(|node| node.name.to_string()).collect();
            let places: Vec<_> = nodes.iter().filter_map(|node| node.home).collect();
            let (faults, commands) = chaos.draw(scenario.duration.0, &names, &places, &mut rng);
            scenario.faults.extend(faults);
            scenario.commands.extend(commands);
        }
        let recorder = Recorder::new(nodes.len());
        let overrides = scenario.link_overrides.iter().map(|over| {
            let mut members = |spec: &TargetSpec| {
                let chosen = spec.resolve(&nodes, &labels, &mut rng);
                (0..nodes.len()).map(|i| chosen.contains(&i)).collect::<Vec<_>>()
            };
            (members(&over.from), members(&over.to), over.properties())
        });
        let overrides = overrides.collect();
        let mut world = Self {
            now: Time::ZERO,
            network: Network::new(&scenario.links, overrides),
            scenario,
            overlay: (0..nodes.len()).collect(),
            listeners: BTreeMap::new(),
            nodes,
            truth: Truth::default(),
            invariants: Invariants::default(),
            recorder,
            rng,
            labels,
            queue: BinaryHeap::new(),
            order: 0,
            indices,
            doctor: None,
            scratch: Vec::new(),
            outputs: Vec::new(),
            seed,
            over: false,
            away: 0,
        };
        world.check_targets(text)?;
        world.schedule();
        Ok(world)
    }

    /// Lets `doctor` change every output of every node.
    pub fn with_doctor(mut self, doctor: Doctor) -> Self {
        self.doctor = Some(doctor);
        self
    }

    /// Runs to the end and reports.
    pub fn run(mut self) -> Report {
        let started = std::time::Instant::now();
        let duration = Time::ZERO + self.scenario.duration.0;
        let latest = duration + self.scenario.settle.0;
        while let Some(Reverse(entry)) = self.queue.pop() {
            if entry.at > duration && !self.over {
                self.over = true;
                self.end_faults();
            }
            if entry.at > latest || (self.over && self.recorder.settled_since.is_some()) {
                break;
            }
            self.now = entry.at;
            self.happen(entry.happening);
        }
        let seed = self.seed;
        self.finish(started.elapsed(), seed)
    }

    pub(super) fn at(&mut self, at: Time, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Entry { at: at.max(self.now), order: self.order, happening }));
    }

    fn schedule(&mut self) {
        let faults: Vec<_> = self.scenario.faults.iter().map(|fault| fault.at.0).collect();
        for (i, at) in faults.into_iter().enumerate() {
            self.at(Time::ZERO + at, Happening::FaultBegins(i));
        }
        let commands: Vec<_> = self.scenario.commands.iter().map(|command| command.at.0).collect();
        for (i, at) in commands.into_iter().enumerate() {
            self.at(Time::ZERO + at, Happening::Command(i));
        }
        let lowest = self.nodes.iter().map(|node| node.level).min();
        for i in 0..self.nodes.len() {
            self.boot(i);
            if Some(self.nodes[i].level) == lowest {
                let phase = self.scenario.telemetry.interval.0.mul_f64(self.rng.random_range(0.0..1.0));
                self.at(Time::ZERO + phase, Happening::Publish(i));
            }
        }
        self.at(Time::ZERO + Duration::from_secs(1), Happening::Second);
    }

    /// Starts a node's process: a new incarnation, on the disk it has.
    pub(super) fn boot(&mut self, i: usize) {
        let now = self.now;
        let sim = &mut self.nodes[i];
        sim.incarnation += 1;
        (sim.started, sim.jumped) = (now, Duration::ZERO);
        let account = sim.disk.account.as_ref().map_or(AccountId([0; 16]), |account| account.id);
        let seed = self.rng.random();
        let identity = Identity { id: sim.id, name: sim.name.clone(), incarnation: sim.incarnation, account, seed };
        let node = Node::new(sim.local(now), sim.config.settings(&identity), sim.disk.clone());
        sim.shown = Some(node.view().clone());
        sim.node = Some(node);
        sim.tick_at = None;
        sim.sweep_at = sim.local(now) + Limits::SWEEP;
        sim.overlay = self.overlay.len();
        self.overlay.push(sim.overlay);
        self.announce(i);
        self.recorder.view_changed(now, &self.nodes, i);
        self.rearm(i);
    }

    /// Tells a node's links whom they may dial.
    pub(super) fn announce(&mut self, i: usize) {
        let sim = &self.nodes[i];
        for known in [sim.bootstrap.clone(), sim.remembered.clone()] {
            let known = known.into_iter().map(|peer| (peer, Vec::new())).collect();
            self.step(i, Input::Links(link::Input::Known(known)));
        }
    }

    /// Ends a node's process without a word.
    pub(super) fn kill(&mut self, i: usize) {
        let now = self.now;
        self.listen(i, BTreeSet::new());
        self.tear(i);
        let sim = &mut self.nodes[i];
        sim.remember();
        sim.node = None;
        sim.shown = None;
        sim.tick_at = None;
        sim.last_tenure = Tenure::default();
        sim.died_at = Some(now);
        sim.deferred.clear();
        if !sim.keeps_disk {
            let journal = self.rng.random();
            let account = sim.disk.account.is_some().then(|| AccountId(self.rng.random()));
            sim.disk = Durable::new(journal, account);
        }
        sim.last_fence = sim.disk.fence;
        let dead: Vec<_> = self
            .network
            .conns
            .iter()
            .flat_map(|(&index, conn)| {
                (0..2).filter(move |&side| conn.ends[side].node == i).map(move |side| ConnId(index * 2 + side as u64))
            })
            .collect();
        for end in dead {
            self.network.close_end(end);
            self.at(now + Limits::CONNECTION_SILENCE, Happening::IdleCheck { conn: ConnId(end.0 ^ 1) });
        }
        self.recorder.view_changed(now, &self.nodes, i);
    }

    pub(super) fn happen(&mut self, happening: Happening) {
        // A frozen node takes things up when it thaws.
        if let Some(i) = happening.concerns()
            && self.nodes[i].paused > 0
            && self.nodes[i].is_up()
        {
            return self.nodes[i].deferred.push(happening);
        }
        match happening {
            Happening::Tick(i) => self.tick(i),
            Happening::Dials { from, incarnation, to, began } => self.dials(from, incarnation, to, began),
            Happening::Dialled { from, incarnation, to, fails } => self.dialled(from, incarnation, to, fails),
            Happening::DialFailed { from, incarnation, to } => {
                if self.nodes[from].incarnation == incarnation {
                    let error = "timed out".to_owned();
                    self.give(from, Input::Links(link::Input::DialFailed { peer: to, error }));
                }
            }
            Happening::Deliver { conn, side } => self.deliver(conn, side),
            Happening::Beat { to, conn, beat } => {
                if self.is_open(conn) {
                    self.give(to, Input::Links(link::Input::Beat { conn, beat }));
                }
            }
            Happening::Closed { to, conn, reason } => {
                if self.is_open(conn) {
                    self.network.close_end(conn);
                    self.give(to, Input::Links(link::Input::Closed { conn, reason }));
                }
            }
            Happening::IdleCheck { conn } => self.idle_check(conn),
            Happening::Heard { to, incarnation, beacon } => {
                if self.nodes[to].incarnation == incarnation {
                    self.give(to, Input::Beacon(beacon::Input::Heard(beacon)));
                }
            }
            Happening::Synced { node, incarnation } => self.synced(node, incarnation),
            Happening::Publish(i) => self.publish(i),
            Happening::FaultBegins(i) => self.fault_begins(i),
            Happening::FaultEnds(i) => self.fault_ends(i),
            Happening::Churn(i) => self.churned(i),
            Happening::Back(i) => self.comes_back(i),
            Happening::Command(i) => self.command(i),
            Happening::Second => self.second(),
        }
    }

    pub(super) fn is_open(&mut self, id: ConnId) -> bool {
        self.network.conn(id).is_some_and(|(conn, side)| conn.ends[side].open)
    }

    fn tick(&mut self, i: usize) {
        if self.nodes[i].tick_at.is_none_or(|at| at > self.now) {
            return;
        }
        self.nodes[i].tick_at = None;
        let (now, sim) = (self.now, &mut self.nodes[i]);
        let local = sim.local(now);
        let mut out = std::mem::take(&mut self.outputs);
        if let Some(node) = &mut sim.node {
            node.tick(local, &mut out);
            if local >= sim.sweep_at {
                sim.sweep_at = local + Limits::SWEEP;
                node.step(local, Input::Beacon(beacon::Input::Sweep), &mut out);
                node.step(local, Input::Router(router::Input::Sweep), &mut out);
            }
        }
        self.follow(i, out);
        self.rearm(i);
    }

    pub(super) fn give(&mut self, i: usize, input: Input) {
        self.step(i, input);
        self.rearm(i);
    }

    pub(super) fn step(&mut self, i: usize, input: Input) {
        let (now, sim) = (self.now, &mut self.nodes[i]);
        let local = sim.local(now);
        let mut out = std::mem::take(&mut self.outputs);
        if let Some(node) = &mut sim.node {
            node.step(local, input, &mut out);
        }
        self.follow(i, out);
    }

    pub(super) fn rearm(&mut self, i: usize) {
        let sim = &mut self.nodes[i];
        let Some(node) = &sim.node else { return };
        let deadline = node.deadline().map_or(sim.sweep_at, |deadline| deadline.min(sim.sweep_at));
        let at = sim.instant(deadline).max(self.now);
        if sim.tick_at.is_none_or(|scheduled| at < scheduled) {
            sim.tick_at = Some(at);
            self.at(at, Happening::Tick(i));
        }
    }

    pub(super) fn follow(&mut self, i: usize, mut out: Vec<Output>) {
        if let Some(doctor) = &mut self.doctor {
            doctor(self.now, i, &mut out);
        }
        for output in out.drain(..) {
            self.act(i, output);
        }
        self.outputs = out;
    }

    fn act(&mut self, i: usize, output: Output) {
        match output {
            Output::Dial { peer, .. } => self.dial(i, peer),
            Output::Send { conn, frame } => self.send(i, conn, frame),
            Output::SendTo { peer, frame } => {
                let (at, node) = (self.now.as_secs_f64(), &self.nodes[i].name);
                tracing::trace!(at, %node, to = %peer.short(), ?frame, "sends");
                let conn = self.nodes[i].node.as_ref().and_then(|node| node.links.conn_of(&peer));
                match conn {
                    Some(conn) => self.send(i, conn, frame),
                    None => self.recorder.dropped("no_link"),
                }
            }
            Output::SendBeat { conn, beat } => self.send_beat(i, conn, beat),
            Output::Close { conn, reason } => self.close(conn, reason),
            Output::LinkUp { peer, .. } => self.join_overlay(i, peer),
            Output::LinkDown { .. } => {}
            Output::Broadcast(beacon, scopes) => self.broadcast(i, &beacon, &scopes),
            Output::Listen(scopes) => self.listen(i, scopes),
            Output::Persist { ticket, records } => self.persist(i, ticket, records),
            Output::Published { request, result } => match result {
                Ok(published) => {
                    let router::SampleId { origin, journal, sequence } = published.sample;
                    self.truth.acknowledged(i, request, Source { origin, journal }, sequence);
                }
                Err(_) => self.truth.refused(i, request),
            },
            Output::Deliver(command) => self.deliver_command(i, &command),
            Output::Concluded { outcome, .. } => self.note_conclusion(&outcome),
            Output::View(view) => {
                self.nodes[i].shown = Some(view.clone());
                self.invariants.check_view(self.now, &self.nodes, i);
                (self.nodes[i].last_tenure, self.nodes[i].last_level) = (view.tenure, view.effective_level);
                self.nodes[i].last_fence = view.fence;
                self.recorder.view_changed(self.now, &self.nodes, i);
            }
            Output::Event(event) => {
                tracing::debug!(at = self.now.as_secs_f64(), node = %self.nodes[i].name, ?event, "event");
                self.recorder.hash(self.now, &self.nodes[i].name, event.label());
                self.recorder.event(self.now, &self.nodes, &self.network, i, &event);
            }
            Output::Dropped(why) => self.recorder.dropped(why),
            Output::Retired { .. } | Output::Swept(..) => {}
        }
    }

    fn publish(&mut self, i: usize) {
        if self.over {
            return;
        }
        let interval = self.scenario.telemetry.interval.0;
        self.at(self.now + interval, Happening::Publish(i));
        if !self.nodes[i].is_up() || self.nodes[i].paused > 0 {
            return;
        }
        let tag = f64::from(self.rng.random_range(1u32..1 << 30));
        let mut telemetry = Telemetry::new().metric(TAG, tag).condition(self.nodes[i].condition);
        for n in 0..self.scenario.telemetry.metrics {
            telemetry = telemetry.metric(format!("metric-{n}"), self.rng.random_range(0.0..100.0));
        }
        self.nodes[i].requests += 1;
        let request = self.nodes[i].requests;
        self.truth.published(i, request, tag);
        self.give(i, Input::Router(router::Input::Publish { request, telemetry }));
    }

    fn second(&mut self) {
        self.at(self.now + Duration::from_secs(1), Happening::Second);
        for i in 0..self.nodes.len() {
            let Some(node) = &self.nodes[i].node else { continue };
            let tables = [
                ("connections", node.links.connections(), Limits::CONNECTIONS + Limits::UNGREETED),
                ("neighbours", node.beacon.neighbours().len(), Limits::NEIGHBOURS),
                ("descendants", node.view().descendants.len(), Limits::DESCENDANTS),
                ("other claims", node.topology.other_claims(), Limits::DESCENDANTS),
                ("relayed units", node.router.relayed_units(), Limits::RELAY_UNITS),
                ("held commands", node.router.held_commands(), Limits::COMMANDS),
                ("outbox bytes", node.router.durable().outbox.bytes(), self.nodes[i].config.telemetry.outbox_bytes),
            ];
            let name = self.nodes[i].name.clone();
            self.invariants.check_bounds(self.now, name.as_str(), &tables);
        }
        self.keep_alive();
        self.recorder.second(self.now);
        self.recorder.partitions.second(self.now, &self.nodes);
        if self.over && self.recorder.settled_since.is_none() && self.is_settled() {
            self.recorder.settled_since = Some(self.now);
        }
    }
}

fn pick_others(ids: &[NodeId], me: usize, most: usize, rng: &mut Pcg32) -> Vec<NodeId> {
    let most = most.min(ids.len() - 1);
    let mut chosen = Vec::new();
    while chosen.len() < most {
        let other = rng.random_range(0..ids.len());
        if other != me && !chosen.contains(&ids[other]) {
            chosen.push(ids[other]);
        }
    }
    chosen
}
