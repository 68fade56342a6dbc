//! When a silent link counts as lost: heartbeats, and after one that is late, probes until the silence is no chance.
//!
//! How late is late follows the spread of the beats. Then suspicion accrues (Hayashibara and others, 2004): every beat that
//! is missing and every probe without an answer makes it less likely by the measured loss that the peer lives; how long an
//! answer may take follows the measured round trip, as TCP's retransmission timer does (RFC 6298). Who lags itself gives
//! others more time (Lifeguard; Dadgar and others, 2018).

use std::collections::VecDeque;
use std::time::Duration;

use crate::proto::link::{Beat, CloseReason, Purpose};
use crate::time::Time;

/// How far beyond a beat's interval silence may go at least before the first probe, as a fraction of the interval.
const PATIENCE: u32 = 10;
/// How much longer than beats are late on average is waited for as well, and than round trips deviate.
const LATENESS: u32 = 6;
const DEVIATIONS: u32 = 4;
/// Between probes, as a fraction of the interval, and its bounds.
const SPACING: u32 = 25;
const PROBE_AT_LEAST: Duration = Duration::from_millis(20);
const PROBE_AT_MOST: Duration = Duration::from_millis(100);
/// A beat goes out with those of other links if it is due within this fraction of its interval.
const TOGETHER: u32 = 10;
/// However often anybody wants them, beats are this far apart at least.
const FASTEST: Duration = Duration::from_millis(50);
/// How likely it may be that a peer lives and nothing of it arrives, at a beat a second and the less the more beats there
/// are: a thousand nodes that lose every fourth beat begin some 40 million series in a day.
const FALSE_ALARM: f64 = 1e-8;
/// The least and the greatest loss reckoned with.
const LEAST_LOSS: f64 = 0.05;
const MOST_LOSS: f64 = 0.5;
/// The loss reckoned with on a link that is not known yet.
const UNKNOWN_LOSS: f64 = 0.25;
/// The lateness reckoned with on a link that is not known yet.
const UNKNOWN_LATENESS: Duration = Duration::from_millis(50);
/// How many beats the loss that is told, a lateness or a round trip is smoothed over.
const SMOOTH: u32 = 16;
/// How many the loss reckoned with is: over fewer it comes out far too low too often, and probes are taken for more than
/// they say.
const RECKONED: u32 = 64;
/// As how many beats the loss of a link that is not known yet counts.
const UNKNOWN_BEATS: u32 = 8;
/// How many round trips are measured at first.
const FIRST_TRIPS: u32 = 8;
/// Which share of the later beats measure it.
const MEASURED: u32 = 16;
/// The round trip of a link that is not known yet.
pub const UNKNOWN_TRIP: Duration = Duration::from_millis(500);
/// How many later beats may overtake one before it counts as lost.
const OVERTAKEN: u32 = 8;
/// How far off a peer's numbers may be: further ahead it was cut off, further behind it counts anew.
const ASTRAY: u32 = 16;
/// How long a probe may be under way that measures the round trip.
const SLOWEST: Duration = Duration::from_secs(5);
/// Longer than this two beats in a row are not apart because of the link, unless beats are far apart themselves.
const APART: Duration = Duration::from_millis(500);
/// Every so many probes another link is tried, to see whether the fault is this node's.
const WONDER: u32 = 4;
/// How much longer than it lagged itself a node waits for others.
const OWN_LAG: u32 = 4;
/// However much is missing, a peer may be silent for so long: processes stall.
const STALL: Duration = Duration::from_millis(300);
/// How much less likely than a silence it must be that a peer hears this node, to give it up: it gives up first, if it can
/// say so. And how unlikely it must have been before the peer fell silent, to blame the way to it.
const DEAF: f64 = 1.5;
const BLAMED: f64 = 0.5;
/// Own beats that the peer is not known to have heard, as far as they are counted: more are lost by no chance.
const UNHEARD: usize = 64;

