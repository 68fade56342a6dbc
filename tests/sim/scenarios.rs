//! Scenarios under `scenarios/`, and what a scenario file may not say.

use std::collections::BTreeMap;

use tussock::sim::{Placed, Report};

use crate::support::{from_text, held, held_by, scaled};

#[test]
fn a_hundred_nodes_form_the_tree_they_should() {
    for seed in seeds() {
        let report = held("formation.toml", seed);
        let mut children: BTreeMap<_, usize> = BTreeMap::new();
        for node in &report.topology {
            if let Some(parent) = &node.parent {
                *children.entry(parent.as_str().to_owned()).or_default() += 1;
            }
        }
        assert_eq!(children["company-0"], 2, "seed {seed}");
        assert_eq!([children["platoon-0"], children["platoon-1"]], [4, 4], "seed {seed}");
        for squad in 0..8 {
            let count = children[&format!("squad-{squad}")];
            assert!((10..=12).contains(&count), "seed {seed}: squad-{squad} has {count}");
        }
        assert!(report.formation.converged_s.unwrap() <= 2.0, "seed {seed}: {:?}", report.formation);
        let telemetry = &report.telemetry;
        assert_eq!(telemetry.raw_bytes_at_root, 0);
        assert_eq!(telemetry.counted_at_root, telemetry.acknowledged);
        assert!(telemetry.acknowledged > 5_000);
        // A broadcast takes one transmission per edge of the tree.
        let command = &report.commands[0];
        assert_eq!((command.transmissions, command.retransmissions, command.acknowledged), (99, 0, 100));
    }
}

#[test]
fn over_long_links_many_ask_two_parents_and_all_are_known_to_those_above() {
    for latency in ["50ms", "200ms"] {
        let mesh =
            "name = 'far'\nseed = 1\nduration = '60s'\n[mesh]\ncompany = 1\nplatoon = 2\nsquad = 8\nplatform = 89\n";
        let plan = "[telemetry]\ninterval = '1s'\n[[command]]\nat = '40s'\nfrom = 'company:0'\ntarget = 'everyone'\n";
        let report = from_text(&format!("{mesh}[links]\nlatency = '{latency}'\n{plan}")).unwrap().run();
        assert!(report.passed(), "{latency}: {:?}", report.invariants);
        assert_eq!(report.commands[0].acknowledged, 100, "{latency}");
    }
}

/// Every former root of the four is owed samples by everybody, and their links are slow.
#[test]
fn over_slow_links_what_waits_for_former_roots_does_not_drown_the_heartbeats() {
    let mesh = "duration = '60s'\n[mesh]\ncompany = 4\nplatoon = 4\nsquad = 12\nplatform = 130\n";
    let links = "[links]\nlatency = '200ms'\njitter = '100ms'\nloss = 0.25\nbandwidth = '96kbps'\n";
    for seed in [3, 5, 7, 10] {
        let plan = format!("name = 'slow'\nseed = {seed}\n{mesh}{links}[telemetry]\ninterval = '1s'\n");
        let report = from_text(&plan).unwrap().run();
        assert!(report.passed(), "seed {seed}: {:?}", report.invariants);
    }
}

#[test]
fn parents_die_and_nothing_acknowledged_is_lost() {
    for seed in seeds() {
        let report = held("failover.toml", seed);
        assert!(report.failovers.len() >= 4, "seed {seed}: a platoon's and a squad's children lose their parents");
        assert!(report.faults.iter().any(|fault| fault.nodes.iter().any(|name| name.as_str() == "platoon-1")));
        assert_eq!(report.false_failovers, 0, "seed {seed}: {:?}", report.failovers);
        assert!(report.failovers.iter().all(|f| f.attached_s.is_some()), "seed {seed}: {:?}", report.failovers);
    }
}

#[test]
fn links_that_lose_every_fourth_datagram_carry_all_telemetry() {
    for seed in seeds() {
        let report = held("hard.toml", seed);
        assert_eq!(report.telemetry.counted_at_root, report.telemetry.acknowledged, "seed {seed}");
        assert_eq!(report.failovers.len(), 0, "seed {seed}: {:?}", report.failovers);
    }
}

