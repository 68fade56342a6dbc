//! Metrics: the port that the runtime feeds, an adapter that keeps nothing, one in memory, and what both lead to.

mod memory;
mod snapshot;
mod text;

pub use memory::MemoryMetrics;
pub use snapshot::{Connections, Failover, Handling, Performance, Snapshot, Topology};

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use crate::messages::Subsystem;
use crate::proto::event::Event;
use crate::time::Time;

/// Takes what the runtime of a node measures. Called on every message: an implementation never waits.
pub trait MetricsCollector: Debug + Send + Sync {
    /// Something happened.
    fn event(&self, now: Time, event: &Event);
    /// A subsystem has taken so long for one message.
    fn decided(&self, by: Subsystem, took: Duration);
    /// The host counts something of its own.
    fn count(&self, name: &str, by: u64);
    /// Everything at one point in time; `None` if nothing is kept.
    fn counts(&self) -> Option<Counts>;
}

/// Keeps nothing and costs nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMetrics;

impl MetricsCollector for NoMetrics {
    fn event(&self, _: Time, _: &Event) {}
    fn decided(&self, _: Subsystem, _: Duration) {}
    fn count(&self, _: &str, _: u64) {}

    fn counts(&self) -> Option<Counts> {
        None
    }
}

/// What a collector has counted since the node started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Events by kind.
    pub events: BTreeMap<&'static str, u64>,
    pub decisions: BTreeMap<Subsystem, Timings>,
    /// The host's own, by the names it gave.
    pub own: BTreeMap<String, u64>,
    /// How long it took from the last loss of a parent to the next acceptance.
    pub last_attachment: Option<Duration>,
    /// When a parent was last found lost, on the node's clock.
    pub last_detection: Option<Time>,
    /// Parents that were given up and took this node again: they had not been dead.
    pub false_failovers: u64,
}

/// How long something takes: counts by powers of two of nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Timings([u64; 40]);

impl Default for Timings {
    fn default() -> Self {
        Self([0; 40])
    }
}

impl Timings {
    pub fn add(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let place = (nanos.ilog2() as usize).min(self.0.len() - 1);
        self.0[place] += 1;
    }

    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// What this share of them did not exceed, to the next power of two of nanoseconds.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        let place = self.0.iter().position(|count| {
            seen += count;
            seen >= rank.max(1)
        });
        place.map(|place| Duration::from_nanos(2u64 << place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_no_op_has_no_size_and_says_nothing() {
        assert_eq!(std::mem::size_of::<NoMetrics>(), 0);
        NoMetrics.count("x", 1);
        assert_eq!(NoMetrics.counts(), None);
    }

    #[test]
    fn quantiles_are_upper_bounds_within_a_power_of_two() {
        let mut timings = Timings::default();
        assert_eq!(timings.quantile(0.5), None);
        (0..99).for_each(|_| timings.add(Duration::from_nanos(1_000)));
        timings.add(Duration::from_millis(1));
        assert_eq!(timings.quantile(0.5), Some(Duration::from_nanos(1_024)));
        assert_eq!(timings.quantile(0.99), Some(Duration::from_nanos(1_024)));
        assert_eq!(timings.quantile(1.0), Some(Duration::from_nanos(1 << 20)));
    }
}