/// What the detector wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    Send(Beat),
    /// The peer is silent for too long, and perhaps did not hear this node before.
    Lost(CloseReason),
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
    sequence: u32,
    echo: u32,
    /// Which of the beats up to the last arrived, the last in the lowest bit.
    arrived: u32,
    /// When the last beat came.
    beaten: Option<Time>,
    /// The share of the peer's beats that did not arrive, smoothed: as it was lately, and what is reckoned with, from how
    /// many beats.
    loss: f64,
    reckoned: f64,
    judged: u32,
    /// How much further apart than their interval beats come, smoothed. Some go early, with those of other links.
    lateness: Duration,
    /// How far beyond a beat's interval silence may go before the first probe; it follows from both.
    patience: Duration,
    /// A probe that measures the round trip, until it is answered.
    probe: Option<(u32, Time)>,
    /// When the own beats went that the peer is not known to have heard, when it last told what it has, and since when they
    /// are too many.
    unheard: VecDeque<Time>,
    told_at: Time,
    deaf_since: Option<Time>,
    /// The round trip and its deviation, smoothed, and how many were measured.
    trip: Option<(Duration, Duration)>,
    trips: u32,
}

impl Detector {
    pub fn new(now: Time, interval: Duration) -> Self {
        let mut new = Self {
            wanted: interval,
            theirs: interval,
            interval,
            heard: now,
            beat_at: now,
            series: None,
            sequence: 0,
            echo: 0,
            arrived: 0,
            beaten: None,
            loss: 0.0,
            reckoned: UNKNOWN_LOSS,
            judged: UNKNOWN_BEATS,
            lateness: UNKNOWN_LATENESS,
            patience: Duration::ZERO,
            probe: None,
            unheard: VecDeque::new(),
            told_at: now,
            deaf_since: None,
            trip: None,
            trips: 0,
        };
        new.adapt();
        new
    }

