//! The shell around every subsystem: takes a message, lets the subject step, arms one timer, keeps a snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::task::JoinHandle;
use tokio::time::sleep_until;

use crate::actors::address::{Address, Envelope};
use crate::actors::context::Context;
use crate::messages::{Failing, Subsystem};
use crate::time::Time;

/// How often a snapshot is kept at most, unless a decision demands it.
const SNAPSHOT: Duration = Duration::from_millis(100);

/// What is in an envelope.
pub enum Letter<M> {
    Do(M),
    /// The subject's deadline has come.
    Tick,
    Fail(Failing),
}

/// What a shell runs.
pub trait Subject: Sized + Send + 'static {
    type Message: Send + 'static;
    const SUBSYSTEM: Subsystem;

    /// Builds the subject: from its snapshot if `warm`, else from nothing. `me` supervises what it spawns.
    fn start(context: &Context, me: &ActorCell, warm: bool) -> impl Future<Output = Result<Self, String>> + Send;
    fn address(context: &Context) -> &Address<Self::Message>;
    fn handle(&mut self, now: Time, message: Self::Message);
    fn tick(&mut self, _now: Time) {}
    fn deadline(&self) -> Option<Time> {
        None
    }
    /// Keeps what a warm restart goes on from.
    fn save(&mut self) {}
    /// Whether something was decided that a restart must not forget.
    fn must_save(&self) -> bool {
        false
    }
    /// An actor that the subject spawned has ended.
    fn child_ended(&mut self, _now: Time, _child: ActorId, _reason: &str) {}
}

/// How a subsystem is doing, written by its shell, read by the supervisor.
#[derive(Debug, Default)]
pub struct Pulse {
    pub handled: AtomicU64,
    /// Microseconds of node time at which the present message was taken up, plus one; 0 between messages.
    pub busy_since: AtomicU64,
}

/// An error that leaves a subject's state in doubt. Whatever else ends a shell with an error is a panic.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failed(&'static str);

/// A supervised subsystem.
pub struct Shell<S>(std::marker::PhantomData<fn() -> S>);

impl<S> Shell<S> {
    pub fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

/// What a shell is started with.
pub struct Start {
    pub context: Context,
    pub warm: bool,
    pub pulse: Arc<Pulse>,
}

pub struct State<S> {
    subject: S,
    context: Context,
    pulse: Arc<Pulse>,
    timer: Option<(Time, JoinHandle<()>)>,
    saved: Time,
}

impl<S> Drop for State<S> {
    fn drop(&mut self) {
        if let Some((_, timer)) = self.timer.take() {
            timer.abort();
        }
    }
}

impl<S: Subject> Actor for Shell<S> {
    type Msg = Envelope<S::Message>;
    type State = State<S>;
    type Arguments = Start;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, start: Start) -> Result<State<S>, ActorProcessingErr> {
        let Start { context, warm, pulse } = start;
        pulse.busy_since.store(0, Ordering::Relaxed);
        let subject = S::start(&context, &me.get_cell(), warm).await?;
        S::address(&context).set(Some(me));
        let saved = context.now();
        Ok(State { subject, context, pulse, timer: None, saved })
    }

    async fn post_start(&self, _me: ActorRef<Self::Msg>, state: &mut State<S>) -> Result<(), ActorProcessingErr> {
        arm(state);
        Ok(())
    }

    async fn handle(
        &self,
        _me: ActorRef<Self::Msg>,
        envelope: Self::Msg,
        state: &mut State<S>,
    ) -> Result<(), ActorProcessingErr> {
        let (now, began) = (state.context.now(), Instant::now());
        state.pulse.busy_since.store(now.as_micros() + 1, Ordering::Relaxed);
        match envelope.letter {
            Letter::Do(message) => state.subject.handle(now, message),
            Letter::Tick => {
                state.timer = None;
                state.subject.tick(now);
            }
            Letter::Fail(Failing::Panic) => panic!("asked to panic"),
            Letter::Fail(Failing::Error) => return Err(Failed("asked to fail").into()),
            Letter::Fail(Failing::Freeze) => std::future::pending::<()>().await,
        }
        state.context.metrics.decided(S::SUBSYSTEM, began.elapsed());
        after(state, now);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _me: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut State<S>,
    ) -> Result<(), ActorProcessingErr> {
        let now = state.context.now();
        match event {
            SupervisionEvent::ActorTerminated(child, _, reason) => {
                state.subject.child_ended(now, child.get_id(), reason.as_deref().unwrap_or("stopped"));
            }
            SupervisionEvent::ActorFailed(child, error) => {
                state.subject.child_ended(now, child.get_id(), &error.to_string());
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        }
        after(state, now);
        Ok(())
    }
}

fn after<S: Subject>(state: &mut State<S>, now: Time) {
    if state.subject.must_save() || now.since(state.saved) >= SNAPSHOT {
        state.subject.save();
        state.saved = now;
    }
    arm(state);
    state.pulse.handled.fetch_add(1, Ordering::Relaxed);
    state.pulse.busy_since.store(0, Ordering::Relaxed);
}

/// Arms the one timer for the subject's deadline, if it is earlier than the one that is armed.
fn arm<S: Subject>(state: &mut State<S>) {
    let Some(deadline) = state.subject.deadline() else { return };
    if state.timer.as_ref().is_some_and(|(armed, _)| *armed <= deadline) {
        return;
    }
    if let Some((_, timer)) = state.timer.take() {
        timer.abort();
    }
    let (at, address) = (state.context.instant(deadline), S::address(&state.context).clone());
    let timer = tokio::spawn(async move {
        sleep_until(at).await;
        address.tick();
    });
    state.timer = Some((deadline, timer));
}
