//! Everything that a node measures, at one point in time.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::proto::election::Role;

/// How a node is doing in numbers. Times are seconds, sizes bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    pub node: String,
    pub uptime_s: f64,
    pub topology: Topology,
    pub connections: Connections,
    pub failover: Failover,
    pub performance: Performance,
    /// Events by kind.
    pub events: BTreeMap<&'static str, u64>,
    /// What was dropped, by why.
    pub dropped: BTreeMap<&'static str, u64>,
    /// The host's own counters.
    pub own: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Topology {
    pub parent: Option<String>,
    pub children: usize,
    pub laterals: usize,
    pub level: String,
    pub effective_level: String,
    pub role: Role,
    pub rank: u8,
}

#[derive(Clone, Debug, Serialize)]
pub struct Connections {
    pub parent_connected: bool,
    pub parent_uptime_s: Option<f64>,
    pub links_up: usize,
    pub dials: usize,
    pub frames_sent: u64,
    pub bytes_sent: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Failover {
    pub parent_changes: u64,
    /// How long ago a parent was last found lost.
    pub last_detection_ago_s: Option<f64>,
    /// From that to the next acceptance.
    pub last_attachment_s: Option<f64>,
    pub false_failovers: u64,
    pub reoffered_samples: u64,
    pub journal_depth: usize,
    pub journal_bytes: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct Performance {
    pub published: u64,
    pub forwarded: u64,
    pub committed: u64,
    pub evicted: u64,
    /// Per subsystem: messages handled, what half and 99 of 100 did not exceed, and what waits.
    pub subsystems: BTreeMap<&'static str, Handling>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Handling {
    pub handled: u64,
    pub decision_p50_s: Option<f64>,
    pub decision_p99_s: Option<f64>,
    pub mailbox: usize,
    pub restarts: u64,
}
