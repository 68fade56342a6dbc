//! What a router does with what it is given, and what it keeps to itself.

use std::sync::Arc;
use std::time::Duration;

use crate::id::{Keypair, NodeId, NodeName};
use crate::level::Level;
use crate::limits::Limits;
use crate::proto::account::{Account, AccountId, Judgement, Mark};
use crate::proto::aggregate::{Decoder, Source, Unit};
use crate::proto::durable::{Durable, Record};
use crate::proto::event::Event;
use crate::proto::outbox::{Offer, WhenFull};
use crate::proto::packet::{DataPacket, Direction, PacketType, Payload, RouterFrame, Target};
use crate::proto::ranges::RangeSet;
use crate::proto::router::{Effect, Input, Machine, PublishError, Settings};
use crate::proto::sample::{Condition, Priority, Sample, Telemetry};
use crate::proto::summary::{NodeState, Summary};
use crate::proto::topology::{ChildView, Descendant, ParentView, Tenure, View};
use crate::time::Time;

const ACCOUNT: AccountId = AccountId([1; 16]);

fn id(n: u8) -> NodeId {
    Keypair::from_seed([n; 32]).id()
}

fn settings() -> Settings {
    Settings {
        me: id(1),
        incarnation: 1,
        window: Duration::from_secs(1),
        window_count: 1024,
        quantiles: false,
        outbox_bytes: 1 << 20,
        when_full: WhenFull::Block,
        aggregator: None,
        seed: 1,
    }
}

/// A root with one child.
fn root() -> Machine {
    let name = NodeName::new("root").unwrap();
    let mut view = View::alone(id(1), name, Level::COMPANY, Tenure::default(), 16);
    view.account = Some(ACCOUNT);
    view.own_account = Some(ACCOUNT);
    let (tenure, effective_level) = (Tenure::default(), Level::PLATFORM);
    let child = ChildView { tenure, serial: 1, effective_level, fence: None, since: Time::ZERO };
    view.children.insert(id(2), child);
    let below = Descendant {
        id: id(2),
        name: NodeName::new("leaf").unwrap(),
        level: effective_level,
        effective_level,
        parent: id(1),
        capabilities: Vec::new(),
        account: None,
        version: (1, 1),
    };
    view.descendants = Arc::new([(id(2), (id(2), below))].into());
    let view = Arc::new(view);
    let durable = Durable::new(7, Some(ACCOUNT));
    let mut machine = Machine::new(Time::ZERO, settings(), view.clone(), durable, None);
    machine.step(Time::ZERO, Input::Placed(view), &mut Vec::new());
    machine
}

/// The same root when it only keeps a slot for that node.
fn reserved(root: &Machine) -> Arc<View> {
    let mut view = View::clone(root.view());
    view.children.clear();
    view.descendants = Arc::default();
    view.reserved = [id(2)].into();
    Arc::new(view)
}

fn give(machine: &mut Machine, frame: RouterFrame) -> Vec<Effect> {
    let mut effects = Vec::new();
    machine.step(Time::ZERO, Input::Frame { from: id(2), frame }, &mut effects);
    effects
}

fn state(summary: Summary) -> RouterFrame {
    RouterFrame::State { child: Tenure::default(), parent: Tenure::default(), summary: Box::new(summary) }
}

fn sample(sequence: u64, value: f64) -> Arc<Sample> {
    Arc::new(Sample { sequence, priority: Priority::Normal, metrics: vec![("t".into(), value)] })
}

/// The child offers samples.
fn offered(number: u64, samples: Vec<Arc<Sample>>) -> RouterFrame {
    let offer = Offer { origin: id(2), journal: 9, account: ACCOUNT, void: RangeSet::new(), again: false, samples };
    assert!(offer.is_possible());
    let packet = DataPacket {
        id: uuid::Uuid::nil(),
        source: id(2),
        target: Target::Node(id(1)),
        direction: Direction::Upward,
        kind: PacketType::Telemetry,
        epoch: 1,
        sequence: number,
        hops: 0,
        payload: Payload::Samples(offer),
    };
    RouterFrame::Up { child: Tenure::default(), parent: Tenure::default(), number, packet }
}

