//! A simulated node, its disk and its clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand_pcg::Pcg32;

use crate::config::Config;
use crate::id::{NodeId, NodeName};
use crate::level::Level;
use crate::limits::Limits;
use crate::proto::account::AccountId;
use crate::proto::beacon::Scope;
use crate::proto::durable::Durable;
use crate::proto::geo::GeoPoint;
use crate::proto::node::Node;
use crate::proto::sample::Condition;
use crate::proto::topology::{Fence, Tenure, View};
use crate::sim::disk::Unsynced;
use crate::sim::generate::Blueprint;
use crate::sim::world::Happening;
use crate::time::Time;

/// A simulated node: its disk always, its machines while it is up.
pub struct SimNode {
    pub id: NodeId,
    pub name: NodeName,
    pub level: Level,
    pub config: Config,
    pub node: Option<Node>,
    /// What is on its disk, and what is on the way there.
    pub disk: Durable,
    pub(super) unsynced: Unsynced,
    pub keeps_disk: bool,
    /// What it says of itself in its telemetry.
    pub condition: Condition,
    pub incarnation: u64,
    pub started: Time,
    /// How fast its clock runs, and how far ahead of the others' jumps have brought it since the start.
    pub(super) rate: f64,
    pub(super) jumped: Duration,
    /// Where it belongs, and where faults have moved it, the latest last.
    pub(super) home: Option<GeoPoint>,
    pub(super) moved: Vec<(usize, GeoPoint)>,
    /// Faults that hold it down, or frozen.
    pub down: u32,
    pub paused: u32,
    /// When its process last ended, and from when to when it last stood still; for failovers.
    pub died_at: Option<Time>,
    pub stood_still: Option<(Time, Option<Time>)>,
    pub last_tenure: Tenure,
    /// Its effective level under that tenure.
    pub last_level: Level,
    /// The highest term it knew in this run, or that its disk kept of the one before.
    pub last_fence: Option<Fence>,
    pub deferred: Vec<Happening>,
    pub(super) shown: Option<Arc<View>>,
    pub(super) tick_at: Option<Time>,
    /// When its clock will show that owners of state drop what has expired.
    pub(super) sweep_at: Time,
    pub(super) indices: Rc<BTreeMap<NodeId, usize>>,
    pub(super) bootstrap: Vec<NodeId>,
    /// Whom the last run heard, the latest first, as its disk keeps them.
    pub(super) remembered: Vec<NodeId>,
    pub(super) overlay: usize,
    pub(super) listening: BTreeSet<Scope>,
    pub(super) requests: u64,
}

impl SimNode {
    pub fn is_up(&self) -> bool {
        self.node.is_some()
    }

    /// The view it last published, while it is up.
    pub fn view(&self) -> Option<&Arc<View>> {
        self.shown.as_ref()
    }

    /// Takes down whom a run has heard that is about to end.
    pub(super) fn remember(&mut self) {
        let Some(node) = self.node.as_ref().filter(|_| self.keeps_disk) else { return };
        let mut heard: Vec<_> = node.beacon.neighbours().iter().collect();
        heard.sort_by_key(|(id, neighbour)| (Reverse(neighbour.heard), **id));
        self.remembered = heard.into_iter().map(|(id, _)| *id).take(Limits::KEPT_BEACONS).collect();
    }

    pub fn index_of(&self, id: NodeId) -> Option<usize> {
        self.indices.get(&id).copied()
    }

    /// What its own clock shows.
    pub(super) fn local(&self, now: Time) -> Time {
        Time::ZERO + self.jumped + at_rate(now.since(self.started), self.rate)
    }

    /// When its clock will show so much.
    pub(super) fn instant(&self, local: Time) -> Time {
        // Not a moment too early: what is due must be due when the clock is read.
        let instant = self.started + at_rate(local.since(Time::ZERO + self.jumped), 1.0 / self.rate);
        if self.local(instant) < local { instant + Duration::from_micros(1) } else { instant }
    }
}

/// Exact for a clock that runs as it should.
fn at_rate(span: Duration, rate: f64) -> Duration {
    if rate == 1.0 { span } else { span.mul_f64(rate) }
}

pub(super) fn sim_node(
    plan: Blueprint,
    drift: f64,
    overlay: usize,
    bootstrap: Vec<NodeId>,
    indices: Rc<BTreeMap<NodeId, usize>>,
    rng: &mut Pcg32,
) -> SimNode {
    let account = plan.config.is_sink().then(|| AccountId(rng.random()));
    SimNode {
        id: plan.id,
        level: plan.config.level(),
        home: plan.config.node.position,
        moved: Vec::new(),
        rate: if drift > 0.0 { 1.0 + rng.random_range(-drift..drift) } else { 1.0 },
        jumped: Duration::ZERO,
        disk: Durable::new(rng.random(), account),
        name: plan.name,
        config: plan.config,
        node: None,
        unsynced: Unsynced::default(),
        keeps_disk: plan.disk,
        condition: plan.condition,
        incarnation: 0,
        started: Time::ZERO,
        down: 0,
        paused: 0,
        died_at: None,
        stood_still: None,
        last_tenure: Tenure::default(),
        last_level: Level::PLATFORM,
        last_fence: None,
        deferred: Vec::new(),
        shown: None,
        tick_at: None,
        sweep_at: Time::ZERO,
        indices,
        bootstrap,
        remembered: Vec::new(),
        overlay,
        listening: BTreeSet::new(),
        requests: 0,
    }
}
