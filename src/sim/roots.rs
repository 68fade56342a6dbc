//! What the roots know of the mesh: how the nodes below are, and what their samples add up to.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::id::NodeName;
use crate::proto::aggregate::{Stats, Totals};
use crate::proto::geo::GeoPoint;
use crate::proto::summary::Summary;
use crate::sim::invariants::link_up;
use crate::sim::node::SimNode;
use crate::sim::world::World;

/// One root at the end of a run.
#[derive(Clone, Debug, Serialize)]
pub struct RootReport {
    pub node: NodeName,
    pub members: u32,
    pub centroid: Option<GeoPoint>,
    pub radius_m: f64,
    /// Members by what they say of themselves: nominal, degraded, critical, failed.
    pub conditions: [u32; 4],
    /// Samples counted in its account, and what each metric comes to.
    pub samples: u64,
    pub metrics: BTreeMap<String, MetricReport>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct MetricReport {
    pub count: u64,
    pub mean: f64,
    pub spread: f64,
    pub min: f64,
    pub max: f64,
    /// If `telemetry.quantiles` asks for them.
    pub p50: Option<f64>,
    pub p99: Option<f64>,
}

impl RootReport {
    fn of(node: &SimNode, summary: &Summary) -> Self {
        let totals = node.disk.account.as_ref().map(|account| account.totals.clone()).unwrap_or_default();
        let metric = |(name, stats): (&String, &Stats)| (name.clone(), MetricReport::of(&totals, name, stats));
        Self {
            node: node.name.clone(),
            members: summary.members,
            centroid: summary.place.centroid(),
            radius_m: summary.place.radius_m,
            conditions: summary.conditions,
            samples: totals.samples,
            metrics: totals.metrics.iter().map(metric).collect(),
        }
    }
}

impl MetricReport {
    fn of(totals: &Totals, name: &str, stats: &Stats) -> Self {
        let quantile = |share| totals.quantile(name, share);
        let (count, mean, spread) = (stats.count, stats.mean(), stats.spread());
        Self { count, mean, spread, min: stats.min, max: stats.max, p50: quantile(0.5), p99: quantile(0.99) }
    }
}

impl World {
    pub(super) fn roots(&self) -> Vec<RootReport> {
        let roots = (0..self.nodes.len()).filter(|&i| link_up(&self.nodes, i).is_none()).map(|i| &self.nodes[i]);
        roots.filter_map(|root| Some(RootReport::of(root, root.node.as_ref()?.router.summary()))).collect()
    }
}
