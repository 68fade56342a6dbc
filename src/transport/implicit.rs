//! Backends that manage their own connections, where connecting and disconnecting express interest only.
//!
//! Such a backend brings sessions up and takes them down as it sees fit, on both sides at once. What the rest of a node
//! works with are connections that somebody opens and somebody closes; this adapter makes those of sessions, with a
//! word at the beginning and at the end of each connection. Implement [`ImplicitBackend`] to bring a backend.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::messages::wire::PREFIX;
use crate::proto::beacon::Scope;
use crate::proto::link::{CloseReason, ConnId};
use crate::transport::{Gate, MeshConnection, MeshTransport, Received, TransportError};

/// What a backend reports.
#[derive(Clone, Debug)]
pub enum BackendEvent {
    /// There is a session with a peer, whoever wanted it.
    Up(NodeId),
    Down(NodeId, String),
    Message(NodeId, Bytes),
    Datagram(NodeId, Bytes),
}

/// A backend that manages its own connections. The identity of peers is the backend's to prove.
pub trait ImplicitBackend: Send + Sync + 'static {
    fn me(&self) -> NodeId;
    /// Whether a session with a peer is wanted from here; the other side may want it too.
    fn interest(&self, peer: NodeId, wanted: bool);
    /// Whether the backend knows the peer to be there.
    fn is_alive(&self, peer: &NodeId) -> bool;
    /// In order, and not lost while the session stands; never waits.
    fn send(&self, peer: &NodeId, message: Bytes) -> Result<(), TransportError>;
    /// May be lost.
    fn send_datagram(&self, peer: &NodeId, datagram: Bytes);
    /// What happens next; `None` when stopped. Cancel-safe.
    fn next(&self) -> BoxFuture<'_, Option<BackendEvent>>;
    fn broadcast(&self, scopes: Vec<Scope>, message: Bytes);
    fn listen(&self, scopes: BTreeSet<Scope>);
    /// The next broadcast of another node; `None` when stopped. Cancel-safe.
    fn heard(&self) -> BoxFuture<'_, Option<Bytes>>;
    fn gate(&self) -> &Gate;
    fn stop(&self) -> BoxFuture<'_, ()>;
}

/// The first byte of a message.
mod tag {
    pub const OPEN: u8 = 0;
    pub const DATA: u8 = 1;
    pub const CLOSE: u8 = 2;
}

type Opened = Result<Arc<dyn MeshConnection>, TransportError>;

enum Ask {
    Open(NodeId, oneshot::Sender<Opened>),
    /// Nobody waits for the peer any more.
    GiveUp(NodeId),
    Close(NodeId, ConnId, CloseReason),
}

/// A transport over such a backend.
pub struct Implicit<B> {
    backend: Arc<B>,
    asks: mpsc::Sender<Ask>,
    accepted: Mutex<mpsc::Receiver<Arc<dyn MeshConnection>>>,
    alive: watch::Sender<Vec<Arc<dyn MeshConnection>>>,
}

impl<B: ImplicitBackend> Implicit<B> {
    pub fn over(backend: B) -> Arc<Self> {
        let backend = Arc::new(backend);
        let (asks, asked) = mpsc::channel(Limits::MAILBOX_CONTROL);
        let (accepting, accepted) = mpsc::channel(Limits::UNGREETED);
        let alive = watch::Sender::new(Vec::new());
        let sessions = Sessions {
            backend: backend.clone(),
            asks: asks.downgrade(),
            accepting,
            alive: alive.clone(),
            up: BTreeSet::new(),
            open: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next: 0,
        };
        tokio::spawn(sessions.run(asked));
        Arc::new(Self { backend, asks, accepted: Mutex::new(accepted), alive })
    }
}

/// The connection over a peer's session.
struct Open<B> {
    connection: Arc<ImplicitConnection<B>>,
    incoming: mpsc::Sender<Received>,
    /// We opened it, and the peer has said nothing yet.
    unanswered: bool,
}

struct Sessions<B> {
    backend: Arc<B>,
    /// For connections, which do not keep a transport alive that nobody holds.
    asks: mpsc::WeakSender<Ask>,
    accepting: mpsc::Sender<Arc<dyn MeshConnection>>,
    alive: watch::Sender<Vec<Arc<dyn MeshConnection>>>,
    up: BTreeSet<NodeId>,
    open: BTreeMap<NodeId, Open<B>>,
    waiting: BTreeMap<NodeId, Vec<oneshot::Sender<Opened>>>,
    next: u64,
}

