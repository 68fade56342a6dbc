//! Samples: what a host publishes, each to be counted exactly once.

use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::proto::geo::GeoPoint;

/// How badly a sample is wanted when the outbox is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
    Critical,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    #[default]
    Nominal,
    Degraded,
    Critical,
    Failed,
}

/// Telemetry as a host publishes it: named numbers, and how the node is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Telemetry {
    pub(crate) metrics: Vec<(String, f64)>,
    pub(crate) position: Option<GeoPoint>,
    pub(crate) battery: Option<f64>,
    pub(crate) condition: Option<Condition>,
    pub(crate) opaque: Option<Vec<u8>>,
    pub(crate) priority: Priority,
}

/// Why telemetry is refused. Nothing was stored.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidTelemetry {
    #[error("a sample has at least one metric")]
    Empty,
    #[error("a sample has at most {max} metrics, this has {0}", max = Limits::METRICS)]
    TooMany(usize),
    #[error("`{0}` is not a metric's name: 1 to {max} bytes", max = Limits::METRIC_NAME_BYTES)]
    Name(String),
    #[error("the metric `{0}` is given twice")]
    Twice(String),
    #[error("the metric `{0}` is {1}, which is no finite number")]
    NotFinite(String, f64),
    #[error("the metric `{0}` is {1:e}, beyond \u{b1}{max:e}", max = Limits::METRIC_MAGNITUDE)]
    TooLarge(String, f64),
    #[error("a battery's charge is between 0 and 1, this is {0}")]
    Battery(f64),
    #[error("what is opaque has at most {max} bytes, this has {0}", max = Limits::OPAQUE_BYTES)]
    Opaque(usize),
}

impl Telemetry {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn metric(mut self, name: impl Into<String>, value: f64) -> Self {
        self.metrics.push((name.into(), value));
        self
    }

    pub fn position(mut self, position: GeoPoint) -> Self {
        self.position = Some(position);
        self
    }

    /// What is left of battery or fuel, between 0 and 1.
    pub fn battery(mut self, charge: f64) -> Self {
        self.battery = Some(charge);
        self
    }

    pub fn condition(mut self, condition: Condition) -> Self {
        self.condition = Some(condition);
        self
    }

    /// State that only the host's own aggregator understands, at most [`Limits::OPAQUE_BYTES`].
    pub fn opaque(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.opaque = Some(bytes.into());
        self
    }

    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    pub fn check(&self) -> Result<(), InvalidTelemetry> {
        check_metrics(&self.metrics)?;
        if let Some(charge) = self.battery.filter(|charge| !(0.0..=1.0).contains(charge)) {
            return Err(InvalidTelemetry::Battery(charge));
        }
        match self.opaque.as_ref().map(Vec::len) {
            Some(length) if length > Limits::OPAQUE_BYTES => Err(InvalidTelemetry::Opaque(length)),
            _ => Ok(()),
        }
    }
}

/// A sample in a journal or on its way from the origin to its first parent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Within the origin's journal, from 1.
    pub sequence: u64,
    pub priority: Priority,
    pub metrics: Vec<(String, f64)>,
}

impl Sample {
    /// What it takes in memory and on the wire, about.
    pub fn bytes(&self) -> usize {
        16 + self.metrics.iter().map(|(name, _)| name.len() + 10).sum::<usize>()
    }

    pub fn is_possible(&self) -> bool {
        (1..Limits::LAST_SEQUENCE).contains(&self.sequence) && check_metrics(&self.metrics).is_ok()
    }
}

fn check_metrics(metrics: &[(String, f64)]) -> Result<(), InvalidTelemetry> {
    if metrics.is_empty() {
        return Err(InvalidTelemetry::Empty);
    }
    if metrics.len() > Limits::METRICS {
        return Err(InvalidTelemetry::TooMany(metrics.len()));
    }
    for (i, (name, value)) in metrics.iter().enumerate() {
        if name.is_empty() || name.len() > Limits::METRIC_NAME_BYTES {
            return Err(InvalidTelemetry::Name(name.chars().take(64).collect()));
        }
        if metrics[..i].iter().any(|(other, _)| other == name) {
            return Err(InvalidTelemetry::Twice(name.clone()));
        }
        if !value.is_finite() {
            return Err(InvalidTelemetry::NotFinite(name.clone(), *value));
        }
        if value.abs() > Limits::METRIC_MAGNITUDE {
            return Err(InvalidTelemetry::TooLarge(name.clone(), *value));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_by_name() {
        assert_eq!(Telemetry::new().check(), Err(InvalidTelemetry::Empty));
        assert_eq!(Telemetry::new().metric("t", 21.5).check(), Ok(()));
        assert!(matches!(Telemetry::new().metric("t", f64::NAN).check(), Err(InvalidTelemetry::NotFinite(..))));
        assert!(matches!(Telemetry::new().metric("", 1.0).check(), Err(InvalidTelemetry::Name(_))));
        let twice = Telemetry::new().metric("t", 1.0).metric("t", 2.0);
        assert_eq!(twice.check(), Err(InvalidTelemetry::Twice("t".into())));
        assert_eq!(Telemetry::new().metric("t", 1.0).battery(1.5).check(), Err(InvalidTelemetry::Battery(1.5)));
    }
}
