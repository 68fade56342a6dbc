//! Samples that are bound to another account than the root's, on their way to its owner: raw, through the whole tree, with
//! nobody's receipts to say how much the links take.
//!
//! When roots change, everybody has some at once, and together they would fill slow links until the heartbeats drown. So
//! each origin begins by chance within a while, and waits twice as long each time when no mark comes, as TCP does (RFC
//! 6298); and each node lets no more of them under way over a link than a window, until marks have come back.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::RngExt;

use crate::id::NodeId;
use crate::time::Time;

/// One offer in bytes, and what may be under way over a link: 256 kbit/s carry it in a second.
const OFFER: usize = 4 * 1024;
const WINDOW: usize = 8 * OFFER;
/// How long an offer waits for a mark before the next one, at first and at most.
const REST: Duration = Duration::from_secs(5);
const MOST: Duration = Duration::from_secs(20);

/// Own strays: when they are offered next, and how long they rest then.
#[derive(Clone, Debug)]
pub(super) struct Strays {
    /// While there are any.
    pub due: Option<Time>,
    rest: Duration,
}

impl Default for Strays {
    fn default() -> Self {
        Self { due: None, rest: REST }
    }
}

impl Strays {
    /// There are some: says when the next offer goes, the first one within the first rest.
    pub fn begin(&mut self, now: Time, rng: &mut impl RngExt) -> Time {
        *self.due.get_or_insert_with(|| now + REST.mul_f64(rng.random_range(0.0..1.0)))
    }

    /// An offer goes; returns how many bytes it may have.
    pub fn offer(&mut self, now: Time) -> usize {
        self.due = Some(now + self.rest);
        self.rest = (self.rest * 2).min(MOST);
        OFFER
    }

    /// A mark has settled some: more may go, at once.
    pub fn settled(&mut self, now: Time) {
        *self = Self { due: Some(now), ..Self::default() };
    }
}

/// Strays of anybody that have passed here, by the link they went over, until their marks come back or are overdue.
#[derive(Debug, Default)]
pub(super) struct Passing(BTreeMap<NodeId, VecDeque<Passed>>);

#[derive(Debug)]
struct Passed {
    origin: NodeId,
    overdue: Time,
    bytes: usize,
}

impl Passing {
    /// Whether there is room for one more over that link; if so it counts as under way.
    pub fn passes(&mut self, now: Time, way: NodeId, origin: NodeId, bytes: usize) -> bool {
        let passed = self.0.entry(way).or_default();
        passed.retain(|one| one.overdue > now && one.origin != origin);
        let under_way: usize = passed.iter().map(|one| one.bytes).sum();
        let fits = under_way + bytes <= WINDOW;
        if fits {
            passed.push_back(Passed { origin, overdue: now + REST, bytes });
        }
        fits
    }

    /// Marks for an origin have come back over that link.
    pub fn back(&mut self, way: &NodeId, origin: &NodeId) {
        if let Some(passed) = self.0.get_mut(way) {
            passed.retain(|one| one.origin != *origin);
        }
    }

    /// Forgets links that are gone.
    pub fn keep(&mut self, is_link: impl Fn(&NodeId) -> bool) {
        self.0.retain(|way, _| is_link(way));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    #[test]
    fn offers_become_rare_without_marks() {
        let (mut strays, mut now, mut rests) = (Strays::default(), Time::ZERO, Vec::new());
        for _ in 0..6 {
            strays.offer(now);
            let due = strays.due.unwrap();
            rests.push(due.since(now).as_secs());
            now = due;
        }
        assert_eq!(rests, [5, 10, 20, 20, 20, 20]);
        strays.settled(now);
        assert_eq!(strays.due, Some(now));
        strays.offer(now);
        assert_eq!(strays.due, Some(now + REST));
    }

    #[test]
    fn a_window_is_under_way_over_a_link_until_marks_come_back() {
        let mut passing = Passing::default();
        let passes = |passing: &mut Passing, now, origin| passing.passes(now, id(9), id(origin), OFFER);
        assert!((1..=8).all(|origin| passes(&mut passing, Time::ZERO, origin)));
        assert!(!passes(&mut passing, Time::ZERO, 9));
        // What is offered again takes the place of what it was before.
        assert!(passes(&mut passing, Time::ZERO, 8));
        assert!(passing.passes(Time::ZERO, id(8), id(9), OFFER), "another link has its own");
        passing.back(&id(9), &id(2));
        assert!(passes(&mut passing, Time::ZERO, 9));
        assert!(!passes(&mut passing, Time::ZERO, 10));
        assert!(passes(&mut passing, Time::ZERO + REST, 10), "the others are overdue");
    }
}
