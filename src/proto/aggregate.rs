//! Units: samples folded together, with the exact provenance that lets a root count each once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::account::AccountId;
use crate::proto::ranges::RangeSet;
use crate::proto::sample::Sample;
use crate::proto::sketch::Sketch;

/// A journal, numbered at random when it was created.
pub type JournalId = u64;

/// Where samples come from: a node's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Source {
    pub origin: NodeId,
    pub journal: JournalId,
}

/// Statistics of one metric, exact and mergeable.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    pub count: u64,
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    /// Sum of squared deviations from the mean, merged as Chan, Golub and LeVeque describe (1979).
    deviation: f64,
}

impl Stats {
    pub fn of(value: f64) -> Self {
        Self { count: 1, sum: value, min: value, max: value, deviation: 0.0 }
    }

    pub fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// Standard deviation.
    pub fn spread(&self) -> f64 {
        (self.deviation / self.count as f64).max(0.0).sqrt()
    }

    pub fn merge(&mut self, other: &Self) {
        let (a, b) = (self.count as f64, other.count as f64);
        let apart = other.mean() - self.mean();
        self.deviation += other.deviation + apart * apart * a * b / (a + b);
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    fn is_possible(&self) -> bool {
        let (most, count) = (Limits::METRIC_MAGNITUDE, self.count as f64);
        self.count > 0
            && -most <= self.min
            && self.min <= self.max
            && self.max <= most
            && self.sum.abs() <= most * count
            && (0.0..=4.0 * most * most * count).contains(&self.deviation)
    }
}

/// What samples add up to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    pub samples: u64,
    pub metrics: BTreeMap<String, Stats>,
    /// For quantiles, where they are asked for.
    pub sketches: BTreeMap<String, Sketch>,
}

impl Totals {
    /// Takes up what quantiles need of a sample that is added.
    pub fn sketch(&mut self, sample: &Sample) {
        for (name, value) in &sample.metrics {
            self.sketches.entry(name.clone()).or_default().add(*value);
        }
    }

    /// The value that this share (0..1) of a metric's values does not exceed; `None` unless every value was sketched.
    pub fn quantile(&self, metric: &str, share: f64) -> Option<f64> {
        let (stats, sketch) = (self.metrics.get(metric)?, self.sketches.get(metric)?);
        (sketch.count() == stats.count).then(|| sketch.quantile(share)).flatten()
    }

    pub fn add(&mut self, sample: &Sample) {
        self.samples += 1;
        for (name, value) in &sample.metrics {
            match self.metrics.get_mut(name) {
                Some(stats) => stats.merge(&Stats::of(*value)),
                None => drop(self.metrics.insert(name.clone(), Stats::of(*value))),
            }
        }
    }

    pub fn merge(&mut self, other: &Self) {
        self.samples = self.samples.saturating_add(other.samples);
        for (name, stats) in &other.metrics {
            let full = self.metrics.len() >= Limits::ACCOUNT_METRICS;
            match self.metrics.get_mut(name) {
                Some(known) => known.merge(stats),
                None if full => {}
                None => drop(self.metrics.insert(name.clone(), *stats)),
            }
        }
        for (name, sketch) in other.sketches.iter().filter(|(name, _)| self.metrics.contains_key(*name)) {
            self.sketches.entry(name.clone()).or_default().merge(sketch);
        }
    }

    /// Leaves so many metrics.
    pub fn truncate(&mut self, most: usize) {
        while self.metrics.len() > most
            && let Some((name, _)) = self.metrics.pop_last()
        {
            self.sketches.remove(&name);
        }
    }

    /// Whether totals from outside can be true.
    pub fn is_possible(&self) -> bool {
        let named = |name: &String| (1..=Limits::METRIC_NAME_BYTES).contains(&name.len());
        self.metrics.len() <= Limits::UNIT_METRICS
            && self
                .metrics
                .iter()
                .all(|(name, stats)| named(name) && stats.is_possible() && stats.count <= self.samples)
            && self
                .sketches
                .iter()
                .all(|(name, sketch)| self.metrics.get(name).is_some_and(|stats| sketch.count() <= stats.count))
    }
}

