//! The way up: choosing a parent, asking it, keeping a backup, and what happens when it is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::id::{NodeId, Prefix};
use crate::level::Level;
use crate::limits::Limits;
use crate::proto::beacon::Beacon;
use crate::proto::event::Event;
use crate::proto::selection::{Candidate, Chooser, Rank};
use crate::proto::topology::attempt::{Attempt, Redial};
use crate::proto::topology::backup::Backup;
use crate::proto::topology::machine::{Effect, Machine};
use crate::proto::topology::{
    Applicant, Cause, Frame, LastChange, ParentView, Parting, Path, Refusal, Tenure, capability_hash,
};
use crate::time::Time;

/// How long a fresh node listens before it takes the best it has heard.
pub(super) const LISTEN: Duration = Duration::from_millis(500);
/// How long it listens if all it has heard would skip a level.
const LISTEN_FOR_NEXT: Duration = Duration::from_secs(2);
/// How long a node stays below a parent that is cut off from the best root before it would rather skip a level.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the loss of a parent is a search for another, before nobody counts as found.
const SEARCH: Duration = Duration::from_secs(3);
/// A candidate that failed lately.
#[derive(Clone, Copy, Debug)]
struct Cooldown {
    since: Time,
    until: Time,
    attempts: u32,
    /// It answered, and said no.
    refused: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Lost {
    pub id: NodeId,
    pub at: Time,
    pub cause: Cause,
    pub detail: String,
}

#[derive(Clone, Debug)]
pub(super) struct Uplink {
    pub parent: Option<ParentView>,
    pub path: Arc<Path>,
    pub attempt: Option<Attempt>,
    pub backup: Option<Backup>,
    /// When a backup is looked for next, and how often it was refused so far.
    pub backup_at: Time,
    pub backups_refused: u32,
    /// When the present parent may be left for one with more room.
    pub relief_at: Time,
    /// Since when there is no parent.
    pub unattached_since: Option<Time>,
    pub last_change: Option<LastChange>,
    pub decided_at: Time,
    pub reason: String,
    cooldowns: BTreeMap<NodeId, Cooldown>,
    /// When a candidate was first in sight, until the first parent is chosen.
    first_sight: Option<Time>,
    /// Since when this node is cut off from the best roots in sight.
    unrooted_since: Option<Time>,
    /// The parent that was lost, and why, until there is a new one.
    pub lost: Option<Lost>,
    /// The same one, while it may live and is dialled again.
    pub redial: Option<Redial>,
    serial: u64,
}

impl Uplink {
    pub fn new(now: Time, first_serial: u64) -> Self {
        Self {
            parent: None,
            path: Arc::default(),
            attempt: None,
            backup: None,
            unattached_since: Some(now),
            backup_at: now,
            backups_refused: 0,
            relief_at: now,
            last_change: None,
            decided_at: Time::ZERO,
            reason: "listening".into(),
            cooldowns: BTreeMap::new(),
            first_sight: None,
            unrooted_since: None,
            lost: None,
            redial: None,
            serial: first_serial,
        }
    }

    pub fn is_trying(&self, now: Time) -> bool {
        self.attempt.is_some() || self.first_sight.is_some() || self.is_searching(now)
    }

    /// Whether a parent was lost so lately that another may still be found at once.
    pub fn is_searching(&self, now: Time) -> bool {
        self.lost.as_ref().is_some_and(|lost| now.since(lost.at) < SEARCH)
    }

    pub fn deadline(&self) -> Option<Time> {
        let attempt = self.attempt.as_ref().map(|attempt| attempt.deadline(self.parent.is_none()));
        let backup = self.backup.as_ref().filter(|b| !b.accepted).map(|b| b.until);
        crate::time::earliest(attempt, backup)
    }

    pub fn wanted(&self) -> impl Iterator<Item = NodeId> {
        let parent = self.parent.as_ref().map(|parent| parent.id);
        let attempt = self.attempt.iter().flat_map(|attempt| attempt.others.iter().chain([&attempt.id])).copied();
        let kept = self.backup.as_ref().map(|backup| backup.id).into_iter().chain(self.redial.map(|lost| lost.id));
        parent.into_iter().chain(attempt).chain(kept)
    }

    pub fn accepted_backup(&self) -> Option<NodeId> {
        self.backup.as_ref().filter(|backup| backup.accepted).map(|backup| backup.id)
    }

