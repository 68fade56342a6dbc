//! Events: what a host is told as it happens.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::NodeId;
use crate::level::Level;
use crate::proto::election::Role;
use crate::proto::topology::Cause;

/// Something a host may want to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The first parent accepted this node.
    PeerSelected {
        parent: NodeId,
    },
    /// Another parent accepted this node.
    PeerChanged {
        from: Option<NodeId>,
        to: NodeId,
        cause: Cause,
    },
    /// The parent is gone, or let go.
    PeerLost {
        parent: NodeId,
        reason: String,
    },
    /// A child was accepted.
    PeerAdded {
        child: NodeId,
    },
    /// A child left or was lost.
    PeerRemoved {
        child: NodeId,
        reason: String,
    },
    LateralPeerDiscovered {
        peer: NodeId,
    },
    LateralPeerLost {
        peer: NodeId,
    },
    RoleChanged {
        from: Role,
        to: Role,
    },
    LevelChanged {
        from: Level,
        to: Level,
    },
    /// The part that this node is in acts on its own under this root.
    PartitionDetected {
        root: NodeId,
    },
    /// A root as high as the lost one is above again.
    PartitionHealed {
        #[serde(rename = "lasted_s")]
        lasted: Duration,
    },
    /// A subsystem crashed and is back.
    ActorRestarted {
        actor: String,
        cause: String,
        warm: bool,
        #[serde(rename = "took_s")]
        took: Duration,
    },
    /// A subsystem does not come back from a message.
    ActorStuck {
        actor: String,
        #[serde(rename = "since_s")]
        since: Duration,
    },
    CommandReceived {
        id: Uuid,
        issuer: NodeId,
        text: String,
    },
    /// A sample was not taken.
    SampleRefused {
        reason: String,
    },
    /// The reader was too slow and missed this many.
    Lagged {
        missed: u64,
    },
}

impl Event {
    /// The label under which this kind is counted.
    pub fn label(&self) -> &'static str {
        match self {
            Self::PeerSelected { .. } => "peer_selected",
            Self::PeerChanged { .. } => "peer_changed",
            Self::PeerLost { .. } => "peer_lost",
            Self::PeerAdded { .. } => "peer_added",
            Self::PeerRemoved { .. } => "peer_removed",
            Self::LateralPeerDiscovered { .. } => "lateral_peer_discovered",
            Self::LateralPeerLost { .. } => "lateral_peer_lost",
            Self::RoleChanged { .. } => "role_changed",
            Self::LevelChanged { .. } => "level_changed",
            Self::PartitionDetected { .. } => "partition_detected",
            Self::PartitionHealed { .. } => "partition_healed",
            Self::ActorRestarted { .. } => "actor_restarted",
            Self::ActorStuck { .. } => "actor_stuck",
            Self::CommandReceived { .. } => "command_received",
            Self::SampleRefused { .. } => "sample_refused",
            Self::Lagged { .. } => "lagged",
        }
    }
}
