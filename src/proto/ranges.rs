//! Sets of sequence numbers as sorted ranges.

use serde::{Deserialize, Serialize};

use crate::limits::Limits;

/// Disjoint, non-adjacent, ascending ranges, each `(first, last)` inclusive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeSet(Vec<(u64, u64)>);

impl RangeSet {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn of(first: u64, last: u64) -> Self {
        Self(vec![(first, last)])
    }

    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers are in the set.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    pub fn contains(&self, n: u64) -> bool {
        let i = self.0.partition_point(|&(_, last)| last < n);
        self.0.get(i).is_some_and(|&(first, _)| first <= n)
    }

    /// Adds `first..=last`, merging what touches.
    pub fn insert(&mut self, first: u64, last: u64) {
        debug_assert!(first <= last);
        let start = self.0.partition_point(|&(_, l)| l.saturating_add(1) < first);
        let end = self.0.partition_point(|&(f, _)| f <= last.saturating_add(1));
        if start == end {
            self.0.insert(start, (first, last));
        } else {
            let merged = (self.0[start].0.min(first), self.0[end - 1].1.max(last));
            self.0.splice(start..end, [merged]);
        }
    }

    pub fn extend(&mut self, other: &Self) {
        for &(first, last) in &other.0 {
            self.insert(first, last);
        }
    }

    pub fn intersects(&self, other: &Self) -> bool {
        !self.intersection(other).is_empty()
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let (mut i, mut j, mut common) = (0, 0, Vec::new());
        while let (Some(&(af, al)), Some(&(bf, bl))) = (self.0.get(i), other.0.get(j)) {
            if af.max(bf) <= al.min(bl) {
                common.push((af.max(bf), al.min(bl)));
            }
            if al < bl { i += 1 } else { j += 1 }
        }
        Self(common)
    }

    pub fn is_subset(&self, other: &Self) -> bool {
        self.intersection(other).len() == self.len()
    }

    /// The last number of the unbroken run that starts at 1; 0 if 1 is missing.
    pub fn prefix(&self) -> u64 {
        match self.0.first() {
            Some(&(1, last)) => last,
            _ => 0,
        }
    }

    /// Takes `first..=last` away.
    pub fn remove(&mut self, first: u64, last: u64) {
        let rest = |&(from, to): &(u64, u64)| {
            let before = (from, to.min(first.saturating_sub(1)));
            let after = (from.max(last.saturating_add(1)), to);
            [before, after].into_iter().filter(|(from, to)| from <= to)
        };
        let start = self.0.partition_point(|&(_, to)| to < first);
        let end = self.0.partition_point(|&(from, _)| from <= last);
        if start < end {
            let kept: Vec<_> = self.0[start..end].iter().flat_map(rest).collect();
            self.0.splice(start..end, kept);
        }
    }

    /// The ranges that begin before `end`.
    pub fn before(mut self, end: u64) -> Self {
        self.0.retain(|&(first, _)| first < end);
        self
    }

    /// How many holes there are between 1 and the highest number.
    pub fn gaps(&self) -> usize {
        match self.0.first() {
            Some(&(1, _)) => self.0.len() - 1,
            _ => self.0.len(),
        }
    }

    /// Whether ranges from outside are sorted, disjoint, start at 1 or above, and number at most `most`.
    pub fn is_valid(&self, most: usize) -> bool {
        self.0.len() <= most
            && self.0.iter().all(|&(first, last)| 1 <= first && first <= last && last < Limits::LAST_SEQUENCE)
            && self.0.windows(2).all(|w| w[0].1 + 1 < w[1].0)
    }
}

impl FromIterator<u64> for RangeSet {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut set = Self::new();
        for n in numbers {
            set.insert(n, n);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn members(set: &RangeSet) -> BTreeSet<u64> {
        set.ranges().iter().flat_map(|&(first, last)| first..=last).collect()
    }

    proptest! {
        #[test]
        fn behaves_as_a_set_of_numbers(a in btree_set(1u64..60, 0..30), b in btree_set(1u64..60, 0..30)) {
            let (x, y): (RangeSet, RangeSet) = (a.iter().copied().collect(), b.iter().copied().collect());
            prop_assert_eq!(members(&x), a.clone());
            prop_assert_eq!(members(&x.intersection(&y)), a.intersection(&b).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(x.is_subset(&y), a.is_subset(&b));
            prop_assert_eq!(x.len(), a.len() as u64);
            let mut union = x.clone();
            union.extend(&y);
            prop_assert_eq!(members(&union), a.union(&b).copied().collect::<BTreeSet<_>>());
            prop_assert!(union.is_valid(60));
            let mut rest = x.clone();
            y.ranges().iter().for_each(|&(first, last)| rest.remove(first, last));
            prop_assert_eq!(members(&rest), a.difference(&b).copied().collect::<BTreeSet<_>>());
            prop_assert!(rest.is_valid(60));
            let prefix = (1..).take_while(|n| a.contains(n)).last().unwrap_or(0);
            prop_assert_eq!(x.prefix(), prefix);
        }

        #[test]
        fn foreign_ranges_are_checked(ranges in vec((0u64..9, 0u64..9), 0..5)) {
            let set = RangeSet(ranges);
            if set.is_valid(4) {
                let rebuilt: RangeSet = members(&set).into_iter().collect();
                prop_assert_eq!(rebuilt, set);
            }
        }
    }
}
