//! Building worlds from scenarios.

use std::path::Path;

use tussock::sim::{Report, Scenario, World};

fn load(name: &str, nodes: Option<usize>, seed: u64) -> World {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(name);
    let (scenario, text) = Scenario::load(path.to_str().unwrap()).unwrap();
    World::new(scenario, &text, nodes, Some(seed)).unwrap()
}

/// A scenario with so many nodes.
pub fn scaled(name: &str, nodes: usize, seed: u64) -> World {
    load(name, Some(nodes), seed)
}

pub fn world(name: &str, seed: u64) -> World {
    load(name, None, seed)
}

pub fn from_text(text: &str) -> Result<World, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let (scenario, text) = Scenario::load(file.path().to_str().unwrap()).map_err(|problems| problems.to_string())?;
    World::new(scenario, &text, None, None).map_err(|problems| problems.to_string())
}

/// Runs and expects that everything held; the seed is in the message.
pub fn held(name: &str, seed: u64) -> Report {
    held_by(world(name, seed), name, seed)
}

pub fn held_by(world: World, name: &str, seed: u64) -> Report {
    let report = world.run();
    let lost = &report.telemetry;
    assert!(report.passed(), "{name} with seed {seed}: {:?} {lost:?} settled {}", report.invariants, report.settled);
    let missed = &report.unresolved_faults;
    assert!(missed.is_empty() || name == "chaos.toml", "{name} with seed {seed}: nobody was there for {missed:?}");
    report
}
