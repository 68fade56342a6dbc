//! The memory adapter: an in-process switchboard with latency, loss, reordering and partitions, from one seed.
//!
//! It keeps to tokio's clock, so that whole nodes run deterministically under paused time. Public, for users' tests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
#[expect(clippy::disallowed_types, reason = "the switchboard stands for wires, not for protocol state")]
use std::sync::Mutex as Shared;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::id::NodeId;
use crate::limits::Limits;
use crate::messages::wire::PREFIX;
use crate::proto::beacon::Scope;
use crate::proto::link::{CloseReason, ConnId};
use crate::transport::{Gate, MeshConnection, MeshTransport, Received, TransportError};

/// What every wire of a switchboard is like.
#[derive(Clone, Copy, Debug)]
pub struct Wires {
    pub latency: Duration,
    /// Uniform, plus or minus.
    pub jitter: Duration,
    /// Share of datagrams and broadcasts lost; a frame on a stream is late instead.
    pub loss: f64,
    /// Share of datagrams that arrive later than those behind them.
    pub reorder: f64,
}

impl Default for Wires {
    fn default() -> Self {
        Self { latency: Duration::from_millis(1), jitter: Duration::ZERO, loss: 0.0, reorder: 0.0 }
    }
}

/// Connects memory transports with each other. Clones are the same switchboard.
#[derive(Clone)]
pub struct Switchboard {
    wires: Wires,
    #[expect(clippy::disallowed_types, reason = "the switchboard stands for wires, not for protocol state")]
    state: Arc<Shared<State>>,
    next: Arc<AtomicU64>,
}

struct State {
    rng: Pcg32,
    sockets: BTreeMap<NodeId, Socket>,
}

#[derive(Clone)]
struct Socket {
    accepting: mpsc::Sender<Arc<MemoryConnection>>,
    hearing: mpsc::Sender<Bytes>,
    listening: watch::Sender<BTreeSet<Scope>>,
    gate: Gate,
    stopped: watch::Sender<bool>,
}

impl Switchboard {
    #[expect(clippy::disallowed_types, reason = "the switchboard stands for wires, not for protocol state")]
    pub fn new(seed: u64, wires: Wires) -> Self {
        let state = State { rng: Pcg32::seed_from_u64(seed), sockets: BTreeMap::new() };
        Self { wires, state: Arc::new(Shared::new(state)), next: Arc::default() }
    }

    /// Plugs a node in.
    pub fn plug_in(&self, me: NodeId) -> Arc<MemoryTransport> {
        let (accepting, accepted) = mpsc::channel(Limits::UNGREETED);
        let (hearing, heard) = mpsc::channel(Limits::MAILBOX_DATA);
        let (listening, gate) = (watch::Sender::new(BTreeSet::new()), Gate::default());
        let socket = Socket { accepting, hearing, listening, gate, stopped: watch::Sender::new(false) };
        self.with(|state| state.sockets.insert(me, socket.clone()));
        Arc::new(MemoryTransport {
            me,
            board: self.clone(),
            socket,
            accepted: Mutex::new(accepted),
            heard: Mutex::new(heard),
            alive: watch::Sender::new(Vec::new()),
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().expect("nothing panics while it holds the switchboard"))
    }

    fn delay(&self) -> Duration {
        let swing = self.with(|state| state.rng.random_range(-1.0..=1.0));
        let seconds = self.wires.latency.as_secs_f64() + swing * self.wires.jitter.as_secs_f64();
        Duration::from_secs_f64(seconds.max(0.0))
    }

    fn happens(&self, share: f64) -> bool {
        share > 0.0 && self.with(|state| state.rng.random_bool(share.min(1.0)))
    }
}

/// One node's plug.
pub struct MemoryTransport {
    me: NodeId,
    board: Switchboard,
    socket: Socket,
    accepted: Mutex<mpsc::Receiver<Arc<MemoryConnection>>>,
    heard: Mutex<mpsc::Receiver<Bytes>>,
    alive: watch::Sender<Vec<Arc<MemoryConnection>>>,
}

impl MemoryTransport {
    /// Pulls the plug without a word, as a crash does.
    pub fn vanish(&self) {
        self.board.with(|state| state.sockets.remove(&self.me));
        for connection in self.alive.borrow().iter() {
            connection.wire.cut(connection.side);
        }
        self.socket.stopped.send_replace(true);
    }

    fn keep(&self, connection: Arc<MemoryConnection>) -> Arc<dyn MeshConnection> {
        self.alive.send_modify(|alive| {
            alive.retain(|other| other.is_alive());
            alive.push(connection.clone());
        });
        connection
    }
}

impl MeshTransport for MemoryTransport {
    fn me(&self) -> NodeId {
        self.me
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        Vec::new()
    }

