//! Scenario files: a mesh, its links, its telemetry, and what befalls it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::config::{CapabilityEntry, Config, Layers, Place, Problem, Problems, Span, locate_key, read_text};
use crate::id::NodeName;
use crate::proto::beacon::Mobility;
use crate::proto::geo::GeoPoint;
use crate::proto::sample::Condition;
use crate::sim::chaos::Chaos;
use crate::sim::target::TargetSpec;

/// Scenarios that come with the program.
pub const BUILT_IN: [(&str, &str); 4] = [
    ("formation", include_str!("../../scenarios/formation.toml")),
    ("failover", include_str!("../../scenarios/failover.toml")),
    ("partition", include_str!("../../scenarios/partition.toml")),
    ("chaos", include_str!("../../scenarios/chaos.toml")),
];

/// What a scenario file says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    #[serde(default = "default_seed")]
    pub seed: u64,
    pub duration: Span,
    #[serde(default = "default_settle")]
    pub settle: Span,
    #[serde(default)]
    pub mesh: Mesh,
    #[serde(default, rename = "node")]
    pub nodes: Vec<NodeEntry>,
    #[serde(default)]
    pub links: LinkProperties,
    #[serde(default, rename = "link")]
    pub link_overrides: Vec<LinkOverride>,
    #[serde(default)]
    pub telemetry: TelemetryPlan,
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
    #[serde(default, rename = "command")]
    pub commands: Vec<CommandPlan>,
    /// Further faults and commands, drawn from the seed.
    #[serde(default)]
    pub chaos: Option<Chaos>,
}

fn default_seed() -> u64 {
    42
}

fn default_settle() -> Span {
    Span::secs(120)
}

/// A generated formation: nodes per level by label, and how they are spread.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "toml::Table")]
pub struct Mesh {
    pub counts: BTreeMap<String, toml::Value>,
    pub area_km: toml::Value,
    pub center: toml::Value,
    pub bootstrap: toml::Value,
    /// How much faster or slower than the others' a node's clock may run, as a share.
    pub drift: toml::Value,
    pub strategy: toml::Value,
    pub settings: toml::Value,
}

impl From<toml::Table> for Mesh {
    fn from(mut table: toml::Table) -> Self {
        let mut take = |key: &str, default: toml::Value| table.remove(key).unwrap_or(default);
        let area_km = take("area_km", 4.0.into());
        let center = take("center", toml::Value::Array(vec![0.0.into(), 0.0.into()]));
        let bootstrap = take("bootstrap", 3.into());
        let drift = take("drift", 0.0.into());
        let strategy = take("strategy", "dynamic".into());
        let settings = take("settings", toml::Value::Table(toml::Table::new()));
        Self { counts: table.into_iter().collect(), area_km, center, bootstrap, drift, strategy, settings }
    }
}

impl Default for Mesh {
    fn default() -> Self {
        toml::Table::new().into()
    }
}

/// One node by itself; the keys of `[node]`, and settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    pub name: NodeName,
    #[serde(default)]
    pub level: Option<String>,
    #[serde(default)]
    pub position: Option<GeoPoint>,
    #[serde(default)]
    pub can_parent: Option<bool>,
    #[serde(default)]
    pub parent_priority: Option<u8>,
    #[serde(default)]
    pub mobility: Option<Mobility>,
    #[serde(default)]
    pub capabilities: Vec<CapabilityEntry>,
    /// How it says it is.
    #[serde(default)]
    pub condition: Condition,
    /// Whether its disk survives a crash.
    #[serde(default = "yes")]
    pub disk: bool,
    #[serde(default)]
    pub settings: toml::Table,
}

fn yes() -> bool {
    true
}

/// One direction of a link.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinkProperties {
    pub latency: Option<Span>,
    pub jitter: Option<Span>,
    pub loss: Option<f64>,
    pub duplicate: Option<f64>,
    pub reorder: Option<f64>,
    pub corrupt: Option<f64>,
    pub bandwidth: Option<Bandwidth>,
}

/// Bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct Bandwidth(pub f64);

