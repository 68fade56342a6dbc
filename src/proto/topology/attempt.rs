//! Asking one candidate to be the parent, and beside one that is slow, the next; and beside them all, who was it before.

use std::time::Duration;

use crate::id::NodeId;
use crate::proto::link::CloseReason;
use crate::proto::topology::Cause;
use crate::proto::topology::machine::{Effect, Machine};
use crate::proto::topology::uplink::Lost;
use crate::time::Time;

/// How long an attempt may take, the dial included.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(3);
/// How long a request may go without an answer before it is repeated.
const ANSWER: Duration = Duration::from_millis(500);
/// How long an orphan waits for one candidate before it dials the next as well: the first may have died with the parent,
/// and a dial takes seconds to fail. (As happy eyeballs do with addresses; RFC 8305.)
const HEDGE: Duration = Duration::from_millis(250);
/// How many are dialled beside the first at a time, and how many of those that were asked may still accept.
const OTHERS: usize = 3;

/// A parent that was asked and has not answered.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub id: NodeId,
    pub serial: u64,
    pub cause: Cause,
    pub detail: String,
    pub until: Time,
    /// When the request went out, or is to be repeated.
    pub asked: Option<Time>,
    /// Who was asked before it in the same search, with the serial: whoever accepts first is the parent.
    pub earlier: Vec<(NodeId, u64)>,
    /// Who is dialled beside it because it is slow, and when one more is.
    pub others: Vec<NodeId>,
    pub slow_at: Time,
}

/// A parent whose link broke, though it may live: it is dialled again beside whoever is to take its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Redial {
    pub id: NodeId,
    /// How many more dials may fail.
    left: u32,
}

impl Attempt {
    /// Whether this is the answer to a request of this search.
    pub fn asked_for(&self, id: NodeId, serial: u64) -> bool {
        (self.id, self.serial) == (id, serial) || self.earlier.contains(&(id, serial))
    }

    /// The request that a candidate has, by its serial.
    pub fn request_to(&self, id: NodeId) -> Option<u64> {
        let earlier = self.earlier.iter().find(|(earlier, _)| *earlier == id).map(|(_, serial)| *serial);
        if self.id == id { self.asked.map(|_| self.serial) } else { earlier }
    }

    pub fn was_asked(&self, id: NodeId) -> bool {
        self.id == id || self.earlier.iter().any(|(earlier, _)| *earlier == id)
    }

    pub fn deadline(&self, orphaned: bool) -> Time {
        let answer = self.asked.map_or(self.until, |at| self.until.min(at + ANSWER));
        if orphaned && self.others.len() < OTHERS { answer.min(self.slow_at) } else { answer }
    }
}

impl Machine {
    pub(super) fn attempt(&mut self, now: Time, id: NodeId, cause: Cause, detail: String, effects: &mut Vec<Effect>) {
        let serial = self.uplink.next_serial();
        self.uplink.redial.take_if(|lost| lost.id == id);
        self.uplink.attempt = Some(Attempt {
            id,
            serial,
            cause,
            detail,
            until: now + ATTEMPT,
            asked: None,
            earlier: Vec::new(),
            others: Vec::new(),
            slow_at: now + HEDGE,
        });
        self.touch();
        self.ask_if_linked(now, effects);
    }

    /// Sends what a link was waited for: the request to a parent, and to a backup.
    pub(super) fn ask_if_linked(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if let Some(attempt) = &mut self.uplink.attempt
            && self.links.contains_key(&attempt.id)
            && attempt.asked.is_none()
        {
            attempt.asked = Some(now);
            let (id, serial) = (attempt.id, attempt.serial);
            effects.push(Effect::Send(id, self.request(serial, false)));
        }
        if let Some(backup) = &mut self.uplink.backup {
            let is_parent_to_be = self.uplink.attempt.as_ref().is_some_and(|attempt| attempt.id == backup.id);
            if self.links.contains_key(&backup.id) && backup.asked.is_none() && !is_parent_to_be {
                backup.asked = Some(now);
                let (id, serial) = (backup.id, backup.serial);
                effects.push(Effect::Send(id, self.request(serial, true)));
            }
        }
    }