    fn dial(
        &self,
        peer: NodeId,
        _addresses: Vec<SocketAddr>,
    ) -> BoxFuture<'static, Result<Arc<dyn MeshConnection>, TransportError>> {
        let (board, me, mine) = (self.board.clone(), self.me, self.socket.clone());
        let alive = self.alive.clone();
        async move {
            if *mine.stopped.borrow() {
                return Err(TransportError::NotStarted);
            }
            let failed = |reason: &str| TransportError::ConnectionFailed { peer, reason: reason.into() };
            sleep(board.delay() + board.delay()).await;
            let theirs = board.with(|state| state.sockets.get(&peer).cloned());
            let Some(theirs) = theirs else { return Err(TransportError::PeerNotFound { peer }) };
            if mine.gate.blocks(&peer) || theirs.gate.blocks(&me) {
                sleep(Limits::DIAL).await;
                return Err(failed("no answer"));
            }
            let [here, there] = Wire::lay(&board, [(me, &mine), (peer, &theirs)]);
            theirs.accepting.try_send(there).map_err(|_| failed("the far side is crowded"))?;
            alive.send_modify(|alive| {
                alive.retain(|other| other.is_alive());
                alive.push(here.clone());
            });
            Ok(here as Arc<dyn MeshConnection>)
        }
        .boxed()
    }

    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn MeshConnection>>> {
        async move {
            let mut stopped = self.socket.stopped.subscribe();
            let mut accepted = self.accepted.lock().await;
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => None,
                connection = accepted.recv() => connection.map(|connection| self.keep(connection)),
            }
        }
        .boxed()
    }

    fn connections(&self) -> Vec<Arc<dyn MeshConnection>> {
        let alive = self.alive.borrow();
        alive.iter().filter(|connection| connection.is_alive()).map(|c| c.clone() as Arc<dyn MeshConnection>).collect()
    }

    fn broadcast(&self, scopes: Vec<Scope>, message: Bytes) {
        let others: Vec<_> = self.board.with(|state| state.sockets.clone()).into_iter().collect();
        for (peer, socket) in others {
            let blocked = self.socket.gate.blocks(&peer) || socket.gate.blocks(&self.me);
            let deaf = !scopes.iter().any(|scope| socket.listening.borrow().contains(scope));
            if peer == self.me || blocked || deaf || self.board.happens(self.board.wires.loss) {
                continue;
            }
            let (delay, message) = (self.board.delay(), message.clone());
            tokio::spawn(async move {
                sleep(delay).await;
                // Beacons are repeated: a full queue drops the newest.
                let _ = socket.hearing.try_send(message);
            });
        }
    }

    fn listen(&self, scopes: BTreeSet<Scope>) {
        self.socket.listening.send_replace(scopes);
    }

    fn heard(&self) -> BoxFuture<'_, Option<Bytes>> {
        async move {
            let mut stopped = self.socket.stopped.subscribe();
            let mut heard = self.heard.lock().await;
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => None,
                message = heard.recv() => message,
            }
        }
        .boxed()
    }

    fn join(&self, _peer: NodeId) {}

    fn gate(&self) -> &Gate {
        &self.socket.gate
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        async move {
            self.board.with(|state| state.sockets.remove(&self.me));
            for connection in self.connections() {
                connection.close(CloseReason::Leaving);
            }
            self.socket.stopped.send_replace(true);
        }
        .boxed()
    }
}

/// The wire between two plugs: what each end knows of its own closing, and both gates.
struct Wire {
    board: Switchboard,
    gates: [Gate; 2],
    nodes: [NodeId; 2],
    /// Why each end is closed.
    closed: [watch::Sender<Option<String>>; 2],
    /// Whether each end's plug was pulled.
    pulled: [watch::Sender<bool>; 2],
}

impl Wire {
    fn lay(board: &Switchboard, plugs: [(NodeId, &Socket); 2]) -> [Arc<MemoryConnection>; 2] {
        let wire = Arc::new(Self {
            board: board.clone(),
            gates: plugs.map(|(_, socket)| socket.gate.clone()),
            nodes: plugs.map(|(node, _)| node),
            closed: [watch::Sender::new(None), watch::Sender::new(None)],
            pulled: [watch::Sender::new(false), watch::Sender::new(false)],
        });
        let (to_second, from_first) = mpsc::channel(Limits::LINK_QUEUE);
        let (to_first, from_second) = mpsc::channel(Limits::LINK_QUEUE);
        let (out_first, in_second) = mpsc::channel(Limits::LINK_QUEUE);
        let (out_second, in_first) = mpsc::channel(Limits::LINK_QUEUE);
        tokio::spawn(carry(wire.clone(), 0, from_first, out_first));
        tokio::spawn(carry(wire.clone(), 1, from_second, out_second));
        tokio::spawn(watch_idle(wire.clone()));
        let end = |side: usize, outgoing, incoming: mpsc::Receiver<Received>| {
            Arc::new(MemoryConnection {
                id: ConnId(board.next.fetch_add(1, Ordering::Relaxed)),
                side,
                wire: wire.clone(),
                outgoing,
                incoming: Mutex::new(incoming),
            })
        };
        [end(0, to_second, in_first), end(1, to_first, in_second)]
    }

    fn is_cut(&self) -> bool {
        let blocked = self.gates[0].blocks(&self.nodes[1]) || self.gates[1].blocks(&self.nodes[0]);
        blocked || self.pulled.iter().any(|pulled| *pulled.borrow())
    }

