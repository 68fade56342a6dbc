//! The NodeSupervisor: one-for-one, ordered start, reverse stop, and what happens when a subsystem ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, ActorStatus, SpawnErr, SupervisionEvent};
use rand::SeedableRng;
use rand_pcg::Pcg32;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::actors::beacon::Beaconing;
use crate::actors::context::Context;
use crate::actors::discovery::Discovery;
use crate::actors::janitor::Janitor;
use crate::actors::metrics::Metrics;
use crate::actors::router::Routing;
use crate::actors::shell::{Failed, Pulse, Shell, Start, Subject};
use crate::actors::topology::Topology;
use crate::actors::transport::Transport;
use crate::actors::{Address, MailboxLevel};
use crate::limits::Limits;
use crate::messages::{BeaconMessage, DiscoveryMessage, Failing, Reply, Subsystem, TopologyMessage, TransportMessage};
use crate::proto::budget::{Backoff, RestartBudget, Verdict};
use crate::proto::event::Event;
use crate::proto::node::{Input, Part, after_restart};
use crate::proto::{beacon, link, topology};
use crate::time::Time;

/// How often the supervisor looks whether somebody is frozen.
const LOOK: Duration = Duration::from_millis(500);
/// How long a stopping subsystem may take before it is killed.
const GRACE: Duration = Duration::from_millis(300);

/// How an actor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    Panic,
    Error,
    Kill,
    Freeze,
    Stop,
}

impl ExitKind {
    pub fn label(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Error => "error",
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::Stop => "stop",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct LastExit {
    pub at: jiff::Timestamp,
    pub kind: ExitKind,
    pub text: String,
}

/// How a subsystem is doing.
#[derive(Clone, Debug)]
pub struct ActorReport {
    pub actor: Subsystem,
    pub state: &'static str,
    pub restarts: u64,
    /// Whether the present incarnation went on from a snapshot.
    pub warm: bool,
    pub last_exit: Option<LastExit>,
    pub handled: u64,
    pub mailbox: MailboxLevel,
    pub uptime: Duration,
}

/// Why a node has ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeExit {
    #[error("stopped")]
    Stopped,
    /// A subsystem that the node cannot do without crashed too often.
    #[error("the {subsystem:?} subsystem crashed {crashes} times within {window:?}; the last time: {text}")]
    SubsystemFailed { subsystem: Subsystem, crashes: usize, window: Duration, text: String },
    #[error("the {subsystem:?} subsystem did not start: {text}")]
    StartFailed { subsystem: Subsystem, text: String },
    /// A handler of a subsystem that the node cannot do without spins: it cannot be ended from within.
    #[error("the {subsystem:?} subsystem does not come back from a message and cannot be killed")]
    Stuck { subsystem: Subsystem },
    /// The last handle was dropped.
    #[error("dropped")]
    Dropped,
}

/// Builds an actor of the host's under the node's supervisor; called again after each crash.
pub type HostActor = Arc<dyn Fn(ActorCell) -> BoxFuture<'static, Result<ActorCell, SpawnErr>> + Send + Sync>;

pub enum SupervisorMessage {
    /// Stops a subsystem and starts it again, from its snapshot.
    Restart {
        subsystem: Subsystem,
        reply: Reply<()>,
    },
    /// Ends a subsystem at its next await.
    Kill {
        subsystem: Subsystem,
    },
    Fail {
        subsystem: Subsystem,
        failing: Failing,
    },
    Report(Reply<Vec<ActorReport>>),
    /// Takes an actor of the host's under supervision.
    Adopt {
        name: String,
        actor: HostActor,
        reply: Reply<Result<(), String>>,
    },
    /// Stops everything in order.
    Stop(Reply<()>),
    /// The last handle is gone.
    Drop,
    Look,
    StartAgain {
        child: Child,
        warm: bool,
        crashed_at: Time,
        cause: String,
    },
}

/// Somebody who is supervised.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Child {
    Own(Subsystem),
    Host(String),
}

