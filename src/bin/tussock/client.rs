//! The verbs that ask a running node.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tussock::admin::{Client, ClientError, Request, running_nodes};
use tussock::config::Span;

use crate::drawing::draw;
use crate::output::{Drawing, Failure, Format, exit, print, print_json, table};

/// Which node is asked.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// The node with this data directory
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The node with this control socket
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "data_dir")]
    socket: Option<PathBuf>,
}

/// What can be looked at again and again.
#[derive(Debug, Args)]
pub struct LookArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Asks every second, and prints again when the answer has changed, until interrupted
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Args)]
pub struct RestartArgs {
    /// metrics, transport, discovery, beacon, topology, router or janitor
    actor: String,
    /// Makes it panic inside its handler instead of stopping it in order
    #[arg(long)]
    panic: bool,
}

#[derive(Debug, Args)]
pub struct PublishArgs {
    #[arg(required = true, value_name = "KEY=NUMBER", value_parser = parse_metric)]
    metrics: Vec<(String, f64)>,
}

#[derive(Debug, Args)]
pub struct CommandArgs {
    /// everyone, children, laterals, subtree:NODE, level:LABEL, capability:TYPE, or a node's name, id or id prefix
    target: String,
    text: String,
    /// How long to wait for answers
    #[arg(long, default_value = "5s")]
    deadline: Span,
    /// How long the command lives
    #[arg(long, default_value = "60s")]
    expires: Span,
}

#[derive(Debug, Args)]
pub struct WhyArgs {
    /// A node's name, id or id prefix; absent: the asked node itself
    node: Option<String>,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Goes on with what happens
    #[arg(short, long)]
    follow: bool,
}

fn parse_metric(text: &str) -> Result<(String, f64), String> {
    let (name, number) = text.split_once('=').ok_or_else(|| format!("`{text}` has no `=`"))?;
    let number: f64 = number.parse().map_err(|_| format!("`{number}` is not a number"))?;
    if number.is_finite() { Ok((name.to_owned(), number)) } else { Err(format!("`{number}` is not finite")) }
}

async fn connect(args: &NodeArgs) -> Result<Client, Failure> {
    let socket = match (&args.socket, &args.data_dir) {
        (Some(socket), _) => socket.clone(),
        (None, Some(directory)) => directory.join("tussock.sock"),
        (None, None) => {
            let running = running_nodes().await;
            match running.as_slice() {
                [only] => only.clone(),
                [] => {
                    let fix = "start one with `tussock run`, or name it with --data-dir DIR or --socket PATH";
                    return Err(Failure::new(exit::UNREACHABLE, "no_node", "no node is running here", fix));
                }
                several => {
                    let list: Vec<_> = several.iter().map(|path| format!("  --socket {}", path.display())).collect();
                    let message = format!("several nodes are running:\n{}", list.join("\n"));
                    return Err(Failure::new(exit::USAGE, "several_nodes", message, "name one of them"));
                }
            }
        }
    };
    Client::connect(&socket).await.map_err(failure)
}

fn failure(error: ClientError) -> Failure {
    match error {
        ClientError::Refused(refused) => Failure {
            exit: refused.exit,
            code: refused.code.into(),
            message: refused.message,
            place: None,
            fix: refused.fix,
        },
        ClientError::Unreachable { .. } => {
            let fix = "start the node with `tussock run`, or name another with --data-dir DIR or --socket PATH";
            Failure::new(exit::UNREACHABLE, "unreachable", error.to_string(), fix)
        }
        ClientError::TimedOut { .. } => {
            Failure::new(exit::TIMED_OUT, "timed_out", error.to_string(), "try again; see the node's log")
        }
        ClientError::Answer(_) => {
            Failure::new(exit::FAILED, "bad_answer", error.to_string(), "use a client of the node's version")
        }
    }
}

pub async fn ask(args: &NodeArgs, request: &Request, within: Duration) -> Result<Value, Failure> {
    connect(args).await?.ask(request, within).await.map_err(failure)
}

pub const SOON: Duration = Duration::from_secs(10);
const WATCH: Duration = Duration::from_secs(1);

pub fn show(verb: &str, data: &Value, format: Format, text: impl FnOnce(&Value) -> String) {
    match format {
        Format::Json | Format::Jsonl => print_json(verb, data),
        Format::Table => print(&text(data)),
    }
}

