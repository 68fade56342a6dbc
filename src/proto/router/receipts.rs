//! What tells children how far their frames have arrived: gathered for a moment, and withheld while there is no room for
//! more.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::NodeId;
use crate::time::Time;

/// How long receipts are gathered.
const GATHER: Duration = Duration::from_millis(20);
/// How often children that wait are told so: by what they know already, or they would take what they sent for lost.
const WAIT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, Default)]
struct Receipt {
    arrived: u64,
    told: u64,
}

#[derive(Debug, Default)]
pub(super) struct Receipts {
    by_child: BTreeMap<NodeId, Receipt>,
    pub due: Option<Time>,
    withheld: bool,
}

impl Receipts {
    pub fn arrived(&mut self, now: Time, child: NodeId, number: u64) {
        let receipt = self.by_child.entry(child).or_default();
        if number <= receipt.arrived {
            // It has attached anew, and numbers from the beginning.
            receipt.told = 0;
        }
        receipt.arrived = number;
        self.due.get_or_insert(now + GATHER);
    }

    /// Forgets who is no child any more.
    pub fn keep(&mut self, is_child: impl Fn(&NodeId) -> bool) {
        self.by_child.retain(|child, _| is_child(child));
    }

    pub fn are_withheld(&self) -> bool {
        self.withheld
    }

    /// What each child is told that has sent something since.
    pub fn tell(&mut self, now: Time, has_room: bool) -> impl Iterator<Item = (NodeId, u64)> {
        let waiting = self.by_child.iter_mut().filter(|(_, receipt)| receipt.arrived != receipt.told);
        let told: Vec<_> = waiting
            .map(|(&child, receipt)| {
                if has_room {
                    receipt.told = receipt.arrived;
                }
                (child, receipt.told)
            })
            .collect();
        self.withheld = !has_room && !told.is_empty();
        self.due = self.withheld.then_some(now + WAIT);
        told.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_room_hears_what_it_knows_until_there_is_some() {
        let (child, mut receipts, now) = (NodeId::from_bytes([1; 32]), Receipts::default(), Time::ZERO);
        let tell = |receipts: &mut Receipts, has_room| receipts.tell(now, has_room).collect::<Vec<_>>();
        receipts.arrived(now, child, 1);
        receipts.arrived(now, child, 2);
        assert_eq!(receipts.due, Some(now + GATHER));
        assert_eq!((tell(&mut receipts, true), receipts.due), (vec![(child, 2)], None));
        assert_eq!(tell(&mut receipts, true), []);
        receipts.arrived(now, child, 3);
        for _ in 0..2 {
            assert_eq!((tell(&mut receipts, false), receipts.due), (vec![(child, 2)], Some(now + WAIT)));
        }
        assert!(receipts.are_withheld());
        assert_eq!(tell(&mut receipts, true), [(child, 3)]);
        assert!(!receipts.are_withheld());
        // In a new attachment an old number would be for frames that have not arrived.
        receipts.arrived(now, child, 1);
        assert_eq!(tell(&mut receipts, false), [(child, 0)]);
        for _ in 0..2 {
            receipts.arrived(now, child, 1);
            assert_eq!(tell(&mut receipts, true), [(child, 1)]);
        }
    }
}
