//! `tussock`: node, simulator and client in one.

#![forbid(unsafe_code)]

mod output;
mod simulate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::output::{Failure, OutputArgs, fail};

#[derive(Debug, Parser)]
#[command(name = "tussock", version, about = "A runtime for hierarchical peer-to-peer meshes")]
struct Cli {
    #[command(flatten)]
    output: OutputArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs a scenario in virtual time
    Sim(simulate::SimArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = cli.output.format();
    let result: Result<u8, Failure> = match &cli.verb {
        Verb::Sim(args) => simulate::run(args, format),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => fail(&failure, format),
    }
}
