//! The iroh adapter: QUIC with our own endpoint; no relay, no lookup, no public service is ever contacted.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use iroh::address_lookup::memory::MemoryLookup;
use iroh::endpoint::{
    Connection, ConnectionError, IdleTimeout, PortmapperConfig, QuicTransportConfig, RecvStream, SendStream, presets,
};
use iroh::protocol::{AcceptError, ProtocolHandler, Router};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, SecretKey};
use iroh_gossip::net::Gossip;
use iroh_gossip::proto::{HyparviewConfig, PlumtreeConfig};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::timeout;

use crate::id::{FormationId, Keypair, NodeId};
use crate::limits::Limits;
use crate::messages::wire::{PREFIX, frame_length};
use crate::proto::beacon::Scope;
use crate::proto::link::{CloseReason, ConnId};
use crate::transport::gossip::{GossipCommand, MESSAGE_BYTES, Overlay, Restraint};
use crate::transport::{Gate, MeshConnection, MeshTransport, Received, TransportError};

/// How long the end of a connection waits for the peer to take what was sent before.
const FAREWELL: Duration = Duration::from_millis(250);
/// The protocol's name in the TLS handshake; its number changes when frames do.
pub const ALPN: &[u8] = b"tussock/1";

/// A started endpoint.
pub struct IrohTransport {
    me: NodeId,
    endpoint: Endpoint,
    router: Router,
    lookup: MemoryLookup,
    gate: Gate,
    accepted: Mutex<mpsc::Receiver<Arc<IrohConnection>>>,
    heard: Mutex<mpsc::Receiver<Bytes>>,
    gossip: mpsc::Sender<GossipCommand>,
    registry: Registry,
}

/// Connections that are not closed, and the number of the next one.
#[derive(Clone)]
struct Registry {
    alive: watch::Sender<Vec<Arc<IrohConnection>>>,
    next: Arc<AtomicU64>,
    gate: Gate,
}

impl Registry {
    fn add(&self, connection: Connection) -> Arc<IrohConnection> {
        let id = ConnId(self.next.fetch_add(1, Ordering::Relaxed));
        let connection = Arc::new(IrohConnection::new(id, connection, self.gate.clone()));
        self.alive.send_modify(|alive| {
            alive.retain(|other| other.is_alive());
            alive.push(connection.clone());
        });
        connection
    }
}

impl IrohTransport {
    /// Binds the socket and begins to accept.
    pub async fn start(key: &Keypair, formation: FormationId, listen: SocketAddr) -> Result<Arc<Self>, TransportError> {
        let refused = |reason: String| TransportError::Listen { address: listen, reason };
        // iroh would fall back to another port in silence: whoever names a port wants that one.
        if listen.port() != 0 {
            drop(std::net::UdpSocket::bind(listen).map_err(|error| refused(error.to_string()))?);
        }
        let idle = IdleTimeout::try_from(Limits::CONNECTION_SILENCE).map_err(|error| refused(error.to_string()))?;
        let timers = QuicTransportConfig::builder()
            .keep_alive_interval(Limits::KEEP_ALIVE)
            .max_idle_timeout(Some(idle))
            .default_path_keep_alive_interval(Limits::KEEP_ALIVE)
            .default_path_max_idle_timeout(Limits::CONNECTION_SILENCE)
            .build();
        let lookup = MemoryLookup::new();
        let endpoint = Endpoint::builder(presets::Minimal)
            .secret_key(SecretKey::from_bytes(&key.seed()))
            .relay_mode(RelayMode::Disabled)
            .clear_ip_transports()
            .bind_addr(listen)
            .map_err(|error| refused(error.to_string()))?
            .portmapper_config(PortmapperConfig::Disabled)
            .transport_config(timers)
            .hooks(Restraint::new())
            .address_lookup(lookup.clone())
            .bind()
            .await
            .map_err(|error| refused(error.to_string()))?;
        let membership =
            HyparviewConfig { neighbor_request_timeout: Limits::GOSSIP_ASKS_EVERY, ..HyparviewConfig::default() };
        let broadcast = PlumtreeConfig { message_id_retention: Limits::GOSSIP_REMEMBERS, ..PlumtreeConfig::default() };
        let gossip = Gossip::builder().membership_config(membership).broadcast_config(broadcast);
        let gossip = gossip.max_message_size(MESSAGE_BYTES).spawn(endpoint.clone());
        let gate = Gate::default();
        let registry = Registry { alive: watch::Sender::new(Vec::new()), next: Arc::default(), gate: gate.clone() };
        let (accepting, accepted) = mpsc::channel(Limits::UNGREETED);
        let router = Router::builder(endpoint.clone())
            .accept(ALPN, Acceptor { registry: registry.clone(), accepting })
            .accept(iroh_gossip::ALPN, gossip.clone())
            .spawn();
        let (hearing, heard) = mpsc::channel(Limits::MAILBOX_DATA);
        let (commands, asked) = mpsc::channel(Limits::MAILBOX_DATA);
        tokio::spawn(Overlay::new(endpoint.clone(), gossip, formation, gate.clone(), hearing).run(asked));
        Ok(Arc::new(Self {
            me: key.id(),
            endpoint,
            router,
            lookup,
            gate,
            accepted: Mutex::new(accepted),
            heard: Mutex::new(heard),
            gossip: commands,
            registry,
        }))
    }
}

