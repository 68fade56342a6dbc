//! The sections of a configuration, with their defaults. Names of fields are the file's keys.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use crate::config::Span;
use crate::id::{NodeId, NodeName};
use crate::level::Levels;
use crate::proto::beacon::Mobility;
use crate::proto::budget::Backoff;
use crate::proto::geo::GeoPoint;
use crate::proto::outbox::WhenFull;
use crate::proto::selection::Weights;

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeSection {
    pub name: Option<NodeName>,
    pub level: String,
    pub position: Option<GeoPoint>,
    pub data_dir: Option<PathBuf>,
    pub can_parent: bool,
    pub parent_priority: u8,
    /// Preferred while it passes the gates.
    pub parent: Option<String>,
    pub mobility: Mobility,
    pub capabilities: Vec<CapabilityEntry>,
    pub labels: BTreeMap<String, String>,
}

impl Default for NodeSection {
    fn default() -> Self {
        Self {
            name: None,
            level: "platform".into(),
            position: None,
            data_dir: None,
            can_parent: true,
            parent_priority: 0,
            parent: None,
            mobility: Mobility::Unknown,
            capabilities: Vec::new(),
            labels: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapabilityEntry {
    #[serde(rename = "type")]
    pub kind: String,
    pub confidence: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FormationSection {
    /// Nodes of another name neither hear nor link with this one.
    pub name: String,
}

impl Default for FormationSection {
    fn default() -> Self {
        Self { name: "default".into() }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiscoverySection {
    #[serde(rename = "static")]
    pub fixed: StaticSection,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StaticSection {
    pub peers: Vec<StaticPeer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticPeer {
    #[serde(deserialize_with = "id_from_text")]
    pub id: NodeId,
    #[serde(default)]
    pub addresses: Vec<SocketAddr>,
    #[serde(default)]
    pub priority: i32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BeaconSection {
    pub ttl: Span,
    pub interval_min: Span,
    pub interval_max: Span,
    pub geohash_precision: usize,
}

impl Default for BeaconSection {
    fn default() -> Self {
        Self { ttl: Span::secs(30), interval_min: Span::secs(1), interval_max: Span::secs(10), geohash_precision: 7 }
    }
}

/// How groups find their leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    #[default]
    Dynamic,
    Static,
    Hybrid,
}

/// What the hybrid strategy allows.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HybridSection {
    /// Levels whose nodes may act above their own; absent: all.
    pub promote: Option<Vec<String>>,
    /// Levels whose nodes may step down again while they run; absent: all.
    pub demote: Option<Vec<String>>,
    pub max_levels: u8,
    pub min_peers: usize,
}

impl Default for HybridSection {
    fn default() -> Self {
        Self { promote: None, demote: None, max_levels: 1, min_peers: 1 }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopologySection {
    pub strategy: Strategy,
    pub hybrid: HybridSection,
    pub promote_after: Span,
    pub levels: Levels,
    pub weights: Weights,
    pub hysteresis: f64,
    pub dwell: Span,
    pub max_children: u16,
    pub max_laterals: usize,
    /// Metres.
    pub max_distance: f64,
}

impl Default for TopologySection {
    fn default() -> Self {
        Self {
            strategy: Strategy::Dynamic,
            hybrid: HybridSection::default(),
            promote_after: Span::secs(3),
            levels: Levels::default(),
            weights: Weights::default(),
            hysteresis: 0.10,
            dwell: Span::secs(10),
            max_children: 16,
            max_laterals: 10,
            max_distance: 10_000.0,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FailoverSection {
    pub heartbeat: Span,
    /// How often a lost parent is dialled again beside whoever is to take its place.
    pub retries: u32,
    pub backoff: BackoffSection,
    /// Off only to see that tests notice.
    pub repair: bool,
}

impl Default for FailoverSection {
    fn default() -> Self {
        Self { heartbeat: Span::secs(1), retries: 3, backoff: BackoffSection::default(), repair: true }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackoffSection {
    pub initial: Span,
    pub multiplier: f64,
    pub max: Span,
}

impl Default for BackoffSection {
    fn default() -> Self {
        let Backoff { initial, multiplier, max } = Backoff::default();
        Self { initial: Span(initial), multiplier, max: Span(max) }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySection {
    /// Whether this node commits samples as a root; absent: if it is of the top label.
    pub sink: Option<bool>,
    /// Whether `run` publishes the machine's own health.
    pub machine_health: bool,
    pub outbox_bytes: usize,
    pub when_full: WhenFull,
    pub window: Span,
    pub window_count: u64,
    /// Whether summaries carry what quantiles within 2 % need, some 100 bytes per metric.
    pub quantiles: bool,
}

impl Default for TelemetrySection {
    fn default() -> Self {
        Self {
            sink: None,
            machine_health: true,
            outbox_bytes: 64 * 1024 * 1024,
            when_full: WhenFull::Block,
            window: Span::secs(1),
            window_count: 1024,
            quantiles: false,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PartitionSection {
    /// How long the tree above is gone before the part that is left acts on its own.
    pub timeout: Span,
    /// How long a root as high as the lost one must stand before the partition counts as healed.
    pub confirm: Span,
}

impl Default for PartitionSection {
    fn default() -> Self {
        Self { timeout: Span::secs(30), confirm: Span::secs(1) }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransportSection {
    pub listen: SocketAddr,
    /// Anyone who can reach the port may join and command: must be said before listening beyond loopback.
    pub open: bool,
}

impl Default for TransportSection {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 0)), open: false }
    }
}

fn id_from_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<NodeId, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}