/// Asks once and shows the answer; with `--watch` again whenever it has changed, until interrupted.
async fn look(
    verb: &str,
    args: &LookArgs,
    request: Request,
    format: Format,
    text: impl Fn(&Value) -> String,
) -> Result<Value, Failure> {
    let mut client = connect(&args.node).await?;
    let mut shown = Value::Null;
    loop {
        let data = client.ask(&request, SOON).await.map_err(failure)?;
        if data != shown {
            if args.watch && format == Format::Table && std::io::stdout().is_terminal() {
                print("\x1b[2J\x1b[H");
            }
            show(verb, &data, format, &text);
            shown = data;
        }
        if !args.watch {
            return Ok(shown);
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(shown),
            () = tokio::time::sleep(WATCH) => {}
        }
    }
}

/// A node as people read it.
pub fn name(node: &Value) -> String {
    match (node["name"].as_str(), node["id"].as_str()) {
        (Some(name), Some(id)) => format!("{name} ({})", &id[..10.min(id.len())]),
        (None, Some(id)) => id[..10.min(id.len())].to_owned(),
        _ => "-".to_owned(),
    }
}

fn names(list: &Value) -> String {
    let names: Vec<_> = list.as_array().into_iter().flatten().map(name).collect();
    if names.is_empty() { "-".into() } else { names.join(", ") }
}

pub fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        Value::Number(number) if number.is_f64() => format!("{:.3}", number.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}

pub async fn status(args: &LookArgs, format: Format) -> Result<u8, Failure> {
    let look = look("status", args, Request::Status, format, |d| {
        let mut text = format!(
            "{} is {}, level {}, {}\n",
            name(&d["node"]),
            word(&d["state"]),
            word(&d["level"]),
            word(&d["role"])
        );
        if let Some(waiting) = d["waiting_for"].as_str() {
            text += &format!("waits for   {waiting}\n");
        }
        text += &format!(
            "parent      {}\nbackup      {}\nroot        {} ({} hops)\n",
            name(&d["parent"]),
            name(&d["backup"]),
            name(&d["root"]),
            word(&d["rank"])
        );
        text += &format!(
            "children    {}\nlaterals    {}\nneighbours  {}\n",
            names(&d["children"]),
            names(&d["laterals"]),
            word(&d["neighbours"])
        );
        let s = &d["summary"];
        text += &format!(
            "below       {} nodes with this one, at worst {}\n",
            word(&s["members"]),
            word(&s["worst_health"])
        );
        if let Some(waiting) = s["provisional"]["samples"].as_u64() {
            text += &format!("cut off     {waiting} samples of these nodes wait for the root\n");
        }
        let t = &d["telemetry"];
        text += &format!(
            "samples     {} acknowledged, {} committed, {} waiting ({}), {} counted here\n",
            word(&t["acknowledged"]),
            word(&t["committed"]),
            word(&t["outbox_depth"]),
            word(&t["outbox"]),
            word(&t["counted"])
        );
        let journal = &d["journal"];
        if journal["damaged"].as_u64().is_some_and(|stretches| stretches > 0) {
            let (stretches, lost) = (word(&journal["damaged"]), word(&journal["lost_samples"]));
            text += &format!("journal     damaged in {stretches} places, {lost} samples lost\n");
        }
        let listen: Vec<_> = d["listen"].as_array().into_iter().flatten().map(word).collect();
        text += &format!(
            "listen      {}\nuptime      {:.0} s\n",
            listen.join(", "),
            d["uptime_s"].as_f64().unwrap_or_default()
        );
        text
    });
    let data = look.await?;
    Ok(if data["ready"].as_bool() == Some(true) { 0 } else { exit::DEGRADED })
}

pub async fn why(args: &NodeArgs, verb: &WhyArgs, format: Format) -> Result<u8, Failure> {
    let data = ask(args, &Request::Why { node: verb.node.clone() }, SOON).await?;
    show("why", &data, format, |d| {
        let mut text = format!("parent  {}: {}\n", name(&d["parent"]), word(&d["reason"]));
        let change = &d["last_change"];
        if !change.is_null() {
            text += &format!(
                "changed {} from {} to {}, because {}: {}\n",
                word(&change["at"]),
                name(&change["from"]),
                name(&change["to"]),
                word(&change["cause"]),
                word(&change["detail"])
            );
        }
        let rows: Vec<_> = d["candidates"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|c| {
                let closed: Vec<_> = c["gates"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|gate| gate["passed"] == false)
                    .map(|gate| format!("{}: {}", word(&gate["gate"]), word(&gate["detail"])))
                    .collect();
                let factors: Vec<_> = c["factors"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|f| format!("{} {:.2}", word(&f["factor"]), f["contribution"].as_f64().unwrap_or_default()))
                    .collect();
                let chosen = if c["chosen"] == true { "*" } else { "" };
                let why = match c["doubt"].as_str() {
                    _ if !closed.is_empty() => closed.join("; "),
                    Some(doubt) => doubt.to_owned(),
                    None => factors.join(" "),
                };
                vec![chosen.into(), name(&c["node"]), word(&c["score"]), why]
            })
            .collect();
        text + &table(&["", "candidate", "score", "why"], &rows)
    });
    Ok(0)
}

