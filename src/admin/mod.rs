//! The local control socket: one JSON request a line, one JSON answer a line, events as a stream of lines.

mod account;
mod client;
mod server;
mod shapes;

pub use client::{Client, ClientError, running_nodes, runtime_dir};
pub use server::serve;
pub use shapes::event_line;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a client asks of a running node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Request {
    Status,
    Why {
        node: Option<String>,
    },
    Members,
    Account,
    Retire {
        retired: String,
        into: String,
    },
    Topology,
    Actors,
    Metrics,
    Restart {
        actor: String,
        panic: bool,
    },
    Publish {
        metrics: Vec<(String, f64)>,
    },
    Command {
        target: String,
        text: String,
        deadline_s: f64,
        expires_s: f64,
    },
    Events {
        follow: bool,
    },
    /// Silently drops everything from and to these node ids while connections stay open; none opens the gate.
    Gate {
        shut_out: Vec<String>,
    },
}

/// What a node answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Data(Value),
    Error(Refused),
}

/// Why a request was not carried out.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    pub code: String,
    pub message: String,
    pub fix: String,
    /// How the client should exit.
    pub exit: u8,
}

impl Refused {
    fn new(exit: u8, code: &str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), fix: fix.into(), exit }
    }
}
