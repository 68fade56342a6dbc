//! A root's account: what has been committed, and the table that keeps it exact.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::aggregate::{JournalId, Provenance, Source, Spans, Totals, Unit};
use crate::proto::durable::Restore;
use crate::proto::ranges::RangeSet;

/// An account, numbered at random when it was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountId(pub [u8; 16]);

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
    }
}

/// Why a text is not an account's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no account: an account is 32 hex digits")]
pub struct InvalidAccount(String);

impl FromStr for AccountId {
    type Err = InvalidAccount;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
        let id = bytes.and_then(|bytes| bytes.try_into().ok()).map(Self);
        id.ok_or_else(|| InvalidAccount(text.chars().take(64).collect()))
    }
}

/// "Every sample of this journal up to `prefix` is settled in this account."
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub account: AccountId,
    pub origin: NodeId,
    pub journal: JournalId,
    pub prefix: u64,
}

/// What a unit leads to.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    /// All of it is new.
    Commit,
    /// All of it is known: say so again, count nothing.
    Known,
    /// Some of it is known, or would make a gap too many: whoever holds it sends again what is not in `have`.
    Split { have: Provenance },
}

/// Totals and the table of what they contain; changed only together.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    pub id: AccountId,
    pub totals: Totals,
    table: BTreeMap<Source, RangeSet>,
    counted: BTreeMap<NodeId, u64>,
}

impl Account {
    pub fn new(id: AccountId) -> Self {
        Self { id, totals: Totals::default(), table: BTreeMap::new(), counted: BTreeMap::new() }
    }

    /// Whether a unit may be committed. Changes nothing.
    pub fn judge(&self, unit: &Unit) -> Judgement {
        let mut have = Provenance::default();
        let (mut new_sources, mut fresh) = (0, 0);
        for (source, spans) in &unit.provenance.0 {
            let Some(known) = self.table.get(source) else {
                new_sources += 1;
                fresh += spans.counted.len();
                if self.table.len() + new_sources > Limits::ORIGINS || gaps_with(&RangeSet::new(), spans) > Limits::GAPS
                {
                    have.0.insert(*source, Spans { counted: spans.counted.clone(), ..Spans::default() });
                }
                continue;
            };
            let common = known.intersection(&spans.counted);
            fresh += spans.counted.len() - common.len();
            if common.len() < spans.counted.len() && gaps_with(known, spans) > Limits::GAPS.max(known.gaps()) {
                // Deferred: its origin offers again, oldest first, when the gaps have closed.
                have.0.insert(*source, Spans { counted: spans.counted.clone(), ..Spans::default() });
            } else if !common.is_empty() {
                have.0.insert(*source, Spans { counted: common, ..Spans::default() });
            }
        }
        match (have.0.is_empty(), fresh) {
            (true, _) => Judgement::Commit,
            (false, 0) => Judgement::Known,
            (false, _) => Judgement::Split { have },
        }
    }

    /// Adds a unit that [`Self::judge`] found new.
    pub fn commit(&mut self, unit: &Unit) {
        self.totals.merge(&unit.totals);
        for (source, spans) in &unit.provenance.0 {
            *self.counted.entry(source.origin).or_default() += spans.counted.len();
            self.table.entry(*source).or_default().extend(&spans.counted);
        }
        self.void(&unit.provenance);
    }

    /// Notes sequences that will never be counted here, so that prefixes close.
    pub fn void(&mut self, provenance: &Provenance) {
        for (source, spans) in &provenance.0 {
            let Some(known) = self.table.get_mut(source).filter(|_| !spans.void.is_empty()) else { continue };
            let void = Spans { counted: RangeSet::new(), void: spans.void.clone() };
            if gaps_with(known, &void) <= Limits::GAPS.max(known.gaps()) {
                known.extend(&spans.void);
            }
        }
    }

    /// What restores this account, applied to a new one of the same id.
    pub fn records(&self) -> impl Iterator<Item = Restore> {
        let Totals { samples, metrics, sketches } = &self.totals;
        let metrics = metrics.iter().map(|(name, stats)| {
            let sketch = sketches.get(name).cloned();
            Restore::Metric { name: name.clone(), stats: *stats, sketch }
        });
        let settled =
            |(source, ranges): (&Source, &RangeSet)| Restore::Settled { source: *source, ranges: ranges.clone() };
        let counted = |(origin, samples): (&NodeId, &u64)| Restore::Counted { origin: *origin, samples: *samples };
        std::iter::once(Restore::Samples(*samples))
            .chain(metrics)
            .chain(self.table.iter().map(settled))
            .chain(self.counted.iter().map(counted))
    }

