//! What passes between simulated nodes: dials, frames in order, datagrams as they fall, and the gossip.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;

use crate::codec;
use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::beacon::{Beacon, Scope};
use crate::proto::frame::Frame;
use crate::proto::link::{self, Beat, CloseReason, ConnId};
use crate::proto::node::Input;
use crate::proto::router;
use crate::sim::network::{
    ACK_BYTES, DATAGRAM_OVERHEAD, DIAL_TIMEOUT, End, FIRST_PACKET_AGAIN, GOSSIP_REDUNDANCY, KEEP_ALIVE_BYTES,
};
use crate::sim::world::{Happening, World};
use crate::time::Time;

/// After the first doublings of QUIC's timer, acknowledgements of the heartbeats show what was lost.
const LONGEST_RETRANSMISSION: Duration = Duration::from_secs(2);

impl World {
    pub(super) fn dial(&mut self, from: usize, to: NodeId) {
        let incarnation = self.nodes[from].incarnation;
        tracing::trace!(at = self.now.as_secs_f64(), node = %self.nodes[from].name, to = %to.short(), "dials");
        self.dials(from, incarnation, to, self.now);
    }

    pub(super) fn dials(&mut self, from: usize, incarnation: u64, to: NodeId, began: Time) {
        if self.nodes[from].incarnation != incarnation || !self.nodes[from].is_up() {
            return;
        }
        let Some(&at) = self.indices.get(&to) else {
            return self.at(self.now, Happening::DialFailed { from, incarnation, to });
        };
        let fails = began + DIAL_TIMEOUT;
        let quality = self.network.quality(from, at);
        // QUIC's handshake takes one round trip; what is lost of it is sent again.
        let mut answered = self.now + quality.delay(&mut self.rng) + quality.delay(&mut self.rng);
        let mut again = quality.retransmission().max(Duration::from_millis(200));
        while self.rng.random_bool(quality.lost()) && answered < fails {
            answered = answered + again;
            again *= 2;
        }
        let reachable = self.nodes[at].is_up() && self.nodes[at].paused == 0;
        let open = self.network.blocked(from, at).is_none() && self.network.blocked(at, from).is_none();
        let tries = self.now + FIRST_PACKET_AGAIN;
        if reachable && open && answered < fails {
            self.recorder.wire("handshake", 2 * (1200 + DATAGRAM_OVERHEAD));
            self.at(answered, Happening::Dialled { from, incarnation, to, fails });
        } else if tries < fails {
            self.at(tries, Happening::Dials { from, incarnation, to, began });
        } else {
            self.at(fails, Happening::DialFailed { from, incarnation, to });
        }
    }

    pub(super) fn dialled(&mut self, from: usize, incarnation: u64, to: NodeId, fails: Time) {
        let at = self.indices[&to];
        if self.nodes[from].incarnation != incarnation || !self.nodes[from].is_up() {
            return;
        }
        if !self.nodes[at].is_up() {
            return self.at(fails, Happening::DialFailed { from, incarnation, to });
        }
        let end = |node: usize| End { node, open: true, heard: None };
        let [mine, theirs] = self.network.connect(self.now, [end(from), end(at)]);
        let peer = self.nodes[from].id;
        self.give(at, Input::Links(link::Input::Accepted { peer, conn: theirs }));
        self.give(from, Input::Links(link::Input::Dialled { peer: to, conn: mine }));
    }

    pub(super) fn send(&mut self, i: usize, conn: ConnId, frame: Frame) {
        let (bytes, kind, now) = (self.frame_bytes(&frame), frame.kind(), self.now);
        let Some((link, side)) = self.network.conn(conn) else { return };
        if !link.ends[side].open {
            return;
        }
        let to = link.ends[1 - side].node;
        link.used = now;
        self.recorder.wire(kind, bytes + DATAGRAM_OVERHEAD + ACK_BYTES);
        self.recorder.sent(&self.nodes, i, &frame, bytes);
        self.note_transmission(i, to, &frame);
        let quality = self.network.quality(i, to);
        let mut wait = quality.delay(&mut self.rng);
        let mut again = quality.retransmission();
        // What is lost for certain waits in the pipe until the link carries something again.
        while quality.lost() < 1.0 && self.rng.random_bool(quality.lost()) {
            self.recorder.wire("retransmission", bytes + DATAGRAM_OVERHEAD);
            wait += again;
            again = (again * 2).min(LONGEST_RETRANSMISSION);
        }
        wait += self.network.queueing(self.now, (i, to), bytes, quality.bandwidth).unwrap_or(Duration::from_secs(1));
        let due = self.now + wait;
        let Some((link, side)) = self.network.conn(conn) else { return };
        let pipe = &mut link.pipes[side];
        let due = pipe.frames.back().map_or(due, |(_, before)| due.max(*before));
        pipe.frames.push_back((frame, due));
        if !pipe.scheduled {
            pipe.scheduled = true;
            self.at(due, Happening::Deliver { conn: conn.0 / 2, side });
        }
    }

