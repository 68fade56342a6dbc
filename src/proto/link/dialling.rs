//! Whom to dial: what the tree or the host needs, whom a newcomer makes itself known to, and who may be outside.

use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt;

use crate::id::{NodeId, Prefix};
use crate::limits::Limits;
use crate::proto::link::machine::{Conn, Effect, Machine};
use crate::proto::link::{CloseReason, ConnId};
use crate::time::Time;

/// How long a root that could not be reached is left alone, however many name it.
const UNREACHED: Duration = Duration::from_millis(250);

impl Machine {
    pub(super) fn learn(
        &mut self,
        peer: NodeId,
        addresses: Vec<SocketAddr>,
        introduce: Option<usize>,
        effects: &mut Vec<Effect>,
    ) {
        if peer == self.settings.me {
            return;
        }
        if !self.known.contains_key(&peer) && self.known.len() >= Limits::KNOWN_PEERS {
            return effects.push(Effect::Dropped("known_peers_full"));
        }
        let known = self.known.entry(peer).or_default();
        known.introduce = known.introduce.or(introduce);
        let news: Vec<_> = addresses.into_iter().filter(|address| !known.addresses.contains(address)).collect();
        if !news.is_empty() {
            known.addresses.splice(0..0, news);
            known.addresses.truncate(Limits::ADDRESSES);
            known.not_before = Time::ZERO;
        }
    }

    pub(super) fn dial(&mut self, peer: NodeId, effects: &mut Vec<Effect>) {
        let pending = self.conns.values().any(|conn| conn.peer == peer && conn.dialled);
        if self.leaving || peer == self.settings.me || self.links.contains_key(&peer) || pending {
            return;
        }
        if self.dialling.contains(&peer) || self.queue.contains(&peer) {
            return;
        }
        if self.dialling.len() >= Limits::DIALS {
            return self.queue.push_back(peer);
        }
        self.dialling.insert(peer);
        let addresses = self.known.get(&peer).map(|known| known.addresses.clone()).unwrap_or_default();
        effects.push(Effect::Dial { peer, addresses });
    }

    fn dial_ended(&mut self, peer: NodeId, effects: &mut Vec<Effect>) {
        self.dialling.remove(&peer);
        // Some that waited are linked by now: they leave their turn to the next.
        while self.dialling.len() < Limits::DIALS
            && let Some(next) = self.queue.pop_front()
        {
            self.dial(next, effects);
        }
    }

    pub(super) fn dialled(&mut self, now: Time, peer: NodeId, conn: ConnId, effects: &mut Vec<Effect>) {
        self.dial_ended(peer, effects);
        if self.links.contains_key(&peer) || self.leaving {
            return effects.push(Effect::Close { conn, reason: CloseReason::Duplicate });
        }
        self.conns.insert(conn, Conn { peer, dialled: true, opened: now });
        self.greet(conn, effects);
    }

    pub(super) fn dial_failed(&mut self, now: Time, peer: NodeId, error: String, effects: &mut Vec<Effect>) {
        self.dial_ended(peer, effects);
        if self.links.contains_key(&peer) {
            return;
        }
        if let Some(known) = self.known.get_mut(&peer) {
            let wait = self.settings.backoff.jittered(known.failures, &mut self.rng);
            (known.failed_at, known.not_before) = (now, now + wait);
            known.failures = known.failures.saturating_add(1);
        }
        effects.push(Effect::Unreachable { peer, reason: error });
    }

    /// A node without a place in the tree makes itself known to a few of the peers it was given.
    pub(super) fn introduce(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if !self.tree.is_empty() {
            return;
        }
        let missing = Limits::INTRODUCTIONS.saturating_sub(self.links.len());
        let room = Limits::DIALS.saturating_sub(self.dialling.len());
        if missing == 0 || room == 0 {
            return;
        }
        let willing = self.known.iter().filter(|(peer, known)| {
            known.introduce.is_some()
                && now >= known.not_before
                && !self.links.contains_key(peer)
                && !self.dialling.contains(peer)
        });
        let mut chosen: Vec<_> = willing.map(|(&peer, known)| (known.introduce, peer)).collect();
        chosen.sort_unstable();
        for (_, peer) in chosen.into_iter().take(room) {
            self.dial(peer, effects);
        }
    }

    /// Whether a dial failed so lately that there is no other yet. An orphan does not wait for long, however often it has
    /// failed before.
    pub(super) fn rests(&self, now: Time, peer: &NodeId) -> bool {
        let Some(known) = self.known.get(peer) else { return false };
        let orphaned = self.view.parent.is_none() && self.view.wanted.contains(peer);
        let soon = if orphaned { known.failed_at + Limits::ORPHAN_WAITS } else { known.not_before };
        now < known.not_before.min(soon)
    }

    /// What the tree or the host needs and is not up is dialled again when its backoff has passed.
    pub(super) fn dial_wanted(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let missing = |peer: &&NodeId| !self.links.contains_key(*peer) && !self.rests(now, peer);
        let missing: Vec<_> = self.view.wanted.iter().chain(&self.requested).filter(missing).copied().collect();
        for peer in missing {
            self.dial(peer, effects);
        }
    }

    /// A root, a detached node or one of an island looks for somebody outside, one remembered peer at a time, in turn.
    pub(super) fn seek(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some(interval) = self.view.seek else { return };
        if now < self.seek_at {
            return;
        }
        self.seek_at = now + interval.mul_f64(self.rng.random_range(0.75..1.0));
        let outside = |peer: &&NodeId| !self.links.contains_key(*peer) && !self.view.descendants.contains_key(*peer);
        let after = self.seek_after;
        let later = self.known.keys().filter(|peer| after.is_none_or(|after| **peer > after)).find(outside);
        let Some(&next) = later.or_else(|| self.known.keys().find(outside)) else { return };
        self.seek_after = Some(next);
        self.dial(next, effects);
    }

    /// Somebody names a root. If it is another than ours, whoever looks for others need not wait for its turn.
    pub(super) fn seek_root(&mut self, now: Time, root: Prefix, effects: &mut Vec<Effect>) {
        if self.view.seek.is_none() || self.view.root().prefix() == root {
            return;
        }
        let Some((&other, known)) = self.known.iter().find(|(peer, _)| peer.prefix() == root) else { return };
        let rests = known.failures > 0 && now < known.failed_at + UNREACHED;
        if !rests && !self.view.descendants.contains_key(&other) {
            self.dial(other, effects);
        }
    }
}
