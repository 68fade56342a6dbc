//! `tussock run` and `tussock id`: one node until it is stopped.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tussock::admin::{runtime_dir, serve};
use tussock::config::{Layers, StaticPeer};
use tussock::node::data_dir_identity;
use tussock::storage::StorageError;
use tussock::transport::TransportError;
use tussock::{Config, Event, Node, NodeId, SpawnError};

use crate::output::{Failure, Format, envelope, exit, print, print_json, say};
use crate::telemetry;

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[arg(long)]
    name: Option<String>,
    /// The label of the node's level
    #[arg(long)]
    level: Option<String>,
    /// LAT,LON or LAT,LON,ALT
    #[arg(long, allow_hyphen_values = true)]
    position: Option<String>,
    /// ADDR:PORT; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// ID@ADDR of a peer to begin with; may be given several times
    #[arg(long = "peer", value_name = "ID@ADDR")]
    peers: Vec<String>,
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Any configuration key; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Where the control socket goes, instead of the data directory
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Publishes JSON lines from standard input
    #[arg(long)]
    telemetry_stdin: bool,
}

#[derive(Debug, Args)]
pub struct IdArgs {
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

pub fn id(args: &IdArgs, format: Format) -> Result<u8, Failure> {
    let id = data_dir_identity(&args.data_dir).map_err(|error| storage_failure(&error))?;
    match format {
        Format::Table => print(&format!("{id}\n")),
        Format::Json | Format::Jsonl => print_json("id", &json!({"id": id.to_string()})),
    }
    Ok(0)
}

pub async fn run(args: &RunArgs, format: Format) -> Result<u8, Failure> {
    let config = configuration(args)?;
    if config.transport.open && !config.transport.listen.ip().is_loopback() {
        say(&format!(
            "tussock: anyone who can reach {} may join this mesh and command it (transport.open = true)",
            config.transport.listen
        ));
    }
    let machine_health = config.telemetry.machine_health;
    let node = Node::builder().config(config).spawn().await.map_err(|error| spawn_failure(&error))?;
    // The host takes its commands before anyone can learn that the node is there.
    let accepting = accept_commands(&node);
    let sockets = match Sockets::open(&node, args) {
        Ok(sockets) => sockets,
        Err(failure) => {
            let _ = node.shutdown().await;
            return Err(failure);
        }
    };
    // Who reads that it is ready may stop it at once.
    let signals = Signals::listen()?;
    announce(&node, &sockets.path, format);
    let mut tasks = vec![accepting, log_events(&node)];
    if machine_health {
        tasks.push(telemetry::publish_health(node.clone()));
    }
    if args.telemetry_stdin {
        tasks.push(telemetry::publish_stdin(node.clone()));
    }
    let code = until_stopped(&node, signals).await;
    tasks.iter().for_each(JoinHandle::abort);
    drop(sockets);
    code
}

fn configuration(args: &RunArgs) -> Result<Config, Failure> {
    let mut layers = Layers::new();
    if let Some(path) = &args.config {
        layers = layers.file(path)?;
    }
    layers = layers.environment(variables());
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    if let Some(name) = &args.name {
        layers = layers.set("node.name", &quoted(name), "--name".into());
    }
    if let Some(level) = &args.level {
        layers = layers.set("node.level", &quoted(level), "--level".into());
    }
    if let Some(position) = &args.position {
        layers = layers.set("node.position", &format!("[{position}]"), "--position".into());
    }
    if let Some(listen) = &args.listen {
        layers = layers.set("transport.listen", &quoted(listen), "--listen".into());
    }
    if let Some(directory) = &args.data_dir {
        layers = layers.set("node.data_dir", &quoted(&directory.to_string_lossy()), "--data-dir".into());
    }
    for setting in &args.settings {
        let Some((key, value)) = setting.split_once('=') else {
            let message = format!("--set {setting}: there is no `=`");
            return Err(Failure::new(exit::CONFIG, "invalid_setting", message, "write it as --set KEY=VALUE"));
        };
        layers = layers.set(key, value, format!("--set {key}"));
    }
    let mut config = layers.build()?;
    for peer in &args.peers {
        config.discovery.fixed.peers.push(parse_peer(peer)?);
    }
    Ok(config)
}

fn parse_peer(text: &str) -> Result<StaticPeer, Failure> {
    let wrong = |why: String| {
        let fix = "write it as ID@ADDR:PORT; `tussock id --data-dir DIR` prints a node's id";
        Failure::new(exit::USAGE, "malformed_peer", format!("--peer {text}: {why}"), fix)
    };
    let (id, address) = text.split_once('@').ok_or_else(|| wrong("there is no `@`".into()))?;
    let id: NodeId = id.parse().map_err(|error: tussock::id::ParseNodeIdError| wrong(error.to_string()))?;
    let address: SocketAddr =
        address.parse().map_err(|_| wrong(format!("`{address}` is not an address with a port")))?;
    Ok(StaticPeer { id, addresses: vec![address], priority: 0 })
}

fn storage_failure(error: &StorageError) -> Failure {
    let (code, fix) = match error {
        StorageError::InUse { .. } => {
            ("data_dir_in_use", "stop that process, or give this node a --data-dir of its own".to_owned())
        }
        StorageError::Io { path, .. } => ("data_dir", format!("see what is at {}, and who may use it", path.display())),
        StorageError::Damaged { .. } => ("data_dir_damaged", "restore the file, or use another --data-dir".to_owned()),
    };
    Failure::new(exit::FAILED, code, error.to_string(), fix)
}

fn spawn_failure(error: &SpawnError) -> Failure {
    match error {
        SpawnError::Config(problems) => problems.clone().into(),
        SpawnError::Storage(error) => storage_failure(error),
        SpawnError::Transport(TransportError::Listen { address, .. }) => Failure::new(
            exit::FAILED,
            "cannot_listen",
            error.to_string(),
            format!("stop what uses {address}, or listen elsewhere: --listen {}:0", address.ip()),
        ),
        other => Failure::new(exit::FAILED, "not_started", other.to_string(), "see the log: --log debug"),
    }
}

/// The control socket, and its link in the runtime directory by which clients find the only running node.
struct Sockets {
    path: PathBuf,
    link: Option<PathBuf>,
    serving: JoinHandle<()>,
}

/// What the kernel takes, less room to spare.
const SOCKET_PATH_BYTES: usize = 100;

impl Sockets {
    fn open(node: &Node, args: &RunArgs) -> Result<Self, Failure> {
        let runtime = runtime_dir();
        let in_runtime = runtime.join(format!("{}.sock", node.name()));
        let path = match (&args.socket, &node.config().node.data_dir) {
            (Some(socket), _) => socket.clone(),
            (None, Some(directory)) => directory.join("tussock.sock"),
            (None, None) => in_runtime.clone(),
        };
        let path = std::path::absolute(&path).unwrap_or(path);
        if path.as_os_str().len() > SOCKET_PATH_BYTES {
            let message = format!("the socket's path is too long: {}", path.display());
            let fix = "name a shorter one with --socket PATH";
            return Err(Failure::new(exit::CONFIG, "socket_path_too_long", message, fix));
        }
        let failed = |error: std::io::Error| {
            let fix = "stop the node that answers there, or name another with --socket PATH";
            Failure::new(exit::FAILED, "socket", format!("{}: {error}", path.display()), fix)
        };
        if path == in_runtime {
            private_dir(&runtime).map_err(failed)?;
        }
        let serving = serve(node.clone(), &path).map_err(failed)?;
        // Without the link clients have to name the node; that is no reason not to run.
        let link = runtime.join(format!("{}.{}.sock", node.name(), std::process::id()));
        let linked =
            path != in_runtime && private_dir(&runtime).is_ok() && std::os::unix::fs::symlink(&path, &link).is_ok();
        let link = linked.then_some(link);
        Ok(Self { path, link, serving })
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.serving.abort();
        for path in std::iter::once(&self.path).chain(&self.link) {
            let _ = std::fs::remove_file(path);
        }
    }
}

pub fn private_dir(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // In a shared place somebody else may have made it before: then it is theirs to read.
    let metadata = std::fs::symlink_metadata(directory)?;
    if !metadata.is_dir() || metadata.permissions().mode() & 0o077 != 0 {
        let message = format!("{} is not a private directory", directory.display());
        return Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, message));
    }
    Ok(())
}

