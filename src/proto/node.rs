//! Which effect of which machine is input of which: said once, for the node and for the simulator.
//!
//! The actors turn each [`Step`] into a message or an action; [`Node`] runs all machines in one place, for the
//! simulator, until nothing is left to do but what concerns the world.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, NodeName};
use crate::limits::Limits;
use crate::proto::beacon::{self, Beacon, Description, Scope};
use crate::proto::budget::{RestartBudget, Verdict};
use crate::proto::durable::{Durable, Record};
use crate::proto::event::Event;
use crate::proto::frame::Frame;
use crate::proto::link::{self, Beat, CloseReason, ConnId};
use crate::proto::packet::Command;
use crate::proto::retirement::{RetireError, Retirement};
use crate::proto::router::{self, Outcome, PublishError, Published};
use crate::proto::topology::{self, View};
use crate::time::{Time, earliest};

/// The machines of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Part {
    Links,
    Beacon,
    Topology,
    Router,
}

/// An input for one of the machines.
#[derive(Clone, Debug)]
pub enum Input {
    Links(link::Input),
    Beacon(beacon::Input),
    Topology(topology::Input),
    Router(router::Input),
}

/// What concerns the world outside the machines.
#[derive(Clone, Debug)]
pub enum Output {
    Dial {
        peer: NodeId,
        addresses: Vec<SocketAddr>,
    },
    /// On a connection, greeted or not.
    Send {
        conn: ConnId,
        frame: Frame,
    },
    SendBeat {
        conn: ConnId,
        beat: Beat,
    },
    Close {
        conn: ConnId,
        reason: CloseReason,
    },
    /// The link to a peer is this connection now.
    LinkUp {
        peer: NodeId,
        conn: ConnId,
        name: NodeName,
    },
    LinkDown {
        peer: NodeId,
    },
    /// Over the link to a peer, if it is up.
    SendTo {
        peer: NodeId,
        frame: Frame,
    },
    /// To who listens to one of these.
    Broadcast(Arc<Beacon>, Vec<Scope>),
    /// What to listen to from now on.
    Listen(BTreeSet<Scope>),
    /// Keep these, then say so with the ticket, if there is one.
    Persist {
        ticket: Option<u64>,
        records: Vec<Record>,
    },
    Published {
        request: u64,
        result: Result<Published, PublishError>,
    },
    Retired {
        request: u64,
        result: Result<Retirement, RetireError>,
    },
    Deliver(Command),
    Concluded {
        request: u64,
        outcome: Outcome,
    },
    /// For whoever reads the node's place in the tree.
    View(Arc<View>),
    Event(Event),
    Dropped(&'static str),
    Swept(Part, usize),
}

/// What an effect leads to.
#[derive(Clone, Debug)]
pub enum Step {
    To(Input),
    Out(Output),
}

fn to_links(input: link::Input) -> Step {
    Step::To(Input::Links(input))
}

fn to_topology(input: topology::Input) -> Step {
    Step::To(Input::Topology(input))
}

/// What effects of the link machine lead to.
pub fn after_links(effect: link::Effect, then: &mut impl FnMut(Step)) {
    use link::Effect::*;
    match effect {
        Dial { peer, addresses } => then(Step::Out(Output::Dial { peer, addresses })),
        Send { conn, frame } => then(Step::Out(Output::Send { conn, frame })),
        SendBeat { conn, beat } => then(Step::Out(Output::SendBeat { conn, beat })),
        Close { conn, reason } => then(Step::Out(Output::Close { conn, reason })),
        Up { peer, conn, hello } => {
            then(Step::Out(Output::LinkUp { peer, conn, name: hello.name.clone() }));
            then(to_topology(topology::Input::LinkUp(peer, hello.name)));
            then(Step::To(Input::Beacon(beacon::Input::LinkUp(peer))));
        }
        Down { peer, reason } => {
            then(Step::Out(Output::LinkDown { peer }));
            then(to_topology(topology::Input::LinkDown(peer, reason)));
        }
        Control { peer, frame } => match frame {
            Frame::Topology(frame) => then(to_topology(topology::Input::Frame(peer, frame))),
            Frame::Beacon(beacon) => then(Step::To(Input::Beacon(beacon::Input::Heard(beacon)))),
            Frame::Router(frame) => then(Step::To(Input::Router(router::Input::Frame { from: peer, frame }))),
            Frame::Hello(_) => {}
        },
        Unreachable { peer, reason } => then(to_topology(topology::Input::Unreachable(peer, reason))),
        Quality(peer, share) => then(to_topology(topology::Input::Quality(peer, share))),
        Links(up) => then(to_topology(topology::Input::Links(up))),
        Dropped(why) => then(Step::Out(Output::Dropped(why))),
    }
}

/// What effects of the beacon machine lead to.
pub fn after_beacon(effect: beacon::Effect, then: &mut impl FnMut(Step)) {
    use beacon::Effect::*;
    match effect {
        Broadcast(beacon, scopes) => then(Step::Out(Output::Broadcast(beacon, scopes))),
        Listen(scopes) => then(Step::Out(Output::Listen(scopes))),
        SendTo(peer, beacon) => then(Step::Out(Output::SendTo { peer, frame: Frame::Beacon(beacon) })),
        Observed(observation) => then(to_topology(topology::Input::Observed(observation))),
        Replayed(beacons) => {
            let located = beacons.iter().map(|beacon| (beacon.id, beacon.addresses.clone())).collect();
            then(to_links(link::Input::Located(located)));
            then(to_topology(topology::Input::Heard(beacons)));
        }
        Located(peer, addresses) => {
            then(to_links(link::Input::Located(vec![(peer, addresses)])));
        }
        Described(description) => then(to_topology(topology::Input::Described(description))),
        Dropped(why) => then(Step::Out(Output::Dropped(why))),
        Swept(count) => then(Step::Out(Output::Swept(Part::Beacon, count))),
    }
}

/// What effects of the topology machine lead to.
pub fn after_topology(effect: topology::Effect, then: &mut impl FnMut(Step)) {
    use topology::Effect::*;
    match effect {
        Send(peer, frame) => then(Step::Out(Output::SendTo { peer, frame: Frame::Topology(frame) })),
        View(view) => {
            then(Step::Out(Output::View(view.clone())));
            then(to_links(link::Input::Placed(view.clone())));
            then(Step::To(Input::Beacon(beacon::Input::Placed(view.clone()))));
            then(Step::To(Input::Router(router::Input::Placed(view))));
        }
        Explained(command, why) => then(Step::To(Input::Router(router::Input::Explained { command, why }))),
        Event(event) => then(Step::Out(Output::Event(event))),
        Dropped(why) => then(Step::Out(Output::Dropped(why))),
    }
}

/// What effects of the router machine lead to.
pub fn after_router(effect: router::Effect, then: &mut impl FnMut(Step)) {
    use router::Effect::*;
    match effect {
        Send { peer, frame } => then(Step::Out(Output::SendTo { peer, frame: Frame::Router(frame) })),
        Persist { ticket, records } => then(Step::Out(Output::Persist { ticket, records })),
        Retired { request, result } => then(Step::Out(Output::Retired { request, result })),
        Account(account) => then(to_topology(topology::Input::Account(account))),
        Published { request, result } => then(Step::Out(Output::Published { request, result })),
        Deliver(command) => then(Step::Out(Output::Deliver(command))),
        Explain(command) => then(to_topology(topology::Input::Explain(command))),
        Concluded { request, outcome } => then(Step::Out(Output::Concluded { request, outcome })),
        Stale(child) => then(to_topology(topology::Input::Stale(child))),
        Event(event) => then(Step::Out(Output::Event(event))),
        Dropped(why) => then(Step::Out(Output::Dropped(why))),
        Swept(count) => then(Step::Out(Output::Swept(Part::Router, count))),
    }
}

/// What a machine that was restarted must be told by the others.
pub fn after_restart(part: Part) -> Vec<Input> {
    let replay_view = Input::Topology(topology::Input::Replay);
    match part {
        Part::Topology => vec![Input::Beacon(beacon::Input::Replay), Input::Links(link::Input::Replay), replay_view],
        Part::Links => vec![replay_view, Input::Beacon(beacon::Input::Replay), Input::Links(link::Input::Replay)],
        Part::Beacon | Part::Router => vec![replay_view],
    }
}

/// Everything the machines of one node are configured with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub links: link::Settings,
    pub beacon: beacon::Settings,
    pub topology: topology::Settings,
    pub router: router::Settings,
    pub description: Description,
}

