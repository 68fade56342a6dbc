//! Geography: points, distances and geohash cells, right at the poles and across the antimeridian.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Mean radius of the Earth in metres.
pub const EARTH_RADIUS_M: f64 = 6_371_000.0;

/// A point on the Earth: degrees north, degrees east, and metres above the ellipsoid if known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GeoPoint {
    lat: f64,
    lon: f64,
    alt: Option<f64>,
}

/// Why three numbers are not a point.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum InvalidPoint {
    #[error("latitude {0} is outside -90..=90")]
    Latitude(f64),
    #[error("longitude {0} is outside -180..=180")]
    Longitude(f64),
    #[error("altitude {0} m is outside -12,000..=100,000")]
    Altitude(f64),
}

impl GeoPoint {
    pub fn new(lat: f64, lon: f64) -> Result<Self, InvalidPoint> {
        if !(-90.0..=90.0).contains(&lat) {
            return Err(InvalidPoint::Latitude(lat));
        }
        if !(-180.0..=180.0).contains(&lon) {
            return Err(InvalidPoint::Longitude(lon));
        }
        Ok(Self { lat, lon, alt: None })
    }

    pub fn with_altitude(self, metres: f64) -> Result<Self, InvalidPoint> {
        if !(-12_000.0..=100_000.0).contains(&metres) {
            return Err(InvalidPoint::Altitude(metres));
        }
        Ok(Self { alt: Some(metres), ..self })
    }

    pub fn lat(&self) -> f64 {
        self.lat
    }

    pub fn lon(&self) -> f64 {
        self.lon
    }

    pub fn alt(&self) -> Option<f64> {
        self.alt
    }

    /// Great-circle distance in metres (haversine), altitude left aside.
    pub fn distance_m(&self, other: &Self) -> f64 {
        let (lat1, lat2) = (self.lat.to_radians(), other.lat.to_radians());
        let half = |a: f64, b: f64| ((b - a) / 2.0).sin().powi(2);
        let h = half(lat1, lat2) + lat1.cos() * lat2.cos() * half(self.lon.to_radians(), other.lon.to_radians());
        2.0 * EARTH_RADIUS_M * h.min(1.0).sqrt().asin()
    }

    /// The point `metres` away on the initial bearing of `radians` (0 = north, clockwise).
    pub fn offset(&self, metres: f64, radians: f64) -> Self {
        let (angle, lat1) = (metres / EARTH_RADIUS_M, self.lat.to_radians());
        let lat2 = (lat1.sin() * angle.cos() + lat1.cos() * angle.sin() * radians.cos()).clamp(-1.0, 1.0).asin();
        let east = (radians.sin() * angle.sin() * lat1.cos()).atan2(angle.cos() - lat1.sin() * lat2.sin());
        let lon = (self.lon + east.to_degrees() + 540.0).rem_euclid(360.0) - 180.0;
        Self { lat: lat2.to_degrees(), lon, alt: self.alt }
    }

    /// The geohash cell of this point, `precision` characters long (1 to 12).
    pub fn geohash(&self, precision: usize) -> String {
        let at = geohash::Coord { x: self.lon, y: self.lat };
        geohash::encode(at, precision.clamp(1, 12)).expect("a valid point has a cell")
    }
}

/// A cell of the geohash grid, named by the first `bits` bits of its hash: each further bit halves it, and five of them
/// are a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    bits: u8,
    /// Columns from the antimeridian eastwards, rows from the south pole.
    column: u32,
    row: u32,
}

impl Cell {
    pub fn bits(&self) -> u8 {
        self.bits
    }

    pub fn column(&self) -> u32 {
        self.column
    }

    pub fn row(&self) -> u32 {
        self.row
    }

    /// How many columns a grid of this fineness has.
    pub fn columns(bits: u8) -> u32 {
        1 << bits.div_ceil(2)
    }

    /// How many columns and rows the grid has: longitude has the odd bit.
    fn grid(bits: u8) -> (f64, f64) {
        (2f64.powi(i32::from(bits.div_ceil(2))), 2f64.powi(i32::from(bits / 2)))
    }
}

impl GeoPoint {
    /// The cell of this point, of 1 to 60 bits.
    pub fn cell(&self, bits: u8) -> Cell {
        let (x, y) = self.on_grid(bits);
        let (columns, rows) = Cell::grid(bits);
        Cell { bits, column: x.min(columns - 1.0) as u32, row: y.min(rows - 1.0) as u32 }
    }

    /// The cell of this point and those next to it on the sides it is near to: four, fewer at the poles. Whatever is
    /// less than half a cell away is in one of them.
    pub fn cells_near(&self, bits: u8) -> BTreeSet<Cell> {
        let ((x, y), (columns, rows)) = (self.on_grid(bits), Cell::grid(bits));
        let beside = |at: f64| if at.fract() < 0.5 { at.floor() - 1.0 } else { at.floor() + 1.0 };
        let home = self.cell(bits);
        let column = beside(x).rem_euclid(columns) as u32;
        let row = beside(y);
        let rows_near = [Some(home.row), (0.0..rows).contains(&row).then_some(row as u32)];
        let near = rows_near.into_iter().flatten();
        near.flat_map(|row| [home.column, column].map(|column| Cell { bits, column, row })).collect()
    }

