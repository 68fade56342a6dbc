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

/// The cell and its neighbours: nine of them, fewer at the poles, where there is nothing further north or south.
pub fn cells_around(point: &GeoPoint, precision: usize) -> BTreeSet<String> {
    let home = point.geohash(precision);
    let bounds = geohash::decode_bbox(&home).expect("a cell that was encoded decodes");
    let (min, max) = (bounds.min(), bounds.max());
    let (height, width) = (max.y - min.y, max.x - min.x);
    let centre = ((min.y + max.y) / 2.0, (min.x + max.x) / 2.0);
    let mut cells = BTreeSet::new();
    for north in [-1.0, 0.0, 1.0] {
        for east in [-1.0, 0.0, 1.0] {
            let lat = centre.0 + north * height;
            let lon = (centre.1 + east * width + 540.0).rem_euclid(360.0) - 180.0;
            if let Ok(point) = GeoPoint::new(lat, lon) {
                cells.insert(point.geohash(precision));
            }
        }
    }
    cells
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
        let antimeridian = cells_around(&point(10.0, 179.9999), 5);
        assert_eq!(antimeridian.len(), 9);
        assert!(antimeridian.contains(&point(10.0, -179.9999).geohash(5)));
        assert_eq!(cells_around(&point(90.0, 0.0), 5).len(), 6);
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
        fn a_cell_is_among_its_surroundings(lat in -90.0..=90.0, lon in -180.0..=180.0, precision in 1usize..=9) {
            let here = point(lat, lon);
            prop_assert!(cells_around(&here, precision).contains(&here.geohash(precision)));
        }
    }
}
