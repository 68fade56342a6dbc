//! A small backend that manages its own connections, over the switchboard: what it is told is whom somebody cares for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, mpsc, watch};
use tussock::NodeId;
use tussock::proto::beacon::Scope;
use tussock::proto::link::CloseReason;
use tussock::transport::implicit::{BackendEvent, ImplicitBackend};
use tussock::transport::memory::{MemoryTransport, Switchboard};
use tussock::transport::{Gate, MeshConnection, MeshTransport, Received, TransportError};

/// More than a test has under way at once.
const QUEUE: usize = 4_096;

type Session = Arc<dyn MeshConnection>;

pub struct SwitchboardBackend {
    inner: Arc<MemoryTransport>,
    interest: mpsc::Sender<(NodeId, bool)>,
    events: Mutex<mpsc::Receiver<BackendEvent>>,
    sessions: watch::Sender<BTreeMap<NodeId, Session>>,
}

impl SwitchboardBackend {
    pub fn plug_in(board: &Switchboard, me: NodeId) -> Self {
        let inner = board.plug_in(me);
        let (interest, wanted) = mpsc::channel(QUEUE);
        let (happened, events) = mpsc::channel(QUEUE);
        let sessions = watch::Sender::new(BTreeMap::new());
        tokio::spawn(manage(inner.clone(), wanted, happened, sessions.clone()));
        Self { inner, interest, events: Mutex::new(events), sessions }
    }
}

/// Dials whom somebody cares for, takes whoever comes, and keeps one session with each.
async fn manage(
    inner: Arc<MemoryTransport>,
    mut interest: mpsc::Receiver<(NodeId, bool)>,
    happened: mpsc::Sender<BackendEvent>,
    sessions: watch::Sender<BTreeMap<NodeId, Session>>,
) {
    let (me, mut wanted, mut dialling) = (inner.me(), BTreeSet::new(), BTreeSet::new());
    let (dialled_to, mut dialled) = mpsc::channel::<(NodeId, Option<Session>)>(QUEUE);
    let (ended_to, mut ended) = mpsc::channel::<(NodeId, Session, String)>(QUEUE);
    let dial = |peer: NodeId, wait: Duration| {
        let (inner, dialled) = (inner.clone(), dialled_to.clone());
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let _ = dialled.try_send((peer, inner.dial(peer, Vec::new()).await.ok()));
        });
    };
    let begin = |peer: NodeId, session: Session| {
        let before = sessions.borrow().get(&peer).cloned();
        if let Some(before) = before {
            before.close(CloseReason::Superseded);
            let _ = happened.try_send(BackendEvent::Down(peer, "superseded".into()));
        }
        sessions.send_modify(|sessions| drop(sessions.insert(peer, session.clone())));
        let _ = happened.try_send(BackendEvent::Up(peer));
        let (happened, ended) = (happened.clone(), ended_to.clone());
        tokio::spawn(async move {
            let reason = loop {
                match session.receive().await {
                    Ok(Received::Frame(message)) => drop(happened.try_send(BackendEvent::Message(peer, message))),
                    Ok(Received::Datagram(datagram)) => drop(happened.try_send(BackendEvent::Datagram(peer, datagram))),
                    Err(reason) => break reason,
                }
            };
            let _ = ended.try_send((peer, session, reason));
        });
    };
    loop {
        tokio::select! {
            biased;
            change = interest.recv() => match change {
                Some((peer, true)) => {
                    if wanted.insert(peer) && !sessions.borrow().contains_key(&peer) && dialling.insert(peer) {
                        dial(peer, Duration::ZERO);
                    }
                }
                Some((peer, false)) => {
                    wanted.remove(&peer);
                    if let Some(session) = sessions.borrow().get(&peer) {
                        session.close(CloseReason::Disconnected);
                    }
                }
                None => return,
            },
            Some((peer, session)) = dialled.recv() => {
                dialling.remove(&peer);
                let there = sessions.borrow().contains_key(&peer);
                match session {
                    Some(session) if there || !wanted.contains(&peer) => session.close(CloseReason::Duplicate),
                    Some(session) => begin(peer, session),
                    None if wanted.contains(&peer) && !there && dialling.insert(peer) => {
                        dial(peer, Duration::from_millis(500));
                    }
                    None => {}
                }
            }
            session = inner.accept() => match session {
                Some(session) if dialling.contains(&session.peer()) && me < session.peer() => {
                    session.close(CloseReason::Duplicate);
                }
                Some(session) => begin(session.peer(), session),
                None => return,
            },
            Some((peer, session, reason)) = ended.recv() => {
                let current = sessions.borrow().get(&peer).is_some_and(|known| known.id() == session.id());
                if current {
                    sessions.send_modify(|sessions| drop(sessions.remove(&peer)));
                    let _ = happened.try_send(BackendEvent::Down(peer, reason));
                    if wanted.contains(&peer) && dialling.insert(peer) {
                        dial(peer, Duration::from_millis(if me < peer { 50 } else { 150 }));
                    }
                }
            }
        }
    }
}

impl ImplicitBackend for SwitchboardBackend {
    fn me(&self) -> NodeId {
        self.inner.me()
    }

    fn interest(&self, peer: NodeId, wanted: bool) {
        let _ = self.interest.try_send((peer, wanted));
    }

    fn is_alive(&self, peer: &NodeId) -> bool {
        self.sessions.borrow().get(peer).is_some_and(|session| session.is_alive())
    }

    fn send(&self, peer: &NodeId, message: Bytes) -> Result<(), TransportError> {
        let session = self.sessions.borrow().get(peer).cloned();
        let session = session.ok_or(TransportError::PeerNotFound { peer: *peer })?;
        // The switchboard takes frames with a length in front.
        let mut frame = (message.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(&message);
        session.send(frame.into())
    }

    fn send_datagram(&self, peer: &NodeId, datagram: Bytes) {
        if let Some(session) = self.sessions.borrow().get(peer) {
            session.send_datagram(datagram);
        }
    }

    fn next(&self) -> BoxFuture<'_, Option<BackendEvent>> {
        async move { self.events.lock().await.recv().await }.boxed()
    }

    fn broadcast(&self, scopes: Vec<Scope>, message: Bytes) {
        self.inner.broadcast(scopes, message);
    }

    fn listen(&self, scopes: BTreeSet<Scope>) {
        self.inner.listen(scopes);
    }

    fn heard(&self) -> BoxFuture<'_, Option<Bytes>> {
        self.inner.heard()
    }

    fn gate(&self) -> &Gate {
        self.inner.gate()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.inner.stop()
    }
}