struct Supervised {
    actor: Option<ActorCell>,
    pulse: Arc<Pulse>,
    budget: RestartBudget,
    restarts: u64,
    warm: bool,
    frozen: bool,
    given_up: bool,
    last_exit: Option<LastExit>,
    started: Time,
    factory: Option<HostActor>,
    waiting: Vec<Reply<()>>,
}

impl Supervised {
    fn new(factory: Option<HostActor>) -> Self {
        Self {
            actor: None,
            pulse: Arc::default(),
            budget: RestartBudget::new(Limits::RESTARTS, Limits::RESTART_WINDOW),
            restarts: 0,
            warm: false,
            frozen: false,
            given_up: false,
            last_exit: None,
            started: Time::ZERO,
            factory,
            waiting: Vec::new(),
        }
    }
}

pub struct NodeSupervisor;

pub struct SupervisorState {
    context: Context,
    children: BTreeMap<Child, Supervised>,
    ids: BTreeMap<ActorId, Child>,
    ended: watch::Sender<Option<NodeExit>>,
    degraded: watch::Sender<Vec<Subsystem>>,
    stopping: bool,
    rng: Pcg32,
}

impl Actor for NodeSupervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = (Context, watch::Sender<Option<NodeExit>>, watch::Sender<Vec<Subsystem>>);

    async fn pre_start(
        &self,
        me: ActorRef<SupervisorMessage>,
        (context, ended, degraded): Self::Arguments,
    ) -> Result<SupervisorState, ActorProcessingErr> {
        let rng = Pcg32::seed_from_u64(context.settings.topology.seed);
        let (children, ids) = (BTreeMap::new(), BTreeMap::new());
        let mut state = SupervisorState { context, children, ids, ended, degraded, stopping: false, rng };
        for subsystem in Subsystem::ALL {
            let child = Child::Own(subsystem);
            state.children.insert(child.clone(), Supervised::new(None));
            start(&me, &mut state, &child, false).await?;
        }
        me.send_interval(LOOK, || SupervisorMessage::Look);
        Ok(state)
    }

    async fn handle(
        &self,
        me: ActorRef<SupervisorMessage>,
        message: SupervisorMessage,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Restart { subsystem, reply } => restart(&me, state, subsystem, reply).await,
            SupervisorMessage::Kill { subsystem } => {
                if let Some(actor) = state.actor_of(subsystem) {
                    actor.kill();
                }
            }
            SupervisorMessage::Fail { subsystem, failing } => fail(&state.context, subsystem, failing),
            SupervisorMessage::Report(reply) => drop(reply.send(state.report())),
            SupervisorMessage::Adopt { name, actor, reply } => {
                let child = Child::Host(name);
                let fresh = !state.children.contains_key(&child);
                let result = match fresh {
                    true => {
                        state.children.insert(child.clone(), Supervised::new(Some(actor)));
                        start(&me, state, &child, false).await
                    }
                    false => Err("an actor of that name is supervised already".to_owned()),
                };
                if result.is_err() && fresh {
                    state.children.remove(&child);
                }
                let _ = reply.send(result);
            }
            SupervisorMessage::Stop(reply) => {
                stop_all(state, true).await;
                state.end(&me, NodeExit::Stopped);
                let _ = reply.send(());
            }
            SupervisorMessage::Drop => {
                stop_all(state, false).await;
                state.end(&me, NodeExit::Dropped);
            }
            SupervisorMessage::Look => {
                if let Some(subsystem) = look(state) {
                    state.end(&me, NodeExit::Stuck { subsystem });
                }
            }
            SupervisorMessage::StartAgain { child, warm, crashed_at, cause } => {
                start_again(&me, state, child, warm, crashed_at, cause).await;
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<SupervisorMessage>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, kind, text) = match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                let kind = if error.is::<Failed>() { ExitKind::Error } else { ExitKind::Panic };
                (cell, kind, error.to_string())
            }
            // A kill arrives as a termination whose reason is "killed".
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                let text = reason.unwrap_or_else(|| "stopped".into());
                let kind = if text == "killed" { ExitKind::Kill } else { ExitKind::Stop };
                (cell, kind, text)
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        let Some(child) = state.ids.remove(&cell.get_id()) else { return Ok(()) };
        if !state.stopping {
            ended(&me, state, child, kind, text).await;
        }
        Ok(())
    }
}