impl TryFrom<String> for Bandwidth {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let units = [("kbps", 1e3), ("Mbps", 1e6), ("Gbps", 1e9), ("kbit/s", 1e3), ("Mbit/s", 1e6), ("bps", 1.0)];
        let parsed = units.iter().find_map(|(unit, factor)| {
            let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
            (number > 0.0 && number.is_finite()).then_some(number * factor)
        });
        parsed.map(Self).ok_or_else(|| format!("`{text}` is not a bandwidth; write it as \"1Mbps\" or \"256kbps\""))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkOverride {
    pub from: TargetSpec,
    pub to: TargetSpec,
    pub latency: Option<Span>,
    pub jitter: Option<Span>,
    pub loss: Option<f64>,
    pub duplicate: Option<f64>,
    pub reorder: Option<f64>,
    pub corrupt: Option<f64>,
    pub bandwidth: Option<Bandwidth>,
}

impl LinkOverride {
    pub fn properties(&self) -> LinkProperties {
        let Self { latency, jitter, loss, duplicate, reorder, corrupt, bandwidth, .. } = *self;
        LinkProperties { latency, jitter, loss, duplicate, reorder, corrupt, bandwidth }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryPlan {
    pub interval: Span,
    pub metrics: usize,
}

impl Default for TelemetryPlan {
    fn default() -> Self {
        Self { interval: Span::secs(1), metrics: 6 }
    }
}

/// Something that befalls the mesh.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub at: Span,
    pub kind: FaultKind,
    pub target: Option<Targets>,
    #[serde(rename = "for")]
    pub lasts: Option<Span>,
    pub between: Option<Vec<Targets>>,
    pub from: Option<Targets>,
    pub to: Option<Destination>,
    pub properties: Option<LinkProperties>,
    pub actor: Option<Actor>,
    pub per_minute: Option<f64>,
    pub by: Option<Jump>,
}

/// The far side of a link, or where a node moves.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "toml::Value")]
pub enum Destination {
    Targets(Targets),
    Place(GeoPoint),
}

impl TryFrom<toml::Value> for Destination {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        let number = |value: &toml::Value| value.as_float().or(value.as_integer().map(|n| n as f64));
        let numbers = value.as_array().and_then(|list| list.iter().map(number).collect::<Option<Vec<_>>>());
        match numbers.filter(|numbers| !numbers.is_empty()) {
            Some(numbers) => GeoPoint::try_from(numbers.as_slice()).map(Self::Place),
            None => Targets::try_from(value).map(Self::Targets),
        }
    }
}

/// By how much a clock jumps. Nodes reckon with a clock that cannot go back: a jump back moves only the time of day,
/// which no decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Jump(pub std::time::Duration);

impl TryFrom<String> for Jump {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.strip_prefix('-') {
            Some(back) => back.parse::<Span>().map(|_| Self(std::time::Duration::ZERO)),
            None => text.parse::<Span>().map(|span| Self(span.0)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    Crash,
    Restart,
    Pause,
    Leave,
    Partition,
    OneWay,
    Link,
    ActorCrash,
    DiskFull,
    Churn,
    ClockJump,
    Move,
}

impl FaultKind {
    pub fn label(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Restart => "restart",
            Self::Pause => "pause",
            Self::Leave => "leave",
            Self::Partition => "partition",
            Self::OneWay => "one_way",
            Self::Link => "link",
            Self::ActorCrash => "actor_crash",
            Self::DiskFull => "disk_full",
            Self::Churn => "churn",
            Self::ClockJump => "clock_jump",
            Self::Move => "move",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    Transport,
    Beacon,
    Topology,
    Router,
}

/// One target or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "toml::Value")]
pub struct Targets(pub Vec<TargetSpec>);

impl TryFrom<toml::Value> for Targets {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        let texts = match value {
            toml::Value::String(text) => vec![text],
            toml::Value::Array(list) => list
                .into_iter()
                .map(|entry| entry.as_str().map(str::to_owned).ok_or("a target is a text"))
                .collect::<Result<_, _>>()?,
            _ => return Err("a target is a text or a list of them".into()),
        };
        texts.into_iter().map(TargetSpec::try_from).collect::<Result<_, _>>().map(Self)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandPlan {
    pub at: Span,
    pub from: TargetSpec,
    pub target: String,
    #[serde(default = "default_expiry")]
    pub expires: Span,
}

fn default_expiry() -> Span {
    Span::secs(60)
}

/// Why a scenario is refused.
pub type ScenarioError = Problems;

impl Scenario {
    /// Reads a file, or a built-in scenario of that name.
    pub fn load(name: &str) -> Result<(Self, Text), ScenarioError> {
        let path = Path::new(name).to_owned();
        let text = match BUILT_IN.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => (*text).to_owned(),
            None if path.exists() => read(&path)?,
            None => {
                let known: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
                let message = format!("there is no file and no built-in scenario `{name}`");
                let fix = Some(format!("name a file, or one of: {}", known.join(", ")));
                return Err(Problems(vec![Problem { message, place: None, origin: None, fix }]));
            }
        };
        let scenario = read_text(&path, &text)?;
        Ok((scenario, Text { path, text }))
    }

