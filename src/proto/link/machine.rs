//! The link machine: which connections there are, and which of them is the link to a peer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand_pcg::Pcg32;

use crate::id::{FormationId, NodeId, NodeName};
use crate::level::Level;
use crate::limits::Limits;
use crate::proto::budget::Backoff;
use crate::proto::frame::Frame;
use crate::proto::link::{Beat, CloseReason, ConnId, Detector, Hello};
use crate::proto::topology::View;
use crate::time::Time;

#[derive(Clone, Debug)]
pub struct Settings {
    pub me: NodeId,
    pub name: NodeName,
    pub level: Level,
    pub formation: FormationId,
    pub incarnation: u64,
    /// Between heartbeats on links of the tree.
    pub heartbeat: Duration,
    pub backoff: Backoff,
    pub seed: u64,
}

#[derive(Clone, Debug)]
pub enum Input {
    /// Discovery names peers to be introduced to, in their order.
    Known(Vec<(NodeId, Vec<SocketAddr>)>),
    /// Where peers can be dialled.
    Located(Vec<(NodeId, Vec<SocketAddr>)>),
    /// The node's place in the tree: whom links are needed to, and whether to look for others.
    Placed(Arc<View>),
    /// The host wants a link, or wants it closed.
    Connect(NodeId),
    Disconnect(NodeId),
    Dialled {
        peer: NodeId,
        conn: ConnId,
    },
    DialFailed {
        peer: NodeId,
        error: String,
    },
    Accepted {
        peer: NodeId,
        conn: ConnId,
    },
    Closed {
        conn: ConnId,
        reason: String,
    },
    /// Any frame but a router's, which has its own way.
    Frame {
        conn: ConnId,
        frame: Frame,
    },
    Beat {
        conn: ConnId,
        beat: Beat,
    },
    /// A router's frame came: a sign of life.
    Heard(ConnId),
    /// The connections that exist, after a restart of this machine.
    Resume(BTreeSet<ConnId>),
    /// Somebody who restarted wants to know the links.
    Replay,
    Leave,
}

#[derive(Clone, Debug)]
pub enum Effect {
    Dial {
        peer: NodeId,
        addresses: Vec<SocketAddr>,
    },
    Send {
        conn: ConnId,
        frame: Frame,
    },
    SendBeat {
        conn: ConnId,
        beat: Beat,
    },
    Close {
        conn: ConnId,
        reason: CloseReason,
    },
    /// The link to a peer is this connection now.
    Up {
        peer: NodeId,
        conn: ConnId,
        hello: Hello,
    },
    Down {
        peer: NodeId,
        reason: String,
    },
    /// A frame for another machine, over a link that is up.
    Control {
        peer: NodeId,
        frame: Frame,
    },
    Unreachable {
        peer: NodeId,
        reason: String,
    },
    /// What share of a peer's heartbeats arrives, when that is news.
    Quality(NodeId, f64),
    /// All links that are up.
    Links(BTreeMap<NodeId, NodeName>),
    Dropped(&'static str),
}

/// A connection, greeted or not.
#[derive(Clone, Debug)]
pub(super) struct Conn {
    pub(super) peer: NodeId,
    pub(super) dialled: bool,
    pub(super) opened: Time,
}

/// A link that is up.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) conn: ConnId,
    pub(super) hello: Hello,
    pub(super) detector: Option<Detector>,
    /// The quality that was told last.
    pub(super) told: Option<f64>,
    /// Since when nobody here needs it.
    pub(super) idle_since: Option<Time>,
    /// When a router's frame came last, and until when the link counts as busy.
    pub(super) data_at: Option<Time>,
    pub(super) busy_until: Option<Time>,
}

impl Link {
    fn new(conn: ConnId, hello: Hello) -> Self {
        Self { conn, hello, detector: None, told: None, idle_since: None, data_at: None, busy_until: None }
    }
}

/// A peer that may be dialled.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) addresses: Vec<SocketAddr>,
    /// Its place among those to be introduced to, if it is one.
    pub(super) introduce: Option<usize>,
    pub(super) failures: u32,
    pub(super) failed_at: Time,
    pub(super) not_before: Time,
}