    pub fn restore(&mut self, part: &Restore) {
        match part {
            Restore::Samples(samples) => self.totals.samples = *samples,
            Restore::Metric { name, stats, sketch } => {
                self.totals.metrics.insert(name.clone(), *stats);
                if let Some(sketch) = sketch {
                    self.totals.sketches.insert(name.clone(), sketch.clone());
                }
            }
            Restore::Settled { source, ranges } => drop(self.table.insert(*source, ranges.clone())),
            Restore::Counted { origin, samples } => drop(self.counted.insert(*origin, *samples)),
            Restore::Outbox { .. } | Restore::Evicted { .. } | Restore::Retired(_) => {}
        }
    }

    /// Whether nothing was ever committed here.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// How far the journal is settled here.
    pub fn mark(&self, source: &Source) -> Option<Mark> {
        let prefix = self.table.get(source)?.prefix();
        let Source { origin, journal } = *source;
        Some(Mark { account: self.id, origin, journal, prefix })
    }

    /// Samples counted, by origin.
    pub fn counted(&self) -> &BTreeMap<NodeId, u64> {
        &self.counted
    }

    /// The table, for whoever checks it.
    pub fn table(&self) -> impl Iterator<Item = (&Source, &RangeSet)> {
        self.table.iter()
    }
}

fn gaps_with(known: &RangeSet, spans: &Spans) -> usize {
    let mut after = known.clone();
    after.extend(&spans.counted);
    after.extend(&spans.void);
    after.gaps()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::sample::{Priority, Sample};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn source() -> Source {
        Source { origin: NodeId::from_bytes([1; 32]), journal: 7 }
    }

    fn unit(sequences: impl IntoIterator<Item = u64>) -> Unit {
        let mut unit = Unit::empty(AccountId([0; 16]));
        for sequence in sequences {
            let metrics = vec![("n".to_owned(), sequence as f64)];
            unit.add(source(), &Sample { sequence, priority: Priority::Normal, metrics });
        }
        unit
    }

    #[test]
    fn new_known_and_mixed_units() {
        let mut account = Account::new(AccountId([0; 16]));
        assert_eq!(account.judge(&unit(1..=5)), Judgement::Commit);
        account.commit(&unit(1..=5));
        assert_eq!(account.judge(&unit(2..=4)), Judgement::Known);
        let Judgement::Split { have } = account.judge(&unit(4..=8)) else { panic!("an overlap is split") };
        assert_eq!(have.0[&source()].counted, RangeSet::of(4, 5));
        assert_eq!(account.mark(&source()).unwrap().prefix, 5);
    }

    #[test]
    fn a_ninth_gap_waits() {
        let mut account = Account::new(AccountId([0; 16]));
        account.commit(&unit([1]));
        for n in 1..=8u64 {
            assert_eq!(account.judge(&unit([1 + 2 * n])), Judgement::Commit);
            account.commit(&unit([1 + 2 * n]));
        }
        assert!(matches!(account.judge(&unit([19])), Judgement::Split { .. }));
        assert_eq!(account.judge(&unit([2])), Judgement::Commit);
    }

    #[test]
    fn void_ranges_close_a_prefix() {
        let mut account = Account::new(AccountId([0; 16]));
        let mut later = unit(11..=20);
        later.provenance.0.get_mut(&source()).unwrap().void = RangeSet::of(1, 10);
        account.commit(&later);
        assert_eq!(account.mark(&source()).unwrap().prefix, 20);
        assert_eq!(account.totals.samples, 10);
    }

    proptest! {
        #[test]
        fn totals_contain_what_the_table_claims(units in vec((1u64..60, 0u64..10), 1..40)) {
            let mut account = Account::new(AccountId([0; 16]));
            for (first, more) in units {
                let unit = unit(first..=first + more);
                if account.judge(&unit) == Judgement::Commit {
                    account.commit(&unit);
                }
            }
            let claimed: u64 = account.table().map(|(_, ranges)| ranges.len()).sum();
            let sum: f64 = account.table().flat_map(|(_, r)| r.ranges()).flat_map(|&(a, b)| a..=b).map(|n| n as f64).sum();
            prop_assert_eq!(account.totals.samples, claimed);
            prop_assert_eq!(account.totals.metrics.get("n").map_or(0.0, |s| s.sum), sum);
        }
    }
}
