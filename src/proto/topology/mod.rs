//! Topology: who is my parent, who are my children, where am I in the tree.
//!
//! A link of the tree exists when the child points to the parent *and* the parent has accepted the child, each under
//! the other's current tenure. A parent accepts only a strictly lower effective level, so along every link the level
//! rises, and there is no cycle at any instant, in any order of messages.

mod attempt;
mod backup;
mod command;
mod downlink;
mod explain;
mod hierarchy;
mod laterals;
mod machine;
mod relief;
mod subtree;
mod uplink;
mod view;

pub(crate) use attempt::ATTEMPT;
pub use explain::{CandidateExplained, Why};
pub use machine::{Effect, Input, Machine, Settings};
pub use view::{ChildView, Descendant, ParentView, Partition, Standing, View};

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, NodeName};
use crate::level::Level;
use crate::limits::Limits;
use crate::proto::account::AccountId;
use crate::time::Time;

/// A term under which a node's effective level does not fall. A restart begins a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tenure {
    pub incarnation: u64,
    pub counter: u64,
}

/// A term of command: when two parts of a mesh meet, the root that goes on takes a higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence {
    pub counter: u64,
    /// The root that took it.
    pub leader: NodeId,
}

/// What a node says of itself when it asks for a parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applicant {
    pub level: Level,
    pub effective_level: Level,
    /// Hashes of the types of its capabilities, see [`capability_hash`].
    pub capabilities: Vec<u32>,
    /// Where it commits samples as a root.
    pub account: Option<AccountId>,
    /// The highest term known to it or to anybody below.
    pub fence: Option<Fence>,
    /// The highest base level of a root that it was ever under.
    pub known_root: Option<Level>,
}

/// What routes towards a capability go by; the node itself compares the type.
pub fn capability_hash(kind: &str) -> u32 {
    let digest = blake3::derive_key("tussock capability 1", kind.as_bytes());
    u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// A node on the way to the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waypoint {
    pub id: NodeId,
    pub name: NodeName,
    pub level: Level,
    pub effective_level: Level,
}

/// What a parent tells its children of what is above them: the nodes from itself up to the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    pub waypoints: Vec<Waypoint>,
    /// Where the root commits samples, if it does.
    pub account: Option<AccountId>,
    /// The root's term.
    pub fence: Option<Fence>,
    /// The root leads a part that is cut off from a higher root.
    pub autonomous: bool,
}

impl Path {
    /// Whether a path from outside is short enough and rises strictly.
    pub fn is_possible(&self) -> bool {
        let rises = |w: &[Waypoint]| w[0].effective_level < w[1].effective_level;
        (1..=Limits::PATH).contains(&self.waypoints.len())
            && self.waypoints.iter().all(|waypoint| waypoint.effective_level >= waypoint.level)
            && self.waypoints.windows(2).all(rises)
    }
}

/// Why a child was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The child's effective level is not strictly below.
    Level,
    Full,
    /// This node takes no children now.
    Closed,
}

/// Why a parent or child let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parting {
    /// Attached elsewhere.
    Moved,
    /// Stopping in order.
    Leaving,
    /// A slot was needed for a child.
    Preempted,
}

impl Parting {
    pub fn label(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Leaving => "leaving",
            Self::Preempted => "preempted",
        }
    }
}

/// One change in a subtree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    Added(Descendant),
    Removed(NodeId),
}

/// What topology machines say to each other over a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// "Be my parent", or "keep a slot for me" as backup. `serial` rises with every attempt of one incarnation.
    Attach {
        tenure: Tenure,
        serial: u64,
        backup: bool,
        applicant: Applicant,
    },
    Accept {
        serial: u64,
        tenure: Tenure,
        path: Path,
        backup: bool,
    },
    Refuse {
        serial: u64,
        reason: Refusal,
    },
    /// From child to parent or backup.
    Detach {
        serial: u64,
        reason: Parting,
    },
    /// From parent to child or reservation.
    Dismiss {
        reason: Parting,
        backup: bool,
    },
    /// From parent to child: this one takes you over, I am about to step down.
    HandOver {
        to: NodeId,
    },
    /// The way to the root has changed.
    Path(Path),
    /// From child to parent: below is somebody who knows of a higher term.
    Fence(Fence),
    /// From child to parent: who is below, in as many frames as it takes. After each the child waits until it was told.
    Subtree {
        report: Report,
        last: bool,
        changes: Vec<Change>,
    },
    /// From parent to child: that frame of its report was taken in.
    Told,
    /// From parent to child: say again who is below you.
    Resync,
    /// "Be my lateral"; answered by the same with `accept`, ended with `end`.
    Lateral(Lateral),
}

impl Frame {
    /// Whether a frame from outside is within its bounds.
    pub fn is_possible(&self) -> bool {
        match self {
            Self::Attach { applicant, .. } => {
                applicant.capabilities.len() <= Limits::CAPABILITIES && applicant.effective_level >= applicant.level
            }
            Self::Subtree { changes, .. } => {
                let possible = |change: &Change| match change {
                    Change::Added(below) => {
                        below.capabilities.len() <= Limits::CAPABILITIES && below.effective_level >= below.level
                    }
                    Change::Removed(_) => true,
                };
                changes.len() <= Limits::SUBTREE_CHANGES && changes.iter().all(possible)
            }
            Self::Accept { path, .. } | Self::Path(path) => path.waypoints.len() <= Limits::PATH,
            _ => true,
        }
    }
}

/// What a report of the subtree is to what was said before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// It changes that.
    Changes,
    /// It begins to replace that, and goes on replacing it.
    Anew,
    More,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lateral {
    Offer,
    Accept,
    End,
}

/// Why the parent changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// There was none before.
    First,
    /// The former one is gone.
    Lost,
    /// The new one is better by more than the hysteresis, or of a better kind.
    Better,
    /// The former one refused.
    Refused,
    /// The former one let go.
    Closed,
    Assigned,
    /// A root is in reach again.
    Healed,
}

/// The last change of parent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastChange {
    pub at: Time,
    pub from: Option<NodeId>,
    pub to: Option<NodeId>,
    pub cause: Cause,
    pub detail: String,
}

#[cfg(test)]
mod tests;