    fn adapt(&mut self) {
        self.patience = (self.interval / PATIENCE).max(self.lateness * LATENESS);
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
            self.adapt();
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

    /// This node stood still for so long: that nothing was heard meanwhile says nothing of the peer, nor of the way to it.
    pub fn excuse(&mut self, now: Time, still: Duration) {
        self.heard = now.min(self.heard + still);
        if let Some(series) = &mut self.series {
            (series.began, series.last) = (series.began + still, series.last + still);
        }
        if let Some((_, sent)) = &mut self.probe {
            *sent = now.min(*sent + still);
        }
        self.unheard.iter_mut().for_each(|sent| *sent = now.min(*sent + still));
    }

    pub fn was_heard_since(&self, then: Time) -> bool {
        self.heard >= then
    }

    /// Since when the peer is probed in vain, if it is.
    pub fn probing_since(&self) -> Option<Time> {
        self.series.map(|series| series.began)
    }

    /// Whether it is time to see whether others are heard.
    pub fn is_wondering(&self) -> bool {
        self.series.is_some_and(|series| series.sent % WONDER == 1)
    }

    /// Begins a second series, unless this was it; says whether it did.
    pub fn probe_again(&mut self, now: Time) -> bool {
        let first = self.series.is_some_and(|series| !series.again);
        if first {
            self.series = Some(Series { began: now, sent: 0, last: now, again: true });
        }
        first
    }

    /// A heartbeat; a probe is answered at once.
    pub fn beat(&mut self, now: Time, beat: Beat) -> Option<Beat> {
        self.heard(now);
        self.theirs = Duration::from_millis(beat.pace.into()).max(FASTEST);
        self.agree(now);
        if beat.purpose == Purpose::Answer
            && let Some((sequence, sent)) = self.probe.take_if(|(sequence, _)| beat.echo >= *sequence)
            && sequence == beat.echo
        {
            self.measure_trip(now.since(sent));
        }
        self.take_echo(now, beat);
        self.measure(now, beat);
        (beat.purpose == Purpose::Probe).then(|| Beat { echo: beat.sequence, ..self.next(now, Purpose::Answer) })
    }

    fn take_echo(&mut self, now: Time, Beat { sequence, echo, purpose, .. }: Beat) {
        if echo == 0 {
            // It may not have watched the link when they went.
            self.unheard.clear();
        }
        // An answer names the probe, whatever else was heard.
        if purpose != Purpose::Answer && sequence > self.echo {
            self.told_at = now;
        }
        let after = self.sequence.saturating_sub(echo) as usize;
        if after < self.unheard.len() {
            self.unheard.drain(..self.unheard.len() - after);
            self.deaf_since = None;
        }
    }

    /// How near it comes to what nobody believes that the peer, when it last told, had only by chance not heard what went to
    /// it, 0 to 1 and beyond.
    fn deafness(&self, lag: Duration) -> f64 {
        let known_by = self.slowest_trip() + lag * OWN_LAG;
        let missing = self.unheard.iter().take_while(|sent| self.told_at.since(**sent) > known_by).count();
        self.unlikeliness(missing as f64, 0.0)
    }

    /// Whether the peer, which is heard, does not hear this node and will not. To be asked when a beat has come.
    pub fn stays_unheard(&mut self, now: Time, lag: Duration) -> bool {
        if self.deafness(lag) < DEAF {
            return false;
        }
        // Who stood still has heard nothing either, until it has read what came meanwhile.
        now >= *self.deaf_since.get_or_insert(now) + STALL
    }

    /// Beats are numbered: what is still missing when some later ones have come was lost. Who does not watch the link
    /// numbers none.
    fn measure(&mut self, now: Time, Beat { sequence, purpose, .. }: Beat) {
        let known = self.echo;
        if sequence > known {
            let ahead = sequence - known;
            if known == 0 {
                // What was before the first was not sent to us.
                self.arrived = u32::MAX;
            } else {
                (0..ahead.min(ASTRAY)).for_each(|_| self.judge());
                self.arrived |= 1;
            }
            self.echo = sequence;
            if ahead > 1 || purpose == Purpose::Probe {
                self.beaten = None;
            }
            if purpose == Purpose::Routine {
                let before = self.beaten.replace(now);
                let longest = APART.max(2 * self.interval);
                if let Some(apart) = before.map(|before| now.since(before)).filter(|apart| *apart < longest) {
                    self.lateness = smoothed(self.lateness, apart.saturating_sub(self.interval), SMOOTH);
                    self.adapt();
                }
            }
        } else if sequence > 0 && known - sequence > ASTRAY {
            (self.echo, self.arrived) = (sequence, u32::MAX);
        } else if sequence > 0 {
            self.arrived |= 1 << (known - sequence);
        }
    }

    /// Makes room for one more beat; the one that is overtaken now has arrived or is lost.
    fn judge(&mut self) {
        self.arrived <<= 1;
        let lost = f64::from(u8::from(self.arrived & (1 << OVERTAKEN) == 0));
        self.loss += (lost - self.loss) / f64::from(SMOOTH);
        self.reckoned += (lost - self.reckoned) / f64::from(self.judged);
        self.judged = (self.judged + 1).min(RECKONED);
    }

    /// The first few are averaged: the first alone says nothing of how they deviate.
    fn measure_trip(&mut self, trip: Duration) {
        let (mean, deviation) = self.trip.unwrap_or((trip, trip));
        self.trips = (self.trips + 1).min(SMOOTH);
        self.trip = Some((smoothed(mean, trip, self.trips), smoothed(deviation, trip.abs_diff(mean), self.trips + 1)));
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
            if self.series.is_some_and(|series| self.suspicion(now, &series, lag) >= 1.0) {
                let was_deaf = self.deafness(lag) >= BLAMED;
                return Some(Watch::Lost(if was_deaf { CloseReason::Unheard } else { CloseReason::Lost }));
            }
            let series = self.series.unwrap_or(Series { began: now, sent: 0, last: now, again: false });
            self.series = Some(Series { sent: series.sent + 1, last: now, ..series });
            self.beat_at = now + self.interval;
            return Some(Watch::Send(self.probe(now)));
        }
        if now + self.interval / TOGETHER >= self.beat_at {
            self.beat_at = now + self.interval;
            // The first beats measure the round trip, and some later ones whether it still is what it was.
            return Some(Watch::Send(if self.trips < FIRST_TRIPS || self.sequence.is_multiple_of(MEASURED) {
                self.probe(now)
            } else {
                self.next(now, Purpose::Routine)
            }));
        }
        None
    }

    /// One probe beside the series, to see whether anybody answers.
    pub fn probe(&mut self, now: Time) -> Beat {
        let beat = self.next(now, Purpose::Probe);
        let under_way = self.probe.filter(|(_, sent)| now.since(*sent) < SLOWEST);
        self.probe = under_way.or(Some((beat.sequence, now)));
        beat
    }

    fn probe_at(&self, lag: Duration) -> Time {
        match self.series {
            None => self.heard + (self.interval + self.patience + lag * OWN_LAG),
            // Counted from the last probe in fact: a node that lags itself does not spend them all at once.
            Some(series) => series.last + (self.spacing() + lag * OWN_LAG),
        }
    }