    fn frame_bytes(&mut self, frame: &Frame) -> usize {
        const PREFIX: usize = 6;
        const SIGNATURE: usize = 65;
        self.scratch.clear();
        match frame {
            Frame::Hello(hello) => codec::encode_into(hello, &mut self.scratch),
            Frame::Beacon(beacon) => codec::encode_into(&**beacon, &mut self.scratch),
            Frame::Topology(frame) => codec::encode_into(frame, &mut self.scratch),
            Frame::Router(frame) => codec::encode_into(frame, &mut self.scratch),
        }
        let signature = if matches!(frame, Frame::Beacon(_)) { SIGNATURE } else { 0 };
        PREFIX + signature + self.scratch.len()
    }

    pub(super) fn deliver(&mut self, conn: u64, side: usize) {
        let Some(link) = self.network.conns.get(&conn) else { return };
        let (from, to) = (link.ends[side], link.ends[1 - side]);
        let frozen = self.nodes[to.node].paused > 0 && self.nodes[to.node].is_up();
        let blocked = self.network.blocked(from.node, to.node).is_some();
        let again = self.network.quality(from.node, to.node).retransmission();
        let Some(link) = self.network.conns.get_mut(&conn) else { return };
        let pipe = &mut link.pipes[side];
        if pipe.frames.is_empty() {
            pipe.scheduled = false;
            return;
        }
        if blocked || frozen {
            pipe.tries += 1;
            let wait = (again * 2u32.pow(pipe.tries.min(6))).min(Duration::from_millis(500));
            return self.at(self.now + wait, Happening::Deliver { conn, side });
        }
        pipe.tries = 0;
        let Some((frame, _)) = pipe.frames.pop_front() else { return };
        match pipe.frames.front() {
            Some(&(_, due)) => self.at(due, Happening::Deliver { conn, side }),
            None => pipe.scheduled = false,
        }
        let end = ConnId(conn * 2 + (1 - side) as u64);
        if !to.open {
            // A process that restarted answers with a reset, one that is down with nothing.
            if from.open && self.nodes[to.node].is_up() {
                let quality = self.network.quality(to.node, from.node);
                let at = self.now + quality.delay(&mut self.rng);
                let conn = ConnId(conn * 2 + side as u64);
                self.at(at, Happening::Closed { to: from.node, conn, reason: "reset".into() });
            }
            return;
        }
        self.recorder.hash(self.now, &self.nodes[to.node].name, frame.kind());
        if self.recorder.partitions.are_healing() {
            let bytes = self.frame_bytes(&frame) + DATAGRAM_OVERHEAD;
            self.recorder.partitions.received(self.now, from.node, to.node, bytes);
        }
        self.receive(to.node, end, from.node, frame);
    }

    fn receive(&mut self, i: usize, conn: ConnId, from: usize, frame: Frame) {
        let peer = self.nodes[from].id;
        let input = match frame {
            Frame::Router(frame) => {
                let up = self.nodes[i].node.as_ref().and_then(|node| node.links.conn_of(&peer)) == Some(conn);
                if !up {
                    return self.recorder.dropped("frame_before_hello");
                }
                self.recorder.received(self.now, &self.nodes, i, from, &frame);
                let (now, end) = (self.now, self.network.conn(conn).map(|(link, side)| &mut link.ends[side]));
                if let Some(end) = end.filter(|end| end.heard.is_none_or(|at| now.since(at) >= Limits::SIGN_OF_LIFE)) {
                    end.heard = Some(now);
                    self.step(i, Input::Links(link::Input::Heard(conn)));
                }
                Input::Router(router::Input::Frame { from: peer, frame })
            }
            frame => Input::Links(link::Input::Frame { conn, frame }),
        };
        self.give(i, input);
    }

    pub(super) fn send_beat(&mut self, i: usize, conn: ConnId, beat: Beat) {
        let now = self.now;
        let Some((link, side)) = self.network.conn(conn) else { return };
        let to = link.ends[1 - side].node;
        link.used = now;
        self.scratch.clear();
        codec::encode_into(&beat, &mut self.scratch);
        let bytes = self.scratch.len() + 1;
        self.recorder.wire("heartbeat", bytes + DATAGRAM_OVERHEAD);
        let quality = self.network.quality(i, to);
        if self.network.blocked(i, to).is_some() || self.rng.random_bool(quality.lost()) {
            return;
        }
        let Some(queued) = self.network.queueing(self.now, (i, to), bytes, quality.bandwidth) else { return };
        let far = ConnId(conn.0 ^ 1);
        let mut copies = 1;
        if quality.duplicate > 0.0 && self.rng.random_bool(quality.duplicate) {
            copies = 2;
        }
        for _ in 0..copies {
            let mut wait = queued + quality.delay(&mut self.rng);
            if quality.reorder > 0.0 && self.rng.random_bool(quality.reorder) {
                wait += (quality.latency + quality.jitter).mul_f64(self.rng.random_range(0.0..1.0));
            }
            self.at(self.now + wait, Happening::Beat { to, conn: far, beat });
        }
    }

