//! Counters: atomics incremented in place, read by whoever reports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Everything that is counted as dropped, by why.
const DROPS: [&str; 50] = [
    "own_beacon",
    "foreign_formation",
    "stale_beacon",
    "forged_beacon",
    "known_peers_full",
    "frame_after_close",
    "frame_before_hello",
    "frame_without_link",
    "frame_too_long",
    "frame_truncated",
    "frame_version",
    "frame_malformed",
    "frame_out_of_range",
    "frame_signature",
    "stale_attach",
    "stale_tenure",
    "backup_of_child",
    "impossible_path",
    "impossible_subtree",
    "subtree_of_stranger",
    "fence_of_stranger",
    "impossible_unit",
    "impossible_summary",
    "bad_sample",
    "unknown_dictionary",
    "foreign_source",
    "unwanted_lateral",
    "foreign_account",
    "misplaced_payload",
    "duplicate_packet",
    "duplicate_command",
    "unexpected_answer",
    "expired_command",
    "evicted_command",
    "forgotten_command",
    "foreign_retirement",
    "too_many_strays",
    "early",
    "unroutable",
    "own_packet",
    "too_many_hops",
    "not_in_tree",
    "not_from_parent",
    "journal_failed",
    "journal_behind",
    "journal_full",
    "no_link",
    "link_busy",
    "mailbox_full",
    "restarting",
];

/// Counts of one node.
#[derive(Debug)]
pub struct Counters {
    dropped: [AtomicU64; DROPS.len()],
    other: AtomicU64,
    pub swept: AtomicU64,
    pub frames_sent: AtomicU64,
    pub bytes_sent: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            dropped: std::array::from_fn(|_| AtomicU64::new(0)),
            other: AtomicU64::new(0),
            swept: AtomicU64::new(0),
            frames_sent: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
        }
    }
}

impl Counters {
    pub fn drop_for(&self, why: &str) {
        let place = DROPS.iter().position(|known| *known == why);
        let counter = place.map_or(&self.other, |i| &self.dropped[i]);
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// What was dropped at least once, by why.
    pub fn dropped(&self) -> BTreeMap<&'static str, u64> {
        let known = DROPS.iter().zip(&self.dropped).map(|(&why, count)| (why, count.load(Ordering::Relaxed)));
        let other = std::iter::once(("other", self.other.load(Ordering::Relaxed)));
        known.chain(other).filter(|(_, count)| *count > 0).collect()
    }
}
