//! Who hears a beacon: scopes by level and cell, so that traffic does not grow with the mesh.
//!
//! A node speaks to its own level around it, and listens to the levels above, where its parents are, and to the one
//! below, where those are who look for one. A leaf that has a parent is silent: its parent knows it by the link, and
//! introduces it to its siblings. Where a cell is crowded its nodes speak in half of it; a beacon says in how fine a
//! cell its sender speaks, so listeners follow. The whole formation hears who finds nobody, and who does not know where
//! it is and is no leaf with a parent.

use std::collections::{BTreeMap, BTreeSet};

use crate::level::Level;
use crate::proto::beacon::{Beacon, Neighbours};
use crate::proto::geo::{Cell, GeoPoint};
use crate::time::Time;

/// Nodes of one level that speak in one cell; beyond, they speak in half of it.
const CROWD: usize = 2;
/// How much finer than its base a level's cells become at most, in halvings.
const FINEST: u8 = 16;
/// How many sizes of cell a listener follows per level, beside the base.
const SIZES: usize = 2;

/// A set of listeners.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everybody.
    Formation,
    /// Around the nodes of one level in a cell.
    Cell(Level, Cell),
}

/// How fine a level's cells are before anything is crowded: 3 km² for platforms, 32 or 64 times as much for each level
/// above.
fn base_bits(level: Level) -> u8 {
    28u8.saturating_sub(level.0.saturating_mul(5)).max(2)
}

/// In how fine a cell this node speaks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fineness(u8);

impl Fineness {
    pub fn bits(self, level: Level) -> u8 {
        base_bits(level) + self.0
    }

    /// Whether everybody of other levels around listens in cells of this size.
    pub fn is_base(self) -> bool {
        self.0 == 0
    }

    /// Follows the crowd around: halves the cell when too many speak in it, doubles it when few would.
    pub fn adapt(&mut self, now: Time, level: Level, here: Option<GeoPoint>, neighbours: &Neighbours) -> bool {
        let Some(here) = here else { return false };
        let speaking = |bits: u8| {
            let home = here.cell(bits);
            let of_level = neighbours.iter().filter(|(_, n)| n.beacon.effective_level == level && n.is_fresh(now));
            of_level.filter(|(_, n)| n.beacon.point().is_some_and(|point| point.cell(bits) == home)).count()
        };
        let before = self.0;
        if self.0 < FINEST && speaking(self.bits(level)) > CROWD {
            self.0 += 1;
        } else if self.0 > 0 && speaking(self.bits(level) - 1) < CROWD / 2 {
            self.0 -= 1;
        }
        self.0 != before
    }
}

/// Where a node of this level speaks; one that does not know where it is speaks everywhere.
pub fn spoken(level: Level, here: Option<GeoPoint>, fineness: Fineness) -> Scope {
    here.map_or(Scope::Formation, |here| Scope::Cell(level, here.cell(fineness.bits(level))))
}

/// Where a node listens to some levels: around it, in the sizes of cell in which somebody speaks, and to whoever speaks
/// everywhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Hearing {
    here: Option<GeoPoint>,
    /// Each level, and the sizes of its cells.
    sizes: BTreeSet<(Level, u8)>,
}

impl Hearing {
    pub fn new(
        now: Time,
        levels: std::ops::RangeInclusive<u8>,
        here: Option<GeoPoint>,
        neighbours: &Neighbours,
    ) -> Self {
        let mut speakers: BTreeMap<(Level, u8), usize> = BTreeMap::new();
        for (_, neighbour) in neighbours.iter().filter(|(_, n)| n.is_fresh(now)) {
            let Beacon { effective_level: level, cell_bits, .. } = *neighbour.beacon;
            if levels.contains(&level.0) && cell_bits > 0 {
                *speakers.entry((level, cell_bits)).or_default() += 1;
            }
        }
        let mut sizes = BTreeSet::new();
        for level in levels.map(Level) {
            let of_level = speakers.range((level, 0)..=(level, u8::MAX));
            let mut bits: Vec<_> = of_level.map(|(&(_, bits), &count)| (std::cmp::Reverse(count), bits)).collect();
            bits.sort_unstable();
            sizes.extend(bits.into_iter().take(SIZES).map(|(_, bits)| (level, bits)));
            sizes.insert((level, base_bits(level)));
        }
        Self { here, sizes }
    }

    pub fn scopes(&self) -> BTreeSet<Scope> {
        let near = |here: GeoPoint| {
            let cells = self.sizes.iter().map(move |&(level, bits)| (level, here.cells_near(bits)));
            cells.flat_map(|(level, cells)| cells.into_iter().map(move |cell| Scope::Cell(level, cell)))
        };
        self.here.into_iter().flat_map(near).chain([Scope::Formation]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Keypair;
    use crate::proto::beacon::tests::sample;
    use std::sync::Arc;

    fn here() -> GeoPoint {
        GeoPoint::new(52.52, 13.40).unwrap()
    }

    /// So many squads within a kilometre.
    fn crowd(count: u8) -> Neighbours {
        let mut neighbours = Neighbours::default();
        for n in 0..count {
            let position = here().offset(f64::from(n) * 1000.0 / f64::from(count.max(1)), f64::from(n));
            let beacon = sample(&Keypair::from_seed([n + 1; 32]));
            let beacon = Beacon { position: Some(position.into()), cell_bits: 25, ..beacon };
            neighbours.observe(Time::ZERO, Arc::new(beacon));
        }
        neighbours
    }

    fn heard(levels: std::ops::RangeInclusive<u8>, here: Option<GeoPoint>, neighbours: &Neighbours) -> BTreeSet<Scope> {
        Hearing::new(Time::ZERO, levels, here, neighbours).scopes()
    }

    #[test]
    fn a_crowded_cell_is_halved_until_few_speak_in_it_and_doubled_when_they_are_gone() {
        let (mut fineness, many) = (Fineness::default(), crowd(100));
        while fineness.adapt(Time::ZERO, Level::SQUAD, Some(here()), &many) {}
        assert!(fineness.0 > 2, "{fineness:?}");
        let spoken = here().cell(fineness.bits(Level::SQUAD));
        let speaking = many.iter().filter(|(_, n)| n.beacon.point().unwrap().cell(spoken.bits()) == spoken).count();
        assert!(speaking <= CROWD, "{speaking}");
        while fineness.adapt(Time::ZERO, Level::SQUAD, Some(here()), &crowd(0)) {}
        assert_eq!(fineness.0, 0);
    }

    #[test]
    fn a_listener_is_where_a_neighbour_in_reach_speaks() {
        let speaker = here().offset(100.0, 1.0);
        let (mut fineness, many) = (Fineness::default(), crowd(20));
        let levels = Level::SQUAD.0..=3;
        assert!(heard(levels.clone(), Some(here()), &Neighbours::default()).contains(&spoken(
            Level::SQUAD,
            Some(speaker),
            fineness
        )));
        // The crowd speaks in cells of 25 bits: whoever has heard one of them listens there.
        while fineness.bits(Level::SQUAD) < 25 {
            fineness.0 += 1;
        }
        assert!(heard(levels, Some(here()), &many).contains(&spoken(Level::SQUAD, Some(speaker), fineness)));
    }

    #[test]
    fn who_has_no_position_is_heard_everywhere() {
        let nowhere = spoken(Level::SQUAD, None, Fineness::default());
        assert!(heard(1..=3, Some(here()), &Neighbours::default()).contains(&nowhere));
        assert!(heard(1..=3, None, &Neighbours::default()).contains(&nowhere));
    }
}
