//! What was acknowledged is there again: after SIGKILL of everybody, a power cut, a broken or full disk, a flipped bit.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{Place, Running};

const QUIET: [&str; 2] = ["--set", "telemetry.machine_health=false"];

fn publish(place: &Place, node: &Running, value: u64) -> (i32, Value) {
    place.json(&["publish", &format!("n={value}"), "--data-dir", &node.data_dir])
}

#[test]
fn every_acknowledged_sample_is_counted_once_though_every_node_is_killed_again_and_again() {
    let place = Place::new();
    let start = |peer: &str, listen: &str| {
        let quiet = QUIET;
        let root = place.run("root", &[&["--level", "company", "--listen", listen], quiet.as_slice()].concat());
        let peer = if peer.is_empty() { root.peer() } else { peer.to_owned() };
        let squad = place.run("squad", &[&["--level", "squad", "--peer", &peer], quiet.as_slice()].concat());
        let leaf = place.run("leaf", &[&["--level", "platform", "--peer", &squad.peer()], quiet.as_slice()].concat());
        [root, squad, leaf]
    };
    let mut nodes = start("", "127.0.0.1:0");
    let (peer, listen) = (nodes[0].peer(), nodes[0].listen.clone());
    let mut acknowledged = 0;
    for round in 0..3 {
        // Nobody waits for the tree: what is acknowledged is in the journal, attached or not.
        for n in 0..20 {
            let (code, sent) = publish(&place, &nodes[2], n);
            assert_eq!(code, 0, "{sent:#}");
            acknowledged += 1;
            // In the middle of it a relay is killed, or the root.
            if n == 10 && round < 2 {
                nodes[round].kill();
            }
        }
        nodes.iter_mut().for_each(Running::kill);
        nodes = start(&peer, &listen);
        let (_, status) = place.json(&["status", "--data-dir", &nodes[2].data_dir]);
        let telemetry = &status["data"]["telemetry"];
        assert_eq!((&telemetry["acknowledged"], &telemetry["outbox"]), (&acknowledged.into(), &"disk".into()));
    }
    let id = nodes[2].id.clone();
    place.until(&nodes[0], "everything is counted", |status| {
        status["telemetry"]["counted_by_origin"][&id] == acknowledged
    });
    place.until(&nodes[2], "the outbox is empty", |status| status["telemetry"]["outbox_depth"] == 0);
    // The root's account outlives it too, and nothing is counted again.
    nodes[0].kill();
    nodes[0] = place.run("root", &[&["--level", "company", "--listen", listen.as_str()], QUIET.as_slice()].concat());
    let (code, _) = publish(&place, &nodes[2], 1);
    assert_eq!(code, 0);
    let status = place.until(&nodes[0], "the last one is counted", |status| {
        status["telemetry"]["counted_by_origin"][&id].as_u64() > Some(acknowledged)
    });
    assert_eq!(status["telemetry"]["counted"], acknowledged + 1);
}

/// A node above a disk that forgets what it was not told to keep when the power goes, and that can fail (`disk.c`).
struct OnDisk<'p> {
    place: &'p Place,
    data_dir: String,
    preload: PathBuf,
}

impl<'p> OnDisk<'p> {
    fn new(place: &'p Place) -> Self {
        let (preload, data_dir) = (place.path("disk.so"), place.path("node").to_str().unwrap().to_owned());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/process/disk.c");
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&preload).arg(source).status().unwrap();
        assert!(compiled.success());
        Self { place, data_dir, preload }
    }

    fn start(&self) -> Running {
        let run = ["run", "--name", "node", "--data-dir", &self.data_dir, "--level", "platform", QUIET[0], QUIET[1]];
        let mut run = self.place.tussock(&run);
        run.env("LD_PRELOAD", &self.preload);
        run.env("SYNCED", self.place.path("synced")).env("SYNC_FAILS", self.place.path("sync-fails"));
        self.place.started("node", &self.data_dir, &mut run)
    }

    /// While the node is down: takes from its journal what the disk was not told to keep.
    fn cut_power(&self) {
        let file = File::options().write(true).open(self.place.path("node").join("journal/log")).unwrap();
        let inode = format!("{} ", file.metadata().unwrap().ino());
        let notes = fs::read_to_string(self.place.path("synced")).unwrap_or_default();
        let kept = notes.lines().rev().find_map(|line| line.strip_prefix(&inode));
        file.set_len(kept.map_or(0, |size| size.parse().unwrap())).unwrap();
    }

    fn status(&self) -> Value {
        let (_, status) = self.place.json(&["status", "--data-dir", &self.data_dir]);
        status["data"].clone()
    }
}

