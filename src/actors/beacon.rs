//! The BeaconActor: speaks, listens, and owns the table of neighbours.

use std::sync::Arc;

use ractor::ActorCell;
use tokio::sync::watch;

use crate::actors::address::Address;
use crate::actors::context::Context;
use crate::actors::shell::Subject;
use crate::messages::{BeaconMessage, Subsystem};
use crate::proto::beacon::{Effect, Machine};
use crate::proto::node::after_beacon;
use crate::time::Time;

pub struct Beaconing {
    context: Context,
    machine: Machine,
    kept: watch::Sender<Option<Arc<Machine>>>,
}

impl Subject for Beaconing {
    type Message = BeaconMessage;
    const SUBSYSTEM: Subsystem = Subsystem::Beacon;

    async fn start(context: &Context, _me: &ActorCell, warm: bool) -> Result<Self, String> {
        let (now, kept) = (context.now(), context.snapshots().beacon.clone());
        let (snapshot, settings) = (kept.borrow().clone(), &context.settings);
        let machine = match &snapshot {
            Some(snapshot) if warm => Machine::recover(now, snapshot),
            // What the host said of itself is not for this node to forget.
            before => {
                let description = before.as_ref().map_or(&settings.description, |before| before.description());
                let view = context.view.borrow().clone();
                Machine::new(now, settings.beacon.clone(), description.clone(), view)
            }
        };
        Ok(Self { context: context.clone(), machine, kept })
    }

    fn address(context: &Context) -> &Address<BeaconMessage> {
        &context.addresses.beacon
    }

    fn handle(&mut self, now: Time, message: BeaconMessage) {
        match message {
            BeaconMessage::Input(input) => {
                let mut effects = Vec::new();
                self.machine.step(now, input, &mut effects);
                self.follow(effects);
            }
            BeaconMessage::Description(reply) => drop(reply.send(self.machine.description().clone())),
            BeaconMessage::Nearby { point, metres, reply } => {
                let near = self.machine.neighbours().nearby(now, &point, metres);
                drop(reply.send(near.into_iter().map(|(distance, n)| (distance, n.beacon.clone())).collect()));
            }
            BeaconMessage::Neighbours(reply) => drop(reply.send(self.machine.neighbours().clone())),
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
    }
}

impl Beaconing {
    fn follow(&self, effects: Vec<Effect>) {
        for effect in effects {
            after_beacon(effect, &mut |step| drop(self.context.follow(step)));
        }
    }
}