    /// Everything that is wrong with it beyond the types.
    pub fn check(&self, text: &Text) -> Result<(), ScenarioError> {
        let mut problems = Vec::new();
        let probability = |value: Option<f64>| value.is_none_or(|p| (0.0..=1.0).contains(&p));
        let fine = |p: &LinkProperties| [p.loss, p.duplicate, p.reorder, p.corrupt].into_iter().all(probability);
        if !fine(&self.links) {
            problems.push(text.problem(&["links"], "a probability is between 0 and 1", "change it"));
        }
        for (i, over) in self.link_overrides.iter().enumerate() {
            if !fine(&over.properties()) {
                problems.push(text.problem(&["link", &i.to_string()], "a probability is between 0 and 1", "change it"));
            }
        }
        for (i, command) in self.commands.iter().enumerate().filter(|(_, command)| command.at > self.duration) {
            let message = format!("the command at {} is after the end of the scenario", command.at);
            problems.push(text.problem(
                &["command", &i.to_string(), "at"],
                message,
                "raise duration, or have it earlier",
            ));
        }
        for (i, fault) in self.faults.iter().enumerate() {
            let key = ["fault", &i.to_string()];
            if fault.at > self.duration {
                let message = format!("the fault at {} is after the end of the scenario", fault.at);
                problems.push(text.problem(&["fault", key[1], "at"], message, "raise duration, or have it earlier"));
            }
            if let Err((message, fix)) = fault.check() {
                problems.push(text.problem(&key, message, fix));
            }
            if fault.properties.as_ref().is_some_and(|p| !fine(p)) {
                problems.push(text.problem(&key, "a probability is between 0 and 1", "change it"));
            }
        }
        if self.chaos.as_ref().is_some_and(|chaos| !(0.0..=600.0).contains(&chaos.faults_per_minute)) {
            let message = "faults_per_minute is out of range";
            problems.push(text.problem(&["chaos", "faults_per_minute"], message, "between 0 and 600"));
        }
        let mesh = &self.mesh;
        if mesh.bootstrap.as_integer().is_none_or(|n| !(1..=1000).contains(&n)) {
            problems.push(text.problem(&["mesh", "bootstrap"], "bootstrap is out of range", "between 1 and 1000"));
        }
        if mesh.drift.as_float().is_none_or(|drift| !(0.0..=0.1).contains(&drift)) {
            problems.push(text.problem(&["mesh", "drift"], "drift is out of range", "between 0.0 and 0.1"));
        }
        if !mesh.strategy.is_str() {
            problems.push(text.problem(&["mesh", "strategy"], "strategy is no text", "write strategy = \"dynamic\""));
        }
        if !mesh.settings.is_table() {
            let fix = "write settings = { \"beacon.ttl\" = \"30s\" }";
            problems.push(text.problem(&["mesh", "settings"], "settings is no table", fix));
        }
        if !(1..=60).contains(&self.telemetry.metrics) {
            problems.push(text.problem(&["telemetry", "metrics"], "metrics is out of range", "between 1 and 60"));
        }
        if self.telemetry.interval.0.as_millis() < 1 {
            problems.push(text.problem(&["telemetry", "interval"], "interval is out of range", "at least 1ms"));
        }
        if self.duration.0.as_secs() > 366 * 86_400 {
            problems.push(text.problem(&["duration"], "duration is longer than a year", "shorten it"));
        }
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    /// The configuration of every node, before its own settings.
    pub fn base_config(&self, extra: &toml::Table, text: &Text, key: &[&str]) -> Result<Config, ScenarioError> {
        let mut layers = Layers::new();
        let shared = self.mesh.settings.as_table().cloned().unwrap_or_default();
        if let Some(strategy) = self.mesh.strategy.as_str() {
            layers = layers.set("topology.strategy", &format!("{strategy:?}"), "mesh.strategy".into());
        }
        for (name, value) in shared.iter().chain(extra) {
            layers = layers.set(name, &value.to_string(), name.clone());
        }
        layers.build().map_err(|problems| {
            let placed = problems.0.into_iter().map(|problem| {
                let place = problem.origin.as_ref().and_then(|origin| {
                    let mut path = key.to_vec();
                    if origin == "mesh.strategy" {
                        path = vec!["mesh", "strategy"]
                    } else {
                        path.push(origin)
                    }
                    text.place(&path)
                });
                Problem { place, ..problem }
            });
            Problems(placed.collect())
        })
    }
}

impl Fault {
    fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let of_links = matches!(self.kind, FaultKind::Partition | FaultKind::OneWay | FaultKind::Link);
        let needs_target = !of_links && self.kind != FaultKind::Churn;
        match () {
            () if needs_target && self.target.is_none() => Err(("this fault needs a target", "add target = \"…\"")),
            () if of_links && self.target.is_some() => Err(("this fault has no target", "use between, or from and to")),
            () if self.kind == FaultKind::Partition && self.between.as_ref().is_none_or(|parts| parts.len() < 2) => {
                Err(("a partition needs between with at least two parts", "add between = [[\"…\"], [\"…\"]]"))
            }
            () if self.kind != FaultKind::Partition && self.between.is_some() => {
                Err(("only a partition has between", "remove it"))
            }
            () if matches!(self.kind, FaultKind::OneWay | FaultKind::Link)
                && (self.from.is_none() || !matches!(self.to, Some(Destination::Targets(_)))) =>
            {
                Err(("this fault needs from and to", "add from = \"…\" and to = \"…\""))
            }
            () if self.kind == FaultKind::Link && self.properties.is_none() => {
                Err(("a link fault needs properties", "add properties = { loss = 0.1 }"))
            }
            () if self.kind == FaultKind::Churn && self.per_minute.is_none_or(|n| !(0.0..=6000.0).contains(&n)) => {
                Err(("churn needs per_minute, between 0 and 6000", "add per_minute = 6"))
            }
            () if self.kind == FaultKind::ActorCrash && self.actor.is_none() => {
                Err(("an actor_crash needs an actor", "add actor = \"router\""))
            }
            () if self.kind == FaultKind::ClockJump && self.by.is_none() => {
                Err(("a clock_jump needs by", "add by = \"2h\""))
            }
            () if self.kind == FaultKind::Move && !matches!(self.to, Some(Destination::Place(_))) => {
                Err(("a move needs a place to go to", "add to = [37.77, -122.42]"))
            }
            () => Ok(()),
        }
    }
}

/// A scenario's text, to say where in it something is wrong.
#[derive(Clone, Debug)]
pub struct Text {
    path: std::path::PathBuf,
    text: String,
}

impl Text {
    pub fn place(&self, key: &[&str]) -> Option<Place> {
        locate_key(&self.path, &self.text, key)
    }

    pub fn problem(&self, key: &[&str], message: impl Into<String>, fix: &str) -> Problem {
        Problem { message: message.into(), place: self.place(key), origin: None, fix: Some(fix.to_owned()) }
    }
}

fn read(path: &Path) -> Result<String, Problems> {
    std::fs::read_to_string(path).map_err(|error| {
        let message = format!("cannot be read: {error}");
        let origin = Some(path.display().to_string());
        let fix = Some("check the path and its permissions".into());
        Problems(vec![Problem { message, place: None, origin, fix }])
    })
}
