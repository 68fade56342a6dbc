//! Fifty processes on fifty hosts: killed with -9, frozen, cut in two, all killed at once; and every sample accounted for.
//! A hundred, or two, that form the tree as planned, and what that costs the network.
//!
//! Needs Linux and to be root. Without, it is skipped, unless `TUSSOCK_REQUIRE_NETNS=1` says that it must not be.
#![cfg(target_os = "linux")]

mod net;
// What it does not need the tests of a few processes do.
#[allow(dead_code)]
#[path = "../process/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

use net::{Cut, Links, Net};
use support::{Place, Running, name};

/// How the links are where nothing else is said.
const LINKS: Links = Links { delay: Duration::from_millis(5), jitter: Duration::from_millis(5), loss: 0.01, cut: None };

struct Host {
    name: String,
    level: &'static str,
    node: Option<Running>,
}

struct Fleet {
    net: Net,
    place: Place,
    hosts: Vec<Host>,
    /// By level, where it is not the default.
    most_children: BTreeMap<&'static str, usize>,
    peers: BTreeMap<usize, String>,
}

fn happened_at(event: &Value) -> Timestamp {
    event["at"].as_str().unwrap().parse().unwrap()
}

impl Fleet {
    /// So many of each level, in this order; the first of each is number nought.
    fn new(net: Net, levels: &[(&'static str, usize)]) -> Self {
        let mut hosts: Vec<Host> = vec![];
        for &(level, count) in levels {
            for _ in 0..count {
                let n = hosts.iter().filter(|host| host.level == level).count();
                hosts.push(Host { name: format!("{level}-{n}"), level, node: None });
            }
        }
        net.set(LINKS);
        Self { net, place: Place::new(), hosts, most_children: BTreeMap::new(), peers: BTreeMap::new() }
    }

    /// Starts a process; it knows the company and the platoons.
    fn start(&mut self, i: usize) {
        let Host { name, level, .. } = &self.hosts[i];
        let data_dir = self.place.path(name).to_str().unwrap().to_owned();
        let listen = format!("{}:7000", self.net.address(i));
        let mut arguments: Vec<&str> = vec!["run", "--name", name, "--level", level, "--data-dir", &data_dir];
        arguments.extend(["--listen", &listen, "--telemetry-stdin", "--set", "telemetry.machine_health=false"]);
        arguments.extend(["--set", "transport.open=true", "--set", "partition.timeout=5s"]);
        let most = format!("topology.max_children={}", self.most_children.get(level).unwrap_or(&16));
        arguments.extend(["--set", &most]);
        for peer in self.peers.iter().filter(|(peer, _)| **peer != i).map(|(_, peer)| peer) {
            arguments.extend(["--peer", peer]);
        }
        let run = self.place.tussock(&arguments);
        let node = self.place.started(name, &data_dir, &mut self.net.on(i, &run));
        if *level == "company" || *level == "platoon" {
            self.peers.insert(i, node.peer());
        }
        self.hosts[i].node = Some(node);
    }

    fn start_all(&mut self) {
        let mut order: Vec<_> = (0..self.hosts.len()).collect();
        order.sort_by_key(|&i| !matches!(self.hosts[i].level, "company" | "platoon"));
        order.into_iter().for_each(|i| self.start(i));
    }

    fn node(&self, i: usize) -> &Running {
        self.hosts[i].node.as_ref().unwrap()
    }

    fn status(&self, i: usize) -> Value {
        self.place.json(&["status", "--data-dir", &self.node(i).data_dir]).1["data"].clone()
    }

    /// Every platform that runs publishes.
    fn publish(&mut self) {
        for host in self.hosts.iter_mut().filter(|host| host.level == "platform") {
            if let Some(node) = &mut host.node {
                node.say(r#"{"metrics":{"temperature":21.5,"load":0.25}}"#);
            }
        }
    }

    /// Everybody's parent by name, as a node sees those below it.
    fn parents(&self, i: usize) -> BTreeMap<String, Option<String>> {
        let (_, topology) = self.place.json(&["topology", "--data-dir", &self.node(i).data_dir]);
        let nodes = topology["data"]["nodes"].as_array().unwrap().iter();
        nodes.map(|node| (name(&node["node"]).unwrap().into(), name(&node["parent"]).map(str::to_owned))).collect()
    }

    /// Goes on publishing until it is so, and says how long it took.
    fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) -> Duration {
        let started = Instant::now();
        while !so(self) {
            if started.elapsed() > Duration::from_secs(120) {
                let last: Vec<_> = self.events(0).collect();
                panic!("never: {what}: {:?}; the company's last events: {last:#?}", self.parents(0));
            }
            self.publish();
            std::thread::sleep(Duration::from_millis(400));
        }
        println!("{what}: {:.1} s", started.elapsed().as_secs_f64());
        started.elapsed()
    }

    fn until_all_are_below_the_company(&mut self, what: &str) -> Duration {
        let running = self.hosts.iter().filter(|host| host.node.is_some()).count();
        self.until(what, |fleet| fleet.parents(0).len() == running)
    }

    /// What each was told is acknowledged.
    fn acknowledged(&self) -> Vec<u64> {
        (0..self.hosts.len()).map(|i| self.status(i)["telemetry"]["acknowledged"].as_u64().unwrap()).collect()
    }

    /// Until to each so much at least is acknowledged, and the company counts all of it; how much that is together.
    fn until_all_is_counted(&self, least: &[u64]) -> u64 {
        let started = Instant::now();
        loop {
            let telemetry = self.status(0)["telemetry"].clone();
            let counted = |i: usize| telemetry["counted_by_origin"][&self.node(i).id].as_u64().unwrap_or(0);
            let all: Vec<_> =
                self.acknowledged().into_iter().enumerate().map(|(i, known)| (known, counted(i))).collect();
            assert!(all.iter().all(|(acknowledged, counted)| counted <= acknowledged), "counted twice: {all:?}");
            let acknowledged = all.iter().map(|(acknowledged, _)| acknowledged).sum::<u64>();
            let is_enough = all.iter().zip(least).all(|((acknowledged, _), least)| acknowledged >= least);
            if is_enough && all.iter().all(|(acknowledged, counted)| counted == acknowledged) {
                println!("{acknowledged} samples acknowledged, {} counted", telemetry["counted"]);
                assert_eq!(telemetry["counted"], acknowledged);
                return acknowledged;
            }
            assert!(started.elapsed() < Duration::from_secs(120), "never counted: {all:?}, at least {least:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The last events of a node.
    fn events(&self, i: usize) -> impl DoubleEndedIterator<Item = Value> {
        let output = self.place.output(&["events", "--data-dir", &self.node(i).data_dir, "-o", "jsonl"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let events: Vec<_> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        events.into_iter()
    }

    /// Those of its last events that happened since then.
    fn events_since(&self, i: usize, since: Timestamp) -> impl Iterator<Item = Value> {
        self.events(i).filter(move |event| happened_at(event) > since)
    }

    /// When a node first had a new parent since then.
    fn moved_at(&self, i: usize, since: Timestamp) -> Option<Timestamp> {
        let moves = self.events_since(i, since).filter(|event| event["event"] == "peer_changed");
        moves.map(|event| happened_at(&event)).min()
    }
}

/// Namespaces, if there may be any, for one test at a time: two cores do not carry both.
fn net(hosts: usize) -> Option<(Net, MutexGuard<'static, ()>)> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    let turn = ONE_AT_A_TIME.blocking_lock();
    match Net::new(hosts) {
        Ok(net) => Some((net, turn)),
        Err(why) if std::env::var_os("TUSSOCK_REQUIRE_NETNS").is_some_and(|value| value == "1") => {
            panic!("network namespaces are required: {why}")
        }
        Err(why) => {
            eprintln!("skipped, for there are no network namespaces here: {why}");
            None
        }
    }
}

#[test]
fn fifty_hosts_lose_nothing_whatever_is_killed_frozen_or_cut() {
    const HOSTS: usize = 50;
    const SQUADS: usize = 6;
    // On one side the company and half of each level, on the other the rest.
    const HALF: usize = 26;
    let half = [("company", 1), ("platoon", 1), ("squad", SQUADS / 2), ("platform", HALF - 2 - SQUADS / 2)];
    let other = [("platoon", 1), ("squad", SQUADS / 2), ("platform", HOSTS - HALF - 1 - SQUADS / 2)];
    let Some((net, _turn)) = net(HOSTS) else { return };
    let mut fleet = Fleet::new(net, &[&half[..], &other].concat());
    fleet.start_all();
    fleet.until_all_are_below_the_company("the tree stands");

    fleet.until("every platform is below a squad", |fleet| {
        let parents = fleet.parents(0);
        let below = |parent: &Option<String>| parent.as_ref().is_some_and(|parent| parent.starts_with("squad"));
        parents.len() == HOSTS && parents.iter().all(|(name, parent)| !name.starts_with("platform") || below(parent))
    });

    // The squad with the most children is killed.
    let parents = fleet.parents(0);
    let children = |of: &str| {
        let below = parents.iter().filter(|(_, parent)| parent.as_deref() == Some(of));
        below.map(|(child, _)| child.clone()).collect::<Vec<_>>()
    };
    let index = |fleet: &Fleet, name: &str| fleet.hosts.iter().position(|host| host.name == name).unwrap();
    let victim = (0..SQUADS).map(|n| format!("squad-{n}")).max_by_key(|squad| children(squad).len()).unwrap();
    let orphans: Vec<_> = children(&victim).iter().map(|name| index(&fleet, name)).collect();
    assert!(orphans.len() >= 5, "{parents:?}");
    let dead = index(&fleet, &victim);
    fleet.publish();
    let killed = Timestamp::now();
    fleet.hosts[dead].node.take().unwrap().kill();
    fleet.until("every orphan has another parent", |fleet| {
        orphans.iter().all(|&i| name(&fleet.status(i)["parent"]).is_some_and(|parent| parent != victim))
    });
    // One or the other may have left of its own accord just before.
    let moved = orphans.iter().filter_map(|&i| fleet.moved_at(i, killed));
    let mut took: Vec<_> = moved.map(|at| at.duration_since(killed).as_secs_f64()).collect();
    took.sort_by(f64::total_cmp);
    assert!(took.len() >= 5, "{took:?} of {orphans:?}");
    println!(
        "{} orphans: half after {:.2} s, all after {:.2} s",
        took.len(),
        took[took.len() / 2],
        took[took.len() - 1]
    );
    assert!(took[took.len() - 1] <= 10.0, "{took:?}");
    fleet.start(dead);
    fleet.until_all_are_below_the_company("the squad is back");

    // A tenth of all packets is lost for a while, and the squad is killed once more.
    fleet.net.set(Links { loss: 0.1, ..LINKS });
    fleet.hosts[dead].node.take().unwrap().kill();
    fleet.until_all_are_below_the_company("its orphans have parents over lossy links");
    fleet.start(dead);
    fleet.until_all_are_below_the_company("the squad is back over lossy links");
    fleet.net.set(LINKS);

    // Another is frozen for a while.
    let frozen = (0..HOSTS).find(|&i| fleet.hosts[i].level == "squad" && i != dead).unwrap();
    fleet.node(frozen).send("-STOP");
    let (stood_still, since) = (Timestamp::now(), Instant::now());
    fleet.until("it was frozen", |_| since.elapsed() >= Duration::from_secs(5));
    fleet.node(frozen).send("-CONT");
    fleet.until_all_are_below_the_company("the frozen squad is back");
    // Others have given it up, but it accuses nobody of its own silence.
    let accusations: Vec<_> =
        fleet.events_since(frozen, stood_still).filter(|event| event["reason"] == "heartbeats stopped").collect();
    assert!(accusations.is_empty(), "{accusations:?}");

    // The link between the halves is cut: each goes on by itself.
    fleet.net.set(Links { cut: Some((HALF, Cut::BothWays)), ..LINKS });
    let deputy = (HALF..HOSTS).find(|&i| fleet.hosts[i].level == "platoon").unwrap();
    fleet.until("the right side leads itself", |fleet| {
        fleet.status(deputy)["partition"] != Value::Null && fleet.parents(deputy).len() == HOSTS - HALF
    });
    fleet.until("the left side is by itself", |fleet| fleet.parents(0).len() == HALF);
    for (leader, size) in [(0, HALF), (deputy, HOSTS - HALF)] {
        let data_dir = &fleet.node(leader).data_dir;
        let (_, answered) = fleet.place.json(&["command", "everyone", "hold", "--data-dir", data_dir]);
        assert_eq!(answered["data"]["acknowledged"], size, "{answered:#}");
    }
    fleet.net.set(LINKS);
    let healed = fleet.until_all_are_below_the_company("one tree again");
    assert!(healed <= Duration::from_secs(30), "{healed:?}");
    fleet.until("the other platoon knows it", |fleet| name(&fleet.status(deputy)["parent"]) == Some("company-0"));

    // The right side hears nothing from the left any more, and the left side all that the right says.
    let deputy_id = fleet.node(deputy).id.clone();
    let cut = Timestamp::now();
    fleet.net.set(Links { cut: Some((HALF, Cut::OneWay)), ..LINKS });
    fleet.until("the company knows that the other platoon does not hear it", |fleet| {
        let removed = |event: &Value| event["event"] == "peer_removed" && event["child"]["id"] == deputy_id;
        let mut events = fleet.events_since(0, cut).filter(removed);
        events.any(|event| event["reason"] == "the peer does not hear this node")
    });
    fleet.until("the right side leads itself again", |fleet| fleet.status(deputy)["partition"] != Value::Null);
    fleet.net.set(LINKS);
    fleet.until_all_are_below_the_company("one tree after the link was dead in one direction");

    // Everybody is killed in the middle of it, and forgets nothing of what was acknowledged before.
    fleet.publish();
    let told = fleet.acknowledged();
    assert!(told.iter().sum::<u64>() >= 500, "{told:?}");
    for host in &mut fleet.hosts {
        host.node.take().unwrap().kill();
    }
    fleet.start_all();
    fleet.until_all_are_below_the_company("all are back after all were killed");

    fleet.until_all_is_counted(&told);
}

#[test]
fn a_hundred_hosts_form_the_tree_as_planned() {
    form_as_planned(&[("company", 1), ("platoon", 2), ("squad", 8), ("platform", 89)], 10.0);
}

#[test]
#[ignore = "two hundred processes need more than two cores"]
fn two_hundred_hosts_form_the_tree_as_planned() {
    form_as_planned(&[("company", 1), ("platoon", 2), ("squad", 16), ("platform", 181)], 25.0);
}

/// Each platoon has room for its share of the squads, and each squad for twelve platforms; when they are idle no more than
/// so many Mbit/s are under way between all hosts.
fn form_as_planned(levels: &[(&'static str, usize)], most_megabits: f64) {
    let planned: BTreeMap<_, _> = levels.iter().copied().collect();
    let share = planned["squad"] / planned["platoon"];
    let hosts = planned.values().sum();
    let Some((net, _turn)) = net(hosts) else { return };
    let mut fleet = Fleet::new(net, levels);
    fleet.most_children = BTreeMap::from([("platoon", share), ("squad", 12)]);
    fleet.start_all();
    let started = Instant::now();
    let mut formed = false;
    loop {
        let children = |i| fleet.status(i)["children"].as_array().unwrap().len();
        let of = |level| (0..hosts).filter(|&i| fleet.hosts[i].level == level).map(children).collect();
        let (company, platoons, squads): (Vec<_>, Vec<_>, Vec<_>) = (of("company"), of("platoon"), of("squad"));
        let all_below = squads.iter().sum::<usize>() == planned["platform"];
        let as_planned = company == [planned["platoon"]] && platoons.iter().all(|squads| *squads == share) && all_below;
        let waited = started.elapsed();
        if as_planned && !formed {
            println!("as planned, with {squads:?} platforms: {:.1} s", waited.as_secs_f64());
            formed = true;
        }
        // A squad that has many more than another is relieved by and by.
        if as_planned && squads.iter().all(|platforms| (10..=12).contains(platforms)) {
            println!("ten to twelve below each squad: {:.1} s", waited.as_secs_f64());
            break;
        }
        assert!(waited < Duration::from_secs(240), "never as planned: {company:?} {platoons:?} {squads:?}");
        std::thread::sleep(Duration::from_secs(1));
    }
    // Samples come to the squads one by one, and from there on as summaries.
    for _ in 0..10 {
        fleet.publish();
        std::thread::sleep(Duration::from_millis(200));
    }
    let told: Vec<_> = fleet.hosts.iter().map(|host| if host.level == "platform" { 10 } else { 0 }).collect();
    let counted = fleet.until_all_is_counted(&told);
    for (i, host) in fleet.hosts.iter().enumerate() {
        let received = fleet.status(i)["telemetry"]["received"].clone();
        let (raw, summarised) = (received["raw"].as_u64().unwrap(), received["summarised"].as_u64().unwrap());
        let is_so = match host.level {
            "company" => raw == 0 && summarised >= counted,
            "platoon" => raw == 0 && summarised > 0,
            "squad" => raw > 0 && summarised == 0,
            _ => raw == 0 && summarised == 0,
        };
        assert!(is_so, "{}: {raw} raw, {summarised} summarised", host.name);
    }
    let (_, answered) = fleet.place.json(&["command", "everyone", "hold", "--data-dir", &fleet.node(0).data_dir]);
    assert_eq!(answered["data"]["acknowledged"], hosts, "{answered:#}");
    for level in ["platoon", "squad", "platform"] {
        let acks = answered["data"]["acks"].as_array().unwrap().iter();
        let of_level = acks.filter(|ack| name(&ack["node"]).is_some_and(|name| name.starts_with(level)));
        let last = of_level.map(|ack| ack["after_s"].as_f64().unwrap()).max_by(f64::total_cmp);
        println!("a command to the last {level}, and its answer: {:.2} s", last.expect("all answered"));
    }

    // Gossip comes to rest by and by, and what it does not need any more is closed.
    let started = Instant::now();
    loop {
        let (before, since) = (fleet.net.bytes(), Instant::now());
        std::thread::sleep(Duration::from_secs(10));
        let megabits = (fleet.net.bytes() - before) as f64 * 8.0 / 1e6 / since.elapsed().as_secs_f64();
        println!("{hosts} idle hosts after {:.0} s: {megabits:.1} Mbit/s", started.elapsed().as_secs_f64());
        if megabits <= most_megabits {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(180), "never at most {most_megabits} Mbit/s");
    }
}
