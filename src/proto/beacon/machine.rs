//! The beacon machine: speaks on its schedule, listens, and tells what it observes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;

use crate::id::{FormationId, NodeId};
use crate::level::Level;
use crate::limits::Limits;
use crate::proto::beacon::scope::{self, Fineness, Hearing, Scope};
use crate::proto::beacon::trickle::Trickle;
use crate::proto::beacon::{Beacon, Description, Mobility, Neighbours, Observation, Seal, SelfPatch};
use crate::proto::geo::GeoPoint;
use crate::proto::topology::View;
use crate::time::{Time, earliest};

/// How far a node moves before it says so: a share of the maximum distance of a link.
const MOVED: f64 = 0.05;
/// How often a moving node says so at most.
const MOVE_GAP: Duration = Duration::from_secs(1);

/// How often a node that nothing changes at speaks less, and how much longer its word holds.
const STABLE: u32 = 3;
/// How long nothing must have changed for that, in times to live.
const SETTLED: u32 = 2;
/// How long a node without a parent looks around before it calls out to the whole formation.
const LONELY: Duration = Duration::from_secs(2);
/// How often the size of the cell to speak in is thought over.
const ADAPT: Duration = Duration::from_secs(5);
/// Beacons that are spoken in the former cell as well, so that its listeners follow.
const FOLLOW_ME: u8 = 3;
/// How long news of where others speak is gathered.
const RETUNE: Duration = Duration::from_millis(100);
/// Who calls out is answered within this, unless so many others were heard to answer.
const ANSWER: Duration = Duration::from_secs(1);
const ANSWERS: u32 = 3;

/// How a node beacons.
#[derive(Clone, Debug)]
pub struct Settings {
    pub formation: FormationId,
    pub ttl: Duration,
    pub interval_min: Duration,
    pub interval_max: Duration,
    pub geohash_precision: usize,
    pub top_level: Level,
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
    /// Say it to who listens to these.
    Broadcast(Arc<Beacon>, Vec<Scope>),
    /// What to listen to from now on.
    Listen(BTreeSet<Scope>),
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
    said: (Option<GeoPoint>, Time),
    /// When something that others must know changed last.
    changed: Time,
    /// Since when there is no parent.
    alone_since: Option<Time>,
    fineness: Fineness,
    adapt_at: Time,
    /// Where the node spoke before, and for how many more beacons it does so still: its listeners must hear of the
    /// change.
    former: Option<(Vec<Scope>, u8)>,
    /// What the node listens to: where it hears others, and where it speaks itself.
    tuned: Option<(Hearing, Vec<Scope>)>,
    retune_at: Option<Time>,
    /// When somebody who called out is answered, and how many others have meanwhile.
    answer: Option<(Time, u32)>,
    rng: Pcg32,
}