#[derive(Clone)]
struct Acceptor {
    registry: Registry,
    accepting: mpsc::Sender<Arc<IrohConnection>>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

impl ProtocolHandler for Acceptor {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let connection = self.registry.add(connection);
        // When more arrive than are taken up, the newest is refused rather than kept waiting.
        if let Err(mpsc::error::TrySendError::Full(connection)) = self.accepting.try_send(connection) {
            connection.close(CloseReason::Crowded);
        }
        Ok(())
    }
}

impl MeshTransport for IrohTransport {
    fn me(&self) -> NodeId {
        self.me
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let bound = self.endpoint.bound_sockets();
        let unspecified = bound.iter().any(|address| address.ip().is_unspecified());
        if unspecified { self.endpoint.addr().ip_addrs().copied().collect() } else { bound }
    }

    fn dial(
        &self,
        peer: NodeId,
        addresses: Vec<SocketAddr>,
    ) -> BoxFuture<'static, Result<Arc<dyn MeshConnection>, TransportError>> {
        let (endpoint, lookup) = (self.endpoint.clone(), self.lookup.clone());
        let (gate, registry) = (self.gate.clone(), self.registry.clone());
        async move {
            if endpoint.is_closed() {
                return Err(TransportError::NotStarted);
            }
            let failed = |reason: String| TransportError::ConnectionFailed { peer, reason };
            let id = EndpointId::from_bytes(peer.as_bytes()).map_err(|error| failed(error.to_string()))?;
            let dialling = async {
                gate.open_for(peer).await;
                if addresses.is_empty() {
                    return endpoint.connect(id, ALPN).await;
                }
                let address = addresses.iter().fold(EndpointAddr::new(id), |to, ip| to.with_ip_addr(*ip));
                lookup.set_endpoint_info(address.clone());
                endpoint.connect(address, ALPN).await
            };
            match timeout(Limits::DIAL, dialling).await {
                Ok(Ok(connection)) => Ok(registry.add(connection) as Arc<dyn MeshConnection>),
                Ok(Err(error)) => {
                    let reason = describe(&error);
                    match () {
                        () if reason.contains("UnknownIssuer") => Err(TransportError::WrongKey { peer }),
                        () if addresses.is_empty() => Err(TransportError::PeerNotFound { peer }),
                        () => Err(failed(reason)),
                    }
                }
                Err(_) => Err(failed(format!("no answer within {} s", Limits::DIAL.as_secs()))),
            }
        }
        .boxed()
    }

    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn MeshConnection>>> {
        async move {
            let connection = self.accepted.lock().await.recv().await?;
            Some(connection as Arc<dyn MeshConnection>)
        }
        .boxed()
    }

    fn connections(&self) -> Vec<Arc<dyn MeshConnection>> {
        let alive = self.registry.alive.borrow();
        alive.iter().filter(|connection| connection.is_alive()).map(|c| c.clone() as Arc<dyn MeshConnection>).collect()
    }

    fn broadcast(&self, scopes: Vec<Scope>, message: Bytes) {
        // Beacons are repeated; one that finds the queue full is dropped.
        let _ = self.gossip.try_send(GossipCommand::Broadcast(scopes, message));
    }

    fn listen(&self, scopes: BTreeSet<Scope>) {
        if self.gossip.try_send(GossipCommand::Listen(scopes)).is_err() {
            tracing::warn!("the gossip does not keep up: what is listened to was not changed");
        }
    }

    fn heard(&self) -> BoxFuture<'_, Option<Bytes>> {
        async move { self.heard.lock().await.recv().await }.boxed()
    }

    fn join(&self, peer: NodeId) {
        if let Ok(id) = EndpointId::from_bytes(peer.as_bytes()) {
            let _ = self.gossip.try_send(GossipCommand::Join(id));
        }
    }

    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        async move {
            let open = self.registry.alive.borrow().clone();
            let closed = futures_util::future::join_all(open.iter().map(|open| open.connection.closed()));
            let _ = timeout(FAREWELL, closed).await;
            if let Err(error) = self.router.shutdown().await {
                tracing::debug!(%error, "the endpoint did not stop in order");
            }
        }
        .boxed()
    }
}

