//! Retries at every height: how often something may fail before its owner does something else, and how long to wait.

use std::collections::VecDeque;
use std::time::Duration;

use rand::RngExt;

use crate::time::Time;

/// A bounded number of failures of a subsystem within a sliding window (OTP's restart intensity).
#[derive(Clone, Debug)]
pub struct RestartBudget {
    granted: usize,
    window: Duration,
    failures: VecDeque<Time>,
}

/// What a failure leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Restart with the state that was kept.
    Warm,
    /// Restart from nothing: the kept state may be what failed.
    Cold,
    /// The budget is spent.
    Escalate,
}

impl RestartBudget {
    pub fn new(granted: usize, window: Duration) -> Self {
        Self { granted, window, failures: VecDeque::new() }
    }

    /// Books a failure at `now`: the first within the window is warm, further ones cold, one too many escalates.
    pub fn fail(&mut self, now: Time) -> Verdict {
        while self.failures.front().is_some_and(|&at| now.since(at) > self.window) {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        match self.failures.len() {
            1 => Verdict::Warm,
            n if n <= self.granted => Verdict::Cold,
            _ => Verdict::Escalate,
        }
    }

    /// Failures within the window, as last booked.
    pub fn recent(&self) -> usize {
        self.failures.len()
    }
}

/// Exponential backoff: min(initial × multiplier^attempt, max), with jitter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    pub initial: Duration,
    pub multiplier: f64,
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), multiplier: 2.0, max: Duration::from_secs(60) }
    }
}

impl Backoff {
    /// The wait before attempt `attempt` (0 = the first retry), without jitter.
    pub fn delay(&self, attempt: u32) -> Duration {
        let seconds = self.initial.as_secs_f64() * self.multiplier.powi(attempt.min(64) as i32);
        Duration::from_secs_f64(seconds.min(self.max.as_secs_f64()))
    }

    /// The wait with jitter: three quarters of it for certain, up to a quarter more than it at random.
    pub fn jittered(&self, attempt: u32, rng: &mut rand_pcg::Pcg32) -> Duration {
        self.delay(attempt).mul_f64(rng.random_range(0.75..1.25))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn five_are_granted_the_sixth_escalates() {
        let mut budget = RestartBudget::new(5, Duration::from_secs(30));
        let verdicts: Vec<_> = (0..6).map(|i| budget.fail(at(i))).collect();
        use Verdict::*;
        assert_eq!(verdicts, [Warm, Cold, Cold, Cold, Cold, Escalate]);
    }

    #[test]
    fn the_window_forgets() {
        let mut budget = RestartBudget::new(5, Duration::from_secs(30));
        for i in 0..100 {
            assert_eq!(budget.fail(at(i * 31)), Verdict::Warm);
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_cap() {
        let backoff = Backoff::default();
        let seconds: Vec<_> = (0..8).map(|n| backoff.delay(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff.delay(u32::MAX), Duration::from_secs(60));
        let mut rng = rand_pcg::Pcg32::seed_from_u64(1);
        for _ in 0..100 {
            let wait = backoff.jittered(1, &mut rng).as_secs_f64();
            assert!((1.5..2.5).contains(&wait));
        }
    }
}
