//! The neighbours a node has heard, and how alive each is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::beacon::Beacon;
use crate::proto::beacon::nearby::Grid;
use crate::proto::geo::GeoPoint;
use crate::time::Time;

/// What became of a beacon that was heard.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// A node not heard before, or not lately, or not since it started again.
    Seen(Arc<Beacon>),
    /// News of a known node. Says whether anything but its sequence changed.
    Renewed { beacon: Arc<Beacon>, changed: bool },
    /// The node said goodbye, or was silent for longer than its time to live.
    Expired(NodeId),
}

/// How alive a neighbour is, judged by the age of its last new sequence number on our own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vitality {
    Alive,
    /// Two thirds of its time to live have passed in silence.
    Suspect,
    Expired,
    /// It said goodbye.
    Left,
}

/// A node that was heard.
#[derive(Clone, Debug)]
pub struct Neighbour {
    pub beacon: Arc<Beacon>,
    pub heard: Time,
}

impl Neighbour {
    pub fn vitality(&self, now: Time) -> Vitality {
        let (age, ttl) = (now.since(self.heard), Duration::from_secs(u64::from(self.beacon.ttl_s)));
        match () {
            () if ttl.is_zero() => Vitality::Left,
            () if age > ttl => Vitality::Expired,
            () if age > ttl * 2 / 3 => Vitality::Suspect,
            () => Vitality::Alive,
        }
    }

    /// Whether decisions may rely on it: an age of exactly its time to live still counts.
    pub fn is_fresh(&self, now: Time) -> bool {
        matches!(self.vitality(now), Vitality::Alive | Vitality::Suspect)
    }
}

/// All neighbours, bounded by [`Limits::NEIGHBOURS`].
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    by_id: BTreeMap<NodeId, Neighbour>,
    /// Those with a position.
    grid: Grid,
}

impl Neighbours {
    /// Takes in a beacon; `None` if it is not newer than what is known.
    pub fn observe(&mut self, now: Time, beacon: Arc<Beacon>) -> Option<Observation> {
        let id = beacon.id;
        if let Some(known) = self.by_id.get_mut(&id) {
            if beacon.version() <= known.beacon.version() {
                return None;
            }
            if known.beacon.position != beacon.position {
                let (before, after) = (known.beacon.point(), beacon.point());
                before.iter().for_each(|point| self.grid.remove(&id, point));
                after.iter().for_each(|point| self.grid.insert(id, point));
            }
            let was_known = known.is_fresh(now) && known.beacon.incarnation == beacon.incarnation;
            let changed = !says_the_same(&known.beacon, &beacon);
            *known = Neighbour { beacon: beacon.clone(), heard: now };
            return Some(match (beacon.ttl_s, was_known) {
                (0, _) => Observation::Expired(id),
                (_, true) => Observation::Renewed { beacon, changed },
                (_, false) => Observation::Seen(beacon),
            });
        }
        if self.by_id.len() >= Limits::NEIGHBOURS {
            self.drop_oldest();
        }
        beacon.point().iter().for_each(|point| self.grid.insert(id, point));
        self.by_id.insert(id, Neighbour { beacon: beacon.clone(), heard: now });
        (beacon.ttl_s > 0).then_some(Observation::Seen(beacon))
    }

    /// Forgets who has been silent for twice its time to live and reports whom that concerns.
    ///
    /// They are kept that long so that a late repetition of an old beacon is still recognised as old.
    pub fn sweep(&mut self, now: Time) -> Vec<NodeId> {
        let keep = |n: &Neighbour| now.since(n.heard) <= Duration::from_secs(u64::from(n.beacon.ttl_s).max(30)) * 2;
        let gone: Vec<_> = self.by_id.iter().filter(|(_, n)| !keep(n)).map(|(&id, _)| id).collect();
        for id in &gone {
            self.remove(id);
        }
        gone
    }

    /// Forgets one node; whether it was known.
    pub fn remove(&mut self, id: &NodeId) -> bool {
        let Some(gone) = self.by_id.remove(id) else { return false };
        gone.beacon.point().iter().for_each(|point| self.grid.remove(id, point));
        true
    }

    /// The fresh neighbours within so many metres of a point, the nearest first, with their distance.
    pub fn nearby(&self, now: Time, point: &GeoPoint, metres: f64) -> Vec<(f64, &Neighbour)> {
        let candidates = self.grid.around(point, metres);
        let fresh = candidates.iter().filter_map(|id| self.by_id.get(id)).filter(|n| n.is_fresh(now));
        let placed = fresh.filter_map(|n| Some((n.beacon.point()?.distance_m(point), n)));
        let mut near: Vec<_> = placed.filter(|(distance, _)| *distance <= metres).collect();
        near.sort_by(|(a, x), (b, y)| a.total_cmp(b).then(x.beacon.id.cmp(&y.beacon.id)));
        near
    }