    /// How far a silence has come towards being too long, 0 to 1 and beyond.
    fn suspicion(&self, now: Time, series: &Series, lag: Duration) -> f64 {
        if now < self.heard + STALL {
            return 0.0;
        }
        let silent_since = if series.again { series.began } else { self.heard + self.patience };
        let late = lag * OWN_LAG;
        let missing = now.since(silent_since + late).as_micros() / self.interval.as_micros();
        let answered_by = self.slowest_trip() + late;
        let overdue = match now.since(series.began + answered_by).as_micros() {
            0 => 0,
            time => (time / self.spacing().as_micros() + 1).min(series.sent.into()),
        };
        self.unlikeliness(missing as f64, overdue as f64)
    }

    /// How near it comes to what nobody believes, 0 to 1 and beyond, that so many beats got lost one way and so many there
    /// and back.
    fn unlikeliness(&self, missing: f64, unanswered: f64) -> f64 {
        let lost = self.reckoned.clamp(LEAST_LOSS, MOST_LOSS);
        let either = 1.0 - (1.0 - lost) * (1.0 - lost);
        let borne = FALSE_ALARM * self.interval.as_secs_f64().min(1.0);
        (missing * lost.ln() + unanswered * either.ln()) / borne.ln()
    }

    fn spacing(&self) -> Duration {
        (self.interval / SPACING).clamp(PROBE_AT_LEAST, PROBE_AT_MOST)
    }

    /// As long as a round trip may take.
    pub fn slowest_trip(&self) -> Duration {
        let (mean, deviation) = self.trip.unwrap_or((UNKNOWN_TRIP, Duration::ZERO));
        mean + deviation * DEVIATIONS
    }

    fn next(&mut self, now: Time, purpose: Purpose) -> Beat {
        self.sequence = self.sequence.wrapping_add(1);
        if self.unheard.len() == UNHEARD {
            self.unheard.pop_front();
        }
        self.unheard.push_back(now);
        Beat { sequence: self.sequence, echo: self.echo, purpose, pace: self.wanted.as_millis() as u32 }
    }
}

