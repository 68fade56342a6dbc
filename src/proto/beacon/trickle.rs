//! When to send the next beacon: Trickle's doubling interval (RFC 6206), without its suppression.

use std::time::Duration;

use rand::RngExt;
use rand_pcg::Pcg32;

use crate::time::Time;

/// Beacons that are due at once are spread over this, so that a group that changes together does not speak together.
const SPREAD: Duration = Duration::from_millis(50);

/// One beacon loop: fast after a change, doubling up to a cap.
#[derive(Clone, Debug)]
pub struct Trickle {
    min: Duration,
    interval: Duration,
    due: Time,
}

impl Trickle {
    pub fn new(min: Duration, now: Time, rng: &mut Pcg32) -> Self {
        let mut trickle = Self { min, interval: min, due: now };
        trickle.reset(now, rng);
        trickle
    }

    pub fn due(&self) -> Time {
        self.due
    }

    /// Something that others must know has changed: out at once, then from the shortest interval again.
    pub fn reset(&mut self, now: Time, rng: &mut Pcg32) {
        self.interval = self.min;
        self.due = self.due_within(now, SPREAD, rng);
    }

    /// Something worth saying soon has changed: no later than the shortest interval.
    pub fn hasten(&mut self, now: Time, rng: &mut Pcg32) {
        let soon = self.due_within(now, self.min, rng);
        self.due = self.due.min(soon);
    }

    /// A beacon went out at `now`; the next one is due after the interval, with jitter, which then doubles up to `max`.
    pub fn sent(&mut self, now: Time, max: Duration, rng: &mut Pcg32) {
        self.interval = self.interval.min(max);
        self.due = now + self.interval.mul_f64(rng.random_range(0.75..1.0));
        self.interval *= 2;
    }

    fn due_within(&self, now: Time, within: Duration, rng: &mut Pcg32) -> Time {
        now + within.mul_f64(rng.random_range(0.0..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn doubles_up_to_its_cap_and_starts_over_on_a_change() {
        let mut rng = Pcg32::seed_from_u64(3);
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(10));
        let mut trickle = Trickle::new(min, Time::ZERO, &mut rng);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let now = trickle.due();
            trickle.sent(now, max, &mut rng);
            waits.push(trickle.due().since(now).as_secs_f64());
        }
        for (wait, cap) in waits.iter().zip([1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0, 10.0]) {
            assert!((cap * 0.75..=cap).contains(wait), "{waits:?}");
        }
        let now = trickle.due();
        trickle.reset(now, &mut rng);
        assert!(trickle.due().since(now) <= SPREAD);
    }
}
