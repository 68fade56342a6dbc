//! Beacons over iroh-gossip: one topic for the formation, of which a node reads the scopes that it listens to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use iroh::endpoint::{AfterHandshakeOutcome, BeforeConnectOutcome, Connection, EndpointHooks, WeakConnectionHandle};
use iroh::{Endpoint, EndpointAddr, EndpointId};
use iroh_gossip::api::{ApiError, Event, GossipReceiver, GossipSender};
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

/// What a message begins with: for whom the beacon is.
type Tag = [u8; 8];

/// The largest message: a beacon and whom it is for.
pub(super) const MESSAGE_BYTES: usize = Limits::BEACON_BYTES + size_of::<Tag>();

fn tag_of(scope: &Scope) -> Tag {
    let hash = blake3::derive_key("tussock scope 1", format!("{scope:?}").as_bytes());
    *hash.first_chunk().expect("a hash is longer than a tag")
}

/// The peers last met on links, where the overlay begins. It joins all of them at once: were they many, they would drive
/// each other out of its few neighbours.
#[derive(Default)]
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

/// How often something may be done; what was saved of that may be spent at once.
#[derive(Debug)]
struct Pace {
    every: Duration,
    saved: u32,
    next: Instant,
}

impl Pace {
    /// What may be saved is there from the start: who is new has neighbours to find.
    fn new(every: Duration, saved: u32) -> Self {
        let now = Instant::now();
        Self { every, saved, next: now.checked_sub(every * saved).unwrap_or(now) }
    }

    fn spend(&mut self) {
        let earliest = Instant::now().checked_sub(self.every * self.saved);
        self.next = earliest.map_or(self.next, |earliest| earliest.max(self.next)) + self.every;
    }
}

/// The node's part in the overlay of its formation.
///
/// Every scope would be a topic of its own if iroh-gossip 0.101 did not drop the connection that topics share when one of
/// them lets a peer go: nodes of twenty topics each were busy with nothing but dialling each other anew.
pub(super) struct Overlay {
    endpoint: Endpoint,
    gossip: Gossip,
    topic: TopicId,
    gate: Gate,
    listened: BTreeSet<Tag>,
    hearing: mpsc::Sender<Bytes>,
    met: Met,
    /// Peers to be joined, and when.
    waiting: Met,
    joins: Pace,
    /// Peers that are dialled, and the dials.
    reaching: BTreeSet<EndpointId>,
    dials: JoinSet<(EndpointId, Option<WeakConnectionHandle>)>,
    /// What dials have led to, as long as it lasts.
    reached: BTreeMap<EndpointId, WeakConnectionHandle>,
}

impl Overlay {
    pub(super) fn new(
        endpoint: Endpoint,
        gossip: Gossip,
        formation: FormationId,
        gate: Gate,
        hearing: mpsc::Sender<Bytes>,
    ) -> Self {
        let topic = TopicId::from_bytes(blake3::derive_key("tussock topic 2", formation.0.as_slice()));
        let (listened, met, waiting, reaching, dials, reached) = Default::default();
        let joins = Pace::new(Limits::GOSSIP_JOINS_EVERY, Limits::GOSSIP_JOINS_SAVED);
        Self { endpoint, gossip, topic, gate, listened, hearing, met, waiting, joins, reaching, dials, reached }
    }

    /// Takes part until nobody asks any more; anew whenever the gate changes, as if the wires had been cut.
    pub(super) async fn run(mut self, mut asked: mpsc::Receiver<GossipCommand>) {
        let mut changes = self.gate.changes();
        loop {
            let bootstrap = self.met.0.iter().copied().filter(|peer| self.passes(peer)).collect();
            let Ok(subscription) = self.gossip.subscribe(self.topic, bootstrap).await else { return };
            let (sender, mut receiver) = subscription.split();
            tokio::select! {
                () = self.take_part(&sender, &mut receiver, &mut asked) => if asked.is_closed() { return },
                changed = changes.changed() => match changed {
                    Ok(()) => {}
                    Err(_) => return,
                },
            }
        }
    }