/// Sequences of one source: those counted in the values, and those that never will be in this account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spans {
    pub counted: RangeSet,
    pub void: RangeSet,
}

/// Which samples are in a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance(pub BTreeMap<Source, Spans>);

impl Provenance {
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0
            .iter()
            .any(|(source, spans)| other.0.get(source).is_some_and(|theirs| spans.counted.intersects(&theirs.counted)))
    }

    pub fn is_within(&self, other: &Self) -> bool {
        self.0.iter().all(|(source, spans)| {
            spans.counted.is_empty()
                || other.0.get(source).is_some_and(|theirs| spans.counted.is_subset(&theirs.counted))
        })
    }

    /// What is counted in both.
    pub fn common(&self, other: &Self) -> Self {
        let common = |(source, spans): (&Source, &Spans)| {
            let counted = spans.counted.intersection(&other.0.get(source)?.counted);
            (!counted.is_empty()).then(|| (*source, Spans { counted, void: RangeSet::new() }))
        };
        Self(self.0.iter().filter_map(common).collect())
    }

    pub fn extend(&mut self, other: &Self) {
        for (source, spans) in &other.0 {
            let own = self.0.entry(*source).or_default();
            own.counted.extend(&spans.counted);
            own.void.extend(&spans.void);
        }
    }

    pub fn samples(&self) -> u64 {
        self.0.values().fold(0, |sum: u64, spans| sum.saturating_add(spans.counted.len()))
    }

    pub fn is_possible(&self) -> bool {
        let valid = |set: &RangeSet| set.is_valid(Limits::UNIT_SPANS);
        self.0.len() <= Limits::UNIT_SOURCES && self.0.values().all(|s| valid(&s.counted) && valid(&s.void))
    }
}

/// A fold of samples for one account, with where each came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    pub account: AccountId,
    pub provenance: Provenance,
    pub totals: Totals,
}

impl Unit {
    pub fn empty(account: AccountId) -> Self {
        Self { account, provenance: Provenance::default(), totals: Totals::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.totals.samples == 0
    }

    /// Folds in one sample, which must not be in the unit yet.
    pub fn add(&mut self, source: Source, sample: &Sample) {
        self.provenance.0.entry(source).or_default().counted.insert(sample.sequence, sample.sequence);
        self.totals.add(sample);
    }

    /// Folds in a unit, which must not overlap with this one.
    pub fn merge(&mut self, other: &Self) {
        self.provenance.extend(&other.provenance);
        self.totals.merge(&other.totals);
    }

    /// What it takes in memory, about.
    pub fn bytes(&self) -> usize {
        let sketches: usize = self.totals.sketches.values().map(Sketch::bytes).sum();
        128 + 120 * self.provenance.0.len() + 80 * self.totals.metrics.len() + sketches
    }
}

/// A unit on a link, its sources named by slots of that link's dictionary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WireUnit {
    /// The sender's number for it.
    pub number: u64,
    pub account: AccountId,
    /// Whether some of it was sent before, and may be on its way.
    pub again: bool,
    /// Which dictionary of the sender's the slots belong to, and which unit under it this is, from 0.
    pub dictionary: u32,
    pub position: u64,
    /// The first of the slots that are new with this unit: how many were named before.
    pub first_fresh: u32,
    /// Slots that are new with this unit, numbered on from those before.
    pub fresh: Vec<Source>,
    pub entries: Vec<WireSpans>,
    pub totals: Totals,
}

/// Sequences of one slot; each range begins relative to where the last one of the slot ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireSpans {
    pub slot: u32,
    /// (start relative to the end before, length less one)
    pub counted: Vec<(i64, u64)>,
    pub void: Vec<(i64, u64)>,
}

impl WireUnit {
    /// What it takes on the wire, about.
    pub fn bytes(&self) -> usize {
        let ranges: usize = self.entries.iter().map(|entry| entry.counted.len() + entry.void.len()).sum();
        let metrics: usize = self.totals.metrics.keys().map(|name| 40 + name.len()).sum();
        let sketches: usize = self.totals.sketches.values().map(Sketch::bytes).sum();
        // A sketch's bins are an eighth of what they are in memory.
        64 + 40 * self.fresh.len() + 4 * self.entries.len() + 4 * ranges + metrics + sketches / 8
    }

