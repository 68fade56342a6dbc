//! What is recorded while a run goes on: formation, failovers, traffic.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{NodeId, NodeName};
use crate::level::Levels;
use crate::limits::Limits;
use crate::proto::event::Event;
use crate::proto::frame::Frame;
use crate::proto::link::CloseReason;
use crate::proto::packet::{Payload, RouterFrame};
use crate::proto::topology::{Cause, Parting, Standing};
use crate::sim::faults::ActiveFaults;
use crate::sim::network::Network;
use crate::sim::node::SimNode;
use crate::sim::partitions::Partitions;
use crate::sim::report::{Failover, FaultRecord, Formation, Traffic};
use crate::time::{Time, earliest};

/// How long a formation must stand to count as converged.
const STANDS: Duration = Duration::from_secs(5);
/// For how long after a node stood still, what others made of its silence is still on its way.
const AFTERMATH: Duration = Duration::from_secs(2);

/// The record of a run.
#[derive(Debug)]
pub struct Recorder {
    pub hasher: blake3::Hasher,
    pub active: ActiveFaults,
    pub partitions: Partitions,
    pub settled_since: Option<Time>,
    pub beacons: u64,
    pub evicted: u64,
    pub next_command: Option<(f64, usize)>,
    pub faults: Vec<FaultRecord>,
    pub unresolved: Vec<FaultRecord>,
    /// Which root each live node claims.
    claims: Vec<Option<NodeId>>,
    claimants: BTreeMap<NodeId, usize>,
    live: usize,
    agreed: Option<(Time, u64, u64)>,
    pub formation: Formation,
    pub failovers: Vec<Failover>,
    open: BTreeMap<usize, usize>,
    pub parent_changes: u64,
    attached_at: Vec<Time>,
    /// Who closed a link last because the peer was silent or deaf, and to whom.
    accused: Option<(usize, usize)>,
    messages: u64,
    by_kind: BTreeMap<&'static str, u64>,
    up_bytes: BTreeMap<u8, u64>,
    pub raw_bytes_at_root: u64,
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
            accused: None,
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
        if agree {
            self.partitions.agree(now);
        }
    }

    pub fn partition_ends(&mut self, now: Time, fault: usize, nodes: &[SimNode]) {
        self.partitions.end(now, fault, nodes);
        // It may have been too short for anybody to notice.
        if self.agreed.is_some() {
            self.partitions.agree(now);
        }
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

    /// A node closes a link. That its parent is lost, if it was the parent, is its next event.
    pub fn closes(&mut self, at: usize, peer: usize, reason: CloseReason) {
        let accuses = matches!(reason, CloseReason::Lost | CloseReason::Unheard);
        self.accused = accuses.then_some((at, peer));
    }

    pub fn event(&mut self, now: Time, nodes: &[SimNode], network: &Network, at: usize, event: &Event) {
        self.partitions.event(now, at, event, nodes);
        let name_of = |id: NodeId| nodes[at].index_of(id).map(|i| nodes[i].name.clone());
        match event {
            Event::PeerLost { parent, reason } => {
                let Some(from) = nodes[at].index_of(*parent) else { return };
                let accuses = self.accused == Some((at, from));
                let fault = self.fault_behind(now, nodes, network, at, from, accuses);
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
                let waiting = self.open.get(&at).copied().filter(|&open| self.failovers[open].attached_s.is_none());
                if let Some(open) = waiting {
                    self.failovers[open].to = name_of(*to);
                    self.failovers[open].attached_s = Some(now.as_secs_f64());
                } else if matches!(cause, Cause::Better | Cause::Healed) {
                    self.parent_changes += 1;
                    // It moved on before anything was acknowledged there.
                    self.open.remove(&at);
                }
            }
            _ => {}
        }
    }

    /// When a node found a parent last.
    pub fn attached_last(&self) -> Time {
        self.attached_at.iter().copied().max().unwrap_or_default()
    }

    /// When the parent became unusable for this child, in truth. A child that stood still may have been given up by its
    /// parent, but has no reason itself to accuse it.
    fn fault_behind(
        &self,
        now: Time,
        nodes: &[SimNode],
        network: &Network,
        child: usize,
        parent: usize,
        accuses: bool,
    ) -> Option<Time> {
        let since = self.attached_at[child];
        let died = nodes[parent].died_at.filter(|at| *at >= since || !nodes[parent].is_up());
        let still = |node: &SimNode| {
            let lately = |until: Option<Time>| until.is_none_or(|until| now.since(until) < AFTERMATH);
            node.stood_still.filter(|(_, until)| lately(*until)).map(|(from, _)| from)
        };
        let own = if accuses { None } else { still(&nodes[child]) };
        let cut = earliest(network.blocked(child, parent), network.blocked(parent, child));
        [died, still(&nodes[parent]), own, cut].into_iter().flatten().min()
    }

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

    pub fn traffic(&self, nodes: usize, virtual_s: f64, levels: &Levels) -> Traffic {
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