#[test]
fn what_was_acknowledged_survives_a_power_cut() {
    let place = Place::new();
    let disk = OnDisk::new(&place);
    let mut node = disk.start();
    for acknowledged in [10, 20, 30] {
        for n in 0..10 {
            assert_eq!(publish(&place, &node, n).0, 0);
        }
        node.kill();
        disk.cut_power();
        node = disk.start();
        let status = disk.status();
        assert_eq!(status["telemetry"]["acknowledged"], acknowledged, "{status:#}");
        assert_eq!(status["journal"]["damaged"], 0, "{status:#}");
    }
}

#[test]
fn what_a_disk_may_not_have_kept_is_refused_and_what_was_acknowledged_before_is_kept_anew() {
    let place = Place::new();
    let disk = OnDisk::new(&place);
    let mut node = disk.start();
    let journal = || fs::metadata(place.path("node").join("journal/log")).unwrap().ino();
    let before = journal();
    assert_eq!(publish(&place, &node, 1).0, 0);
    fs::write(place.path("sync-fails"), "").unwrap();
    for n in 2..5 {
        let (code, refused) = publish(&place, &node, n);
        assert_eq!(code, 1, "{refused:#}");
        assert!(refused["error"]["message"].as_str().unwrap().contains("the journal cannot keep"), "{refused:#}");
    }
    assert_eq!(disk.status()["telemetry"]["acknowledged"], 1);
    fs::remove_file(place.path("sync-fails")).unwrap();
    place.until(&node, "it keeps again", |status| status["journal"]["failing"].is_null() && status["ready"] == true);
    // What the old file holds is in doubt, however often it is synced now.
    assert_ne!(journal(), before);
    assert_eq!(publish(&place, &node, 5).0, 0);
    node.kill();
    disk.cut_power();
    let _node = disk.start();
    let status = disk.status();
    assert_eq!((&status["telemetry"]["acknowledged"], &status["journal"]["damaged"]), (&2.into(), &0.into()));
}

#[test]
fn a_full_disk_refuses_clearly_keeps_what_it_has_and_goes_on_when_there_is_room() {
    let place = Place::new();
    let data_dir = place.path("node").to_str().unwrap().to_owned();
    // Files may not grow beyond 16 KiB: a write fails as on a full disk, and no signal ends the process.
    let mut limited = Command::new("bash");
    let script = "trap '' XFSZ; ulimit -S -f 16; exec \"$0\" \"$@\"";
    let run =
        place.tussock(&["run", "--name", "node", "--data-dir", &data_dir, "--level", "platform", QUIET[0], QUIET[1]]);
    limited.args(["-c", script]).arg(run.get_program()).args(run.get_args());
    limited.env("XDG_RUNTIME_DIR", place.path("runtime"));
    limited.process_group(0);
    let mut node = place.started("node", &data_dir, &mut limited);

    let mut acknowledged = 0;
    let refused = loop {
        let (code, sent) = publish(&place, &node, acknowledged);
        if code != 0 {
            break sent;
        }
        acknowledged += 1;
        assert!(acknowledged < 1_000, "the disk is never full");
    };
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("the journal cannot keep"), "{refused:#}");
    let (code, status) = place.json(&["status", "--data-dir", &data_dir]);
    assert_eq!((code, &status["data"]["ready"]), (4, &false.into()), "{status:#}");
    assert!(status["data"]["journal"]["failing"].is_string(), "{status:#}");
    assert_eq!(status["data"]["telemetry"]["acknowledged"], acknowledged);

    let pid = status["data"]["pid"].to_string();
    assert!(Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited"]).status().unwrap().success());
    place.until(&node, "it keeps again", |status| status["journal"]["failing"].is_null() && status["ready"] == true);
    let (code, sent) = publish(&place, &node, 7);
    assert_eq!((code, &sent["data"]["depth"]), (0, &(acknowledged + 1).into()), "{sent:#}");

    node.kill();
    let node = place.run("node", &["--level", "platform", QUIET[0], QUIET[1]]);
    let (_, status) = place.json(&["status", "--data-dir", &node.data_dir]);
    assert_eq!(status["data"]["telemetry"]["acknowledged"], acknowledged + 1, "{status:#}");
    assert_eq!(status["data"]["telemetry"]["outbox_depth"], acknowledged + 1);
}

