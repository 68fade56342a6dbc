//! The topology machine: takes observations and frames, decides, and publishes its view.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand_pcg::Pcg32;
use uuid::Uuid;

use crate::id::{NodeId, NodeName};
use crate::level::Level;
use crate::proto::account::AccountId;
use crate::proto::beacon::{Beacon, Description, Neighbours, Observation};
use crate::proto::budget::Backoff;
use crate::proto::election::Role;
use crate::proto::event::Event;
use crate::proto::link::CloseReason;
use crate::proto::selection::Weights;
use crate::proto::strategy::HierarchyStrategy;
use crate::proto::topology::command::Command;
use crate::proto::topology::downlink::Downlink;
use crate::proto::topology::hierarchy::Hierarchy;
use crate::proto::topology::laterals::Laterals;
use crate::proto::topology::uplink::Uplink;
use crate::proto::topology::{Fence, Frame, Standing, Tenure, View, Why};
use crate::time::{Time, earliest};

/// How long after news the machine thinks again, so that a burst is one thought.
const COALESCE: Duration = Duration::from_millis(50);
/// How often it thinks again anyway.
const ROUTINE: Duration = Duration::from_secs(1);

/// What the topology machine is configured with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub me: NodeId,
    pub name: NodeName,
    pub level: Level,
    /// The highest configured level; who acts may be [`Level::ABOVE_TOP`] above it.
    pub top_level: Level,
    pub incarnation: u64,
    pub strategy: Arc<dyn HierarchyStrategy>,
    /// How long a group without a parent waits for one before its leader rises.
    pub promote_after: Duration,
    pub max_children: u16,
    pub max_laterals: usize,
    pub max_distance_m: f64,
    pub weights: Weights,
    pub hysteresis: f64,
    /// How long a parent is kept at least before a better one replaces it.
    pub dwell: Duration,
    pub preferred_parent: Option<NodeId>,
    pub backoff: Backoff,
    /// How often a lost parent is dialled again beside whoever is to take its place.
    pub retries: u32,
    /// The account in which this node commits samples as a root.
    pub account: Option<AccountId>,
    /// The term of command that was last known, from before this process.
    pub fence: Option<Fence>,
    /// The highest level of a root that was known then.
    pub known_root: Option<Level>,
    /// How long the tree above is gone before the part that is left acts on its own, and how long one root must stand
    /// before the partition counts as healed.
    pub partition_timeout: Duration,
    pub partition_confirm: Duration,
    /// Switches repair off, so that tests can see that they would notice.
    pub repair: bool,
    pub seed: u64,
}

impl Settings {
    /// For a machine that starts from nothing while its node goes on: neither a term of command is forgotten, nor that there
    /// was a root, whatever else is.
    pub fn knowing(&self, view: &View) -> Self {
        let (fence, known_root) = (view.fence.max(self.fence), view.known_root.max(self.known_root));
        Self { fence, known_root, ..self.clone() }
    }
}

#[derive(Clone, Debug)]
pub enum Input {
    Observed(Observation),
    /// All neighbours that are fresh, after a restart.
    Heard(Vec<Arc<Beacon>>),
    Described(Arc<Description>),
    /// A link is up; the name is from its hello.
    LinkUp(NodeId, NodeName),
    LinkDown(NodeId, String),
    /// What share of a peer's heartbeats arrives, 0..1.
    Quality(NodeId, f64),
    /// All links that are up, after a restart here or there: who is missing is down.
    Links(BTreeMap<NodeId, NodeName>),
    /// A wanted peer could not be dialled.
    Unreachable(NodeId, String),
    Frame(NodeId, Frame),
    /// A child's frames come under another tenure.
    Stale(NodeId),
    /// This node's own account is this one from now on.
    Account(AccountId),
    /// The host wants the parent chosen anew.
    Reevaluate,
    /// Somebody asks by this command for the reasons.
    Explain(Uuid),
    /// Somebody who restarted wants the view again.
    Replay,
    /// The node is about to stop.
    Leave,
}