impl<B: ImplicitBackend> Sessions<B> {
    async fn run(mut self, mut asked: mpsc::Receiver<Ask>) {
        let backend = self.backend.clone();
        loop {
            tokio::select! {
                biased;
                ask = asked.recv() => match ask {
                    Some(ask) => self.asked(ask),
                    None => return,
                },
                event = backend.next() => match event {
                    Some(event) => self.happened(event),
                    None => return,
                },
            }
        }
    }

    fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Open(peer, reply) => {
                self.backend.interest(peer, true);
                if self.open.contains_key(&peer) {
                    // Whoever asked may have gone; the connection stands all the same.
                    let _ = reply.send(Err(TransportError::AlreadyConnected { peer }));
                } else {
                    self.waiting.entry(peer).or_default().push(reply);
                    self.open_for_waiting(peer);
                }
            }
            Ask::GiveUp(peer) => {
                let waiting = self.waiting.entry(peer).or_default();
                waiting.retain(|reply| !reply.is_closed());
                if waiting.is_empty() {
                    self.waiting.remove(&peer);
                    if !self.open.contains_key(&peer) {
                        self.backend.interest(peer, false);
                    }
                }
            }
            Ask::Close(peer, id, reason) => {
                if self.open.get(&peer).is_some_and(|open| open.connection.id == id) {
                    self.open.remove(&peer);
                    let word = Bytes::copy_from_slice(&[tag::CLOSE, reason.code() as u8]);
                    // If the session is gone already, the peer knows.
                    let _ = self.backend.send(&peer, word);
                    self.backend.interest(peer, false);
                }
            }
        }
    }

    fn happened(&mut self, event: BackendEvent) {
        match event {
            BackendEvent::Up(peer) => {
                self.up.insert(peer);
                self.open_for_waiting(peer);
            }
            BackendEvent::Down(peer, reason) => {
                self.up.remove(&peer);
                self.ended(peer, reason);
            }
            BackendEvent::Message(peer, message) => match message.first() {
                Some(&tag::OPEN) => self.opened_by(peer),
                Some(&tag::DATA) => self.received(peer, Received::Frame(message.slice(1..))),
                Some(&tag::CLOSE) => {
                    let code = message.get(1).copied().unwrap_or(0);
                    let reason = CloseReason::from_code(code.into()).map_or("closed", CloseReason::label);
                    self.ended(peer, reason.to_owned());
                }
                _ => self.ended(peer, CloseReason::Fault.label().to_owned()),
            },
            BackendEvent::Datagram(peer, datagram) => {
                if let Some(open) = self.open.get(&peer) {
                    // Datagrams may be lost, here to a full queue.
                    let _ = open.incoming.try_send(Received::Datagram(datagram));
                }
            }
        }
    }

    fn open_for_waiting(&mut self, peer: NodeId) {
        if !self.up.contains(&peer) || self.open.contains_key(&peer) {
            return;
        }
        let Some(reply) = self.waiting.remove(&peer).and_then(|mut waiting| waiting.pop()) else { return };
        let _ = self.backend.send(&peer, Bytes::from_static(&[tag::OPEN]));
        let connection = self.begin(peer, true);
        let _ = reply.send(Ok(connection));
    }

    fn opened_by(&mut self, peer: NodeId) {
        match self.open.get_mut(&peer) {
            // Both opened at once: it is one connection.
            Some(open) if open.unanswered => return open.unanswered = false,
            Some(_) => self.ended(peer, CloseReason::Superseded.label().to_owned()),
            None => {}
        }
        let connection = self.begin(peer, false);
        if self.accepting.try_send(connection.clone()).is_err() {
            connection.close(CloseReason::Crowded);
        }
    }

    fn begin(&mut self, peer: NodeId, unanswered: bool) -> Arc<ImplicitConnection<B>> {
        let (incoming, received) = mpsc::channel(Limits::LINK_QUEUE);
        self.next += 1;
        let connection = Arc::new(ImplicitConnection {
            id: ConnId(self.next),
            peer,
            backend: self.backend.clone(),
            asks: self.asks.clone(),
            incoming: Mutex::new(received),
            closed: watch::Sender::new(None),
        });
        self.open.insert(peer, Open { connection: connection.clone(), incoming, unanswered });
        self.alive.send_modify(|alive| {
            alive.retain(|other| other.closed().is_none());
            alive.push(connection.clone());
        });
        connection
    }

    fn received(&mut self, peer: NodeId, received: Received) {
        let Some(open) = self.open.get_mut(&peer) else { return };
        open.unanswered = false;
        // A reader that does not keep up would hold up every other peer.
        if open.incoming.try_send(received).is_err() {
            open.connection.close(CloseReason::Fault);
        }
    }

    fn ended(&mut self, peer: NodeId, reason: String) {
        if let Some(open) = self.open.remove(&peer) {
            open.connection.end(reason);
        }
    }
}

