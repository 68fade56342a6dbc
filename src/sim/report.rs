//! The report: what is recorded on the way, and what is drawn from it in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use crate::config::Strategy;
use crate::id::{NodeId, NodeName};
use crate::level::Levels;
use crate::limits::Limits;
use crate::proto::account::AccountId;
use crate::proto::aggregate::Source;
use crate::proto::election::Role;
use crate::proto::event::Event;
use crate::proto::frame::Frame;
use crate::proto::packet::{Payload, RouterFrame};
use crate::proto::topology::{Cause, Parting, Standing};
use crate::sim::faults::ActiveFaults;
use crate::sim::invariants::{Violation, link_up};
use crate::sim::network::Network;
use crate::sim::partitions::{PartitionReport, Partitions};
use crate::sim::world::{SimNode, World};
use crate::time::Time;

/// How long a formation must stand to count as converged.
const STANDS: Duration = Duration::from_secs(5);

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
    /// The first seed that did not pass.
    pub first: Option<u64>,
}

impl Summary {
    pub fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.violations += report.invariants.violations_total;
        self.failovers += report.failovers.len() as u64;
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

/// What is recorded while a run goes on.
#[derive(Debug)]
pub struct Recorder {
    hasher: blake3::Hasher,
    pub active: ActiveFaults,
    pub partitions: Partitions,
    pub settled_since: Option<Time>,
    pub beacons: u64,
    pub evicted: u64,
    pub next_command: Option<(f64, usize)>,
    faults: Vec<FaultRecord>,
    unresolved: Vec<FaultRecord>,
    /// Which root each live node claims.
    claims: Vec<Option<NodeId>>,
    claimants: BTreeMap<NodeId, usize>,
    live: usize,
    agreed: Option<(Time, u64, u64)>,
    formation: Formation,
    failovers: Vec<Failover>,
    open: BTreeMap<usize, usize>,
    parent_changes: u64,
    attached_at: Vec<Time>,
    messages: u64,
    by_kind: BTreeMap<&'static str, u64>,
    up_bytes: BTreeMap<u8, u64>,
    raw_bytes_at_root: u64,
    drops: BTreeMap<&'static str, u64>,
    /// Bytes sent up to each second, by kind.
    timeline: Vec<BTreeMap<&'static str, u64>>,
    first_activity: Option<Time>,
}

impl Recorder {
    pub fn new(nodes: usize) -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            active: BTreeMap::new(),
            partitions: Partitions::default(),
            settled_since: None,
            beacons: 0,
            evicted: 0,
            next_command: None,
            faults: Vec::new(),
            unresolved: Vec::new(),
            claims: vec![None; nodes],
            claimants: BTreeMap::new(),
            live: 0,
            agreed: None,
            formation: Formation::default(),
            failovers: Vec::new(),
            open: BTreeMap::new(),
            parent_changes: 0,
            attached_at: vec![Time::ZERO; nodes],
            messages: 0,
            by_kind: BTreeMap::new(),
            up_bytes: BTreeMap::new(),
            raw_bytes_at_root: 0,
            drops: BTreeMap::new(),
            timeline: Vec::new(),
            first_activity: None,
        }
    }

    pub fn hash(&mut self, now: Time, node: &NodeName, event: &str) {
        self.hasher.update(&now.as_micros().to_le_bytes());
        self.hasher.update(node.as_str().as_bytes());
        self.hasher.update(event.as_bytes());
    }

    pub fn hash_fault(&mut self, now: Time, index: usize, kind: &str) {
        self.hasher.update(&now.as_micros().to_le_bytes());
        self.hasher.update(&index.to_le_bytes());
        self.hasher.update(kind.as_bytes());
        self.first_activity.get_or_insert(now);
    }

    pub fn dropped(&mut self, why: &'static str) {
        *self.drops.entry(why).or_default() += 1;
    }

    pub fn wire(&mut self, kind: &'static str, bytes: usize) {
        self.messages += 1;
        *self.by_kind.entry(kind).or_default() += bytes as u64;
    }

    pub fn second(&mut self, now: Time) {
        self.timeline.push(self.by_kind.clone());
        self.note_convergence(now);
    }

    pub fn sent(&mut self, nodes: &[SimNode], from: usize, frame: &Frame, bytes: usize) {
        if let Frame::Router(RouterFrame::Up { .. }) = frame {
            *self.up_bytes.entry(nodes[from].level.0).or_default() += bytes as u64;
        }
    }

    pub fn received(&mut self, now: Time, nodes: &[SimNode], at: usize, from: usize, frame: &RouterFrame) {
        match frame {
            RouterFrame::Up { packet, .. } => {
                self.first_activity.get_or_insert(now);
                if let Payload::Samples(offer) = &packet.payload {
                    let is_root = nodes[at].view().is_some_and(|view| view.standing != Standing::Attached);
                    if is_root && offer.origin != nodes[from].id {
                        self.raw_bytes_at_root += offer.samples.iter().map(|sample| sample.bytes() as u64).sum::<u64>();
                    }
                }
            }
            RouterFrame::Along(_) => drop(self.first_activity.get_or_insert(now)),
            RouterFrame::Receipt { .. } => {
                if let Some(&open) = self.open.get(&at) {
                    let failover = &mut self.failovers[open];
                    if failover.to.as_ref() == Some(&nodes[from].name) {
                        failover.first_ack_s = Some(now.as_secs_f64());
                        self.open.remove(&at);
                    }
                }
            }
            _ => {}
        }
    }

    pub fn fault(
        &mut self,
        now: Time,
        kind: &'static str,
        targets: &[usize],
        nodes: &[SimNode],
        until: Option<Time>,
        unresolved: bool,
    ) {
        let names = targets.iter().map(|&i| nodes[i].name.clone()).collect();
        let until_s = until.map(Time::as_secs_f64);
        let record = FaultRecord { at_s: now.as_secs_f64(), kind, nodes: names, until_s };
        let list = if unresolved { &mut self.unresolved } else { &mut self.faults };
        list.push(record);
    }

    /// Keeps count of which root each live node claims.
    pub fn view_changed(&mut self, now: Time, nodes: &[SimNode], at: usize) {
        self.note_convergence(now);
        let claim = nodes[at].view().map(|view| view.root());
        let before = std::mem::replace(&mut self.claims[at], claim);
        if before == claim {
            return;
        }
        if let Some(root) = before {
            self.live -= 1;
            let left = self.claimants.entry(root).or_default();
            *left -= 1;
            if *left == 0 {
                self.claimants.remove(&root);
            }
        }
        if let Some(root) = claim {
            self.live += 1;
            *self.claimants.entry(root).or_default() += 1;
        }
        let agree = self.claimants.len() == 1 && self.live == nodes.iter().filter(|node| node.is_up()).count();
        self.agreed = agree.then_some((now, self.messages, self.by_kind.values().sum()));
    }

    fn note_convergence(&mut self, now: Time) {
        let Some((since, messages, bytes)) = self.agreed else { return };
        if self.formation.converged_s.is_none() && now.since(since) >= STANDS && self.live > 0 {
            let per_node = |count: u64| Some(count as f64 / self.live as f64);
            self.formation = Formation {
                converged_s: Some(since.as_secs_f64()),
                messages_per_node: per_node(messages),
                bytes_per_node: per_node(bytes),
            };
        }
    }

    pub fn event(&mut self, now: Time, nodes: &[SimNode], network: &Network, at: usize, event: &Event) {
        self.partitions.event(now, at, event, nodes);
        let name_of = |id: NodeId| nodes[at].index_of(id).map(|i| nodes[i].name.clone());
        match event {
            Event::PeerLost { parent, reason } => {
                let Some(from) = nodes[at].index_of(*parent) else { return };
                let fault = self.fault_behind(nodes, network, at, from);
                let told = [Parting::Moved, Parting::Preempted].iter().any(|parting| parting.label() == reason);
                if fault.is_none() && told {
                    self.parent_changes += 1;
                    return;
                }
                self.open.insert(at, self.failovers.len());
                self.failovers.push(Failover {
                    node: nodes[at].name.clone(),
                    from: nodes[from].name.clone(),
                    to: None,
                    reason: reason.clone(),
                    fault_s: fault.map(Time::as_secs_f64),
                    detected_s: now.as_secs_f64(),
                    attached_s: None,
                    first_ack_s: None,
                });
            }
            Event::PeerSelected { .. } => self.attached_at[at] = now,
            Event::PeerChanged { to, cause, .. } => {
                self.attached_at[at] = now;
                match self.open.get(&at) {
                    Some(&open) => {
                        self.failovers[open].to = name_of(*to);
                        self.failovers[open].attached_s = Some(now.as_secs_f64());
                    }
                    None if matches!(cause, Cause::Better | Cause::Healed) => self.parent_changes += 1,
                    None => {}
                }
            }
            _ => {}
        }
    }

    /// When the parent became unusable for this child, in truth.
    fn fault_behind(&self, nodes: &[SimNode], network: &Network, child: usize, parent: usize) -> Option<Time> {
        let since = self.attached_at[child];
        let own = [nodes[parent].unusable_at, nodes[child].unusable_at].into_iter().flatten();
        let cut = network.blocked(child, parent).into_iter().chain(network.blocked(parent, child));
        own.chain(cut).filter(|at| *at >= since || nodes[parent].paused > 0).max()
    }
}