    fn is_over(&self) -> bool {
        self.closed.iter().any(|closed| closed.borrow().is_some())
    }

    fn close(&self, side: usize, reason: String) -> bool {
        self.closed[side].send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert(reason);
            first
        })
    }

    fn cut(&self, side: usize) {
        self.pulled[side].send_replace(true);
        self.close(side, "the plug was pulled".into());
    }

    async fn open(&self) {
        self.gates[0].open_for(self.nodes[1]).await;
        self.gates[1].open_for(self.nodes[0]).await;
    }
}

/// Carries what one end sends to the other: frames in order and late if lost, datagrams as they fall.
async fn carry(
    wire: Arc<Wire>,
    side: usize,
    mut from: mpsc::Receiver<(Instant, Received)>,
    to: mpsc::Sender<Received>,
) {
    let mut last = Instant::now();
    let mut closed = wire.closed[side].subscribe();
    loop {
        let next = tokio::select! {
            biased;
            next = from.recv() => next,
            _ = closed.wait_for(Option::is_some) => None,
        };
        let Some((sent, next)) = next else { return };
        let wires = wire.board.wires;
        let mut delay = wire.board.delay();
        match next {
            Received::Frame(_) => {
                let mut again = (wires.latency * 4).max(Duration::from_millis(25));
                while wires.loss < 1.0 && wire.board.happens(wires.loss) {
                    delay += again;
                    again = (again * 2).min(Duration::from_secs(60));
                }
                last = last.max(sent + delay);
                sleep_until(last).await;
                wire.open().await;
                if *wire.pulled[1 - side].borrow() || *wire.pulled[side].borrow() || to.send(next).await.is_err() {
                    return;
                }
            }
            Received::Datagram(_) => {
                if wire.is_cut() || wire.board.happens(wires.loss) {
                    continue;
                }
                if wire.board.happens(wires.reorder) {
                    delay += wires.latency + wires.jitter;
                }
                let to = to.clone();
                tokio::spawn(async move {
                    sleep(delay).await;
                    // Datagrams may be lost, here to a full queue.
                    let _ = to.try_send(next);
                });
            }
        }
    }
}

/// Closes the ends of a wire that has been cut for longer than the idle time-out.
async fn watch_idle(wire: Arc<Wire>) {
    let mut cut_for = Duration::ZERO;
    const LOOK: Duration = Duration::from_millis(500);
    loop {
        sleep(LOOK).await;
        if wire.closed.iter().all(|closed| closed.borrow().is_some()) {
            return;
        }
        let silent = wire.is_cut() || wire.is_over();
        cut_for = if silent { cut_for + LOOK } else { Duration::ZERO };
        if cut_for >= Limits::CONNECTION_SILENCE {
            wire.close(0, "timed out".into());
            wire.close(1, "timed out".into());
        }
    }
}

/// One end of a wire.
struct MemoryConnection {
    id: ConnId,
    side: usize,
    wire: Arc<Wire>,
    outgoing: mpsc::Sender<(Instant, Received)>,
    incoming: Mutex<mpsc::Receiver<Received>>,
}

impl MeshConnection for MemoryConnection {
    fn id(&self) -> ConnId {
        self.id
    }

    fn peer(&self) -> NodeId {
        self.wire.nodes[1 - self.side]
    }

    fn send(&self, frame: Bytes) -> Result<(), TransportError> {
        if let Some(reason) = self.closed() {
            return Err(TransportError::Closed { reason });
        }
        if frame.len() > Limits::FRAME_BYTES + PREFIX {
            return Err(TransportError::TooLarge { bytes: frame.len() });
        }
        let body = frame.slice(PREFIX.min(frame.len())..);
        self.outgoing.try_send((Instant::now(), Received::Frame(body))).map_err(|_| TransportError::Busy)
    }

    fn send_datagram(&self, datagram: Bytes) {
        // Datagrams may be lost, here to a full queue.
        let _ = self.outgoing.try_send((Instant::now(), Received::Datagram(datagram)));
    }

    fn receive(&self) -> BoxFuture<'_, Result<Received, String>> {
        async move {
            let mut incoming = self.incoming.lock().await;
            let mut closed = self.wire.closed[self.side].subscribe();
            tokio::select! {
                biased;
                Some(received) = incoming.recv() => Ok(received),
                // All has arrived: the word of why that is the end is on its way, too.
                closed = closed.wait_for(Option::is_some) => {
                    Err(closed.ok().and_then(|reason| reason.clone()).unwrap_or_default())
                }
            }
        }
        .boxed()
    }

    fn close(&self, reason: CloseReason) {
        if !self.wire.close(self.side, format!("closed here: {}", reason.label())) {
            return;
        }
        let (wire, far) = (self.wire.clone(), 1 - self.side);
        tokio::spawn(async move {
            // What was sent before arrives first, whatever its jitter was.
            sleep((wire.board.wires.latency + wire.board.wires.jitter) * 2).await;
            wire.open().await;
            if !*wire.pulled[far].borrow() {
                wire.close(far, reason.label().to_owned());
            }
        });
    }

    fn closed(&self) -> Option<String> {
        self.wire.closed[self.side].borrow().clone()
    }
}
