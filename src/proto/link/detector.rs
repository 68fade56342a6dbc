//! When a silent link counts as lost: heartbeats, and after one that is missing, probes.

use std::time::Duration;

use crate::proto::link::Beat;
use crate::time::Time;

/// How far beyond a beat's interval silence may go before the first probe.
const PATIENCE: f64 = 1.25;
/// How often a silent peer is probed.
const PROBE: Duration = Duration::from_millis(100);
/// How much of the measured loss the last beat is.
const GAIN: f64 = 1.0 / 16.0;
/// How late a beat may be, and how many may be missing before one: a peer that is further off counts anew, or was cut off.
const REORDERED: u32 = 16;
/// Probes without an answer after which the link is lost: at 25 % loss each way all fail once in 4,000 times.
const PROBES: u32 = 10;

/// What the detector wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    Send(Beat),
    Lost,
}

/// Watches one link.
#[derive(Clone, Debug)]
pub struct Detector {
    interval: Duration,
    heard: Time,
    beat_at: Time,
    probes: u32,
    probed: Time,
    sequence: u32,
    echo: u32,
    /// The share of the peer's beats that did not arrive, smoothed.
    loss: f64,
}

impl Detector {
    pub fn new(now: Time, interval: Duration) -> Self {
        Self { interval, heard: now, beat_at: now, probes: 0, probed: now, sequence: 0, echo: 0, loss: 0.0 }
    }

    /// Beats so often from now on.
    pub fn keep_pace(&mut self, now: Time, interval: Duration) {
        if interval != self.interval {
            *self = Self { interval, beat_at: now, ..self.clone() };
            self.heard(now);
        }
    }

    /// Anything at all from the peer is a sign of life.
    pub fn heard(&mut self, now: Time) {
        self.heard = now;
        self.probes = 0;
    }

    /// A heartbeat; a probe is answered at once.
    pub fn beat(&mut self, now: Time, beat: Beat) -> Option<Beat> {
        self.heard(now);
        self.measure(beat.sequence);
        beat.probe.then(|| self.next(false))
    }

    /// Beats are numbered: what is missing between two was lost. Who does not watch the link numbers none.
    fn measure(&mut self, sequence: u32) {
        let known = self.echo;
        self.echo = known.max(sequence);
        if sequence > known {
            let missing = if known == 0 { 0 } else { (sequence - known - 1).min(REORDERED) };
            (0..missing).for_each(|_| self.loss += (1.0 - self.loss) * GAIN);
            self.loss -= self.loss * GAIN;
        } else if sequence > 0 && known - sequence > REORDERED {
            self.echo = sequence;
        }
    }

    /// The share of beats that arrive, 0..1; `None` before the first.
    pub fn quality(&self) -> Option<f64> {
        (self.echo > 0).then_some(1.0 - self.loss)
    }

    pub fn deadline(&self) -> Time {
        self.beat_at.min(self.probe_at())
    }

    pub fn tick(&mut self, now: Time) -> Option<Watch> {
        if now >= self.probe_at() {
            if self.probes >= PROBES {
                return Some(Watch::Lost);
            }
            self.probes += 1;
            self.probed = now;
            self.beat_at = now + self.interval;
            return Some(Watch::Send(self.next(true)));
        }
        if now >= self.beat_at {
            self.beat_at = now + self.interval;
            return Some(Watch::Send(self.next(false)));
        }
        None
    }

    fn probe_at(&self) -> Time {
        // Counted from the last probe in fact: a node that lags itself does not spend them all at once.
        match self.probes {
            0 => self.heard + self.interval.mul_f64(PATIENCE),
            _ => self.probed + PROBE,
        }
    }

    fn next(&mut self, probe: bool) -> Beat {
        self.sequence = self.sequence.wrapping_add(1);
        Beat { sequence: self.sequence, echo: self.echo, probe }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Runs a detector against a peer that is silent; returns when it is lost and how many beats went out.
    fn run_silent(mut detector: Detector) -> (Time, usize) {
        let mut sent = 0;
        loop {
            let now = detector.deadline();
            match detector.tick(now) {
                Some(Watch::Lost) => return (now, sent),
                Some(Watch::Send(_)) => sent += 1,
                None => panic!("a deadline without work"),
            }
        }
    }

    #[test]
    fn a_silent_peer_is_lost_after_probes() {
        let (lost, sent) = run_silent(Detector::new(Time::ZERO, SECOND));
        assert_eq!(lost, Time::ZERO + Duration::from_millis(2250));
        assert!(sent >= PROBES as usize);
    }

    #[test]
    fn the_share_of_beats_that_arrive_is_measured() {
        let mut detector = Detector::new(Time::ZERO, SECOND);
        let hear = |detector: &mut Detector, sequences: &mut dyn Iterator<Item = u32>| {
            for sequence in sequences {
                let answer = detector.beat(Time::ZERO, Beat { sequence, echo: 0, probe: false });
                assert_eq!(answer, None);
            }
            detector.quality().unwrap()
        };
        assert_eq!(detector.quality(), None);
        assert_eq!(hear(&mut detector, &mut (1..100)), 1.0);
        let quality = hear(&mut detector, &mut (100..500).filter(|n| n % 4 != 0));
        assert!((0.65..0.85).contains(&quality), "{quality}");
        // A peer that has restarted counts from 1: nothing of that was lost.
        let quality = hear(&mut detector, &mut (1..200));
        assert!(quality > 0.99, "{quality}");
    }

    #[test]
    fn one_answer_is_enough() {
        let mut detector = Detector::new(Time::ZERO, SECOND);
        let mut now = Time::ZERO;
        while now < Time::ZERO + SECOND * 60 {
            now = detector.deadline();
            match detector.tick(now) {
                Some(Watch::Send(Beat { probe: true, sequence, .. })) => {
                    assert_eq!(detector.beat(now, Beat { sequence, echo: 0, probe: false }), None);
                }
                Some(Watch::Lost) => panic!("lost though it answers"),
                _ => {}
            }
        }
        assert!(detector.beat(now, Beat { sequence: 1, echo: 0, probe: true }).is_some());
    }
}