impl World {
    /// Whether nothing is left to be done wherever a sink is in reach.
    pub(super) fn is_settled(&self) -> bool {
        self.pending_in_reach() == 0
    }

    /// Samples on disks of live nodes that a live sink owes a count: those bound to its account, and unbound ones.
    ///
    /// Reach is judged in truth: when the scenario is over nothing is cut any more.
    fn pending_in_reach(&self) -> u64 {
        let live = || self.nodes.iter().filter(|node| node.is_up());
        let sinks: BTreeSet<_> =
            live().filter_map(|node| node.disk.account.as_ref().map(|account| account.id)).collect();
        let owed = |account: Option<AccountId>| account.map_or(!sinks.is_empty(), |id| sinks.contains(&id));
        live().map(|node| self.uncounted(node, owed)).sum()
    }

    /// Samples on a node's disk that no root has counted, bound as `which` says.
    fn uncounted(&self, node: &SimNode, which: impl Fn(Option<AccountId>) -> bool) -> u64 {
        let outbox = &node.disk.outbox;
        let source = Source { origin: node.id, journal: outbox.journal };
        let open = |sequence: &u64| {
            self.truth.is_acknowledged(source, *sequence)
                && !self.truth.is_counted(source, *sequence)
                && which(outbox.account_of(*sequence))
        };
        outbox.sequences().filter(open).count() as u64
    }