    fn on_grid(&self, bits: u8) -> (f64, f64) {
        let (columns, rows) = Cell::grid(bits);
        ((self.lon + 180.0) / 360.0 * columns, (self.lat + 90.0) / 180.0 * rows)
    }
}

/// A position as configuration and JSON write it: `[lat, lon]` or `[lat, lon, alt]`.
impl Serialize for GeoPoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.alt {
            Some(alt) => [self.lat, self.lon, alt].serialize(serializer),
            None => [self.lat, self.lon].serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for GeoPoint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let numbers = Vec::<f64>::deserialize(deserializer)?;
        Self::try_from(numbers.as_slice()).map_err(serde::de::Error::custom)
    }
}

impl TryFrom<&[f64]> for GeoPoint {
    type Error = String;

    fn try_from(numbers: &[f64]) -> Result<Self, String> {
        let point = match *numbers {
            [lat, lon] => Self::new(lat, lon),
            [lat, lon, alt] => Self::new(lat, lon).and_then(|point| point.with_altitude(alt)),
            _ => {
                return Err(format!("a position is [lat, lon] or [lat, lon, alt], this has {} numbers", numbers.len()));
            }
        };
        point.map_err(|invalid| invalid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn point(lat: f64, lon: f64) -> GeoPoint {
        GeoPoint::new(lat, lon).unwrap()
    }

    #[test]
    fn known_distances() {
        let (berlin, paris) = (point(52.5200, 13.4050), point(48.8566, 2.3522));
        assert!((berlin.distance_m(&paris) - 877_463.0).abs() < 500.0);
        assert!((point(0.0, 179.9).distance_m(&point(0.0, -179.9)) - 22_239.0).abs() < 1.0);
        assert!((point(90.0, 0.0).distance_m(&point(-90.0, 77.0)) - 20_015_087.0).abs() < 1.0);
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(GeoPoint::new(91.0, 0.0), Err(InvalidPoint::Latitude(91.0)));
        assert_eq!(GeoPoint::new(0.0, -181.0), Err(InvalidPoint::Longitude(-181.0)));
        assert!(GeoPoint::new(f64::NAN, 0.0).is_err());
        assert!(point(0.0, 0.0).with_altitude(f64::INFINITY).is_err());
    }

    #[test]
    fn cells_at_the_edges_of_the_map() {
        assert_eq!(point(57.64911, 10.40744).geohash(7), "u4pruyd");
        let antimeridian = point(10.0, 179.9999).cells_near(25);
        assert_eq!(antimeridian.len(), 4);
        assert!(antimeridian.contains(&point(10.0, -179.9999).cell(25)));
        assert_eq!(point(90.0, 0.0).cells_near(25).len(), 2);
    }

    proptest! {
        #[test]
        fn distance_is_a_metric(a in -90.0..90.0, b in -180.0..180.0, c in -90.0..90.0, d in -180.0..180.0) {
            let (p, q) = (point(a, b), point(c, d));
            prop_assert!((p.distance_m(&q) - q.distance_m(&p)).abs() < 1e-6);
            prop_assert!(p.distance_m(&p) == 0.0);
            prop_assert!(p.distance_m(&q) <= EARTH_RADIUS_M * std::f64::consts::PI + 1.0);
        }

        #[test]
        fn an_offset_is_as_far_as_it_says(lat in -85.0..85.0, lon in -180.0..180.0, m in 1.0..50_000.0, b in 0.0..6.2) {
            let start = point(lat, lon);
            let end = start.offset(m, b);
            prop_assert!(GeoPoint::new(end.lat(), end.lon()).is_ok());
            prop_assert!((start.distance_m(&end) - m).abs() < 0.01 + m * 1e-6);
        }

        #[test]
        fn cells_are_those_of_geohash(a in -90.0..90.0, b in -180.0..180.0, m in 0.0..20_000.0, turn in 0.0..6.2) {
            let here = point(a, b);
            let there = here.offset(m, turn);
            for (bits, precision) in [(20, 4), (25, 5), (30, 6)] {
                let same = here.geohash(precision) == there.geohash(precision);
                prop_assert_eq!(here.cell(bits) == there.cell(bits), same);
            }
        }

        #[test]
        fn whatever_is_within_half_a_cell_is_near(lat in -80.0..80.0, lon in -180.0..=180.0, m in 0.0..500.0, turn in 0.0..6.2) {
            // A cell of 28 bits is 1.2 km high; at 80 degrees it is 420 m wide.
            let here = point(lat, lon);
            let there = here.offset(f64::min(m, 200.0 * lat.to_radians().cos()), turn);
            prop_assert!(here.cells_near(28).contains(&there.cell(28)));
        }
    }
}
