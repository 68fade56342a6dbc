//! Links: from a connection to a peer that has said hello, watched while the tree leans on it.
//!
//! A link is up after the hellos, not when the dial returns. When a peer connects again the newest hello wins, by the
//! sender's own count, and the older connection's end changes nothing. Of two simultaneous dials the lower id's stays.

mod detector;
mod dialling;
mod machine;
mod watching;

pub use detector::{Detector, Watch};
pub use machine::{Effect, Input, Machine, Settings};

use serde::{Deserialize, Serialize};

use crate::id::{FormationId, NodeName};
use crate::level::Level;

/// A connection, numbered by the node that has it; never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// The first frame in each direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub formation: FormationId,
    pub name: NodeName,
    pub level: Level,
    pub incarnation: u64,
    /// Counts the sender's hellos within its incarnation: the higher is the newer connection.
    pub count: u64,
}

impl Hello {
    fn version(&self) -> (u64, u64) {
        (self.incarnation, self.count)
    }
}

/// What a heartbeat is sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// It was time for one.
    Routine,
    /// Asks for an answer at once.
    Probe,
    /// That answer.
    Answer,
}

/// A heartbeat, as a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    pub sequence: u32,
    /// The last sequence heard from the other side; in an answer, that of the probe.
    pub echo: u32,
    pub purpose: Purpose,
    /// How many milliseconds apart the sender wants beats on this link; the side that wants them sooner has its way.
    pub pace: u32,
}

/// Why a connection was closed, told to the far side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// A newer connection of the same peer took its place.
    Superseded,
    /// Both dialled; the other connection stays.
    Duplicate,
    /// Another formation.
    Foreign,
    /// No hello in time.
    Silent,
    /// Heartbeats stopped.
    Lost,
    /// Nobody needs the link.
    Idle,
    /// The node stops.
    Leaving,
    /// The host asked for it.
    Disconnected,
    /// More connections than this node keeps.
    Crowded,
    /// Something undecodable came, or too much could not be sent.
    Fault,
    /// The links begin anew after a crash.
    Restarted,
    /// The peer did not hear this node, which heard it.
    Unheard,
}

impl CloseReason {
    pub const ALL: [Self; 12] = [
        Self::Superseded,
        Self::Duplicate,
        Self::Foreign,
        Self::Silent,
        Self::Lost,
        Self::Idle,
        Self::Leaving,
        Self::Disconnected,
        Self::Crowded,
        Self::Fault,
        Self::Restarted,
        Self::Unheard,
    ];

    /// The number that travels in a QUIC application close.
    pub fn code(self) -> u32 {
        Self::ALL.iter().position(|reason| *reason == self).unwrap_or(0) as u32 + 1
    }

    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?.checked_sub(1)?).copied()
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Superseded => "superseded",
            Self::Duplicate => "duplicate",
            Self::Foreign => "foreign formation",
            Self::Silent => "no hello",
            Self::Lost => "heartbeats stopped",
            Self::Idle => "idle",
            Self::Leaving => "leaving",
            Self::Disconnected => "disconnected",
            Self::Crowded => "crowded",
            Self::Fault => "fault",
            Self::Restarted => "restarted",
            Self::Unheard => "the peer does not hear this node",
        }
    }
}

#[cfg(test)]
mod tests;