    /// What must hold once everything has settled: whoever could have a parent has one, and all below a root name it.
    fn check_settled(&mut self) {
        let (now, nodes) = (self.now, &self.nodes);
        for (i, node) in nodes.iter().enumerate() {
            let Some(view) = node.view() else { continue };
            let has_room = |other: &SimNode| {
                other.view().is_some_and(|above| {
                    above.effective_level > view.effective_level && above.free_slots > 0 && other.config.node.can_parent
                })
            };
            let eligible = nodes.iter().any(has_room);
            let attached = link_up(nodes, i).is_some();
            self.invariants.check(now, "settled_attached", attached || !eligible, || {
                format!("{} has no parent, though somebody has a free slot", node.name)
            });
            let mut top = i;
            // A path is no longer than there are nodes, unless it is a cycle, which is reported as one.
            for _ in nodes {
                top = link_up(nodes, top).unwrap_or(top);
            }
            self.invariants.check(now, "settled_root", view.root() == nodes[top].id, || {
                format!("{} names another root than {}", node.name, nodes[top].name)
            });
            let rival = || (i + 1..nodes.len()).find(|&other| self.are_rivals(i, other));
            let rival = if attached { None } else { rival() };
            self.invariants.check(now, "settled_one_root", rival.is_none(), || {
                let other = rival.map_or("", |other| nodes[other].name.as_str());
                format!("{} and {other} are both roots, though they can hear each other", node.name)
            });
        }
    }

