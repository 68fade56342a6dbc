//! The beacon machine: speaks on its schedule, listens, and tells what it observes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand_pcg::Pcg32;

use crate::id::{FormationId, NodeId};
use crate::limits::Limits;
use crate::proto::beacon::trickle::Trickle;
use crate::proto::beacon::{Beacon, Description, Neighbours, Observation, SelfPatch};
use crate::proto::topology::View;
use crate::time::Time;

/// How far a node moves before it says so: a share of the maximum distance of a link.
const MOVED: f64 = 0.05;
/// How often a moving node says so at most.
const MOVE_GAP: Duration = Duration::from_secs(1);

/// How a node beacons.
#[derive(Clone, Debug)]
pub struct Settings {
    pub formation: FormationId,
    pub ttl: Duration,
    pub interval_min: Duration,
    pub interval_max: Duration,
    pub geohash_precision: usize,
    pub max_distance_m: f64,
    pub incarnation: u64,
    pub seed: u64,
}

#[derive(Clone, Debug)]
pub enum Input {
    /// A beacon whose signature was checked.
    Heard(Arc<Beacon>),
    /// The host describes the node.
    Describe(SelfPatch),
    /// The node's place in the tree.
    Placed(Arc<View>),
    /// A link came up: its far end is told who we are, whatever the radio does.
    LinkUp(NodeId),
    /// Somebody who restarted wants to hear of all neighbours again.
    Replay,
    /// The janitor's round.
    Sweep,
    /// The node is about to stop.
    Leave,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Say it to all who can hear.
    Broadcast(Arc<Beacon>),
    /// Say it on one link.
    SendTo(NodeId, Arc<Beacon>),
    Observed(Observation),
    /// All neighbours that are fresh, for who has restarted: one message, however many they are.
    Replayed(Vec<Arc<Beacon>>),
    /// Where a neighbour can be dialled.
    Located(NodeId, Vec<SocketAddr>),
    /// What the host says of this node, for who decides by it.
    Described(Arc<Description>),
    /// A beacon was dropped; the label says why.
    Dropped(&'static str),
    /// How many neighbours a sweep removed.
    Swept(usize),
}

/// Exactly one beacon loop and one table of neighbours.
#[derive(Clone, Debug)]
pub struct Machine {
    me: NodeId,
    settings: Settings,
    description: Arc<Description>,
    view: Arc<View>,
    neighbours: Neighbours,
    sequence: u64,
    trickle: Trickle,
    /// Where the node was when it last said so, and when.
    said: (Option<crate::proto::geo::GeoPoint>, Time),
    rng: Pcg32,
}

impl Machine {
    pub fn new(now: Time, settings: Settings, description: Description, view: Arc<View>) -> Self {
        let mut rng = Pcg32::seed_from_u64(settings.seed);
        let trickle = Trickle::new(settings.interval_min, settings.interval_max, now, &mut rng);
        let said = (description.position, now);
        Self {
            me: view.me,
            description: Arc::new(description),
            view,
            neighbours: Neighbours::default(),
            // A machine that starts cold within one process must not repeat a number; its start time is later than any.
            sequence: now.as_micros(),
            trickle,
            said,
            rng,
            settings,
        }
    }

    /// Goes on from a snapshot: its neighbours get one time to live.
    pub fn recover(now: Time, snapshot: &Self) -> Self {
        let mut machine = snapshot.clone();
        machine.sequence = machine.sequence.max(now.as_micros());
        machine.neighbours.forgive(now);
        machine.trickle.hasten(now, &mut machine.rng);
        machine
    }

    pub fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    pub fn description(&self) -> &Arc<Description> {
        &self.description
    }