fn smoothed(value: Duration, last: Duration, weight: u32) -> Duration {
    (value * (weight - 1) + last) / weight
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg32;

    const SECOND: Duration = Duration::from_secs(1);

    /// Runs a detector against a peer that is silent; returns when it is lost and how many beats went out.
    fn run_silent(mut detector: Detector) -> (Time, usize) {
        let mut sent = 0;
        loop {
            let now = detector.deadline(Duration::ZERO);
            match detector.tick(now, Duration::ZERO) {
                Some(Watch::Lost(_)) => return (now, sent),
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
                detector
                    .beat(now + trip, Beat { sequence, echo: probe.sequence, purpose: Purpose::Answer, pace: 1000 });
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
        assert!(sent >= 6, "{sent}");
        let (from, detector) = accustomed(millis(400), |n| n % 4 == 0);
        let (lost, sent) = run_silent(detector);
        assert!((millis(2000)..millis(3000)).contains(&lost.since(from)), "{:?}", lost.since(from));
        assert!(sent >= 20, "{sent}");
        // Of a peer that was never heard nothing good is assumed.
        let (lost, _) = run_silent(Detector::new(Time::ZERO, SECOND));
        assert!(lost > Time::ZERO + millis(2000), "{lost:?}");
    }

    /// Two that watch each other over a link with this delay, its spread and its loss, for so many seconds; from then on
    /// nothing arrives at the first. Returns how long each took to notice, and whom it blames. Who gives up falls silent.
    fn watch_each_other(
        pace: Duration,
        delay: Duration,
        spread: Duration,
        loss: f64,
        seconds: u64,
    ) -> [(Duration, CloseReason); 2] {
        let mut rng = Pcg32::seed_from_u64(7);
        let mut sides = [Detector::new(Time::ZERO, SECOND), Detector::new(Time::ZERO, SECOND)];
        let mut verdicts = [None; 2];
        let end = Time::ZERO + SECOND * seconds as u32;
        let mut under_way: Vec<(Time, usize, Beat)> = Vec::new();
        // One side alone wants them at this pace.
        sides[0].keep_pace(Time::ZERO, pace);
        while let Some((next, side)) =
            (0..2).filter(|&i| verdicts[i].is_none()).map(|i| (sides[i].deadline(Duration::ZERO), i)).min()
        {
            let arrival = under_way.iter().enumerate().min_by_key(|(_, (at, ..))| *at).map(|(i, (at, ..))| (*at, i));
            let (now, from, beat, verdict) = match arrival.filter(|(at, _)| *at <= next) {
                Some((_, i)) => {
                    let (now, to, beat) = under_way.swap_remove(i);
                    let answer = sides[to].beat(now, beat);
                    (now, to, answer, sides[to].stays_unheard(now, Duration::ZERO).then_some(CloseReason::Unheard))
                }
                None => match sides[side].tick(next, Duration::ZERO) {
                    Some(Watch::Lost(reason)) => (next, side, None, Some(reason)),
                    Some(Watch::Send(beat)) => (next, side, Some(beat), None),
                    None => (next, side, None, None),
                },
            };
            if let Some(reason) = verdict {
                assert!(now > end, "side {from} gave up after {now:?}: {}", reason.label());
                verdicts[from].get_or_insert((now.since(end), reason));
            }
            let arrives = now <= end || from == 0;
            if let Some(beat) = beat.filter(|_| arrives && verdicts[from].is_none() && !rng.random_bool(loss)) {
                under_way.push((
                    now + delay - spread + (spread * 2).mul_f64(rng.random_range(0.0..1.0)),
                    1 - from,
                    beat,
                ));
            }
        }
        verdicts.map(Option::unwrap)
    }

    #[test]
    fn nobody_is_accused_by_chance_and_who_dies_or_does_not_hear_soon_is() {
        let millis = Duration::from_millis;
        let lan = |pace| watch_each_other(pace, millis(1), Duration::ZERO, 0.0, 3600);
        let hard = |pace| watch_each_other(pace, millis(200), millis(100), 0.25, 36_000);
        let busy = millis(100);
        for (verdicts, soonest, latest) in [
            (lan(busy), millis(200), millis(400)),
            (lan(SECOND), millis(200), millis(1500)),
            (hard(busy), millis(200), millis(2500)),
            (hard(SECOND), millis(200), millis(4000)),
        ] {
            let [(silent, lost), (deaf, unheard)] = verdicts;
            // Over the worst link it knows only if it is told.
            let knows = latest < millis(2000);
            assert!(lost == CloseReason::Lost && (unheard == CloseReason::Unheard || !knows), "{verdicts:?}");
            assert!((soonest..latest).contains(&silent), "{silent:?}");
            // Were it told nothing, it would know all the same.
            assert!(deaf < 2 * latest, "{deaf:?}");
        }
    }

    #[test]
    fn a_peer_that_goes_on_but_hears_nothing_is_given_up() {
        let tenth = Duration::from_millis(100);
        // Every beat of the peer arrives; it has heard all of them, some late, or none since the fiftieth.
        let given_up = |heard: fn(u32) -> u32| {
            let mut detector = Detector::new(Time::ZERO, tenth);
            let told = |n: u32| Beat { sequence: n, echo: heard(n), purpose: Purpose::Routine, pace: 100 };
            (1..200).find(|&n| {
                let now = Time::ZERO + tenth * n;
                detector.next(now, Purpose::Routine);
                detector.beat(now, told(n));
                detector.stays_unheard(now, Duration::ZERO)
            })
        };
        assert_eq!(given_up(|n| n), None);
        assert_eq!(given_up(|n| n.saturating_sub(4).max(1)), None);
        // What waits in a queue for a second arrives after all.
        assert_eq!(given_up(|n| if (50..60).contains(&n) { 50 } else { n }), None);
        let at = given_up(|n| n.min(50)).unwrap();
        assert!((60..75).contains(&at), "{at}");
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
                let answer =
                    detector.beat(Time::ZERO, Beat { sequence, echo: 0, purpose: Purpose::Routine, pace: 1000 });
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
                Some(Watch::Send(Beat { purpose: Purpose::Probe, sequence, .. })) => {
                    assert_eq!(
                        detector.beat(now, Beat { sequence, echo: 0, purpose: Purpose::Routine, pace: 1000 }),
                        None
                    );
                }
                Some(Watch::Lost(_)) => panic!("lost though it answers"),
                _ => {}
            }
        }
        assert!(detector.beat(now, Beat { sequence: 1, echo: 0, purpose: Purpose::Probe, pace: 1000 }).is_some());
    }
}
