//! The TransportActor: runs the link machine, dials and accepts, and supervises one LinkActor per connection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ractor::{ActorCell, ActorId, ActorRuntime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::actors::address::Address;
use crate::actors::context::Context;
use crate::actors::link::LinkActor;
use crate::actors::shell::Subject;
use crate::messages::wire::encode_beat;
use crate::messages::{BeaconMessage, Links, Subsystem, TransportMessage};
use crate::proto::beacon::{self, Beacon};
use crate::proto::link::{CloseReason, ConnId, Effect, Input, Machine};
use crate::proto::node::{Output, after_links};
use crate::time::Time;
use crate::transport::{MeshConnection, TransportError};

pub struct Transport {
    context: Context,
    me: ActorCell,
    machine: Machine,
    connections: BTreeMap<ConnId, Arc<dyn MeshConnection>>,
    readers: BTreeMap<ActorId, ConnId>,
    listeners: Vec<JoinHandle<()>>,
    kept: watch::Sender<Option<Arc<Machine>>>,
    decided: bool,
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.listeners.iter().for_each(JoinHandle::abort);
    }
}

impl Subject for Transport {
    type Message = TransportMessage;
    const SUBSYSTEM: Subsystem = Subsystem::Transport;

    async fn start(context: &Context, me: &ActorCell, warm: bool) -> Result<Self, String> {
        let (now, kept) = (context.now(), context.snapshots().transport.clone());
        let snapshot = kept.borrow().clone().filter(|_| warm);
        let machine = match &snapshot {
            Some(snapshot) => Machine::recover(now, snapshot),
            None => Machine::new(now, context.settings.links.clone(), context.view.borrow().clone()),
        };
        let mut transport = Self {
            context: context.clone(),
            me: me.clone(),
            machine,
            connections: BTreeMap::new(),
            readers: BTreeMap::new(),
            listeners: listen(context),
            kept,
            decided: false,
        };
        // Links that the machine does not know, after a cold restart, are links no more.
        let up = transport.machine.up();
        context.links.retain(|peer| up.contains_key(peer));
        // Connections outlive this actor: what the machine knows of goes on, the rest is closed.
        for connection in context.transport.connections() {
            transport.read_from(connection);
        }
        let existing: BTreeSet<_> = transport.connections.keys().copied().collect();
        if snapshot.is_some() || !existing.is_empty() {
            transport.step(now, Input::Resume(existing));
        }
        Ok(transport)
    }

    fn address(context: &Context) -> &Address<TransportMessage> {
        &context.addresses.transport
    }

    fn handle(&mut self, now: Time, message: TransportMessage) {
        match message {
            TransportMessage::Input(input) => self.step(now, input),
            TransportMessage::Dialled { peer, result } => self.dialled(now, peer, result),
            TransportMessage::Accepted(connection) => {
                let (peer, conn) = (connection.peer(), connection.id());
                if !self.connections.contains_key(&conn) {
                    self.read_from(connection);
                    self.step(now, Input::Accepted { peer, conn });
                }
            }
            TransportMessage::Known(peers) => self.step(now, Input::Known(peers)),
            TransportMessage::Links(reply) => {
                let known = self.machine.known().map(|(&id, _)| id).collect();
                let connections = self.connections.len();
                let dialling = self.machine.dialling();
                let _ = reply.send(Links { up: self.machine.up(), known, connections, dialling });
            }
        }
    }

    fn tick(&mut self, now: Time) {
        let mut effects = Vec::new();
        self.machine.tick(now, &mut effects);
        self.follow(effects);
    }

    fn deadline(&self) -> Option<Time> {
        self.machine.deadline()
    }

    fn save(&mut self) {
        self.kept.send_replace(Some(Arc::new(self.machine.clone())));
        self.decided = false;
    }

    fn must_save(&self) -> bool {
        self.decided
    }

    fn child_ended(&mut self, now: Time, child: ActorId, reason: &str) {
        let Some(conn) = self.readers.remove(&child) else { return };
        if let Some(connection) = self.connections.remove(&conn)
            && connection.is_alive()
        {
            connection.close(CloseReason::Fault);
        }
        self.step(now, Input::Closed { conn, reason: reason.to_owned() });
    }
}