#[derive(Clone, Debug)]
pub enum Effect {
    Send(NodeId, Frame),
    View(Arc<View>),
    /// The reasons that this command asked for.
    Explained(Uuid, Box<Why>),
    Event(Event),
    /// An input was dropped; the label says why.
    Dropped(&'static str),
}

#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) settings: Settings,
    pub(super) description: Arc<Description>,
    /// Neighbours of this node's base level and above.
    pub(super) neighbours: Neighbours,
    pub(super) links: BTreeMap<NodeId, NodeName>,
    /// How well peers are heard over their links, where that is measured.
    pub(super) qualities: BTreeMap<NodeId, f64>,
    /// Neighbours whose link died, with the beacon that they had sent by then: they may be dead, until they say more.
    doubted: BTreeMap<NodeId, (u64, u64)>,
    pub(super) tenure: Tenure,
    pub(super) uplink: Uplink,
    pub(super) downlink: Downlink,
    pub(super) laterals: Laterals,
    pub(super) hierarchy: Hierarchy,
    pub(super) command: Command,
    pub(super) role: Role,
    pub(super) leader: NodeId,
    pub(super) leaving: bool,
    view: Arc<View>,
    dirty: bool,
    think_at: Time,
    pub(super) rng: Pcg32,
}

impl Machine {
    pub fn new(now: Time, settings: Settings, description: Arc<Description>) -> Self {
        // A machine that starts cold within one process begins a later tenure than any before.
        let tenure = Tenure { incarnation: settings.incarnation, counter: now.as_micros() };
        let name = settings.name.clone();
        let mut view = View::alone(settings.me, name, settings.level, tenure, settings.max_children);
        view.account = settings.account;
        Self {
            description,
            neighbours: Neighbours::default(),
            links: BTreeMap::new(),
            qualities: BTreeMap::new(),
            doubted: BTreeMap::new(),
            tenure,
            // Attempts of a machine that starts cold within one process must be later than those before.
            uplink: Uplink::new(now, now.as_micros()),
            downlink: Downlink::default(),
            laterals: Laterals::default(),
            hierarchy: Hierarchy::default(),
            // The mesh may have had more levels once.
            command: Command::new(settings.fence, settings.known_root.map(|root| root.min(settings.top_level))),
            role: Role::Standalone,
            leader: settings.me,
            leaving: false,
            view: Arc::new(view),
            dirty: true,
            think_at: now,
            rng: Pcg32::seed_from_u64(settings.seed),
            settings,
        }
    }

    /// Goes on from a snapshot: same parent, same children, same tenure; nobody is re-elected.
    pub fn recover(now: Time, snapshot: &Self) -> Self {
        let mut machine = snapshot.clone();
        machine.neighbours.forgive(now);
        machine.dirty = true;
        machine.think_at = now;
        machine
    }

    /// How many claims there are of nodes below that another child claims with better reason.
    pub fn other_claims(&self) -> usize {
        self.downlink.subtree.other_claims()
    }

    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    pub fn step(&mut self, now: Time, input: Input, effects: &mut Vec<Effect>) {
        let first = effects.len();
        match input {
            Input::Observed(observation) => self.observed(now, observation),
            Input::Heard(beacons) => {
                beacons.into_iter().for_each(|beacon| self.observed(now, Observation::Seen(beacon)));
            }
            Input::Described(description) => {
                let news = description.capabilities != self.description.capabilities;
                self.dirty |= news || description.position != self.description.position;
                self.description = description;
                if news {
                    // Those above route by it.
                    self.confirm_parent(effects);
                }
                self.think_within(now, COALESCE);
            }
            Input::LinkUp(peer, name) => self.link_up(now, peer, name, effects),
            Input::LinkDown(peer, reason) => self.link_down(now, peer, &reason, effects),
            Input::Links(up) => {
                let gone: Vec<_> = self.links.keys().filter(|peer| !up.contains_key(peer)).copied().collect();
                for peer in gone {
                    self.link_down(now, peer, "not among the links", effects);
                }
                for (peer, name) in up {
                    if !self.links.contains_key(&peer) {
                        // From before we forgot it may take us for its child, or for its parent: then its answer shows it.
                        self.deny_parent(peer, effects);
                        effects.push(Effect::Send(peer, Frame::Resync));
                        self.link_up(now, peer, name, effects);
                    }
                }
                self.make_up_for_a_restart(effects);
            }
            Input::Quality(peer, share) if self.links.contains_key(&peer) => drop(self.qualities.insert(peer, share)),
            Input::Quality(..) => {}
            Input::Unreachable(peer, reason) => self.unreachable(now, peer, &reason, effects),
            Input::Frame(peer, frame) => self.frame(now, peer, frame, effects),
            Input::Stale(child) => self.stale(now, child, effects),
            Input::Account(account) => {
                self.settings.account = Some(account);
                self.dirty = true;
                // Those above route by it.
                self.confirm_parent(effects);
            }
            Input::Reevaluate => self.think(now, effects),
            Input::Explain(command) => {
                let why = self.why(now).abridged();
                effects.push(Effect::Explained(command, Box::new(why)));
            }
            Input::Replay => {
                self.dirty = true;
            }
            Input::Leave => self.leave(effects),
        }
        self.publish(now, first, effects);
    }

