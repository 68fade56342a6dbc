//! How every verb speaks: data on stdout, messages on stderr, one envelope, one set of exit codes.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use tussock::config::{Place, Problem, Problems};

/// Exit codes that scripts rely on.
pub mod exit {
    pub const FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const UNREACHABLE: u8 = 3;
    pub const DEGRADED: u8 = 4;
    pub const TIMED_OUT: u8 = 5;
    pub const CONFIG: u8 = 78;
    pub const INTERRUPTED: u8 = 130;
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Table,
    Json,
    Jsonl,
}

/// How a tree is drawn, for other tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drawing {
    Dot,
    Mermaid,
    Geojson,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
    Jsonl,
    /// A graph for Graphviz; topology only
    Dot,
    /// A graph for Markdown; topology only
    Mermaid,
    /// Places and links on a map; topology only
    Geojson,
}

/// `-o` and `--json`, understood by every verb.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// How to print data
    #[arg(short = 'o', long = "output", value_enum, global = true, default_value = "table")]
    output: Output,
    /// Short for `-o json`
    #[arg(long, global = true)]
    json: bool,
}

impl OutputArgs {
    pub fn format(&self) -> Format {
        match self.output {
            _ if self.json => Format::Json,
            Output::Json => Format::Json,
            Output::Jsonl => Format::Jsonl,
            Output::Table | Output::Dot | Output::Mermaid | Output::Geojson => Format::Table,
        }
    }

    /// What only `topology` prints.
    pub fn drawing(&self) -> Option<Drawing> {
        match self.output {
            _ if self.json => None,
            Output::Dot => Some(Drawing::Dot),
            Output::Mermaid => Some(Drawing::Mermaid),
            Output::Geojson => Some(Drawing::Geojson),
            Output::Table | Output::Json | Output::Jsonl => None,
        }
    }
}

/// Why a verb failed, what to do about it, and how the process exits.
#[derive(Debug)]
pub struct Failure {
    pub exit: u8,
    pub code: Cow<'static, str>,
    pub message: String,
    pub place: Option<Place>,
    pub fix: String,
}

impl Failure {
    pub fn new(
        exit: u8,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { exit, code: code.into(), message: message.into(), place: None, fix: fix.into() }
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        let first: Option<Problem> = problems.0.first().cloned();
        let place = first.as_ref().and_then(|problem| problem.place.clone());
        let fix = first.and_then(|problem| problem.fix).unwrap_or_else(|| "correct it".into());
        Self { exit: exit::CONFIG, code: "invalid_configuration".into(), message: problems.to_string(), place, fix }
    }
}

/// Prints a failure: text on stderr, and with a JSON format the error on stdout.
pub fn fail(failure: &Failure, format: Format) -> ExitCode {
    say(&format!("tussock: {}", failure.message));
    if !failure.message.contains(&failure.fix) {
        say(&format!("  fix: {}", failure.fix));
    }
    if format != Format::Table {
        print_failure(failure);
    }
    ExitCode::from(failure.exit)
}

/// Prints a failure as JSON on stdout.
pub fn print_failure(failure: &Failure) {
    let error = json!({"code": failure.code, "message": failure.message, "where": failure.place, "fix": failure.fix});
    print_line(&json!({"schema": "tussock.error/v1", "generated_at": now(), "error": error}));
}

/// The envelope around a verb's data.
pub fn envelope(verb: &str, data: &impl Serialize) -> Value {
    json!({"schema": format!("tussock.{verb}/v1"), "generated_at": now(), "data": data})
}

/// Prints data in its envelope.
pub fn print_json(verb: &str, data: &impl Serialize) {
    print_line(&envelope(verb, data));
}

/// Prints one JSON value on one line. A closed pipe ends the process quietly, as with other tools.
pub fn print_line(value: &Value) {
    print(&format!("{value}\n"));
}

/// Prints text; a closed pipe ends the process quietly, a full disk does not.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) else { return };
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    say(&format!("tussock: stdout takes nothing: {error}"));
    std::process::exit(exit::FAILED.into());
}

/// A message on stderr. Nobody reading it must not end a node.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A line for people that follow a long verb, only on a terminal.
pub fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        say(text);
    }
}

/// Left-aligned columns, two spaces apart.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let all = || std::iter::once(header.iter().map(|h| h.to_uppercase()).collect()).chain(rows.iter().cloned());
    let width = |column: usize| all().map(|row: Vec<String>| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for row in all() {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// RFC 3339, UTC.
pub fn now() -> String {
    Timestamp::now().to_string()
}
