//! When a silent link counts as lost: heartbeats, and after one that is late, a series of probes.
//!
//! How late is late follows the spread of the beats, as in an accrual detector (Hayashibara and others, 2004); how many
//! probes must fail follows the measured loss; how long their answers may take follows the measured round trip, as TCP's
//! retransmission timer does (RFC 6298). Who lags itself gives others more time (Lifeguard; Dadgar and others, 2018).

use std::time::Duration;

use crate::proto::link::Beat;
use crate::time::Time;

/// How far beyond a beat's interval silence may go at least before the first probe, as a share of the interval.
const PATIENCE: f64 = 0.1;
/// Deviations of the beats' arrival that are waited for as well.
const DEVIATIONS: u32 = 4;
/// Between probes, as a share of the interval, and its bounds.
const SPACING: f64 = 0.04;
const PROBE_AT_LEAST: Duration = Duration::from_millis(20);
const PROBE_AT_MOST: Duration = Duration::from_millis(100);
/// How likely a whole series of probes may fail though the peer lives: a thousand nodes that lose every fourth beat
/// begin some 40 million series in a day.
const FALSE_ALARM: f64 = 1e-8;
/// The least and the greatest loss reckoned with.
const LEAST_LOSS: f64 = 0.05;
const MOST_LOSS: f64 = 0.5;
/// The loss reckoned with on a link that is not known yet; it fades with every beat.
const UNKNOWN_LOSS: f64 = 0.25;
/// How much of a measured loss, deviation or round trip the last one is.
const GAIN: f64 = 1.0 / 16.0;
/// The round trip of a link that is not known yet.
const UNKNOWN_TRIP: Duration = Duration::from_millis(500);
/// How late a beat may be, and how many may be missing before one: a peer that is further off counts anew, or was cut off.
const REORDERED: u32 = 16;
/// How much longer than it lagged itself a node waits for others.
const OWN_LAG: u32 = 4;

/// What the detector wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    Send(Beat),
    Lost,
}

/// Probes under way.
#[derive(Clone, Copy, Debug)]
struct Series {
    began: Time,
    sent: u32,
    last: Time,
    /// Whether it is the second.
    again: bool,
}

/// Watches one link.
#[derive(Clone, Debug)]
pub struct Detector {
    interval: Duration,
    heard: Time,
    beat_at: Time,
    series: Option<Series>,
    sequence: u32,
    echo: u32,
    /// When the last beat came.
    beaten: Option<Time>,
    /// The share of the peer's beats that did not arrive, smoothed.
    loss: f64,
    /// What the loss may be as far as is known.
    doubt: f64,
    /// How far apart beats are from their interval, smoothed.
    deviation: Duration,
    /// The last probe, until it is answered.
    probe: Option<(u32, Time)>,
    /// The round trip and its deviation, smoothed.
    trip: Option<(Duration, Duration)>,
}

impl Detector {
    pub fn new(now: Time, interval: Duration) -> Self {
        Self {
            interval,
            heard: now,
            beat_at: now,
            series: None,
            sequence: 0,
            echo: 0,
            beaten: None,
            loss: 0.0,
            doubt: UNKNOWN_LOSS,
            deviation: Duration::ZERO,
            probe: None,
            trip: None,
        }
    }

    /// Beats so often from now on.
    pub fn keep_pace(&mut self, now: Time, interval: Duration) {
        if interval != self.interval {
            (self.interval, self.beat_at, self.beaten) = (interval, now, None);
            self.heard(now);
        }
    }

    /// Anything at all from the peer is a sign of life.
    pub fn heard(&mut self, now: Time) {
        self.heard = now;
        self.series = None;
    }

    pub fn was_heard_since(&self, then: Time) -> bool {
        self.heard >= then
    }

    /// Since when the peer is probed in vain, if it is.
    pub fn probing_since(&self) -> Option<Time> {
        self.series.map(|series| series.began)
    }

    /// Whether the first probe of a first series has just gone out.
    pub fn has_begun(&self) -> bool {
        self.series.is_some_and(|series| series.sent == 1 && !series.again)
    }

    /// Begins a second series, unless this was it; says whether it did.
    pub fn probe_again(&mut self, now: Time) -> bool {
        let first = self.series.take_if(|series| !series.again);
        if let Some(series) = first {
            self.series = Some(Series { sent: 0, last: now, again: true, ..series });
        }
        first.is_some()
    }

    /// A heartbeat; a probe is answered at once.
    pub fn beat(&mut self, now: Time, beat: Beat) -> Option<Beat> {
        self.heard(now);
        if let Some((_, sent)) = self.probe.take_if(|(sequence, _)| *sequence == beat.echo) {
            self.measure_trip(now.since(sent));
        }
        self.measure(now, beat);
        beat.probe.then(|| self.next(false))
    }

    /// Beats are numbered: what is missing between two was lost. Who does not watch the link numbers none.
    fn measure(&mut self, now: Time, Beat { sequence, probe, .. }: Beat) {
        let known = self.echo;
        self.echo = known.max(sequence);
        if sequence > known {
            let missing = if known == 0 { 0 } else { (sequence - known - 1).min(REORDERED) };
            (0..missing).for_each(|_| self.loss += (1.0 - self.loss) * GAIN);
            self.loss -= self.loss * GAIN;
            self.doubt -= self.doubt * GAIN;
            let before = self.beaten.replace(now).filter(|_| missing == 0 && !probe);
            if let Some(apart) = before.map(|before| now.since(before)).filter(|apart| *apart < 2 * self.interval) {
                smooth(&mut self.deviation, apart.abs_diff(self.interval));
            }
        } else if sequence > 0 && known - sequence > REORDERED {
            self.echo = sequence;
        }
    }