    pub fn tick(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let first = effects.len();
        if now >= self.think_at {
            self.think(now, effects);
        }
        if self.uplink.deadline().is_some_and(|at| now >= at) {
            self.attempt_timed_out(now, effects);
        }
        self.report_subtree(now, effects);
        self.publish(now, first, effects);
    }

    pub fn deadline(&self) -> Option<Time> {
        earliest(earliest(Some(self.think_at), self.uplink.deadline()), self.downlink.report_at(&self.uplink))
    }

    /// Has parent and children say again what may have been lost with a mailbox: this machine's, or the links'.
    fn make_up_for_a_restart(&self, effects: &mut Vec<Effect>) {
        self.confirm_parent(effects);
        self.confirm_backup(effects);
        effects.extend(self.downlink.children.keys().map(|&child| Effect::Send(child, Frame::Resync)));
    }

    pub(super) fn think_within(&mut self, now: Time, wait: Duration) {
        self.think_at = self.think_at.min(now + wait);
    }

    pub(super) fn touch(&mut self) {
        self.dirty = true;
    }

    fn think(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.think_at = now + ROUTINE;
        if self.leaving {
            return;
        }
        self.choose_parent(now, effects);
        self.choose_backup(now, effects);
        self.choose_laterals(now, effects);
        self.consider_rising(now, effects);
        self.consider_stepping_down(now, effects);
        self.consider_a_term(now);
        self.watch_partition(now, effects);
        self.elect(now, effects);
        if self.standing(now) != self.view.standing {
            self.touch();
        }
    }

    fn observed(&mut self, now: Time, observation: Observation) {
        match observation {
            Observation::Seen(beacon) | Observation::Renewed { beacon, changed: true } => {
                if beacon.effective_level >= self.settings.level {
                    self.neighbours.observe(now, beacon);
                    self.think_within(now, COALESCE);
                }
            }
            Observation::Renewed { beacon, changed: false } => {
                if beacon.effective_level >= self.settings.level {
                    self.neighbours.observe(now, beacon);
                }
            }
            Observation::Expired(id) => {
                self.doubted.remove(&id);
                if self.neighbours.remove(&id) {
                    self.think_within(now, COALESCE);
                }
            }
        }
    }

    pub(super) fn is_doubted(&self, beacon: &Beacon) -> bool {
        self.doubted.get(&beacon.id).is_some_and(|version| beacon.version() <= *version)
    }

    fn link_up(&mut self, now: Time, peer: NodeId, name: NodeName, effects: &mut Vec<Effect>) {
        self.links.insert(peer, name);
        self.doubted.remove(&peer);
        self.uplink.forgive(&peer);
        self.hedge(now, effects);
        self.uplink.redial.take_if(|lost| lost.id == peer);
        self.ask_if_linked(now, effects);
        self.think_within(now, COALESCE);
    }

    fn link_down(&mut self, now: Time, peer: NodeId, reason: &str, effects: &mut Vec<Effect>) {
        self.links.remove(&peer);
        self.qualities.remove(&peer);
        // A link that nobody needed says nothing of the peer.
        let idle = reason.ends_with(CloseReason::Idle.label());
        if let Some(neighbour) = self.neighbours.get(&peer).filter(|_| !idle) {
            self.doubted.insert(peer, neighbour.beacon.version());
        }
        self.child_gone(now, peer, reason, effects);
        self.lateral_gone(peer, effects);
        self.parent_gone(now, peer, reason, effects);
    }

