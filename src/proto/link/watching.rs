//! Watching links: how often beats go over each, what silence on one means, and whose fault it may be.

use std::time::Duration;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::link::detector::UNKNOWN_TRIP;
use crate::proto::link::machine::{Effect, Link, Machine};
use crate::proto::link::{Beat, CloseReason, ConnId, Detector, Purpose, Watch};
use crate::time::Time;

/// How much a link's quality changes before that is news.
const NEWS: f64 = 0.1;
/// How many times less often a backup's link beats than the parent's: it is not leaned on yet, and each beat costs as
/// much.
const BACKUP_PACE: u32 = 4;
/// How many times more often a busy link of the tree beats: who sends all the time wants to know sooner, and pays less
/// for it beside what it sends.
const BUSY_PACE: u32 = 10;
/// A link is busy when a router's frame follows another within so many heartbeats, and for as long after the last; and
/// as long when the tree comes to lean on it, for its loss and its round trip are not known yet.
const BUSY: u32 = 3;
/// On a long way frames may be so many round trips further apart: what was lost is sent again, perhaps twice.
const SENT_AGAIN: u32 = 4;
/// The most that own lag counts, and how it fades with every tick. A node that was late by more stood still.
const MOST_LAG: Duration = Duration::from_millis(500);
const LAG_FADES: f64 = 0.9;

impl Link {
    pub(super) fn get_to_know(&mut self, now: Time, heartbeat: Duration) {
        self.busy_until = self.busy_until.max(Some(now + self.stays_busy(heartbeat)));
    }

    fn stays_busy(&self, heartbeat: Duration) -> Duration {
        let trip = self.detector.as_ref().map_or(UNKNOWN_TRIP, Detector::slowest_trip);
        heartbeat * BUSY + (trip * SENT_AGAIN).min(Limits::CONNECTION_SILENCE)
    }
}

impl Machine {
    /// How often heartbeats go over a link: most often where the tree or the host leans on it, all the more while it is
    /// busy, less often where the tree may lean on it later. Of others QUIC tells soon enough.
    pub(super) fn pace(&self, peer: &NodeId) -> Option<Duration> {
        if self.tree.contains(peer) || self.requested.contains(peer) {
            let busy = self.links.get(peer).is_some_and(|link| link.busy_until.is_some());
            Some(if busy { self.settings.heartbeat / BUSY_PACE } else { self.settings.heartbeat })
        } else {
            self.backups.contains(peer).then_some(self.settings.heartbeat * BACKUP_PACE)
        }
    }

    pub(super) fn refresh_need(&mut self, now: Time, peer: NodeId) {
        let (needed, pace) = (self.needs(&peer), self.pace(&peer));
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.idle_since = if needed { None } else { link.idle_since.or(Some(now)) };
        match (pace, &mut link.detector) {
            (Some(pace), Some(detector)) => detector.keep_pace(now, pace),
            (pace, detector) => *detector = pace.map(|pace| Detector::new(now, pace)),
        }
    }

    pub(super) fn beat(&mut self, now: Time, conn: ConnId, beat: Beat, effects: &mut Vec<Effect>) {
        let lag = self.lag;
        let Some(link) = self.link_over(conn) else { return };
        // Who beats needs the link, even if nobody here does.
        link.idle_since = link.idle_since.map(|_| now);
        let answer = match &mut link.detector {
            Some(detector) => detector.beat(now, beat),
            // The far side leans on a link that we do not: it is still told that we live.
            None => (beat.purpose == Purpose::Probe).then_some(Beat {
                sequence: 0,
                echo: beat.sequence,
                purpose: Purpose::Answer,
                ..beat
            }),
        };
        if link.detector.as_mut().is_some_and(|detector| detector.stays_unheard(now, lag)) {
            return self.drop_conn(now, conn, CloseReason::Unheard, effects);
        }
        let quality = link.detector.as_ref().and_then(Detector::quality);
        if let Some(news) = quality.filter(|now| link.told.is_none_or(|told| (told - now).abs() >= NEWS)) {
            link.told = Some(news);
            effects.extend(self.conns.get(&conn).map(|conn| Effect::Quality(conn.peer, news)));
        }
        effects.extend(answer.map(|beat| Effect::SendBeat { conn, beat }));
    }