#[test]
fn crashes_of_actors_change_nothing() {
    for seed in seeds() {
        let report = held("actor-crash.toml", seed);
        assert_eq!(report.failovers.len(), 0, "seed {seed}: {:?}", report.failovers);
    }
}

#[test]
fn full_disks_refuse_and_lose_nothing() {
    for seed in seeds() {
        let report = held("disk-full.toml", seed);
        let (published, telemetry) = (40 * 120, &report.telemetry);
        assert!(telemetry.acknowledged < published, "seed {seed}: some are refused");
        assert_eq!(telemetry.counted_at_root, telemetry.acknowledged, "seed {seed}");
    }
}

#[test]
fn faults_of_every_kind_are_survived() {
    for seed in seeds() {
        let report = held("faults.toml", seed);
        assert_eq!(report.faults.len(), 10, "seed {seed}: {:?}", report.unresolved_faults);
        assert!(!report.failovers.is_empty());
    }
}

/// The fixed seed of the scenarios, and twenty more.
fn seeds() -> impl Iterator<Item = u64> {
    std::iter::once(42).chain(1..=20)
}

fn roots(report: &Report) -> Vec<&Placed> {
    report.topology.iter().filter(|node| node.parent.is_none()).collect()
}

fn acting(report: &Report) -> usize {
    report.topology.iter().filter(|node| node.level != node.effective_level).count()
}

#[test]
fn equal_platforms_find_one_root_and_another_when_all_leaders_die() {
    for seed in seeds() {
        let report = held("equal-platforms.toml", seed);
        assert_eq!(roots(&report).len(), 1, "seed {seed}");
        assert!(report.formation.converged_s.is_some() && !report.failovers.is_empty(), "seed {seed}");
        assert_eq!(report.commands[0].acknowledged, 40, "seed {seed}");
    }
}

#[test]
fn a_squad_acts_as_platoon_and_steps_down_for_a_real_one() {
    for seed in seeds() {
        let report = held("no-platoon.toml", seed);
        let roots = roots(&report);
        assert_eq!((roots.len(), roots[0].node.as_str()), (1, "platoon-0"), "seed {seed}");
        assert_eq!(acting(&report), 0, "seed {seed}: nobody acts when all real parents are there");
    }
}

#[test]
fn the_configured_leader_leads_and_when_it_dies_the_next() {
    for seed in seeds() {
        let report = held("static.toml", seed);
        // Who had risen was the chief: the others were its children.
        let mut children: Vec<_> = report.commands.iter().map(|command| command.delivered).collect();
        children.sort_unstable();
        assert_eq!(children, [11, 11], "seed {seed}");
        let roots = roots(&report);
        assert_eq!((roots.len(), roots[0].node.as_str()), (1, "deputy"), "seed {seed}");
    }
}

#[test]
fn rules_decide_who_may_rise_and_how_far() {
    for seed in seeds() {
        let report = held("hybrid.toml", seed);
        let acting: Vec<_> = report.topology.iter().filter(|node| node.effective_level != node.level).collect();
        assert_eq!((acting.len(), acting[0].effective_level.as_str()), (1, "squad"), "seed {seed}");
        let led = report.topology.iter().filter(|node| node.parent.as_ref() == Some(&acting[0].node)).count();
        assert_eq!((led, roots(&report).len()), (7, 3), "seed {seed}: the pair far away has no leader above itself");
    }
}

/// Two groups 157 km apart, which hear each other and cannot be each other's parents.
fn far_apart(strategy: &str) -> String {
    let far = |n: u8| format!("[[node]]\nname = \"far-{n}\"\nlevel = \"platform\"\nposition = [1.0, 1.00{n}]\n");
    let mesh = "name = \"far\"\nseed = 1\nduration = \"240s\"\n[mesh]\nplatform = 4\narea_km = 1.0\n";
    format!("{mesh}{strategy}\n[links]\nlatency = \"10ms\"\n{}{}{}", far(0), far(1), far(2))
}

