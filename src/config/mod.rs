//! Configuration: typed, checked as a whole, every problem named with the place it comes from.

mod layers;
mod span;

pub use layers::{Layers, Place, Problem, Problems, locate_key, read_file, read_text};
pub use span::Span;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::id::{FormationId, NodeId, NodeName};
use crate::level::{Level, Levels};
use crate::limits::Limits;
use crate::proto::account::AccountId;
use crate::proto::beacon::{self, Capability, Description, Mobility};
use crate::proto::budget::Backoff;
use crate::proto::geo::GeoPoint;
use crate::proto::outbox::WhenFull;
use crate::proto::selection::Weights;
use crate::proto::strategy::{self, HierarchyStrategy};
use crate::proto::{link, node, router, topology};

/// Everything a node is configured with. Section and key names are the file's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub node: NodeSection,
    pub formation: FormationSection,
    pub discovery: DiscoverySection,
    pub beacon: BeaconSection,
    pub topology: TopologySection,
    pub failover: FailoverSection,
    pub telemetry: TelemetrySection,
    pub transport: TransportSection,
}

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
    pub backoff: BackoffSection,
    /// Off only to see that tests notice.
    pub repair: bool,
}

impl Default for FailoverSection {
    fn default() -> Self {
        Self { heartbeat: Span::secs(1), backoff: BackoffSection::default(), repair: true }
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
        }
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

impl Config {
    /// What is wrong with it as a whole, by key. Types were checked when it was read.
    pub fn problems(&self) -> Vec<(&'static str, String, String)> {
        let mut found = Vec::new();
        let mut check = |fine: bool, key, message: String, fix: &str| {
            if !fine {
                found.push((key, message, fix.to_owned()));
            }
        };
        let levels = &self.topology.levels;
        if levels.parse(&self.node.level).is_none() {
            let known = levels.labels().join(", ");
            let fix = match nearest(&self.node.level, levels.labels()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("use one of: {known}"),
            };
            check(false, "node.level", format!("`{}` is not a level; the levels are {known}", self.node.level), &fix);
        }
        let parent = self.node.parent.as_deref();
        let parsed = parent.is_none_or(|id| id.parse::<NodeId>().is_ok());
        check(parsed, "node.parent", "the preferred parent is not a node id".into(), "give its 64 hex digits");
        for capability in &self.node.capabilities {
            let named = (1..=Limits::CAPABILITY_BYTES).contains(&capability.kind.len());
            let sure = (0.0..=1.0).contains(&capability.confidence);
            let message = format!("`{}` with confidence {} is no capability", capability.kind, capability.confidence);
            check(named && sure, "node.capabilities", message, "a type of 1 to 32 bytes, a confidence between 0 and 1");
        }
        let fits = self.node.capabilities.len() <= Limits::CAPABILITIES;
        check(fits, "node.capabilities", "too many capabilities".into(), "at most 16 fit a beacon");
        let few = self.discovery.fixed.peers.len() <= Limits::KNOWN_PEERS;
        check(few, "discovery.static.peers", "too many peers".into(), "at most 20000");
        let beacon = &self.beacon;
        check(
            beacon.ttl.0 >= beacon.interval_max.0 * 3,
            "beacon.ttl",
            format!("a ttl of {} is shorter than three intervals of {}", beacon.ttl, beacon.interval_max),
            "raise beacon.ttl or lower beacon.interval_max",
        );
        check(
            (1..=3600).contains(&beacon.ttl.0.as_secs()),
            "beacon.ttl",
            format!("{} is out of range", beacon.ttl),
            "between 1s and 1h",
        );
        check(
            beacon.interval_min.0 >= Duration::from_millis(50) && beacon.interval_min.0 <= beacon.interval_max.0,
            "beacon.interval_min",
            format!("{} is not between 50ms and beacon.interval_max", beacon.interval_min),
            "raise it, or beacon.interval_max",
        );
        check(
            (1..=12).contains(&beacon.geohash_precision),
            "beacon.geohash_precision",
            format!("{} is out of range", beacon.geohash_precision),
            "between 1 and 12",
        );
        if let Err(invalid) = self.topology.weights.check() {
            check(false, "topology.weights", invalid.to_string(), "change the weights so that they sum to 1");
        }
        let hybrid = &self.topology.hybrid;
        for (key, list) in [("topology.hybrid.promote", &hybrid.promote), ("topology.hybrid.demote", &hybrid.demote)] {
            for label in list.iter().flatten().filter(|label| levels.parse(label).is_none()) {
                let fix = format!("use some of: {}", levels.labels().join(", "));
                check(false, key, format!("`{label}` is not a level"), &fix);
            }
        }
        check(
            (1..=8).contains(&hybrid.max_levels),
            "topology.hybrid.max_levels",
            format!("{} is out of range", hybrid.max_levels),
            "between 1 and 8",
        );
        check(
            (Duration::from_millis(100)..=Duration::from_secs(600)).contains(&self.topology.promote_after.0),
            "topology.promote_after",
            format!("{} is out of range", self.topology.promote_after),
            "between 100ms and 10m",
        );
        check(
            (0.0..=1.0).contains(&self.topology.hysteresis),
            "topology.hysteresis",
            format!("{} is out of range", self.topology.hysteresis),
            "a share between 0 and 1, such as 0.1",
        );
        check(
            (1..=1024).contains(&self.topology.max_children),
            "topology.max_children",
            format!("{} is out of range", self.topology.max_children),
            "between 1 and 1024",
        );
        check(
            self.topology.max_laterals <= 64,
            "topology.max_laterals",
            format!("{} is out of range", self.topology.max_laterals),
            "between 0 and 64",
        );
        check(
            self.topology.max_distance > 0.0 && self.topology.max_distance.is_finite(),
            "topology.max_distance",
            format!("{} is out of range", self.topology.max_distance),
            "metres, above 0",
        );
        check(
            (Duration::from_millis(50)..=Duration::from_secs(60)).contains(&self.failover.heartbeat.0),
            "failover.heartbeat",
            format!("{} is out of range", self.failover.heartbeat),
            "between 50ms and 60s",
        );
        let backoff = &self.failover.backoff;
        check(
            (1.0..=10.0).contains(&backoff.multiplier)
                && backoff.initial.0 <= backoff.max.0
                && !backoff.initial.0.is_zero(),
            "failover.backoff",
            "initial must be above 0 and at most max, the multiplier between 1 and 10".into(),
            "use initial = \"1s\", multiplier = 2.0, max = \"60s\"",
        );
        check(
            (4096..=1 << 36).contains(&self.telemetry.outbox_bytes),
            "telemetry.outbox_bytes",
            format!("{} is out of range", self.telemetry.outbox_bytes),
            "between 4096 and 64 GiB",
        );
        check(
            (Duration::from_millis(10)..=Duration::from_secs(600)).contains(&self.telemetry.window.0),
            "telemetry.window",
            format!("{} is out of range", self.telemetry.window),
            "between 10ms and 10m",
        );
        check(
            (1..=1_000_000).contains(&self.telemetry.window_count),
            "telemetry.window_count",
            format!("{} is out of range", self.telemetry.window_count),
            "between 1 and 1000000",
        );
        check(
            self.transport.open || self.transport.listen.ip().is_loopback(),
            "transport.listen",
            format!(
                "{} can be reached from other machines, and there is no formation to keep strangers out",
                self.transport.listen
            ),
            "listen on 127.0.0.1, or set transport.open = true if everyone who can reach the port may join and command",
        );
        let named = (1..=64).contains(&self.formation.name.len());
        check(named, "formation.name", "the formation's name has 1 to 64 bytes".into(), "shorten it");
        found
    }

