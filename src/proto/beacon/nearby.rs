//! A spatial index of neighbours: a grid of cells by row, so that what is near is found without looking at everybody.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::NodeId;
use crate::proto::geo::{Cell, EARTH_RADIUS_M, GeoPoint};

/// The grid's fineness: cells 600 m high, and 1,200 m wide at the equator.
const BITS: u8 = 30;
/// More rows than that are not gone through one by one.
const ROWS: u32 = 2_048;

#[derive(Clone, Debug, Default)]
pub struct Grid(BTreeMap<(u32, u32), BTreeSet<NodeId>>);

impl Grid {
    fn key(point: &GeoPoint) -> (u32, u32) {
        let cell = point.cell(BITS);
        (cell.row(), cell.column())
    }

    pub fn insert(&mut self, id: NodeId, point: &GeoPoint) {
        self.0.entry(Self::key(point)).or_default().insert(id);
    }

    pub fn remove(&mut self, id: &NodeId, point: &GeoPoint) {
        let key = Self::key(point);
        if let Some(here) = self.0.get_mut(&key) {
            here.remove(id);
            if here.is_empty() {
                self.0.remove(&key);
            }
        }
    }

    /// Everybody who may be within `metres` of a point; some are a little further.
    pub fn around(&self, point: &GeoPoint, metres: f64) -> Vec<NodeId> {
        let angle = metres / EARTH_RADIUS_M;
        let (south, north) = (point.lat() - angle.to_degrees() - 1e-9, point.lat() + angle.to_degrees() + 1e-9);
        let row = |lat: f64| GeoPoint::new(lat.clamp(-90.0, 90.0), 0.0).map_or(0, |p| p.cell(BITS).row());
        let (first, last) = (row(south), row(north));
        // How far east the circle reaches where it is widest; around a pole, or beyond one, it is everywhere.
        let reach = angle.sin() / point.lat().to_radians().cos();
        let everywhere = south <= -90.0 || north >= 90.0 || angle >= 1.5 || reach >= 1.0;
        if last - first > ROWS || everywhere {
            let rows = self.0.range((first, 0)..=(last, u32::MAX));
            return rows.flat_map(|(_, ids)| ids).copied().collect();
        }
        let half = reach.asin().to_degrees() + 1e-9;
        let wrapped = |lon: f64| (lon + 540.0).rem_euclid(360.0) - 180.0;
        let column = |lon: f64| GeoPoint::new(0.0, wrapped(lon)).map_or(0, |p| p.cell(BITS).column());
        let (west, east) = (column(point.lon() - half), column(point.lon() + half));
        let spans = if west <= east && half < 90.0 {
            vec![(west, east)]
        } else {
            vec![(west, Cell::columns(BITS) - 1), (0, east)]
        };
        let mut found = Vec::new();
        for row in first..=last {
            for &(from, to) in &spans {
                found.extend(self.0.range((row, from)..=(row, to)).flat_map(|(_, ids)| ids).copied());
            }
        }
        found
    }
}
