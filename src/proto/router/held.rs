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
    /// It is for this node too, which waits until the command's term is known.
    pub undecided: bool,
    /// This node was a target and has refused it, for its term is over.
    pub fenced: bool,
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

/// The commands under way, bounded by number and bytes: a new one takes the room of those that expire first.
#[derive(Clone, Debug, Default)]
pub struct Store {
    held: BTreeMap<Uuid, Held>,
    bytes: usize,
}

impl Store {
    /// Keeps a command, and says how many others had to give way to it before they had expired.
    pub fn hold(&mut self, now: Time, command: &Command, packet: &DataPacket, from: Option<NodeId>) -> usize {
        let text = match &command.order {
            Order::Host(text) => text.len(),
            Order::Explain => 0,
        };
        let (bytes, expires) = (256 + text, now + Duration::from_millis(u64::from(command.remaining_ms)));
        let mut evicted = 0;
        while self.held.len() >= Limits::COMMANDS || self.bytes + bytes > Limits::COMMANDS_BYTES {
            let Some((&first, held)) = self.held.iter().min_by_key(|(_, held)| held.expires) else { break };
            evicted += usize::from(now < held.expires);
            self.remove(&first);
        }
        self.bytes += bytes;
        let (packet, sent) = (packet.clone(), BTreeSet::new());
        self.held
            .insert(command.id, Held { packet, at: now, expires, bytes, from, sent, undecided: false, fenced: false });
        evicted
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

    /// Those for this node that waited for their term to be known.
    pub fn take_undecided(&mut self, now: Time) -> Vec<Command> {
        let waiting = self.living_mut(now).filter_map(|(_, held)| match &held.packet.payload {
            Payload::Command(command) if std::mem::take(&mut held.undecided) => Some(command.clone()),
            _ => None,
        });
        waiting.collect()
    }

    /// Puts what its leader has issued under earlier terms under the present one.
    pub fn stamp(&mut self, present: Fence) {
        for held in self.held.values_mut() {
            if let Payload::Command(command) = &mut held.packet.payload {
                // Its leader goes on after all.
                held.undecided |= command.stamp(present) && std::mem::take(&mut held.fenced);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::packet::{Direction, PacketType, Target};

    fn hold(store: &mut Store, number: u128, remaining_ms: u32, text: &str) -> usize {
        let (id, issuer) = (Uuid::from_u128(number), NodeId::from_bytes([1; 32]));
        let command = Command { id, issuer, order: Order::Host(text.to_owned()), fence: None, remaining_ms };
        let packet = DataPacket {
            id,
            source: issuer,
            target: Target::Everyone,
            direction: Direction::Downward,
            kind: PacketType::Command,
            epoch: 1,
            sequence: number as u64,
            hops: 0,
            payload: Payload::Command(command.clone()),
        };
        store.hold(Time::ZERO, &command, &packet, None)
    }

    #[test]
    fn a_new_command_takes_the_room_of_those_that_expire_first() {
        let mut store = Store::default();
        for number in 0..Limits::COMMANDS as u128 {
            assert_eq!(hold(&mut store, number, 60_000 + number as u32, ""), 0);
        }
        // It expires before any other, and is kept all the same: it has not been passed on yet.
        assert_eq!(hold(&mut store, 1 << 64, 1, ""), 1);
        assert!(store.contains(&Uuid::from_u128(1 << 64)) && !store.contains(&Uuid::nil()));
        assert_eq!(store.len(), Limits::COMMANDS);
        // Bytes are bounded as well.
        let long = "x".repeat(Limits::COMMAND_BYTES);
        for number in 0..300 {
            hold(&mut store, (1 << 65) + number, 90_000, &long);
        }
        assert!(store.bytes <= Limits::COMMANDS_BYTES);
        assert!(store.contains(&Uuid::from_u128((1 << 65) + 299)));
    }
}
