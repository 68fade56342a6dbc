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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Keypair, NodeName};
    use crate::level::Level;
    use crate::proto::account::AccountId;
    use crate::proto::aggregate::Source;
    use crate::proto::durable::{Durable, Record};
    use crate::proto::outbox::{Offer, WhenFull};
    use crate::proto::packet::{DataPacket, Direction, PacketType, Payload, Target};
    use crate::proto::ranges::RangeSet;
    use crate::proto::router::{Input, Settings};
    use crate::proto::sample::{Condition, Priority, Sample};
    use crate::proto::topology::ChildView;
    use std::sync::Arc;

    const ACCOUNT: AccountId = AccountId([1; 16]);

    fn id(n: u8) -> NodeId {
        Keypair::from_seed([n; 32]).id()
    }

    /// A root with one child.
    fn root() -> Machine {
        let settings = Settings {
            me: id(1),
            incarnation: 1,
            window: Duration::from_secs(1),
            window_count: 1024,
            quantiles: false,
            outbox_bytes: 1 << 20,
            when_full: WhenFull::Block,
            aggregator: None,
            seed: 1,
        };
        let name = NodeName::new("root").unwrap();
        let mut view = View::alone(id(1), name, Level::COMPANY, Tenure::default(), 16);
        view.account = Some(ACCOUNT);
        view.own_account = Some(ACCOUNT);
        let (tenure, effective_level) = (Tenure::default(), Level::PLATFORM);
        let child = ChildView { tenure, serial: 1, effective_level, fence: None, since: Time::ZERO };
        view.children.insert(id(2), child);
        let view = Arc::new(view);
        let durable = Durable::new(7, Some(ACCOUNT));
        let mut machine = Machine::new(Time::ZERO, settings, view.clone(), durable, None);
        machine.step(Time::ZERO, Input::Placed(view), &mut Vec::new());
        machine
    }

    fn give(machine: &mut Machine, frame: RouterFrame) -> Vec<Effect> {
        let mut effects = Vec::new();
        machine.step(Time::ZERO, Input::Frame { from: id(2), frame }, &mut effects);
        effects
    }

    fn state(summary: Summary) -> RouterFrame {
        RouterFrame::State { child: Tenure::default(), parent: Tenure::default(), summary: Box::new(summary) }
    }

    #[test]
    fn a_summary_that_cannot_be_true_is_refused_and_the_old_one_stands() {
        let mut machine = root();
        let failed = Summary::of(&NodeState { condition: Condition::Failed, ..NodeState::default() });
        give(&mut machine, state(failed.clone()));
        let lying = Summary { members: 2, ..failed };
        let effects = give(&mut machine, state(lying));
        assert!(matches!(effects[..], [Effect::Dropped("impossible_summary")]), "{effects:?}");
        machine.tick(Time::ZERO + Duration::from_secs(1), &mut Vec::new());
        assert_eq!((machine.summary().members, machine.summary().worst()), (2, Condition::Failed));
    }

    #[test]
    fn a_bad_sample_is_set_aside_and_costs_nothing_else() {
        let mut machine = root();
        let sample = |sequence, value| {
            Arc::new(Sample { sequence, priority: Priority::Normal, metrics: vec![("t".into(), value)] })
        };
        let samples = vec![sample(1, 1.0), sample(2, f64::NAN), sample(3, 3.0)];
        let offer = Offer { origin: id(2), journal: 9, account: ACCOUNT, void: RangeSet::new(), samples };
        assert!(offer.is_possible());
        let packet = DataPacket {
            id: uuid::Uuid::nil(),
            source: id(2),
            target: Target::Node(id(1)),
            direction: Direction::Upward,
            kind: PacketType::Telemetry,
            epoch: 1,
            sequence: 1,
            hops: 0,
            payload: Payload::Samples(offer),
        };
        let (child, parent) = (Tenure::default(), Tenure::default());
        let effects = give(&mut machine, RouterFrame::Up { child, parent, number: 1, packet });
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Dropped("bad_sample"))));
        let committed = effects.iter().find_map(|effect| match effect {
            Effect::Persist { records, .. } => records.iter().find_map(|record| match record {
                Record::Commit(unit) => Some(unit.clone()),
                _ => None,
            }),
            _ => None,
        });
        assert_eq!(committed.unwrap().totals.samples, 2);
        // The prefix closes over what was set aside, so its origin is not left waiting.
        let source = Source { origin: id(2), journal: 9 };
        assert_eq!(machine.durable().account.as_ref().unwrap().mark(&source).unwrap().prefix, 3);
    }
}
