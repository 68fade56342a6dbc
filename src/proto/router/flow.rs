//! How much may be under way to the parent: as much as its receipts show that the link takes without a queue.
//!
//! What waits in a queue of the network delays everything behind it, heartbeats too. So the window grows by one least
//! window in a round trip while receipts come about as soon as the soonest one did, and shrinks when they come later (as
//! LEDBAT's does; RFC 6817).
//! It grows only as far as it is used (as TCP's should; RFC 7661): a trickle shows nothing of what a link takes.

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::Limits;
use crate::time::Time;

/// The window of a link that is not known yet, and the least one, in bytes. Where every fourth datagram is lost, receipts
/// come late without a queue, and less than this would not carry what a squad has to say.
const LEAST: usize = 16 * 1024;
/// How much later than the soonest receipts may come.
const QUEUE: Duration = Duration::from_millis(200);
/// How many trips without a receipt mean that what was under way is lost.
const PATIENCE: u32 = 4;
/// How often that patience doubles at most.
const DOUBLINGS: u32 = 3;

/// Frames under way within one attachment.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    number: u64,
    /// When each frame without a receipt was sent and how large it is, the oldest first.
    sent: VecDeque<(Time, usize)>,
    under_way: usize,
    window: usize,
    /// The soonest receipt, and the last.
    least: Duration,
    trip: Duration,
    /// When the last receipt came, or the first frame that waits for one went.
    heard_at: Time,
    eased_at: Time,
    /// How often what was under way counted as lost.
    losses: u32,
}

impl Flow {
    pub fn new(now: Time) -> Self {
        Self {
            number: 0,
            sent: VecDeque::new(),
            under_way: 0,
            window: LEAST,
            least: Duration::MAX,
            trip: Duration::ZERO,
            heard_at: now,
            eased_at: now,
            losses: 0,
        }
    }

    /// How many bytes may still go.
    pub fn room(&self) -> usize {
        if self.sent.len() < Limits::IN_FLIGHT { self.window.saturating_sub(self.under_way) } else { 0 }
    }

    /// Numbers a frame that goes.
    pub fn send(&mut self, now: Time, bytes: usize) -> u64 {
        if self.sent.is_empty() {
            self.heard_at = now;
        }
        self.sent.push_back((now, bytes));
        self.under_way += bytes;
        self.number += 1;
        self.number
    }

    /// Everything up to `number` has arrived.
    pub fn receipt(&mut self, now: Time, number: u64) {
        self.heard_at = now;
        let first = self.number + 1 - self.sent.len() as u64;
        let count = number.saturating_add(1).saturating_sub(first).min(self.sent.len() as u64) as usize;
        let Some(&(last, _)) = count.checked_sub(1).and_then(|last| self.sent.get(last)) else { return };
        let longest = self.sent.front().map_or(Duration::ZERO, |&(first, _)| now.since(first));
        let is_used = self.under_way * 2 >= self.window;
        let bytes: usize = self.sent.drain(..count).map(|(_, bytes)| bytes).sum();
        self.under_way -= bytes;
        self.trip = now.since(last);
        self.least = self.least.min(self.trip);
        let in_time = self.least + QUEUE;
        // Frames that waited for a lost one arrive with it: the first of them are late, and the last say nothing of a queue.
        if longest <= in_time && is_used {
            let growth = (bytes as u64 * LEAST as u64 / self.window as u64) as usize;
            self.window = (self.window + growth).min(Limits::IN_FLIGHT * Limits::OFFER_BYTES);
        } else if self.trip > in_time && now >= self.eased_at + self.trip {
            (self.window, self.eased_at) = ((self.window * 3 / 4).max(LEAST), now);
        }
    }

    /// When what is under way counts as lost: the parent lost it, or its receipts. Links keep frames in order, so that one
    /// that is lost again and again delays them all: each loss doubles the patience for good, for it may have been none (a
    /// time-out backs off likewise; RFC 6298, 5.5).
    pub fn lost_at(&self) -> Option<Time> {
        let patience = Limits::RECEIPT.max(PATIENCE * self.trip);
        (!self.sent.is_empty()).then(|| self.heard_at + patience * 2u32.pow(self.losses))
    }

