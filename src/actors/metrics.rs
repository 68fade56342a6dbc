//! The MetricsActor: keeps the recent events for who did not follow them.

use std::collections::VecDeque;

use ractor::ActorCell;

use crate::actors::address::Address;
use crate::actors::context::Context;
use crate::actors::shell::Subject;
use crate::limits::Limits;
use crate::messages::{EventRecord, MetricsMessage, Subsystem};
use crate::time::Time;

pub struct Metrics {
    history: VecDeque<EventRecord>,
}

impl Subject for Metrics {
    type Message = MetricsMessage;
    const SUBSYSTEM: Subsystem = Subsystem::Metrics;

    async fn start(_context: &Context, _me: &ActorCell, _warm: bool) -> Result<Self, String> {
        Ok(Self { history: VecDeque::with_capacity(Limits::EVENT_HISTORY) })
    }

    fn address(context: &Context) -> &Address<MetricsMessage> {
        &context.addresses.metrics
    }

    fn handle(&mut self, _now: Time, message: MetricsMessage) {
        match message {
            MetricsMessage::Event(record) => {
                if self.history.len() == Limits::EVENT_HISTORY {
                    self.history.pop_front();
                }
                self.history.push_back(record);
            }
            MetricsMessage::History(reply) => drop(reply.send(self.history.iter().cloned().collect())),
        }
    }
}
