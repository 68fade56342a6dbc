//! A snapshot as OpenMetrics text.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::metrics::Snapshot;

impl Snapshot {
    /// For scrapers: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
    pub fn openmetrics(&self) -> String {
        let mut registry =
            Registry::with_prefix_and_labels("tussock", [("node".into(), self.node.clone().into())].into_iter());
        registry.register_collector(Box::new(Exposition(self.clone())));
        let mut out = String::new();
        // A String takes whatever is written to it.
        let _ = text::encode(&mut out, &registry);
        out
    }
}

#[derive(Debug)]
struct Exposition(Snapshot);

/// One label and its value.
type Label<'l> = [(&'l str, &'l str); 1];

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Snapshot { topology, connections, failover, performance, .. } = &self.0;
        let e = &mut encoder;
        gauge(e, "uptime_seconds", "Since the node started", Some(self.0.uptime_s))?;
        gauge(e, "children", "Children in the tree", Some(topology.children as f64))?;
        gauge(e, "laterals", "Lateral peers", Some(topology.laterals as f64))?;
        gauge(e, "rank", "Hops to the root", Some(f64::from(topology.rank)))?;
        let attached = f64::from(u8::from(topology.parent.is_some()));
        gauge(e, "attached", "Whether there is a parent", Some(attached))?;
        gauge(e, "parent_uptime_seconds", "Since the parent accepted this node", connections.parent_uptime_s)?;
        gauge(e, "links_up", "Links that are up", Some(connections.links_up as f64))?;
        gauge(e, "dials", "Dials under way", Some(connections.dials as f64))?;
        gauge(e, "last_attachment_seconds", "From the last loss to the next parent", failover.last_attachment_s)?;
        gauge(e, "journal_samples", "Samples that wait to be committed", Some(failover.journal_depth as f64))?;
        gauge(e, "journal_bytes", "Bytes of samples that wait", Some(failover.journal_bytes as f64))?;
        counter(e, "frames_sent", "Frames sent", connections.frames_sent)?;
        counter(e, "bytes_sent", "Bytes of frames sent", connections.bytes_sent)?;
        counter(e, "parent_changes", "Changes of parent", failover.parent_changes)?;
        counter(e, "false_failovers", "Parents given up that took this node again", failover.false_failovers)?;
        counter(e, "reoffered_samples", "Samples offered again", failover.reoffered_samples)?;
        counter(e, "samples_published", "Samples acknowledged to the host", performance.published)?;
        counter(e, "samples_forwarded", "Samples passed on for others", performance.forwarded)?;
        counter(e, "samples_committed", "Own samples that a root has committed", performance.committed)?;
        counter(e, "samples_evicted", "Own samples given up by policy", performance.evicted)?;
        let of = |pick: fn(&crate::metrics::snapshot::Handling) -> f64| {
            performance.subsystems.iter().map(move |(name, handling)| (*name, pick(handling)))
        };
        family(e, "handled", "Messages handled", "actor", MetricType::Counter, of(|h| h.handled as f64))?;
        family(e, "restarts", "Restarts", "actor", MetricType::Counter, of(|h| h.restarts as f64))?;
        family(e, "mailbox", "Messages waiting", "actor", MetricType::Gauge, of(|h| h.mailbox as f64))?;
        let p99 = of(|h| h.decision_p99_s.unwrap_or(0.0));
        family(e, "decision_p99_seconds", "What 99 of 100 messages did not exceed", "actor", MetricType::Gauge, p99)?;
        let p50 = of(|h| h.decision_p50_s.unwrap_or(0.0));
        family(e, "decision_p50_seconds", "What half of all messages did not exceed", "actor", MetricType::Gauge, p50)?;
        let events = self.0.events.iter().map(|(kind, count)| (*kind, *count as f64));
        family(e, "events", "Events", "kind", MetricType::Counter, events)?;
        let dropped = self.0.dropped.iter().map(|(why, count)| (*why, *count as f64));
        family(e, "dropped", "What was dropped", "why", MetricType::Counter, dropped)?;
        let own = self.0.own.iter().map(|(name, count)| (name.as_str(), *count as f64));
        family(e, "host", "Counters of the host's own", "name", MetricType::Counter, own)
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: Option<f64>) -> Result<(), Error> {
    let Some(value) = value else { return Ok(()) };
    let metric = ConstGauge::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), Error> {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn family<'v>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    kind: MetricType,
    values: impl Iterator<Item = (&'v str, f64)>,
) -> Result<(), Error> {
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (which, value) in values {
        let labels: Label<'_> = [(label, which)];
        let metric = family.encode_family(&labels)?;
        match kind {
            MetricType::Counter => ConstCounter::new(value).encode(metric)?,
            _ => ConstGauge::new(value).encode(metric)?,
        }
    }
    Ok(())
}
