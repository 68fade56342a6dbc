//! Accounts: what waits for one whose owner is gone for good reaches another, and the owner that returns begins anew.

use serde_json::Value;

use crate::support::{Place, Running};

const QUIET: [&str; 2] = ["--set", "telemetry.machine_health=false"];

/// What `account show` says, once it is so.
fn account(place: &Place, node: &Running, what: &str, so: impl Fn(&Value) -> bool) -> Value {
    let show = || place.json(&["account", "show", "--data-dir", &node.data_dir]).1["data"].take();
    place.until(node, what, |_| so(&show()));
    show()
}

#[test]
fn what_waits_for_a_root_that_is_gone_goes_to_another_and_is_counted_once() {
    let place = Place::new();
    let company = |name: &str, arguments: &[&str]| {
        place.run(name, &[&["--level", "company"], arguments, QUIET.as_slice()].concat())
    };
    let mut gone = company("gone", &[]);
    let leaf = place.run("leaf", &["--level", "platform", "--peer", &gone.peer(), QUIET[0], QUIET[1]]);
    let publish = |n: u64| place.json(&["publish", &format!("n={n}"), "--data-dir", &leaf.data_dir]).0;
    assert_eq!(publish(1), 0);
    place.until(&gone, "the first is counted", |status| status["telemetry"]["counted"] == 1);
    place.until(&leaf, "its mark is there", |status| status["telemetry"]["outbox_depth"] == 0);
    let retired = account(&place, &gone, "it shows", |_| true)["own"]["account"].as_str().unwrap().to_owned();
    // Offered to a root that is frozen and then dead: it may have committed them.
    gone.send("-STOP");
    assert_eq!((publish(2), publish(3)), (0, 0));
    gone.kill();

    let heir = company("heir", &["--peer", &leaf.peer()]);
    let own = account(&place, &heir, "it shows", |_| true)["own"]["account"].as_str().unwrap().to_owned();
    let waits = |shown: &Value| {
        shown["root"] == own && shown["waiting"] == serde_json::json!([{"account": retired, "samples": 2}])
    };
    account(&place, &leaf, "two wait for the dead", waits);
    let retire = |node: &Running, into: &str| {
        place.json(&["account", "retire", &retired, "--into", into, "--data-dir", &node.data_dir])
    };
    let (code, refused) = retire(&leaf, &own);
    assert_eq!((code, &refused["error"]["code"]), (1, &"not_retired".into()), "{refused:#}");
    let (code, refused) = retire(&heir, "12");
    assert_eq!((code, &refused["error"]["code"]), (2, &"bad_account".into()), "{refused:#}");
    let (code, answer) = retire(&heir, &own);
    assert_eq!((code, &answer["data"]["into"]), (0, &own.as_str().into()), "{answer:#}");
    place.until(&heir, "both are counted", |status| status["telemetry"]["counted_by_origin"][&leaf.id] == 2);
    account(&place, &leaf, "nothing waits", |shown| shown["waiting"] == serde_json::json!([]));
    let (_, status) = place.json(&["status", "--data-dir", &leaf.data_dir]);
    assert_eq!(status["data"]["telemetry"]["acknowledged"], 3, "they were not acknowledged twice");

    // It was not gone for good: it begins a new account, and what it had counts no more.
    let back = company("gone", &["--peer", &heir.peer()]);
    let shown = account(&place, &back, "another account", |shown| {
        shown["own"]["account"].as_str().is_some_and(|account| account != retired)
    });
    assert_eq!((&shown["own"]["samples"], &shown["own"]["retired"][0]["account"]), (&0.into(), &retired.into()));
}
