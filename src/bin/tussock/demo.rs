//! `tussock demo`: real nodes over QUIC on loopback, one of them a process of its own that is killed.

mod mesh;
mod steps;

use std::time::Instant;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::demo::mesh::Mesh;
use crate::output::{Failure, Format, exit, print, print_json, say};
use crate::run::Signals;

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Shows nothing while it runs but what the output format says
    #[arg(long)]
    no_ui: bool,
    /// Stops when the steps are done, instead of keeping the mesh up
    #[arg(long)]
    exit: bool,
    /// Chooses keys and positions
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// At least 12; further nodes are platforms, with a squad more for every ten
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(12..=200))]
    nodes: u64,
}

/// What is compared, and how it came out.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub check: String,
    pub expected: Value,
    pub actual: Value,
    pub passed: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct Step {
    step: &'static str,
    /// Absent if it was not reached.
    passed: Option<bool>,
    at_s: Option<f64>,
    took_s: Option<f64>,
    checks: Vec<Check>,
    detail: String,
}

#[derive(Debug, Serialize)]
struct Report {
    seed: u64,
    nodes: u64,
    passed: bool,
    wall_s: f64,
    members: Vec<Value>,
    steps: Vec<Step>,
}

const STEPS: [(&str, &str); 8] = [
    ("form", "the nodes find each other and form one tree"),
    ("telemetry", "samples go up, are summarised, and are committed at the root"),
    ("command", "a command for everyone is answered by everyone"),
    ("kill_leader", "a squad's process is killed with SIGKILL; its platforms find another parent"),
    ("crash_actor", "a router panics; its node keeps parent and epoch"),
    ("partition", "a platoon and all below it are cut off, silently"),
    ("heal", "the cut ends; one tree again, and what was buffered is counted"),
    ("stop", "every sample of a living node is counted exactly once; all stop in order"),
];

pub async fn run(args: &DemoArgs, format: Format) -> Result<u8, Failure> {
    let started = Instant::now();
    let show = format == Format::Table && !args.no_ui;
    if show {
        print(&format!("{} nodes over QUIC on loopback, seed {}\n", args.nodes, args.seed));
    }
    let mut signals = Signals::listen()?;
    let mut mesh = tokio::select! {
        mesh = Mesh::start(args.seed, args.nodes as usize) => mesh?,
        () = signals.next() => return Ok(0),
    };
    let mut steps: Vec<Step> = Vec::new();
    let mut failed = false;
    for (name, says) in STEPS {
        if failed {
            steps.push(Step {
                step: name,
                passed: None,
                at_s: None,
                took_s: None,
                checks: Vec::new(),
                detail: String::new(),
            });
            continue;
        }
        if name == "stop" && !args.exit {
            let up = match mesh.serve() {
                Ok(sockets) => format!(
                    "the mesh is up; look around with: tussock why --socket {}/platform-0.sock",
                    sockets.display()
                ),
                Err(error) => format!("the mesh is up, without control sockets: {error}"),
            };
            let up = format!("{up}\npress Ctrl-C to stop it");
            match format {
                Format::Table => print(&format!("{up}\n")),
                Format::Json | Format::Jsonl => say(&up),
            }
            signals.next().await;
        }
        let at = started.elapsed();
        if show {
            print(&format!("{name:<12} {says}\n"));
        }
        let interrupted = tokio::select! {
            outcome = steps::run(name, &mut mesh) => Ok(outcome),
            () = signals.next() => Err(()),
        };
        let Ok((checks, detail)) = interrupted else {
            // An interrupt began the last step of a mesh that stayed up.
            if name == "stop" && !args.exit {
                std::process::exit(exit::INTERRUPTED.into());
            }
            tokio::select! {
                () = mesh.stop() => {}
                () = signals.next() => std::process::exit(exit::INTERRUPTED.into()),
            }
            if args.exit {
                let fix = "let it run to its end: a step takes a few seconds";
                return Err(Failure::new(exit::FAILED, "interrupted", format!("interrupted in step {name}"), fix));
            }
            return Ok(0);
        };
        let passed = checks.iter().all(|check| check.passed);
        failed = !passed;
        let took_s = Some((started.elapsed() - at).as_secs_f64());
        let step = Step { step: name, passed: Some(passed), at_s: Some(at.as_secs_f64()), took_s, checks, detail };
        if show {
            print(&describe(&step));
        }
        steps.push(step);
    }
    let members = mesh.members();
    mesh.stop().await;
    let wall_s = started.elapsed().as_secs_f64();
    let report = Report { seed: args.seed, nodes: args.nodes, passed: !failed, wall_s, members, steps };
    match format {
        Format::Table if args.no_ui => report.steps.iter().for_each(|step| print(&describe(step))),
        Format::Table => {}
        Format::Json | Format::Jsonl => print_json("demo", &report),
    }
    if format == Format::Table {
        print(&format!("{} in {:.1} s\n", if report.passed { "passed" } else { "FAILED" }, report.wall_s));
    }
    Ok(if report.passed { 0 } else { exit::FAILED })
}

fn describe(step: &Step) -> String {
    let verdict = match step.passed {
        Some(true) => "ok",
        Some(false) => "FAILED",
        None => "not reached",
    };
    let took = step.took_s.map_or(String::new(), |s| format!(" in {s:.2} s"));
    let mut text = format!("  {:<12} {verdict}{took}  {}\n", step.step, step.detail);
    for check in &step.checks {
        let mark = if check.passed { "+" } else { "-" };
        text += &format!("    {mark} {}: {} (expected {})\n", check.check, check.actual, check.expected);
    }
    text
}