impl Settings {
    pub fn me(&self) -> NodeId {
        self.topology.me
    }

    pub fn name(&self) -> &NodeName {
        &self.topology.name
    }

    /// The view that a node starts with.
    pub fn first_view(&self) -> Arc<View> {
        let settings = &self.topology;
        let tenure = topology::Tenure { incarnation: settings.incarnation, counter: 0 };
        let mut view = View::alone(settings.me, settings.name.clone(), settings.level, tenure, settings.max_children);
        view.account = settings.account;
        Arc::new(view)
    }
}

/// All machines of a node, stepped together.
#[derive(Debug)]
pub struct Node {
    pub links: link::Machine,
    pub beacon: beacon::Machine,
    pub topology: topology::Machine,
    pub router: router::Machine,
    settings: Settings,
    budgets: BTreeMap<Part, RestartBudget>,
    queue: VecDeque<Input>,
    /// What the machines' effects are gathered in.
    effects: Effects,
}

/// Empty but for their room, between steps.
#[derive(Debug, Default)]
struct Effects {
    links: Vec<link::Effect>,
    beacon: Vec<beacon::Effect>,
    topology: Vec<topology::Effect>,
    router: Vec<router::Effect>,
}

impl Node {
    pub fn new(now: Time, settings: Settings, durable: Durable) -> Self {
        let view = settings.first_view();
        let description = settings.description.clone();
        Self {
            links: link::Machine::new(now, settings.links.clone(), view.clone()),
            beacon: beacon::Machine::new(now, settings.beacon.clone(), description.clone(), view.clone()),
            topology: topology::Machine::new(
                now,
                topology::Settings {
                    fence: durable.fence,
                    known_root: durable.known_root,
                    ..settings.topology.clone()
                },
                Arc::new(description),
            ),
            router: router::Machine::new(now, settings.router.clone(), view, durable, None),
            settings,
            budgets: BTreeMap::new(),
            queue: VecDeque::new(),
            effects: Effects::default(),
        }
    }

