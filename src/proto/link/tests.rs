//! What links do over time: whose turn it is to be dialled, how often they beat, and whose fault a silence is.

use std::sync::Arc;
use std::time::Duration;

use crate::id::{FormationId, Keypair, NodeId, NodeName};
use crate::level::Level;
use crate::limits::Limits;
use crate::proto::beacon::{Beacon, tests::sample};
use crate::proto::budget::Backoff;
use crate::proto::frame::Frame;
use crate::proto::link::{Beat, ConnId, Effect, Hello, Input, Machine, Purpose, Settings};
use crate::proto::topology::{Tenure, View};
use crate::time::Time;

fn id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 32])
}

fn machine() -> Machine {
    let name = NodeName::new("n").unwrap();
    let settings = Settings {
        me: id(200),
        name: name.clone(),
        level: Level::PLATFORM,
        formation: FormationId([0; 8]),
        incarnation: 1,
        heartbeat: Duration::from_secs(1),
        backoff: Backoff::default(),
        seed: 1,
    };
    let view = View::alone(id(200), name, Level::PLATFORM, Tenure::default(), 16);
    Machine::new(Time::ZERO, settings, Arc::new(view))
}

fn give(machine: &mut Machine, now: Time, input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    machine.step(now, input, &mut effects);
    effects
}

/// The peer dials, and says who it is.
fn link(machine: &mut Machine, peer: NodeId, conn: ConnId) {
    let (formation, name) = (FormationId([0; 8]), NodeName::new("n").unwrap());
    let hello = Hello { formation, name, level: Level::PLATFORM, incarnation: 1, count: 1 };
    give(machine, Time::ZERO, Input::Accepted { peer, conn });
    give(machine, Time::ZERO, Input::Frame { conn, frame: Frame::Hello(hello) });
}

#[test]
fn who_waits_for_a_dial_gets_its_turn_though_others_before_it_need_none_any_more() {
    let mut machine = machine();
    let peers = Limits::DIALS as u8;
    (0..peers).for_each(|n| drop(give(&mut machine, Time::ZERO, Input::Connect(id(n)))));
    let (linked, last) = (id(peers), id(peers + 1));
    for waits in [linked, last] {
        assert!(give(&mut machine, Time::ZERO, Input::Connect(waits)).is_empty());
    }
    // The first that waits is linked meanwhile, from its side.
    link(&mut machine, linked, ConnId(1));
    let effects = give(&mut machine, Time::ZERO, Input::DialFailed { peer: id(0), error: "timed out".into() });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Dial { peer, .. } if *peer == last)), "{effects:?}");
}

#[test]
fn who_looks_for_others_turns_to_a_root_that_is_named_but_not_again_at_once_when_it_cannot_be_reached() {
    let mut machine = machine();
    let (peer, root) = (id(1), id(2));
    link(&mut machine, peer, ConnId(1));
    give(&mut machine, Time::ZERO, Input::Located(vec![(root, Vec::new())]));
    let beacon = Arc::new(Beacon { root: root.prefix(), ..sample(&Keypair::from_seed([1; 32])) });
    let name_it = |machine: &mut Machine, now| {
        let frame = Frame::Beacon(beacon.clone());
        let effects = give(machine, now, Input::Frame { conn: ConnId(1), frame });
        effects.iter().filter(|effect| matches!(effect, Effect::Dial { peer, .. } if *peer == root)).count()
    };
    assert_eq!(name_it(&mut machine, Time::ZERO), 0, "it has a place, and looks for nobody");
    let mut view = View::alone(id(200), NodeName::new("n").unwrap(), Level::PLATFORM, Tenure::default(), 16);
    view.seek = Some(1_000 * SECOND);
    give(&mut machine, Time::ZERO, Input::Placed(Arc::new(view)));
    assert_eq!(name_it(&mut machine, Time::ZERO), 1);
    give(&mut machine, Time::ZERO, Input::DialFailed { peer: root, error: "timed out".into() });
    assert_eq!(name_it(&mut machine, Time::ZERO + SECOND / 5), 0);
    assert_eq!(name_it(&mut machine, Time::ZERO + SECOND), 1);
}

