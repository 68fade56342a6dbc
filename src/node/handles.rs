//! A typed handle for each subsystem, valid across restarts.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use uuid::Uuid;

use crate::actors::{ActorReport, AskError, Context};
use crate::id::NodeId;
use crate::messages::{
    AccountReport, BeaconMessage, DiscoveryMessage, EventRecord, JanitorMessage, Links, MetricsMessage, RouterMessage,
    RouterReport, TopologyMessage, TransportMessage,
};
use crate::metrics::{self, Handling, Snapshot};
use crate::node::{Node, NodeError};
use crate::proto::account::AccountId;
use crate::proto::aggregate::Totals;
use crate::proto::beacon::{Beacon, Description, Neighbours, SelfPatch};
use crate::proto::geo::GeoPoint;
use crate::proto::node::Input;
use crate::proto::retirement::Retirement;
use crate::proto::router::Outcome;
use crate::proto::topology::Why;
use crate::proto::{beacon, link, topology};

/// The beacon subsystem, for host code.
pub struct BeaconHandle<'n>(pub(super) &'n Context);

impl BeaconHandle<'_> {
    /// Changes what the node says of itself.
    pub async fn describe(&self, patch: SelfPatch) -> Result<(), AskError> {
        let input = BeaconMessage::Input(beacon::Input::Describe(patch));
        self.0.addresses.beacon.tell_data(input).await.map_err(|_| AskError::Restarting)
    }

    /// What the node says of itself.
    pub async fn description(&self) -> Result<Arc<Description>, AskError> {
        self.0.addresses.beacon.ask(BeaconMessage::Description).await
    }

    /// The neighbours heard, with their age on this node's clock.
    pub async fn neighbours(&self) -> Result<Neighbours, AskError> {
        self.0.addresses.beacon.ask(BeaconMessage::Neighbours).await
    }

    /// The neighbours within so many metres of a point, the nearest first.
    pub async fn nearby(&self, point: GeoPoint, metres: f64) -> Result<Vec<(f64, Arc<Beacon>)>, AskError> {
        self.0.addresses.beacon.ask(|reply| BeaconMessage::Nearby { point, metres, reply }).await
    }

    /// This node's clock, by which ages are judged.
    pub fn now(&self) -> crate::time::Time {
        self.0.now()
    }
}

/// The topology subsystem, for host code.
pub struct TopologyHandle<'n>(pub(super) &'n Context);

impl TopologyHandle<'_> {
    /// Has the parent chosen anew, now.
    pub async fn reevaluate(&self) -> Result<(), AskError> {
        let input = TopologyMessage::Input(topology::Input::Reevaluate);
        self.0.addresses.topology.tell_data(input).await.map_err(|_| AskError::Restarting)
    }

    /// Why this parent.
    pub async fn why(&self) -> Result<Why, AskError> {
        self.0.addresses.topology.ask(TopologyMessage::Why).await
    }
}

/// The router subsystem, for host code.
pub struct RouterHandle<'n>(pub(super) &'n Context);

impl RouterHandle<'_> {
    /// What became of samples and commands here.
    pub async fn report(&self) -> Result<RouterReport, AskError> {
        self.0.addresses.router.ask(RouterMessage::Report).await
    }

    /// What this node has committed as a root, with quantiles if `telemetry.quantiles` asks for them; `None` if it is
    /// no sink.
    pub async fn totals(&self) -> Result<Option<Totals>, AskError> {
        self.0.addresses.router.ask(RouterMessage::Totals).await
    }

    /// Where the samples of this tree are committed, and what of this node's own waits for which account.
    pub async fn account(&self) -> Result<AccountReport, AskError> {
        self.0.addresses.router.ask(RouterMessage::Account).await
    }

    /// Retires an account whose owner is gone for good: what waits for it goes to this node's own account instead, as
    /// each origin hears of it, and its totals do not count any more.
    pub async fn retire(&self, retired: AccountId, into: AccountId) -> Result<Retirement, NodeError> {
        let retirement = Retirement::sign(&self.0.key, retired, into);
        Ok(self.0.addresses.router.ask(|reply| RouterMessage::Retire { retirement, reply }).await??)
    }

    /// What became of a command issued here, answers that came after its deadline included; `None` if it is forgotten.
    pub async fn outcome(&self, command: Uuid) -> Result<Option<Outcome>, AskError> {
        self.0.addresses.router.ask(|reply| RouterMessage::Outcome(command, reply)).await
    }
}

/// The transport subsystem, for host code.
pub struct TransportHandle<'n>(pub(super) &'n Context);