pub async fn members(args: &LookArgs, format: Format) -> Result<u8, Failure> {
    let look = look("members", args, Request::Members, format, |d| {
        let rows: Vec<_> = d
            .as_array()
            .into_iter()
            .flatten()
            .map(|m| {
                vec![
                    name(&m["node"]),
                    word(&m["level"]),
                    word(&m["role"]),
                    word(&m["state"]),
                    name(&m["parent"]),
                    word(&m["via"]),
                ]
            })
            .collect();
        table(&["node", "level", "role", "state", "parent", "via"], &rows)
    });
    look.await.map(|_| 0)
}

pub async fn topology(args: &LookArgs, format: Format, drawing: Option<Drawing>) -> Result<u8, Failure> {
    look("topology", args, Request::Topology, format, |data| draw(data, drawing)).await.map(|_| 0)
}

pub async fn actors(args: &LookArgs, format: Format) -> Result<u8, Failure> {
    let look = look("actors", args, Request::Actors, format, |d| {
        let rows: Vec<_> = d
            .as_array()
            .into_iter()
            .flatten()
            .map(|a| {
                let last = match &a["last_exit"] {
                    Value::Null => "-".into(),
                    exit => format!("{}: {}", word(&exit["kind"]), word(&exit["text"])),
                };
                vec![word(&a["actor"]), word(&a["state"]), word(&a["restarts"]), word(&a["handled"]), last]
            })
            .collect();
        table(&["actor", "state", "restarts", "handled", "last exit"], &rows)
    });
    look.await.map(|_| 0)
}

pub async fn metrics(args: &NodeArgs, format: Format) -> Result<u8, Failure> {
    let data = ask(args, &Request::Metrics, SOON).await?;
    let text = data["openmetrics"].as_str().unwrap_or_default();
    show("metrics", &data["snapshot"], format, |_| text.to_owned());
    Ok(0)
}

pub async fn restart(args: &NodeArgs, verb: &RestartArgs, format: Format) -> Result<u8, Failure> {
    let request = Request::Restart { actor: verb.actor.clone(), panic: verb.panic };
    let data = ask(args, &request, SOON).await?;
    show("restart", &data, format, |d| format!("{} restarted\n", word(&d["actor"])));
    Ok(0)
}

pub async fn publish(args: &NodeArgs, verb: &PublishArgs, format: Format) -> Result<u8, Failure> {
    let data = ask(args, &Request::Publish { metrics: verb.metrics.clone() }, SOON).await?;
    show("publish", &data, format, |d| {
        format!("{} (sample {}, {} waiting)\n", word(&d["outcome"]), word(&d["sample"]["seq"]), word(&d["depth"]))
    });
    Ok(0)
}

pub async fn command(args: &NodeArgs, verb: &CommandArgs, format: Format) -> Result<u8, Failure> {
    let request = Request::Command {
        target: verb.target.clone(),
        text: verb.text.clone(),
        deadline_s: verb.deadline.0.as_secs_f64(),
        expires_s: verb.expires.0.as_secs_f64(),
    };
    let data = ask(args, &request, verb.deadline.0 + SOON).await?;
    show("command", &data, format, |d| {
        let mut text = String::new();
        for ack in d["acks"].as_array().into_iter().flatten() {
            let after = ack["after_s"].as_f64().unwrap_or_default() * 1e3;
            text += &format!(
                "{} {} after {after:.1} ms {}\n",
                name(&ack["node"]),
                word(&ack["answer"]),
                ack["text"].as_str().unwrap_or("")
            )
            .replace(" \n", "\n");
        }
        for missing in d["missing"].as_array().into_iter().flatten() {
            text += &format!("{} has not answered\n", name(missing));
        }
        text + &format!("{} of {} acknowledged\n", word(&d["acknowledged"]), word(&d["expected"]))
    });
    let (expected, acknowledged) = (data["expected"].as_u64(), data["acknowledged"].as_u64());
    let missing = data["missing"].as_array().is_some_and(|missing| !missing.is_empty());
    Ok(match () {
        () if missing => exit::TIMED_OUT,
        () if expected != acknowledged => exit::FAILED,
        () => 0,
    })
}

pub async fn events(args: &NodeArgs, verb: &EventsArgs) -> Result<u8, Failure> {
    let mut client = connect(args).await?;
    client.send(&Request::Events { follow: verb.follow }).await.map_err(failure)?;
    while let Some(line) = client.next_line().await.map_err(failure)? {
        print(&format!("{line}\n"));
    }
    Ok(0)
}