#[test]
fn nobody_rises_above_or_steps_down_for_who_is_out_of_reach() {
    let hybrid = r#"strategy = "hybrid"
        settings = { "topology.hybrid.promote" = ["platform"], "topology.hybrid.demote" = ["platform"] }"#;
    for strategy in ["", hybrid] {
        let report = from_text(&far_apart(strategy)).unwrap().run();
        assert_eq!((report.parent_changes, report.failovers.len()), (0, 0), "{strategy}: {:?}", report.failovers);
        let led = report.topology.iter().filter(|node| node.parent.is_some()).count();
        assert_eq!((roots(&report).len(), led), (2, 5), "{strategy}: {:?}", report.topology);
    }
}

#[test]
fn a_mesh_that_loses_both_its_companies_goes_on() {
    let mesh = "name = \"both\"\nseed = 1\nduration = \"100s\"\nsettle = \"1s\"\n[mesh]\ncompany = 2\nplatoon = 2\n\
                squad = 2\nplatform = 8\narea_km = 2.0\n[links]\nlatency = \"10ms\"\n";
    let crash = |n: u8, at: u8| format!("[[fault]]\nat = \"{at}s\"\nkind = \"crash\"\ntarget = \"company-{n}\"\n");
    let report = from_text(&format!("{mesh}{}{}", crash(1, 30), crash(0, 60))).unwrap().run();
    assert_eq!((roots(&report).len(), report.telemetry.lost), (1, 0));
}

#[test]
fn a_company_knows_a_squad_of_a_hundred_by_its_summaries() {
    for seed in seeds() {
        let report = held("aggregation.toml", seed);
        let [root] = &report.roots[..] else { panic!("seed {seed}: {:?}", report.roots) };
        assert_eq!((root.members, root.conditions), (102, [100, 0, 0, 2]), "seed {seed}: the failed stay visible");
        // Its members are on both sides of the antimeridian, within two kilometres, and one failed 200 m beyond it.
        let centroid = root.centroid.unwrap();
        assert!(180.0 - centroid.lon().abs() < 0.02 && root.radius_m < 3_000.0, "seed {seed}: {root:?}");
        assert_eq!((report.telemetry.raw_bytes_at_root, root.samples), (0, report.telemetry.acknowledged));
        // The values are uniform from 0 to 100.
        for (name, metric) in root.metrics.iter().filter(|(name, _)| name.starts_with("metric")) {
            let (median, high) = (metric.p50.unwrap(), metric.p99.unwrap());
            assert_eq!(metric.count, root.samples);
            assert!((metric.mean - 50.0).abs() < 2.0 && (metric.spread - 28.87).abs() < 1.0, "{name}: {metric:?}");
            assert!((median - 50.0).abs() < 3.0 && (high - 99.0).abs() < 3.0, "{name}: {metric:?}");
        }
        let up = &report.traffic.per_level_up_bytes;
        assert!(up["squad"] * 50 <= up["platform"], "seed {seed}: less than 98 % saved: {up:?}");
    }
}

#[test]
fn a_platform_acts_as_squad_while_nobody_has_room() {
    for seed in seeds() {
        let report = held("acting-squad.toml", seed);
        assert!(report.failovers.iter().any(|f| f.to.as_ref().is_some_and(|to| to.as_str().starts_with("platform"))));
        assert_eq!((roots(&report).len(), acting(&report)), (1, 0), "seed {seed}");
    }
}

