//! `tussock`: node, simulator and client in one.

#![forbid(unsafe_code)]

mod account;
mod client;
mod demo;
mod drawing;
mod output;
mod run;
mod simulate;
mod telemetry;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::client::{LookArgs, NodeArgs};
use crate::output::{Drawing, Failure, Format, OutputArgs, exit, fail};

#[derive(Debug, Parser)]
#[command(name = "tussock", version, about = "A runtime for hierarchical peer-to-peer meshes")]
struct Cli {
    #[command(flatten)]
    output: OutputArgs,
    /// What is logged on stderr, such as debug or tussock=trace
    #[arg(long, global = true, value_name = "FILTER", env = "TUSSOCK_LOG")]
    log: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Shows a mesh of real nodes form, report, obey, lose its leader, crash, split and heal
    Demo(demo::DemoArgs),
    /// Runs one node until it is stopped
    Run(run::RunArgs),
    /// Prints the node id of a data directory, making the key if there is none
    Id(run::IdArgs),
    /// Runs a scenario in virtual time
    Sim(simulate::SimArgs),
    /// How a node is doing
    Status(LookArgs),
    /// Why a node has the parent it has
    Why {
        #[command(flatten)]
        node: NodeArgs,
        #[command(flatten)]
        verb: client::WhyArgs,
    },
    /// The nodes that a node knows
    Members(LookArgs),
    /// The tree as a node sees it
    Topology(LookArgs),
    /// A node's subsystems
    Actors(LookArgs),
    /// A node's measurements, as OpenMetrics text
    Metrics(NodeArgs),
    /// Restarts a subsystem
    Restart {
        #[command(flatten)]
        node: NodeArgs,
        #[command(flatten)]
        verb: client::RestartArgs,
    },
    /// Sends one sample
    Publish {
        #[command(flatten)]
        node: NodeArgs,
        #[command(flatten)]
        verb: client::PublishArgs,
    },
    /// Sends a command and prints each node's answer
    Command {
        #[command(flatten)]
        node: NodeArgs,
        #[command(flatten)]
        verb: client::CommandArgs,
    },
    /// Where samples are committed
    Account {
        #[command(subcommand)]
        verb: account::AccountVerb,
    },
    /// What happened, and with -f what happens
    Events {
        #[command(flatten)]
        node: NodeArgs,
        #[command(flatten)]
        verb: client::EventsArgs,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let format = cli.output.format();
    // A crash of a subsystem is its supervisor's business: one line, no stack trace.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("panic at {}: {}", panic.location().map_or("?".into(), ToString::to_string), panic_text(panic));
    }));
    if !matches!(cli.verb, Verb::Run(_) | Verb::Demo(_)) {
        end_on_signals();
    }
    let result = init_log(&cli).and_then(|()| dispatch(&cli.verb, format, cli.output.drawing()));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => fail(&failure, format),
    }
}

/// A verb that only looks has nothing to put in order: it ends when it is asked to.
fn end_on_signals() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            if let Ok(mut signals) = run::Signals::listen() {
                signals.next().await;
                std::process::exit(0);
            }
        });
    });
}

/// What the parser says, and with a JSON format the error on stdout as for every other failure.
fn usage(error: &clap::Error) -> ExitCode {
    // Help and version are answers, not errors.
    if !error.use_stderr() {
        output::print(&error.to_string());
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<_> = std::env::args_os().collect();
    let asked = |word: &str| arguments.iter().any(|argument| argument == word);
    let json = asked("--json") || asked("json") || asked("jsonl") || asked("-ojson") || asked("--output=json");
    output::say(error.to_string().trim_end());
    if json {
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let failure = Failure::new(exit::USAGE, "usage", message, "see tussock --help");
        output::print_failure(&failure);
    }
    ExitCode::from(exit::USAGE)
}

fn panic_text<'p>(panic: &'p std::panic::PanicHookInfo<'_>) -> &'p str {
    panic.payload_as_str().unwrap_or("no message")
}

fn dispatch(verb: &Verb, format: Format, drawing: Option<Drawing>) -> Result<u8, Failure> {
    if drawing.is_some() && !matches!(verb, Verb::Topology(_)) {
        let message = "dot, mermaid and geojson draw the tree";
        return Err(Failure::new(exit::USAGE, "no_drawing", message, "use them with `tussock topology`"));
    }
    match verb {
        Verb::Id(args) => run::id(args, format),
        Verb::Sim(args) => simulate::run(args, format),
        Verb::Run(args) => block_on(run::run(args, format)),
        Verb::Demo(args) => block_on(demo::run(args, format)),
        Verb::Status(look) => block_on(client::status(look, format)),
        Verb::Why { node, verb } => block_on(client::why(node, verb, format)),
        Verb::Members(look) => block_on(client::members(look, format)),
        Verb::Topology(look) => block_on(client::topology(look, format, drawing)),
        Verb::Actors(look) => block_on(client::actors(look, format)),
        Verb::Metrics(node) => block_on(client::metrics(node, format)),
        Verb::Restart { node, verb } => block_on(client::restart(node, verb, format)),
        Verb::Publish { node, verb } => block_on(client::publish(node, verb, format)),
        Verb::Command { node, verb } => block_on(client::command(node, verb, format)),
        Verb::Account { verb } => block_on(account::run(verb, format)),
        Verb::Events { node, verb } => block_on(client::events(node, verb)),
    }
}

fn block_on(verb: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(exit::FAILED, "runtime", error.to_string(), "report this"))?;
    let result = runtime.block_on(verb);
    // Standard input is read by a thread that nothing ends.
    runtime.shutdown_background();
    result
}

fn init_log(cli: &Cli) -> Result<(), Failure> {
    let default = match cli.verb {
        Verb::Run(_) => "warn,tussock=info",
        _ => "error,tussock=warn",
    };
    let filter = cli.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        let fix = "use a level or target=level, such as tussock=debug";
        let flag = std::env::args_os().any(|argument| argument.to_string_lossy().starts_with("--log"));
        let (code, origin) = if flag { (exit::USAGE, "--log") } else { (exit::CONFIG, "the variable TUSSOCK_LOG") };
        Failure::new(code, "bad_log_filter", format!("{origin}: {filter}: {error}"), fix)
    })?;
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .log_internal_errors(false)
        .init();
    Ok(())
}
