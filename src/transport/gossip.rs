//! Beacons over iroh-gossip: one topic for each scope that a node listens to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use iroh::endpoint::{AfterHandshakeOutcome, BeforeConnectOutcome, Connection, EndpointHooks, WeakConnectionHandle};
use iroh::{Endpoint, EndpointAddr, EndpointId};
use iroh_gossip::api::{ApiError, Event};
use iroh_gossip::net::Gossip;
use iroh_gossip::proto::TopicId;
use rand::RngExt;
use rand::seq::IteratorRandom;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::id::{FormationId, NodeId};
use crate::limits::Limits;
use crate::proto::beacon::Scope;
use crate::transport::Gate;

pub(super) enum GossipCommand {
    Broadcast(Vec<Scope>, Bytes),
    Listen(BTreeSet<Scope>),
    Join(EndpointId),
}

/// What one topic is asked.
#[derive(Clone)]
enum TopicCommand {
    Broadcast(Bytes),
    Join(EndpointId),
}

/// The peers last met on links, where a topic begins. All of them join it at once: were they many, they would drive each
/// other out of its few neighbours.
#[derive(Clone, Default)]
struct Met(VecDeque<EndpointId>);

impl Met {
    fn add(&mut self, peer: EndpointId) {
        self.0.retain(|other| *other != peer);
        self.0.push_back(peer);
        if self.0.len() > Limits::GOSSIP_BEGINS_WITH {
            self.0.pop_front();
        }
    }
}

/// The topics of a node.
pub(super) struct Topics {
    endpoint: Endpoint,
    gossip: Gossip,
    formation: FormationId,
    gate: Gate,
    hearing: mpsc::Sender<Bytes>,
    met: Met,
    joined: BTreeMap<Scope, mpsc::Sender<TopicCommand>>,
    /// Peers that are dialled, and the dials.
    reaching: BTreeSet<EndpointId>,
    dials: JoinSet<(EndpointId, Option<WeakConnectionHandle>)>,
    /// What dials have led to, as long as it lasts.
    reached: BTreeMap<EndpointId, WeakConnectionHandle>,
}

impl Topics {
    pub(super) fn new(
        endpoint: Endpoint,
        gossip: Gossip,
        formation: FormationId,
        gate: Gate,
        hearing: mpsc::Sender<Bytes>,
    ) -> Self {
        let (met, joined, reaching, dials, reached) = Default::default();
        Self { endpoint, gossip, formation, gate, hearing, met, joined, reaching, dials, reached }
    }

    /// Joins whoever is met, and again and again somebody who was: an overlay in pieces does not know that it is.
    pub(super) async fn run(mut self, mut asked: mpsc::Receiver<GossipCommand>) {
        let mut rest = Limits::GOSSIP_RETRY;
        let mut heal_at = Instant::now() + rest;
        loop {
            tokio::select! {
                command = asked.recv() => match command {
                    Some(GossipCommand::Broadcast(scopes, message)) => {
                        for topic in scopes.iter().filter_map(|scope| self.joined.get(scope)) {
                            // Beacons are repeated; one that finds the queue full is dropped.
                            let _ = topic.try_send(TopicCommand::Broadcast(message.clone()));
                        }
                    }
                    Some(GossipCommand::Join(peer)) => {
                        self.met.add(peer);
                        self.reach(peer);
                        rest = Limits::GOSSIP_RETRY;
                        heal_at = Instant::now() + rest;
                    }
                    Some(GossipCommand::Listen(scopes)) => self.listen(&scopes),
                    None => return,
                },
                Some(Ok((peer, connection))) = self.dials.join_next() => {
                    self.reaching.remove(&peer);
                    if let Some(connection) = connection {
                        self.reached.retain(|_, connection| is_open(connection));
                        self.reached.insert(peer, connection);
                        self.join(peer);
                    }
                }
                () = sleep_until(heal_at) => {
                    let passing = |id: &&EndpointId| !self.gate.blocks(&NodeId::from_bytes(*id.as_bytes()));
                    let peer = self.met.0.iter().filter(passing).choose(&mut rand::rng()).copied();
                    peer.into_iter().for_each(|peer| self.reach(peer));
                    rest = (rest * 2).min(Limits::GOSSIP_HEALS_EVERY);
                    heal_at = Instant::now() + rest.mul_f64(rand::rng().random_range(0.5..1.0));
                }
            }
        }
    }

    fn join(&self, peer: EndpointId) {
        for topic in self.joined.values() {
            let _ = topic.try_send(TopicCommand::Join(peer));
        }
    }

