//! Faults of every kind at once, drawn from the seed. `just chaos 10000` runs more of them with an optimised build.

use crate::support::held;

/// Whatever befalls it, nothing acknowledged is lost or counted twice, and one tree stands in the end.
fn survives(seeds: std::ops::RangeInclusive<u64>) {
    for seed in seeds {
        let report = held("chaos.toml", seed);
        let telemetry = &report.telemetry;
        assert_eq!(telemetry.counted_at_root, telemetry.acknowledged, "seed {seed}: not all came to the root");
        assert!(telemetry.acknowledged > 1_000 && report.failovers.len() > 20, "seed {seed}: it was not chaos");
    }
}

// Two, for the machine's two cores.

#[test]
fn a_mesh_survives_everything_at_once() {
    survives(1..=500);
}

#[test]
fn a_mesh_survives_everything_at_once_with_other_seeds() {
    survives(501..=1_000);
}