    fn measure_trip(&mut self, trip: Duration) {
        match &mut self.trip {
            Some((mean, deviation)) => {
                smooth(deviation, trip.abs_diff(*mean));
                smooth(mean, trip);
            }
            None => self.trip = Some((trip, trip / 2)),
        }
    }

    /// The share of beats that arrive, 0..1; `None` before the first.
    pub fn quality(&self) -> Option<f64> {
        (self.echo > 0).then_some(1.0 - self.loss)
    }

    /// When it next has something to do, if this node lags by so much.
    pub fn deadline(&self, lag: Duration) -> Time {
        self.beat_at.min(self.probe_at(lag))
    }

    pub fn tick(&mut self, now: Time, lag: Duration) -> Option<Watch> {
        if now >= self.probe_at(lag) {
            let series = self.series.get_or_insert(Series { began: now, sent: 0, last: now, again: false });
            if series.sent >= probes(self.loss.max(self.doubt)) {
                return Some(Watch::Lost);
            }
            (series.sent, series.last) = (series.sent + 1, now);
            self.beat_at = now + self.interval;
            return Some(Watch::Send(self.probe(now)));
        }
        if now >= self.beat_at {
            self.beat_at = now + self.interval;
            // The first beats measure the round trip.
            return Some(Watch::Send(if self.trip.is_none() { self.probe(now) } else { self.next(false) }));
        }
        None
    }

    /// One probe beside the series, to see whether anybody answers.
    pub fn probe(&mut self, now: Time) -> Beat {
        let beat = self.next(true);
        self.probe = Some((beat.sequence, now));
        beat
    }

    fn probe_at(&self, lag: Duration) -> Time {
        let lag = lag * OWN_LAG;
        let spacing = self.interval.mul_f64(SPACING).clamp(PROBE_AT_LEAST, PROBE_AT_MOST) + lag;
        match self.series {
            None => self.heard + self.interval + self.interval.mul_f64(PATIENCE).max(self.deviation * DEVIATIONS) + lag,
            // The last one's answer may take as long as answers take.
            Some(series) if series.sent >= probes(self.loss.max(self.doubt)) => {
                let (mean, deviation) = self.trip.unwrap_or((UNKNOWN_TRIP, Duration::ZERO));
                series.last + spacing.max(mean + deviation * DEVIATIONS + lag)
            }
            // Counted from the last probe in fact: a node that lags itself does not spend them all at once.
            Some(series) => series.last + spacing,
        }
    }

    fn next(&mut self, probe: bool) -> Beat {
        self.sequence = self.sequence.wrapping_add(1);
        Beat { sequence: self.sequence, echo: self.echo, probe }
    }
}

/// How many probes must fail, so that all of them fail by chance only as often as is borne.
fn probes(loss: f64) -> u32 {
    let loss = loss.clamp(LEAST_LOSS, MOST_LOSS);
    let fails = 1.0 - (1.0 - loss) * (1.0 - loss);
    (FALSE_ALARM.ln() / fails.ln()).ceil() as u32
}

fn smooth(value: &mut Duration, last: Duration) {
    *value = value.mul_f64(1.0 - GAIN) + last.mul_f64(GAIN);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Runs a detector against a peer that is silent; returns when it is lost and how many beats went out.
    fn run_silent(mut detector: Detector) -> (Time, usize) {
        let mut sent = 0;
        loop {
            let now = detector.deadline(Duration::ZERO);
            match detector.tick(now, Duration::ZERO) {
                Some(Watch::Lost) => return (now, sent),
                Some(Watch::Send(_)) => sent += 1,
                None => panic!("a deadline without work"),
            }
        }
    }

    /// A detector of a peer that beats every second, with this round trip, and what of its beats does not arrive.
    fn accustomed(trip: Duration, lost: impl Fn(u32) -> bool) -> (Time, Detector) {
        let mut detector = Detector::new(Time::ZERO, SECOND);
        let mut now = Time::ZERO;
        for sequence in 1..200 {
            now = Time::ZERO + SECOND * sequence;
            if !lost(sequence) {
                let probe = detector.probe(now);
                detector.beat(now + trip, Beat { sequence, echo: probe.sequence, probe: false });
            }
        }
        detector.beat_at = now + SECOND;
        (now + trip, detector)
    }

    #[test]
    fn a_silent_peer_is_lost_soon_on_a_good_link_and_later_on_a_bad_one() {
        let millis = Duration::from_millis;
        let (from, detector) = accustomed(millis(2), |_| false);
        let (lost, sent) = run_silent(detector);
        assert!(lost.since(from) <= millis(1600), "{:?}", lost.since(from));
        assert!(sent >= 8);
        let (from, detector) = accustomed(millis(400), |n| n % 4 == 0);
        let (lost, sent) = run_silent(detector);
        assert!((millis(2000)..millis(3000)).contains(&lost.since(from)), "{:?}", lost.since(from));
        assert!(sent >= 22, "{sent}");
        // Of a peer that was never heard nothing good is assumed.
        let (lost, _) = run_silent(Detector::new(Time::ZERO, SECOND));
        assert!(lost > Time::ZERO + millis(2400), "{lost:?}");
    }

    #[test]
    fn who_lags_gives_others_time() {
        let (_, detector) = accustomed(Duration::from_millis(2), |_| false);
        let lag = Duration::from_millis(100);
        assert!(detector.probe_at(lag) >= detector.probe_at(Duration::ZERO) + OWN_LAG * lag);
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
            now = detector.deadline(Duration::ZERO);
            match detector.tick(now, Duration::ZERO) {
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