impl TransportHandle<'_> {
    /// Wants a link to a peer, and redials it while it is down. Idempotent.
    pub fn connect(&self, peer: NodeId) {
        self.0.give(Input::Links(link::Input::Connect(peer)));
    }

    /// Closes the link to a peer in order.
    pub fn disconnect(&self, peer: NodeId) {
        self.0.give(Input::Links(link::Input::Disconnect(peer)));
    }

    /// Says where a peer can be dialled.
    pub fn locate(&self, peer: NodeId, addresses: Vec<SocketAddr>) {
        self.0.give(Input::Links(link::Input::Located(vec![(peer, addresses)])));
    }

    /// The links that are up.
    pub async fn links(&self) -> Result<Links, AskError> {
        self.0.addresses.transport.ask(TransportMessage::Links).await
    }

    pub async fn is_connected(&self, peer: &NodeId) -> Result<bool, AskError> {
        Ok(self.links().await?.up.contains_key(peer))
    }

    /// Silently drops everything from and to these peers, while connections stay open; an empty set opens the gate.
    pub fn shut_out(&self, peers: BTreeSet<NodeId>) {
        self.0.transport.gate().shut_out(peers);
    }
}

/// The discovery subsystem, for host code.
pub struct DiscoveryHandle<'n>(pub(super) &'n Context);

impl DiscoveryHandle<'_> {
    /// The peers it was configured with, the most wanted first.
    pub async fn peers(&self) -> Result<Vec<NodeId>, AskError> {
        self.0.addresses.discovery.ask(DiscoveryMessage::Peers).await
    }
}

/// The metrics subsystem, for host code.
pub struct MetricsHandle<'n>(pub(super) &'n Node);

impl MetricsHandle<'_> {
    /// The recent events.
    pub async fn history(&self) -> Result<Vec<EventRecord>, AskError> {
        self.0.inner.context.addresses.metrics.ask(MetricsMessage::History).await
    }

    /// Counts something of the host's own.
    pub fn count(&self, name: &str, by: u64) {
        self.0.inner.context.metrics.count(name, by);
    }

    /// How the node is doing in numbers. What a collector that keeps nothing would know is empty.
    pub async fn snapshot(&self) -> Result<Snapshot, NodeError> {
        let (node, context) = (self.0, &self.0.inner.context);
        let report = node.router().report().await?;
        let links = node.transport().links().await?;
        let actors = node.actors().await?;
        let counts = context.metrics.counts().unwrap_or_default();
        let (now, view, levels) = (context.now(), node.view(), &node.config().topology.levels);
        let of_kind = |kind| counts.events.get(kind).copied().unwrap_or(0);
        let handling = |report: &ActorReport| {
            let timings = counts.decisions.get(&report.actor);
            let quantile = |share| timings.and_then(|t| t.quantile(share)).map(|took| took.as_secs_f64());
            let mailbox = report.mailbox.control + report.mailbox.data;
            let (handled, restarts) = (report.handled, report.restarts);
            let (decision_p50_s, decision_p99_s) = (quantile(0.5), quantile(0.99));
            (report.actor.label(), Handling { handled, decision_p50_s, decision_p99_s, mailbox, restarts })
        };
        Ok(Snapshot {
            node: node.name().to_string(),
            uptime_s: node.uptime().as_secs_f64(),
            topology: metrics::Topology {
                parent: view.parent_id().map(|id| id.to_string()),
                children: view.children.len(),
                laterals: view.laterals.len(),
                level: levels.label(view.level),
                effective_level: levels.label(view.effective_level),
                role: view.role,
                rank: view.rank(),
            },
            connections: metrics::Connections {
                parent_connected: view.parent_id().is_some_and(|parent| links.up.contains_key(&parent)),
                parent_uptime_s: view.parent.as_ref().map(|parent| now.since(parent.since).as_secs_f64()),
                links_up: links.up.len(),
                dials: links.dialling,
                frames_sent: context.counters.frames_sent.load(Ordering::Relaxed),
                bytes_sent: context.counters.bytes_sent.load(Ordering::Relaxed),
            },
            failover: metrics::Failover {
                parent_changes: of_kind("peer_changed"),
                last_detection_ago_s: counts.last_detection.map(|at| now.since(at).as_secs_f64()),
                last_attachment_s: counts.last_attachment.map(|took| took.as_secs_f64()),
                false_failovers: counts.false_failovers,
                reoffered_samples: report.counts.reoffered,
                journal_depth: report.outbox_depth,
                journal_bytes: report.outbox_bytes,
            },
            performance: metrics::Performance {
                published: report.counts.acknowledged,
                forwarded: report.counts.forwarded,
                committed: report.counts.committed,
                evicted: report.counts.evicted,
                subsystems: actors.iter().map(handling).collect(),
            },
            events: counts.events.clone(),
            dropped: node.dropped(),
            own: counts.own.clone(),
        })
    }
}

/// The janitor, for host code.
pub struct JanitorHandle<'n>(pub(super) &'n Context);

impl JanitorHandle<'_> {
    /// Has every owner expire its state now.
    pub fn sweep(&self) -> Result<(), AskError> {
        self.0.addresses.janitor.tell(JanitorMessage::Sweep).map_err(|_| AskError::Restarting)
    }
}