    fn frame(&mut self, now: Time, peer: NodeId, frame: Frame, effects: &mut Vec<Effect>) {
        if !self.links.contains_key(&peer) {
            return effects.push(Effect::Dropped("frame_without_link"));
        }
        match frame {
            Frame::Attach { tenure, serial, backup, applicant } => {
                self.attach_asked(now, peer, (tenure, serial), backup, applicant, effects);
            }
            Frame::Accept { serial, tenure, path, backup } => {
                self.accepted(now, peer, serial, tenure, path, backup, effects);
            }
            Frame::Refuse { serial, reason } => self.refused(now, peer, serial, reason, effects),
            Frame::Detach { serial, reason } => self.detached(now, peer, serial, reason, effects),
            Frame::Dismiss { reason, backup } => self.dismissed(now, peer, reason, backup, effects),
            Frame::Fence(fence) => self.fence_below(peer, fence, effects),
            Frame::HandOver { to } => self.handed_over(now, peer, to, effects),
            Frame::Path(path) => self.path_changed(now, peer, path, effects),
            Frame::Subtree { report, last, changes } => {
                self.subtree_reported(now, peer, (report, last), changes, effects);
            }
            Frame::Told if self.uplink.parent.as_ref().is_some_and(|parent| parent.id == peer) => {
                self.was_told(now, effects);
            }
            Frame::Told => {}
            // The answer to it has the whole subtree reported.
            Frame::Resync if self.uplink.parent.as_ref().is_some_and(|parent| parent.id == peer) => {
                self.confirm_parent(effects);
            }
            Frame::Resync if self.uplink.accepted_backup() == Some(peer) => self.confirm_backup(effects),
            Frame::Resync if self.uplink.asks(&peer) => {}
            // It takes us for its child, or did before it forgot.
            Frame::Resync => self.deny_parent(peer, effects),
            Frame::Lateral(lateral) => self.lateral_said(now, peer, lateral, effects),
        }
    }

    fn leave(&mut self, effects: &mut Vec<Effect>) {
        self.leaving = true;
        self.say_goodbye_below(effects);
        self.say_goodbye_above(effects);
    }

    pub(super) fn standing(&self, now: Time) -> Standing {
        let cut_off = self.command.known_root > Some(self.settings.level);
        match self.uplink.parent {
            Some(_) => Standing::Attached,
            None if self.command.is_autonomous() => Standing::Autonomous,
            None if cut_off || self.uplink.is_trying(now) => Standing::Detached,
            None => Standing::Root,
        }
    }

    /// Publishes the view if anything in it changed, and tells the children when the way up did.
    ///
    /// The view goes before what was said in this step, `first` on: who answers is expected already.
    fn publish(&mut self, now: Time, first: usize, effects: &mut Vec<Effect>) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        let view = Arc::new(self.current_view(now));
        let (before, after) = (self.view.path_for_children(), view.path_for_children());
        let new_tenure = self.view.tenure != view.tenure;
        self.view = view;
        if new_tenure {
            // The links downward are void until the children know of it.
            self.accept_again(&after, effects);
        } else if before != after {
            let children = self.view.children.keys().chain(&self.view.reserved);
            effects.extend(children.map(|&child| Effect::Send(child, Frame::Path(after.clone()))));
        }
        effects.insert(first, Effect::View(self.view.clone()));
    }

    fn current_view(&self, now: Time) -> View {
        let uplink = &self.uplink;
        let standing = self.standing(now);
        let (switching_to, behind) = self.switching().unzip();
        let account = match standing {
            _ if behind.is_some() => behind,
            // What was buffered flows when the partition counts as healed.
            _ if self.command.partition.is_some() && standing == Standing::Attached => None,
            Standing::Attached => uplink.path.account,
            // Who was cut off from a higher root does not commit in its place.
            Standing::Root | Standing::Detached | Standing::Autonomous => self.settings.account,
        };
        let wanted: BTreeSet<_> = (uplink.wanted().chain(self.laterals.wanted())).collect();
        // A part that met all whom its root remembers may be an island: others of it remember others.
        let is_island = uplink.path.waypoints.last().is_some_and(|root| root.level < self.settings.top_level);
        let seek = match standing {
            Standing::Attached => is_island.then_some(Duration::from_secs(30)),
            Standing::Detached | Standing::Autonomous => Some(Duration::from_secs(1)),
            Standing::Root => Some(Duration::from_secs(5)),
        };
        View {
            me: self.settings.me,
            name: self.settings.name.clone(),
            level: self.settings.level,
            effective_level: self.effective_level(),
            tenure: self.tenure,
            role: self.role,
            leader: self.leader,
            standing,
            parent: uplink.parent.clone(),
            switching_to,
            path: uplink.path.clone(),
            account,
            own_account: self.settings.account,
            position: self.description.position,
            capabilities: self.description.capabilities.clone().into(),
            fence: self.command.fence,
            known_root: self.command.known_root,
            partition: self.command.partition,
            backup: uplink.accepted_backup(),
            children: self.downlink.children.clone(),
            reserved: self.downlink.reserved.keys().copied().collect(),
            laterals: self.laterals.accepted().collect(),
            descendants: self.downlink.subtree.known().clone(),
            free_slots: self.free_slots(),
            slots: self.settings.max_children,
            wanted,
            seek: seek.filter(|_| !self.leaving && self.settings.repair),
            waiting_for: self.waiting_for(now),
        }
    }
}