fn ticket(effects: &[Effect]) -> u64 {
    let ticket = |effect: &Effect| match effect {
        Effect::Persist { ticket, .. } => *ticket,
        _ => None,
    };
    effects.iter().find_map(ticket).expect("something is to be kept")
}

fn marks(effects: &[Effect]) -> Vec<u64> {
    let marks = effects.iter().filter_map(|effect| match effect {
        Effect::Send { frame: RouterFrame::Marks(marks), .. } => Some(marks),
        _ => None,
    });
    marks.flatten().map(|mark| mark.prefix).collect()
}

/// Lets a root with one descendant commit two offers; returns the tickets, and the machine with its marks due.
fn committing() -> (Machine, u64, u64) {
    let mut machine = root();
    let first = ticket(&give(&mut machine, offered(1, vec![sample(1, 1.0)])));
    let second = ticket(&give(&mut machine, offered(2, vec![sample(2, 2.0)])));
    (machine, first, second)
}

#[test]
fn a_mark_goes_out_when_all_that_it_tells_of_is_kept() {
    let (mut machine, first, second) = committing();
    let mut effects = Vec::new();
    let later = Time::ZERO + Duration::from_secs(1);
    machine.step(later, Input::Persisted(first), &mut effects);
    machine.tick(later, &mut effects);
    assert_eq!(marks(&effects), [0; 0], "the second commit is not kept yet: {effects:?}");
    machine.step(later, Input::Persisted(second), &mut effects);
    assert_eq!(marks(&effects), [2]);
}

#[test]
fn what_could_not_be_kept_is_forgotten_and_refused_until_the_disk_works() {
    let (mut machine, first, _) = committing();
    let mut effects = Vec::new();
    machine.step(Time::ZERO, Input::Persisted(first), &mut effects);
    let telemetry = Telemetry::new().metric("t", 1.0);
    machine.step(Time::ZERO, Input::Publish { request: 5, telemetry: telemetry.clone() }, &mut effects);
    let published = |effects: &[Effect], request: u64| {
        let result = |effect: &Effect| match effect {
            Effect::Published { request: of, result } if *of == request => Some(result.clone()),
            _ => None,
        };
        effects.iter().find_map(result)
    };
    assert_eq!(published(&effects, 5), None, "not acknowledged before it is kept");
    // The disk took the first commit only.
    let mut kept = Durable::new(7, Some(ACCOUNT));
    let unit = Record::Commit(Arc::new({
        let mut unit = Unit::empty(ACCOUNT);
        unit.add(Source { origin: id(2), journal: 9 }, &sample(1, 1.0));
        unit
    }));
    kept.apply(&unit);
    machine.step(Time::ZERO, Input::Restored(Box::new(kept)), &mut effects);
    assert_eq!(published(&effects, 5), Some(Err(PublishError::Journal)));
    assert_eq!(machine.durable().account.as_ref().unwrap().totals.samples, 1);

    machine.step(Time::ZERO, Input::Publish { request: 6, telemetry: telemetry.clone() }, &mut effects);
    assert_eq!(published(&effects, 6), Some(Err(PublishError::Journal)));
    let effects = give(&mut machine, offered(3, vec![sample(2, 2.0)]));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Dropped("journal_failed"))), "{effects:?}");

    let mut effects = Vec::new();
    machine.step(Time::ZERO, Input::Writable, &mut effects);
    machine.step(Time::ZERO, Input::Publish { request: 7, telemetry }, &mut effects);
    let last = effects.iter().rev().find_map(|effect| match effect {
        Effect::Persist { ticket, .. } => *ticket,
        _ => None,
    });
    machine.step(Time::ZERO, Input::Persisted(last.unwrap()), &mut effects);
    assert!(published(&effects, 7).unwrap().is_ok());
}

