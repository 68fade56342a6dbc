//! The TopologyActor: chooses the parent, accepts children, publishes the view.

use std::sync::Arc;

use ractor::ActorCell;
use tokio::sync::watch;

use crate::actors::address::Address;
use crate::actors::context::Context;
use crate::actors::shell::Subject;
use crate::messages::{Subsystem, TopologyMessage};
use crate::proto::node::after_topology;
use crate::proto::topology::{Effect, Machine};
use crate::time::Time;

pub struct Topology {
    context: Context,
    machine: Machine,
    kept: watch::Sender<Option<Arc<Machine>>>,
    decided: bool,
}

impl Subject for Topology {
    type Message = TopologyMessage;
    const SUBSYSTEM: Subsystem = Subsystem::Topology;

    async fn start(context: &Context, _me: &ActorCell, warm: bool) -> Result<Self, String> {
        let (now, kept) = (context.now(), context.snapshots().topology.clone());
        let snapshot = kept.borrow().clone().filter(|_| warm);
        let settings = &context.settings;
        let machine = match &snapshot {
            Some(snapshot) => Machine::recover(now, snapshot),
            None => {
                let settings_now = settings.topology.knowing(&context.view.borrow());
                Machine::new(now, settings_now, Arc::new(settings.description.clone()))
            }
        };
        Ok(Self { context: context.clone(), machine, kept, decided: false })
    }

    fn address(context: &Context) -> &Address<TopologyMessage> {
        &context.addresses.topology
    }

    fn handle(&mut self, now: Time, message: TopologyMessage) {
        match message {
            TopologyMessage::Input(input) => {
                let mut effects = Vec::new();
                self.machine.step(now, input, &mut effects);
                self.follow(effects);
            }
            TopologyMessage::Why(reply) => drop(reply.send(self.machine.why(now))),
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
}

impl Topology {
    fn follow(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.decided |= matches!(effect, Effect::View(_));
            after_topology(effect, &mut |step| drop(self.context.follow(step)));
        }
    }
}
