//! Addresses that outlive actors, with bounded mailboxes.
//!
//! A restarted actor has a new reference and an empty, unbounded mailbox. A watch holds the present incarnation, and a
//! permit travels with every message: it comes back when the message was handled or was dropped by a crash.

use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::timeout;

use crate::actors::shell::Letter;
use crate::limits::Limits;
use crate::messages::Reply;

/// Why a message was not delivered. The sender decides what that means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Undelivered {
    #[error("the mailbox is full")]
    Full,
    #[error("the actor is being restarted")]
    Restarting,
}

/// Why a question got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    #[error("the subsystem is being restarted; try again")]
    Restarting,
    #[error("no answer in time")]
    TimedOut,
}

/// How full a mailbox is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MailboxLevel {
    pub control: usize,
    pub data: usize,
}

/// A message on its way, with the permit that bounds the mailbox.
pub struct Envelope<M> {
    pub(crate) letter: Letter<M>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Where an actor is reached, whichever incarnation it is in.
pub struct Address<M: Send + 'static> {
    current: watch::Sender<Option<ActorRef<Envelope<M>>>>,
    control: Arc<Semaphore>,
    data: Arc<Semaphore>,
}

impl<M: Send + 'static> Clone for Address<M> {
    fn clone(&self) -> Self {
        Self { current: self.current.clone(), control: self.control.clone(), data: self.data.clone() }
    }
}

impl<M: Send + 'static> Default for Address<M> {
    fn default() -> Self {
        Self {
            current: watch::Sender::new(None),
            control: Arc::new(Semaphore::new(Limits::MAILBOX_CONTROL)),
            data: Arc::new(Semaphore::new(Limits::MAILBOX_DATA)),
        }
    }
}

impl<M: Send + 'static> Address<M> {
    /// Sends control: never refused because data is full.
    pub fn tell(&self, message: M) -> Result<(), Undelivered> {
        let permit = self.control.clone().try_acquire_owned().map_err(|_| Undelivered::Full)?;
        self.post(Letter::Do(message), Some(permit))
    }

    /// Sends data, waiting for room: how link readers push back to their senders. Cancel-safe.
    pub async fn tell_data(&self, message: M) -> Result<(), Undelivered> {
        let permit = self.data.clone().acquire_owned().await.map_err(|_| Undelivered::Restarting)?;
        self.post(Letter::Do(message), Some(permit))
    }

    /// Sends data if there is room.
    pub fn try_tell_data(&self, message: M) -> Result<(), Undelivered> {
        let permit = self.data.clone().try_acquire_owned().map_err(|_| Undelivered::Full)?;
        self.post(Letter::Do(message), Some(permit))
    }

    /// Asks and waits, as hosts do, and the supervisor when it stops a node. Cancel-safe: the question may still be handled.
    pub async fn ask<T>(&self, question: impl FnOnce(Reply<T>) -> M) -> Result<T, AskError> {
        self.ask_within(Limits::CALL, question).await
    }

    /// Asks and waits for as long as it takes at most.
    pub async fn ask_within<T>(&self, deadline: Duration, question: impl FnOnce(Reply<T>) -> M) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        let asking = async {
            self.tell_data(question(reply)).await.map_err(|_| AskError::Restarting)?;
            answer.await.map_err(|_| AskError::Restarting)
        };
        timeout(deadline, asking).await.map_err(|_| AskError::TimedOut)?
    }

    /// What the shell says to itself needs no permit: there is at most one tick under way.
    pub(super) fn tick(&self) {
        let _ = self.post(Letter::Tick, None);
    }

    /// Makes the actor fail, past every queue's bound: there is one tester.
    pub(super) fn fail(&self, failing: crate::messages::Failing) -> Result<(), Undelivered> {
        self.post(Letter::Fail(failing), None)
    }

    /// The supervisor says who is reached from now on.
    pub fn set(&self, actor: Option<ActorRef<Envelope<M>>>) {
        self.current.send_replace(actor);
    }

    pub(super) fn level(&self) -> MailboxLevel {
        MailboxLevel {
            control: Limits::MAILBOX_CONTROL - self.control.available_permits(),
            data: Limits::MAILBOX_DATA - self.data.available_permits(),
        }
    }

    fn post(&self, letter: Letter<M>, permit: Option<OwnedSemaphorePermit>) -> Result<(), Undelivered> {
        let current = self.current.borrow();
        let actor = current.as_ref().ok_or(Undelivered::Restarting)?;
        actor.cast(Envelope { letter, _permit: permit }).map_err(|_| Undelivered::Restarting)
    }
}