#[test]
fn a_summary_that_cannot_be_true_is_refused_and_the_old_one_stands() {
    let mut machine = root();
    let failed = Summary::of(&NodeState { condition: Condition::Failed, ..NodeState::default() });
    give(&mut machine, state(failed.clone()));
    let lying = Summary { members: 2, ..failed };
    let effects = give(&mut machine, state(lying));
    assert!(matches!(effects[..], [Effect::Dropped("impossible_summary")]), "{effects:?}");
    machine.tick(Time::ZERO + Duration::from_secs(1), &mut Vec::new());
    assert_eq!((machine.summary().members, machine.summary().worst()), (2, Condition::Failed));
}

#[test]
fn a_bad_sample_is_set_aside_and_costs_nothing_else() {
    let mut machine = root();
    let effects = give(&mut machine, offered(1, vec![sample(1, 1.0), sample(2, f64::NAN), sample(3, 3.0)]));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Dropped("bad_sample"))));
    let committed = effects.iter().find_map(|effect| match effect {
        Effect::Persist { records, .. } => records.iter().find_map(|record| match record {
            Record::Commit(unit) => Some(unit.clone()),
            _ => None,
        }),
        _ => None,
    });
    assert_eq!(committed.unwrap().totals.samples, 2);
    // The prefix closes over what was set aside, so its origin is not left waiting.
    let source = Source { origin: id(2), journal: 9 };
    assert_eq!(machine.durable().account.as_ref().unwrap().mark(&source).unwrap().prefix, 3);
}

/// Publishes ten samples on a node that knows no root and has room for about five, every third of low priority; what became
/// of each, and the machine.
fn publish_ten(when_full: WhenFull) -> (Vec<Result<(), PublishError>>, Machine) {
    let view = View::alone(id(1), NodeName::new("leaf").unwrap(), Level::PLATFORM, Tenure::default(), 16);
    let settings = Settings { outbox_bytes: 5 * sample(1, 1.0).bytes(), when_full, ..settings() };
    let mut machine = Machine::new(Time::ZERO, settings, Arc::new(view), Durable::new(7, None), None);
    let mut results = Vec::new();
    for request in 1..=10 {
        let priority = if request % 3 == 0 { Priority::Low } else { Priority::Normal };
        let telemetry = Telemetry { priority, ..Telemetry::new().metric("t", request as f64) };
        let mut effects = Vec::new();
        machine.step(Time::ZERO, Input::Publish { request, telemetry }, &mut effects);
        let ticket = effects.iter().find_map(|effect| match effect {
            Effect::Persist { ticket, .. } => *ticket,
            _ => None,
        });
        ticket.into_iter().for_each(|ticket| machine.step(Time::ZERO, Input::Persisted(ticket), &mut effects));
        let refused = effects.iter().any(|effect| matches!(effect, Effect::Event(Event::SampleRefused { .. })));
        let published = effects.into_iter().find_map(|effect| match effect {
            Effect::Published { result, .. } => Some(result.map(|_| ())),
            _ => None,
        });
        let result = published.expect("who publishes is answered");
        assert!(result.is_ok() || refused, "whoever watches the events sees it");
        results.push(result);
    }
    (results, machine)
}

#[test]
fn a_full_outbox_refuses_and_keeps_what_it_has_unless_the_least_important_may_go() {
    let (results, machine) = publish_ten(WhenFull::Block);
    let outbox = &machine.durable().outbox;
    assert!(results[..5].iter().all(Result::is_ok));
    assert!(results[5..].iter().all(|result| matches!(result, Err(PublishError::Full { .. }))), "{results:?}");
    assert!(outbox.sequences().eq(1..=5));
    let (results, machine) = publish_ten(WhenFull::DropOldestLowestPriority);
    let refused: Vec<_> = (1..=10).filter(|n| results[n - 1].is_err()).collect();
    assert_eq!(refused, [9], "it is of low priority, and all others are not");
    let kept: Vec<_> = machine.durable().outbox.sequences().collect();
    assert_eq!(kept, [4, 5, 7, 8, 9], "low priority first, the oldest of them first");
}

