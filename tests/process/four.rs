//! Four processes: a root, two possible parents, a leaf. The leaf's parent is killed with SIGKILL.

use crate::support::{Place, name};

#[test]
fn a_leaf_whose_parent_is_killed_has_another_and_says_why() {
    let place = Place::new();
    let root = place.run("root", &["--level", "company"]);
    let peer = root.peer();
    let mut a = place.run("a", &["--level", "squad", "--peer", &peer]);
    let mut b = place.run("b", &["--level", "squad", "--peer", &peer]);
    let leaf = place.run("leaf", &["--level", "platform", "--peer", &peer]);

    place.until(&root, "the tree forms", |status| status["children"].as_array().unwrap().len() == 2);
    let status = place.until(&leaf, "the leaf has a parent and a backup", |status| {
        status["rank"] == 2 && !status["backup"].is_null() && status["state"] == "attached"
    });
    let first = name(&status["parent"]).unwrap().to_owned();
    assert_eq!(name(&status["root"]), Some("root"));

    let (code, answered) = place.json(&["command", "everyone", "hold", "--data-dir", &root.data_dir]);
    assert_eq!((code, &answered["schema"]), (0, &"tussock.command/v1".into()));
    assert_eq!((&answered["data"]["expected"], &answered["data"]["acknowledged"]), (&4.into(), &4.into()));
    let acks = answered["data"]["acks"].as_array().unwrap();
    assert!(acks.iter().any(|ack| name(&ack["node"]) == Some("leaf") && ack["answer"] == "accepted"));

    for n in 0..5 {
        let (code, sent) = place.json(&["publish", &format!("temperature={n}"), "--data-dir", &leaf.data_dir]);
        assert_eq!((code, &sent["data"]["outcome"]), (0, &"sent".into()), "{sent}");
    }

    let parent = if first == "a" { &mut a } else { &mut b };
    parent.kill();
    let second = if first == "a" { "b" } else { "a" };
    let status = place.until(&leaf, "the leaf has another parent", |status| {
        name(&status["parent"]).is_some_and(|parent| parent != first)
    });
    assert_eq!(name(&status["parent"]), Some(second));

    let (code, why) = place.json(&["why", "--data-dir", &leaf.data_dir]);
    let change = &why["data"]["last_change"];
    assert_eq!((code, &change["cause"]), (0, &"lost".into()), "{why:#}");
    assert_eq!((name(&change["from"]), name(&change["to"])), (Some(first.as_str()), Some(second)));
    let chosen: Vec<_> = why["data"]["candidates"].as_array().unwrap().iter().filter(|c| c["chosen"] == true).collect();
    assert_eq!(chosen.len(), 1);
    let factors = chosen[0]["factors"].as_array().unwrap();
    let sum: f64 = factors.iter().map(|factor| factor["contribution"].as_f64().unwrap()).sum();
    assert!((sum - chosen[0]["score"].as_f64().unwrap()).abs() < 1e-9);

    // The root hears the same from the leaf through the tree, once it knows where the leaf is now.
    let below = |parent: &str| {
        let (_, topology) = place.json(&["topology", "--data-dir", &root.data_dir]);
        let nodes = topology["data"]["nodes"].as_array().unwrap().clone();
        nodes.iter().any(|node| name(&node["node"]) == Some("leaf") && name(&node["parent"]) == Some(parent))
    };
    place.until(&root, "the root knows of the move", |_| below(second));
    let (code, told) = place.json(&["why", "leaf", "--data-dir", &root.data_dir]);
    assert_eq!(code, 0, "{told:#}");
    assert_eq!((name(&told["data"]["node"]), &told["data"]["parent"]), (Some("leaf"), &why["data"]["parent"]));
    assert_eq!(told["data"]["last_change"]["detail"], why["data"]["last_change"]["detail"]);
    let (code, refused) = place.json(&["why", "laef", "--data-dir", &root.data_dir]);
    assert_eq!((code, &refused["error"]["fix"]), (1, &"did you mean `leaf`?".into()));

    for n in 0..5 {
        let (code, _) = place.json(&["publish", &format!("temperature={n}"), "--data-dir", &leaf.data_dir]);
        assert_eq!(code, 0);
    }
    let acknowledged =
        place.until(&leaf, "the leaf's samples are committed", |status| status["telemetry"]["outbox_depth"] == 0);
    let acknowledged = &acknowledged["telemetry"]["acknowledged"];
    let counted = place.until(&root, "the root counts them", |status| {
        &status["telemetry"]["counted_by_origin"][&leaf.id] == acknowledged
    });
    assert!(acknowledged.as_u64().unwrap() >= 10, "{counted}");

    let (_, members) = place.json(&["members", "--data-dir", &root.data_dir]);
    assert_eq!(members["data"].as_array().unwrap().len(), 4, "{members:#}");
    let (_, topology) = place.json(&["topology", "--data-dir", &root.data_dir]);
    assert_eq!(topology["data"]["nodes"].as_array().unwrap().len(), 3, "{topology:#}");
    let drawn = |kind: &str| {
        let output = place.output(&["topology", "-o", kind, "--data-dir", &root.data_dir]);
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(drawn("dot").contains(&format!("  \"{}\" -> ", leaf.id)), "{}", drawn("dot"));
    assert!(drawn("mermaid").starts_with("flowchart BT\n"));
    let map: serde_json::Value = serde_json::from_str(&drawn("geojson")).unwrap();
    assert_eq!(map["type"], "FeatureCollection");
    assert_eq!(place.output(&["status", "-o", "dot"]).status.code(), Some(2));
}

#[test]
fn a_crashed_actor_restarts_and_says_so() {
    let place = Place::new();
    let node = place.run("solo", &["--level", "squad"]);
    let data_dir = ["--data-dir", &node.data_dir];
    for actor in ["metrics", "transport", "discovery", "beacon", "topology", "router", "janitor"] {
        let (code, restarted) = place.json(&[&["restart", actor, "--panic"], &data_dir[..]].concat());
        assert_eq!(code, 0, "{restarted}");
    }
    let (_, actors) = place.json(&[&["actors"], &data_dir[..]].concat());
    for actor in actors["data"].as_array().unwrap() {
        assert_eq!((&actor["restarts"], &actor["last_exit"]["kind"]), (&1.into(), &"panic".into()), "{actor}");
    }
    let output = place.output(&[&["events"], &data_dir[..]].concat());
    let lines: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["event"], "snapshot");
    assert!(lines.iter().any(|line| line["event"] == "actor_restarted" && line["actor"] == "janitor"));
}
