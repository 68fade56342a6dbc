//! Duplicates of packets: a window of sequence numbers per source, constant time, bounded memory.

use std::collections::{BTreeMap, HashMap};

use crate::id::NodeId;
use crate::limits::Limits;

/// Sequence numbers below the highest that are still told apart.
const WINDOW: u64 = 1024;

#[derive(Clone, Debug)]
struct Window {
    epoch: u64,
    highest: u64,
    seen: [u64; (WINDOW / 64) as usize],
    used: u64,
}

/// Remembers which packets came already, by (source, epoch, sequence).
#[derive(Clone, Debug, Default)]
pub struct Dedup {
    windows: HashMap<NodeId, Window>,
    /// When each source was last used, to drop the least recent.
    recency: BTreeMap<u64, NodeId>,
    clock: u64,
}

impl Dedup {
    /// Whether the packet is new; remembers it. What is older than the window, or of an older epoch, counts as known.
    pub fn is_new(&mut self, source: NodeId, epoch: u64, sequence: u64) -> bool {
        self.clock += 1;
        let used = self.clock;
        let window = match self.windows.get_mut(&source) {
            Some(window) => {
                self.recency.remove(&window.used);
                window
            }
            None => {
                if self.windows.len() >= Limits::DEDUP_SOURCES
                    && let Some((_, oldest)) = self.recency.pop_first()
                {
                    self.windows.remove(&oldest);
                }
                let fresh = Window { epoch, highest: 0, seen: [0; (WINDOW / 64) as usize], used };
                self.windows.entry(source).or_insert(fresh)
            }
        };
        window.used = used;
        self.recency.insert(used, source);
        window.take(epoch, sequence)
    }

    pub fn len(&self) -> usize {
        self.windows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }
}

impl Window {
    fn take(&mut self, epoch: u64, sequence: u64) -> bool {
        if epoch < self.epoch {
            return false;
        }
        if epoch > self.epoch {
            (self.epoch, self.highest, self.seen) = (epoch, 0, [0; (WINDOW / 64) as usize]);
        }
        if sequence > self.highest {
            let ahead = sequence - self.highest;
            if ahead >= WINDOW {
                self.seen = [0; (WINDOW / 64) as usize];
            } else {
                (self.highest + 1..=sequence).for_each(|skipped| self.set(skipped, false));
            }
            self.highest = sequence;
        } else if self.highest - sequence >= WINDOW || self.get(sequence) {
            return false;
        }
        self.set(sequence, true);
        true
    }

    fn get(&self, sequence: u64) -> bool {
        let bit = sequence % WINDOW;
        self.seen[(bit / 64) as usize] & (1 << (bit % 64)) != 0
    }

    fn set(&mut self, sequence: u64, value: bool) {
        let bit = sequence % WINDOW;
        let word = &mut self.seen[(bit / 64) as usize];
        if value { *word |= 1 << (bit % 64) } else { *word &= !(1 << (bit % 64)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn node(n: u32) -> NodeId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        NodeId::from_bytes(bytes)
    }

    #[test]
    fn a_new_epoch_starts_over_and_an_old_one_is_known() {
        let mut dedup = Dedup::default();
        assert!(dedup.is_new(node(1), 1, 5));
        assert!(!dedup.is_new(node(1), 1, 5));
        assert!(dedup.is_new(node(1), 2, 5));
        assert!(!dedup.is_new(node(1), 1, 6));
    }

    #[test]
    fn memory_is_bounded_by_sources() {
        let mut dedup = Dedup::default();
        for n in 0..Limits::DEDUP_SOURCES as u32 + 100 {
            assert!(dedup.is_new(node(n), 0, 1));
        }
        assert_eq!(dedup.len(), Limits::DEDUP_SOURCES);
        assert_eq!(dedup.recency.len(), Limits::DEDUP_SOURCES);
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_within_the_window(sequences in vec(1u64..1000, 1..300)) {
            let (mut dedup, mut seen) = (Dedup::default(), BTreeSet::new());
            for sequence in sequences {
                prop_assert_eq!(dedup.is_new(node(1), 0, sequence), seen.insert(sequence));
            }
        }
    }
}