#[test]
fn what_comes_up_before_the_request_it_came_with_is_taken_in_after_it() {
    let counted = |machine: &Machine| machine.durable().account.as_ref().unwrap().totals.samples;
    let mut machine = root();
    let (with_child, without) = (machine.view().clone(), reserved(&machine));
    let stranger = Arc::new(View { reserved: Default::default(), ..View::clone(&without) });
    let place = |machine: &mut Machine, at: Time, view: &Arc<View>| {
        let mut effects = Vec::new();
        machine.step(at, Input::Placed(view.clone()), &mut effects);
        effects
    };
    place(&mut machine, Time::ZERO, &without);
    assert!(give(&mut machine, offered(1, vec![sample(1, 1.0)])).is_empty());
    assert!(give(&mut machine, offered(2, vec![sample(2, 2.0)])).is_empty());
    assert_eq!(counted(&machine), 0);
    place(&mut machine, Time::ZERO, &with_child);
    assert_eq!(counted(&machine), 2);

    // Who is refused, or never asks, has sent it in vain.
    let is_dropped = |effects: &[Effect], label| effects.iter().any(|e| matches!(e, Effect::Dropped(l) if *l == label));
    place(&mut machine, Time::ZERO, &without);
    give(&mut machine, offered(3, vec![sample(3, 3.0)]));
    assert!(is_dropped(&place(&mut machine, Time::ZERO, &stranger), "stale_tenure"));
    place(&mut machine, Time::ZERO, &without);
    give(&mut machine, offered(4, vec![sample(3, 3.0)]));
    let later = Time::ZERO + Duration::from_secs(5);
    assert!(is_dropped(&place(&mut machine, later, &without), "early"));
    place(&mut machine, later, &with_child);
    assert_eq!(counted(&machine), 2);
}

#[test]
fn what_comes_up_too_early_is_bounded() {
    let mut machine = root();
    let view = reserved(&machine);
    machine.step(Time::ZERO, Input::Placed(view), &mut Vec::new());
    let mut kept = 0;
    while give(&mut machine, offered(kept + 1, vec![sample(kept + 1, 1.0)])).is_empty() {
        kept += 1;
    }
    let each = sample(1, 1.0).bytes() as u64;
    assert!((32..=Limits::EARLY_BYTES as u64 / each).contains(&kept), "{kept}");
}

/// A platform whose parent is as given.
fn leaf(parent: ParentView) -> View {
    let mut view = View::alone(id(1), NodeName::new("leaf").unwrap(), Level::PLATFORM, Tenure::default(), 16);
    (view.switching_to, view.account) = (Some(parent), Some(ACCOUNT));
    view
}

/// Keeps what is to be kept; returns the frames that go up.
fn sent_up(machine: &mut Machine, now: Time, mut effects: Vec<Effect>) -> Vec<RouterFrame> {
    let tickets = effects.iter().filter_map(|effect| match effect {
        Effect::Persist { ticket, .. } => *ticket,
        _ => None,
    });
    let last = tickets.max();
    last.into_iter().for_each(|ticket| machine.step(now, Input::Persisted(ticket), &mut effects));
    let sent = effects.into_iter().filter_map(|effect| match effect {
        Effect::Send { frame: frame @ RouterFrame::Up { .. }, .. } => Some(frame),
        _ => None,
    });
    sent.collect()
}

#[test]
fn what_was_sent_under_an_old_tenure_of_the_parent_goes_again_under_the_new_one() {
    let parent = |counter| {
        let tenure = Tenure { counter, ..Tenure::default() };
        ParentView { id: id(2), tenure, serial: 1, since: Time::ZERO }
    };
    let mut view = leaf(parent(1));
    let mut machine = Machine::new(Time::ZERO, settings(), Arc::new(view.clone()), Durable::new(7, None), None);
    let tenures = |machine: &mut Machine, input: Input| {
        let mut effects = Vec::new();
        machine.step(Time::ZERO, input, &mut effects);
        let tenure = |frame| match frame {
            RouterFrame::Up { parent, .. } => parent.counter,
            _ => unreachable!(),
        };
        sent_up(machine, Time::ZERO, effects).into_iter().map(tenure).collect::<Vec<_>>()
    };
    tenures(&mut machine, Input::Placed(Arc::new(view.clone())));
    let telemetry = Telemetry::new().metric("t", 1.0);
    assert_eq!(tenures(&mut machine, Input::Publish { request: 1, telemetry }), [1]);
    // The parent accepts under the tenure that it was known by: nothing goes twice.
    (view.parent, view.switching_to) = (Some(parent(1)), None);
    assert_eq!(tenures(&mut machine, Input::Placed(Arc::new(view.clone()))), [0; 0]);
    view.parent = Some(parent(2));
    assert_eq!(tenures(&mut machine, Input::Placed(Arc::new(view))), [2]);
}