    pub(super) fn close(&mut self, conn: ConnId, reason: CloseReason) {
        let Some((link, side)) = self.network.conn(conn) else { return };
        let (mine, theirs) = (link.ends[side].node, link.ends[1 - side]);
        self.recorder.closes(mine, theirs.node, reason);
        let far = ConnId(conn.0 ^ 1);
        let last = link.pipes[side].frames.back().map(|(_, due)| *due);
        let quality = self.network.quality(mine, theirs.node);
        if self.network.blocked(mine, theirs.node).is_none() && theirs.open {
            let at = (self.now + quality.delay(&mut self.rng)).max(last.unwrap_or(self.now));
            self.at(at, Happening::Closed { to: theirs.node, conn: far, reason: reason.label().to_owned() });
        }
        // The frames before the close are still delivered: only our end is gone.
        if let Some((link, side)) = self.network.conn(conn) {
            link.ends[side].open = false;
            if !theirs.open {
                self.network.close_end(conn);
            }
        }
        self.at(self.now + Limits::CONNECTION_SILENCE, Happening::IdleCheck { conn: far });
    }

    pub(super) fn idle_check(&mut self, conn: ConnId) {
        let Some((link, side)) = self.network.conn(conn) else { return };
        let (mine, theirs) = (link.ends[side], link.ends[1 - side]);
        if !mine.open {
            return;
        }
        let alive = theirs.open && self.network.blocked(theirs.node, mine.node).is_none();
        if !alive {
            self.happen(Happening::Closed { to: mine.node, conn, reason: "timed out".into() });
        }
    }

    /// QUIC keeps those connections alive that nothing else does.
    pub(super) fn keep_alive(&mut self) {
        for conn in self.network.conns.values_mut() {
            let open = conn.ends.iter().all(|end| end.open);
            if open && self.now.since(conn.used) >= Limits::KEEP_ALIVE {
                conn.used = self.now;
                self.recorder.wire("keep_alive", KEEP_ALIVE_BYTES);
            }
        }
    }

    /// After a cut, connections across it die of silence.
    pub(super) fn check_idle_soon(&mut self) {
        let ends: Vec<_> =
            self.network.conns.keys().flat_map(|&index| [ConnId(index * 2), ConnId(index * 2 + 1)]).collect();
        for conn in ends {
            self.at(self.now + Limits::CONNECTION_SILENCE, Happening::IdleCheck { conn });
        }
    }

    pub(super) fn listen(&mut self, i: usize, scopes: BTreeSet<Scope>) {
        let before = std::mem::take(&mut self.nodes[i].listening);
        for scope in before.difference(&scopes) {
            if let Some(listeners) = self.listeners.get_mut(scope) {
                listeners.remove(&i);
            }
        }
        for scope in scopes.difference(&before) {
            self.listeners.entry(scope.clone()).or_default().insert(i);
        }
        self.nodes[i].listening = scopes;
    }

    pub(super) fn broadcast(&mut self, i: usize, beacon: &Arc<Beacon>, scopes: &[Scope]) {
        let bytes = codec::encode(&**beacon).len() + 65;
        let mine = self.overlay_root(self.nodes[i].overlay);
        let all: Vec<_> = scopes.iter().filter_map(|scope| self.listeners.get(scope)).flatten().copied().collect();
        let linked =
            |to: &usize| *to != i && self.nodes[*to].is_up() && self.overlay_root(self.nodes[*to].overlay) == mine;
        let all: Vec<_> = all.into_iter().filter(linked).collect();
        // Each scope is a topic of its own: who listens to two of them is told twice, and takes it up once.
        let cost = all.len() as f64 * (bytes + DATAGRAM_OVERHEAD) as f64 * GOSSIP_REDUNDANCY;
        for to in all.into_iter().collect::<BTreeSet<_>>() {
            let quality = self.network.quality(i, to);
            if self.network.blocked(i, to).is_some() || self.rng.random_bool(quality.lost()) {
                continue;
            }
            let hops = self.rng.random_range(1..=3);
            let wait = (0..hops).map(|_| quality.delay(&mut self.rng)).sum();
            let incarnation = self.nodes[to].incarnation;
            self.at(self.now + wait, Happening::Heard { to, incarnation, beacon: beacon.clone() });
        }
        self.recorder.wire("gossip", cost as usize);
        self.recorder.beacons += 1;
    }

    fn overlay_root(&self, mut at: usize) -> usize {
        while self.overlay[at] != at {
            at = self.overlay[at];
        }
        at
    }

    /// A link joins the gossip overlays of its ends.
    pub(super) fn join_overlay(&mut self, i: usize, peer: NodeId) {
        let other = self.indices[&peer];
        let (a, b) = (self.overlay_root(self.nodes[i].overlay), self.overlay_root(self.nodes[other].overlay));
        self.overlay[a.max(b)] = a.min(b);
        // Ways to the root stay short.
        let (mine, theirs) = (self.nodes[i].overlay, self.nodes[other].overlay);
        (self.overlay[mine], self.overlay[theirs]) = (a.min(b), a.min(b));
    }
}