/// The chain of causes in one line: the first alone says too little.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// A QUIC connection: one stream in each direction, and datagrams.
struct IrohConnection {
    id: ConnId,
    peer: NodeId,
    connection: Connection,
    gate: Gate,
    outgoing: mpsc::Sender<Bytes>,
    incoming: Mutex<Incoming>,
    /// Why we closed it ourselves.
    ended: watch::Sender<Option<CloseReason>>,
}

#[derive(Default)]
struct Incoming {
    stream: Option<RecvStream>,
    buffer: BytesMut,
}

impl IrohConnection {
    fn new(id: ConnId, connection: Connection, gate: Gate) -> Self {
        let peer = NodeId::from_bytes(*connection.remote_id().as_bytes());
        let (outgoing, queue) = mpsc::channel(Limits::LINK_QUEUE);
        let ended = watch::Sender::new(None);
        tokio::spawn(write(connection.clone(), peer, gate.clone(), queue, ended.subscribe()));
        Self { id, peer, connection, gate, outgoing, incoming: Mutex::default(), ended }
    }

    fn is_blocked(&self) -> bool {
        self.gate.blocks(&self.peer)
    }

    async fn next(&self) -> Result<Received, String> {
        let mut incoming = self.incoming.lock().await;
        let mut ended = self.ended.subscribe();
        loop {
            if let Some(frame) = take_frame(&mut incoming.buffer)? {
                return Ok(Received::Frame(frame));
            }
            self.gate.open_for(self.peer).await;
            let Incoming { stream, buffer } = &mut *incoming;
            tokio::select! {
                biased;
                _ = ended.wait_for(Option::is_some) => return Err(self.closed().unwrap_or_default()),
                datagram = self.connection.read_datagram() => {
                    let datagram = datagram.map_err(|error| reason_of(&error))?;
                    if !self.is_blocked() {
                        return Ok(Received::Datagram(datagram));
                    }
                }
                read = read(&self.connection, stream, buffer) => read?,
            }
        }
    }
}

/// Reads whatever the peer's stream has; what arrived stays in the buffer if this is cancelled.
async fn read(connection: &Connection, stream: &mut Option<RecvStream>, buffer: &mut BytesMut) -> Result<(), String> {
    let stream = match stream {
        Some(stream) => stream,
        None => stream.insert(connection.accept_uni().await.map_err(|error| reason_of(&error))?),
    };
    match stream.read_chunk(64 * 1024).await {
        Ok(Some(chunk)) => {
            buffer.extend_from_slice(&chunk);
            Ok(())
        }
        Ok(None) => Err(connection.closed().map(|error| reason_of(&error)).await),
        Err(error) => match connection.close_reason() {
            Some(closed) => Err(reason_of(&closed)),
            None => Err(error.to_string()),
        },
    }
}

