//! Roles and levels: who leads the group, who acts as a parent above its level, and who steps down again.
//!
//! A group without any parent above has its leader rise by one level, and the others attach to it; leaders of
//! neighbouring groups form a group at that level and repeat, until each connected part has one root. Within a tenure
//! a level never falls: who steps down takes a new tenure first, which voids its links downward.

use std::time::Duration;

use crate::id::NodeId;
use crate::level::Level;
use crate::proto::beacon::{Beacon, Neighbour, Vitality};
use crate::proto::election::{self, Profile, Role};
use crate::proto::event::Event;
use crate::proto::strategy::Transition;
use crate::proto::topology::machine::{Effect, Machine};
use crate::proto::topology::{Frame, Parting};
use crate::time::Time;

/// How long a real parent must have room for everybody before an acting one begins to hand over to it.
const STEADY: Duration = Duration::from_secs(2);
/// How long children have to move before their acting parent steps down.
const HAND_OVER: Duration = Duration::from_secs(3);
/// How long a node acts higher than anybody needs: alone, and with children.
const UNUSED: Duration = Duration::from_secs(10);
const EXCESS: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Default)]
pub(super) struct Hierarchy {
    /// Levels above the base, one for each group led as acting parent.
    raised: u8,
    rise_since: Option<Time>,
    /// Since when a lower level would do, and which.
    lower_since: Option<(Time, Level)>,
    handing_over: Option<HandingOver>,
}

#[derive(Clone, Copy, Debug)]
struct HandingOver {
    to: Level,
    until: Time,
}

/// A lower level that would do.
#[derive(Clone, Copy, Debug)]
struct Lower {
    level: Level,
    /// How long it must stay so.
    after: Duration,
    /// Who could take the children over.
    successor: Option<NodeId>,
}

impl Machine {
    pub(super) fn effective_level(&self) -> Level {
        Level(self.settings.level.0 + self.hierarchy.raised)
    }

    fn profile(&self) -> Profile {
        let own = &self.description;
        Profile {
            id: self.settings.me,
            base: self.settings.level,
            able: own.can_parent && own.operational && !self.leaving,
            score: election::score(own.mobility.score(), own.resources.score(), own.resources.battery()),
            priority: own.parent_priority,
            leads: self.role == Role::Leader,
        }
    }

    /// My group as far as it is heard: the nodes of my effective level with the same parent, or without one like me.
    fn group(&self, now: Time) -> Vec<Profile> {
        let level = self.effective_level();
        let parent = self.uplink.parent.as_ref().map(|parent| parent.id.prefix());
        // Whoever has no parent is led only within reach.
        let is_near = |beacon: &Beacon| parent.is_some() || self.is_near(beacon);
        let is_peer = |b: &Beacon| b.effective_level == level && b.parent == parent && is_near(b);
        let alive = |n: &Neighbour| n.vitality(now) == Vitality::Alive && !self.is_doubted(&n.beacon);
        let peers = self.neighbours.iter().filter(|(_, n)| is_peer(&n.beacon) && alive(n));
        std::iter::once(self.profile()).chain(peers.map(|(_, n)| profile_of(&n.beacon))).collect()
    }

    /// Finds the leader of the group. Who is below an acting parent of its own level is led by that parent.
    pub(super) fn elect(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let acting_parent = self.uplink.path.waypoints.first().filter(|parent| parent.level <= self.effective_level());
        let (role, leader) = match acting_parent {
            Some(parent) => (Role::Member, parent.id),
            None => {
                let group = self.group(now);
                let leader = self.settings.strategy.leader(&group).unwrap_or(self.settings.me);
                match (group.len(), leader == self.settings.me) {
                    (1, _) if self.hierarchy.raised == 0 => (Role::Standalone, leader),
                    (_, true) => (Role::Leader, leader),
                    (_, false) => (Role::Member, leader),
                }
            }
        };
        if role != self.role {
            effects.push(Effect::Event(Event::RoleChanged { from: self.role, to: role }));
        }
        if (role, leader) != (self.role, self.leader) {
            (self.role, self.leader) = (role, leader);
            self.touch();
        }
    }

    /// Rises by one level if this node leads a group that has had nobody to turn to for long enough.
    pub(super) fn consider_rising(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some(transition) = self.possible_rise(now) else {
            self.hierarchy.rise_since = None;
            return;
        };
        let since = *self.hierarchy.rise_since.get_or_insert(now);
        // Those that act above the top are rather merged: see `for_an_equal`.
        let may_merge = self.effective_level() > self.settings.top_level && self.free_slots() > 1;
        let merging = if may_merge { EXCESS + HAND_OVER } else { Duration::ZERO };
        let wait = (self.settings.promote_after + merging).saturating_sub(now.since(since));
        if !wait.is_zero() {
            return self.think_within(now, wait);
        }
        self.hierarchy.rise_since = None;
        self.hierarchy.raised += 1;
        self.give_up_above(now, effects);
        effects.push(Effect::Event(Event::LevelChanged { from: transition.from, to: transition.to }));
        self.uplink.reason = "nobody above: acts one level higher for its group".into();
        self.touch();
    }

