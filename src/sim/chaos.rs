//! Faults drawn from the seed: every kind there is, of any size, one upon the other.

use std::time::Duration;

use rand::RngExt;
use rand_pcg::Pcg32;
use serde::Deserialize;

use crate::config::Span;
use crate::proto::geo::GeoPoint;
use crate::sim::scenario::{Actor, CommandPlan, Destination, Fault, FaultKind, Jump, LinkProperties, Targets};
use crate::sim::target::TargetSpec;

/// What is drawn.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chaos {
    /// Faults that begin in a minute, on average.
    pub faults_per_minute: f64,
    /// How long nothing new begins at the end.
    #[serde(default = "default_calm")]
    pub calm: Span,
    /// How often somebody commands everyone.
    #[serde(default = "default_commands")]
    pub commands: Span,
}

fn default_calm() -> Span {
    Span::secs(30)
}

fn default_commands() -> Span {
    Span::secs(60)
}

/// The longest jump of a clock in seconds, by its logarithm to ten: three days.
const LONGEST_JUMP_LOG10: f64 = 5.4;
/// The most parts that a mesh is torn into.
const PARTS: usize = 8;

impl Chaos {
    /// The faults and commands of a run of this length among nodes of these names, which move among these places.
    pub fn draw(
        &self,
        duration: Duration,
        names: &[String],
        places: &[GeoPoint],
        rng: &mut Pcg32,
    ) -> (Vec<Fault>, Vec<CommandPlan>) {
        let span = duration.saturating_sub(self.calm.0);
        let count = (self.faults_per_minute * span.as_secs_f64() / 60.0).round() as usize;
        let faults = (0..count).map(|_| fault(span, names, places, rng)).collect();
        let commands = (1..).map(|n| self.commands.0 * n).take_while(|at| *at < span);
        let commands = commands.map(|at| CommandPlan {
            at: Span(at),
            from: TargetSpec::Name(one(names, rng)),
            target: "everyone".into(),
            expires: Span::secs(60),
        });
        (faults, commands.collect())
    }
}

fn one(names: &[String], rng: &mut Pcg32) -> String {
    names[rng.random_range(0..names.len())].clone()
}

fn named(names: Vec<String>) -> Targets {
    Targets(names.into_iter().map(TargetSpec::Name).collect())
}

/// One node mostly, at times a share of all, seldom everyone.
fn some(names: &[String], rng: &mut Pcg32) -> Targets {
    Targets(vec![match rng.random_range(0..20) {
        0 => TargetSpec::Everyone,
        1..5 => TargetSpec::Random(rng.random_range(5.0..50.0)),
        _ => TargetSpec::Name(one(names, rng)),
    }])
}

fn half(names: &[String], rng: &mut Pcg32) -> Targets {
    named(names.iter().filter(|_| rng.random_range(0..2) == 0).cloned().collect())
}

fn fault(span: Duration, names: &[String], places: &[GeoPoint], rng: &mut Pcg32) -> Fault {
    let at = Span(span.mul_f64(rng.random_range(0.0..1.0)));
    let mut lasts = |from: u64, to: u64| Some(Span(Duration::from_millis(rng.random_range(from * 1000..to * 1000))));
    let blank = |kind, lasts| Fault {
        at,
        kind,
        target: None,
        lasts,
        between: None,
        from: None,
        to: None,
        properties: None,
        actor: None,
        per_minute: None,
        by: None,
    };
    let (short, middling, long) = (lasts(1, 20), lasts(5, 60), lasts(10, 150));
    match rng.random_range(0..22) {
        0..5 => Fault { target: Some(some(names, rng)), ..blank(FaultKind::Crash, middling) },
        5..7 => Fault { target: Some(some(names, rng)), ..blank(FaultKind::Restart, None) },
        7..9 => Fault { target: Some(some(names, rng)), ..blank(FaultKind::Pause, short) },
        9 => Fault { target: Some(some(names, rng)), ..blank(FaultKind::Leave, middling) },
        10..12 => {
            let parts = rng.random_range(2..=PARTS);
            let mut between = vec![Vec::new(); parts];
            for name in names {
                between[rng.random_range(0..parts)].push(name.clone());
            }
            Fault { between: Some(between.into_iter().map(named).collect()), ..blank(FaultKind::Partition, long) }
        }
        12..14 => {
            let (from, to) = (Some(half(names, rng)), Some(Destination::Targets(half(names, rng))));
            Fault { from, to, ..blank(FaultKind::OneWay, middling) }
        }
        14..16 => {
            let all = || Targets(vec![TargetSpec::Everyone]);
            let millis = |n| Some(Span(Duration::from_millis(n)));
            let properties = LinkProperties {
                latency: millis(rng.random_range(1..300)),
                jitter: millis(rng.random_range(0..100)),
                loss: Some(rng.random_range(0.0..0.3)),
                duplicate: Some(rng.random_range(0.0..0.1)),
                reorder: Some(rng.random_range(0.0..0.2)),
                ..LinkProperties::default()
            };
            let properties = Some(properties);
            Fault {
                from: Some(all()),
                to: Some(Destination::Targets(all())),
                properties,
                ..blank(FaultKind::Link, middling)
            }
        }
        16 => Fault { target: Some(some(names, rng)), ..blank(FaultKind::DiskFull, middling) },
        17 => Fault { per_minute: Some(rng.random_range(1.0..20.0)), ..blank(FaultKind::Churn, long) },
        20 => {
            let by = Duration::from_secs_f64(10f64.powf(rng.random_range(0.0..LONGEST_JUMP_LOG10)));
            Fault { by: Some(Jump(by)), target: Some(some(names, rng)), ..blank(FaultKind::ClockJump, None) }
        }
        21 if !places.is_empty() => {
            let to = Some(Destination::Place(places[rng.random_range(0..places.len())]));
            Fault { to, target: Some(some(names, rng)), ..blank(FaultKind::Move, long) }
        }
        _ => {
            let actors = [Actor::Transport, Actor::Beacon, Actor::Topology, Actor::Router];
            let actor = Some(actors[rng.random_range(0..actors.len())]);
            Fault { actor, target: Some(some(names, rng)), ..blank(FaultKind::ActorCrash, None) }
        }
    }
}