impl SupervisorState {
    fn actor_of(&self, subsystem: Subsystem) -> Option<&ActorCell> {
        self.children.get(&Child::Own(subsystem))?.actor.as_ref()
    }

    fn end(&mut self, me: &ActorRef<SupervisorMessage>, exit: NodeExit) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(exit);
            first
        });
        me.stop(None);
    }

    fn report(&self) -> Vec<ActorReport> {
        let now = self.context.now();
        let of = |subsystem: Subsystem| {
            let supervised = self.children.get(&Child::Own(subsystem))?;
            let running = supervised.actor.as_ref().is_some_and(|actor| actor.get_status() == ActorStatus::Running);
            let state = match (running, supervised.given_up) {
                (true, _) => "running",
                (false, true) => "stopped",
                (false, false) => "restarting",
            };
            Some(ActorReport {
                actor: subsystem,
                state,
                restarts: supervised.restarts,
                warm: supervised.warm,
                last_exit: supervised.last_exit.clone(),
                handled: supervised.pulse.handled.load(Ordering::Relaxed),
                mailbox: level(&self.context, subsystem),
                uptime: now.since(supervised.started),
            })
        };
        Subsystem::ALL.into_iter().filter_map(of).collect()
    }
}

async fn start(
    me: &ActorRef<SupervisorMessage>,
    state: &mut SupervisorState,
    child: &Child,
    warm: bool,
) -> Result<(), String> {
    let Some(supervised) = state.children.get_mut(child) else { return Ok(()) };
    let (cell, pulse) = (me.get_cell(), supervised.pulse.clone());
    let start = Start { context: state.context.clone(), warm, pulse };
    let spawned = match child {
        Child::Own(Subsystem::Metrics) => spawn::<Metrics>(start, cell).await,
        Child::Own(Subsystem::Transport) => spawn::<Transport>(start, cell).await,
        Child::Own(Subsystem::Discovery) => spawn::<Discovery>(start, cell).await,
        Child::Own(Subsystem::Beacon) => spawn::<Beaconing>(start, cell).await,
        Child::Own(Subsystem::Topology) => spawn::<Topology>(start, cell).await,
        Child::Own(Subsystem::Router) => spawn::<Routing>(start, cell).await,
        Child::Own(Subsystem::Janitor) => spawn::<Janitor>(start, cell).await,
        Child::Host(_) => match &supervised.factory {
            Some(factory) => factory(cell).await.map_err(|error| error.to_string()),
            None => return Ok(()),
        },
    };
    let actor = spawned?;
    state.ids.insert(actor.get_id(), child.clone());
    supervised.actor = Some(actor);
    supervised.started = state.context.now();
    supervised.warm = warm;
    supervised.frozen = false;
    Ok(())
}

async fn spawn<S: Subject>(start: Start, supervisor: ActorCell) -> Result<ActorCell, String> {
    let spawned = Actor::spawn_linked(None, Shell::<S>::new(), start, supervisor).await;
    spawned.map(|(actor, _)| actor.get_cell()).map_err(|error| error.to_string())
}

