//! The port to the outside: connections that carry frames, and a broadcast that carries beacons.

mod gate;
mod gossip;
pub mod implicit;
mod index;
pub mod iroh;
pub mod memory;

pub use gate::Gate;
pub use index::LinkIndex;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::beacon::Scope;
use crate::proto::link::{CloseReason, ConnId};

/// Why the transport did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    #[error("cannot listen on {address}: {reason}")]
    Listen { address: SocketAddr, reason: String },
    #[error("no connection to {peer:?}: {reason}")]
    ConnectionFailed { peer: NodeId, reason: String },
    #[error("the peer at that address has another key than {peer:?}")]
    WrongKey { peer: NodeId },
    #[error("no address is known for {peer:?}")]
    PeerNotFound { peer: NodeId },
    #[error("already connected to {peer:?}")]
    AlreadyConnected { peer: NodeId },
    #[error("the transport is not started, or was stopped")]
    NotStarted,
    #[error("refused by {peer:?}: {reason}")]
    Refused { peer: NodeId, reason: String },
    #[error("a message of {bytes} bytes is over the limit of {limit}", limit = Limits::FRAME_BYTES)]
    TooLarge { bytes: usize },
    #[error("the link's queue is full")]
    Busy,
    #[error("the connection is closed: {reason}")]
    Closed { reason: String },
}

/// What arrives on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A frame without its length prefix.
    Frame(Bytes),
    Datagram(Bytes),
}

/// One connection to a peer whose key is proven. A peer may have several; which one is its link is decided above.
pub trait MeshConnection: Send + Sync + 'static {
    fn id(&self) -> ConnId;
    fn peer(&self) -> NodeId;
    /// Queues one frame with its length prefix, in order after those before; never waits.
    fn send(&self, frame: Bytes) -> Result<(), TransportError>;
    /// Sends a datagram, which may be lost.
    fn send_datagram(&self, datagram: Bytes);
    /// The next frame or datagram, or why there are no more. Cancel-safe.
    fn receive(&self) -> BoxFuture<'_, Result<Received, String>>;
    /// Closes in order: the peer gets what was sent before, if it is there to take it, and is told why.
    fn close(&self, reason: CloseReason);
    /// Why it is closed, from the real connection; `None` while it is alive.
    fn closed(&self) -> Option<String>;

    fn is_alive(&self) -> bool {
        self.closed().is_none()
    }
}

/// An adapter that is started: it dials, accepts, and broadcasts.
pub trait MeshTransport: Send + Sync + 'static {
    fn me(&self) -> NodeId;
    /// Where others reach this node.
    fn addresses(&self) -> Vec<SocketAddr>;
    /// A new connection, its handshake done.
    fn dial(
        &self,
        peer: NodeId,
        addresses: Vec<SocketAddr>,
    ) -> BoxFuture<'static, Result<Arc<dyn MeshConnection>, TransportError>>;
    /// The next connection from outside; `None` when stopped. Cancel-safe.
    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn MeshConnection>>>;
    /// Every connection that is not closed, for an actor that restarts.
    fn connections(&self) -> Vec<Arc<dyn MeshConnection>>;
    /// Says something to who listens to one of these scopes and can hear; may be lost.
    fn broadcast(&self, scopes: Vec<Scope>, message: Bytes);
    /// Listens to these scopes from now on, and to no others.
    fn listen(&self, scopes: BTreeSet<Scope>);
    /// The next broadcast of another node; `None` when stopped. Cancel-safe.
    fn heard(&self) -> BoxFuture<'_, Option<Bytes>>;
    /// Brings the broadcast to a peer that was met.
    fn join(&self, peer: NodeId);
    /// What keeps chosen peers out, for tests and the demo.
    fn gate(&self) -> &Gate;
    /// Closes everything in order.
    fn stop(&self) -> BoxFuture<'_, ()>;
}