#[test]
fn who_hears_no_marks_waits_longer_each_time_before_it_offers_again() {
    let view = Arc::new(leaf(ParentView { id: id(2), tenure: Tenure::default(), serial: 1, since: Time::ZERO }));
    let mut machine = Machine::new(Time::ZERO, settings(), view.clone(), Durable::new(7, None), None);
    machine.step(Time::ZERO, Input::Placed(view), &mut Vec::new());
    let offers_within = |machine: &mut Machine, from: u64, upto: u64, mut effects: Vec<Effect>| {
        let mut at = Vec::new();
        for second in from..upto {
            let now = Time::ZERO + Duration::from_secs(second);
            machine.tick(now, &mut effects);
            for frame in sent_up(machine, now, std::mem::take(&mut effects)) {
                let RouterFrame::Up { number, .. } = frame else { unreachable!() };
                at.push(second);
                let receipt = RouterFrame::Receipt { number };
                machine.step(now, Input::Frame { from: id(2), frame: receipt }, &mut effects);
            }
        }
        at
    };
    let publish = |machine: &mut Machine, now: Time| {
        let mut effects = Vec::new();
        let telemetry = Telemetry::new().metric("t", 1.0);
        machine.step(now, Input::Publish { request: 1, telemetry }, &mut effects);
        effects
    };
    let effects = publish(&mut machine, Time::ZERO);
    assert_eq!(offers_within(&mut machine, 0, 500, effects), [0, 30, 90, 210, 330, 450]);
    let mark = Mark { account: ACCOUNT, origin: id(1), journal: 7, prefix: 1 };
    let now = Time::ZERO + Duration::from_secs(500);
    machine.step(now, Input::Frame { from: id(2), frame: RouterFrame::Marks(vec![mark]) }, &mut Vec::new());
    let effects = publish(&mut machine, now);
    assert_eq!(offers_within(&mut machine, 500, 600, effects), [500, 530, 590]);
}

/// A squad below a company, with a platform below it and room for 64 MiB of samples.
fn squad() -> Machine {
    let mut view = View::alone(id(1), NodeName::new("squad").unwrap(), Level::SQUAD, Tenure::default(), 16);
    view.parent = Some(ParentView { id: id(2), tenure: Tenure::default(), serial: 1, since: Time::ZERO });
    let (tenure, effective_level) = (Tenure::default(), Level::PLATFORM);
    let child = ChildView { tenure, serial: 1, effective_level, fence: None, since: Time::ZERO };
    view.children.insert(id(3), child);
    let settings = Settings { outbox_bytes: 64 << 20, ..settings() };
    Machine::new(Time::ZERO, settings, Arc::new(view), Durable::new(7, None), None)
}

/// The company that it knows from now on.
fn with_account(machine: &Machine) -> Input {
    Input::Placed(Arc::new(View { account: Some(ACCOUNT), ..View::clone(machine.view()) }))
}

/// A sample of about two kilobytes.
fn large(sequence: u64) -> Sample {
    let metrics = (0..50).map(|n| (format!("{n:032}"), sequence as f64)).collect();
    Sample { sequence, priority: Priority::Normal, metrics }
}