fn announce(node: &Node, socket: &Path, format: Format) {
    let listen: Vec<String> = node.listen().iter().map(SocketAddr::to_string).collect();
    let config = node.config();
    let line = match format {
        Format::Table => {
            format!("ready {} {} listen={} socket={}", node.name(), node.id(), listen.join(","), socket.display())
        }
        Format::Json | Format::Jsonl => envelope(
            "run",
            &json!({
                "node": {"id": node.id().to_string(), "name": node.name()},
                "level": config.topology.levels.label(config.level()),
                "listen": listen,
                "socket": socket,
                "data_dir": config.node.data_dir,
                "pid": std::process::id(),
            }),
        )
        .to_string(),
    };
    // A node does not depend on somebody reading this.
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        tracing::warn!(%error, "stdout takes nothing; the node goes on");
    }
}

/// The environment; what is no text cannot be a value, and is refused as one.
pub fn variables() -> impl Iterator<Item = (String, String)> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

/// A plain node accepts every command, after it has emitted `command_received`.
pub fn accept_commands(node: &Node) -> JoinHandle<()> {
    let mut commands = node.commands();
    tokio::spawn(async move {
        while let Some(command) = commands.next().await {
            command.accept("");
        }
    })
}

/// One line per change of parent, role or actor.
fn log_events(node: &Node) -> JoinHandle<()> {
    let mut events = node.events();
    let names = node.clone();
    tokio::spawn(async move {
        while let Some(record) = events.next().await {
            let known = tussock::admin::event_line(&names, &record);
            let name = |key: &str| known[key]["name"].as_str().or(known[key]["id"].as_str()).unwrap_or("?").to_owned();
            match &record.event {
                Event::PeerSelected { .. } => tracing::info!("parent {}", name("parent")),
                Event::PeerChanged { cause, .. } => {
                    tracing::info!(?cause, "parent {} after {}", name("to"), name("from"))
                }
                Event::PeerLost { reason, .. } => tracing::info!("parent {} lost: {reason}", name("parent")),
                Event::RoleChanged { from, to } => tracing::info!("role {to:?} after {from:?}"),
                Event::ActorRestarted { actor, cause, warm, took } => {
                    tracing::info!(warm, ?took, "actor {actor} restarted after {cause}");
                }
                Event::ActorStuck { actor, since } => tracing::warn!("actor {actor} is stuck since {since:?}"),
                _ => {}
            }
        }
    })
}