    /// Whether two nodes are both roots although one could be the other's parent.
    fn are_rivals(&self, a: usize, b: usize) -> bool {
        let (one, other) = (&self.nodes[a], &self.nodes[b]);
        let reach = one.config.topology.max_distance.min(other.config.topology.max_distance);
        let near = match (one.config.node.position, other.config.node.position) {
            (Some(here), Some(there)) => here.distance_m(&there) <= reach,
            _ => true,
        };
        let open = self.network.blocked(a, b).is_none() && self.network.blocked(b, a).is_none();
        let able = |node: &SimNode| node.is_up() && node.config.node.can_parent;
        let free = one.config.topology.strategy != Strategy::Hybrid;
        let roots = link_up(&self.nodes, a).is_none() && link_up(&self.nodes, b).is_none();
        roots && open && free && able(one) && able(other) && near
    }

    pub(super) fn finish(mut self, wall: Duration, seed: u64) -> Report {
        self.check_settled();
        self.note_late_outcomes();
        let pending: u64 =
            self.nodes.iter().filter(|node| node.is_up()).map(|node| self.uncounted(node, |_| true)).sum();
        let stranded: u64 =
            self.nodes.iter().filter(|node| !node.is_up()).map(|node| self.uncounted(node, |_| true)).sum();
        let settled = self.pending_in_reach() == 0;
        let topology = self.topology();
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

impl Recorder {
    /// Bytes per node and second, from a minute after the tree stands to the first activity, if that is a minute more.
    fn idle_by_kind(&self, nodes: usize, virtual_s: f64) -> Option<BTreeMap<&'static str, f64>> {
        let from = self.formation.converged_s?.ceil() as usize + 60;
        let until = self.first_activity.map_or(virtual_s, Time::as_secs_f64).floor() as usize;
        let seconds = until.checked_sub(from).filter(|seconds| *seconds >= 60)?;
        let at = |second: usize| self.timeline.get(second.checked_sub(1)?);
        let (before, after) = (at(from)?, at(until)?);
        let bytes = |kind| after[kind] - before.get(kind).copied().unwrap_or(0);
        Some(after.keys().map(|&kind| (kind, bytes(kind) as f64 / seconds as f64 / nodes as f64)).collect())
    }

    fn traffic(&self, nodes: usize, virtual_s: f64, levels: &Levels) -> Traffic {
        let idle_by_kind = self.idle_by_kind(nodes, virtual_s);
        use crate::sim::network::{ACK_BYTES, DATAGRAM_OVERHEAD, GOSSIP_REDUNDANCY, KEEP_ALIVE_BYTES};
        Traffic {
            idle_bytes_per_node_s: idle_by_kind.as_ref().map(|kinds| kinds.values().sum()),
            idle_by_kind: idle_by_kind.unwrap_or_default(),
            beacons_per_node_s: self.beacons as f64 / virtual_s.max(1.0) / nodes as f64,
            by_kind: self.by_kind.clone(),
            dropped: self.drops.clone(),
            per_level_up_bytes: self
                .up_bytes
                .iter()
                .map(|(&l, &b)| (levels.label(crate::level::Level(l)), b))
                .collect(),
            constants: BTreeMap::from([
                ("datagram_overhead_bytes", DATAGRAM_OVERHEAD as f64),
                ("ack_bytes", ACK_BYTES as f64),
                ("gossip_redundancy", GOSSIP_REDUNDANCY),
                ("keep_alive_bytes", KEEP_ALIVE_BYTES as f64),
                ("keep_alive_s", Limits::KEEP_ALIVE.as_secs_f64()),
                ("idle_timeout_s", Limits::CONNECTION_SILENCE.as_secs_f64()),
            ]),
        }
    }
}

/// The most memory this process ever had resident, where the system tells.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