/// A child has ended: its budget says whether it starts again, and from what.
async fn ended(
    me: &ActorRef<SupervisorMessage>,
    state: &mut SupervisorState,
    child: Child,
    kind: ExitKind,
    text: String,
) {
    let now = state.context.now();
    let Some(supervised) = state.children.get_mut(&child) else { return };
    supervised.actor = None;
    let kind = if supervised.frozen { ExitKind::Freeze } else { kind };
    if let Child::Own(subsystem) = &child {
        unset(&state.context, *subsystem);
        tracing::warn!(actor = subsystem.label(), kind = kind.label(), text, "a subsystem ended");
    }
    supervised.last_exit = Some(LastExit { at: jiff::Timestamp::now(), kind, text: text.clone() });
    let asked = !supervised.waiting.is_empty();
    let verdict = if asked { Verdict::Warm } else { supervised.budget.fail(now) };
    let crashes = supervised.budget.recent();
    match (verdict, &child) {
        (Verdict::Escalate, Child::Own(subsystem)) if subsystem.is_critical() => {
            let (subsystem, window) = (*subsystem, Limits::RESTART_WINDOW);
            supervised.given_up = true;
            stop_all(state, true).await;
            state.end(me, NodeExit::SubsystemFailed { subsystem, crashes, window, text });
        }
        (Verdict::Escalate, _) => {
            supervised.given_up = true;
            if let Child::Own(subsystem) = child {
                state.degraded.send_modify(|degraded| degraded.push(subsystem));
            }
        }
        (verdict, _) => {
            let warm = verdict == Verdict::Warm;
            let cause = format!("{}: {text}", kind.label());
            // The first restart is at once; those that follow within the window wait.
            let backoff = Backoff { initial: Duration::from_millis(20), multiplier: 2.0, max: Duration::from_secs(1) };
            let wait = match crashes {
                0 | 1 => Duration::ZERO,
                n => backoff.jittered(n as u32 - 2, &mut state.rng),
            };
            if wait.is_zero() {
                start_again(me, state, child, warm, now, cause).await;
            } else {
                me.send_after(wait, move || SupervisorMessage::StartAgain { child, warm, crashed_at: now, cause });
            }
        }
    }
}

async fn start_again(
    me: &ActorRef<SupervisorMessage>,
    state: &mut SupervisorState,
    child: Child,
    warm: bool,
    crashed_at: Time,
    cause: String,
) {
    // Somebody may have asked for a restart while this one waited for its turn.
    let running = state.children.get(&child).is_some_and(|supervised| supervised.actor.is_some());
    if state.stopping || running {
        return;
    }
    if let Err(text) = start(me, state, &child, warm).await {
        // A failing start sends no supervision event: it is booked here as what it is, another crash.
        return Box::pin(ended(me, state, child, ExitKind::Error, text)).await;
    }
    let Some(supervised) = state.children.get_mut(&child) else { return };
    supervised.restarts += 1;
    for reply in supervised.waiting.drain(..) {
        let _ = reply.send(());
    }
    if let Child::Own(subsystem) = child {
        tell_the_others(&state.context, subsystem);
        let took = state.context.now().since(crashed_at);
        let actor = subsystem.label().to_owned();
        state.context.event(Event::ActorRestarted { actor, cause, warm, took });
    }
}

/// What the restarted subsystem must be told, and by whom.
fn tell_the_others(context: &Context, subsystem: Subsystem) {
    let part = match subsystem {
        Subsystem::Transport => Part::Links,
        Subsystem::Beacon => Part::Beacon,
        Subsystem::Topology => Part::Topology,
        Subsystem::Router => Part::Router,
        Subsystem::Metrics | Subsystem::Discovery | Subsystem::Janitor => return,
    };
    if subsystem == Subsystem::Transport && context.addresses.discovery.tell(DiscoveryMessage::Announce).is_err() {
        context.counters.drop_for("restarting");
    }
    after_restart(part).into_iter().for_each(|input| context.give(input));
}

async fn restart(
    me: &ActorRef<SupervisorMessage>,
    state: &mut SupervisorState,
    subsystem: Subsystem,
    reply: Reply<()>,
) {
    let child = Child::Own(subsystem);
    let Some(supervised) = state.children.get_mut(&child) else { return };
    supervised.waiting.push(reply);
    match &supervised.actor {
        Some(actor) => actor.stop(Some("asked to restart".into())),
        // It is down, perhaps for good: a restart that is asked for has the budget anew.
        None => {
            supervised.budget = RestartBudget::new(Limits::RESTARTS, Limits::RESTART_WINDOW);
            supervised.given_up = false;
            state.degraded.send_modify(|degraded| degraded.retain(|other| *other != subsystem));
            let now = state.context.now();
            start_again(me, state, child, true, now, "asked to restart".into()).await;
        }
    }
}