/// Keeps what is to be kept, commits what goes up, and tells of both; returns the last of the receipts that went down.
fn attended(machine: &mut Machine, now: Time, above: &mut (Account, Decoder), mut effects: Vec<Effect>) -> Option<u64> {
    let mut receipt = None;
    while !effects.is_empty() {
        let mut more = Vec::new();
        for effect in effects {
            match effect {
                Effect::Persist { ticket: Some(ticket), .. } => machine.step(now, Input::Persisted(ticket), &mut more),
                Effect::Send { frame: RouterFrame::Up { number, packet, .. }, .. } => {
                    let Payload::Unit(wire) = packet.payload else { panic!("a squad sends summaries") };
                    let unit = above.1.decode(wire).unwrap();
                    if above.0.judge(&unit) == Judgement::Commit {
                        above.0.commit(&unit);
                    }
                    let marks = unit.provenance.0.keys().filter_map(|source| above.0.mark(source)).collect();
                    for frame in [RouterFrame::Marks(marks), RouterFrame::Receipt { number }] {
                        machine.step(now, Input::Frame { from: id(2), frame }, &mut more);
                    }
                }
                Effect::Send { frame: RouterFrame::Receipt { number }, .. } => receipt = Some(number),
                _ => {}
            }
        }
        effects = more;
    }
    receipt
}

#[test]
fn a_backlog_larger_than_what_a_relay_remembers_is_committed_all_the_same() {
    let (mut machine, mut above) = (squad(), (Account::new(ACCOUNT), Decoder::default()));
    let published = 3 * Limits::RELAY_BYTES / large(1).bytes();
    for request in 1..=published as u64 {
        let mut effects = Vec::new();
        let telemetry = Telemetry { metrics: large(request).metrics, ..Telemetry::new() };
        machine.step(Time::ZERO, Input::Publish { request, telemetry }, &mut effects);
        attended(&mut machine, Time::ZERO, &mut above, effects);
    }
    assert_eq!(machine.durable().outbox.depth(), published);
    let mut effects = Vec::new();
    let company = with_account(&machine);
    machine.step(Time::ZERO, company, &mut effects);
    let mut now = Time::ZERO;
    while machine.durable().outbox.depth() > 0 {
        attended(&mut machine, now, &mut above, std::mem::take(&mut effects));
        now = now + Duration::from_millis(100);
        machine.tick(now, &mut effects);
        assert!(now < Time::ZERO + Duration::from_secs(10), "{} left", machine.durable().outbox.depth());
    }
    assert_eq!((above.0.totals.samples, machine.counts().reoffered), (published as u64, 0));
}

#[test]
fn children_wait_for_a_relay_that_has_more_than_goes_up() {
    let (mut machine, mut above) = (squad(), (Account::new(ACCOUNT), Decoder::default()));
    let company = with_account(&machine);
    machine.step(Time::ZERO, company, &mut Vec::new());
    let each = 40;
    let offer = |number: u64| {
        let samples = (1..=each).map(|n| Arc::new(large((number - 1) * each + n))).collect();
        let RouterFrame::Up { child, parent, mut packet, .. } = offered(number, samples) else { unreachable!() };
        let Payload::Samples(offer) = &mut packet.payload else { unreachable!() };
        (packet.source, offer.origin, packet.target) = (id(3), id(3), Target::Node(id(1)));
        RouterFrame::Up { child, parent, number, packet }
    };
    // Nothing is told of what goes up, and the child offers as much as may be under way.
    let (mut now, mut waiting, mut receipts, mut number) = (Time::ZERO, Vec::new(), 0, 0);
    while number < receipts + Limits::IN_FLIGHT as u64 {
        number += 1;
        assert!(number < 1_000, "it is never made to wait");
        let mut effects = Vec::new();
        now = now + Duration::from_millis(20);
        machine.step(now, Input::Frame { from: id(3), frame: offer(number) }, &mut effects);
        machine.tick(now + Duration::from_millis(20), &mut effects);
        for effect in effects {
            match effect {
                Effect::Send { frame: RouterFrame::Receipt { number }, .. } => receipts = number,
                effect => waiting.push(effect),
            }
        }
    }
    // Then it is, the child may go on, and nothing has been forgotten that had not gone.
    assert_eq!(attended(&mut machine, now, &mut above, waiting), Some(number));
    let mut rest = Vec::new();
    machine.tick(now + Duration::from_secs(2), &mut rest);
    attended(&mut machine, now, &mut above, rest);
    assert_eq!(above.0.totals.samples, number * each);
}
