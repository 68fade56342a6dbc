//! `tussock sim`: a deployment under virtual time.

use std::panic::resume_unwind;
use std::path::PathBuf;

use clap::Args;
use tussock::sim::{Report, Scenario, Summary, World};

use crate::output::{Failure, Format, exit, print, print_json, print_line, progress, say};

#[derive(Debug, Args)]
pub struct SimArgs {
    /// A scenario file, or a built-in scenario: formation, failover, partition, chaos
    scenario: String,
    /// Replaces the scenario's seed
    #[arg(long)]
    seed: Option<u64>,
    /// Scales [mesh] to this many nodes in all
    #[arg(long)]
    nodes: Option<usize>,
    /// Runs every seed from A to B inclusive; stops at the first that fails
    #[arg(long, value_name = "A..B", value_parser = parse_seeds, conflicts_with = "seed")]
    seeds: Option<(u64, u64)>,
    /// Also writes each report to a file in this directory
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

fn parse_seeds(text: &str) -> Result<(u64, u64), String> {
    let wrong = || format!("`{text}` is not a range; write it as 1..200");
    let (first, last) = text.split_once("..").ok_or_else(wrong)?;
    let last = last.strip_prefix('=').unwrap_or(last);
    let (first, last) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first <= last { Ok((first, last)) } else { Err(wrong()) }
}

pub fn run(args: &SimArgs, format: Format) -> Result<u8, Failure> {
    if args.nodes == Some(0) || args.nodes.is_some_and(|nodes| nodes > 100_000) {
        let message = "--nodes is between 1 and 100000";
        return Err(Failure::new(exit::USAGE, "out_of_range", message, "choose another number"));
    }
    match args.seeds {
        None => {
            let report = one(args, args.seed)?;
            match format {
                Format::Table => print(&summary_of(&report)),
                Format::Json | Format::Jsonl => print_json("sim", &report),
            }
            Ok(if report.passed() { 0 } else { exit::FAILED })
        }
        Some((first, last)) => many(args, first, last, format),
    }
}

/// As many seeds at a time as there are cores, told of in their order.
fn many(args: &SimArgs, first: u64, last: u64, format: Format) -> Result<u8, Failure> {
    let mut summary = Summary::default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let batches = (first..=last).step_by(cores).map(|from| from..=last.min(from.saturating_add(cores as u64 - 1)));
    let reports = batches.flat_map(|seeds| {
        std::thread::scope(|scope| {
            let runs: Vec<_> = seeds.map(|seed| scope.spawn(move || one(args, Some(seed)))).collect();
            runs.into_iter().map(|run| run.join().unwrap_or_else(|panic| resume_unwind(panic))).collect::<Vec<_>>()
        })
    });
    for report in reports {
        let report = report?;
        let seed = report.seed;
        summary.add(&report);
        if format == Format::Jsonl {
            print_line(&crate::output::envelope("sim", &report));
        }
        progress(&format!("seed {seed}: {} failovers", report.failovers.len()));
        if summary.first.is_some() {
            if format == Format::Table {
                print(&summary_of(&report));
            }
            let nodes = args.nodes.map_or(String::new(), |nodes| format!(" --nodes {nodes}"));
            say(&format!("seed {seed} failed; replay it with: tussock sim {} --seed {seed}{nodes}", args.scenario));
            break;
        }
    }
    match format {
        Format::Table => print(&format!(
            "{} runs, {} violations, {} failovers, {} samples acknowledged, {} counted, {} lost, {} counted twice\n",
            summary.runs,
            summary.violations,
            summary.failovers,
            summary.acknowledged,
            summary.counted_at_root,
            summary.lost,
            summary.double_counted
        )),
        Format::Json => print_json("sim", &summary),
        Format::Jsonl => {}
    }
    Ok(if summary.first.is_none() { 0 } else { exit::FAILED })
}

fn one(args: &SimArgs, seed: Option<u64>) -> Result<Report, Failure> {
    let (scenario, text) = Scenario::load(&args.scenario)?;
    let report = World::new(scenario, &text, args.nodes, seed)?.run();
    if let Some(directory) = &args.report {
        let file = directory.join(format!("{}-{}.json", report.name.replace([' ', '/'], "-"), report.seed));
        let written = std::fs::create_dir_all(directory)
            .and_then(|()| std::fs::write(&file, crate::output::envelope("sim", &report).to_string()));
        written.map_err(|error| {
            let message = format!("{}: {error}", file.display());
            Failure::new(exit::FAILED, "report_not_written", message, "name a directory that can be written")
        })?;
    }
    Ok(report)
}

fn summary_of(report: &Report) -> String {
    let seconds = |value: Option<f64>| value.map_or("never".to_owned(), |s| format!("{s:.2} s"));
    let telemetry = &report.telemetry;
    let mut text = format!(
        "{}: {} nodes, seed {}, {:.0} virtual s in {:.2} s\n",
        report.name, report.nodes, report.seed, report.virtual_s, report.wall_s
    );
    text += &format!("formed      {}\n", seconds(report.formation.converged_s));
    text += &format!(
        "samples     {} acknowledged, {} counted at the root, {} twice, {} pending, {} stranded, {} lost\n",
        telemetry.acknowledged,
        telemetry.counted_at_root,
        telemetry.double_counted,
        telemetry.pending,
        telemetry.stranded,
        telemetry.lost
    );
    text += &format!("failovers   {} ({} false)\n", report.failovers.len(), report.false_failovers);
    let stages = [
        ("detected", report.failover_percentiles.detected),
        ("attached", report.failover_percentiles.attached),
        ("first ack", report.failover_percentiles.first_ack),
    ];
    for (stage, spread) in stages {
        if let Some(s) = spread {
            text += &format!("  {stage:<10}p50 {:.2} s, p99 {:.2} s, max {:.2} s\n", s.p50_s, s.p99_s, s.max_s);
        }
    }
    for command in &report.commands {
        text += &format!(
            "command     {} of {} acknowledged, {} transmissions, last at {}\n",
            command.acknowledged,
            command.targets,
            command.transmissions,
            seconds(command.last_ack_s)
        );
    }
    let invariants = &report.invariants;
    text += &format!("invariants  {} checks, {} violations\n", invariants.checks, invariants.violations_total);
    for violation in &invariants.violations {
        text += &format!("  at {:.3} s {}: {}\n", violation.at_s, violation.name, violation.detail);
    }
    if !report.settled {
        text += "NOT SETTLED: samples wait although a sink is in reach\n";
    }
    text += &format!("trace       {}\n", report.trace_hash);
    text
}