    /// Gives one input to its machine and follows what it leads to; what concerns the world goes to `out`.
    pub fn step(&mut self, now: Time, input: Input, out: &mut Vec<Output>) {
        self.queue.push_back(input);
        while let Some(input) = self.queue.pop_front() {
            let (queue, effects) = (&mut self.queue, &mut self.effects);
            let mut then = |step: Step| match step {
                Step::To(input) => queue.push_back(input),
                Step::Out(output) => out.push(output),
            };
            match input {
                Input::Links(input) => {
                    self.links.step(now, input, &mut effects.links);
                    effects.links.drain(..).for_each(|effect| after_links(effect, &mut then));
                }
                Input::Beacon(input) => {
                    self.beacon.step(now, input, &mut effects.beacon);
                    effects.beacon.drain(..).for_each(|effect| after_beacon(effect, &mut then));
                }
                Input::Topology(input) => {
                    self.topology.step(now, input, &mut effects.topology);
                    effects.topology.drain(..).for_each(|effect| after_topology(effect, &mut then));
                }
                Input::Router(input) => {
                    self.router.step(now, input, &mut effects.router);
                    effects.router.drain(..).for_each(|effect| after_router(effect, &mut then));
                }
            }
        }
    }

    /// Lets every machine whose deadline has come do what is due.
    pub fn tick(&mut self, now: Time, out: &mut Vec<Output>) {
        let mut inputs = Vec::new();
        let mut then = |step: Step| match step {
            Step::To(input) => inputs.push(input),
            Step::Out(output) => out.push(output),
        };
        let effects = &mut self.effects;
        let due = |deadline: Option<Time>| deadline.is_some_and(|at| at <= now);
        if due(self.links.deadline()) {
            self.links.tick(now, &mut effects.links);
            effects.links.drain(..).for_each(|effect| after_links(effect, &mut then));
        }
        if due(self.beacon.deadline()) {
            self.beacon.tick(now, &mut effects.beacon);
            effects.beacon.drain(..).for_each(|effect| after_beacon(effect, &mut then));
        }
        if due(self.topology.deadline()) {
            self.topology.tick(now, &mut effects.topology);
            effects.topology.drain(..).for_each(|effect| after_topology(effect, &mut then));
        }
        if due(self.router.deadline()) {
            self.router.tick(now, &mut effects.router);
            effects.router.drain(..).for_each(|effect| after_router(effect, &mut then));
        }
        for input in inputs {
            self.step(now, input, out);
        }
    }

    pub fn deadline(&self) -> Option<Time> {
        let lower = earliest(self.links.deadline(), self.beacon.deadline());
        earliest(lower, earliest(self.topology.deadline(), self.router.deadline()))
    }

    pub fn view(&self) -> &Arc<View> {
        self.topology.view()
    }

    /// Crashes one machine and restarts it as its supervisor would, the first time in a while warm, else cold. (Where the
    /// supervisor would stop the node it goes on; a node that stops is a crash of its own.)
    pub fn crash(&mut self, now: Time, part: Part, durable: &Durable, out: &mut Vec<Output>) {
        let budget =
            self.budgets.entry(part).or_insert_with(|| RestartBudget::new(Limits::RESTARTS, Limits::RESTART_WINDOW));
        let warm = budget.fail(now) == Verdict::Warm;
        let (settings, view) = (&self.settings, self.view().clone());
        match part {
            Part::Links if warm => self.links = link::Machine::recover(now, &self.links),
            Part::Links => {
                let existing = self.links.conns();
                self.links = link::Machine::new(now, settings.links.clone(), view);
                self.step(now, Input::Links(link::Input::Resume(existing)), out);
            }
            Part::Beacon if warm => self.beacon = beacon::Machine::recover(now, &self.beacon),
            Part::Beacon => {
                let description = Description::clone(self.beacon.description());
                self.beacon = beacon::Machine::new(now, settings.beacon.clone(), description, view);
            }
            Part::Topology if warm => self.topology = topology::Machine::recover(now, &self.topology),
            Part::Topology => {
                let description = Arc::new(settings.description.clone());
                self.topology = topology::Machine::new(now, settings.topology.knowing(&view), description);
            }
            Part::Router => {
                let kept = warm.then(|| self.router.snapshot());
                let (settings, first_view) = (settings.router.clone(), settings.first_view());
                self.router = router::Machine::new(now, settings, first_view, durable.clone(), kept.as_ref());
            }
        }
        for input in after_restart(part) {
            self.step(now, input, out);
        }
    }
}
