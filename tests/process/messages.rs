//! The first messages a user meets, word for word.

use std::net::UdpSocket;

use serde_json::Value;

use crate::support::Place;

/// Runs a verb that must fail; returns its exit code and what it says, with the test's own paths made plain.
fn complaint(place: &Place, arguments: &[&str]) -> (i32, String) {
    let output = place.output(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    let here = place.path("").display().to_string();
    (output.status.code().unwrap(), text.replace(&here, "DIR/").replace(here.trim_end_matches('/'), "DIR"))
}

#[test]
fn a_port_in_use() {
    let place = Place::new();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, text) = complaint(&place, &["run", "--name", "a", "--listen", &address]);
    assert_eq!(code, 1);
    assert_eq!(
        text.replace(&address, "ADDRESS"),
        "tussock: cannot listen on ADDRESS: Address already in use (os error 98)\n  \
         fix: stop what uses ADDRESS, or listen elsewhere: --listen 127.0.0.1:0\n"
    );
}

#[test]
fn a_data_directory_in_use() {
    let place = Place::new();
    let node = place.run("alpha", &[]);
    let (code, text) = complaint(&place, &["run", "--name", "beta", "--data-dir", &node.data_dir]);
    assert_eq!(code, 1);
    assert!(text.starts_with("tussock: DIR/alpha is in use by alpha (pid "), "{text}");
    assert!(text.ends_with("fix: stop that process, or give this node a --data-dir of its own\n"), "{text}");
}

#[test]
fn no_node_at_the_socket() {
    let place = Place::new();
    let (code, text) = complaint(&place, &["status", "--socket", "nobody.sock"]);
    assert_eq!(code, 3);
    assert_eq!(
        text,
        "tussock: no node answers at nobody.sock: No such file or directory (os error 2)\n  \
         fix: start the node with `tussock run`, or name another with --data-dir DIR or --socket PATH\n"
    );
    let (code, _) = complaint(&place, &["status"]);
    assert_eq!(code, 3);
}

#[test]
fn several_nodes_and_none_named() {
    let place = Place::new();
    let _nodes = [place.run("a", &[]), place.run("b", &[])];
    let (code, text) = complaint(&place, &["status"]);
    assert_eq!(code, 2);
    assert!(text.contains("several nodes are running:") && text.contains("--socket"), "{text}");
}

#[test]
fn a_malformed_peer() {
    let place = Place::new();
    for (peer, why) in [
        ("12ab", "there is no `@`"),
        ("12ab@127.0.0.1:1", "a node id is 64 hex digits, this has 4 characters"),
        (&format!("{}@nowhere", "ab".repeat(32)), "`nowhere` is not an address with a port"),
    ] {
        let (code, text) = complaint(&place, &["run", "--peer", peer]);
        assert_eq!(code, 2);
        assert!(text.starts_with(&format!("tussock: --peer {peer}: {why}\n  fix: write it as ID@ADDR:PORT")), "{text}");
    }
}

#[test]
fn an_unknown_level() {
    let place = Place::new();
    let (code, text) = complaint(&place, &["run", "--level", "plattoon"]);
    assert_eq!(code, 78);
    assert_eq!(
        text,
        "tussock: --level: `plattoon` is not a level; the levels are platform, squad, platoon, company \
         (did you mean `platoon`?)\n"
    );
}

#[test]
fn a_peer_whose_key_does_not_match() {
    let place = Place::new();
    let other = place.run("other", &[]);
    let peer = format!("{}@{}", "ab".repeat(31) + "cd", other.listen);
    // The id must be a point of the curve for the dial to begin: take another node's.
    let (_, stranger) = place.json(&["id", "--data-dir", place.path("stranger").to_str().unwrap()]);
    let peer = peer.replace(&("ab".repeat(31) + "cd"), stranger["data"]["id"].as_str().unwrap());
    let _node = place.run("node", &["--peer", &peer]);
    let started = std::time::Instant::now();
    while !place.log("node").contains("has another key than") {
        assert!(started.elapsed().as_secs() < 60, "{}", place.log("node"));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn a_configuration_with_several_faults() {
    let place = Place::new();
    place.write("bad.toml", "[node]\nnaem = \"a\"\nlevel = \"sqad\"\n[beacon]\nttl = \"1s\"\n");
    let (code, text) = complaint(&place, &["run", "--config", "bad.toml"]);
    assert_eq!(code, 78);
    for expected in
        ["bad.toml:2:1: ", "did you mean `name`?", "bad.toml:3:9: ", "did you mean `squad`?", "bad.toml:5:7: "]
    {
        assert!(text.contains(expected), "{expected} is missing in {text}");
    }
    let (code, text) = complaint(&place, &["run", "--config", "none.toml"]);
    assert_eq!(code, 78);
    assert!(text.starts_with("tussock: none.toml: cannot be read: No such file or directory"), "{text}");
    let (code, text) = complaint(&place, &["run", "--set", "topology.max_children=none"]);
    assert_eq!(code, 78);
    assert!(text.starts_with("tussock: --set topology.max_children: "), "{text}");
}

#[test]
fn a_failure_as_json() {
    let place = Place::new();
    place.write("bad.toml", "[node]\nlevel = \"sqad\"\n");
    let (code, error) = place.json(&["run", "--config", "bad.toml"]);
    assert_eq!((code, &error["schema"]), (78, &"tussock.error/v1".into()));
    let error = &error["error"];
    assert_eq!(error["code"], "invalid_configuration");
    assert_eq!((&error["where"]["line"], &error["where"]["column"]), (&2.into(), &9.into()));
    assert_eq!(error["fix"], "did you mean `squad`?");
    let (code, error) = place.json(&["status", "--socket", "nobody.sock"]);
    assert_eq!((code, &error["error"]["where"]), (3, &Value::Null));
}

#[test]
fn listening_beyond_loopback_must_be_meant() {
    let place = Place::new();
    let (code, text) = complaint(&place, &["run", "--listen", "0.0.0.0:0"]);
    assert_eq!(code, 78);
    assert!(text.contains("transport.open = true"), "{text}");
}

#[test]
fn a_file_where_the_socket_should_be_is_left_alone() {
    let place = Place::new();
    let file = place.write("notes.txt", "precious");
    let (code, text) = complaint(&place, &["run", "--name", "a", "--socket", file.to_str().unwrap()]);
    assert_eq!((code, std::fs::read_to_string(&file).unwrap().as_str()), (1, "precious"));
    assert!(text.starts_with("tussock: DIR/notes.txt: what is there is no socket\n"), "{text}");
}

#[test]
fn every_section_can_be_set_by_the_environment() {
    let place = Place::new();
    for section in ["NODE", "BEACON", "TOPOLOGY", "FAILOVER", "TELEMETRY", "PARTITION", "TRANSPORT"] {
        let variable = format!("TUSSOCK_{section}_NO_SUCH_KEY");
        let output = place.tussock(&["run", "--name", "a"]).env(&variable, "1").output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{variable}: {output:?}");
    }
}

#[test]
fn output_that_nobody_can_take_is_a_failure() {
    let place = Place::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = place.tussock(&["sim", "formation"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
