//! What every actor of a node is handed: addresses of the others, the transport, counters, events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;

use crate::actors::address::{Address, Undelivered};
use crate::actors::counters::Counters;
use crate::config::Config;
use crate::id::{Keypair, NodeId, NodeName};
use crate::limits::Limits;
use crate::messages::wire::encode_frame;
use crate::messages::{
    BeaconMessage, DiscoveryMessage, EventRecord, HostCommand, JanitorMessage, MetricsMessage, RouterMessage,
    Subsystem, TopologyMessage, TransportMessage,
};
use crate::metrics::MetricsCollector;
use crate::proto::event::Event;
use crate::proto::frame::Frame;
use crate::proto::node::{Input, Output, Settings, Step};
use crate::proto::topology::View;
use crate::proto::{beacon, link, router, topology};
use crate::storage::{BeaconStorage, Journal};
use crate::time::Time;
use crate::transport::{LinkIndex, MeshTransport, TransportError};

/// Where each subsystem is reached.
#[derive(Clone, Default)]
pub struct Addresses {
    pub metrics: Address<MetricsMessage>,
    pub transport: Address<TransportMessage>,
    pub discovery: Address<DiscoveryMessage>,
    pub beacon: Address<BeaconMessage>,
    pub topology: Address<TopologyMessage>,
    pub router: Address<RouterMessage>,
    pub janitor: Address<JanitorMessage>,
}

/// Shared by all actors of one node; cheap to clone.
#[derive(Clone)]
pub struct Context {
    pub addresses: Addresses,
    pub settings: Arc<Settings>,
    pub config: Arc<Config>,
    pub key: Keypair,
    pub transport: Arc<dyn MeshTransport>,
    pub links: LinkIndex,
    pub counters: Arc<Counters>,
    pub metrics: Arc<dyn MetricsCollector>,
    pub journal: Journal,
    /// Where neighbours are kept for the next start, if anywhere.
    pub beacons: Option<Arc<dyn BeaconStorage>>,
    pub view: watch::Sender<Arc<View>>,
    pub events: broadcast::Sender<EventRecord>,
    /// Where the host takes its commands, once it has asked for them.
    pub host: watch::Sender<Option<mpsc::Sender<HostCommand>>>,
    /// The names of nodes met on links, for people.
    names: watch::Sender<Arc<BTreeMap<NodeId, NodeName>>>,
    snapshots: Arc<Snapshots>,
    event_seq: Arc<AtomicU64>,
    started: Instant,
}

/// What each machine's warm restart goes on from; kept by the supervisor, written by the shells.
#[derive(Default)]
pub struct Snapshots {
    pub transport: watch::Sender<Option<Arc<link::Machine>>>,
    pub beacon: watch::Sender<Option<Arc<beacon::Machine>>>,
    pub topology: watch::Sender<Option<Arc<topology::Machine>>>,
    pub router: watch::Sender<Option<Arc<router::Snapshot>>>,
}

impl Context {
    pub fn new(
        settings: Settings,
        config: Arc<Config>,
        key: Keypair,
        transport: Arc<dyn MeshTransport>,
        journal: Journal,
        metrics: Arc<dyn MetricsCollector>,
        beacons: Option<Arc<dyn BeaconStorage>>,
    ) -> Self {
        Self {
            addresses: Addresses::default(),
            view: watch::Sender::new(settings.first_view()),
            settings: Arc::new(settings),
            config,
            key,
            transport,
            links: LinkIndex::default(),
            counters: Arc::default(),
            metrics,
            journal,
            beacons,
            events: broadcast::Sender::new(Limits::EVENTS),
            host: watch::Sender::new(None),
            names: watch::Sender::new(Arc::default()),
            snapshots: Arc::default(),
            event_seq: Arc::default(),
            started: Instant::now(),
        }
    }

    /// Remembers a name for as long as there is room.
    pub fn met(&self, peer: NodeId, name: NodeName) {
        self.names.send_if_modified(|names| {
            let news = names.get(&peer) != Some(&name) && names.len() < Limits::KNOWN_PEERS;
            if news {
                Arc::make_mut(names).insert(peer, name);
            }
            news
        });
    }

