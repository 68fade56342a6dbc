//! The truth about samples and commands, from hidden tags: what was acknowledged and what was counted.
//!
//! Every sample carries one more metric, a random integer. The protocol does not know it is special, so the sum of the
//! tags in a unit says what is in it in fact, whatever its provenance claims.

use std::collections::{BTreeMap, HashMap};

use crate::id::NodeId;
use crate::proto::account::AccountId;
use crate::proto::aggregate::{Source, Unit};

/// The hidden metric. Values stay below 2^30, so that sums are exact in an f64 for 8 million samples.
pub const TAG: &str = "tag";

#[derive(Clone, Copy, Debug)]
struct SampleTruth {
    tag: f64,
    acknowledged: bool,
    counted: u32,
}

/// Every sample published, and every command.
#[derive(Debug, Default)]
pub struct Truth {
    samples: HashMap<(Source, u64), SampleTruth>,
    waiting: HashMap<(usize, u64), f64>,
    pub acknowledged: u64,
    pub counted: u64,
    pub double_counted: u64,
    pub commands: BTreeMap<uuid::Uuid, CommandTruth>,
}

#[derive(Clone, Debug, Default)]
pub struct CommandTruth {
    pub issued_s: f64,
    pub targets: usize,
    pub delivered: BTreeMap<NodeId, u32>,
    pub acknowledged: usize,
    pub fenced: u64,
    pub transmissions: u64,
    pub retransmissions: u64,
    pub last_ack_s: Option<f64>,
    /// When its issuer knew that nobody else will answer, or gave up waiting.
    pub concluded_s: Option<f64>,
    pub links: std::collections::BTreeSet<(usize, usize)>,
}

impl Truth {
    pub fn published(&mut self, node: usize, request: u64, tag: f64) {
        self.waiting.insert((node, request), tag);
    }

    pub fn refused(&mut self, node: usize, request: u64) {
        self.waiting.remove(&(node, request));
    }

    /// Its journal keeps the sample now; its host may not know yet.
    pub fn kept(&mut self, source: Source, sequence: u64, tag: f64) {
        let truth = SampleTruth { tag, acknowledged: false, counted: 0 };
        self.samples.entry((source, sequence)).or_insert(truth);
    }

    pub fn acknowledged(&mut self, node: usize, request: u64, source: Source, sequence: u64) {
        let tag = self.waiting.remove(&(node, request)).unwrap_or(0.0);
        let truth =
            self.samples.entry((source, sequence)).or_insert(SampleTruth { tag, acknowledged: false, counted: 0 });
        if !std::mem::replace(&mut truth.acknowledged, true) {
            self.acknowledged += 1;
            self.counted += u64::from(truth.counted > 0);
        }
    }

    /// A root commits a unit: what it claims must be what is in it. Returns what is wrong.
    pub fn committed(&mut self, account: AccountId, unit: &Unit) -> Option<String> {
        let mut expected = 0.0;
        for (source, spans) in &unit.provenance.0 {
            for sequence in spans.counted.ranges().iter().flat_map(|&(first, last)| first..=last) {
                let Some(truth) = self.samples.get_mut(&(*source, sequence)) else {
                    return Some(format!("{account:?} counts a sample that was never published"));
                };
                expected += truth.tag;
                truth.counted += 1;
                match truth.counted {
                    1 => self.counted += u64::from(truth.acknowledged),
                    _ => self.double_counted += 1,
                }
            }
        }
        let found = unit.totals.metrics.get(TAG).map_or(0.0, |stats| stats.sum);
        (found != expected).then(|| format!("a unit's tags sum to {found}, its provenance to {expected}"))
    }

    pub fn is_counted(&self, source: Source, sequence: u64) -> bool {
        self.samples.get(&(source, sequence)).is_some_and(|truth| truth.counted > 0)
    }

    pub fn is_acknowledged(&self, source: Source, sequence: u64) -> bool {
        self.samples.get(&(source, sequence)).is_some_and(|truth| truth.acknowledged)
    }
}
