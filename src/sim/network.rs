//! The simulated network: each direction a link of its own, streams in order, datagrams as they fall.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::RngExt;
use rand_pcg::Pcg32;

use crate::proto::frame::Frame;
use crate::proto::link::ConnId;
use crate::sim::scenario::LinkProperties;
use crate::time::{Time, earliest};

/// Headers and authentication of UDP over IPv4 and QUIC around every datagram.
pub const DATAGRAM_OVERHEAD: usize = 58;
/// A modelled acknowledgement: one packet for every two that carry a frame.
pub const ACK_BYTES: usize = 30;
/// What a gossip broadcast costs beyond one copy per receiver.
pub const GOSSIP_REDUNDANCY: f64 = 1.2;
/// A PING and its acknowledgement.
pub const KEEP_ALIVE_BYTES: usize = 2 * (DATAGRAM_OVERHEAD + 2);
/// How long a dial into nowhere takes to fail.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long QUIC waits for the first answer before it sends its first packet again (RFC 9002).
pub const FIRST_PACKET_AGAIN: Duration = Duration::from_secs(1);
/// The queue in front of a link with limited bandwidth.
const FIFO_BYTES: f64 = 65_536.0;

/// What one direction between two nodes is like now.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    pub latency: Duration,
    pub jitter: Duration,
    loss: f64,
    corrupt: f64,
    pub duplicate: f64,
    pub reorder: f64,
    pub bandwidth: Option<f64>,
}

impl Default for Quality {
    fn default() -> Self {
        let latency = Duration::from_millis(1);
        Self { latency, jitter: Duration::ZERO, loss: 0.0, corrupt: 0.0, duplicate: 0.0, reorder: 0.0, bandwidth: None }
    }
}

impl Quality {
    fn apply(&mut self, over: &LinkProperties) {
        self.latency = over.latency.map_or(self.latency, |span| span.0);
        self.jitter = over.jitter.map_or(self.jitter, |span| span.0);
        self.duplicate = over.duplicate.unwrap_or(self.duplicate);
        self.reorder = over.reorder.unwrap_or(self.reorder);
        self.bandwidth = over.bandwidth.map(|b| b.0).or(self.bandwidth);
        self.loss = over.loss.unwrap_or(self.loss);
        self.corrupt = over.corrupt.unwrap_or(self.corrupt);
    }

    /// The share of datagrams that QUIC never sees: it discards what is corrupt.
    pub fn lost(&self) -> f64 {
        1.0 - (1.0 - self.loss) * (1.0 - self.corrupt)
    }

    /// One way, uniformly jittered.
    pub fn delay(&self, rng: &mut Pcg32) -> Duration {
        let jitter = self.jitter.as_secs_f64();
        let seconds = self.latency.as_secs_f64() + rng.random_range(-1.0..=1.0) * jitter;
        Duration::from_secs_f64(seconds.max(1e-6))
    }

    /// QUIC's retransmission time-out here.
    pub fn retransmission(&self) -> Duration {
        (self.latency * 4).max(Duration::from_millis(25))
    }
}

/// A set of nodes by index.
pub type Members = Vec<bool>;

/// What keeps traffic from passing, by fault.
#[derive(Clone, Debug)]
pub enum Obstacle {
    /// Parts hear only themselves; 0 is in no part.
    Partition(Vec<u8>),
    OneWay(Members, Members),
    Link(Members, Members, LinkProperties),
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub node: usize,
    pub open: bool,
    /// When data last counted as a sign of life.
    pub heard: Option<Time>,
}

/// Frames under way in one direction, in order.
#[derive(Clone, Debug, Default)]
pub struct Pipe {
    pub frames: VecDeque<(Frame, Time)>,
    pub scheduled: bool,
    pub tries: u32,
}

#[derive(Clone, Debug)]
pub struct Conn {
    pub ends: [End; 2],
    pub pipes: [Pipe; 2],
    /// When anything was last sent over it.
    pub used: Time,
}

