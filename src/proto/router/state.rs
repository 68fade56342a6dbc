//! How this node and everybody below it are: told to the parent when it changes, and now and then anyway.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::aggregate::Totals;
use crate::proto::packet::RouterFrame;
use crate::proto::router::machine::{Effect, Machine};
use crate::proto::sample::Telemetry;
use crate::proto::summary::{NodeState, Summary};
use crate::proto::topology::{Tenure, View};
use crate::time::Time;

/// How often the parent is told though nothing has changed: it may have forgotten.
const REFRESH: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub(super) struct States {
    own: NodeState,
    /// Where the host says it is, which counts for more than the configured position.
    published: bool,
    below: BTreeMap<NodeId, Summary>,
    pub whole: Summary,
    waiting: Option<Waiting>,
    told: Time,
    due: Time,
}

/// In a partition, what the own samples add up to that wait, and which of them are in it.
#[derive(Clone, Debug)]
struct Waiting {
    totals: Totals,
    upto: u64,
    evicted: u64,
    since: Time,
}

impl States {
    pub fn new(now: Time) -> Self {
        let own = NodeState::default();
        let whole = Summary::of(&own);
        Self { own, published: false, below: BTreeMap::new(), whole, waiting: None, told: now, due: now }
    }

    pub fn due(&self) -> Time {
        self.due
    }
}

impl Machine {
    /// This node and everybody below it, as last told.
    pub fn summary(&self) -> &Summary {
        &self.states.whole
    }

    pub(super) fn state_placed(&mut self, now: Time, before: &View) {
        let (view, states) = (&self.view, &mut self.states);
        let moved = view.parent_id() != before.parent_id() || view.partition != before.partition;
        let known = states.below.len();
        states.below.retain(|child, _| view.children.contains_key(child));
        let mut own = states.own.clone();
        own.capabilities = view.capabilities.to_vec();
        if !states.published {
            own.position = view.position;
        }
        if own != states.own || known != states.below.len() || moved {
            states.own = own;
            self.state_changed(now);
        }
    }

    /// Takes from telemetry how the node is.
    pub(super) fn take_state(&mut self, now: Time, telemetry: &Telemetry) {
        let mut own = self.states.own.clone();
        own.position = telemetry.position.or(own.position);
        own.battery = telemetry.battery.or(own.battery);
        own.condition = telemetry.condition.unwrap_or(own.condition);
        own.opaque = telemetry.opaque.clone().or(own.opaque);
        self.states.published |= telemetry.position.is_some();
        if own != self.states.own {
            self.states.own = own;
            self.state_changed(now);
        }
    }

    pub(super) fn state_below(
        &mut self,
        now: Time,
        from: NodeId,
        (child, parent): (Tenure, Tenure),
        summary: Summary,
        effects: &mut Vec<Effect>,
    ) {
        let accepted = self.view.children.get(&from).map(|known| known.tenure);
        if accepted != Some(child) || parent != self.view.tenure {
            return effects.push(Effect::Dropped("stale_tenure"));
        }
        if !summary.is_possible() {
            return effects.push(Effect::Dropped("impossible_summary"));
        }
        if self.states.below.get(&from) != Some(&summary) {
            self.states.below.insert(from, summary);
            self.state_changed(now);
        }
    }

    pub(super) fn state_changed(&mut self, now: Time) {
        let next = (self.states.told + self.settings.window).max(now);
        self.states.due = self.states.due.min(next);
    }

    pub(super) fn tick_state(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if now < self.states.due {
            return;
        }
        let mut own = Summary::of(&self.states.own);
        own.provisional = self.provisional(now).map(Box::new);
        let parts = std::iter::once(&own).chain(self.states.below.values());
        let whole = Summary::merged(parts, self.settings.aggregator.as_deref());
        (self.states.told, self.states.due) = (now, now + REFRESH);
        if let Some(parent) = &self.view.parent {
            let frame =
                RouterFrame::State { child: self.view.tenure, parent: parent.tenure, summary: Box::new(whole.clone()) };
            effects.push(Effect::Send { peer: parent.id, frame });
        }
        self.states.whole = whole;
    }

    /// Nothing is committed in a partition: its root shows what waits. Samples are added as they come; what was given up
    /// meanwhile is left out at the next refresh, for all must be added up again for that.
    fn provisional(&mut self, now: Time) -> Option<Totals> {
        let outbox = &self.durable.outbox;
        let waiting = &mut self.states.waiting;
        let old = |w: &Waiting| w.evicted != outbox.evicted() && now >= w.since + REFRESH;
        if self.view.partition.is_none() || waiting.as_ref().is_some_and(old) {
            *waiting = None;
        }
        self.view.partition?;
        let waiting = waiting.get_or_insert_with(|| Waiting {
            totals: Totals::default(),
            upto: 0,
            evicted: outbox.evicted(),
            since: now,
        });
        outbox.since(waiting.upto).for_each(|sample| waiting.totals.add(sample));
        waiting.totals.truncate(Limits::UNIT_METRICS);
        waiting.upto = outbox.next_sequence();
        Some(waiting.totals.clone())
    }
}