    pub(super) fn attempt_timed_out(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if let Some(attempt) = &mut self.uplink.attempt {
            if now >= attempt.until {
                let id = attempt.id;
                self.attempt_failed(now, id, Cause::Lost, "no answer", effects);
            } else if attempt.asked.is_some_and(|at| now >= at + ANSWER) {
                attempt.asked = None;
                self.ask_if_linked(now, effects);
            }
        }
        self.hedge(now, effects);
        if self.uplink.backup.as_ref().is_some_and(|backup| !backup.accepted && now >= backup.until) {
            self.drop_backup(now);
        }
    }

    pub(super) fn attempt_failed(&mut self, now: Time, id: NodeId, cause: Cause, why: &str, effects: &mut Vec<Effect>) {
        let Some(mut attempt) = self.uplink.attempt.take_if(|attempt| attempt.id == id) else { return };
        self.rest(now, id, cause == Cause::Refused);
        if self.uplink.parent.is_none() {
            self.uplink.reason = format!("{} did not take this node: {why}", id.short());
            if self.uplink.lost.is_none() && cause == Cause::Refused {
                self.uplink.lost = Some(Lost { id, at: now, cause, detail: why.to_owned() });
            }
        }
        self.touch();
        match attempt.earlier.pop() {
            // Others who were asked may still accept, beside whoever is asked next.
            Some((id, serial)) => {
                self.uplink.attempt = Some(Attempt { id, serial, slow_at: now, ..attempt });
                self.hedge(now, effects);
            }
            None => self.choose_parent(now, effects),
        }
    }

    /// Dials further candidates beside one that is slow, and asks the first whose link is up as well, or the lost parent.
    pub(super) fn hedge(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some(mut attempt) = self.uplink.attempt.take_if(|_| self.uplink.parent.is_none()) else { return };
        if now >= attempt.slow_at && attempt.others.len() < OTHERS {
            attempt.slow_at = now + HEDGE;
            attempt.others.extend(self.next_best(now, &attempt));
            self.touch();
        }
        let mut beside = attempt.others.iter().copied().chain(self.uplink.redial.map(|lost| lost.id));
        match beside.find(|id| self.links.contains_key(id)) {
            Some(linked) => {
                self.rest(now, attempt.id, false);
                attempt.earlier.push((attempt.id, attempt.serial));
                // Who is asked again answers the new request: its acceptance of an old one would leave the two apart.
                attempt.earlier.retain(|(id, _)| *id != linked);
                attempt.earlier.drain(..attempt.earlier.len().saturating_sub(OTHERS));
                self.attempt(now, linked, attempt.cause, attempt.detail, effects);
                if let Some(next) = &mut self.uplink.attempt {
                    next.earlier = attempt.earlier;
                }
            }
            None => self.uplink.attempt = Some(attempt),
        }
    }

    /// The best candidate that is not tried yet: if there is a link to any, the best of those.
    fn next_best(&self, now: Time, tried: &Attempt) -> Option<NodeId> {
        let ranking = self.ranking(now);
        let others = || ranking.iter().map(|rank| rank.id).filter(|id| *id != tried.id && !tried.others.contains(id));
        others().find(|id| self.links.contains_key(id)).or_else(|| others().next())
    }

    /// Who was dialled beside a slow candidate cannot be reached either.
    pub(super) fn forget_other(&mut self, now: Time, peer: NodeId) {
        let Some(attempt) = &mut self.uplink.attempt else { return };
        if let Some(i) = attempt.others.iter().position(|other| *other == peer) {
            attempt.others.remove(i);
            self.rest(now, peer, false);
            self.touch();
        }
    }

    /// Has a lost parent dialled again, unless its link ended on purpose.
    pub(super) fn redial_lost(&mut self, id: NodeId, reason: &str) {
        let on_purpose = [CloseReason::Leaving, CloseReason::Disconnected, CloseReason::Crowded];
        let may_live = !on_purpose.iter().any(|why| reason.ends_with(why.label()));
        let left = self.settings.retries;
        self.uplink.redial = (may_live && left > 0).then_some(Redial { id, left });
    }

    pub(super) fn redial_failed(&mut self, peer: NodeId) {
        if let Some(redial) = self.uplink.redial.as_mut().filter(|lost| lost.id == peer) {
            redial.left -= 1;
            self.uplink.redial.take_if(|redial| redial.left == 0);
            self.touch();
        }
    }
}
