//! The way down: accepting children, keeping slots for others, and knowing who is below.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::NodeId;
use crate::level::Level;
use crate::limits::Limits;
use crate::proto::event::Event;
use crate::proto::topology::machine::{Effect, Machine};
use crate::proto::topology::subtree::Subtree;
use crate::proto::topology::uplink::Uplink;
use crate::proto::topology::{Applicant, Change, ChildView, Descendant, Frame, Parting, Path, Refusal, Report, Tenure};
use crate::time::Time;

/// How long changes in the subtree are gathered before they are reported.
const GATHER: Duration = Duration::from_millis(100);
/// How many changes go in the first part of a report: a fifth of a second on a slow link, for what is behind it waits. The
/// next is twice as large if the parent was told this soon.
const PART: usize = 64;
const SOON: Duration = Duration::from_millis(250);
/// How long a part may go unanswered before all is told anew: longer than the largest takes over a slow link. It was lost
/// where more was to be sent than a link's queue holds, or its answer was.
const UNTOLD: Duration = Duration::from_secs(30);
/// How often one that seems to take this node for its parent is asked to confirm it.
const CONFIRM: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(super) struct Downlink {
    pub children: BTreeMap<NodeId, ChildView>,
    /// Whose backup this node is, with the serial of the request.
    pub reserved: BTreeMap<NodeId, u64>,
    pub subtree: Subtree,
    /// Whom a child has named so far in a report that replaces what it said before.
    told: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// What is not yet reported to the parent, what that is to what was said before, and when it is due.
    unreported: BTreeMap<NodeId, Option<Descendant>>,
    report: Report,
    report_at: Option<Time>,
    /// When the part went that the parent was not told yet, and how many changes the next may have.
    telling: Option<Time>,
    part: usize,
    /// When who sends under a tenure that is not current was last asked to confirm its link.
    asked: BTreeMap<NodeId, Time>,
}

impl Default for Downlink {
    fn default() -> Self {
        Self {
            children: BTreeMap::new(),
            reserved: BTreeMap::new(),
            subtree: Subtree::default(),
            told: BTreeMap::new(),
            unreported: BTreeMap::new(),
            report: Report::Changes,
            report_at: None,
            telling: None,
            part: PART,
            asked: BTreeMap::new(),
        }
    }
}

impl Downlink {
    pub fn report_at(&self, uplink: &Uplink) -> Option<Time> {
        let due = self.telling.map_or(self.report_at, |since| Some(since + UNTOLD));
        due.filter(|_| uplink.parent.is_some())
    }

    fn add(&mut self, now: Time, via: NodeId, descendant: Descendant) {
        let id = descendant.id;
        if self.subtree.claim(via, descendant) {
            self.changed(now, id);
        }
    }

    fn remove(&mut self, now: Time, via: NodeId, id: NodeId) {
        if self.subtree.withdraw(via, id) {
            self.changed(now, id);
        }
    }

    fn changed(&mut self, now: Time, id: NodeId) {
        self.unreported.insert(id, self.subtree.get(&id).cloned());
        self.report_at.get_or_insert(now + GATHER);
    }
}

impl Machine {
    /// Slots that a child of the next level down would get: one that skips levels gives way to it.
    pub(super) fn free_slots(&self) -> u16 {
        let skips = |child: &&ChildView| child.effective_level.0 + 1 < self.effective_level().0;
        let taken = self.downlink.children.values().filter(|child| !skips(child)).count();
        self.settings.max_children.saturating_sub(taken as u16)
    }

    /// Confirms the children under a new tenure.
    pub(super) fn accept_again(&self, path: &Path, effects: &mut Vec<Effect>) {
        let children = self.downlink.children.iter().map(|(&id, child)| (id, child.serial, false));
        let reserved = self.downlink.reserved.iter().map(|(&id, &serial)| (id, serial, true));
        for (child, serial, backup) in children.chain(reserved) {
            let accept = Frame::Accept { serial, tenure: self.tenure, path: path.clone(), backup };
            effects.push(Effect::Send(child, accept));
        }
    }