    /// Takes part for as long as what is said is kept up with. Joins whoever is met, and again and again somebody who was:
    /// an overlay in pieces does not know that it is.
    async fn take_part(
        &mut self,
        sender: &GossipSender,
        receiver: &mut GossipReceiver,
        asked: &mut mpsc::Receiver<GossipCommand>,
    ) {
        let mut rest = Limits::GOSSIP_RETRY;
        let mut heal_at = Instant::now() + rest;
        loop {
            let join_at = if receiver.is_joined() { self.joins.next } else { Instant::now() };
            tokio::select! {
                command = asked.recv() => match command {
                    Some(GossipCommand::Broadcast(scopes, beacon)) => {
                        for scope in scopes {
                            noted(sender.broadcast([&tag_of(&scope)[..], &beacon[..]].concat().into()).await);
                        }
                    }
                    Some(GossipCommand::Listen(scopes)) => self.listened = scopes.iter().map(tag_of).collect(),
                    Some(GossipCommand::Join(peer)) => {
                        self.met.add(peer);
                        self.reach(peer);
                        rest = Limits::GOSSIP_RETRY;
                        heal_at = Instant::now() + rest;
                    }
                    None => return,
                },
                Some(Ok((peer, connection))) = self.dials.join_next() => {
                    self.reaching.remove(&peer);
                    if let Some(connection) = connection {
                        self.reached.retain(|_, connection| is_open(connection));
                        self.reached.insert(peer, connection);
                        self.waiting.add(peer);
                    }
                }
                () = sleep_until(heal_at) => {
                    let peer = self.met.0.iter().filter(|peer| self.passes(peer)).choose(&mut rand::rng()).copied();
                    peer.into_iter().for_each(|peer| self.reach(peer));
                    let longer = (rest * 2).min(Limits::GOSSIP_HEALS_EVERY);
                    rest = if receiver.is_joined() { longer } else { Limits::GOSSIP_RETRY };
                    heal_at = Instant::now() + rest.mul_f64(rand::rng().random_range(0.5..1.0));
                }
                () = sleep_until(join_at), if !self.waiting.0.is_empty() => {
                    let peer = self.waiting.0.pop_front().filter(|peer| self.passes(peer));
                    if let Some(peer) = peer.filter(|peer| receiver.neighbors().all(|other| other != *peer)) {
                        noted(sender.join_peers(vec![peer]).await);
                        self.joins.spend();
                    }
                }
                event = receiver.next() => match event.and_then(Result::ok) {
                    Some(Event::Received(message)) if self.passes(&message.delivered_from) => self.hear(&message.content),
                    Some(Event::Lagged) | None => return,
                    Some(_) => {}
                },
            }
        }
    }

    /// Who speaks to nobody here is not read. Beacons are repeated: when they come faster than they are read, the newest
    /// is dropped.
    fn hear(&self, message: &Bytes) {
        let tag = message.first_chunk();
        if tag.is_none_or(|tag| self.listened.contains(tag)) {
            let _ = self.hearing.try_send(message.slice(size_of::<Tag>().min(message.len())..));
        }
    }

    fn passes(&self, peer: &EndpointId) -> bool {
        !self.gate.blocks(&NodeId::from_bytes(*peer.as_bytes()))
    }