    pub fn names(&self) -> Arc<BTreeMap<NodeId, NodeName>> {
        self.names.borrow().clone()
    }

    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// Protocol time: since this node started.
    pub fn now(&self) -> Time {
        Time::ZERO + self.started.elapsed()
    }

    pub fn instant(&self, at: Time) -> Instant {
        self.started + at.since(Time::ZERO)
    }

    /// Tells hosts, and who keeps the history.
    pub fn event(&self, event: Event) {
        self.metrics.event(self.now(), &event);
        let seq = self.event_seq.fetch_add(1, Ordering::Relaxed) + 1;
        let record = EventRecord { seq, at: jiff::Timestamp::now(), event };
        self.noted(Subsystem::Metrics, self.addresses.metrics.tell(MetricsMessage::Event(record.clone())));
        // Nobody listening is no loss.
        let _ = self.events.send(record);
    }

    /// Follows a step: an input goes to its actor, an output that needs no owner is carried out here.
    ///
    /// Returns the output if its owner must carry it out.
    pub fn follow(&self, step: Step) -> Option<Output> {
        match step {
            Step::To(input) => {
                self.give(input);
                None
            }
            Step::Out(output) => self.carry_out(output),
        }
    }

    /// Hands an input to the actor of its machine.
    pub fn give(&self, input: Input) {
        let addresses = &self.addresses;
        match input {
            Input::Links(input) => {
                self.noted(Subsystem::Transport, addresses.transport.tell(TransportMessage::Input(input)));
            }
            Input::Beacon(input) => self.noted(Subsystem::Beacon, addresses.beacon.tell(BeaconMessage::Input(input))),
            Input::Topology(input) => {
                self.noted(Subsystem::Topology, addresses.topology.tell(TopologyMessage::Input(input)));
            }
            Input::Router(input) => self.noted(Subsystem::Router, addresses.router.tell(RouterMessage::Input(input))),
        }
    }

    fn noted(&self, to: Subsystem, sent: Result<(), Undelivered>) {
        if let Err(undelivered) = sent {
            let why = match undelivered {
                Undelivered::Full => "mailbox_full",
                Undelivered::Restarting => "restarting",
            };
            tracing::debug!(to = to.label(), why, "a message was dropped");
            self.counters.drop_for(why);
        }
    }

    fn carry_out(&self, output: Output) -> Option<Output> {
        match output {
            Output::SendTo { peer, frame } => self.send_to(peer, &frame),
            Output::Broadcast(beacon, scopes) => self.transport.broadcast(scopes, beacon.sign(&self.key).into()),
            Output::Listen(scopes) => self.transport.listen(scopes),
            Output::Event(event) => self.event(event),
            Output::Dropped(why) => self.counters.drop_for(why),
            Output::Swept(_, count) => drop(self.counters.swept.fetch_add(count as u64, Ordering::Relaxed)),
            Output::View(view) => drop(self.view.send_replace(view)),
            other => return Some(other),
        }
        None
    }

    fn send_to(&self, peer: NodeId, frame: &Frame) {
        let Some(bytes) = self.encode(frame) else { return };
        match self.links.send(&peer, bytes) {
            Ok(()) => {}
            Err(TransportError::Busy) => self.counters.drop_for("link_busy"),
            Err(_) => self.counters.drop_for("no_link"),
        }
    }

    /// The wire form of a frame; one that is too large is dropped and counted.
    pub fn encode(&self, frame: &Frame) -> Option<bytes::Bytes> {
        let mut bytes = Vec::with_capacity(256);
        match encode_frame(frame, &self.key, &mut bytes) {
            Ok(()) => {
                self.counters.frames_sent.fetch_add(1, Ordering::Relaxed);
                self.counters.bytes_sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Some(bytes.into())
            }
            Err(too_large) => {
                tracing::warn!(%too_large, kind = frame.kind(), "a frame was not sent");
                self.counters.drop_for("frame_too_long");
                None
            }
        }
    }
}
