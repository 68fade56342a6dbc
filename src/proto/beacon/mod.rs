//! Beacons: what a node says of itself to whoever can hear, and the table of those heard.

mod machine;
mod nearby;
mod packed;
mod scope;
mod table;
mod trickle;

pub use machine::{Effect, Input, Machine, Settings};
pub use scope::Scope;
pub use table::{Neighbour, Neighbours, Observation, Vitality};

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError, VERSION};
use crate::id::{FormationId, Keypair, NodeId, Prefix, SIGNATURE_BYTES};
use crate::level::Level;
use crate::limits::Limits;
use crate::proto::election::Role;
use crate::proto::geo::GeoPoint;

/// How much a node moves; a parent that stands still is worth more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mobility {
    Static,
    SemiMobile,
    Mobile,
    #[default]
    Unknown,
}

impl Mobility {
    /// 0..1, higher for who stays where it is.
    pub fn score(self) -> f64 {
        match self {
            Self::Static => 1.0,
            Self::SemiMobile => 0.6,
            Self::Mobile => 0.3,
            Self::Unknown => 0.5,
        }
    }
}

/// What a node has to spare, each in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Mean of free CPU, free memory and min(bandwidth, 100 Mbit/s) / 100; absent if unknown.
    pub free_percent: Option<u8>,
    /// Charge; absent on mains.
    pub battery_percent: Option<u8>,
}

impl Resources {
    /// 0..1; an unknown one counts 0.5.
    pub fn score(self) -> f64 {
        self.free_percent.map_or(0.5, |percent| f64::from(percent) / 100.0)
    }

    /// 0..1; no battery is mains.
    pub fn battery(self) -> f64 {
        self.battery_percent.map_or(1.0, |percent| f64::from(percent) / 100.0)
    }
}

/// Something a node can do, and how sure it is of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    #[serde(rename = "type")]
    pub kind: String,
    pub confidence_percent: u8,
}

/// A position in microdegrees and metres, as beacons carry it: a tenth of a metre, 10 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fix {
    lat_micro: i32,
    lon_micro: i32,
    alt_m: Option<i32>,
}

impl From<GeoPoint> for Fix {
    fn from(point: GeoPoint) -> Self {
        Self {
            lat_micro: (point.lat() * 1e6).round() as i32,
            lon_micro: (point.lon() * 1e6).round() as i32,
            alt_m: point.alt().map(|metres| metres.round() as i32),
        }
    }
}

impl Fix {
    /// The point, if the numbers are on the Earth.
    pub fn point(self) -> Option<GeoPoint> {
        let point = GeoPoint::new(f64::from(self.lat_micro) / 1e6, f64::from(self.lon_micro) / 1e6).ok()?;
        match self.alt_m {
            Some(metres) => point.with_altitude(f64::from(metres)).ok(),
            None => Some(point),
        }
    }
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "packed::Packed", try_from = "packed::Packed")]
pub struct Beacon {
    pub formation: FormationId,
    pub id: NodeId,
    pub position: Option<Fix>,
    pub level: Level,
    pub effective_level: Level,
    pub role: Role,
    /// Hops to the root.
    pub rank: u8,
    pub parent: Option<Prefix>,
    pub root: Prefix,
    pub free_slots: u16,
    pub slots: u16,
    pub can_parent: bool,
    pub parent_priority: u8,
    pub operational: bool,
    pub mobility: Mobility,
    pub resources: Resources,
    pub capabilities: Vec<Capability>,
    /// How long this may be believed without news, in seconds; 0 says goodbye.
    pub ttl_s: u16,
    pub incarnation: u64,
    pub sequence: u64,
    /// How fine the cell is in which it speaks, in bits of its geohash; 0 if it speaks in none.
    pub cell_bits: u8,
    /// Where the node can be dialled. A hint: the connection proves the identity.
    pub addresses: Vec<SocketAddr>,
    /// What it came with, so that it can be passed on.
    pub seal: Seal,
}