/// Interrupt and SIGTERM: the first stops in order.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub fn listen() -> Result<Self, Failure> {
        let on = |kind| {
            let fix = "run it where signals can be handled";
            signal(kind).map_err(|error| Failure::new(exit::FAILED, "signals", error.to_string(), fix))
        };
        Ok(Self { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())? })
    }

    /// The next of either. Cancel-safe.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

async fn until_stopped(node: &Node, mut signals: Signals) -> Result<u8, Failure> {
    let watched = watch_for_spinning();
    tokio::select! {
        ended = node.wait() => {
            watched.abort();
            let fix = "start it again; if it stops again, run it with --log debug";
            return Err(Failure::new(exit::FAILED, "node_ended", ended.to_string(), fix));
        }
        () = signals.next() => {}
    }
    watched.abort();
    tokio::select! {
        stopped = node.shutdown() => match stopped {
            Ok(()) => Ok(0),
            Err(error) => Err(Failure::new(exit::FAILED, "not_stopped", error.to_string(), "none is needed")),
        },
        () = signals.next() => std::process::exit(exit::INTERRUPTED.into()),
    }
}

/// When every worker of the runtime spins, nobody in it can say so: a thread of its own listens for a beat.
///
/// It counts seconds in which it ran itself, so a process that was suspended is not mistaken for one that spins.
fn watch_for_spinning() -> JoinHandle<()> {
    const PATIENCE: u32 = 15;
    let (beat, beats) = std::sync::mpsc::sync_channel::<()>(1);
    std::thread::spawn(move || {
        let mut missed = 0;
        while missed < PATIENCE {
            match beats.recv_timeout(Duration::from_secs(1)) {
                Ok(()) => missed = 0,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => missed += 1,
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
        say("tussock: the runtime has not come round for 15 s: handlers spin; stopping");
        std::process::exit(exit::FAILED.into());
    });
    tokio::spawn(async move {
        loop {
            // A full channel is a beat that was not taken yet.
            let _ = beat.try_send(());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
}