fn take_frame(buffer: &mut BytesMut) -> Result<Option<Bytes>, String> {
    let Some(prefix) = buffer.first_chunk::<PREFIX>() else { return Ok(None) };
    let length = frame_length(*prefix).map_err(|error| error.to_string())?;
    if buffer.len() < PREFIX + length {
        return Ok(None);
    }
    buffer.advance(PREFIX);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// Writes what is sent until the connection is ended here; what was sent before goes first, for as long as the peer takes
/// it. Behind a shut gate all of it waits as behind lost packets, the last word too.
async fn write(
    connection: Connection,
    peer: NodeId,
    gate: Gate,
    queue: mpsc::Receiver<Bytes>,
    mut ended: watch::Receiver<Option<CloseReason>>,
) {
    let mut stream = None;
    write_queued(&connection, peer, &gate, queue, ended.clone(), &mut stream).await;
    let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| *reason);
    let Some(reason) = reason else { return };
    gate.open_for(peer).await;
    if let Some(stream) = &mut stream
        && stream.finish().is_ok()
    {
        // Who does not take it in time is told only that it is over.
        let _ = timeout(FAREWELL, stream.stopped()).await;
    }
    connection.close(reason.code().into(), reason.label().as_bytes());
}

/// Writes queued frames, several at a time when several wait, until the end or until the stream takes no more.
async fn write_queued(
    connection: &Connection,
    peer: NodeId,
    gate: &Gate,
    mut queue: mpsc::Receiver<Bytes>,
    mut ended: watch::Receiver<Option<CloseReason>>,
    stream: &mut Option<SendStream>,
) {
    let mut batch = Vec::with_capacity(64);
    loop {
        let count = tokio::select! {
            biased;
            count = queue.recv_many(&mut batch, 64) => count,
            _ = ended.wait_for(Option::is_some) => 0,
        };
        if count == 0 {
            return;
        }
        gate.open_for(peer).await;
        let stream = match stream {
            Some(stream) => stream,
            None => match connection.open_uni().await {
                Ok(opened) => stream.insert(opened),
                Err(_) => return,
            },
        };
        if stream.write_all_chunks(&mut batch).await.is_err() {
            return;
        }
        batch.clear();
    }
}

fn reason_of(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => match CloseReason::from_code(close.error_code.into()) {
            Some(reason) => reason.label().to_owned(),
            None => format!("closed by the peer: {}", String::from_utf8_lossy(&close.reason)),
        },
        ConnectionError::TimedOut => "timed out".to_owned(),
        ConnectionError::Reset => "reset: the peer restarted".to_owned(),
        ConnectionError::LocallyClosed => "closed here".to_owned(),
        other => other.to_string(),
    }
}

impl MeshConnection for IrohConnection {
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
        self.outgoing.try_send(frame).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => TransportError::Busy,
            mpsc::error::TrySendError::Closed(_) => TransportError::Closed { reason: "the stream ended".into() },
        })
    }

    fn send_datagram(&self, datagram: Bytes) {
        if !self.is_blocked() {
            // Datagrams may be lost; a connection that is gone is noticed by whoever receives on it.
            let _ = self.connection.send_datagram(datagram);
        }
    }

    fn receive(&self) -> BoxFuture<'_, Result<Received, String>> {
        self.next().boxed()
    }

    fn close(&self, reason: CloseReason) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(reason);
            first
        });
    }

    fn closed(&self) -> Option<String> {
        let own = self.ended.borrow().map(|reason| format!("closed here: {}", reason.label()));
        own.or_else(|| self.connection.close_reason().map(|error| reason_of(&error)))
    }
}