/// The signature of a beacon that was heard. Two beacons that say the same are the same, sealed or not.
#[derive(Clone, Default)]
pub struct Seal(Option<Box<[u8; SIGNATURE_BYTES]>>);

impl PartialEq for Seal {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "sealed" } else { "unsealed" })
    }
}

impl Beacon {
    /// Whether every field is possible; a signature does not make nonsense true.
    pub fn is_possible(&self) -> bool {
        let percent = |value: Option<u8>| value.is_none_or(|percent| percent <= 100);
        let named =
            |c: &Capability| (1..=Limits::CAPABILITY_BYTES).contains(&c.kind.len()) && c.confidence_percent <= 100;
        self.position.is_none_or(|fix| fix.point().is_some())
            && self.level <= Level::HIGHEST
            && self.effective_level >= self.level
            && self.effective_level.0 <= Level::HIGHEST.0 + Level::ABOVE_TOP
            && usize::from(self.rank) < Limits::PATH
            && self.free_slots <= self.slots
            && percent(self.resources.free_percent)
            && percent(self.resources.battery_percent)
            && self.capabilities.len() <= Limits::CAPABILITIES
            && self.capabilities.iter().all(named)
            && self.addresses.len() <= Limits::ADDRESSES
            && self.ttl_s <= 3600
            && self.cell_bits <= 60
    }

    pub fn point(&self) -> Option<GeoPoint> {
        self.position.and_then(Fix::point)
    }

    /// Orders what a node says: a later process first, then a later beacon.
    pub fn version(&self) -> (u64, u64) {
        (self.incarnation, self.sequence)
    }

    /// Version byte, body, signature over both: the one it came with, or by `key` if it is new.
    pub fn sign(&self, key: &Keypair) -> Vec<u8> {
        self.sealed().unwrap_or_else(|| {
            let mut bytes = vec![VERSION];
            codec::encode_into(self, &mut bytes);
            let signature = key.sign(&bytes);
            bytes.extend_from_slice(&signature);
            bytes
        })
    }

    /// The bytes it came as, if it was heard.
    pub fn sealed(&self) -> Option<Vec<u8>> {
        let signature = self.seal.0.as_ref()?;
        let mut bytes = vec![VERSION];
        codec::encode_into(self, &mut bytes);
        bytes.extend_from_slice(&signature[..]);
        Some(bytes)
    }

    /// Reads and checks a signed beacon: its signature, then every field.
    pub fn verify(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > Limits::BEACON_BYTES {
            return Err(DecodeError::TooLong(bytes.len()));
        }
        let (signed, signature) = bytes.split_last_chunk::<SIGNATURE_BYTES>().ok_or(DecodeError::Truncated)?;
        let (&version, body) = signed.split_first().ok_or(DecodeError::Truncated)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let mut beacon: Self = codec::decode(body)?;
        if !beacon.is_possible() {
            return Err(DecodeError::Range);
        }
        if !beacon.id.verifies(signed, signature) {
            return Err(DecodeError::Signature);
        }
        beacon.seal = Seal(Some(Box::new(*signature)));
        Ok(beacon)
    }
}

/// What a host tells a node about itself; the rest of a beacon follows from the tree.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    pub position: Option<GeoPoint>,
    pub can_parent: bool,
    pub parent_priority: u8,
    pub operational: bool,
    pub mobility: Mobility,
    pub resources: Resources,
    pub capabilities: Vec<Capability>,
    pub addresses: Vec<SocketAddr>,
}

impl Default for Description {
    fn default() -> Self {
        Self {
            position: None,
            can_parent: true,
            parent_priority: 0,
            operational: true,
            mobility: Mobility::Unknown,
            resources: Resources::default(),
            capabilities: Vec::new(),
            addresses: Vec::new(),
        }
    }
}

/// One change to a node's description.
#[derive(Clone, Debug, PartialEq)]
pub enum SelfPatch {
    Position(Option<GeoPoint>),
    CanParent(bool),
    ParentPriority(u8),
    Operational(bool),
    Mobility(Mobility),
    Resources(Resources),
    Capabilities(Vec<Capability>),
    Addresses(Vec<SocketAddr>),
}

