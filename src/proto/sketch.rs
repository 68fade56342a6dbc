//! Quantiles of a metric: a mergeable sketch with a relative error (DDSketch; Masson, Rim and Lee, 2019).
//!
//! The mapping of values to bins and the search for a rank are the library's. What is kept, merged and sent is the
//! bins alone: they add up whatever the grouping, and what comes from outside can be checked before it is used.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sketches_ddsketch::{Config, DDSketch};

use crate::limits::Limits;

/// How far a quantile may be from the value, relatively.
pub const ERROR: f64 = 0.02;
/// Values closer to zero than this count as zero.
const ZERO: f64 = 1e-9;
/// Bins beyond these cannot come of a metric's value.
const LAST_BIN: i32 = 6_000;

/// How often values fell into each bin: positive ones, negative ones by their magnitude, and zeros.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "Packed", try_from = "Packed")]
pub struct Sketch {
    zeros: u64,
    above: BTreeMap<i32, u64>,
    below: BTreeMap<i32, u64>,
}

/// Room for every bin there is: how many are kept is bounded here, by those that are in use.
fn config() -> Config {
    Config::new(ERROR, 2 * LAST_BIN as u32, ZERO)
}

impl Sketch {
    pub fn add(&mut self, value: f64) {
        match value {
            value if value > ZERO => *self.above.entry(config().key(value)).or_default() += 1,
            value if value < -ZERO => *self.below.entry(config().key(-value)).or_default() += 1,
            _ => self.zeros += 1,
        }
        self.bound();
    }

    pub fn merge(&mut self, other: &Self) {
        self.zeros = self.zeros.saturating_add(other.zeros);
        for (own, theirs) in [(&mut self.above, &other.above), (&mut self.below, &other.below)] {
            for (&bin, &count) in theirs {
                let known = own.entry(bin).or_default();
                *known = known.saturating_add(count);
            }
        }
        self.bound();
    }

    /// The bins closest to zero become one: large values stay as exact as they were.
    fn bound(&mut self) {
        for bins in [&mut self.above, &mut self.below] {
            while bins.len() > Limits::SKETCH_BINS {
                let (Some((_, low)), Some(mut next)) = (bins.pop_first(), bins.first_entry()) else { return };
                *next.get_mut() = next.get().saturating_add(low);
            }
        }
    }

    pub fn count(&self) -> u64 {
        self.above.values().chain(self.below.values()).fold(self.zeros, |sum, count| sum.saturating_add(*count))
    }

    /// The value that this share (0..1) of all values does not exceed, within [`ERROR`] of it.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let (config, mut sketch) = (config(), DDSketch::new(config()));
        sketch.add_with_count(0.0, self.zeros);
        self.above.iter().for_each(|(&bin, &count)| sketch.add_with_count(config.value(bin), count));
        self.below.iter().for_each(|(&bin, &count)| sketch.add_with_count(-config.value(bin), count));
        sketch.quantile(share).ok().flatten()
    }

    /// What it takes in memory, about.
    pub fn bytes(&self) -> usize {
        48 + 24 * (self.above.len() + self.below.len())
    }
}

/// Bins by their distance from the one before.
#[derive(Serialize, Deserialize)]
struct Packed(u64, Vec<(i32, u64)>, Vec<(i32, u64)>);

impl From<Sketch> for Packed {
    fn from(sketch: Sketch) -> Self {
        let packed = |bins: BTreeMap<i32, u64>| {
            let mut before = 0;
            let step = |(bin, count): (i32, u64)| (bin - std::mem::replace(&mut before, bin), count);
            bins.into_iter().map(step).collect()
        };
        Self(sketch.zeros, packed(sketch.above), packed(sketch.below))
    }
}

impl TryFrom<Packed> for Sketch {
    type Error = &'static str;

    fn try_from(Packed(zeros, above, below): Packed) -> Result<Self, Self::Error> {
        let bins = |steps: Vec<(i32, u64)>| {
            if steps.len() > Limits::SKETCH_BINS {
                return Err("more bins than a sketch has");
            }
            let (mut bins, mut at) = (BTreeMap::new(), 0i32);
            for (i, (step, count)) in steps.into_iter().enumerate() {
                at =
                    at.checked_add(step).filter(|at| (-LAST_BIN..=LAST_BIN).contains(at)).ok_or("a bin of no value")?;
                if (i > 0 && step <= 0) || count == 0 {
                    return Err("bins out of order, or empty");
                }
                bins.insert(at, count);
            }
            Ok(bins)
        };
        Ok(Self { zeros, above: bins(above)?, below: bins(below)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn of(values: &[f64]) -> Sketch {
        let mut sketch = Sketch::default();
        values.iter().for_each(|value| sketch.add(*value));
        sketch
    }

    #[test]
    fn bins_that_cannot_be_are_refused() {
        let read = |packed: Packed| codec::decode::<Sketch>(&codec::encode(&packed)).is_ok();
        assert!(read(Packed(1, vec![(5, 1), (1, 2)], Vec::new())));
        for bad in [
            Packed(0, vec![(5, 1), (0, 2)], Vec::new()),
            Packed(0, vec![(5, 0)], Vec::new()),
            Packed(0, vec![(i32::MAX, 1), (i32::MAX, 1)], Vec::new()),
            Packed(0, Vec::new(), vec![(LAST_BIN + 1, 1)]),
            Packed(0, vec![(i32::MIN, 1)], Vec::new()),
            Packed(0, vec![(1, 1); Limits::SKETCH_BINS + 1], Vec::new()),
        ] {
            assert!(!read(bad));
        }
    }

    #[test]
    fn the_largest_values_stay_exact_when_there_are_too_many_bins() {
        let values: Vec<_> = (0..5_000).map(|n| 1e-8 * 1.1f64.powi(n % 2_000)).collect();
        let sketch = of(&values);
        assert!(sketch.above.len() <= Limits::SKETCH_BINS && sketch.count() == 5_000);
        let mut sorted = values;
        sorted.sort_by(f64::total_cmp);
        let (found, exact) = (sketch.quantile(0.99).unwrap(), sorted[(4_999.0 * 0.99) as usize]);
        assert!((found - exact).abs() <= ERROR * exact, "{found} {exact}");
    }

    proptest! {
        #[test]
        fn quantiles_are_within_two_percent_whatever_the_grouping(
            values in vec(prop_oneof![-1e6..1e6f64, -1.0..1.0f64, Just(0.0)], 1..200),
            cut in 0usize..200,
            share in 0.01..0.99f64,
        ) {
            let cut = cut.min(values.len());
            let mut merged = of(&values[..cut]);
            merged.merge(&codec::decode(&codec::encode(&of(&values[cut..]))).unwrap());
            prop_assert_eq!(&merged, &of(&values));
            let mut sorted = values;
            sorted.sort_by(f64::total_cmp);
            let exact = sorted[(share * (sorted.len() as f64 - 1.0)) as usize];
            let found = merged.quantile(share).unwrap();
            prop_assert!((found - exact).abs() <= ERROR * exact.abs() + 2.0 * ZERO, "{} for {}", found, exact);
        }
    }
}