const SECOND: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(10);

/// A node with so many links, over which everything is answered after one round trip, until it is not.
struct Watcher {
    machine: Machine,
    now: Time,
    trip: Duration,
    under_way: Vec<(Time, ConnId, u32)>,
}

impl Watcher {
    fn new(links: u8, trip: Duration) -> Self {
        let mut machine = machine();
        for n in 1..=links {
            give(&mut machine, Time::ZERO, Input::Connect(id(n)));
            link(&mut machine, id(n), ConnId(n.into()));
        }
        Self { machine, now: Time::ZERO, trip, under_way: Vec::new() }
    }

    /// One step of time; which connections were closed.
    fn step(&mut self, answers: impl Fn(ConnId) -> bool) -> Vec<ConnId> {
        self.now = self.now + STEP;
        let (now, mut effects, mut closed) = (self.now, Vec::new(), Vec::new());
        self.machine.tick(now, &mut effects);
        for effect in effects {
            match effect {
                Effect::SendBeat { conn, beat } if answers(conn) => {
                    self.under_way.push((now + self.trip, conn, beat.sequence));
                }
                Effect::Close { conn, .. } => closed.push(conn),
                _ => {}
            }
        }
        for (_, conn, sequence) in self.under_way.extract_if(.., |(at, ..)| *at <= now) {
            let beat = Beat { sequence, echo: sequence, purpose: Purpose::Answer, pace: 1000 };
            give(&mut self.machine, now, Input::Beat { conn, beat });
        }
        closed
    }

    fn run(&mut self, span: Duration) {
        let until = self.now + span;
        while self.now < until {
            assert_eq!(self.step(|_| true), []);
        }
    }
}

#[test]
fn a_link_is_as_busy_when_its_frames_come_late_for_their_way_is_long() {
    let pace_with_frames = |trip: Duration, apart: u64| {
        let mut watcher = Watcher::new(1, trip);
        for _ in 0..10 {
            watcher.run(SECOND * apart as u32);
            give(&mut watcher.machine, watcher.now, Input::Heard(ConnId(1)));
        }
        watcher.machine.pace(&id(1)).unwrap()
    };
    let (short, long) = (SECOND / 100, SECOND / 2);
    assert_eq!(pace_with_frames(short, 1), SECOND / 10);
    assert_eq!(pace_with_frames(short, 4), SECOND);
    assert_eq!(pace_with_frames(long, 4), SECOND / 10);
}

/// How long it takes until the first peer is given up when these fall silent.
fn given_up_after(links: u8, silent: &[u64]) -> Duration {
    let mut watcher = Watcher::new(links, SECOND / 100);
    watcher.run(SECOND * 20);
    let from = watcher.now;
    while !watcher.step(|conn| !silent.contains(&conn.0)).contains(&ConnId(1)) {
        assert!(watcher.now < from + SECOND * 20, "it is never given up");
    }
    watcher.now.since(from)
}

#[test]
fn who_hears_nobody_at_all_begins_again_before_it_gives_anybody_up() {
    let alone = given_up_after(2, &[1]);
    let lonely = given_up_after(2, &[1, 2]);
    assert!(alone < SECOND * 2, "{alone:?}");
    assert!(lonely >= alone + SECOND / 5, "{lonely:?} after {alone:?}");
    // With one link nobody can tell whose fault it is.
    assert_eq!(given_up_after(1, &[1]), alone);
}

#[test]
fn who_stood_still_itself_blames_nobody_for_that() {
    for still in [SECOND / 2, SECOND * 3, SECOND * 60] {
        let mut watcher = Watcher::new(2, SECOND / 100);
        watcher.run(SECOND * 20);
        watcher.now = watcher.now + still;
        watcher.run(SECOND * 5);
    }
}