/// Kills who is frozen. Returns a critical subsystem that the kill did not reach: it spins.
fn look(state: &mut SupervisorState) -> Option<Subsystem> {
    let now = state.context.now();
    for (child, supervised) in &mut state.children {
        let busy_since = supervised.pulse.busy_since.load(Ordering::Relaxed);
        let Some(since) = busy_since.checked_sub(1).map(Time::from_micros) else { continue };
        let stuck = now.since(since);
        if stuck < Limits::HANDLER_DEADLINE {
            continue;
        }
        if let (Child::Own(subsystem), Some(actor)) = (child, &supervised.actor) {
            if supervised.frozen {
                if stuck > Limits::HANDLER_DEADLINE * 2 && subsystem.is_critical() {
                    return Some(*subsystem);
                }
                continue;
            }
            supervised.frozen = true;
            state.context.event(Event::ActorStuck { actor: subsystem.label().into(), since: stuck });
            actor.kill();
        }
    }
    None
}

/// Stops everybody in reverse order; in good order, every machine says goodbye first.
async fn stop_all(state: &mut SupervisorState, goodbye: bool) {
    state.stopping = true;
    if goodbye {
        let context = &state.context;
        let addresses = &context.addresses;
        context.give(Input::Beacon(beacon::Input::Leave));
        context.give(Input::Topology(topology::Input::Leave));
        // Who answers has said goodbye: only then are the connections closed. Who is down cannot say it.
        let _ = addresses.beacon.ask_within(GRACE, BeaconMessage::Description).await;
        let _ = addresses.topology.ask_within(GRACE, TopologyMessage::Why).await;
        context.give(Input::Links(link::Input::Leave));
        let _ = addresses.transport.ask_within(GRACE, TransportMessage::Links).await;
    }
    let hosts = state.children.keys().filter(|child| matches!(child, Child::Host(_))).cloned();
    let own = Subsystem::ALL.into_iter().rev().map(Child::Own);
    for child in hosts.collect::<Vec<_>>().into_iter().chain(own) {
        let Some(actor) = state.children.get_mut(&child).and_then(|supervised| supervised.actor.take()) else {
            continue;
        };
        if timeout(GRACE, actor.stop_and_wait(None, None)).await.is_err() {
            actor.kill();
        }
    }
    if goodbye {
        let _ = timeout(Limits::STOP * 4 / 5, state.context.transport.stop()).await;
    }
}

macro_rules! each {
    ($context:expr, $subsystem:expr, $address:ident => $do:expr) => {{
        let addresses = &$context.addresses;
        match $subsystem {
            Subsystem::Metrics => {
                let $address = &addresses.metrics;
                $do
            }
            Subsystem::Transport => {
                let $address = &addresses.transport;
                $do
            }
            Subsystem::Discovery => {
                let $address = &addresses.discovery;
                $do
            }
            Subsystem::Beacon => {
                let $address = &addresses.beacon;
                $do
            }
            Subsystem::Topology => {
                let $address = &addresses.topology;
                $do
            }
            Subsystem::Router => {
                let $address = &addresses.router;
                $do
            }
            Subsystem::Janitor => {
                let $address = &addresses.janitor;
                $do
            }
        }
    }};
}

fn unset(context: &Context, subsystem: Subsystem) {
    each!(context, subsystem, address => address.set(None));
}

fn level(context: &Context, subsystem: Subsystem) -> MailboxLevel {
    each!(context, subsystem, address => address.level())
}

fn fail(context: &Context, subsystem: Subsystem, failing: Failing) {
    let failed = each!(context, subsystem, address => Address::fail(address, failing));
    if failed.is_err() {
        context.counters.drop_for("restarting");
    }
}
