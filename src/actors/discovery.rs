//! The DiscoveryActor: who else there is, from the configuration, and where this node is reached.

use std::time::Duration;

use ractor::ActorCell;

use crate::actors::address::Address;
use crate::actors::context::Context;
use crate::actors::shell::Subject;
use crate::config::StaticPeer;
use crate::messages::{DiscoveryMessage, Subsystem, TransportMessage};
use crate::proto::beacon::{self, SelfPatch};
use crate::proto::node::Input;
use crate::time::Time;

/// How often this node's own addresses are looked at.
const LOOK: Duration = Duration::from_secs(5);

pub struct Discovery {
    context: Context,
    peers: Vec<StaticPeer>,
    look_at: Time,
}

impl Subject for Discovery {
    type Message = DiscoveryMessage;
    const SUBSYSTEM: Subsystem = Subsystem::Discovery;

    async fn start(context: &Context, _me: &ActorCell, _warm: bool) -> Result<Self, String> {
        let mut peers = context.config.discovery.fixed.peers.clone();
        peers.sort_by_key(|peer| (std::cmp::Reverse(peer.priority), peer.id));
        let discovery = Self { context: context.clone(), peers, look_at: context.now() + LOOK };
        discovery.announce();
        Ok(discovery)
    }

    fn address(context: &Context) -> &Address<DiscoveryMessage> {
        &context.addresses.discovery
    }

    fn handle(&mut self, _now: Time, message: DiscoveryMessage) {
        match message {
            DiscoveryMessage::Announce => self.announce(),
            DiscoveryMessage::Peers(reply) => {
                let _ = reply.send(self.peers.iter().map(|peer| peer.id).collect());
            }
        }
    }

    fn tick(&mut self, now: Time) {
        self.look_at = now + LOOK;
        let addresses = SelfPatch::Addresses(self.context.transport.addresses());
        self.context.give(Input::Beacon(beacon::Input::Describe(addresses)));
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
}
