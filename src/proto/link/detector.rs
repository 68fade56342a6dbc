//! When a silent link counts as lost: heartbeats, and after one that is late, a series of probes.
//!
//! How late is late follows the spread of the beats, as in an accrual detector (Hayashibara and others, 2004); how many
//! probes must fail follows the measured loss; how long their answers may take follows the measured round trip, as TCP's
//! retransmission timer does (RFC 6298). Who lags itself gives others more time (Lifeguard; Dadgar and others, 2018).
//! A peer whose probes show that it hears none of the answers is lost as well: the link is dead in one direction.

use std::time::Duration;

use crate::proto::link::Beat;
use crate::time::Time;

/// How far beyond a beat's interval silence may go at least before the first probe, as a fraction of the interval.
const PATIENCE: u32 = 10;
/// Deviations of the beats' arrival that are waited for as well.
const DEVIATIONS: u32 = 4;
/// Between probes, as a fraction of the interval, and its bounds.
const SPACING: u32 = 25;
const PROBE_AT_LEAST: Duration = Duration::from_millis(20);
const PROBE_AT_MOST: Duration = Duration::from_millis(100);
/// A beat goes out with those of other links if it is due within this fraction of its interval.
const TOGETHER: u32 = 10;
/// However often anybody wants them, beats are this far apart at least.
const FASTEST: Duration = Duration::from_millis(50);
/// How likely a whole series of probes may fail though the peer lives, at a beat a second and the less the more beats
/// there are: a thousand nodes that lose every fourth beat begin some 40 million series in a day.
const FALSE_ALARM: f64 = 1e-8;
/// The least and the greatest loss reckoned with.
const LEAST_LOSS: f64 = 0.05;
const MOST_LOSS: f64 = 0.5;
/// The loss reckoned with on a link that is not known yet; it fades with every beat.
const UNKNOWN_LOSS: f64 = 0.25;
/// How much of a measured loss, deviation or round trip the last one is.
const GAIN: f64 = 1.0 / SMOOTH as f64;
const SMOOTH: u32 = 16;
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

/// Probes that are answered, but whose sender shows no sign of having heard.
#[derive(Clone, Copy, Debug)]
struct Vain {
    first: u32,
    since: Time,
    answers: u32,
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
    /// How often this side wants beats, how often the peer does, and how often they go: the less of both.
    wanted: Duration,
    theirs: Duration,
    interval: Duration,
    heard: Time,
    beat_at: Time,
    series: Option<Series>,
    vain: Option<Vain>,
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
            wanted: interval,
            theirs: interval,
            interval,
            heard: now,
            beat_at: now,
            series: None,
            vain: None,
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

    /// This side wants beats so often from now on.
    pub fn keep_pace(&mut self, now: Time, wanted: Duration) {
        let wanted = wanted.max(FASTEST);
        if wanted != self.wanted {
            // The peer is told at once.
            (self.wanted, self.beat_at) = (wanted, now);
            self.agree(now);
        }
    }

    fn agree(&mut self, now: Time) {
        let interval = self.wanted.min(self.theirs);
        if interval != self.interval {
            (self.interval, self.beat_at, self.beaten) = (interval, now, None);
            if self.series.is_none() {
                self.heard = now;
            }
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
        self.theirs = Duration::from_millis(beat.pace.into()).max(FASTEST);
        self.agree(now);
        if let Some((_, sent)) = self.probe.take_if(|(sequence, _)| *sequence == beat.echo) {
            self.measure_trip(now.since(sent));
        }
        self.measure(now, beat);
        self.vain = self.vain.filter(|vain| beat.echo < vain.first);
        beat.probe.then(|| self.answer(now))
    }

    fn answer(&mut self, now: Time) -> Beat {
        let beat = self.next(false);
        let under_way = self.slowest_trip();
        let vain = self.vain.get_or_insert(Vain { first: beat.sequence, since: now, answers: 0 });
        // What the first answer did is not seen before a round trip.
        vain.answers += u32::from(now > vain.since + under_way);
        beat
    }

    /// Whether the peer is heard and hears nothing: so many answers to its probes are lost only if all are.
    pub fn is_unheard(&self) -> bool {
        self.vain.is_some_and(|vain| vain.answers >= tries(self.reckoned_loss(), self.false_alarm()))
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
            let series = self.series.unwrap_or(Series { began: now, sent: 0, last: now, again: false });
            if series.sent >= self.probes() {
                return Some(Watch::Lost);
            }
            self.series = Some(Series { sent: series.sent + 1, last: now, ..series });
            self.beat_at = now + self.interval;
            return Some(Watch::Send(self.probe(now)));
        }
        if now + self.interval / TOGETHER >= self.beat_at {
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
        let spacing = (self.interval / SPACING).clamp(PROBE_AT_LEAST, PROBE_AT_MOST) + lag;
        match self.series {
            None => self.heard + self.interval + (self.interval / PATIENCE).max(self.deviation * DEVIATIONS) + lag,
            // The last one's answer may take as long as answers take.
            Some(series) if series.sent >= self.probes() => series.last + spacing.max(self.slowest_trip() + lag),
            // Counted from the last probe in fact: a node that lags itself does not spend them all at once.
            Some(series) => series.last + spacing,
        }
    }

    fn slowest_trip(&self) -> Duration {
        let (mean, deviation) = self.trip.unwrap_or((UNKNOWN_TRIP, Duration::ZERO));
        mean + deviation * DEVIATIONS
    }

    fn reckoned_loss(&self) -> f64 {
        self.loss.max(self.doubt).clamp(LEAST_LOSS, MOST_LOSS)
    }

    fn false_alarm(&self) -> f64 {
        FALSE_ALARM * self.interval.as_secs_f64().min(1.0)
    }

    /// How many probes must fail; one does if it is lost or its answer is.
    fn probes(&self) -> u32 {
        let arrives = 1.0 - self.reckoned_loss();
        tries(1.0 - arrives * arrives, self.false_alarm())
    }

    fn next(&mut self, probe: bool) -> Beat {
        self.sequence = self.sequence.wrapping_add(1);
        Beat { sequence: self.sequence, echo: self.echo, probe, pace: self.wanted.as_millis() as u32 }
    }
}

/// How many tries must fail, so that all of them fail by chance only as often as is borne.
fn tries(fails: f64, borne: f64) -> u32 {
    (borne.ln() / fails.ln()).ceil() as u32
}

fn smooth(value: &mut Duration, last: Duration) {
    *value = (*value * (SMOOTH - 1) + last) / SMOOTH;
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
                detector.beat(now + trip, Beat { sequence, echo: probe.sequence, probe: false, pace: 1000 });
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
                let answer = detector.beat(Time::ZERO, Beat { sequence, echo: 0, probe: false, pace: 1000 });
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
                    assert_eq!(detector.beat(now, Beat { sequence, echo: 0, probe: false, pace: 1000 }), None);
                }
                Some(Watch::Lost) => panic!("lost though it answers"),
                _ => {}
            }
        }
        assert!(detector.beat(now, Beat { sequence: 1, echo: 0, probe: true, pace: 1000 }).is_some());
    }
}