    pub(super) fn attach_asked(
        &mut self,
        now: Time,
        peer: NodeId,
        (tenure, serial): (Tenure, u64),
        backup: bool,
        applicant: Applicant,
        effects: &mut Vec<Effect>,
    ) {
        let effective_level = applicant.effective_level;
        let known = self.downlink.children.get(&peer);
        if known.is_some_and(|child| (child.tenure, child.serial) > (tenure, serial)) {
            return effects.push(Effect::Dropped("stale_attach"));
        }
        let welcome = !matches!(self.refusal(peer, effective_level, backup), Some(Refusal::Level | Refusal::Closed));
        if welcome && !backup {
            self.make_room(now, peer, effective_level, effects);
        }
        if let Some(reason) = self.refusal(peer, effective_level, backup) {
            return effects.push(Effect::Send(peer, Frame::Refuse { serial, reason }));
        }
        if backup && self.downlink.children.contains_key(&peer) {
            return effects.push(Effect::Dropped("backup_of_child"));
        }
        if backup {
            self.downlink.reserved.insert(peer, serial);
        } else {
            self.accept_child(now, peer, (tenure, serial), applicant, effects);
        }
        self.touch();
        let path = self.view().path_for_children();
        effects.push(Effect::Send(peer, Frame::Accept { serial, tenure: self.tenure, path, backup }));
    }

    /// A full house lets a child go that skips more levels than the newcomer: it will find a parent nearer to it.
    fn make_room(&mut self, now: Time, newcomer: NodeId, effective_level: Level, effects: &mut Vec<Effect>) {
        let children = &self.downlink.children;
        let full = children.len() >= usize::from(self.settings.max_children) && !children.contains_key(&newcomer);
        let lowest = children.iter().min_by_key(|(id, child)| (child.effective_level, **id));
        let Some((&lowest, child)) = lowest.filter(|_| full) else { return };
        if child.effective_level < effective_level && effective_level < self.effective_level() {
            self.dismiss(lowest, Parting::Preempted, effects);
            self.child_gone(now, lowest, "its slot was needed for a higher level", effects);
        }
    }

    fn refusal(&self, peer: NodeId, effective_level: Level, backup: bool) -> Option<Refusal> {
        let own = &self.description;
        let (children, reserved) = (&self.downlink.children, &self.downlink.reserved);
        // Who is a child already stays one, even of a parent that takes no others now.
        let open = children.contains_key(&peer) || (own.can_parent && own.operational);
        let others = children.keys().filter(|id| **id != peer).count();
        let kept = reserved.keys().filter(|id| **id != peer && !children.contains_key(id)).count();
        // They are all claimed at once only if several parents die together.
        let taken = if backup { others + kept / Limits::RESERVATIONS_PER_SLOT } else { others };
        if effective_level >= self.effective_level() {
            Some(Refusal::Level)
        } else if self.leaving || !open {
            Some(Refusal::Closed)
        } else if taken >= usize::from(self.settings.max_children) {
            Some(Refusal::Full)
        } else {
            None
        }
    }

    fn accept_child(
        &mut self,
        now: Time,
        peer: NodeId,
        (tenure, serial): (Tenure, u64),
        applicant: Applicant,
        effects: &mut Vec<Effect>,
    ) {
        self.downlink.reserved.remove(&peer);
        // Nobody has seen a root higher than the mesh has levels.
        let known_root = applicant.known_root.filter(|level| *level <= self.settings.top_level);
        self.command.known_root = self.command.known_root.max(known_root);
        self.heard_of_term(applicant.fence, effects);
        let Applicant { level, effective_level, capabilities, account, fence, .. } = applicant;
        // A child that confirms its link has been one since it attached.
        let known = self.downlink.children.get(&peer).filter(|child| child.serial == serial);
        let since = known.map_or(now, |child| child.since);
        let child = ChildView { tenure, serial, effective_level, fence, since };
        if self.downlink.children.insert(peer, child).is_none() {
            effects.push(Effect::Event(Event::PeerAdded { child: peer }));
        }
        let name = self.links.get(&peer).cloned().expect("frames are taken over links that are up");
        let version = (tenure.incarnation, serial);
        let parent = self.settings.me;
        let id = peer;
        let child = Descendant { id, name, level, effective_level, parent, capabilities, account, version };
        self.downlink.add(now, peer, child);
        self.preempt_reservations(effects);
    }