    pub fn is_possible(&self) -> bool {
        self.fresh.len() <= Limits::UNIT_SOURCES
            && self.entries.len() <= Limits::UNIT_SOURCES
            && self.entries.iter().all(|e| e.counted.len() <= Limits::UNIT_SPANS && e.void.len() <= Limits::UNIT_SPANS)
            && self.totals.is_possible()
    }
}

/// The sender's half of a link's dictionary.
#[derive(Clone, Debug)]
pub struct Encoder {
    dictionary: u32,
    position: u64,
    slots: BTreeMap<Source, (u32, u64)>,
}

impl Encoder {
    /// `dictionary` tells it from the encoder that a crash took the place of.
    pub fn new(dictionary: u32) -> Self {
        Self { dictionary, position: 0, slots: BTreeMap::new() }
    }

    /// Begins anew: a new attachment, or the far side has lost its half.
    pub fn reset(&mut self) {
        self.dictionary = self.dictionary.wrapping_add(1);
        self.position = 0;
        self.slots.clear();
    }

    pub fn encode(&mut self, number: u64, unit: &Unit) -> WireUnit {
        if self.slots.len() + unit.provenance.0.len() > Limits::ORIGINS {
            self.reset();
        }
        let first_fresh = self.slots.len() as u32;
        let mut fresh = Vec::new();
        let mut entries = Vec::with_capacity(unit.provenance.0.len());
        for (source, spans) in &unit.provenance.0 {
            let next = self.slots.len() as u32;
            let (slot, base) = self.slots.entry(*source).or_insert_with(|| {
                fresh.push(*source);
                (next, 0)
            });
            let counted = relative(&spans.counted, base);
            let void = relative(&spans.void, &mut 0);
            entries.push(WireSpans { slot: *slot, counted, void });
        }
        let (totals, position) = (unit.totals.clone(), self.position);
        self.position += 1;
        WireUnit {
            number,
            account: unit.account,
            again: false,
            dictionary: self.dictionary,
            position,
            first_fresh,
            fresh,
            entries,
            totals,
        }
    }
}

/// The receiver's half of a link's dictionary.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    dictionary: Option<u32>,
    /// The position of the next unit.
    next: u64,
    slots: Vec<(Source, u64)>,
}

/// Why a unit was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It names slots of a dictionary that is not known here: the sender must begin anew.
    Dictionary,
    /// Its provenance is impossible, or does not fit its totals.
    Impossible,
}

impl Decoder {
    pub fn decode(&mut self, wire: WireUnit) -> Result<Unit, Unreadable> {
        if wire.position == 0 && wire.first_fresh == 0 {
            (self.dictionary, self.next) = (Some(wire.dictionary), 0);
            self.slots.clear();
        }
        // Slots and positions must go on exactly where those before ended: else a unit was missed, or one side has
        // begun anew, and ranges would be read from the wrong base.
        let goes_on = self.dictionary == Some(wire.dictionary)
            && wire.position == self.next
            && wire.first_fresh as usize == self.slots.len();
        if !goes_on || self.slots.len() + wire.fresh.len() > Limits::ORIGINS {
            self.dictionary = None;
            return Err(Unreadable::Dictionary);
        }
        self.next += 1;
        self.slots.extend(wire.fresh.into_iter().map(|source| (source, 0)));
        let mut provenance = Provenance::default();
        for entry in wire.entries {
            let read = self.slots.get_mut(entry.slot as usize).and_then(|(source, base)| {
                let counted = absolute(&entry.counted, base)?;
                Some((*source, Spans { counted, void: absolute(&entry.void, &mut 0)? }))
            });
            let fresh = read.is_some_and(|(source, spans)| provenance.0.insert(source, spans).is_none());
            if !fresh {
                self.dictionary = None;
                return Err(Unreadable::Impossible);
            }
        }
        if !provenance.is_possible() || provenance.samples() != wire.totals.samples {
            return Err(Unreadable::Impossible);
        }
        Ok(Unit { account: wire.account, provenance, totals: wire.totals })
    }
}