    pub(super) fn heard(&mut self, now: Time, conn: ConnId) {
        if let Some(detector) = self.link_over(conn).and_then(|link| link.detector.as_mut()) {
            detector.heard(now);
        }
    }

    /// A router's frame came: a sign of life, and the link is busy if they go on coming.
    pub(super) fn carried(&mut self, now: Time, conn: ConnId) {
        self.heard(now, conn);
        let heartbeat = self.settings.heartbeat;
        let Some(link) = self.link_over(conn) else { return };
        let soon = link.stays_busy(heartbeat);
        let before = link.data_at.replace(now);
        if before.is_some_and(|before| now.since(before) <= soon) {
            let was_busy = link.busy_until.replace(now + soon).is_some();
            if !was_busy && let Some(peer) = self.conns.get(&conn).map(|conn| conn.peer) {
                self.refresh_need(now, peer);
            }
        }
    }

    /// Links that nothing was carried over lately are busy no more.
    pub(super) fn rest_if_idle(&mut self, now: Time) {
        let rested = |link: &mut Link| link.busy_until.take_if(|until| now >= *until).is_some();
        let rested: Vec<_> = self.links.iter_mut().filter_map(|(&peer, link)| rested(link).then_some(peer)).collect();
        rested.into_iter().for_each(|peer| self.refresh_need(now, peer));
    }

    /// A node that was late itself, because it was frozen or starved, may have missed what others said.
    pub(super) fn measure_lag(&mut self, now: Time) {
        let late = now.since(self.due);
        self.lag = late.min(MOST_LAG).max(self.lag.mul_f64(LAG_FADES));
        let still = late.saturating_sub(MOST_LAG);
        if !still.is_zero() {
            self.links
                .values_mut()
                .filter_map(|link| link.detector.as_mut())
                .for_each(|watched| watched.excuse(now, still));
        }
    }

    pub(super) fn watch(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let (mut wondering, mut silent) = (Vec::new(), Vec::new());
        for (&peer, link) in &mut self.links {
            let Some(detector) = &mut link.detector else { continue };
            match detector.tick(now, self.lag) {
                Some(Watch::Send(beat)) => {
                    effects.push(Effect::SendBeat { conn: link.conn, beat });
                    wondering.extend(detector.is_wondering().then_some(peer));
                }
                Some(Watch::Lost(reason)) => silent.push((peer, reason)),
                None => {}
            }
        }
        for peer in wondering {
            self.ask_another(now, peer, effects);
        }
        for (peer, reason) in silent {
            let lonely = self.is_lonely(&peer);
            let detector = self.links.get_mut(&peer).and_then(|link| link.detector.as_mut());
            if !(lonely && detector.is_some_and(|detector| detector.probe_again(now))) {
                self.end(now, peer, reason, effects);
            }
        }
    }

    /// One that beats seldom would not show in time whether this node hears anybody.
    fn ask_another(&mut self, now: Time, silent: NodeId, effects: &mut Vec<Effect>) {
        let others = self.links.iter_mut().filter(|(peer, _)| **peer != silent);
        let mut watched = others.filter_map(|(_, link)| Some((link.conn, link.detector.as_mut()?)));
        if let Some((conn, detector)) = watched.find(|(_, detector)| detector.probing_since().is_none()) {
            effects.push(Effect::SendBeat { conn, beat: detector.probe(now) });
        }
    }

    /// Whether nobody else was heard either since this peer is probed: then the fault is rather this node's.
    fn is_lonely(&self, silent: &NodeId) -> bool {
        let since = self.links.get(silent).and_then(|link| link.detector.as_ref()?.probing_since());
        let others = self.links.iter().filter(|(peer, _)| *peer != silent);
        let mut watched = others.filter_map(|(_, link)| link.detector.as_ref()).peekable();
        let Some(since) = since.filter(|_| watched.peek().is_some()) else { return false };
        !watched.any(|detector| detector.was_heard_since(since))
    }
}