    /// A child is worth more than a reservation: the highest ids give way first.
    fn preempt_reservations(&mut self, effects: &mut Vec<Effect>) {
        let most = usize::from(self.settings.max_children);
        let kept = |downlink: &Downlink| downlink.reserved.len().div_ceil(Limits::RESERVATIONS_PER_SLOT);
        while self.downlink.children.len() + kept(&self.downlink) > most {
            let Some((peer, _)) = self.downlink.reserved.pop_last() else { return };
            effects.push(Effect::Send(peer, Frame::Dismiss { reason: Parting::Preempted, backup: true }));
        }
    }

    pub(super) fn detached(
        &mut self,
        now: Time,
        peer: NodeId,
        serial: u64,
        reason: Parting,
        effects: &mut Vec<Effect>,
    ) {
        if self.downlink.reserved.get(&peer).is_some_and(|&known| known <= serial) {
            self.downlink.reserved.remove(&peer);
            self.touch();
        }
        if self.downlink.children.get(&peer).is_some_and(|child| child.serial <= serial) {
            self.child_gone(now, peer, reason.label(), effects);
        }
    }

    pub(super) fn dismiss(&mut self, child: NodeId, reason: Parting, effects: &mut Vec<Effect>) {
        effects.push(Effect::Send(child, Frame::Dismiss { reason, backup: false }));
    }

    pub(super) fn child_gone(&mut self, now: Time, peer: NodeId, reason: &str, effects: &mut Vec<Effect>) {
        if self.downlink.reserved.remove(&peer).is_some() {
            self.touch();
        }
        if self.downlink.children.remove(&peer).is_none() {
            return;
        }
        self.downlink.told.remove(&peer);
        for id in self.downlink.subtree.claimed_by(peer) {
            self.downlink.remove(now, peer, id);
        }
        effects.push(Effect::Event(Event::PeerRemoved { child: peer, reason: reason.to_owned() }));
        self.touch();
    }

    /// Somebody sends under a tenure that is not current. The router may only not have heard of a new one; else the two
    /// differ in what they hold of their link, and the child's request settles it.
    pub(super) fn stale(&mut self, now: Time, child: NodeId, effects: &mut Vec<Effect>) {
        if self.downlink.children.contains_key(&child) {
            self.touch();
        }
        self.downlink.asked.retain(|_, at| now.since(*at) < CONFIRM);
        if self.links.contains_key(&child) && !self.downlink.asked.contains_key(&child) {
            self.downlink.asked.insert(child, now);
            effects.push(Effect::Send(child, Frame::Resync));
        }
    }

