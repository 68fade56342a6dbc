//! The report: what is drawn from a run in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::id::NodeName;
use crate::proto::election::Role;
use crate::sim::invariants::Violation;
use crate::sim::node::SimNode;
use crate::sim::partitions::PartitionReport;
use crate::sim::roots::RootReport;
use crate::sim::world::World;

/// What a run amounts to (`tussock.sim/v1`).
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub name: String,
    pub seed: u64,
    pub nodes: usize,
    pub virtual_s: f64,
    pub settled: bool,
    pub wall_s: f64,
    pub peak_rss_bytes: Option<u64>,
    pub trace_hash: String,
    pub faults: Vec<FaultRecord>,
    pub unresolved_faults: Vec<FaultRecord>,
    pub formation: Formation,
    pub topology: Vec<Placed>,
    pub roots: Vec<RootReport>,
    pub failovers: Vec<Failover>,
    pub failover_percentiles: Percentiles,
    pub false_failovers: usize,
    pub mesh_days: f64,
    pub parent_changes: u64,
    pub telemetry: TelemetryReport,
    pub commands: Vec<CommandReport>,
    pub traffic: Traffic,
    pub partitions: Vec<PartitionReport>,
    /// Not measured yet: what an attacker does to the mesh.
    pub security: Option<()>,
    pub invariants: InvariantReport,
}

impl Report {
    /// Whether everything held: no violation, nothing lost, nothing counted twice, all settled.
    pub fn passed(&self) -> bool {
        self.invariants.violations_total == 0
            && self.telemetry.lost == 0
            && self.telemetry.double_counted == 0
            && self.settled
    }
}

/// What several seeds amount to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    pub runs: u64,
    pub violations: u64,
    pub failovers: u64,
    pub false_failovers: u64,
    /// Thousand nodes for a day, over all runs.
    pub mesh_days: f64,
    /// Samples, over all runs.
    pub acknowledged: u64,
    pub counted_at_root: u64,
    pub lost: i64,
    pub double_counted: u64,
    /// The first seed that did not pass.
    pub first: Option<u64>,
}