#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) settings: Settings,
    pub(super) known: BTreeMap<NodeId, Known>,
    pub(super) conns: BTreeMap<ConnId, Conn>,
    pub(super) links: BTreeMap<NodeId, Link>,
    pub(super) dialling: BTreeSet<NodeId>,
    pub(super) queue: VecDeque<NodeId>,
    /// What the host asked for beside what the tree needs.
    pub(super) requested: BTreeSet<NodeId>,
    pub(super) view: Arc<View>,
    pub(super) tree: BTreeSet<NodeId>,
    pub(super) backups: BTreeSet<NodeId>,
    hellos: u64,
    pub(super) seek_at: Time,
    pub(super) seek_after: Option<NodeId>,
    introduce_at: Time,
    pub(super) leaving: bool,
    /// When something is to be done next.
    pub(super) due: Time,
    /// How late this node does what is due, lately.
    pub(super) lag: Duration,
    pub(super) rng: Pcg32,
}

/// How often a node without a place looks whether somebody it was told of can be introduced to.
const INTRODUCE: Duration = Duration::from_millis(250);

impl Machine {
    pub fn new(now: Time, settings: Settings, view: Arc<View>) -> Self {
        Self {
            known: BTreeMap::new(),
            conns: BTreeMap::new(),
            links: BTreeMap::new(),
            dialling: BTreeSet::new(),
            queue: VecDeque::new(),
            requested: BTreeSet::new(),
            view,
            tree: BTreeSet::new(),
            backups: BTreeSet::new(),
            // A machine that starts cold within one process says later hellos than before.
            hellos: now.as_micros(),
            seek_at: now + Duration::from_secs(1),
            seek_after: None,
            introduce_at: now,
            leaving: false,
            due: now,
            lag: Duration::ZERO,
            rng: Pcg32::seed_from_u64(settings.seed),
            settings,
        }
    }

    /// Goes on from a snapshot; which of its connections still exist is told by [`Input::Resume`].
    pub fn recover(now: Time, snapshot: &Self) -> Self {
        let mut machine = snapshot.clone();
        machine.hellos = machine.hellos.max(now.as_micros());
        machine.dialling.clear();
        machine.queue.clear();
        (machine.lag, machine.due) = (Duration::ZERO, now);
        for link in machine.links.values_mut() {
            if let Some(detector) = &mut link.detector {
                detector.heard(now);
            }
        }
        machine
    }

    /// The peers whose links are up.
    pub fn up(&self) -> BTreeMap<NodeId, NodeName> {
        self.links.iter().map(|(&peer, link)| (peer, link.hello.name.clone())).collect()
    }

    pub fn known(&self) -> impl Iterator<Item = (&NodeId, &[SocketAddr])> {
        self.known.iter().map(|(id, known)| (id, known.addresses.as_slice()))
    }

    pub fn conn_of(&self, peer: &NodeId) -> Option<ConnId> {
        self.links.get(peer).map(|link| link.conn)
    }

    /// Dials under way.
    pub fn dialling(&self) -> usize {
        self.dialling.len()
    }

    pub fn conns(&self) -> BTreeSet<ConnId> {
        self.conns.keys().copied().collect()
    }

    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    pub fn step(&mut self, now: Time, input: Input, effects: &mut Vec<Effect>) {
        self.take(now, input, effects);
        self.due = self.next_due();
    }

