//! A beacon as it travels: small fields share bytes, so that a signed one stays within 160.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::{FormationId, NodeId, Prefix};
use crate::level::Level;
use crate::proto::beacon::{Beacon, Capability, Fix, Mobility, Resources, Seal};
use crate::proto::election::Role;

/// Stands for a percentage that is absent.
const ABSENT: u8 = 255;

const ROLES: [Role; 3] = [Role::Leader, Role::Member, Role::Standalone];
const MOBILITIES: [Mobility; 4] = [Mobility::Static, Mobility::SemiMobile, Mobility::Mobile, Mobility::Unknown];

#[derive(Serialize, Deserialize)]
pub struct Packed {
    formation: FormationId,
    id: NodeId,
    position: Option<Fix>,
    /// Level in the upper half, effective level in the lower.
    levels: u8,
    /// From the lowest bit: role (2), mobility (2), can_parent, operational.
    flags: u8,
    rank: u8,
    parent: Option<Prefix>,
    root: Prefix,
    free_slots: u16,
    slots: u16,
    parent_priority: u8,
    free_percent: u8,
    battery_percent: u8,
    capabilities: Vec<Capability>,
    ttl_s: u16,
    incarnation: u64,
    sequence: u64,
    cell_bits: u8,
    addresses: Vec<SocketAddr>,
}

impl From<Beacon> for Packed {
    fn from(beacon: Beacon) -> Self {
        let place = |found: Option<usize>| found.unwrap_or(0) as u8;
        let role = place(ROLES.iter().position(|role| *role == beacon.role));
        let mobility = place(MOBILITIES.iter().position(|mobility| *mobility == beacon.mobility));
        let flags = [(role, 0), (mobility, 2), (beacon.can_parent.into(), 4), (beacon.operational.into(), 5)];
        Self {
            formation: beacon.formation,
            id: beacon.id,
            position: beacon.position,
            levels: beacon.level.0 << 4 | beacon.effective_level.0 & 15,
            flags: flags.into_iter().fold(0, |bits, (value, shift)| bits | value << shift),
            rank: beacon.rank,
            parent: beacon.parent,
            root: beacon.root,
            free_slots: beacon.free_slots,
            slots: beacon.slots,
            parent_priority: beacon.parent_priority,
            free_percent: beacon.resources.free_percent.unwrap_or(ABSENT),
            battery_percent: beacon.resources.battery_percent.unwrap_or(ABSENT),
            capabilities: beacon.capabilities,
            ttl_s: beacon.ttl_s,
            incarnation: beacon.incarnation,
            sequence: beacon.sequence,
            cell_bits: beacon.cell_bits,
            addresses: beacon.addresses,
        }
    }
}

impl TryFrom<Packed> for Beacon {
    type Error = &'static str;

    fn try_from(packed: Packed) -> Result<Self, Self::Error> {
        let percent = |value: u8| (value != ABSENT).then_some(value);
        if packed.flags >> 6 != 0 {
            return Err("unknown flags");
        }
        Ok(Self {
            formation: packed.formation,
            id: packed.id,
            position: packed.position,
            level: Level(packed.levels >> 4),
            effective_level: Level(packed.levels & 15),
            role: *ROLES.get(usize::from(packed.flags & 3)).ok_or("unknown role")?,
            rank: packed.rank,
            parent: packed.parent,
            root: packed.root,
            free_slots: packed.free_slots,
            slots: packed.slots,
            can_parent: packed.flags & 1 << 4 != 0,
            parent_priority: packed.parent_priority,
            operational: packed.flags & 1 << 5 != 0,
            mobility: MOBILITIES[usize::from(packed.flags >> 2 & 3)],
            resources: Resources {
                free_percent: percent(packed.free_percent),
                battery_percent: percent(packed.battery_percent),
            },
            capabilities: packed.capabilities,
            ttl_s: packed.ttl_s,
            incarnation: packed.incarnation,
            sequence: packed.sequence,
            cell_bits: packed.cell_bits,
            addresses: packed.addresses,
            seal: Seal::default(),
        })
    }
}