    fn possible_rise(&self, now: Time) -> Option<Transition> {
        let from = self.effective_level();
        let capped = from.0 >= self.settings.top_level.0 + Level::ABOVE_TOP;
        if self.uplink.parent.is_some() || capped || !self.profile().able || !self.settings.repair {
            return None;
        }
        if self.has_untried_candidate(now) {
            return None;
        }
        let group = self.group(now);
        // A single node rises too if those above are full: one level higher it finds room, or makes some.
        if group.len() == 1 && !self.is_full_above(now) {
            return None;
        }
        let leader = self.settings.strategy.leader(&group);
        let (base, to) = (self.settings.level, Level(from.0 + 1));
        let transition = Transition { base, from, to, peers: group.len() - 1 };
        (leader == Some(self.settings.me) && self.settings.strategy.may_rise(&transition)).then_some(transition)
    }

    /// Steps down once a lower level has been enough for long enough, and the children have had time to move.
    pub(super) fn consider_stepping_down(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if let Some(HandingOver { to, until }) = self.hierarchy.handing_over {
            let moved = self.downlink.children.values().all(|child| child.effective_level < to);
            return match moved || now >= until {
                true => self.step_down(now, to, effects),
                false => self.think_within(now, until.since(now)),
            };
        }
        let Some(lower) = self.lower_level(now) else {
            self.hierarchy.lower_since = None;
            return;
        };
        let since = match self.hierarchy.lower_since {
            Some((since, level)) if level == lower.level => since,
            _ => now,
        };
        self.hierarchy.lower_since = Some((since, lower.level));
        let wait = lower.after.saturating_sub(now.since(since));
        if !wait.is_zero() {
            return self.think_within(now, wait);
        }
        self.hierarchy.lower_since = None;
        self.hierarchy.handing_over = Some(HandingOver { to: lower.level, until: now + HAND_OVER });
        if let Some(to) = lower.successor {
            let movers = self.downlink.children.iter().filter(|(_, child)| child.effective_level >= lower.level);
            effects.extend(movers.map(|(&child, _)| Effect::Send(child, Frame::HandOver { to })));
        }
        self.consider_stepping_down(now, effects);
    }

    fn lower_level(&self, now: Time) -> Option<Lower> {
        let (base, from) = (self.settings.level, self.effective_level());
        if from == base {
            return None;
        }
        let lower = self.for_a_real_parent(now).or_else(|| self.for_an_equal(now)).or_else(|| {
            let children = self.downlink.children.values();
            let needed = children.map(|child| Level(child.effective_level.0 + 1)).max().unwrap_or(base).max(base);
            let after = if self.downlink.children.is_empty() { UNUSED } else { EXCESS };
            (needed < from).then_some(Lower { level: needed, after, successor: None })
        })?;
        let transition = Transition { base, from, to: lower.level, peers: self.downlink.children.len() };
        self.settings.strategy.may_step_down(&transition).then_some(lower)
    }

    /// How far to step down for the real parents in sight: all the way if they have room for everyone who must move,
    /// else just below the best of them, so that the two trees become one.
    fn for_a_real_parent(&self, now: Time) -> Option<Lower> {
        let (base, from) = (self.settings.level, self.effective_level());
        let parent = self.uplink.parent.as_ref().map(|parent| parent.id);
        let real = self.real_parents(now);
        let best = real.first()?;
        let movers = self.downlink.children.values().filter(|child| child.effective_level >= base).count();
        let me = usize::from(!real.iter().any(|candidate| Some(candidate.id) == parent));
        let room: usize = real.iter().map(|candidate| usize::from(candidate.free_slots)).sum();
        let successor = Some(best.id);
        if room >= movers + me {
            return Some(Lower { level: base, after: STEADY, successor });
        }
        let below = Level(best.effective_level.0.saturating_sub(1)).max(base);
        (parent.is_none() && below < from).then_some(Lower { level: below, after: STEADY, successor })
    }

    /// Those that a leader of acting leaders was elected over become its children, if it has room and does not rise.
    fn for_an_equal(&self, now: Time) -> Option<Lower> {
        let below = Level(self.effective_level().0.checked_sub(1)?);
        let leader = &self.neighbours.get(&self.leader)?.beacon;
        let equal = self.uplink.parent.is_none() && leader.effective_level == self.effective_level();
        let reachable = self.is_near(leader) && !self.uplink.is_doubtful(now, &leader.id);
        let movers = self.downlink.children.values().filter(|child| child.effective_level >= below).count();
        let room = usize::from(leader.free_slots) > movers;
        (equal && reachable && room).then_some(Lower { level: below, after: EXCESS, successor: Some(leader.id) })
    }

    fn step_down(&mut self, now: Time, to: Level, effects: &mut Vec<Effect>) {
        let from = self.effective_level();
        self.tenure.counter += 1;
        self.hierarchy.raised = to.0 - self.settings.level.0;
        self.hierarchy.handing_over = None;
        effects.push(Effect::Event(Event::LevelChanged { from, to }));
        let children = self.downlink.children.iter();
        let left: Vec<_> = children.filter(|(_, child)| child.effective_level >= to).map(|(&id, _)| id).collect();
        for child in left {
            self.dismiss(child, Parting::Moved, effects);
            self.child_gone(now, child, "this node has stepped down", effects);
        }
        self.confirm_parent(effects);
        self.think_within(now, Duration::ZERO);
        self.touch();
    }
}

fn profile_of(beacon: &Beacon) -> Profile {
    Profile {
        id: beacon.id,
        base: beacon.level,
        able: beacon.can_parent && beacon.operational,
        score: election::score(beacon.mobility.score(), beacon.resources.score(), beacon.resources.battery()),
        priority: beacon.parent_priority,
        leads: beacon.role == Role::Leader,
    }
}