    fn take(&mut self, now: Time, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Known(peers) => {
                for (order, (peer, addresses)) in peers.into_iter().enumerate() {
                    self.learn(peer, addresses, Some(order), effects);
                }
            }
            Input::Located(peers) => {
                peers.into_iter().for_each(|(peer, addresses)| self.learn(peer, addresses, None, effects));
            }
            Input::Placed(view) => self.placed(now, view, effects),
            Input::Connect(peer) => {
                self.requested.insert(peer);
                self.refresh_need(now, peer);
                self.dial(peer, effects);
            }
            Input::Disconnect(peer) => {
                self.requested.remove(&peer);
                self.end(now, peer, CloseReason::Disconnected, effects);
            }
            Input::Dialled { peer, conn } => self.dialled(now, peer, conn, effects),
            Input::DialFailed { peer, error } => self.dial_failed(now, peer, error, effects),
            Input::Accepted { peer, conn } => self.accepted(now, peer, conn, effects),
            Input::Closed { conn, reason } => self.closed(now, conn, seen_from_here(&reason), effects),
            Input::Frame { conn, frame } => self.frame(now, conn, frame, effects),
            Input::Beat { conn, beat } => self.beat(now, conn, beat, effects),
            Input::Heard(conn) => self.carried(now, conn),
            Input::Resume(existing) => self.resume(now, &existing, effects),
            Input::Replay => effects.push(Effect::Links(self.up())),
            Input::Leave => {
                self.leaving = true;
                let all: Vec<_> = self.conns.keys().copied().collect();
                for conn in all {
                    self.close(conn, CloseReason::Leaving, effects);
                }
                self.links.clear();
            }
        }
    }

    pub fn tick(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.leaving {
            return;
        }
        self.measure_lag(now);
        self.watch(now, effects);
        if now >= self.introduce_at {
            self.rest_if_idle(now);
            self.close_silent(now, effects);
            self.close_idle(now, effects);
            let settled = !self.tree.is_empty() && self.view.wanted.iter().all(|peer| self.links.contains_key(peer));
            self.introduce_at = now + if settled { INTRODUCE * 4 } else { INTRODUCE };
            self.introduce(now, effects);
            self.dial_wanted(now, effects);
        }
        self.seek(now, effects);
        self.due = self.next_due();
    }

    pub fn deadline(&self) -> Option<Time> {
        (!self.leaving).then_some(self.due)
    }

    fn next_due(&self) -> Time {
        let watched = self.links.values().filter_map(|link| Some(link.detector.as_ref()?.deadline(self.lag)));
        watched.fold(self.introduce_at, Time::min)
    }

    fn placed(&mut self, now: Time, view: Arc<View>, effects: &mut Vec<Effect>) {
        let former = std::mem::replace(&mut self.view, view);
        let former_tree = std::mem::replace(&mut self.tree, self.view.tree_peers());
        let former_backups = std::mem::replace(&mut self.backups, self.view.backup_peers());
        for peer in self.tree.difference(&former_tree) {
            if let Some(link) = self.links.get_mut(peer) {
                link.get_to_know(now, self.settings.heartbeat);
            }
        }
        for peer in self.view.wanted.clone() {
            if !self.links.contains_key(&peer) && !self.rests(now, &peer) {
                self.dial(peer, effects);
            }
        }
        self.queue.retain(|peer| self.view.wanted.contains(peer) || self.requested.contains(peer));
        let former = (&former.wanted, &former_tree, &former_backups);
        if former != (&self.view.wanted, &self.tree, &self.backups) {
            let peers: Vec<_> = self.links.keys().copied().collect();
            peers.into_iter().for_each(|peer| self.refresh_need(now, peer));
        }
    }

    pub(super) fn needs(&self, peer: &NodeId) -> bool {
        self.view.wanted.contains(peer) || self.pace(peer).is_some()
    }

    fn accepted(&mut self, now: Time, peer: NodeId, conn: ConnId, effects: &mut Vec<Effect>) {
        let ungreeted = self.conns.len().saturating_sub(self.links.len());
        if self.leaving || self.conns.len() >= Limits::CONNECTIONS || ungreeted >= Limits::UNGREETED {
            return effects.push(Effect::Close { conn, reason: CloseReason::Crowded });
        }
        self.conns.insert(conn, Conn { peer, dialled: false, opened: now });
    }

    pub(super) fn greet(&mut self, conn: ConnId, effects: &mut Vec<Effect>) {
        self.hellos += 1;
        let settings = &self.settings;
        let hello = Hello {
            formation: settings.formation,
            name: settings.name.clone(),
            level: settings.level,
            incarnation: settings.incarnation,
            count: self.hellos,
        };
        effects.push(Effect::Send { conn, frame: Frame::Hello(hello) });
    }

    fn frame(&mut self, now: Time, conn: ConnId, frame: Frame, effects: &mut Vec<Effect>) {
        let Some(peer) = self.conns.get(&conn).map(|known| known.peer) else {
            return effects.push(Effect::Dropped("frame_after_close"));
        };
        self.heard(now, conn);
        match frame {
            Frame::Hello(hello) => self.hello(now, peer, conn, hello, effects),
            frame if self.links.get(&peer).is_some_and(|link| link.conn == conn) => {
                if let Frame::Beacon(beacon) = &frame {
                    self.seek_root(now, beacon.root, effects);
                }
                effects.push(Effect::Control { peer, frame });
            }
            _ => effects.push(Effect::Dropped("frame_before_hello")),
        }
    }

    fn hello(&mut self, now: Time, peer: NodeId, conn: ConnId, hello: Hello, effects: &mut Vec<Effect>) {
        if hello.formation != self.settings.formation {
            return self.drop_conn(now, conn, CloseReason::Foreign, effects);
        }
        if let Some(link) = self.links.get(&peer)
            && (link.conn == conn || hello.version() <= link.hello.version())
        {
            return self.drop_conn(now, conn, CloseReason::Superseded, effects);
        }
        let dialled = self.conns[&conn].dialled;
        if !dialled {
            let mine = self.conns.iter().find(|(id, c)| **id != conn && c.peer == peer && c.dialled);
            let mine = mine.map(|(&id, _)| id);
            let greeted = self.links.contains_key(&peer);
            let dialling = self.dialling.contains(&peer) || mine.is_some();
            if dialling && !greeted && self.settings.me < peer {
                return self.drop_conn(now, conn, CloseReason::Duplicate, effects);
            }
            if let Some(mine) = mine.filter(|_| !greeted) {
                self.close(mine, CloseReason::Duplicate, effects);
            }
            self.greet(conn, effects);
        }
        self.establish(now, peer, conn, hello, effects);
    }

    fn establish(&mut self, now: Time, peer: NodeId, conn: ConnId, hello: Hello, effects: &mut Vec<Effect>) {
        if let Some(old) = self.links.remove(&peer) {
            effects.push(Effect::Down { peer, reason: "superseded by a newer connection".into() });
            self.close(old.conn, CloseReason::Superseded, effects);
        }
        self.links.insert(peer, Link::new(conn, hello.clone()));
        self.learn(peer, Vec::new(), None, effects);
        if let Some(known) = self.known.get_mut(&peer) {
            (known.failures, known.not_before) = (0, Time::ZERO);
        }
        self.refresh_need(now, peer);
        effects.push(Effect::Up { peer, conn, hello });
    }

    pub(super) fn link_over(&mut self, conn: ConnId) -> Option<&mut Link> {
        let peer = self.conns.get(&conn)?.peer;
        self.links.get_mut(&peer).filter(|link| link.conn == conn)
    }

    fn closed(&mut self, now: Time, conn: ConnId, reason: &str, effects: &mut Vec<Effect>) {
        let Some(Conn { peer, dialled, .. }) = self.conns.remove(&conn) else { return };
        if self.links.get(&peer).is_some_and(|link| link.conn == conn) {
            self.links.remove(&peer);
            effects.push(Effect::Down { peer, reason: reason.to_owned() });
        } else if dialled && !self.links.contains_key(&peer) && reason != CloseReason::Duplicate.label() {
            // The far side refused before it said hello.
            self.dial_failed(now, peer, reason.to_owned(), effects);
        }
    }

    pub(super) fn drop_conn(&mut self, now: Time, conn: ConnId, reason: CloseReason, effects: &mut Vec<Effect>) {
        effects.push(Effect::Close { conn, reason });
        self.closed(now, conn, reason.label(), effects);
    }

    fn close(&mut self, conn: ConnId, reason: CloseReason, effects: &mut Vec<Effect>) {
        if self.conns.remove(&conn).is_some() {
            effects.push(Effect::Close { conn, reason });
        }
    }

    pub(super) fn end(&mut self, now: Time, peer: NodeId, reason: CloseReason, effects: &mut Vec<Effect>) {
        if let Some(conn) = self.conn_of(&peer) {
            self.drop_conn(now, conn, reason, effects);
        }
    }

    fn resume(&mut self, now: Time, existing: &BTreeSet<ConnId>, effects: &mut Vec<Effect>) {
        let gone: Vec<_> = self.conns.keys().filter(|conn| !existing.contains(conn)).copied().collect();
        for conn in gone {
            self.closed(now, conn, "ended during a restart", effects);
        }
        for &conn in existing.iter().filter(|conn| !self.conns.contains_key(conn)) {
            effects.push(Effect::Close { conn, reason: CloseReason::Restarted });
        }
        effects.push(Effect::Links(self.up()));
    }

    fn close_silent(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let silent = |(id, conn): (&ConnId, &Conn)| {
            let greeted = self.links.get(&conn.peer).is_some_and(|link| link.conn == *id);
            (!greeted && now.since(conn.opened) > Limits::GREETING).then_some(*id)
        };
        let silent: Vec<_> = self.conns.iter().filter_map(silent).collect();
        for conn in silent {
            self.drop_conn(now, conn, CloseReason::Silent, effects);
        }
    }

    fn close_idle(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let idle = |link: &Link| link.idle_since.is_some_and(|since| now.since(since) > Limits::IDLE_LINK);
        let idle: Vec<_> = self.links.iter().filter(|(_, link)| idle(link)).map(|(&peer, _)| peer).collect();
        for peer in idle {
            self.end(now, peer, CloseReason::Idle, effects);
        }
    }
}

/// A peer that closes a link because it hears nothing was heard itself: the link is dead in one direction.
fn seen_from_here(reason: &str) -> &str {
    let ways = [CloseReason::Lost.label(), CloseReason::Unheard.label()];
    match ways.iter().position(|way| *way == reason) {
        Some(way) => ways[1 - way],
        None => reason,
    }
}
