//! Commands under way: kept while they live, so that who attaches later still gets them, and so that answers find back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::packet::{Command, DataPacket, Order, Payload};
use crate::proto::topology::Fence;
use crate::time::Time;

/// How long the way back is remembered after a command has expired.
const LINGER: Duration = Duration::from_secs(60);

/// A command that came by.
#[derive(Clone, Debug)]
pub struct Held {
    packet: DataPacket,
    at: Time,
    expires: Time,
    bytes: usize,
    /// Where it came from, and so where answers go; absent for the issuer.
    pub from: Option<NodeId>,
    /// To whom it was passed on, for as long as they stay.
    pub sent: BTreeSet<NodeId>,
}

impl Held {
    pub fn packet(&self) -> &DataPacket {
        &self.packet
    }

    pub fn issuer(&self) -> NodeId {
        self.packet.source
    }

    /// The packet with the lifetime that is left of it; `None` if it has expired.
    pub fn remaining(&self, now: Time) -> Option<DataPacket> {
        let left = self.expires.since(now).as_millis() as u32;
        let mut packet = self.packet.clone();
        if let Payload::Command(command) = &mut packet.payload {
            command.remaining_ms = left;
        }
        (left > 0).then_some(packet)
    }
}

/// The commands under way, bounded by number and bytes; those that expire first leave first.
#[derive(Clone, Debug, Default)]
pub struct Store {
    held: BTreeMap<Uuid, Held>,
    bytes: usize,
}

impl Store {
    pub fn hold(&mut self, now: Time, command: &Command, packet: &DataPacket, from: Option<NodeId>) {
        let text = match &command.order {
            Order::Host(text) => text.len(),
            Order::Explain => 0,
        };
        let (bytes, expires) = (256 + text, now + Duration::from_millis(u64::from(command.remaining_ms)));
        self.bytes += bytes;
        let held = Held { packet: packet.clone(), at: now, expires, bytes, from, sent: BTreeSet::new() };
        self.held.insert(command.id, held);
        while self.held.len() > Limits::COMMANDS || self.bytes > Limits::COMMANDS_BYTES {
            let Some((&first, _)) = self.held.iter().min_by_key(|(_, held)| held.expires) else { return };
            self.remove(&first);
        }
    }

    fn remove(&mut self, id: &Uuid) {
        if let Some(held) = self.held.remove(id) {
            self.bytes -= held.bytes;
        }
    }

    pub fn contains(&self, id: &Uuid) -> bool {
        self.held.contains_key(id)
    }

    pub fn get(&self, id: &Uuid) -> Option<&Held> {
        self.held.get(id)
    }

    pub fn get_mut(&mut self, id: &Uuid) -> Option<&mut Held> {
        self.held.get_mut(id)
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// How long a command has been here.
    pub fn held_for(&self, now: Time, id: &Uuid) -> Duration {
        self.held.get(id).map_or(Duration::ZERO, |held| now.since(held.at))
    }

    pub fn is_living(&self, now: Time, id: &Uuid) -> bool {
        self.held.get(id).is_some_and(|held| now < held.expires)
    }

    /// Puts what its leader has issued under earlier terms under the present one.
    pub fn stamp(&mut self, present: Fence) {
        for held in self.held.values_mut() {
            if let Payload::Command(Command { fence: Some(fence), .. }) = &mut held.packet.payload
                && fence.leader == present.leader
            {
                *fence = present.max(*fence);
            }
        }
    }

    /// Those that have not expired.
    pub fn living(&self, now: Time) -> impl Iterator<Item = (&Uuid, &Held)> {
        self.held.iter().filter(move |(_, held)| now < held.expires)
    }

    pub fn living_mut(&mut self, now: Time) -> impl Iterator<Item = (&Uuid, &mut Held)> {
        self.held.iter_mut().filter(move |(_, held)| now < held.expires)
    }

    pub fn sweep(&mut self, now: Time) -> usize {
        let old: Vec<_> =
            self.held.iter().filter(|(_, held)| now >= held.expires + LINGER).map(|(&id, _)| id).collect();
        old.iter().for_each(|id| self.remove(id));
        old.len()
    }
}