struct ImplicitConnection<B> {
    id: ConnId,
    peer: NodeId,
    backend: Arc<B>,
    asks: mpsc::WeakSender<Ask>,
    incoming: Mutex<mpsc::Receiver<Received>>,
    closed: watch::Sender<Option<String>>,
}

impl<B> ImplicitConnection<B> {
    /// Whether it had not ended before.
    fn end(&self, reason: String) -> bool {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert(reason);
            first
        })
    }
}

impl<B: ImplicitBackend> MeshConnection for ImplicitConnection<B> {
    fn id(&self) -> ConnId {
        self.id
    }

    fn peer(&self) -> NodeId {
        self.peer
    }

    fn send(&self, frame: Bytes) -> Result<(), TransportError> {
        if let Some(reason) = self.closed() {
            return Err(TransportError::Closed { reason });
        }
        if frame.len() > Limits::FRAME_BYTES + PREFIX {
            return Err(TransportError::TooLarge { bytes: frame.len() });
        }
        let mut message = BytesMut::with_capacity(frame.len());
        message.put_u8(tag::DATA);
        message.extend_from_slice(&frame[PREFIX.min(frame.len())..]);
        self.backend.send(&self.peer, message.freeze())
    }

    fn send_datagram(&self, datagram: Bytes) {
        self.backend.send_datagram(&self.peer, datagram);
    }

    fn receive(&self) -> BoxFuture<'_, Result<Received, String>> {
        async move {
            let mut closed = self.closed.subscribe();
            let mut incoming = self.incoming.lock().await;
            tokio::select! {
                biased;
                received = incoming.recv() => received.ok_or_else(|| self.closed().unwrap_or("closed".into())),
                closed = closed.wait_for(Option::is_some) => {
                    Err(closed.ok().and_then(|reason| reason.clone()).unwrap_or_default())
                }
            }
        }
        .boxed()
    }

    fn close(&self, reason: CloseReason) {
        if self.end(format!("closed here: {}", reason.label()))
            && let Some(asks) = self.asks.upgrade()
        {
            // Full only if more connections end at once than there can be.
            let _ = asks.try_send(Ask::Close(self.peer, self.id, reason));
        }
    }

    fn closed(&self) -> Option<String> {
        self.closed.borrow().clone()
    }

    fn is_alive(&self) -> bool {
        self.closed().is_none() && self.backend.is_alive(&self.peer)
    }
}

impl<B: ImplicitBackend> MeshTransport for Implicit<B> {
    fn me(&self) -> NodeId {
        self.backend.me()
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        Vec::new()
    }

    fn dial(&self, peer: NodeId, _addresses: Vec<SocketAddr>) -> BoxFuture<'static, Opened> {
        let asks = self.asks.clone();
        async move {
            let (reply, opened) = oneshot::channel();
            asks.send(Ask::Open(peer, reply)).await.map_err(|_| TransportError::NotStarted)?;
            match timeout(Limits::DIAL, opened).await {
                Ok(Ok(opened)) => opened,
                Ok(Err(_)) => Err(TransportError::NotStarted),
                Err(_) => {
                    let _ = asks.send(Ask::GiveUp(peer)).await;
                    let reason = format!("the backend has no session after {} s", Limits::DIAL.as_secs());
                    Err(TransportError::ConnectionFailed { peer, reason })
                }
            }
        }
        .boxed()
    }

    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn MeshConnection>>> {
        async move { self.accepted.lock().await.recv().await }.boxed()
    }

    fn connections(&self) -> Vec<Arc<dyn MeshConnection>> {
        self.alive.borrow().iter().filter(|connection| connection.is_alive()).cloned().collect()
    }

    fn broadcast(&self, scopes: Vec<Scope>, message: Bytes) {
        self.backend.broadcast(scopes, message);
    }

    fn listen(&self, scopes: BTreeSet<Scope>) {
        self.backend.listen(scopes);
    }

    fn heard(&self) -> BoxFuture<'_, Option<Bytes>> {
        self.backend.heard()
    }

    fn join(&self, _peer: NodeId) {}

    fn gate(&self) -> &Gate {
        self.backend.gate()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.backend.stop()
    }
}
