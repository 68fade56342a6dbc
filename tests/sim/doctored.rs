//! Every invariant has a machine that breaks it, and is seen to notice.

use std::cell::Cell;
use std::sync::Arc;

use tussock::NodeId;
use tussock::level::Level;
use tussock::proto::durable::Record;
use tussock::proto::frame::Frame;
use tussock::proto::node::Output;
use tussock::proto::packet::{Payload, RouterFrame};
use tussock::proto::topology::{ChildView, Fence, ParentView, Tenure, View};
use tussock::sim::{Report, World};
use tussock::time::Time;

use crate::support::from_text;

const MESH: &str = r#"
name = "doctored"
duration = "30s"
settle = "10s"

[mesh]
company = 1
squad = 2
platform = 9
settings = { "topology.max_distance" = 3000.0 }

[[command]]
at = "10s"
from = "company:0"
target = "everyone"
"#;

fn mesh() -> World {
    from_text(MESH).unwrap()
}

/// Runs the mesh with every view changed by `change` once it begins to form.
fn with_views(change: impl Fn(&mut View) + 'static) -> Report {
    let doctor = move |now: Time, _: usize, outputs: &mut Vec<Output>| {
        for output in outputs {
            if let (Output::View(view), true) = (output, now.as_secs_f64() > 0.6) {
                change(Arc::make_mut(view));
            }
        }
    };
    mesh().with_doctor(Box::new(doctor)).run()
}

fn broken(report: &Report) -> Vec<&'static str> {
    let mut names: Vec<_> = report.invariants.violations.iter().map(|violation| violation.name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn a_child() -> ChildView {
    ChildView { tenure: Tenure::default(), serial: 1, effective_level: Level::PLATFORM, fence: None, since: Time::ZERO }
}

#[test]
fn an_undoctored_run_breaks_none() {
    let report = with_views(|_| ());
    assert_eq!(broken(&report), <[&str; 0]>::default());
    assert!(report.invariants.checks > 1_000, "{}", report.invariants.checks);
    assert!(report.passed());
}

#[test]
fn more_children_than_slots_are_noticed() {
    let report = with_views(|view| view.children.extend((0..20).map(|n| (NodeId::from_bytes([n; 32]), a_child()))));
    assert!(broken(&report).contains(&"children_within_slots"));
}

#[test]
fn a_tenure_that_goes_back_is_noticed() {
    let report = with_views(|view| view.tenure = Tenure { incarnation: 0, counter: 0 });
    assert!(broken(&report).contains(&"tenures_rise"));
}

#[test]
fn a_term_that_goes_back_is_noticed() {
    let counter = Cell::new(1_000_000);
    let report = with_views(move |view| {
        counter.set(counter.get() - 1);
        view.fence = Some(Fence { counter: counter.get(), leader: view.me });
    });
    assert!(broken(&report).contains(&"fences_rise"));
}

#[test]
fn a_level_that_falls_within_a_tenure_is_noticed() {
    let report = with_views(|view| {
        if view.level == Level::SQUAD {
            view.effective_level = Level::PLATFORM;
        }
    });
    assert!(broken(&report).contains(&"levels_last"));
    // By the parent's change, too.
    assert!(broken(&report).contains(&"levels_rise"));
}

#[test]
fn a_child_that_is_not_below_its_parent_is_noticed() {
    let report = with_views(|view| view.effective_level = Level::COMPANY);
    assert!(broken(&report).contains(&"levels_rise"));
}

#[test]
fn a_cycle_of_links_is_noticed() {
    // Every node is its own parent and child: the shortest cycle there is.
    let report = with_views(|view| {
        let (me, tenure) = (view.me, view.tenure);
        view.parent = Some(ParentView { id: me, tenure, serial: 1, since: Time::ZERO });
        view.children.insert(me, ChildView { tenure, ..a_child() });
    });
    assert!(broken(&report).contains(&"no_cycle"));
}

#[test]
fn a_node_that_settles_without_the_parent_it_could_have_is_noticed() {
    let report = with_views(|view| {
        if view.level == Level::PLATFORM {
            view.parent = None;
        }
    });
    assert!(broken(&report).contains(&"settled_attached"));
}

#[test]
fn two_roots_that_can_hear_each_other_are_noticed() {
    let report = with_views(|view| {
        if view.level == Level::SQUAD {
            view.parent = None;
        }
    });
    assert!(broken(&report).contains(&"settled_one_root"));
}

#[test]
fn a_node_that_names_another_root_than_it_has_is_noticed() {
    let report = with_views(|view| view.path = Arc::default());
    assert!(broken(&report).contains(&"settled_root"));
}

fn with_outputs(change: impl Fn(&Output) -> Vec<Output> + 'static) -> Report {
    let doctor = move |_: Time, _: usize, outputs: &mut Vec<Output>| {
        *outputs = outputs.iter().flat_map(&change).collect();
    };
    mesh().with_doctor(Box::new(doctor)).run()
}

#[test]
fn a_command_given_to_a_host_twice_is_noticed() {
    let report = with_outputs(|output| match output {
        Output::Deliver(_) => vec![output.clone(), output.clone()],
        other => vec![other.clone()],
    });
    assert!(broken(&report).contains(&"delivered_once"));
}

#[test]
fn a_unit_committed_twice_is_noticed() {
    let report = with_outputs(|output| match output {
        Output::Persist { ticket, records } if records.iter().any(|r| matches!(r, Record::Commit(_))) => {
            let twice = records.iter().chain(records).cloned().collect();
            vec![Output::Persist { ticket: *ticket, records: twice }]
        }
        other => vec![other.clone()],
    });
    assert!(broken(&report).contains(&"counted_once"));
    assert!(!report.passed() && report.telemetry.double_counted > 0);
}

#[test]
fn totals_that_do_not_hold_what_the_table_claims_are_noticed() {
    let report = with_outputs(|output| match output {
        Output::Persist { ticket, records } => {
            let lying = records.iter().map(|record| match record {
                Record::Commit(unit) => {
                    let mut unit = (**unit).clone();
                    unit.totals.samples += 1;
                    if let Some(stats) = unit.totals.metrics.get_mut("tag") {
                        stats.sum += 1.0;
                    }
                    Record::Commit(Arc::new(unit))
                }
                other => other.clone(),
            });
            vec![Output::Persist { ticket: *ticket, records: lying.collect() }]
        }
        other => vec![other.clone()],
    });
    let broken = broken(&report);
    assert!(broken.contains(&"totals_match_table") && broken.contains(&"totals_are_true"), "{broken:?}");
}

#[test]
fn a_sample_that_vanishes_is_noticed() {
    const VANISHING: u64 = 7;
    let report = with_outputs(|output| {
        let mut output = output.clone();
        match &mut output {
            Output::Persist { records, .. } => {
                records.retain(|record| !matches!(record, Record::Sample(sample) if sample.sequence == VANISHING));
            }
            Output::SendTo { frame: Frame::Router(RouterFrame::Up { packet, .. }), .. } => {
                if let Payload::Samples(offer) = &mut packet.payload {
                    offer.samples.retain(|sample| sample.sequence != VANISHING);
                }
            }
            _ => {}
        }
        vec![output]
    });
    assert!(!report.passed() && report.telemetry.lost > 0, "{:?}", report.telemetry);
}