#[test]
fn a_part_that_is_cut_off_leads_itself_and_is_one_with_the_others_again() {
    for seed in seeds() {
        let report = held("partition.toml", seed);
        let [far, near] = &report.partitions[..] else { panic!("two parts") };
        assert_eq!((near.detected_s, near.healed_s), (None, None), "seed {seed}: a top-level root is never cut off");
        // Heartbeats, the search for another parent, the time-out of ten seconds, and the word to everybody below.
        let autonomous = far.autonomous_s.unwrap();
        assert!((13.0..=18.0).contains(&autonomous), "seed {seed}: {autonomous}");
        assert!(far.detected_s.unwrap() >= 13.0, "seed {seed}");
        assert_eq!(far.roots_after, Some(1), "seed {seed}");
        // Its root adds up what waits; nobody else does.
        assert!(far.provisional_samples > 0 && near.provisional_samples == 0, "seed {seed}: {far:?}");
        // The roots look for each other at least every five seconds; once they have met, all goes fast.
        let met = far.contact_s.unwrap() - 90.0;
        assert!(met <= 10.0 && far.healed_s.unwrap() - met <= 5.0, "seed {seed}: {far:?}");
        assert!(far.one_root_s.unwrap() - met <= 2.0, "seed {seed}: {far:?}");
        assert!(far.flushed_s.unwrap() - met <= 10.0, "seed {seed}: {far:?}");
        assert_eq!((roots(&report).len(), acting(&report)), (1, 0), "seed {seed}");
        // The near side's command reaches all in the end; the far side's is fenced by whoever had not got it.
        let mut commands = report.commands.clone();
        commands.sort_by_key(|command| command.fenced);
        let [ours, theirs] = &commands[..] else { panic!("two commands") };
        assert_eq!((ours.acknowledged, ours.fenced), (49, 0), "seed {seed}");
        assert_eq!((theirs.delivered, theirs.fenced as usize), (far.nodes.len(), near.nodes.len()), "seed {seed}");
        assert_eq!(theirs.acknowledged, far.nodes.len(), "seed {seed}");
    }
}

#[test]
fn eight_parts_are_one_again() {
    for seed in seeds() {
        let report = held("eight-parts.toml", seed);
        assert_eq!((roots(&report).len(), acting(&report)), (1, 0), "seed {seed}");
        // The company's root never lost its term: its command reaches everybody who is there in the end.
        let ours = &report.commands[0];
        assert_eq!((ours.delivered, ours.fenced), (report.topology.len(), 0), "seed {seed}: {ours:?}");
    }
}

#[test]
fn two_days_apart_everything_is_counted_in_the_end() {
    let report = held("days.toml", 42);
    assert_eq!((roots(&report).len(), acting(&report)), (1, 0));
    assert!(report.telemetry.acknowledged > 20_000);
    let [theirs, ours] = &report.commands[..] else { panic!("two commands") };
    let (far, all) = (report.partitions[0].nodes.len(), report.topology.len());
    assert_eq!((theirs.acknowledged, theirs.fenced as usize), (far, all - far));
    assert_eq!((ours.acknowledged, ours.fenced), (all, 0));
    // What was said while the parts met again is no more than what they did not know of each other.
    let part = &report.partitions[0];
    assert_eq!(
        part.roots_after,
        Some(1),
        "everybody was restarted meanwhile, and still knew what they were cut off from"
    );
    assert!(part.bytes_to_heal as f64 <= 1.5 * part.true_difference_bytes as f64 + 4096.0, "{part:?}");
}

#[test]
fn a_command_reaches_its_targets_and_nobody_else() {
    for seed in seeds() {
        let report = held("commands.toml", seed);
        assert_eq!(report.commands.len(), 8, "seed {seed}");
        for command in &report.commands {
            let reached = (command.delivered, command.acknowledged, command.fenced);
            assert_eq!(reached, (command.targets, command.targets, 0), "seed {seed}: {command:?}");
            // Its issuer knows when everyone has answered, and does not wait for the deadline.
            let concluded = command.concluded_s.unwrap();
            assert!(Some(concluded) <= command.last_ack_s.map(|at| at + 0.5), "seed {seed}: {command:?}");
        }
        // To the six squads only the edges towards them are crossed: two platoons, the company, and they.
        let squads = report.commands.iter().find(|command| command.targets == 6).unwrap();
        assert_eq!(squads.transmissions, 8, "seed {seed}");
    }
}

#[test]
fn two_companies_have_one_root_and_lose_nothing_of_either() {
    for seed in seeds() {
        let report = held("two-companies.toml", seed);
        let roots = roots(&report);
        assert_eq!((roots.len(), roots[0].effective_level.as_str()), (1, "above_company"), "seed {seed}");
        assert_eq!(report.telemetry.counted_at_root, report.telemetry.acknowledged, "seed {seed}");
        assert_eq!(report.commands[0].acknowledged, 54, "seed {seed}");
    }
}

