//! A typed handle for each subsystem, valid across restarts.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use uuid::Uuid;

use crate::actors::{AskError, Context};
use crate::id::NodeId;
use crate::messages::{
    BeaconMessage, DiscoveryMessage, EventRecord, JanitorMessage, Links, MetricsMessage, RouterMessage, RouterReport,
    TopologyMessage, TransportMessage,
};
use crate::proto::beacon::{Description, Neighbours, SelfPatch};
use crate::proto::node::Input;
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
pub struct MetricsHandle<'n>(pub(super) &'n Context);

impl MetricsHandle<'_> {
    /// The recent events.
    pub async fn history(&self) -> Result<Vec<EventRecord>, AskError> {
        self.0.addresses.metrics.ask(MetricsMessage::History).await
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