/// All connections, and what each direction is like.
#[derive(Debug, Default)]
pub struct Network {
    base: Quality,
    overrides: Vec<(Members, Members, LinkProperties)>,
    obstacles: BTreeMap<usize, (Time, Obstacle)>,
    pub conns: BTreeMap<u64, Conn>,
    next: u64,
    busy: BTreeMap<(usize, usize), Time>,
}

impl Network {
    pub fn new(base: &LinkProperties, overrides: Vec<(Members, Members, LinkProperties)>) -> Self {
        let mut quality = Quality::default();
        quality.apply(base);
        Self { base: quality, overrides, ..Self::default() }
    }

    pub fn quality(&self, from: usize, to: usize) -> Quality {
        let mut quality = self.base;
        for (senders, receivers, over) in &self.overrides {
            if senders[from] && receivers[to] {
                quality.apply(over);
            }
        }
        if let Some((_, over)) = self.latest_link_fault(from, to) {
            quality.apply(over);
        }
        quality
    }

    fn latest_link_fault(&self, from: usize, to: usize) -> Option<(Time, &LinkProperties)> {
        let of_link = self.obstacles.values().filter_map(|(begun, obstacle)| match obstacle {
            Obstacle::Link(senders, receivers, over) if senders[from] && receivers[to] => Some((*begun, over)),
            _ => None,
        });
        of_link.max_by_key(|(begun, _)| *begun)
    }

    /// Since when nothing passes from one node to another, if so.
    pub fn blocked(&self, from: usize, to: usize) -> Option<Time> {
        let blocks = |obstacle: &Obstacle| match obstacle {
            Obstacle::Partition(parts) => parts[from] != 0 && parts[to] != 0 && parts[from] != parts[to],
            Obstacle::OneWay(senders, receivers) => senders[from] && receivers[to],
            Obstacle::Link(..) => false,
        };
        let cut = self.obstacles.values().filter(|(_, obstacle)| blocks(obstacle)).map(|(begun, _)| *begun).min();
        let loses_all = self.quality(from, to).lost() >= 1.0;
        let lossy = || self.latest_link_fault(from, to).map_or(Time::ZERO, |(begun, _)| begun);
        earliest(cut, loses_all.then(lossy))
    }

    pub fn begin(&mut self, fault: usize, now: Time, obstacle: Obstacle) {
        self.obstacles.insert(fault, (now, obstacle));
    }

    pub fn end(&mut self, fault: usize) {
        self.obstacles.remove(&fault);
    }

    /// Opens a connection and returns the ids of its ends, the dialler's first.
    pub fn connect(&mut self, now: Time, ends: [End; 2]) -> [ConnId; 2] {
        let index = self.next;
        self.next += 1;
        self.conns.insert(index, Conn { ends, pipes: Default::default(), used: now });
        [ConnId(index * 2), ConnId(index * 2 + 1)]
    }

    pub fn conn(&mut self, id: ConnId) -> Option<(&mut Conn, usize)> {
        self.conns.get_mut(&(id.0 / 2)).map(|conn| (conn, (id.0 % 2) as usize))
    }

    /// Closes one end; the connection is gone when both are.
    pub fn close_end(&mut self, id: ConnId) {
        let Some((conn, side)) = self.conn(id) else { return };
        conn.ends[side].open = false;
        conn.pipes[side].frames.clear();
        if conn.ends.iter().all(|end| !end.open) {
            self.conns.remove(&(id.0 / 2));
        }
    }

    /// How long bytes wait for the link's bandwidth; `None` if its queue is full.
    pub fn queueing(
        &mut self,
        now: Time,
        pair: (usize, usize),
        bytes: usize,
        bandwidth: Option<f64>,
    ) -> Option<Duration> {
        let Some(bandwidth) = bandwidth else { return Some(Duration::ZERO) };
        let free = self.busy.get(&pair).copied().unwrap_or(now).max(now);
        let waiting = free.since(now);
        if waiting.as_secs_f64() * bandwidth / 8.0 > FIFO_BYTES {
            return None;
        }
        let taken = Duration::from_secs_f64(bytes as f64 * 8.0 / bandwidth);
        self.busy.insert(pair, free + taken);
        Some(waiting + taken)
    }
}
