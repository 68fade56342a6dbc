//! The client's side of the control socket.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::admin::{Answer, Refused, Request};

/// Why a node could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no node answers at {socket}: {error}", socket = .socket.display())]
    Unreachable { socket: PathBuf, error: std::io::Error },
    #[error("the node at {socket} did not answer in time", socket = .socket.display())]
    TimedOut { socket: PathBuf },
    #[error("the node's answer is not understood: {0}")]
    Answer(String),
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// A connection to a node's control socket.
pub struct Client {
    socket: PathBuf,
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Client {
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let unreachable = |error| ClientError::Unreachable { socket: socket.to_owned(), error };
        let (reader, writer) = UnixStream::connect(socket).await.map_err(unreachable)?.into_split();
        Ok(Self { socket: socket.to_owned(), lines: BufReader::new(reader).lines(), writer })
    }

    /// Asks and waits for the answer, for so long at most.
    pub async fn ask(&mut self, request: &Request, within: Duration) -> Result<Value, ClientError> {
        let asking = async {
            self.send(request).await?;
            self.next_line().await
        };
        let line =
            timeout(within, asking).await.map_err(|_| ClientError::TimedOut { socket: self.socket.clone() })??;
        let line = line.ok_or_else(|| ClientError::Answer("the connection was closed".into()))?;
        match serde_json::from_str(&line).map_err(|error| ClientError::Answer(error.to_string()))? {
            Answer::Data(data) => Ok(data),
            Answer::Error(refused) => Err(refused.into()),
        }
    }

    pub async fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let line = serde_json::to_string(request).map_err(|error| ClientError::Answer(error.to_string()))?;
        let unreachable = |error| ClientError::Unreachable { socket: self.socket.clone(), error };
        self.writer.write_all(format!("{line}\n").as_bytes()).await.map_err(unreachable)
    }

    /// The next line of a stream; `None` at its end.
    pub async fn next_line(&mut self) -> Result<Option<String>, ClientError> {
        let unreachable = |error| ClientError::Unreachable { socket: self.socket.clone(), error };
        self.lines.next_line().await.map_err(unreachable)
    }
}

/// Where sockets of nodes without a data directory are, and links to those with one.
pub fn runtime_dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("tussock"),
        None => {
            let user = std::env::var("USER").unwrap_or_else(|_| "user".into());
            std::env::temp_dir().join(format!("tussock-{user}"))
        }
    }
}

/// The sockets at which a node answers, of those in the runtime directory.
pub async fn running_nodes() -> Vec<PathBuf> {
    let within = |directory: PathBuf| std::fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path());
    let (directories, mut sockets): (Vec<_>, Vec<_>) = within(runtime_dir()).partition(|path| path.is_dir());
    // The nodes of a running demo are in a directory of their own.
    sockets.extend(directories.into_iter().flat_map(within));
    sockets.retain(|path| path.extension().is_some_and(|extension| extension == "sock"));
    sockets.sort();
    let (mut answering, mut seen) = (Vec::new(), BTreeSet::new());
    for socket in sockets {
        // A node that was killed may have left a link to a socket that its successor has.
        let real = std::fs::canonicalize(&socket).unwrap_or_else(|_| socket.clone());
        if UnixStream::connect(&socket).await.is_ok() && seen.insert(real) {
            answering.push(socket);
        }
    }
    answering
}