    /// The node's level. Only for a configuration without problems.
    pub fn level(&self) -> Level {
        self.topology.levels.parse(&self.node.level).unwrap_or_default()
    }

    pub fn formation_id(&self) -> FormationId {
        let digest = blake3::derive_key("tussock formation 1", self.formation.name.as_bytes());
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        FormationId(id)
    }

    /// Whether this node commits samples as a root.
    pub fn is_sink(&self) -> bool {
        self.telemetry.sink.unwrap_or(self.level() == self.topology.levels.top())
    }

    /// The configured strategy.
    pub fn strategy(&self) -> Arc<dyn HierarchyStrategy> {
        match self.topology.strategy {
            Strategy::Dynamic => Arc::new(strategy::Dynamic),
            Strategy::Static => Arc::new(strategy::Static),
            Strategy::Hybrid => {
                let (hybrid, levels) = (&self.topology.hybrid, &self.topology.levels);
                let named = |list: &Option<Vec<String>>| match list {
                    Some(list) => list.iter().filter_map(|label| levels.parse(label)).collect(),
                    None => (0..levels.labels().len() as u8).map(Level).collect(),
                };
                Arc::new(strategy::Hybrid {
                    promote: named(&hybrid.promote),
                    demote: named(&hybrid.demote),
                    max_levels: hybrid.max_levels,
                    min_peers: hybrid.min_peers,
                })
            }
        }
    }