fn relative(set: &RangeSet, base: &mut u64) -> Vec<(i64, u64)> {
    let step = |&(first, last): &(u64, u64)| {
        let start = first.wrapping_sub(*base) as i64;
        *base = last;
        (start, last - first)
    };
    set.ranges().iter().map(step).collect()
}

fn absolute(ranges: &[(i64, u64)], base: &mut u64) -> Option<RangeSet> {
    let mut set = RangeSet::new();
    for &(start, length) in ranges {
        let first = base.checked_add_signed(start)?;
        let last = first.checked_add(length)?;
        if first == 0 || last >= Limits::LAST_SEQUENCE || set.ranges().last().is_some_and(|&(_, end)| first <= end) {
            return None;
        }
        set.insert(first, last);
        *base = last;
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::proto::sample::Priority;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn source(n: u8) -> Source {
        Source { origin: NodeId::from_bytes([n; 32]), journal: u64::from(n) }
    }

    fn sample(sequence: u64, value: f64) -> Sample {
        Sample { sequence, priority: Priority::Normal, metrics: vec![("temperature".into(), value)] }
    }

    fn unit(samples: &[(u8, u64)]) -> Unit {
        let mut unit = Unit::empty(AccountId([1; 16]));
        for &(n, sequence) in samples {
            unit.add(source(n), &sample(sequence, f64::from(n)));
        }
        unit
    }

    #[test]
    fn a_dictionary_names_each_source_once() {
        let (mut encoder, mut decoder) = (Encoder::new(7), Decoder::default());
        for round in 0..5 {
            let unit = unit(&[(1, round + 1), (2, 10 + round), (3, 1000 * (round + 1))]);
            let wire = encoder.encode(round, &unit);
            assert_eq!(wire.fresh.len(), if round == 0 { 3 } else { 0 });
            assert_eq!(decoder.decode(wire).unwrap(), unit);
        }
    }

    #[test]
    fn a_lost_dictionary_is_noticed_and_begun_anew() {
        let mut encoder = Encoder::new(7);
        encoder.encode(0, &unit(&[(1, 1)]));
        let mut decoder = Decoder::default();
        let later = unit(&[(1, 2)]);
        assert_eq!(decoder.decode(encoder.encode(1, &later)), Err(Unreadable::Dictionary));
        encoder.reset();
        assert_eq!(decoder.decode(encoder.encode(1, &later)), Ok(later));
    }

    #[test]
    fn an_encoder_that_lost_its_memory_is_not_misread() {
        let mut decoder = Decoder::default();
        let mut before = Encoder::new(7);
        decoder.decode(before.encode(0, &unit(&[(1, 1), (2, 1)]))).unwrap();
        let news = unit(&[(3, 1)]);
        // Whatever its number, it begins at the beginning, and is read from there.
        assert_eq!(decoder.decode(Encoder::new(7).encode(0, &news)), Ok(news.clone()));
        assert_eq!(decoder.decode(Encoder::new(8).encode(0, &news)), Ok(news));
    }

    #[test]
    fn a_missed_unit_is_noticed_though_it_named_nobody_new() {
        let (mut encoder, mut decoder) = (Encoder::new(7), Decoder::default());
        decoder.decode(encoder.encode(0, &unit(&[(1, 1)]))).unwrap();
        encoder.encode(1, &unit(&[(1, 2)]));
        assert_eq!(decoder.decode(encoder.encode(2, &unit(&[(1, 3)]))), Err(Unreadable::Dictionary));
        // Nothing is read until the sender begins anew.
        assert_eq!(decoder.decode(encoder.encode(3, &unit(&[(1, 4)]))), Err(Unreadable::Dictionary));
        encoder.reset();
        assert!(decoder.decode(encoder.encode(4, &unit(&[(1, 4)]))).is_ok());
    }

    #[test]
    fn values_stay_finite_at_the_edge_of_what_is_taken() {
        let mut stats = Stats::of(Limits::METRIC_MAGNITUDE);
        for _ in 0..1000 {
            stats.merge(&Stats::of(-Limits::METRIC_MAGNITUDE));
        }
        assert!(stats.is_possible() && stats.spread().is_finite());
    }

    #[test]
    fn ranges_that_would_overflow_are_refused() {
        let mut wire = Encoder::new(7).encode(0, &unit(&[(1, 1)]));
        wire.entries[0].counted = vec![(1, u64::MAX / 2)];
        wire.totals.samples = u64::MAX / 2 + 1;
        assert_eq!(Decoder::default().decode(wire), Err(Unreadable::Impossible));
    }

    /// The size of an encoded unit, which it says itself about.
    fn size_of(wire: &WireUnit) -> usize {
        let size = codec::encode(wire).len();
        assert!((size / 2..=2 * size).contains(&wire.bytes()), "{size} bytes taken for {}", wire.bytes());
        size
    }

    #[test]
    fn a_summary_of_a_hundred_members_is_small() {
        let (mut encoder, mut size) = (Encoder::new(7), 0);
        for round in 0..2u64 {
            let mut unit = Unit::empty(AccountId([1; 16]));
            for n in 0..100 {
                let first = 70_000 + round * 5;
                for sequence in first..first + 5 {
                    let metrics = (0..6).map(|m| (format!("metric-{m}"), f64::from(n))).collect();
                    unit.add(source(n), &Sample { sequence, priority: Priority::Normal, metrics });
                }
            }
            size = size_of(&encoder.encode(round, &unit));
        }
        assert!(size <= 512 + 8 * 100, "{size} bytes");
    }

    #[test]
    fn a_summary_with_quantiles_is_small_enough_and_says_them() {
        let (mut encoder, mut size) = (Encoder::new(7), 0);
        for round in 0..2u64 {
            let mut unit = Unit::empty(AccountId([1; 16]));
            for n in 0..100u8 {
                for sequence in 70_000 + round * 5..70_005 + round * 5 {
                    // Within a factor of two around a mean, as most of what is measured.
                    let value = |m: u8| f64::from(20 + m) * (1.0 + f64::from(n) / 100.0);
                    let metrics = (0..6).map(|m| (format!("metric-{m}"), value(m))).collect();
                    let sample = Sample { sequence, priority: Priority::Normal, metrics };
                    unit.add(source(n), &sample);
                    unit.totals.sketch(&sample);
                }
            }
            let median = unit.totals.quantile("metric-0", 0.5).unwrap();
            assert!((median - 29.8).abs() <= 0.02 * 29.8 + 0.2, "{median}");
            size = size_of(&encoder.encode(round, &unit));
        }
        assert!(size <= 1_536 + 8 * 100, "{size} bytes");
    }

    #[test]
    fn a_unit_that_claims_more_than_it_names_is_refused() {
        let mut encoder = Encoder::new(7);
        let mut wire = encoder.encode(0, &unit(&[(1, 1)]));
        wire.totals.samples = 2;
        assert_eq!(Decoder::default().decode(wire), Err(Unreadable::Impossible));
    }

    proptest! {
        #[test]
        fn statistics_do_not_depend_on_the_grouping(values in vec(-1e3..1e3f64, 2..40), cut in 1usize..39) {
            let cut = cut.min(values.len() - 1);
            let fold = |values: &[f64]| {
                values.iter().map(|v| Stats::of(*v)).reduce(|mut a, b| { a.merge(&b); a }).unwrap()
            };
            let (whole, mut left) = (fold(&values), fold(&values[..cut]));
            left.merge(&fold(&values[cut..]));
            prop_assert_eq!((whole.count, whole.min, whole.max), (left.count, left.min, left.max));
            prop_assert!((whole.sum - left.sum).abs() < 1e-6);
            prop_assert!((whole.spread() - left.spread()).abs() < 1e-6);
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let direct = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
            prop_assert!((whole.spread() - direct).abs() < 1e-6);
        }
    }
}
