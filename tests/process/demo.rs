//! The demo holds, and would notice if it did not.

use serde_json::Value;

use crate::support::Place;

fn steps(report: &Value) -> Vec<(&str, Option<bool>)> {
    let steps = report["data"]["steps"].as_array().unwrap();
    steps.iter().map(|step| (step["step"].as_str().unwrap(), step["passed"].as_bool())).collect()
}

#[test]
fn every_step_holds() {
    let place = Place::new();
    let (code, report) = place.json(&["demo", "--no-ui", "--exit", "--seed", "7"]);
    assert_eq!(code, 0, "{report:#}");
    let names = ["form", "telemetry", "command", "kill_leader", "crash_actor", "partition", "heal", "stop"];
    assert_eq!(steps(&report), names.map(|name| (name, Some(true))));
    assert_eq!(report["data"]["members"].as_array().unwrap().len(), 12);
}

#[test]
fn without_repair_the_step_that_needs_it_fails() {
    let place = Place::new();
    let arguments = ["demo", "--no-ui", "--exit", "-o", "json", "--seed", "7"];
    let output = place.tussock(&arguments).env("TUSSOCK_FAILOVER_REPAIR", "false").output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let steps = steps(&report);
    assert_eq!(
        steps[..3],
        ["form", "telemetry", "command"].map(|name| (name, Some(true))),
        "{:#}",
        report["data"]["steps"]
    );
    assert_eq!(steps[3], ("kill_leader", Some(false)));
    assert!(steps[4..].iter().all(|(_, passed)| passed.is_none()));
}