    pub fn step(&mut self, now: Time, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Heard(beacon) => self.heard(now, beacon, effects),
            Input::Describe(patch) => self.describe(now, patch, effects),
            Input::Placed(view) => self.placed(now, view),
            Input::LinkUp(peer) => {
                let beacon = self.next_beacon(self.ttl_s());
                effects.push(Effect::SendTo(peer, beacon));
            }
            Input::Replay => self.replay(now, effects),
            Input::Sweep => {
                let gone = self.neighbours.sweep(now);
                effects.push(Effect::Swept(gone.len()));
                effects.extend(gone.into_iter().map(|id| Effect::Observed(Observation::Expired(id))));
            }
            Input::Leave => {
                let goodbye = self.next_beacon(0);
                effects.push(Effect::Broadcast(goodbye));
            }
        }
    }

    pub fn tick(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if now >= self.trickle.due() {
            let beacon = self.next_beacon(self.ttl_s());
            self.said = (self.description.position, now);
            effects.push(Effect::Broadcast(beacon));
            self.trickle.sent(now, &mut self.rng);
        }
    }

    pub fn deadline(&self) -> Option<Time> {
        Some(self.trickle.due())
    }

    fn heard(&mut self, now: Time, beacon: Arc<Beacon>, effects: &mut Vec<Effect>) {
        if beacon.id == self.me {
            return effects.push(Effect::Dropped("own_beacon"));
        }
        if beacon.formation != self.settings.formation {
            return effects.push(Effect::Dropped("foreign_formation"));
        }
        let known = self.neighbours.get(&beacon.id).map(|n| n.beacon.clone());
        let Some(observation) = self.neighbours.observe(now, beacon.clone()) else {
            return effects.push(Effect::Dropped("stale_beacon"));
        };
        let located = known.is_none_or(|known| known.addresses != beacon.addresses);
        if located && !beacon.addresses.is_empty() {
            effects.push(Effect::Located(beacon.id, beacon.addresses.clone()));
        }
        // Somebody new should not wait a whole interval to learn of us.
        if matches!(observation, Observation::Seen(_)) {
            self.trickle.hasten(now, &mut self.rng);
        }
        effects.push(Effect::Observed(observation));
    }

    fn describe(&mut self, now: Time, patch: SelfPatch, effects: &mut Vec<Effect>) {
        let before = self.description.clone();
        Arc::make_mut(&mut self.description).apply(patch);
        if before == self.description {
            return;
        }
        let (old, new) = (&before, &self.description);
        if old.capabilities != new.capabilities
            || old.can_parent != new.can_parent
            || old.operational != new.operational
            || old.addresses != new.addresses
            || (self.has_moved() && now.since(self.said.1) >= MOVE_GAP)
        {
            self.trickle.reset(now, &mut self.rng);
        }
        effects.push(Effect::Described(self.description.clone()));
    }

    fn has_moved(&self) -> bool {
        match (self.said.0, self.description.position) {
            (Some(old), Some(new)) => {
                let precision = self.settings.geohash_precision;
                old.geohash(precision) != new.geohash(precision)
                    || old.distance_m(&new) > MOVED * self.settings.max_distance_m
            }
            (old, new) => old.is_some() != new.is_some(),
        }
    }

    fn placed(&mut self, now: Time, view: Arc<View>) {
        let old = std::mem::replace(&mut self.view, view);
        let new = &self.view;
        if old.role != new.role || old.parent_id() != new.parent_id() || old.effective_level != new.effective_level {
            self.trickle.reset(now, &mut self.rng);
        } else if old.root() != new.root() || old.rank() != new.rank() || (old.free_slots == 0) != (new.free_slots == 0)
        {
            self.trickle.hasten(now, &mut self.rng);
        }
    }

    fn replay(&self, now: Time, effects: &mut Vec<Effect>) {
        effects.push(Effect::Described(self.description.clone()));
        let fresh = self.neighbours.iter().filter(|(_, n)| n.is_fresh(now));
        effects.push(Effect::Replayed(fresh.map(|(_, neighbour)| neighbour.beacon.clone()).collect()));
    }

    fn ttl_s(&self) -> u16 {
        u16::try_from(self.settings.ttl.as_secs()).unwrap_or(3600)
    }