    pub fn get(&self, id: &NodeId) -> Option<&Neighbour> {
        self.by_id.get(id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &Neighbour)> {
        self.by_id.iter()
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// After a restart silence says nothing: everyone who was fresh gets one time to live.
    pub fn forgive(&mut self, now: Time) {
        for neighbour in self.by_id.values_mut().filter(|n| n.is_fresh(now)) {
            neighbour.heard = now;
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self.by_id.iter().min_by_key(|(_, n)| n.heard).map(|(&id, _)| id);
        if let Some(id) = oldest {
            self.remove(&id);
        }
    }
}

fn says_the_same(a: &Beacon, b: &Beacon) -> bool {
    a.level == b.level
        && a.effective_level == b.effective_level
        && a.role == b.role
        && a.rank == b.rank
        && a.parent == b.parent
        && a.root == b.root
        && a.free_slots == b.free_slots
        && a.can_parent == b.can_parent
        && a.operational == b.operational
        && a.parent_priority == b.parent_priority
        && a.mobility == b.mobility
        && a.resources == b.resources
        && a.capabilities == b.capabilities
        && a.position == b.position
        && a.cell_bits == b.cell_bits
        && a.addresses == b.addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Keypair;
    use crate::proto::beacon::tests::sample;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn beacon(sequence: u64) -> Arc<Beacon> {
        Arc::new(Beacon { sequence, ..sample(&Keypair::from_seed([1; 32])) })
    }

    #[test]
    fn an_older_sequence_never_replaces_a_newer_one() {
        let mut table = Neighbours::default();
        assert!(matches!(table.observe(at(0), beacon(5)), Some(Observation::Seen(_))));
        assert_eq!(table.observe(at(1), beacon(4)), None);
        assert_eq!(table.observe(at(1), beacon(5)), None);
        assert!(matches!(table.observe(at(2), beacon(6)), Some(Observation::Renewed { changed: false, .. })));
    }

    #[test]
    fn who_starts_again_is_new_though_its_last_life_was_heard_a_moment_ago() {
        let mut table = Neighbours::default();
        table.observe(at(0), beacon(5));
        let restarted = Beacon { incarnation: beacon(5).incarnation + 1, ..(*beacon(1)).clone() };
        assert!(matches!(table.observe(at(1), Arc::new(restarted)), Some(Observation::Seen(_))));
        assert_eq!(table.observe(at(2), beacon(6)), None, "what its last life said comes too late");
    }

    #[test]
    fn age_counts_from_the_last_new_sequence() {
        let mut table = Neighbours::default();
        table.observe(at(0), beacon(5));
        table.observe(at(29), beacon(5));
        let id = beacon(5).id;
        assert!(table.get(&id).unwrap().is_fresh(at(30)));
        assert_eq!(table.get(&id).unwrap().vitality(at(21)), Vitality::Suspect);
        assert!(!table.get(&id).unwrap().is_fresh(at(30) + Duration::from_micros(1)));
        assert_eq!(table.sweep(at(60)), []);
        assert_eq!(table.sweep(at(61)), [id]);
    }

    #[test]
    fn a_goodbye_is_believed_at_once() {
        let mut table = Neighbours::default();
        table.observe(at(0), beacon(5));
        let goodbye = Arc::new(Beacon { ttl_s: 0, ..(*beacon(6)).clone() });
        assert_eq!(table.observe(at(1), goodbye.clone()), Some(Observation::Expired(goodbye.id)));
        assert_eq!(table.get(&goodbye.id).unwrap().vitality(at(1)), Vitality::Left);
        assert_eq!(table.observe(at(2), beacon(5)), None);
    }

    fn near(lat: f64, lon: f64, n: u32) -> Arc<Beacon> {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        let position = GeoPoint::new(lat, lon).unwrap().into();
        let beacon = sample(&Keypair::from_seed([1; 32]));
        Arc::new(Beacon { id: NodeId::from_bytes(id), position: Some(position), ..beacon })
    }

    #[test]
    fn who_moves_expires_or_is_forgotten_is_not_found_where_it_was() {
        let (mut table, here) = (Neighbours::default(), GeoPoint::new(10.0, 179.999).unwrap());
        table.observe(at(0), near(10.0, -179.999, 1));
        assert_eq!(table.nearby(at(1), &here, 500.0).len(), 1);
        let moved = Arc::new(Beacon { sequence: 2_000, ..(*near(11.0, 0.0, 1)).clone() });
        table.observe(at(1), moved.clone());
        assert_eq!(table.nearby(at(1), &here, 500.0).len(), 0);
        let there = moved.point().unwrap();
        assert_eq!(table.nearby(at(1), &there, 500.0).len(), 1);
        assert_eq!(table.nearby(at(100), &there, 500.0).len(), 0);
        table.remove(&moved.id);
        assert_eq!(table.nearby(at(1), &there, 500.0).len(), 0);
    }

    proptest! {
        #[test]
        fn nearby_finds_whom_a_look_at_everybody_finds(
            points in vec((-90.0..=90.0f64, -180.0..=180.0f64), 1..60),
            lat in -90.0..=90.0f64,
            lon in -180.0..=180.0f64,
            metres in prop_oneof![1.0..5_000.0f64, 1_000.0..20_000_000.0f64],
        ) {
            let (mut table, here) = (Neighbours::default(), GeoPoint::new(lat, lon).unwrap());
            let close = points.iter().map(|&(a, b)| {
                let there = here.offset(a.abs() * metres / 45.0, b.to_radians());
                (there.lat(), there.lon())
            });
            let all: Vec<_> = points.iter().copied().chain(close).collect();
            for (n, (a, b)) in all.iter().enumerate() {
                table.observe(at(0), near(*a, *b, n as u32));
            }
            let found: Vec<_> = table.nearby(at(1), &here, metres).iter().map(|(_, n)| n.beacon.id).collect();
            let mut expected: Vec<_> = table
                .iter()
                .map(|(id, n)| (n.beacon.point().unwrap().distance_m(&here), *id))
                .filter(|(distance, _)| *distance <= metres)
                .collect();
            expected.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            prop_assert_eq!(found, expected.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
        }
    }
}