    /// For how long a candidate that failed is not asked again.
    pub fn rests(&self, now: Time, id: &NodeId) -> Option<Duration> {
        let cooldown = self.cooldowns.get(id)?;
        let orphaned = cooldown.since + Limits::ORPHAN_WAITS;
        let ask_at = if self.parent.is_none() { cooldown.until.min(orphaned) } else { cooldown.until };
        (now < ask_at).then(|| ask_at.since(now))
    }

    /// Whether a candidate failed so lately that nothing is built on it.
    pub fn is_doubtful(&self, now: Time, id: &NodeId) -> bool {
        self.cooldowns.get(id).is_some_and(|cooldown| now < cooldown.until)
    }

    /// A link to the candidate came up: what kept it from us is over.
    pub fn forgive(&mut self, id: &NodeId) {
        if let Some(cooldown) = self.cooldowns.get_mut(id) {
            cooldown.until = Time::ZERO;
        }
    }

    /// Whether a request to that node waits for its answer.
    pub fn asks(&self, id: &NodeId) -> bool {
        let keeps = self.backup.as_ref().is_some_and(|backup| backup.id == *id && !backup.accepted);
        keeps || self.attempt.as_ref().is_some_and(|attempt| attempt.was_asked(*id))
    }

    pub fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}

impl Machine {
    pub(super) fn chooser<'r>(&self, now: Time, best_roots: &'r [Prefix]) -> Chooser<'r> {
        Chooser {
            level: self.settings.level,
            effective_level: self.effective_level(),
            position: self.description.position,
            max_distance_m: self.settings.max_distance_m,
            weights: self.settings.weights,
            best_roots,
            impatient: self.uplink.unrooted_since.is_some_and(|since| now.since(since) >= PATIENCE),
            preferred: self.settings.preferred_parent,
        }
    }

    pub(super) fn candidates(&self, now: Time) -> impl Iterator<Item = Candidate<'_>> {
        self.candidates_above(self.effective_level(), now)
    }

    fn candidates_above(&self, level: Level, now: Time) -> impl Iterator<Item = Candidate<'_>> {
        let above = self.neighbours.iter().filter(move |(_, n)| n.beacon.effective_level > level);
        above.map(move |(id, n)| {
            let is_parent = self.uplink.parent.as_ref().is_some_and(|parent| parent.id == *id);
            Candidate {
                beacon: &n.beacon,
                // A parent's link says more of its life than its beacons.
                fresh: n.is_fresh(now) || is_parent,
                descendant: self.downlink.subtree.known().contains_key(id),
                holds_slot: is_parent || self.uplink.accepted_backup() == Some(*id),
                link_quality: self.qualities.get(id).copied(),
            }
        })
    }

    /// Parents of a higher base level than this node's that it could have if it did not act above its own, best first.
    pub(super) fn real_parents(&self, now: Time) -> Vec<Arc<Beacon>> {
        let base = self.settings.level;
        let sound = |beacon: &Beacon| beacon.level > base && !self.uplink.is_doubtful(now, &beacon.id);
        let real = self.candidates_above(base, now).filter(|candidate| sound(candidate.beacon));
        let ranking = Chooser { effective_level: base, ..self.chooser(now, &self.best_roots(now)) }.ranking(real);
        ranking.iter().filter_map(|rank| self.neighbours.get(&rank.id)).map(|n| n.beacon.clone()).collect()
    }

    /// Whether somebody above has not been asked yet, or is being asked for the first time.
    pub(super) fn has_untried_candidate(&self, now: Time) -> bool {
        self.ranking(now).iter().any(|rank| !self.uplink.cooldowns.contains_key(&rank.id))
    }

    /// Whether somebody above is there, and has no room for this node.
    pub(super) fn is_full_above(&self, now: Time) -> bool {
        let level = self.effective_level();
        let refused = |id: &NodeId| self.uplink.cooldowns.get(id).is_some_and(|cooldown| cooldown.refused);
        self.neighbours.iter().any(|(id, n)| {
            let full = n.beacon.free_slots == 0 || refused(id);
            let there = n.is_fresh(now) && !self.is_doubted(&n.beacon) && self.is_near(&n.beacon);
            n.beacon.effective_level > level && there && full
        })
    }

    /// Whether a node is not too far away to be a parent; who does not say where it is may be.
    pub(super) fn is_near(&self, beacon: &Beacon) -> bool {
        match (self.description.position, beacon.point()) {
            (Some(here), Some(there)) => here.distance_m(&there) <= self.settings.max_distance_m,
            _ => true,
        }
    }

    /// Has the parent confirm the link: after a restart, or under a new tenure.
    pub(super) fn confirm_parent(&self, effects: &mut Vec<Effect>) {
        if let Some(parent) = &self.uplink.parent {
            effects.push(Effect::Send(parent.id, self.request(parent.serial, false)));
        }
    }

    /// Says to who may take this node for its child, or keep a slot for it, that it is neither.
    pub(super) fn deny_parent(&mut self, peer: NodeId, effects: &mut Vec<Effect>) {
        let serial = self.uplink.next_serial();
        effects.push(Effect::Send(peer, Frame::Detach { serial, reason: Parting::Moved }));
    }

    /// The request to a parent, or to a backup.
    pub(super) fn request(&self, serial: u64, backup: bool) -> Frame {
        let applicant = Applicant {
            level: self.settings.level,
            effective_level: self.effective_level(),
            capabilities: self.description.capabilities.iter().map(|c| capability_hash(&c.kind)).collect(),
            account: self.settings.account,
            fence: self.command.highest(),
            known_root: self.command.known_root,
        };
        Frame::Attach { tenure: self.tenure, serial, backup, applicant }
    }

    /// Stops asking those above: this node rises to where they may not be above it any more.
    pub(super) fn give_up_above(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let reason = Parting::Moved;
        if let Some(Attempt { id, serial, .. }) = self.uplink.attempt.take() {
            effects.push(Effect::Send(id, Frame::Detach { serial, reason }));
        }
        if let Some(Backup { id, serial, .. }) = self.uplink.backup.take() {
            effects.push(Effect::Send(id, Frame::Detach { serial, reason }));
        }
        (self.uplink.first_sight, self.uplink.lost, self.uplink.redial) = (None, None, None);
        self.uplink.decided_at = now;
    }

    /// The parent is about to step down and names who takes its children over.
    pub(super) fn handed_over(&mut self, now: Time, peer: NodeId, to: NodeId, effects: &mut Vec<Effect>) {
        let parent = self.uplink.parent.as_ref().map(|parent| parent.id);
        if parent != Some(peer) || self.uplink.attempt.is_some() {
            return;
        }
        let ranking = self.ranking(now);
        let others = || ranking.iter().filter(|rank| rank.id != peer);
        if let Some(next) = others().find(|rank| rank.id == to).or_else(|| others().next()) {
            let detail = format!("{} steps down and hands over", peer.short());
            self.attempt(now, next.id, Cause::Closed, detail, effects);
        }
    }

    /// The highest roots in sight: nodes without a parent of the highest level, by base and then by effective level.
    pub(super) fn best_roots(&self, now: Time) -> Vec<Prefix> {
        let (mut highest, mut best) = (None, Vec::new());
        for neighbour in self.neighbours.iter().map(|(_, n)| n).filter(|n| n.beacon.parent.is_none()) {
            let beacon = &neighbour.beacon;
            let height = Some((beacon.level, beacon.effective_level));
            if height < highest || !neighbour.is_fresh(now) {
                continue;
            }
            if height > highest {
                highest = height;
                best.clear();
            }
            best.push(beacon.id.prefix());
        }
        best
    }

    fn note_roots(&mut self, now: Time, best: &[Prefix]) {
        let root = self.uplink.path.waypoints.last().map(|root| root.id.prefix());
        let rooted = best.is_empty() || root.is_some_and(|root| best.contains(&root));
        let since = self.uplink.unrooted_since.unwrap_or(now);
        self.uplink.unrooted_since = (!rooted).then_some(since);
    }

    pub(super) fn ranking(&self, now: Time) -> Vec<Rank> {
        self.ranking_for(now, &self.best_roots(now))
    }

    fn ranking_for(&self, now: Time, best_roots: &[Prefix]) -> Vec<Rank> {
        let mut ranking = self.chooser(now, best_roots).ranking(self.candidates(now));
        let parent = self.uplink.parent.as_ref().map(|parent| parent.id);
        ranking.retain(|rank| Some(rank.id) == parent || self.uplink.rests(now, &rank.id).is_none());
        ranking
    }

    pub(super) fn choose_parent(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let orphaned = self.uplink.parent.is_none() && self.uplink.last_change.is_some();
        if self.uplink.attempt.is_some() || (orphaned && !self.settings.repair) {
            return;
        }
        let best_roots = self.best_roots(now);
        self.note_roots(now, &best_roots);
        let ranking = self.ranking_for(now, &best_roots);
        let Some(&best) = ranking.first() else {
            if self.uplink.parent.is_none() {
                let above = self.neighbours.iter().any(|(_, n)| n.beacon.effective_level > self.effective_level());
                let why = if above { "no candidate passes the gates" } else { "nobody above this node is in sight" };
                self.uplink.reason = why.into();
                if self.uplink.first_sight.take().is_some() {
                    self.touch();
                }
            }
            return;
        };
        match self.uplink.parent.clone() {
            None if self.uplink.lost.is_none() && self.is_listening(now, best.skips) => {}
            None => {
                let (cause, detail) = match &self.uplink.lost {
                    Some(lost) => (lost.cause, lost.detail.clone()),
                    None => (Cause::First, "the best candidate heard".into()),
                };
                self.attempt(now, best.id, cause, detail, effects);
            }
            Some(parent) if best.id != parent.id => {
                if now.since(parent.since) < self.settings.dwell {
                    return;
                }
                match ranking.iter().find(|rank| rank.id == parent.id) {
                    Some(present) if best.displaces(present, self.settings.hysteresis) => {
                        let (cause, why) = match best.rooted && !present.rooted {
                            true => (Cause::Healed, "a root is in reach through it"),
                            false => (Cause::Better, "better by more than the hysteresis"),
                        };
                        let detail = format!("{why}: {:.3} against {:.3}", best.score, present.score);
                        self.attempt(now, best.id, cause, detail, effects);
                    }
                    Some(_) => {}
                    // What is not heard of it says nothing: the link does. What is heard says that it should not be one.
                    None if self.neighbours.get(&parent.id).is_some() => {
                        let detail = "the parent does not pass the gates any more".to_owned();
                        self.attempt(now, best.id, Cause::Better, detail, effects);
                    }
                    None => {}
                }
            }
            Some(_) => {}
        }
        self.relieve_parent(now, &ranking, effects);
    }

    /// A fresh node hears several candidates out before it chooses.
    fn is_listening(&mut self, now: Time, skips: u8) -> bool {
        let since = *self.uplink.first_sight.get_or_insert(now);
        let wait = if skips == 0 { LISTEN } else { LISTEN_FOR_NEXT }.saturating_sub(now.since(since));
        if wait.is_zero() {
            return false;
        }
        self.touch();
        self.think_within(now, wait);
        true
    }

    pub(super) fn rest(&mut self, now: Time, id: NodeId, refused: bool) {
        let attempts = self.uplink.cooldowns.get(&id).map_or(0, |cooldown| cooldown.attempts);
        let until = now + self.settings.backoff.jittered(attempts, &mut self.rng);
        self.uplink.cooldowns.insert(id, Cooldown { since: now, until, attempts: attempts + 1, refused });
        // Who is out of the table of neighbours is no candidate any more.
        if self.uplink.cooldowns.len() > 64 {
            let known = &self.neighbours;
            self.uplink.cooldowns.retain(|id, _| known.get(id).is_some());
        }
    }

    pub(super) fn unreachable(&mut self, now: Time, peer: NodeId, reason: &str, effects: &mut Vec<Effect>) {
        if self.uplink.backup.as_ref().is_some_and(|backup| backup.id == peer) {
            self.drop_backup(now);
        }
        self.lateral_unreachable(now, peer);
        self.forget_other(now, peer);
        self.redial_failed(peer);
        self.attempt_failed(now, peer, Cause::Lost, reason, effects);
    }

    pub(super) fn accepted(
        &mut self,
        now: Time,
        peer: NodeId,
        serial: u64,
        tenure: Tenure,
        path: Path,
        backup: bool,
        effects: &mut Vec<Effect>,
    ) {
        if !self.may_be_above(peer, &path) {
            return effects.push(Effect::Dropped("impossible_path"));
        }
        if backup {
            return self.backup_accepted(now, peer, serial, tenure, &path, effects);
        }
        let Some(attempt) = self.uplink.attempt.take_if(|attempt| attempt.asked_for(peer, serial)) else {
            let present = self.uplink.parent.as_ref().is_some_and(|p| p.id == peer && p.serial == serial);
            if present {
                // Said again after a restart on either side, or under a new tenure of the parent's.
                if path.waypoints[0].effective_level <= self.effective_level() {
                    return self.lose_parent(now, Cause::Closed, "it is not above this node any more", effects);
                }
                if let Some(parent) = &mut self.uplink.parent {
                    parent.tenure = tenure;
                }
                self.take_path(peer, path, effects);
                self.report_whole_subtree_to(now, peer, effects);
                self.touch();
            } else {
                // Too late: we asked somebody else meanwhile, and hold no slot here.
                effects.push(Effect::Send(peer, Frame::Detach { serial, reason: Parting::Moved }));
            }
            return;
        };
        if path.waypoints[0].effective_level <= self.effective_level() {
            effects.push(Effect::Send(peer, Frame::Detach { serial, reason: Parting::Moved }));
            self.uplink.attempt = Some(attempt);
            return self.attempt_failed(now, peer, Cause::Refused, "it is not above this node", effects);
        }
        let took_over = self.uplink.parent.is_none() && self.uplink.accepted_backup() == Some(peer);
        let former = self.uplink.parent.take();
        let lost = self.uplink.lost.take();
        self.uplink.redial = None;
        let from = former.as_ref().map(|parent| parent.id).or(lost.as_ref().map(|lost| lost.id));
        if let Some(former) = former.filter(|former| former.id != peer) {
            effects.push(Effect::Send(former.id, Frame::Detach { serial: former.serial, reason: Parting::Moved }));
        }
        // Who was asked to be the parent keeps no slot for a child that only may come.
        if self.uplink.backup.as_ref().is_some_and(|backup| attempt.was_asked(backup.id)) {
            self.uplink.backup = None;
        }
        let ever = self.uplink.last_change.is_some();
        let cause = if ever { attempt.cause } else { Cause::First };
        effects.push(Effect::Event(match (ever, from) {
            (false, _) => Event::PeerSelected { parent: peer },
            (true, from) => Event::PeerChanged { from, to: peer, cause },
        }));
        let detail = attempt.detail + if took_over { "; the backup took over" } else { "" };
        self.uplink.reason = detail.clone();
        self.uplink.decided_at = now;
        self.uplink.last_change = Some(LastChange { at: now, from, to: Some(peer), cause, detail });
        self.uplink.parent = Some(ParentView { id: peer, tenure, serial, since: now });
        self.uplink.cooldowns.remove(&peer);
        (self.uplink.first_sight, self.uplink.unattached_since) = (None, None);
        (self.uplink.backup_at, self.uplink.backups_refused) = (now, 0);
        self.put_relief_off(now);
        self.take_path(peer, path, effects);
        self.report_whole_subtree_to(now, peer, effects);
        self.think_within(now, Duration::from_millis(200));
        self.touch();
    }

    pub(super) fn refused(&mut self, now: Time, peer: NodeId, serial: u64, reason: Refusal, effects: &mut Vec<Effect>) {
        if self.uplink.backup.as_ref().is_some_and(|b| b.id == peer && b.serial == serial) {
            return self.backup_refused(now);
        }
        let why = format!("refused: {reason:?}").to_lowercase();
        if let Some(attempt) = self.uplink.attempt.as_mut().filter(|attempt| attempt.asked_for(peer, serial)) {
            if attempt.id == peer {
                self.attempt_failed(now, peer, Cause::Refused, &why, effects);
            } else {
                attempt.earlier.retain(|(id, _)| *id != peer);
                self.rest(now, peer, true);
                self.touch();
            }
        }
        // It could not confirm the link under this node's new tenure.
        if self.uplink.parent.as_ref().is_some_and(|parent| parent.id == peer && parent.serial == serial) {
            self.lose_parent(now, Cause::Refused, &why, effects);
        }
    }

    pub(super) fn dismissed(
        &mut self,
        now: Time,
        peer: NodeId,
        reason: Parting,
        backup: bool,
        effects: &mut Vec<Effect>,
    ) {
        if self.uplink.backup.as_ref().is_some_and(|backup| backup.id == peer) {
            self.drop_backup(now);
        }
        if !backup && self.uplink.parent.as_ref().is_some_and(|parent| parent.id == peer) {
            self.lose_parent(now, Cause::Closed, reason.label(), effects);
        }
    }

    pub(super) fn path_changed(&mut self, now: Time, peer: NodeId, path: Path, effects: &mut Vec<Effect>) {
        self.backup_moved(now, peer, &path, effects);
        if self.uplink.parent.as_ref().is_none_or(|parent| parent.id != peer) {
            return;
        }
        let too_low = path.waypoints.first().is_none_or(|w| w.effective_level <= self.effective_level());
        if too_low || !self.may_be_above(peer, &path) {
            effects.push(Effect::Dropped("impossible_path"));
            return self.lose_parent(now, Cause::Closed, "its path is impossible", effects);
        }
        self.take_path(peer, path, effects);
        self.think_within(now, Duration::from_millis(50));
        self.touch();
    }

    /// The link to `peer` is down: if it was the parent, the ladder begins.
    pub(super) fn parent_gone(&mut self, now: Time, peer: NodeId, reason: &str, effects: &mut Vec<Effect>) {
        if let Some(attempt) = self.uplink.attempt.as_mut().filter(|attempt| attempt.id == peer) {
            attempt.asked = None;
        }
        if self.uplink.backup.as_ref().is_some_and(|backup| backup.id == peer) {
            self.drop_backup(now);
        }
        if self.uplink.parent.as_ref().is_some_and(|parent| parent.id == peer) {
            self.lose_parent(now, Cause::Lost, reason, effects);
        }
    }

    fn lose_parent(&mut self, now: Time, cause: Cause, reason: &str, effects: &mut Vec<Effect>) {
        let Some(parent) = self.uplink.parent.take() else { return };
        effects.push(Effect::Event(Event::PeerLost { parent: parent.id, reason: reason.to_owned() }));
        self.uplink.path = Arc::default();
        self.uplink.unattached_since = Some(now);
        self.uplink.lost = Some(Lost { id: parent.id, at: now, cause, detail: reason.to_owned() });
        self.think_within(now, SEARCH);
        self.uplink.reason = format!("{} was lost: {reason}", parent.id.short());
        self.uplink.decided_at = now;
        self.rest(now, parent.id, false);
        self.touch();
        if !self.settings.repair || self.leaving {
            return;
        }
        if cause == Cause::Lost {
            self.redial_lost(parent.id, reason);
        }
        let replaced = self.uplink.attempt.is_some();
        match self.uplink.accepted_backup().filter(|id| self.links.contains_key(id)) {
            Some(backup) => {
                self.uplink.attempt = None;
                self.attempt(now, backup, cause, reason.to_owned(), effects);
            }
            None if replaced => {}
            None => self.choose_parent(now, effects),
        }
    }

    pub(super) fn say_goodbye_above(&mut self, effects: &mut Vec<Effect>) {
        let reason = Parting::Leaving;
        if let Some(parent) = self.uplink.parent.take() {
            effects.push(Effect::Send(parent.id, Frame::Detach { serial: parent.serial, reason }));
        }
        if let Some(backup) = self.uplink.backup.take() {
            effects.push(Effect::Send(backup.id, Frame::Detach { serial: backup.serial, reason }));
        }
        (self.uplink.attempt, self.uplink.redial) = (None, None);
        self.uplink.path = Arc::default();
        self.touch();
    }

    fn take_path(&mut self, parent: NodeId, path: Path, effects: &mut Vec<Effect>) {
        let root_level = path.waypoints.last().map(|root| root.level);
        self.command.known_root = self.command.known_root.max(root_level);
        self.follow_term(parent, &path, effects);
        self.uplink.path = Arc::new(path);
    }

    /// Whether a path can be what is above this node: it begins with who says so, and ends within the levels of the mesh.
    fn may_be_above(&self, peer: NodeId, path: &Path) -> bool {
        let (me, top) = (self.settings.me, self.settings.top_level);
        path.is_possible()
            && path.waypoints[0].id == peer
            && path.waypoints.iter().all(|waypoint| waypoint.id != me && waypoint.level <= top)
    }
}
