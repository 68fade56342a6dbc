//! Laterals: a bounded number of links to the nearest nodes of one's own group.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::NodeId;
use crate::proto::event::Event;
use crate::proto::topology::machine::{Effect, Machine};
use crate::proto::topology::{Frame, Lateral};
use crate::time::Time;

/// How long an offer may go without an answer.
const ANSWER: Duration = Duration::from_secs(3);
/// How long a peer that did not accept is left alone: twice as long each time, for most have no room for good.
const REST: Duration = Duration::from_secs(300);
const LONGEST_REST: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bond {
    /// We want it; the offer goes out when the link is up.
    Offered {
        until: Time,
        sent: bool,
        times: u32,
    },
    Accepted,
    /// It did not accept, so often by now.
    Resting {
        until: Time,
        times: u32,
    },
}

impl Bond {
    fn times(self) -> u32 {
        match self {
            Self::Offered { times, .. } | Self::Resting { times, .. } => times,
            Self::Accepted => 0,
        }
    }
}

/// Left alone for longer each time.
fn resting(now: Time, times: u32) -> Bond {
    let wait = (REST * 2u32.pow(times.min(16))).min(LONGEST_REST);
    Bond::Resting { until: now + wait, times: times + 1 }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Laterals(BTreeMap<NodeId, Bond>);

impl Laterals {
    pub fn accepted(&self) -> impl Iterator<Item = NodeId> {
        self.0.iter().filter(|(_, bond)| **bond == Bond::Accepted).map(|(&id, _)| id)
    }

    /// Places taken: an offer under way may be accepted at any time.
    fn taken(&self) -> usize {
        self.wanted().count()
    }

    pub fn wanted(&self) -> impl Iterator<Item = NodeId> {
        self.0.iter().filter(|(_, bond)| !matches!(bond, Bond::Resting { .. })).map(|(&id, _)| id)
    }
}

impl Machine {
    /// Of two members the one with the lower id offers, one peer at a time, the nearest first.
    pub(super) fn choose_laterals(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let known = &self.neighbours;
        self.laterals.0.retain(|id, bond| !matches!(bond, Bond::Resting { .. }) || known.get(id).is_some());
        // Who has risen or stepped down since is no lateral any more.
        let level = self.effective_level();
        let moved = |id: &NodeId| known.get(id).is_some_and(|n| n.beacon.effective_level != level);
        let moved: Vec<_> = self.laterals.accepted().filter(moved).collect();
        for peer in moved {
            effects.push(Effect::Send(peer, Frame::Lateral(Lateral::End)));
            self.lateral_gone(peer, effects);
        }
        for bond in self.laterals.0.values_mut() {
            if let Bond::Offered { until, times, .. } = *bond
                && now >= until
            {
                *bond = resting(now, times);
            }
        }
        let offering = self.laterals.0.iter().find(|(_, bond)| matches!(bond, Bond::Offered { .. }));
        let peer = match offering {
            Some((&peer, _)) => Some(peer),
            None if self.laterals.accepted().count() < self.settings.max_laterals => self.nearest_peer(now),
            None => None,
        };
        let Some(peer) = peer else { return };
        let linked = self.links.contains_key(&peer);
        let bond = self.laterals.0.entry(peer).or_insert(Bond::Resting { until: now, times: 0 });
        if let Bond::Resting { times, .. } = *bond {
            *bond = Bond::Offered { until: now + ANSWER, sent: false, times };
        }
        if let Bond::Offered { sent, .. } = bond
            && linked
            && !*sent
        {
            *sent = true;
            effects.push(Effect::Send(peer, Frame::Lateral(Lateral::Offer)));
        }
        self.touch();
    }

    fn nearest_peer(&self, now: Time) -> Option<NodeId> {
        let parent = self.uplink.parent.as_ref().map(|parent| parent.id.prefix());
        let level = self.effective_level();
        let peers = self.neighbours.iter().filter(|(id, n)| {
            n.beacon.effective_level == level
                && n.beacon.parent == parent
                && **id > self.settings.me
                && n.is_fresh(now)
                && self
                    .laterals
                    .0
                    .get(id)
                    .is_none_or(|bond| matches!(bond, Bond::Resting { until, .. } if now >= *until))
        });
        let distance = |point: Option<crate::proto::geo::GeoPoint>| match (self.description.position, point) {
            (Some(here), Some(there)) => here.distance_m(&there),
            _ => f64::MAX,
        };
        let nearest = peers
            .min_by(|(a, x), (b, y)| distance(x.beacon.point()).total_cmp(&distance(y.beacon.point())).then(a.cmp(b)));
        nearest.map(|(&id, _)| id)
    }

    pub(super) fn lateral_said(&mut self, now: Time, peer: NodeId, said: Lateral, effects: &mut Vec<Effect>) {
        let bond = self.laterals.0.get(&peer).copied();
        match (said, bond) {
            (Lateral::Offer, Some(Bond::Accepted)) => {
                effects.push(Effect::Send(peer, Frame::Lateral(Lateral::Accept)));
            }
            (Lateral::Offer, Some(Bond::Offered { .. })) => {
                effects.push(Effect::Send(peer, Frame::Lateral(Lateral::Accept)));
                self.lateral_found(peer, effects);
            }
            (Lateral::Offer, _) if self.leaving || self.laterals.taken() >= self.settings.max_laterals => {
                effects.push(Effect::Send(peer, Frame::Lateral(Lateral::End)));
            }
            // Only who is known to be of this level is a lateral.
            (Lateral::Offer, _)
                if self.neighbours.get(&peer).is_none_or(|n| n.beacon.effective_level != self.effective_level()) =>
            {
                effects.push(Effect::Dropped("unwanted_lateral"));
                effects.push(Effect::Send(peer, Frame::Lateral(Lateral::End)));
            }
            (Lateral::Offer, _) => {
                effects.push(Effect::Send(peer, Frame::Lateral(Lateral::Accept)));
                self.lateral_found(peer, effects);
            }
            (Lateral::Accept, Some(Bond::Offered { .. })) => self.lateral_found(peer, effects),
            (Lateral::Accept, _) => {}
            (Lateral::End, _) => {
                self.lateral_gone(peer, effects);
                self.laterals.0.insert(peer, resting(now, bond.map_or(0, Bond::times)));
            }
        }
    }

    fn lateral_found(&mut self, peer: NodeId, effects: &mut Vec<Effect>) {
        self.laterals.0.insert(peer, Bond::Accepted);
        effects.push(Effect::Event(Event::LateralPeerDiscovered { peer }));
        self.touch();
    }

    pub(super) fn lateral_gone(&mut self, peer: NodeId, effects: &mut Vec<Effect>) {
        match self.laterals.0.get(&peer) {
            // Who rests goes on resting when the link that nobody needs is closed.
            None | Some(Bond::Resting { .. }) => return,
            Some(Bond::Offered { .. }) => {}
            Some(Bond::Accepted) => effects.push(Effect::Event(Event::LateralPeerLost { peer })),
        }
        self.laterals.0.remove(&peer);
        self.touch();
    }

    pub(super) fn lateral_unreachable(&mut self, now: Time, peer: NodeId) {
        if let Some(bond) = self.laterals.0.get_mut(&peer) {
            *bond = resting(now, bond.times());
            self.touch();
        }
    }
}
