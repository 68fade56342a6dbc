//! The DiscoveryActor: who else there is, from the configuration, and where this node is reached.

use std::net::SocketAddr;
use std::time::Duration;

use ractor::ActorCell;
use tokio::task::spawn_blocking;

use crate::actors::address::Address;
use crate::actors::context::Context;
use crate::actors::shell::Subject;
use crate::config::StaticPeer;
use crate::id::NodeId;
use crate::limits::Limits;
use crate::messages::{DiscoveryMessage, Subsystem, TransportMessage};
use crate::proto::beacon::{self, Beacon, SelfPatch};
use crate::proto::node::Input;
use crate::time::Time;

/// How often this node's own addresses are looked at.
const LOOK: Duration = Duration::from_secs(5);

pub struct Discovery {
    context: Context,
    peers: Vec<StaticPeer>,
    look_at: Time,
    /// Whom the storage has, and where they were reached.
    kept: Vec<(NodeId, Vec<SocketAddr>)>,
}

impl Subject for Discovery {
    type Message = DiscoveryMessage;
    const SUBSYSTEM: Subsystem = Subsystem::Discovery;

    async fn start(context: &Context, _me: &ActorCell, _warm: bool) -> Result<Self, String> {
        let mut peers = context.config.discovery.fixed.peers.clone();
        peers.sort_by_key(|peer| (std::cmp::Reverse(peer.priority), peer.id));
        let discovery = Self { context: context.clone(), peers, look_at: context.now() + LOOK, kept: Vec::new() };
        discovery.announce();
        discovery.remember();
        Ok(discovery)
    }

    fn address(context: &Context) -> &Address<DiscoveryMessage> {
        &context.addresses.discovery
    }

    fn handle(&mut self, _now: Time, message: DiscoveryMessage) {
        match message {
            DiscoveryMessage::Announce => {
                self.announce();
                self.remember();
            }
            DiscoveryMessage::Peers(reply) => {
                let _ = reply.send(self.peers.iter().map(|peer| peer.id).collect());
            }
        }
    }

    fn tick(&mut self, now: Time) {
        self.look_at = now + LOOK;
        let addresses = SelfPatch::Addresses(self.context.transport.addresses());
        self.context.give(Input::Beacon(beacon::Input::Describe(addresses)));
        self.keep();
    }

    fn deadline(&self) -> Option<Time> {
        Some(self.look_at)
    }
}

impl Discovery {
    fn announce(&self) {
        let known = self.peers.iter().map(|peer| (peer.id, peer.addresses.clone())).collect();
        if self.context.addresses.transport.tell(TransportMessage::Known(known)).is_err() {
            // A transport that restarts asks again.
            self.context.counters.drop_for("restarting");
        }
    }

    /// Names those that were heard before this start: hints whom to dial.
    fn remember(&self) {
        let Some(storage) = self.context.beacons.clone() else { return };
        let context = self.context.clone();
        tokio::spawn(async move {
            match spawn_blocking(move || storage.load()).await {
                Ok(Ok(beacons)) => {
                    let own = |beacon: &Beacon| beacon.formation == context.config.formation_id();
                    let known = beacons.into_iter().filter(own).map(|beacon| (beacon.id, beacon.addresses)).collect();
                    if context.addresses.transport.tell(TransportMessage::Known(known)).is_err() {
                        context.counters.drop_for("restarting");
                    }
                }
                Ok(Err(error)) => tracing::warn!(%error, "the neighbours of the last run could not be read"),
                Err(error) => tracing::warn!(%error, "reading the neighbours of the last run ended early"),
            }
        });
    }

    /// Keeps the neighbours that can be dialled, the latest heard first, when they are others than those kept.
    fn keep(&mut self) {
        let Some(storage) = self.context.beacons.clone() else { return };
        let Some(machine) = self.context.snapshots().beacon.borrow().clone() else { return };
        let mut heard: Vec<_> = machine.neighbours().iter().filter(|(_, n)| !n.beacon.addresses.is_empty()).collect();
        heard.sort_by_key(|(id, neighbour)| (std::cmp::Reverse(neighbour.heard), **id));
        heard.truncate(Limits::KEPT_BEACONS);
        let mut kept: Vec<_> = heard.iter().map(|(id, n)| (**id, n.beacon.addresses.clone())).collect();
        kept.sort();
        if kept == self.kept {
            return;
        }
        self.kept = kept;
        let beacons: Vec<_> = heard.into_iter().map(|(_, neighbour)| neighbour.beacon.clone()).collect();
        tokio::spawn(async move {
            if let Ok(Err(error)) = spawn_blocking(move || storage.save(&beacons)).await {
                tracing::warn!(%error, "the neighbours could not be kept for the next start");
            }
        });
    }
}