    /// What was under way is lost, perhaps for there was too much of it.
    pub fn forget(&mut self) {
        self.sent.clear();
        (self.under_way, self.window) = (0, LEAST);
        self.losses = (self.losses + 1).min(DOUBLINGS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Sends as much as may go, to a link that takes so many bytes in a millisecond and has such a round trip; returns the
    /// rate and the longest that a frame waited.
    fn run(bytes_per_ms: usize, round_trip: Duration) -> (usize, Duration) {
        let (mut flow, mut now) = (Flow::new(Time::ZERO), Time::ZERO);
        let (mut queue, mut arriving) = (VecDeque::new(), VecDeque::new());
        let (mut sent, mut done, mut longest) = (0, 0, Duration::ZERO);
        for _ in 0..30_000 {
            now = now + MS;
            while flow.room() > 0 {
                let bytes = flow.room().min(Limits::OFFER_BYTES);
                queue.push_back((flow.send(now, bytes), now, bytes));
            }
            sent += bytes_per_ms;
            while queue.front().is_some_and(|(_, _, bytes)| done + bytes <= sent) {
                let (number, at, bytes) = queue.pop_front().unwrap();
                done += bytes;
                longest = longest.max(now.since(at));
                arriving.push_back((now + round_trip, number));
            }
            if queue.is_empty() {
                sent = done;
            }
            while arriving.front().is_some_and(|(at, _)| now >= *at) {
                flow.receipt(now, arriving.pop_front().unwrap().1);
            }
        }
        (done / 30_000, longest)
    }

    #[test]
    fn a_slow_link_is_filled_without_a_long_queue_and_a_fast_one_to_its_rate() {
        // 256 kbit/s.
        let (rate, longest) = run(32, 400 * MS);
        assert!(rate >= 20, "{rate} bytes in a millisecond");
        assert!(longest <= Duration::from_millis(1500), "{longest:?}");
        // 800 Mbit/s.
        let (rate, _) = run(100_000, 2 * MS);
        assert!(rate >= 90_000, "{rate} bytes in a millisecond");
    }

    #[test]
    fn a_window_grows_only_as_far_as_it_is_used() {
        let (mut flow, mut now) = (Flow::new(Time::ZERO), Time::ZERO);
        let mut round = |flow: &mut Flow, bytes| {
            let number = flow.send(now, bytes);
            now = now + MS;
            flow.receipt(now, number);
        };
        // A trickle for a long time.
        (0..10_000).for_each(|_| round(&mut flow, LEAST / 4));
        assert_eq!(flow.room(), LEAST);
        round(&mut flow, LEAST);
        assert_eq!(flow.room(), 2 * LEAST);
        // Nor by what one receipt tells at last, of which the first has waited long.
        flow.send(now, LEAST);
        now = now + 2 * QUEUE;
        let number = flow.send(now, LEAST);
        flow.receipt(now + MS, number);
        assert_eq!(flow.room(), 2 * LEAST);
        // What is lost may have been too much.
        flow.send(now, LEAST);
        flow.forget();
        assert_eq!(flow.room(), LEAST);
    }

    #[test]
    fn what_gets_no_receipt_counts_as_lost() {
        let mut flow = Flow::new(Time::ZERO);
        assert_eq!(flow.lost_at(), None);
        flow.send(Time::ZERO, LEAST);
        assert_eq!(flow.room(), 0);
        assert_eq!(flow.lost_at(), Some(Time::ZERO + Limits::RECEIPT));
        flow.forget();
        assert_eq!((flow.room(), flow.lost_at()), (LEAST, None));
        // A receipt for what was forgotten, or was never sent, is none.
        flow.receipt(Time::ZERO, 9);
        assert_eq!(flow.send(Time::ZERO, 1), 2);
        flow.receipt(Time::ZERO, u64::MAX);
        assert_eq!(flow.lost_at(), None);
        // It waits longer after each loss, within bounds.
        let patience = |flow: &mut Flow| {
            flow.send(Time::ZERO, 1);
            let patience = flow.lost_at().unwrap().since(Time::ZERO);
            flow.forget();
            patience
        };
        let (second, third) = (patience(&mut flow), patience(&mut flow));
        assert_eq!((second, third), (2 * Limits::RECEIPT, 4 * Limits::RECEIPT));
        let last = (0..100).map(|_| patience(&mut flow)).max();
        assert_eq!(last, Some(8 * Limits::RECEIPT));
    }
}