#[test]
fn a_flipped_bit_in_the_journal_is_reported_and_costs_one_sample() {
    let place = Place::new();
    let mut node = place.run("node", &["--level", "platform", QUIET[0], QUIET[1]]);
    for n in 0..10 {
        assert_eq!(publish(&place, &node, n).0, 0);
    }
    node.kill();
    let path = place.path("node").join("journal/log");
    let mut bytes = std::fs::read(&path).unwrap();
    let third_from_the_end = bytes.len() - 100;
    bytes[third_from_the_end] ^= 1;
    std::fs::write(&path, &bytes).unwrap();

    let node = place.run("node", &["--level", "platform", QUIET[0], QUIET[1]]);
    let (code, status) = place.json(&["status", "--data-dir", &node.data_dir]);
    let (journal, telemetry) = (&status["data"]["journal"], &status["data"]["telemetry"]);
    assert_eq!((code, &journal["damaged"], &journal["lost_samples"]), (0, &1.into(), &1.into()), "{status:#}");
    assert_eq!(telemetry["outbox_depth"], 9);
    assert!(place.log("node").contains("the journal was damaged"), "{}", place.log("node"));
}

#[test]
fn a_full_outbox_gives_up_the_oldest_and_counts_them_across_kills() {
    let place = Place::new();
    let settings = ["--set", "telemetry.outbox_bytes=4096", "--set", "telemetry.when_full=drop_oldest_lowest_priority"];
    let start = || place.run("node", &[&["--level", "platform"], settings.as_slice(), QUIET.as_slice()].concat());
    let mut node = start();
    let published = 200;
    for n in 0..published {
        let (code, sent) = publish(&place, &node, n);
        assert_eq!(code, 0, "{sent:#}");
    }
    let telemetry =
        |node: &Running| place.json(&["status", "--data-dir", &node.data_dir]).1["data"]["telemetry"].take();
    let before = telemetry(&node);
    let (evicted, depth) = (before["evicted"].as_u64().unwrap(), before["outbox_depth"].as_u64().unwrap());
    assert!(evicted > 0 && depth > 0 && before["outbox_bytes"].as_u64() <= Some(4096), "{before:#}");
    assert_eq!((before["acknowledged"].as_u64(), evicted + depth), (Some(published), published));
    let events = place.output(&["events", "--data-dir", &node.data_dir]);
    assert!(String::from_utf8_lossy(&events.stdout).contains("the outbox is full: 1 given up"));

    // What was given up stays so, and the rest is committed all the same.
    node.kill();
    let node = start();
    assert_eq!(telemetry(&node)["evicted"], evicted);
    let root = place.run("root", &[&["--level", "company", "--peer", &node.peer()], QUIET.as_slice()].concat());
    place.until(&root, "the rest is counted", |status| status["telemetry"]["counted_by_origin"][&node.id] == depth);
    place.until(&node, "nothing waits", |status| status["telemetry"]["outbox_depth"] == 0);
}