    pub(super) fn subtree_reported(
        &mut self,
        now: Time,
        peer: NodeId,
        (report, last): (Report, bool),
        changes: Vec<Change>,
        effects: &mut Vec<Effect>,
    ) {
        if !self.downlink.children.contains_key(&peer) {
            // It takes this node for its parent: its request, if it still does, shows whether it may.
            effects.push(Effect::Send(peer, Frame::Resync));
            return effects.push(Effect::Dropped("subtree_of_stranger"));
        }
        let named = changes.iter().filter_map(|change| match change {
            Change::Added(descendant) => Some(descendant.id),
            Change::Removed(_) => None,
        });
        match report {
            Report::Anew => drop(self.downlink.told.insert(peer, BTreeSet::new())),
            Report::More => {}
            // The end of what was told anew was lost, if it is still waited for.
            Report::Changes => drop(self.downlink.told.remove(&peer)),
        }
        if let Some(told) = self.downlink.told.get_mut(&peer) {
            told.extend(named.take(Limits::DESCENDANTS.saturating_sub(told.len())));
        }
        for change in changes.into_iter().take(Limits::SUBTREE_CHANGES) {
            match change {
                Change::Added(descendant) if descendant.id != self.settings.me => {
                    self.downlink.add(now, peer, descendant);
                }
                Change::Removed(id) if id != peer => self.downlink.remove(now, peer, id),
                Change::Added(_) | Change::Removed(_) => effects.push(Effect::Dropped("impossible_subtree")),
            }
        }
        effects.push(Effect::Send(peer, Frame::Told));
        if last && let Some(told) = self.downlink.told.remove(&peer) {
            let claimed = self.downlink.subtree.claimed_by(peer).into_iter();
            let gone = claimed.filter(|id| *id != peer && !told.contains(id));
            gone.for_each(|id| self.downlink.remove(now, peer, id));
        }
        self.touch();
    }

    /// Tells a new parent everyone who is below.
    pub(super) fn report_whole_subtree_to(&mut self, now: Time, parent: NodeId, effects: &mut Vec<Effect>) {
        if self.uplink.parent.as_ref().is_none_or(|known| known.id != parent) {
            return;
        }
        let all =
            self.downlink.subtree.known().values().map(|(_, descendant)| (descendant.id, Some(descendant.clone())));
        self.downlink.unreported = all.collect();
        (self.downlink.report, self.downlink.report_at) = (Report::Anew, Some(now));
        (self.downlink.telling, self.downlink.part) = (None, PART);
        self.report_subtree(now, effects);
    }

    pub(super) fn was_told(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some(since) = self.downlink.telling.take() else { return };
        let soon = now.since(since) < SOON;
        self.downlink.part = if soon { (self.downlink.part * 2).min(Limits::SUBTREE_CHANGES) } else { PART };
        self.report_subtree(now, effects);
    }

    pub(super) fn report_subtree(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let downlink = &mut self.downlink;
        let Some(parent) = self.uplink.parent.as_ref().map(|parent| parent.id) else {
            // A new parent is told everything.
            downlink.unreported.clear();
            (downlink.report, downlink.report_at, downlink.telling) = (Report::Changes, None, None);
            return;
        };
        if let Some(since) = downlink.telling {
            if now >= since + UNTOLD {
                self.report_whole_subtree_to(now, parent, effects);
            }
            return;
        }
        if downlink.report_at.is_none_or(|at| now < at) {
            return;
        }
        let part = std::iter::from_fn(|| downlink.unreported.pop_first()).take(downlink.part);
        let changes = part.map(|(id, descendant)| descendant.map_or(Change::Removed(id), Change::Added)).collect();
        let (report, last) = (downlink.report, downlink.unreported.is_empty());
        downlink.report = if last || report == Report::Changes { Report::Changes } else { Report::More };
        (downlink.report_at, downlink.telling) = ((!last).then_some(now), Some(now));
        effects.push(Effect::Send(parent, Frame::Subtree { report, last, changes }));
    }

    pub(super) fn say_goodbye_below(&mut self, effects: &mut Vec<Effect>) {
        let reason = Parting::Leaving;
        let dismiss = |backup| move |&peer: &NodeId| Effect::Send(peer, Frame::Dismiss { reason, backup });
        effects.extend(self.downlink.children.keys().map(dismiss(false)));
        effects.extend(self.downlink.reserved.keys().map(dismiss(true)));
        self.downlink.children.clear();
        self.downlink.reserved.clear();
        self.downlink.subtree = Subtree::default();
        self.touch();
    }
}
