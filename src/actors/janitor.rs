//! The JanitorActor: owns the schedule of sweeps; each owner expires its own state.

use ractor::ActorCell;

use crate::actors::address::Address;
use crate::actors::context::Context;
use crate::actors::shell::Subject;
use crate::limits::Limits;
use crate::messages::{JanitorMessage, Subsystem};
use crate::proto::node::Input;
use crate::proto::{beacon, router};
use crate::time::Time;

pub struct Janitor {
    context: Context,
    round_at: Time,
}

impl Subject for Janitor {
    type Message = JanitorMessage;
    const SUBSYSTEM: Subsystem = Subsystem::Janitor;

    async fn start(context: &Context, _me: &ActorCell, _warm: bool) -> Result<Self, String> {
        Ok(Self { context: context.clone(), round_at: context.now() + Limits::SWEEP })
    }

    fn address(context: &Context) -> &Address<JanitorMessage> {
        &context.addresses.janitor
    }

    fn handle(&mut self, now: Time, message: JanitorMessage) {
        match message {
            JanitorMessage::Sweep => self.tick(now),
        }
    }

    fn tick(&mut self, now: Time) {
        self.round_at = now + Limits::SWEEP;
        self.context.give(Input::Beacon(beacon::Input::Sweep));
        self.context.give(Input::Router(router::Input::Sweep));
    }

    fn deadline(&self) -> Option<Time> {
        Some(self.round_at)
    }
}
