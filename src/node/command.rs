//! Commands as a host issues and receives them.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::actors::{Context, NodeExit};
use crate::id::NodeId;
use crate::limits::Limits;
use crate::messages::{HostCommand, RouterMessage};
use crate::node::{Node, NodeError};
use crate::proto::node::Input;
use crate::proto::packet::{Order, Target, Verdict};
use crate::proto::router::{self, Outcome};

/// A command being issued.
pub struct IssueCommand {
    pub(super) node: Node,
    pub(super) target: Target,
    pub(super) order: Order,
    pub(super) deadline: Duration,
    pub(super) expires: Duration,
}

impl IssueCommand {
    /// How long to wait for answers.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long the command lives.
    pub fn expires(mut self, expires: Duration) -> Self {
        self.expires = expires;
        self
    }
}

impl IntoFuture for IssueCommand {
    type Output = Result<Outcome, NodeError>;
    type IntoFuture = futures_util::future::BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self { node, target, order, deadline, expires } = self;
            if let Order::Host(text) = &order
                && text.len() > Limits::COMMAND_BYTES
            {
                return Err(NodeError::CommandTooLong(text.len()));
            }
            let lifetimes = Duration::from_millis(1)..=Limits::COMMAND_LIFETIME;
            if !lifetimes.contains(&deadline) || !lifetimes.contains(&expires) {
                return Err(NodeError::Lifetime);
            }
            let router = &node.inner.context.addresses.router;
            let question = |reply| RouterMessage::Command { target, order, deadline, expires, reply };
            Ok(router.ask_within(deadline + Limits::CALL, question).await?)
        })
    }
}

/// The commands for a host.
pub struct CommandStream {
    pub(super) context: Context,
    pub(super) receiver: mpsc::Receiver<HostCommand>,
    pub(super) ended: watch::Receiver<Option<NodeExit>>,
}

impl CommandStream {
    /// The next command; `None` when the node has ended, or somebody else asked for the commands. Cancel-safe.
    pub async fn next(&mut self) -> Option<ReceivedCommand> {
        let command = tokio::select! {
            biased;
            command = self.receiver.recv() => command?,
            _ = self.ended.wait_for(Option::is_some) => return None,
        };
        Some(ReceivedCommand { context: self.context.clone(), command, answered: false })
    }
}

/// A command for the host, delivered at most once; dropped unanswered it counts as failed.
pub struct ReceivedCommand {
    context: Context,
    command: HostCommand,
    answered: bool,
}

impl ReceivedCommand {
    pub fn id(&self) -> Uuid {
        self.command.id
    }

    pub fn issuer(&self) -> NodeId {
        self.command.issuer
    }

    pub fn body(&self) -> &str {
        &self.command.text
    }

    pub fn expires_in(&self) -> Duration {
        self.command.expires_in
    }

    pub fn accept(self, text: impl Into<String>) {
        self.answer(Verdict::Accepted, text.into());
    }

    pub fn refuse(self, text: impl Into<String>) {
        self.answer(Verdict::Refused, text.into());
    }

    pub fn fail(self, text: impl Into<String>) {
        self.answer(Verdict::Failed, text.into());
    }

    fn answer(mut self, verdict: Verdict, text: String) {
        self.answered = true;
        self.send(verdict, text);
    }

    fn send(&self, verdict: Verdict, text: String) {
        let command = self.command.id;
        self.context.give(Input::Router(router::Input::Answered { command, verdict, text }));
    }
}

impl Drop for ReceivedCommand {
    fn drop(&mut self) {
        if !self.answered {
            self.send(Verdict::Failed, "the host dropped the command".into());
        }
    }
}
