//! What `tussock run` publishes: lines from standard input, and the machine's own health.

use std::time::Duration;

use crate::output::say;
use serde::Deserialize;
use sysinfo::System;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::task::JoinHandle;
use tussock::limits::Limits;
use tussock::proto::beacon::{Resources, SelfPatch};
use tussock::proto::sample::{Condition, Priority};
use tussock::{GeoPoint, Node, Telemetry};

/// How often the machine's health is published.
const HEALTH: Duration = Duration::from_secs(10);

/// A line of telemetry.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    metrics: Metrics,
    position: Option<GeoPoint>,
    battery: Option<f64>,
    health: Option<Condition>,
    priority: Option<Priority>,
}

/// Names and numbers in the order of the line; a name that comes twice is seen twice.
#[derive(Debug)]
struct Metrics(Vec<(String, f64)>);

impl<'de> Deserialize<'de> for Metrics {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> serde::de::Visitor<'de> for Pairs {
            type Value = Metrics;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("metrics as {\"name\": number}")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Metrics, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Metrics(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Publishes each line; a bad one is reported with its place and skipped. The end of input does not stop the node.
pub fn publish_stdin(node: Node) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut input = BufReader::new(tokio::io::stdin());
        let mut number = 0u64;
        loop {
            let mut line = Vec::new();
            number += 1;
            match (&mut input).take(Limits::LINE_BYTES as u64 + 1).read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => return,
                Ok(read) if read > Limits::LINE_BYTES => {
                    complain(&node, number, read, &format!("a line has at most {} bytes", Limits::LINE_BYTES));
                    if !line.ends_with(b"\n") && skip_line(&mut input).await.is_err() {
                        return;
                    }
                }
                Ok(_) if line.iter().all(u8::is_ascii_whitespace) => {}
                Ok(_) => {
                    match publish_line(&node, &line).await {
                        Ok(()) => {}
                        Err(Bad::Line(column, message)) => complain(&node, number, column, &message),
                        // The node has counted it already.
                        Err(Bad::Sample(message)) => say(&format!("stdin:{number}:1: {message}")),
                    }
                }
            }
        }
    })
}

/// Why a line was not published.
enum Bad {
    /// It is no line of telemetry: column and reason.
    Line(usize, String),
    /// The node refused the sample.
    Sample(String),
}

fn complain(node: &Node, line: u64, column: usize, message: &str) {
    say(&format!("stdin:{line}:{column}: {message}"));
    node.reject(message);
}

async fn skip_line(input: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> std::io::Result<()> {
    loop {
        let (used, done) = match input.fill_buf().await? {
            [] => return Ok(()),
            bytes => match bytes.iter().position(|byte| *byte == b'\n') {
                Some(end) => (end + 1, true),
                None => (bytes.len(), false),
            },
        };
        input.consume(used);
        if done {
            return Ok(());
        }
    }
}

async fn publish_line(node: &Node, line: &[u8]) -> Result<(), Bad> {
    let line: Line = serde_json::from_slice(line).map_err(|error| {
        let text = error.to_string();
        let message = text.split(" at line ").next().unwrap_or(&text).to_owned();
        Bad::Line(error.column(), message)
    })?;
    let metrics = line.metrics.0.into_iter();
    let mut telemetry = metrics.fold(Telemetry::new(), |sample, (name, value)| sample.metric(name, value));
    if let Some(position) = line.position {
        telemetry = telemetry.position(position);
    }
    if let Some(charge) = line.battery {
        telemetry = telemetry.battery(charge);
    }
    if let Some(condition) = line.health {
        telemetry = telemetry.condition(condition);
    }
    if let Some(priority) = line.priority {
        telemetry = telemetry.priority(priority);
    }
    node.publish(telemetry).await.map_err(|error| Bad::Sample(error.to_string()))?;
    // What the node says of itself follows from a line that was taken.
    let position = line.position.map(|position| SelfPatch::Position(Some(position)));
    let operational = line.health.map(|condition| SelfPatch::Operational(condition != Condition::Failed));
    for patch in position.into_iter().chain(operational) {
        let _ = node.beacons().describe(patch).await;
    }
    Ok(())
}

/// Publishes how the machine is doing, and says in the beacon what it has to spare.
pub fn publish_health(node: Node) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut system = System::new();
        loop {
            system.refresh_cpu_usage();
            system.refresh_memory();
            let cpu = f64::from(system.global_cpu_usage());
            let memory = system.used_memory() as f64 / system.total_memory().max(1) as f64 * 100.0;
            let free = (100.0 - cpu + 100.0 - memory) / 2.0;
            let resources = Resources { free_percent: Some(free.clamp(0.0, 100.0) as u8), battery_percent: None };
            let _ = node.beacons().describe(SelfPatch::Resources(resources)).await;
            let sample = Telemetry::new().metric("cpu_percent", cpu).metric("memory_percent", memory);
            if let Err(error) = node.publish(sample).await {
                tracing::debug!(%error, "the machine's health was not published");
            }
            tokio::time::sleep(HEALTH).await;
        }
    })
}
