//! What each fault does to a small mesh, and whom it is blamed on.

use tussock::sim::Report;

use crate::support::from_text;

/// Runs thirty nodes with these faults; whatever they are, everything is counted in the end.
fn with(faults: &str) -> Report {
    let mesh = r#"
        name = "faults"
        seed = 1
        duration = "90s"
        settle = "20s"
        [mesh]
        company = 1
        platoon = 2
        squad = 4
        platform = 23
        settings = { "topology.max_distance" = 50000.0 }
        [links]
        latency = "5ms"
        [telemetry]
        interval = "1s"
    "#;
    let report = from_text(&format!("{mesh}{faults}")).unwrap().run();
    let telemetry = &report.telemetry;
    assert!(report.passed(), "{:?} {telemetry:?} settled {}", report.invariants, report.settled);
    assert_eq!(telemetry.counted_at_root, telemetry.acknowledged);
    report
}

#[test]
fn who_stood_still_accuses_nobody() {
    for span in ["1s", "3s", "5s"] {
        let everyone = format!("[[fault]]\nat = '40s'\nkind = 'pause'\ntarget = 'everyone'\nfor = '{span}'");
        let report = with(&everyone);
        assert!(report.failovers.is_empty(), "{span}: {:?}", report.failovers);
    }
    // One alone is given up by its parent; what it says of that parent is not its own accusation.
    let report = with("[[fault]]\nat = '40s'\nkind = 'pause'\ntarget = 'platform:0'\nfor = '5s'");
    let reasons: Vec<_> = report.failovers.iter().map(|f| (f.node.as_str(), f.reason.as_str())).collect();
    assert_eq!(reasons, [("platform-0", "the peer does not hear this node")]);
}

#[test]
fn a_link_that_is_dead_in_one_direction_is_given_up_at_once_and_blamed_on_that_direction() {
    for (from, to, reason) in [
        ("squad:0", "level:platform", "heartbeats stopped"),
        ("level:platform", "squad:0", "the peer does not hear this node"),
    ] {
        let fault = format!("[[fault]]\nat = '40s'\nkind = 'one_way'\nfrom = '{from}'\nto = '{to}'\nfor = '20s'");
        let report = with(&fault);
        assert_eq!(report.failovers.len(), 6, "{:?}", report.failovers);
        for failover in &report.failovers {
            assert_eq!((failover.from.as_str(), failover.reason.as_str()), ("squad-0", reason));
            // Busy links beat ten times a second; what more there is, is the least that processes stall for.
            assert!(failover.detected_s < 40.5, "{failover:?}");
        }
    }
}

#[test]
fn samples_go_to_the_backup_with_the_request_to_take_over() {
    let far = "[[link]]\nfrom = '*'\nto = '*'\nlatency = '200ms'\n";
    let report = with(&format!("{far}[[fault]]\nat = '40s'\nkind = 'crash'\ntarget = 'squad:0'\nfor = '20s'"));
    let mut waits: Vec<_> = report.failovers.iter().filter_map(|f| Some(f.first_ack_s? - f.attached_s?)).collect();
    waits.sort_by(f64::total_cmp);
    // Receipts are gathered for 20 ms; with a round trip more it would be 420.
    assert!(waits[waits.len() / 2] < 0.1, "{waits:?}");
}

#[test]
fn a_parent_that_nobody_can_replace_is_dialled_again_at_once() {
    let mesh =
        "name = 'alone'\nseed = 1\nduration = '60s'\n[mesh]\nsquad = 1\nplatform = 6\n[links]\nlatency = '5ms'\n";
    // A second crash within half a minute starts cold: the links of the squad end.
    let crash =
        |at| format!("[[fault]]\nat = '{at}s'\nkind = 'actor_crash'\ntarget = 'squad:0'\nactor = 'transport'\n");
    let report = from_text(&format!("{mesh}{}{}", crash(20), crash(25))).unwrap().run();
    assert!(report.passed(), "{:?}", report.invariants);
    assert!(!report.failovers.is_empty());
    for failover in &report.failovers {
        assert!(failover.attached_s.unwrap() - failover.detected_s < 0.2, "{failover:?}");
    }
}