    /// Joins a peer once there is a connection to it. iroh-gossip 0.101 does not dial again whom it once could not reach, nor
    /// whose connection has ended while the peer was nobody's neighbour: what it has for them waits for ever (its pull
    /// request 159).
    fn reach(&mut self, peer: EndpointId) {
        if self.reached.get(&peer).is_some_and(is_open) {
            return self.join(peer);
        }
        if self.reaching.len() >= Limits::GOSSIP_BEGINS_WITH || !self.reaching.insert(peer) {
            return;
        }
        let (endpoint, gossip) = (self.endpoint.clone(), self.gossip.clone());
        self.dials.spawn(async move {
            let Ok(connection) = endpoint.connect(peer, iroh_gossip::ALPN).await else { return (peer, None) };
            let handle = connection.weak_handle();
            (peer, gossip.handle_connection(connection).await.is_ok().then_some(handle))
        });
    }

    /// A topic ends when its sender is dropped.
    fn listen(&mut self, scopes: &BTreeSet<Scope>) {
        self.joined.retain(|scope, _| scopes.contains(scope));
        for scope in scopes.iter().filter(|scope| !self.joined.contains_key(scope)).cloned().collect::<Vec<_>>() {
            let (commands, asked) = mpsc::channel(Limits::MAILBOX_DATA);
            let (gossip, gate, hearing) = (self.gossip.clone(), self.gate.clone(), self.hearing.clone());
            let topic = topic_of(self.formation, &scope);
            tokio::spawn(run_topic(gossip, topic, gate, self.met.clone(), asked, hearing));
            self.joined.insert(scope, commands);
        }
    }
}

fn is_open(connection: &WeakConnectionHandle) -> bool {
    connection.upgrade().is_some_and(|connection| connection.close_reason().is_none())
}

fn topic_of(formation: FormationId, scope: &Scope) -> TopicId {
    TopicId::from_bytes(blake3::derive_key("tussock topic 1", format!("{:?} {scope:?}", formation.0).as_bytes()))
}

/// One gossip topic, joined anew whenever the gate changes, as if the wires had been cut.
async fn run_topic(
    gossip: Gossip,
    topic: TopicId,
    gate: Gate,
    mut met: Met,
    mut asked: mpsc::Receiver<TopicCommand>,
    hearing: mpsc::Sender<Bytes>,
) {
    let mut changes = gate.changes();
    let (mut waiting, mut next_join) = (Met::default(), Instant::now());
    loop {
        let passing = |id: &EndpointId| !gate.blocks(&NodeId::from_bytes(*id.as_bytes()));
        let bootstrap: Vec<_> = met.0.iter().copied().filter(passing).collect();
        let Ok(subscription) = gossip.subscribe(topic, bootstrap).await else { return };
        let (sender, mut receiver) = subscription.split();
        loop {
            tokio::select! {
                biased;
                changed = changes.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                command = asked.recv() => match command {
                    Some(TopicCommand::Broadcast(message)) => noted(sender.broadcast(message).await),
                    Some(TopicCommand::Join(peer)) => {
                        met.add(peer);
                        waiting.add(peer);
                        if receiver.neighbors().next().is_none() {
                            next_join = Instant::now();
                        }
                    }
                    None => return,
                },
                () = sleep_until(next_join), if !waiting.0.is_empty() => {
                    let is_new = |peer: &EndpointId| passing(peer) && receiver.neighbors().all(|other| other != *peer);
                    if let Some(peer) = waiting.0.pop_front().filter(is_new) {
                        noted(sender.join_peers(vec![peer]).await);
                        next_join = Instant::now() + Limits::GOSSIP_REST;
                    }
                }
                event = receiver.next() => match event.and_then(Result::ok) {
                    Some(Event::Received(message)) if passing(&message.delivered_from) => {
                        // Beacons are repeated: when they come faster than they are read, the newest is dropped.
                        let _ = hearing.try_send(message.content);
                    }
                    Some(Event::Lagged) | None => break,
                    Some(_) => {}
                },
            }
        }
    }
}

fn noted(done: Result<(), ApiError>) {
    if let Err(error) = done {
        tracing::debug!(%error, "gossip");
    }
}

/// What keeps the connections of gossip few. iroh-gossip 0.101 dials whomever its overlays name, all at once, and keeps
/// each connection whose peer it has replaced or let go (its issue 145), which the endpoint then keeps alive.
#[derive(Debug)]
pub(super) struct Restraint {
    /// When the next dial may begin.
    next_dial: Mutex<Instant>,
}

impl Restraint {
    pub(super) fn new() -> Self {
        Self { next_dial: Mutex::new(Instant::now()) }
    }
}

impl EndpointHooks for Restraint {
    async fn before_connect(&self, _: &EndpointAddr, alpn: &[u8]) -> BeforeConnectOutcome {
        if alpn == iroh_gossip::ALPN {
            let mut next = self.next_dial.lock().await;
            sleep_until(*next).await;
            let saved = Limits::GOSSIP_DIALS_EVERY * Limits::GOSSIP_BEGINS_WITH as u32;
            *next =
                Instant::now().checked_sub(saved).map_or(*next, |since| since.max(*next)) + Limits::GOSSIP_DIALS_EVERY;
        }
        BeforeConnectOutcome::Accept
    }

