//! What is said: the wire form of frames, and one message type per actor. A message wraps its machine's input.

pub mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::id::{NodeId, NodeName};
use crate::proto::account::AccountId;
use crate::proto::aggregate::Totals;
use crate::proto::beacon::{Beacon, Description, Neighbours};
use crate::proto::durable::Durable;
use crate::proto::event::Event;
use crate::proto::geo::GeoPoint;
use crate::proto::packet::{Order, Target};
use crate::proto::retirement::{RetireError, Retirement};
use crate::proto::router::{Counts, Outcome, PublishError, Published};
use crate::proto::sample::Telemetry;
use crate::proto::summary::Summary;
use crate::proto::topology::Why;
use crate::proto::{beacon, link, router, topology};
use crate::transport::{MeshConnection, TransportError};

/// Where an answer goes. Dropped unanswered by an actor that crashes: the caller is told to try again.
pub type Reply<T> = oneshot::Sender<T>;

/// A supervised part of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subsystem {
    Metrics,
    Transport,
    Discovery,
    Beacon,
    Topology,
    Router,
    Janitor,
}

impl Subsystem {
    /// In the order of their start; they stop in reverse.
    pub const ALL: [Self; 7] =
        [Self::Metrics, Self::Transport, Self::Discovery, Self::Beacon, Self::Topology, Self::Router, Self::Janitor];

    pub fn label(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Transport => "transport",
            Self::Discovery => "discovery",
            Self::Beacon => "beacon",
            Self::Topology => "topology",
            Self::Router => "router",
            Self::Janitor => "janitor",
        }
    }

    pub fn parse(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|subsystem| subsystem.label().eq_ignore_ascii_case(label))
    }

    /// Whether the node stops when it cannot be kept running; else the node is degraded.
    pub fn is_critical(self) -> bool {
        matches!(self, Self::Transport | Self::Beacon | Self::Topology | Self::Router)
    }
}

/// How an actor is made to fail, by whoever tests its supervision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    Panic,
    Error,
    /// A handler that never comes back from its await.
    Freeze,
}

pub enum TransportMessage {
    Input(link::Input),
    Dialled {
        peer: NodeId,
        result: Result<Arc<dyn MeshConnection>, TransportError>,
    },
    Accepted(Arc<dyn MeshConnection>),
    /// Static peers, at the start and after a restart.
    Known(Vec<(NodeId, Vec<SocketAddr>)>),
    Links(Reply<Links>),
}

/// The links that are up and the peers that are known.
#[derive(Clone, Debug, Default)]
pub struct Links {
    pub up: BTreeMap<NodeId, NodeName>,
    pub known: Vec<NodeId>,
    pub connections: usize,
    /// Dials under way.
    pub dialling: usize,
}

pub enum BeaconMessage {
    Input(beacon::Input),
    Neighbours(Reply<Neighbours>),
    Nearby { point: GeoPoint, metres: f64, reply: Reply<Vec<(f64, Arc<Beacon>)>> },
    Description(Reply<Arc<Description>>),
}

pub enum TopologyMessage {
    Input(topology::Input),
    Why(Reply<Why>),
}

pub enum RouterMessage {
    Input(router::Input),
    Publish {
        telemetry: Telemetry,
        reply: Reply<Result<Published, PublishError>>,
    },
    Command {
        target: Target,
        order: Order,
        deadline: Duration,
        expires: Duration,
        reply: Reply<Outcome>,
    },
    /// The journal has refused records of this session.
    Refused(u64),
    /// What it did keep.
    Reloaded {
        durable: Box<Durable>,
        session: u64,
    },
    Report(Reply<RouterReport>),
    /// Retires an account into this node's own, as signed.
    Retire {
        retirement: Retirement,
        reply: Reply<Result<Retirement, RetireError>>,
    },
    Account(Reply<AccountReport>),
    /// What is committed here as a root.
    Totals(Reply<Option<Totals>>),
    /// What became of a command, late answers included.
    Outcome(Uuid, Reply<Option<Outcome>>),
}

/// A command for the host, to be answered by its id.
#[derive(Clone, Debug)]
pub struct HostCommand {
    pub id: Uuid,
    pub issuer: NodeId,
    pub text: String,
    pub expires_in: Duration,
}

/// What the router knows of samples and commands.
#[derive(Clone, Debug, Default)]
pub struct RouterReport {
    pub counts: Counts,
    pub outbox_depth: usize,
    pub outbox_bytes: usize,
    /// Samples committed here as a root, in all and by origin.
    pub counted: u64,
    pub counted_by_origin: BTreeMap<NodeId, u64>,
    pub commands_issued: u64,
    pub commands_delivered: u64,
    pub commands_duplicate: u64,
    /// This node and everybody below it.
    pub summary: Summary,
}

/// Where a node's samples go, and what it commits itself.
#[derive(Clone, Debug)]
pub struct AccountReport {
    pub own: Option<OwnAccount>,
    /// The account that samples of this tree go to.
    pub root: Option<AccountId>,
    /// Own samples that are not committed yet, by the account that they wait for.
    pub waiting: BTreeMap<Option<AccountId>, u64>,
}

/// The account of a sink.
#[derive(Clone, Debug)]
pub struct OwnAccount {
    pub id: AccountId,
    pub samples: u64,
    pub origins: usize,
    /// What was retired into it, or ended when it began.
    pub retirements: Vec<Retirement>,
}

pub enum DiscoveryMessage {
    /// The transport has restarted: it knows nobody.
    Announce,
    Peers(Reply<Vec<NodeId>>),
}

pub enum JanitorMessage {
    /// A round now, not when it is due.
    Sweep,
}

pub enum MetricsMessage {
    Event(EventRecord),
    History(Reply<Vec<EventRecord>>),
}

/// An event with its place in this node's order of events.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRecord {
    pub seq: u64,
    pub at: jiff::Timestamp,
    pub event: Event,
}
