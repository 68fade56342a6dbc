//! Configuration: typed, checked as a whole, every problem named with the place it comes from.

mod check;
mod layers;
mod sections;
mod span;

pub use layers::{Layers, Place, Problem, Problems, locate_key, read_file, read_text};
pub use sections::*;
pub use span::Span;

use std::sync::Arc;

use serde::Deserialize;

use crate::id::{FormationId, NodeId, NodeName};
use crate::level::Level;
use crate::proto::account::AccountId;
use crate::proto::beacon::{self, Capability, Description};
use crate::proto::budget::Backoff;
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
    pub partition: PartitionSection,
    pub transport: TransportSection,
}

impl Config {
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
                top_level: self.topology.levels.top(),
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
                retries: self.failover.retries,
                account: self.is_sink().then_some(account),
                fence: None,
                known_root: None,
                partition_timeout: self.partition.timeout.0,
                partition_confirm: self.partition.confirm.0,
                repair: self.failover.repair,
                seed: seed ^ 3,
            },
            router: router::Settings {
                me: id,
                incarnation,
                window: self.telemetry.window.0,
                window_count: self.telemetry.window_count,
                quantiles: self.telemetry.quantiles,
                outbox_bytes: self.telemetry.outbox_bytes,
                when_full: self.telemetry.when_full,
                aggregator: None,
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