    async fn after_handshake(&self, connection: &Connection) -> AfterHandshakeOutcome {
        if connection.alpn() == iroh_gossip::ALPN {
            tokio::spawn(close_when_unused(connection.weak_handle(), Limits::GOSSIP_SILENCE));
        }
        AfterHandshakeOutcome::accept()
    }
}

async fn close_when_unused(connection: WeakConnectionHandle, silence: Duration) {
    let mut before = None;
    while timeout(silence, connection.closed()).await.is_err() {
        let Some(connection) = connection.upgrade() else { return };
        let stats = connection.stats();
        let now = Some((stats.frame_tx.stream, stats.frame_rx.stream));
        if now == before {
            return connection.close(0u32.into(), b"unused");
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iroh::RelayMode;
    use iroh::address_lookup::memory::MemoryLookup;
    use iroh::endpoint::presets;
    use iroh::protocol::Router;

    async fn endpoint() -> Endpoint {
        let builder = Endpoint::builder(presets::Minimal).relay_mode(RelayMode::Disabled).clear_ip_transports();
        let builder = builder.bind_addr("127.0.0.1:0").unwrap().alpns(vec![iroh_gossip::ALPN.to_vec()]);
        builder.bind().await.unwrap()
    }

    #[tokio::test]
    async fn a_connection_over_which_nothing_is_said_is_closed_though_both_ends_hold_it() {
        let (here, there) = (endpoint().await, endpoint().await);
        let address = there.bound_sockets().into_iter().fold(EndpointAddr::new(there.id()), EndpointAddr::with_ip_addr);
        let accepting = async { there.accept().await.unwrap().await.unwrap() };
        let (dialled, accepted) = tokio::join!(here.connect(address, iroh_gossip::ALPN), accepting);
        let dialled = dialled.unwrap();
        let closing = tokio::spawn(close_when_unused(dialled.weak_handle(), Duration::from_secs(1)));
        let mut stream = dialled.open_uni().await.unwrap();
        for _ in 0..25 {
            stream.write_all(b"a beacon").await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(dialled.close_reason().is_none(), "it is in use");
        closing.await.unwrap();
        assert!(dialled.close_reason().is_some());
        accepted.closed().await;
    }

    /// A node's topics, and what is heard there.
    fn topics(endpoint: &Endpoint) -> (mpsc::Sender<GossipCommand>, mpsc::Receiver<Bytes>, Router) {
        let gossip = Gossip::builder().spawn(endpoint.clone());
        let router = Router::builder(endpoint.clone()).accept(iroh_gossip::ALPN, gossip.clone()).spawn();
        let (commands, asked) = mpsc::channel(8);
        let (hearing, heard) = mpsc::channel(8);
        let topics = Topics::new(endpoint.clone(), gossip, FormationId(*b"training"), Gate::default(), hearing);
        tokio::spawn(topics.run(asked));
        (commands, heard, router)
    }

    #[tokio::test]
    async fn who_could_not_be_reached_at_first_is_joined_later() {
        let (here, there) = (endpoint().await, endpoint().await);
        let lookup = MemoryLookup::new();
        here.address_lookup().unwrap().add(lookup.clone());
        let ((ours, _, _here), (theirs, mut heard, _there)) = (topics(&here), topics(&there));
        for commands in [&ours, &theirs] {
            commands.send(GossipCommand::Listen(BTreeSet::from([Scope::Formation]))).await.unwrap();
        }
        ours.send(GossipCommand::Join(there.id())).await.unwrap();
        // Time for a dial that fails, for nobody knows the address yet.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let addresses = there.bound_sockets().into_iter();
        lookup.add_endpoint_info(addresses.fold(EndpointAddr::new(there.id()), EndpointAddr::with_ip_addr));
        let told = async {
            loop {
                let beacon = GossipCommand::Broadcast(vec![Scope::Formation], Bytes::from_static(b"a beacon"));
                ours.send(beacon).await.unwrap();
                if let Ok(Some(beacon)) = timeout(Duration::from_millis(100), heard.recv()).await {
                    break beacon;
                }
            }
        };
        assert_eq!(timeout(Duration::from_secs(20), told).await.unwrap(), "a beacon");
    }

    #[tokio::test(start_paused = true)]
    async fn dials_are_spread_out() {
        let (restraint, peer) = (Restraint::new(), EndpointAddr::new(endpoint_id()));
        tokio::time::advance(Duration::from_secs(3_600)).await;
        let started = Instant::now();
        for _ in 0..20 {
            restraint.before_connect(&peer, iroh_gossip::ALPN).await;
        }
        let spread = started.elapsed().as_secs_f64();
        assert!((14.0..=15.5).contains(&spread), "six at once, then one a second: {spread}");
        restraint.before_connect(&peer, b"another").await;
        assert_eq!(started.elapsed().as_secs_f64(), spread, "the links of the tree do not wait");
    }

    fn endpoint_id() -> EndpointId {
        iroh::SecretKey::from_bytes(&[1; 32]).public()
    }
}