impl Summary {
    pub fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.violations += report.invariants.violations_total;
        self.failovers += report.failovers.len() as u64;
        self.false_failovers += report.false_failovers as u64;
        self.mesh_days += report.mesh_days;
        self.acknowledged += report.telemetry.acknowledged;
        self.counted_at_root += report.telemetry.counted_at_root;
        self.lost += report.telemetry.lost;
        self.double_counted += report.telemetry.double_counted;
        if !report.passed() && self.first.is_none() {
            self.first = Some(report.seed);
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct FaultRecord {
    pub at_s: f64,
    pub kind: &'static str,
    pub nodes: Vec<NodeName>,
    pub until_s: Option<f64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Formation {
    pub converged_s: Option<f64>,
    pub messages_per_node: Option<f64>,
    pub bytes_per_node: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Placed {
    pub node: NodeName,
    pub level: String,
    pub effective_level: String,
    pub role: Role,
    pub parent: Option<NodeName>,
    pub rank: u8,
}

#[derive(Clone, Debug, Serialize)]
pub struct Failover {
    pub node: NodeName,
    pub from: NodeName,
    pub to: Option<NodeName>,
    /// What the child says of it.
    pub reason: String,
    /// Absent for a false failover.
    pub fault_s: Option<f64>,
    pub detected_s: f64,
    pub attached_s: Option<f64>,
    pub first_ack_s: Option<f64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Percentiles {
    pub detected: Option<Spread>,
    pub attached: Option<Spread>,
    pub first_ack: Option<Spread>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub p50_s: f64,
    pub p99_s: f64,
    pub max_s: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        (!values.is_empty()).then(|| Self { p50_s: at(0.5), p99_s: at(0.99), max_s: at(1.0) })
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct TelemetryReport {
    pub acknowledged: u64,
    pub counted_at_root: u64,
    pub double_counted: u64,
    pub evicted: u64,
    pub pending: u64,
    pub stranded: u64,
    pub lost: i64,
    pub raw_bytes_at_root: u64,
    /// Not measured yet.
    pub in_doubt_max: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct CommandReport {
    pub id: uuid::Uuid,
    pub targets: usize,
    pub acknowledged: usize,
    pub delivered: usize,
    pub delivered_twice: usize,
    pub fenced: u64,
    pub expired: u64,
    pub transmissions: u64,
    pub retransmissions: u64,
    pub last_ack_s: Option<f64>,
    /// When its issuer knew that nobody else will answer, or gave up waiting.
    pub concluded_s: Option<f64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Traffic {
    pub idle_bytes_per_node_s: Option<f64>,
    /// What it is made of.
    pub idle_by_kind: BTreeMap<&'static str, f64>,
    pub beacons_per_node_s: f64,
    pub by_kind: BTreeMap<&'static str, u64>,
    /// What nodes dropped, by why.
    pub dropped: BTreeMap<&'static str, u64>,
    pub per_level_up_bytes: BTreeMap<String, u64>,
    /// What the figures assume.
    pub constants: BTreeMap<&'static str, f64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct InvariantReport {
    pub checks: u64,
    pub violations_total: u64,
    pub violations: Vec<Violation>,
}

impl World {
    pub(super) fn finish(mut self, wall: Duration, seed: u64) -> Report {
        self.check_settled();
        self.note_late_outcomes();
        let pending: u64 = self.nodes.iter().filter(|node| node.is_up()).map(|node| self.uncounted(node)).sum();
        let stranded: u64 = self.nodes.iter().filter(|node| !node.is_up()).map(|node| self.uncounted(node)).sum();
        let settled = self.pending_in_reach() == 0;
        let (topology, roots) = (self.topology(), self.roots());
        let (truth, invariants, mut recorder) = (self.truth, self.invariants, self.recorder);
        let partitions = std::mem::take(&mut recorder.partitions).reports();
        let telemetry = TelemetryReport {
            acknowledged: truth.acknowledged,
            counted_at_root: truth.counted,
            double_counted: truth.double_counted,
            evicted: recorder.evicted,
            pending,
            stranded,
            lost: truth.acknowledged as i64
                - truth.counted as i64
                - recorder.evicted as i64
                - pending as i64
                - stranded as i64,
            raw_bytes_at_root: recorder.raw_bytes_at_root,
            in_doubt_max: None,
        };
        let mut issued: Vec<_> = truth.commands.into_iter().collect();
        issued.sort_by(|(a, x), (b, y)| x.issued_s.total_cmp(&y.issued_s).then(a.cmp(b)));
        let commands = issued.into_iter().map(|(id, truth)| CommandReport {
            id,
            targets: truth.targets,
            acknowledged: truth.acknowledged,
            delivered: truth.delivered.len(),
            delivered_twice: truth.delivered.values().filter(|times| **times > 1).count(),
            fenced: truth.fenced,
            // Whoever was a target and neither got it nor fenced it off was reached by nothing within its lifetime.
            expired: (truth.targets as u64).saturating_sub(truth.delivered.len() as u64 + truth.fenced),
            transmissions: truth.transmissions,
            retransmissions: truth.retransmissions,
            last_ack_s: truth.last_ack_s,
            concluded_s: truth.concluded_s,
        });
        let since_fault = |pick: fn(&Failover) -> Option<f64>| {
            let of = |f: &Failover| Some(pick(f)? - f.fault_s?);
            Spread::of(recorder.failovers.iter().filter_map(of).collect())
        };
        let virtual_s = self.now.as_secs_f64();
        let nodes = self.nodes.len();
        let levels = &self.nodes[0].config.topology.levels;
        Report {
            name: self.scenario.name,
            seed,
            nodes,
            virtual_s,
            settled,
            wall_s: wall.as_secs_f64(),
            peak_rss_bytes: peak_rss_bytes(),
            trace_hash: recorder.hasher.finalize().to_hex().to_string(),
            formation: recorder.formation.clone(),
            topology,
            roots,
            failover_percentiles: Percentiles {
                detected: since_fault(|f| Some(f.detected_s)),
                attached: since_fault(|f| f.attached_s),
                first_ack: since_fault(|f| f.first_ack_s),
            },
            false_failovers: recorder.failovers.iter().filter(|f| f.fault_s.is_none()).count(),
            mesh_days: virtual_s / 86_400.0 * nodes as f64 / 1000.0,
            parent_changes: recorder.parent_changes,
            telemetry,
            commands: commands.collect(),
            traffic: recorder.traffic(nodes, virtual_s, levels),
            partitions,
            security: None,
            invariants: InvariantReport {
                checks: invariants.checks,
                violations_total: invariants.violations_total,
                violations: invariants.violations,
            },
            faults: recorder.faults,
            unresolved_faults: recorder.unresolved,
            failovers: recorder.failovers,
        }
    }

    fn topology(&self) -> Vec<Placed> {
        let placed = |node: &SimNode| {
            let (view, levels) = (node.view()?, &node.config.topology.levels);
            let parent = view.parent_id().and_then(|id| node.index_of(id)).map(|i| self.nodes[i].name.clone());
            Some(Placed {
                node: node.name.clone(),
                level: levels.label(view.level),
                effective_level: levels.label(view.effective_level),
                role: view.role,
                parent,
                rank: view.rank(),
            })
        };
        self.nodes.iter().filter_map(placed).collect()
    }
}

/// The most memory this process ever had resident, where the system tells.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