impl Machine {
    pub fn new(now: Time, settings: Settings, description: Description, view: Arc<View>) -> Self {
        let mut rng = Pcg32::seed_from_u64(settings.seed);
        let trickle = Trickle::new(settings.interval_min, now, &mut rng);
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
            changed: now,
            alone_since: Some(now),
            fineness: Fineness::default(),
            adapt_at: now + ADAPT,
            former: None,
            tuned: None,
            retune_at: Some(now),
            answer: None,
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
        // Whoever listens for us may not have been told.
        machine.tuned = None;
        machine.retune_at = Some(now);
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
            Input::Placed(view) => self.placed(now, view, effects),
            Input::LinkUp(peer) => {
                let beacon = self.next_beacon(self.ttl_s(now));
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
                let scopes = self.scopes(now);
                effects.push(Effect::Broadcast(goodbye, scopes));
            }
        }
    }

    pub fn tick(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if now >= self.adapt_at {
            self.adapt(now);
        }
        if self.retune_at.is_some_and(|at| now >= at) {
            self.retune(now, effects);
        }
        if let Some((_, answers)) = self.answer.take_if(|(at, _)| now >= *at)
            && answers < ANSWERS
        {
            let beacon = self.next_beacon(self.ttl_s(now));
            effects.push(Effect::Broadcast(beacon, vec![Scope::Formation]));
        }
        if now >= self.trickle.due() {
            self.speak(now, effects);
        }
    }

    pub fn deadline(&self) -> Option<Time> {
        let answer = self.answer.map(|(at, _)| at);
        let sooner = earliest(self.retune_at, answer);
        earliest(sooner, Some(self.trickle.due().min(self.adapt_at)))
    }

    /// Says what there is to say to those whom it concerns. A leaf is known to its parent, which tells its siblings.
    fn speak(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let beacon = self.next_beacon(self.ttl_s(now));
        self.said = (self.description.position, now);
        let scopes = self.scopes(now);
        if !scopes.is_empty() {
            effects.push(Effect::Broadcast(beacon.clone(), scopes));
        }
        if let Some(parent) = self.view.parent_id() {
            effects.push(Effect::SendTo(parent, beacon));
        }
        self.former = self.former.take().filter(|(_, left)| *left > 1).map(|(scopes, left)| (scopes, left - 1));
        let max = if self.is_stable(now) { self.settings.interval_max * STABLE } else { self.settings.interval_max };
        self.trickle.sent(now, max, &mut self.rng);
    }

    /// Whether this node speaks to others than its parent.
    fn is_leaf(&self) -> bool {
        let view = &self.view;
        view.parent.is_some() && view.effective_level == Level::PLATFORM && view.children.is_empty()
    }

    fn spoken(&self) -> Scope {
        scope::spoken(self.view.effective_level, self.description.position, self.fineness)
    }

    fn scopes(&self, now: Time) -> Vec<Scope> {
        let mut scopes = self.former.as_ref().map_or(Vec::new(), |(scopes, _)| scopes.clone());
        if !self.is_leaf() {
            scopes.push(self.spoken());
        }
        if self.alone_since.is_some_and(|since| now.since(since) >= LONELY) {
            scopes.push(Scope::Formation);
        }
        scopes.sort_unstable();
        scopes.dedup();
        scopes
    }

    /// Others turn to a root, or wait for it: its word must not outlive it for long.
    fn is_stable(&self, now: Time) -> bool {
        self.view.parent.is_some()
            && self.description.mobility != Mobility::Mobile
            && now.since(self.changed) >= self.settings.ttl * SETTLED
    }

    /// Something that others must know is different.
    fn changed(&mut self, now: Time) {
        self.changed = now;
        self.trickle.reset(now, &mut self.rng);
    }

    fn adapt(&mut self, now: Time) {
        self.adapt_at = now + ADAPT;
        let before = self.spoken();
        let (level, here) = (self.view.effective_level, self.description.position);
        if !self.is_leaf() && self.fineness.adapt(now, level, here, &self.neighbours) {
            self.former = Some((vec![before], FOLLOW_ME));
            self.retune_at = Some(now);
            self.trickle.reset(now, &mut self.rng);
        }
    }

    /// Listens to where those speak whom this node may need.
    fn retune(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.retune_at = None;
        let (view, own) = (&self.view, self.view.effective_level.0);
        let takes_children = self.description.can_parent && view.free_slots > 0;
        let lowest = match () {
            () if self.is_leaf() => own + 1,
            () if takes_children => own.saturating_sub(1),
            () => own,
        };
        // Who acts above its level looks for those that could take over; who has a parent needs none above it.
        let lowest = lowest.min(view.level.0 + 1);
        let parent = view.path.waypoints.first().map(|parent| parent.effective_level.0);
        let levels = lowest..=parent.unwrap_or(self.settings.top_level.0 + Level::ABOVE_TOP);
        let tuned = (Hearing::new(now, levels, self.description.position, &self.neighbours), self.scopes(now));
        if self.tuned.as_ref() != Some(&tuned) {
            let scopes = tuned.0.scopes().into_iter().chain(tuned.1.iter().cloned());
            effects.push(Effect::Listen(scopes.collect()));
            self.tuned = Some(tuned);
        }
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
        let (seen, changed) = match &observation {
            Observation::Seen(_) => (true, true),
            Observation::Renewed { changed, .. } => (false, *changed),
            Observation::Expired(_) => (false, false),
        };
        // Somebody new should not wait a whole interval to learn of us.
        if seen && !self.is_leaf() {
            self.trickle.hasten(now, &mut self.rng);
        }
        if changed {
            self.retune_at.get_or_insert(now + RETUNE);
            self.answer_if_needed(now, &beacon);
        }
        // A stable child's word holds for three of its intervals: every second one is enough.
        if changed || beacon.sequence.is_multiple_of(2) {
            self.introduce(&beacon, effects);
        }
        effects.push(Effect::Observed(observation));
    }

    /// Somebody below has no parent, and may not hear where this node speaks.
    fn answer_if_needed(&mut self, now: Time, beacon: &Beacon) {
        let own = self.view.effective_level;
        if beacon.effective_level == own && beacon.free_slots > 0 {
            self.answer = self.answer.map(|(at, answers)| (at, answers + 1));
        }
        let willing = self.description.can_parent && self.description.operational && self.view.free_slots > 0;
        if !willing || beacon.parent.is_some() || beacon.effective_level >= own || self.answer.is_some() {
            return;
        }
        let hears = match (self.description.position, beacon.point()) {
            (Some(here), Some(there)) if here.distance_m(&there) > self.settings.max_distance_m => return,
            (Some(here), Some(there)) => {
                let bits = self.fineness.bits(own);
                self.fineness.is_base() && there.cells_near(bits).contains(&here.cell(bits))
            }
            (None, _) => true,
            (Some(_), None) => false,
        };
        if !hears {
            self.answer = Some((now + ANSWER.mul_f64(self.rng.random_range(0.0..1.0)), 0));
        }
    }

    /// A parent passes on what its silent children say to their siblings.
    fn introduce(&self, beacon: &Arc<Beacon>, effects: &mut Vec<Effect>) {
        if beacon.cell_bits == 0 && self.view.children.contains_key(&beacon.id) {
            let siblings = self.view.children.keys().filter(|sibling| **sibling != beacon.id);
            effects.extend(siblings.map(|&sibling| Effect::SendTo(sibling, beacon.clone())));
        }
    }

    fn describe(&mut self, now: Time, patch: SelfPatch, effects: &mut Vec<Effect>) {
        let before = self.description.clone();
        Arc::make_mut(&mut self.description).apply(patch);
        if before == self.description {
            return;
        }
        let (old, new) = (&before, self.description.clone());
        if old.capabilities != new.capabilities
            || old.can_parent != new.can_parent
            || old.operational != new.operational
            || old.addresses != new.addresses
            || (self.has_moved() && now.since(self.said.1) >= MOVE_GAP)
        {
            self.changed(now);
        }
        if old.position != new.position {
            self.retune_at.get_or_insert(now + RETUNE);
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

    fn placed(&mut self, now: Time, view: Arc<View>, effects: &mut Vec<Effect>) {
        let spoken = self.scopes(now);
        let was_leaf = self.is_leaf();
        let old = std::mem::replace(&mut self.view, view);
        let new = self.view.clone();
        let alone_since = self.alone_since.unwrap_or(now);
        self.alone_since = new.parent.is_none().then_some(alone_since);
        for newcomer in new.children.keys().filter(|child| !old.children.contains_key(child)) {
            let siblings = new.children.keys().filter(|sibling| *sibling != newcomer);
            let silent = siblings.filter_map(|sibling| self.neighbours.get(sibling)).filter(|n| n.is_fresh(now));
            let silent = silent.filter(|n| n.beacon.cell_bits == 0);
            effects.extend(silent.map(|n| Effect::SendTo(*newcomer, n.beacon.clone())));
        }
        if old.effective_level != new.effective_level {
            self.fineness = Fineness::default();
        }
        if old.effective_level != new.effective_level || (self.is_leaf() && !was_leaf) {
            self.former = Some((spoken, FOLLOW_ME));
        }
        self.retune_at.get_or_insert(now + RETUNE);
        if old.role != new.role || old.parent_id() != new.parent_id() || old.effective_level != new.effective_level {
            self.changed(now);
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

    /// A stable node says that its word holds for longer.
    fn ttl_s(&self, now: Time) -> u16 {
        let ttl = if self.is_stable(now) { self.settings.ttl * STABLE } else { self.settings.ttl };
        u16::try_from(ttl.as_secs()).unwrap_or(3600).min(3600)
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
            cell_bits: match self.description.position {
                Some(_) if !self.is_leaf() => self.fineness.bits(view.effective_level),
                _ => 0,
            },
            addresses: own.addresses.clone(),
            seal: Seal::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Keypair, NodeName};
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
            top_level: Level::COMPANY,
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
                let Effect::Broadcast(beacon, _) = effect else { continue };
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
        assert!(matches!(&said[..], [Effect::Broadcast(goodbye, _)] if goodbye.ttl_s == 0));
    }
}