impl Description {
    /// Applies a patch; a list that is too long is cut to what a beacon carries.
    pub fn apply(&mut self, patch: SelfPatch) {
        match patch {
            SelfPatch::Position(position) => self.position = position,
            SelfPatch::CanParent(can) => self.can_parent = can,
            SelfPatch::ParentPriority(priority) => self.parent_priority = priority,
            SelfPatch::Operational(operational) => self.operational = operational,
            SelfPatch::Mobility(mobility) => self.mobility = mobility,
            SelfPatch::Resources(resources) => self.resources = resources,
            SelfPatch::Capabilities(mut list) => {
                list.truncate(Limits::CAPABILITIES);
                self.capabilities = list;
            }
            SelfPatch::Addresses(mut list) => {
                list.truncate(Limits::ADDRESSES);
                self.addresses = list;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn sample(key: &Keypair) -> Beacon {
        Beacon {
            formation: FormationId(*b"training"),
            id: key.id(),
            position: Some(GeoPoint::new(52.520008, 13.404954).unwrap().with_altitude(34.0).unwrap().into()),
            level: Level::SQUAD,
            effective_level: Level::SQUAD,
            role: Role::Leader,
            rank: 2,
            parent: Some(Keypair::from_seed([8; 32]).id().prefix()),
            root: Keypair::from_seed([9; 32]).id().prefix(),
            free_slots: 12,
            slots: 16,
            can_parent: true,
            parent_priority: 0,
            operational: true,
            mobility: Mobility::Static,
            resources: Resources { free_percent: Some(80), battery_percent: Some(55) },
            capabilities: vec![Capability { kind: "camera".into(), confidence_percent: 90 }],
            ttl_s: 30,
            incarnation: 3,
            sequence: 1_000,
            cell_bits: 23,
            addresses: Vec::new(),
            seal: Seal::default(),
        }
    }

    #[test]
    fn a_beacon_that_was_heard_is_passed_on_as_it_was_signed() {
        let (key, other) = (Keypair::from_seed([7; 32]), Keypair::from_seed([6; 32]));
        let heard = Beacon::verify(&sample(&key).sign(&key)).unwrap();
        assert_eq!(Beacon::verify(&heard.sign(&other)), Ok(heard));
    }

    #[test]
    fn a_signed_beacon_reads_back_and_is_small() {
        let key = Keypair::from_seed([7; 32]);
        let beacon = sample(&key);
        let bytes = beacon.sign(&key);
        assert_eq!(Beacon::verify(&bytes), Ok(beacon));
        assert!(bytes.len() <= 160, "{} bytes", bytes.len());
    }

    #[test]
    fn another_key_cannot_speak_for_a_node() {
        let beacon = sample(&Keypair::from_seed([7; 32]));
        let forged = beacon.sign(&Keypair::from_seed([6; 32]));
        assert_eq!(Beacon::verify(&forged), Err(DecodeError::Signature));
    }

    #[test]
    fn an_impossible_field_is_refused_though_signed() {
        let key = Keypair::from_seed([7; 32]);
        let mut beacon = sample(&key);
        beacon.position = Some(Fix { lat_micro: 91_000_000, lon_micro: 0, alt_m: None });
        assert_eq!(Beacon::verify(&beacon.sign(&key)), Err(DecodeError::Range));
        let mut beacon = sample(&key);
        beacon.capabilities[0].kind.clear();
        assert_eq!(Beacon::verify(&beacon.sign(&key)), Err(DecodeError::Range));
    }

    proptest! {
        #[test]
        fn damage_is_noticed(at in 0usize..1000, with in 1u8..=255) {
            let key = Keypair::from_seed([7; 32]);
            let mut bytes = sample(&key).sign(&key);
            let at = at % bytes.len();
            bytes[at] ^= with;
            prop_assert!(Beacon::verify(&bytes).is_err());
            prop_assert!(Beacon::verify(&bytes[..at]).is_err());
        }
    }
}