#[test]
fn more_companies_than_one_has_slots_for_have_one_root() {
    for seed in seeds() {
        let report = held("many-companies.toml", seed);
        let roots = roots(&report);
        assert_eq!((roots.len(), roots[0].effective_level.as_str()), (1, "far_above_company"), "seed {seed}");
        assert_eq!(report.telemetry.counted_at_root, report.telemetry.acknowledged, "seed {seed}");
        assert_eq!(report.commands[0].acknowledged, 36, "seed {seed}");
    }
}

#[test]
fn a_thousand_nodes_form_summarise_and_obey() {
    let report = held("thousand.toml", 42);
    assert_eq!((report.nodes, roots(&report).len()), (1_000, 1));
    assert!(report.formation.converged_s.unwrap() <= 6.0, "{:?}", report.formation);
    assert!(report.telemetry.acknowledged > 50_000);
    assert_eq!(report.telemetry.counted_at_root, report.telemetry.acknowledged);
    assert_eq!(report.telemetry.raw_bytes_at_root, 0);
    let everyone = report.commands.iter().find(|command| command.targets == 1_000).unwrap();
    assert_eq!((everyone.acknowledged, everyone.transmissions), (1_000, 999));
}

#[test]
fn a_hundred_and_fifty_do_so_with_every_seed() {
    for seed in 1..=20 {
        let report = held_by(scaled("thousand.toml", 150, seed), "thousand.toml", seed);
        assert_eq!(roots(&report).len(), 1, "seed {seed}");
        assert_eq!(report.telemetry.counted_at_root, report.telemetry.acknowledged, "seed {seed}");
        assert!(report.commands.iter().all(|command| command.acknowledged == command.targets), "seed {seed}");
    }
}

#[test]
fn what_it_costs_to_be_a_mesh_does_not_grow_with_it() {
    let many = scaled("idle.toml", 400, 42).run().traffic.idle_bytes_per_node_s.unwrap();
    for seed in seeds() {
        let few = held("idle.toml", seed).traffic.idle_bytes_per_node_s.unwrap();
        assert!(
            few <= 500.0 && many <= 500.0,
            "{few} bytes per node and second at 100 nodes, {many} at 400, seed {seed}"
        );
        assert!(many <= 1.15 * few, "{few} bytes per node and second at 100 nodes, {many} at 400, seed {seed}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let hash = |seed| held("failover.toml", seed).trace_hash;
    assert_eq!(hash(5), hash(5));
    assert_ne!(hash(5), hash(6));
}

const MESH: &str = "name = \"t\"\nduration = \"10s\"\n[mesh]\ncompany = 1\nsquad = 2\nplatform = 3\n";

fn refused(addition: &str) -> String {
    from_text(&format!("{MESH}{addition}")).err().unwrap_or_else(|| panic!("accepted: {addition}"))
}

#[test]
fn what_a_scenario_may_not_say_is_refused_with_its_place() {
    let cases = [
        ("[[fault]]\nat = \"1s\"\nkind = \"forge\"\ntarget = \"everyone\"\n", ":9:8: ", "unknown variant `forge`"),
        ("[[fault]]\nat = \"1s\"\nkind = \"crash\"\ntarget = \"squad:7\"\n", ":10:10: ", "there is no node `squad-7`"),
        ("[[fault]]\nat = \"1s\"\nkind = \"crash\"\n", ":", "needs a target"),
        ("[[fault]]\nat = \"1s\"\nkind = \"crash\"\ntarget = \"squad:0\"\nfro = \"2s\"\n", ":11:1: ", "did you mean"),
        ("bootstrap = \"many\"\n", ":7:13: ", "bootstrap is out of range"),
        ("[links]\nloss = 1.5\n", ":", "a probability is between 0 and 1"),
        ("[links]\nbandwidth = \"fast\"\n", ":8:13: ", "is not a bandwidth"),
        ("[[command]]\nat = \"1s\"\nfrom = \"company:0\"\ntarget = \"nobody\"\n", ":10:10: ", "no target of a command"),
    ];
    for (addition, place, message) in cases {
        let text = refused(addition);
        assert!(text.contains(place) && text.contains(message), "{addition}\n→ {text}");
    }
    let text = from_text("name = \"t\"\nduration = \"10s\"\n[mesh]\nsqad = 2\n").err().unwrap();
    assert!(text.contains(":4:8: ") && text.contains("did you mean `squad`?"), "{text}");
}