    pub fn backoff(&self) -> Backoff {
        let BackoffSection { initial, multiplier, max } = &self.failover.backoff;
        Backoff { initial: initial.0, multiplier: *multiplier, max: max.0 }
    }

    pub fn description(&self) -> Description {
        let capability = |entry: &CapabilityEntry| Capability {
            kind: entry.kind.clone(),
            confidence_percent: (entry.confidence * 100.0).round() as u8,
        };
        Description {
            position: self.node.position,
            can_parent: self.node.can_parent,
            parent_priority: self.node.parent_priority,
            mobility: self.node.mobility,
            capabilities: self.node.capabilities.iter().map(capability).collect(),
            ..Description::default()
        }
    }

    /// What the machines of a node with this identity are configured with.
    pub fn settings(&self, identity: &Identity) -> node::Settings {
        let Identity { id, name, incarnation, account, seed } = identity.clone();
        let (level, formation, backoff) = (self.level(), self.formation_id(), self.backoff());
        node::Settings {
            links: link::Settings {
                me: id,
                name: name.clone(),
                level,
                formation,
                incarnation,
                heartbeat: self.failover.heartbeat.0,
                backoff,
                seed: seed ^ 1,
            },
            beacon: beacon::Settings {
                formation,
                ttl: self.beacon.ttl.0,
                interval_min: self.beacon.interval_min.0,
                interval_max: self.beacon.interval_max.0,
                geohash_precision: self.beacon.geohash_precision,
                max_distance_m: self.topology.max_distance,
                incarnation,
                seed: seed ^ 2,
            },
            topology: topology::Settings {
                me: id,
                name,
                level,
                top_level: self.topology.levels.top(),
                incarnation,
                strategy: self.strategy(),
                promote_after: self.topology.promote_after.0,
                max_children: self.topology.max_children,
                max_laterals: self.topology.max_laterals,
                max_distance_m: self.topology.max_distance,
                weights: self.topology.weights,
                hysteresis: self.topology.hysteresis,
                dwell: self.topology.dwell.0,
                preferred_parent: self.node.parent.as_deref().and_then(|id| id.parse().ok()),
                backoff,
                account: self.is_sink().then_some(account),
                repair: self.failover.repair,
                seed: seed ^ 3,
            },
            router: router::Settings {
                me: id,
                incarnation,
                window: self.telemetry.window.0,
                window_count: self.telemetry.window_count,
                outbox_bytes: self.telemetry.outbox_bytes,
                when_full: self.telemetry.when_full,
                seed: seed ^ 4,
            },
            description: self.description(),
        }
    }
}

/// Who a node is in this run.
#[derive(Clone, Debug)]
pub struct Identity {
    pub id: NodeId,
    pub name: NodeName,
    pub incarnation: u64,
    /// Where it commits samples, if it is configured to.
    pub account: AccountId,
    /// For jitter.
    pub seed: u64,
}

/// The likeliest of `known` for a misspelt `word`.
pub fn nearest<S: AsRef<str>>(word: &str, known: impl IntoIterator<Item = S>) -> Option<String> {
    let likeness = |candidate: &S| strsim::jaro_winkler(&word.to_lowercase(), candidate.as_ref());
    let best = known.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&best) > 0.75).then(|| best.as_ref().to_owned())
}

fn id_from_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<NodeId, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_have_no_problems() {
        assert_eq!(Config::default().problems(), []);
    }

    #[test]
    fn every_rule_has_its_key() {
        let mut config = Config::default();
        config.node.level = "plattoon".into();
        config.beacon.ttl = Span::secs(5);
        config.topology.weights.load = 0.9;
        config.transport.listen = "0.0.0.0:7000".parse().unwrap();
        let problems = config.problems();
        let keys: Vec<_> = problems.iter().map(|(key, _, _)| *key).collect();
        assert_eq!(keys, ["node.level", "beacon.ttl", "topology.weights", "transport.listen"]);
        assert_eq!(problems[0].2, "did you mean `platoon`?");
    }
}