#[test]
fn a_squad_that_is_back_relieves_those_that_took_its_children() {
    let mesh = "
        name = 'crowded'
        seed = 1
        duration = '8m'
        [mesh]
        company = 1
        platoon = 2
        squad = 8
        platform = 80
        settings = { 'topology.max_children' = 16 }
        [links]
        latency = '5ms'
        [[fault]]
        at = '40s'
        kind = 'crash'
        target = 'squad:0'
        for = '20s'";
    let report = from_text(mesh).unwrap().run();
    let mut platforms = std::collections::BTreeMap::new();
    for node in report.topology.iter().filter(|node| node.level.as_str() == "platform") {
        *platforms.entry(node.parent.clone()).or_insert(0) += 1;
    }
    // A fifth of sixteen slots, and less than one more.
    let (least, most) = (platforms.values().min().unwrap(), platforms.values().max().unwrap());
    assert!(platforms.len() == 8 && most - least < 4, "{platforms:?}");
}

#[test]
fn what_ends_at_an_instant_ends_before_anything_begins() {
    let report = with(
        "[[fault]]\nat = '20s'\nkind = 'crash'\ntarget = 'squad:0'\nfor = '10s'
         [[fault]]\nat = '30s'\nkind = 'actor_crash'\ntarget = 'random:100%'\nactor = 'router'",
    );
    assert_eq!(report.faults[1].nodes.len(), 30);
}

#[test]
fn of_two_faults_of_a_link_the_later_one_says_what_it_is_like() {
    let link = |loss| {
        format!(
            "[[fault]]\nat = '40s'\nkind = 'link'\nfrom = '*'\nto = '*'\nproperties = {{ loss = {loss} }}\nfor = '20s'\n"
        )
    };
    let dead_then_fine = with(&(link("1.0") + &link("0.0")));
    assert!(dead_then_fine.failovers.is_empty(), "{:?}", dead_then_fine.failovers);
    let fine_then_dead = with(&(link("0.0") + &link("1.0")));
    assert!(!fine_then_dead.failovers.is_empty());
}

#[test]
fn over_a_link_that_loses_everything_nothing_comes() {
    let dead = "[[link]]\nfrom = 'level:platform'\nto = 'squad:0'\nloss = 1.0";
    let report = with(dead);
    let below = report.topology.iter().filter(|node| node.parent.as_ref().is_some_and(|up| up.as_str() == "squad-0"));
    assert_eq!(below.count(), 0);
}

#[test]
fn an_obstacle_names_whom_it_separates_and_whether_anybody_is_there() {
    let report = with(
        "[[fault]]\nat = '40s'\nkind = 'partition'\nbetween = [['under:platoon:0'], ['company:0']]\nfor = '5s'
         [[fault]]\nat = '60s'\nkind = 'one_way'\nfrom = 'parent-of:company-0'\nto = 'everyone'\nfor = '5s'",
    );
    assert!(report.faults[0].nodes.iter().any(|name| name.as_str() == "company-0"));
    assert!(report.faults[0].nodes.len() > 10, "{:?}", report.faults);
    assert_eq!((report.faults.len(), report.unresolved_faults[0].kind), (1, "one_way"));
}

#[test]
fn a_part_whose_processes_start_again_knows_still_that_it_is_cut_off() {
    let report = with(
        "[[fault]]\nat = '20s'\nkind = 'partition'\nbetween = [['under:platoon:0'], ['company:0', 'under:platoon:1']]\nfor = '60s'
         [[fault]]\nat = '30s'\nkind = 'restart'\ntarget = 'under:platoon:0'",
    );
    let part = &report.partitions[0];
    // Nobody had noticed before the restart: the time-out is thirty seconds.
    assert!(part.detected_s.unwrap() > 40.0 && part.healed_s.is_some(), "{part:?}");
    assert_eq!(part.roots_after, Some(1));
}
