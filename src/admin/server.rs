//! The server's side of the control socket.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::admin::{Answer, Refused, Request, account, shapes};
use crate::id::NodeId;
use crate::limits::Limits;
use crate::messages::{Failing, Subsystem};
use crate::node::Node;
use crate::proto::event::Event;

/// How long a subsystem that was made to panic has to be back.
const COMES_BACK: Duration = Duration::from_secs(2);

/// Serves a node's control socket until the handle is aborted. The socket of a killed process is replaced.
pub fn serve(node: Node, socket: &Path) -> std::io::Result<JoinHandle<()>> {
    if let Ok(there) = std::fs::symlink_metadata(socket) {
        if !there.file_type().is_socket() {
            return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, "what is there is no socket"));
        }
        match std::os::unix::net::UnixStream::connect(socket) {
            Ok(_) => return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, "another node answers there")),
            Err(_) => std::fs::remove_file(socket)?,
        }
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    let (clients, path) = (Arc::new(Semaphore::new(Limits::CLIENTS)), socket.to_owned());
    Ok(tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors, most likely: some must close before another try makes sense.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            // More clients than that are turned away: the node has other work.
            let Ok(place) = clients.clone().try_acquire_owned() else { continue };
            let (node, path) = (node.clone(), path.clone());
            tokio::spawn(async move {
                // A client that goes away in the middle has no answer to miss.
                let _ = converse(&node, &path, stream).await;
                drop(place);
            });
        }
    }))
}

async fn converse(node: &Node, socket: &Path, stream: UnixStream) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let read = (&mut reader).take(Limits::REQUEST_BYTES as u64).read_until(b'\n', &mut line).await?;
        if read == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_slice::<Request>(&line) {
            Ok(Request::Events { follow }) => return events(node, follow, &mut writer).await,
            Ok(request) => match answer(node, socket, request).await {
                Ok(data) => Answer::Data(data),
                Err(refused) => Answer::Error(refused),
            },
            Err(error) => {
                let fix = "use a client of the node's own version";
                Answer::Error(Refused::new(2, "bad_request", error.to_string(), fix))
            }
        };
        writer.write_all(format!("{}\n", serde_json::to_string(&answer)?).as_bytes()).await?;
    }
}

async fn answer(node: &Node, socket: &Path, request: Request) -> Result<Value, Refused> {
    match request {
        Request::Status => shapes::status(node, socket).await,
        Request::Why { node: other } => shapes::why(node, other.as_deref()).await,
        Request::Members => shapes::members(node).await,
        Request::Account => account::show(node).await,
        Request::Retire { retired, into } => account::retire(node, &retired, &into).await,
        Request::Topology => shapes::topology(node).await,
        Request::Actors => shapes::actors(node).await,
        Request::Metrics => {
            let snapshot = node.metrics().snapshot().await.map_err(|error| shapes::busy(&error))?;
            Ok(json!({"openmetrics": snapshot.openmetrics(), "snapshot": snapshot}))
        }
        Request::Restart { actor, panic } => restart(node, &actor, panic).await,
        Request::Publish { metrics } => shapes::publish(node, metrics).await,
        Request::Command { target, text, deadline_s, expires_s } => {
            let span = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(5));
            shapes::command(node, &target, text, span(deadline_s), span(expires_s)).await
        }
        Request::Gate { shut_out } => {
            let ids: Result<_, _> = shut_out.iter().map(|id| id.parse::<NodeId>()).collect();
            let ids = ids.map_err(|e| Refused::new(2, "bad_id", e.to_string(), "give 64 hex digits"))?;
            node.transport().shut_out(ids);
            Ok(Value::Null)
        }
        Request::Events { .. } => Ok(Value::Null),
    }
}

async fn restart(node: &Node, actor: &str, panic: bool) -> Result<Value, Refused> {
    let Some(subsystem) = Subsystem::parse(actor) else {
        let known: Vec<_> = Subsystem::ALL.iter().map(|subsystem| subsystem.label()).collect();
        let fix = match crate::config::nearest(actor, &known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("use one of: {}", known.join(", ")),
        };
        return Err(Refused::new(2, "unknown_actor", format!("there is no actor `{actor}`"), fix));
    };
    if !panic {
        node.restart(subsystem).await.map_err(|error| shapes::busy(&error))?;
        return Ok(json!({"actor": subsystem.label(), "restarted": true}));
    }
    let mut events = node.events();
    node.fail(subsystem, Failing::Panic).map_err(|error| shapes::busy(&error))?;
    let restarted = async {
        while let Some(record) = events.next().await {
            if matches!(&record.event, Event::ActorRestarted { actor, .. } if actor == subsystem.label()) {
                return true;
            }
        }
        false
    };
    if tokio::time::timeout(COMES_BACK, restarted).await != Ok(true) {
        let fix = "`tussock actors` says how it is doing";
        return Err(Refused::new(5, "not_restarted", format!("{actor} did not come back within 2 s"), fix));
    }
    Ok(json!({"actor": subsystem.label(), "restarted": true}))
}

async fn events(node: &Node, follow: bool, writer: &mut (impl tokio::io::AsyncWrite + Unpin)) -> std::io::Result<()> {
    let mut stream = node.events();
    let history = node.metrics().history().await.unwrap_or_default();
    let last = history.last().map_or(0, |record| record.seq);
    let first = std::iter::once(shapes::snapshot_line(node));
    for line in first.chain(history.iter().map(|record| shapes::event_line(node, record))) {
        writer.write_all(format!("{line}\n").as_bytes()).await?;
    }
    if !follow {
        return writer.shutdown().await;
    }
    while let Some(record) = stream.next().await {
        if record.seq == 0 || record.seq > last {
            let line = shapes::event_line(node, &record);
            writer.write_all(format!("{line}\n").as_bytes()).await?;
        }
    }
    writer.shutdown().await
}