    fn next_beacon(&mut self, ttl_s: u16) -> Arc<Beacon> {
        self.sequence += 1;
        let (view, own) = (&self.view, &self.description);
        Arc::new(Beacon {
            formation: self.settings.formation,
            id: self.me,
            position: own.position.map(Into::into),
            level: view.level,
            effective_level: view.effective_level,
            role: view.role,
            rank: view.rank(),
            parent: view.parent_id().map(|id| id.prefix()),
            root: view.root().prefix(),
            free_slots: view.free_slots,
            slots: view.slots,
            can_parent: own.can_parent,
            parent_priority: own.parent_priority,
            operational: own.operational,
            mobility: own.mobility,
            resources: own.resources,
            capabilities: own.capabilities.iter().take(Limits::CAPABILITIES).cloned().collect(),
            ttl_s,
            incarnation: self.settings.incarnation,
            sequence: self.sequence,
            addresses: own.addresses.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Keypair, NodeName};
    use crate::level::Level;
    use crate::proto::beacon::tests::sample;
    use crate::proto::topology::Tenure;

    fn key() -> Keypair {
        Keypair::from_seed([7; 32])
    }

    fn machine() -> Machine {
        let settings = Settings {
            formation: FormationId(*b"training"),
            ttl: Duration::from_secs(30),
            interval_min: Duration::from_secs(1),
            interval_max: Duration::from_secs(10),
            geohash_precision: 7,
            max_distance_m: 10_000.0,
            incarnation: 1,
            seed: 1,
        };
        let name = NodeName::new("n").unwrap();
        let view = Arc::new(View::alone(key().id(), name, Level::SQUAD, Tenure::default(), 16));
        Machine::new(Time::ZERO, settings, Description::default(), view)
    }

    fn step(machine: &mut Machine, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        machine.step(Time::ZERO, input, &mut effects);
        effects
    }

    #[test]
    fn a_node_that_hears_its_own_beacon_ignores_it() {
        let mut machine = machine();
        let own = Arc::new(sample(&key()));
        assert_eq!(step(&mut machine, Input::Heard(own)), [Effect::Dropped("own_beacon")]);
        assert!(machine.neighbours().is_empty());
    }

    #[test]
    fn another_formation_is_not_heard() {
        let mut machine = machine();
        let stranger = sample(&Keypair::from_seed([8; 32]));
        let stranger = Arc::new(Beacon { formation: FormationId(*b"enemies!"), ..stranger });
        assert_eq!(step(&mut machine, Input::Heard(stranger)), [Effect::Dropped("foreign_formation")]);
    }

    #[test]
    fn there_is_one_beacon_loop_however_often_the_machine_restarts() {
        let mut machine = machine();
        let (mut sent, mut sequences) = (0, std::collections::BTreeSet::new());
        for second in 1..=100u64 {
            let now = Time::ZERO + Duration::from_secs(second);
            machine = Machine::recover(now, &machine);
            let mut effects = Vec::new();
            while machine.deadline().is_some_and(|at| at <= now) {
                machine.tick(now, &mut effects);
            }
            for effect in effects {
                let Effect::Broadcast(beacon) = effect else { continue };
                sent += 1;
                assert!(sequences.insert(beacon.sequence), "a number is used once");
            }
        }
        // Each restart hastens the next beacon to within the shortest interval, and no further.
        assert!((50..=110).contains(&sent), "{sent}");
    }

    #[test]
    fn a_changed_capability_is_out_at_once_and_a_goodbye_too() {
        let mut machine = machine();
        let capability = crate::proto::beacon::Capability { kind: "camera".into(), confidence_percent: 90 };
        step(&mut machine, Input::Describe(SelfPatch::Capabilities(vec![capability])));
        assert!(machine.deadline().unwrap() <= Time::ZERO + Duration::from_millis(50));
        let said = step(&mut machine, Input::Leave);
        assert!(matches!(&said[..], [Effect::Broadcast(goodbye)] if goodbye.ttl_s == 0));
    }
}