    /// Joins a peer once there is a connection to it. iroh-gossip 0.101 does not dial again whom it once could not reach, nor
    /// whose connection has ended while the peer was nobody's neighbour: what it has for them waits for ever (its pull
    /// request 159).
    fn reach(&mut self, peer: EndpointId) {
        if self.reached.get(&peer).is_some_and(is_open) {
            return self.waiting.add(peer);
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
}

fn is_open(connection: &WeakConnectionHandle) -> bool {
    connection.upgrade().is_some_and(|connection| connection.close_reason().is_none())
}

fn noted(done: Result<(), ApiError>) {
    if let Err(error) = done {
        tracing::debug!(%error, "gossip");
    }
}

/// What keeps the connections of gossip few. iroh-gossip 0.101 dials whomever its overlay names, all at once, and keeps
/// each connection whose peer it has replaced or let go (its issue 145), which the endpoint then keeps alive.
#[derive(Debug)]
pub(super) struct Restraint {
    dials: Mutex<Pace>,
}

impl Restraint {
    pub(super) fn new() -> Self {
        let saved = Limits::GOSSIP_BEGINS_WITH as u32;
        Self { dials: Mutex::new(Pace::new(Limits::GOSSIP_DIALS_EVERY, saved)) }
    }
}

impl EndpointHooks for Restraint {
    async fn before_connect(&self, _: &EndpointAddr, alpn: &[u8]) -> BeforeConnectOutcome {
        if alpn == iroh_gossip::ALPN {
            let mut dials = self.dials.lock().await;
            sleep_until(dials.next).await;
            dials.spend();
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
    use crate::level::Level;
    use crate::proto::geo::GeoPoint;
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

    /// A node's part in the overlay, and what is heard there.
    fn overlay(endpoint: &Endpoint) -> (mpsc::Sender<GossipCommand>, mpsc::Receiver<Bytes>, Router) {
        let gossip = Gossip::builder().spawn(endpoint.clone());
        let router = Router::builder(endpoint.clone()).accept(iroh_gossip::ALPN, gossip.clone()).spawn();
        let (commands, asked) = mpsc::channel(8);
        let (hearing, heard) = mpsc::channel(8);
        let overlay = Overlay::new(endpoint.clone(), gossip, FormationId(*b"training"), Gate::default(), hearing);
        tokio::spawn(overlay.run(asked));
        (commands, heard, router)
    }

    #[tokio::test]
    async fn who_could_not_be_reached_at_first_is_joined_later() {
        let (here, there) = (endpoint().await, endpoint().await);
        let lookup = MemoryLookup::new();
        here.address_lookup().unwrap().add(lookup.clone());
        let ((ours, _, _here), (theirs, mut heard, _there)) = (overlay(&here), overlay(&there));
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

    #[tokio::test]
    async fn what_is_for_others_is_not_read() {
        let (here, there) = (endpoint().await, endpoint().await);
        let lookup = MemoryLookup::new();
        here.address_lookup().unwrap().add(lookup.clone());
        let addresses = there.bound_sockets().into_iter();
        lookup.add_endpoint_info(addresses.fold(EndpointAddr::new(there.id()), EndpointAddr::with_ip_addr));
        let ((ours, _, _here), (theirs, mut heard, _there)) = (overlay(&here), overlay(&there));
        let squads = Scope::Cell(Level::SQUAD, GeoPoint::new(52.52, 13.40).unwrap().cell(20));
        theirs.send(GossipCommand::Listen(BTreeSet::from([squads.clone()]))).await.unwrap();
        ours.send(GossipCommand::Join(there.id())).await.unwrap();
        let told = async {
            let mut read = BTreeSet::new();
            while read.len() < 3 {
                for (scope, beacon) in [(Scope::Formation, "for all"), (squads.clone(), "for squads")] {
                    let beacon = [beacon.as_bytes(), &[read.len() as u8]].concat().into();
                    ours.send(GossipCommand::Broadcast(vec![scope], beacon)).await.unwrap();
                }
                if let Ok(Some(beacon)) = timeout(Duration::from_millis(100), heard.recv()).await {
                    assert!(beacon.starts_with(b"for squads"), "{beacon:?}");
                    read.insert(beacon);
                }
            }
        };
        timeout(Duration::from_secs(20), told).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn dials_are_spread_out() {
        tokio::time::advance(Duration::from_secs(3_600)).await;
        let (restraint, peer) = (Restraint::new(), EndpointAddr::new(endpoint_id()));
        let started = Instant::now();
        for _ in 0..20 {
            restraint.before_connect(&peer, iroh_gossip::ALPN).await;
        }
        let spread = started.elapsed().as_secs_f64();
        assert!((42.0..=46.5).contains(&spread), "six at once, then one in three seconds: {spread}");
        restraint.before_connect(&peer, b"another").await;
        assert_eq!(started.elapsed().as_secs_f64(), spread, "the links of the tree do not wait");
    }

    fn endpoint_id() -> EndpointId {
        iroh::SecretKey::from_bytes(&[1; 32]).public()
    }
}