impl Transport {
    fn step(&mut self, now: Time, input: Input) {
        let mut effects = Vec::new();
        self.machine.step(now, input, &mut effects);
        self.follow(effects);
    }

    /// Steps are followed in their order: a link is in the index before anyone is told that it is up.
    fn follow(&mut self, effects: Vec<Effect>) {
        let Self { context, connections, decided, .. } = self;
        for effect in effects {
            after_links(effect, &mut |step| {
                if let Some(output) = context.follow(step) {
                    carry_out(context, connections, decided, output);
                }
            });
        }
    }

    fn dialled(&mut self, now: Time, peer: crate::id::NodeId, result: Result<Arc<dyn MeshConnection>, TransportError>) {
        match result {
            Ok(connection) => {
                let conn = connection.id();
                self.read_from(connection);
                self.step(now, Input::Dialled { peer, conn });
            }
            Err(error) => {
                if matches!(error, TransportError::WrongKey { .. }) {
                    tracing::warn!(peer = %peer.short(), %error, "check the peer's id and address in the configuration");
                }
                self.step(now, Input::DialFailed { peer, error: error.to_string() });
            }
        }
    }

    fn read_from(&mut self, connection: Arc<dyn MeshConnection>) {
        let conn = connection.id();
        self.connections.insert(conn, connection.clone());
        let arguments = (self.context.clone(), connection);
        match ActorRuntime::<LinkActor>::spawn_linked_instant(None, LinkActor, arguments, self.me.clone()) {
            Ok((reader, _)) => drop(self.readers.insert(reader.get_id(), conn)),
            Err(error) => tracing::error!(%error, "a link could not be read from"),
        }
    }
}

fn carry_out(
    context: &Context,
    connections: &mut BTreeMap<ConnId, Arc<dyn MeshConnection>>,
    decided: &mut bool,
    output: Output,
) {
    match output {
        Output::Dial { peer, addresses } => {
            let (dialling, address) = (context.transport.dial(peer, addresses), context.addresses.transport.clone());
            tokio::spawn(async move {
                let result = dialling.await;
                // An actor that has restarted since dials again.
                let _ = address.tell_data(TransportMessage::Dialled { peer, result }).await;
            });
        }
        Output::Send { conn, frame } => {
            let Some(connection) = connections.get(&conn) else { return };
            if let Some(bytes) = context.encode(&frame)
                && connection.send(bytes).is_err()
            {
                context.counters.drop_for("no_link");
            }
        }
        Output::SendBeat { conn, beat } => {
            if let Some(connection) = connections.get(&conn) {
                connection.send_datagram(encode_beat(&beat).into());
            }
        }
        Output::Close { conn, reason } => {
            if let Some(connection) = connections.get(&conn) {
                connection.close(reason);
            }
        }
        Output::LinkUp { peer, conn, name } => {
            *decided = true;
            context.met(peer, name);
            if let Some(connection) = connections.get(&conn) {
                context.links.insert(connection.clone());
                context.transport.join(peer);
            }
        }
        Output::LinkDown { peer } => {
            *decided = true;
            context.links.remove(&peer);
        }
        other => tracing::error!(?other, "an output without an owner"),
    }
}

/// Takes up connections from outside, and broadcasts.
fn listen(context: &Context) -> Vec<JoinHandle<()>> {
    let (accepting, hearing) = (context.clone(), context.clone());
    let accept = tokio::spawn(async move {
        while let Some(connection) = accepting.transport.accept().await {
            if accepting.addresses.transport.tell_data(TransportMessage::Accepted(connection)).await.is_err() {
                accepting.counters.drop_for("restarting");
            }
        }
    });
    let hear = tokio::spawn(async move {
        while let Some(message) = hearing.transport.heard().await {
            match Beacon::verify(&message) {
                Ok(beacon) => {
                    let input = beacon::Input::Heard(Arc::new(beacon));
                    // Beacons are repeated: when they come faster than they are handled, the newest is dropped.
                    if hearing.addresses.beacon.try_tell_data(BeaconMessage::Input(input)).is_err() {
                        hearing.counters.drop_for("mailbox_full");
                    }
                }
                Err(_) => hearing.counters.drop_for("forged_beacon"),
            }
        }
    });
    vec![accept, hear]
}
