//! One process: its files, its input, its end.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Place, exists};

#[test]
fn files_are_private_and_a_killed_process_leaves_nothing_in_the_way() {
    let place = Place::new();
    let mut node = place.run("alpha", &[]);
    let id = node.id.clone();
    let mode = |name: &str| std::fs::metadata(place.path("alpha").join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("."), 0o700);
    assert_eq!(mode("identity.key"), 0o600);
    assert_eq!(mode("tussock.sock"), 0o600);
    let (code, _) = place.json(&["status"]);
    assert_eq!(code, 0, "the only running node needs no name");
    node.kill();
    assert!(exists(&place.path("alpha").join("tussock.sock")));
    let mut node = place.run("alpha", &[]);
    assert_eq!(node.id, id);
    let (_, status) = place.json(&["status", "--data-dir", &node.data_dir]);
    assert_eq!(status["data"]["epoch"], 2);
    assert_eq!(node.signal("-INT"), Some(0));
    assert!(!exists(&place.path("alpha").join("tussock.sock")));
    let mut node = place.run("alpha", &[]);
    assert_eq!(node.signal("-TERM"), Some(0));
}

#[test]
fn lines_on_standard_input_are_published_and_bad_ones_are_reported_and_skipped() {
    let place = Place::new();
    let arguments = ["--level", "company", "--telemetry-stdin", "--set", "telemetry.machine_health=false"];
    let mut node = place.run("sink", &arguments);
    node.say(r#"{"metrics":{"temperature":21.5}}"#);
    node.say(r#"{"metrics":{"temperature":}}"#);
    node.say(r#"{"metrics":{"temperature":"warm"}}"#);
    node.say(r#"{"metrics":{"t":1},"colour":"red"}"#);
    node.say(r#"{"metrics":{}}"#);
    node.say(&format!(r#"{{"metrics":{{"t":1}},"pad":"{}"}}"#, "x".repeat(70_000)));
    node.say(r#"{"metrics":{"t":1},"position":[91,0]}"#);
    node.say("\u{fffd}\u{0}");
    node.say(r#"{"metrics":{"temperature":22.5},"battery":0.5,"health":"degraded","priority":"high","position":[52.5,13.4]}"#);
    let status = place.until(&node, "both good lines are counted", |status| status["telemetry"]["counted"] == 2);
    assert_eq!(status["telemetry"]["rejected"], 7, "{status:#}");
    node.stdin = None;
    let log = place.log("sink");
    for line in ["stdin:2:27: ", "stdin:3:", "stdin:4:", "stdin:5:", "stdin:6:", "stdin:7:", "stdin:8:"] {
        assert!(log.contains(line), "{line} is missing in\n{log}");
    }
    let status = place.until(&node, "the end of input stops nothing", |status| status["uptime_s"].as_f64() > Some(0.0));
    assert_eq!(status["position"], serde_json::json!([52.5, 13.4]), "{status:#}");
}

#[test]
fn a_plain_run_says_what_it_waits_for() {
    let place = Place::new();
    let node = place.run("alone", &["--level", "platform"]);
    let (code, status) = place.json(&["status", "--data-dir", &node.data_dir]);
    assert_eq!((code, &status["data"]["state"]), (0, &"root".into()));
    let waits = status["data"]["waiting_for"].as_str().unwrap();
    assert!(waits.contains("nobody of a higher level"), "{waits}");
    assert_eq!(status["data"]["telemetry"]["outbox"], "disk");
}

#[test]
fn a_node_that_is_started_again_finds_whom_it_had_heard() {
    let place = Place::new();
    let squad = place.run("squad", &["--level", "squad"]);
    let attached = |status: &serde_json::Value| status["state"] == "attached";
    let mut leaf = place.run("leaf", &["--peer", &squad.peer()]);
    place.until(&leaf, "the leaf attaches", attached);
    let kept = place.path("leaf").join("beacons/neighbours");
    place.until(&leaf, "its neighbour is kept", |_| std::fs::metadata(&kept).is_ok_and(|file| file.len() > 100));
    leaf.kill();
    // Nobody names the peer this time.
    let leaf = place.run("leaf", &[]);
    place.until(&leaf, "the leaf attaches again", attached);
}
