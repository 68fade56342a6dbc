//! What a partition does to the mesh: when each part notices, acts on its own, meets the others again, and is one.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::id::NodeName;
use crate::proto::event::Event;
use crate::sim::invariants::link_up;
use crate::sim::node::SimNode;
use crate::time::Time;

/// One part of one partition. Times are seconds since the cut: the first two, and since its end: the others, but `contact_s`.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionReport {
    pub nodes: Vec<NodeName>,
    /// The first node of the part that acts on its own, and the last.
    pub detected_s: Option<f64>,
    pub autonomous_s: Option<f64>,
    /// The first frame across, in seconds since the start.
    pub contact_s: Option<f64>,
    /// Every live node names one root.
    pub one_root_s: Option<f64>,
    pub healed_s: Option<f64>,
    /// Everything that had waited at the end of the cut is counted.
    pub flushed_s: Option<f64>,
    /// Live nodes without an accepted parent when the part was healed.
    pub roots_after: Option<usize>,
    /// Bytes of frames between the part and the others from the first contact until it was flushed.
    pub bytes_to_heal: u64,
    /// Bytes of samples that waited in the part when the cut ended.
    pub true_difference_bytes: u64,
    /// The most samples that a node of the part showed in its provisional totals.
    pub provisional_samples: u64,
}

#[derive(Clone, Debug)]
struct Part {
    fault: usize,
    members: Vec<usize>,
    cut: Time,
    ended: Option<Time>,
    /// Who knows that it is cut off, in which run of its process.
    apart: BTreeMap<usize, u64>,
    /// What waits to be counted: nodes and their journals' ends.
    waiting: Vec<(usize, u64)>,
    report: PartitionReport,
}

/// All parts of all partitions.
#[derive(Clone, Debug, Default)]
pub struct Partitions(Vec<Part>);

impl Partitions {
    pub fn begin(&mut self, now: Time, fault: usize, parts: Vec<Vec<usize>>, nodes: &[SimNode]) {
        for members in parts {
            let report = PartitionReport {
                nodes: members.iter().map(|&i| nodes[i].name.clone()).collect(),
                detected_s: None,
                autonomous_s: None,
                contact_s: None,
                one_root_s: None,
                healed_s: None,
                flushed_s: None,
                roots_after: None,
                bytes_to_heal: 0,
                true_difference_bytes: 0,
                provisional_samples: 0,
            };
            let (ended, waiting) = (None, Vec::new());
            self.0.push(Part { fault, members, cut: now, ended, apart: BTreeMap::new(), waiting, report });
        }
    }

    pub fn end(&mut self, now: Time, fault: usize, nodes: &[SimNode]) {
        for part in self.0.iter_mut().filter(|part| part.fault == fault && part.ended.is_none()) {
            part.ended = Some(now);
            let up = part.members.iter().copied().filter(|&i| nodes[i].is_up());
            part.waiting = up.map(|i| (i, nodes[i].disk.outbox.next_sequence())).collect();
            let waiting = part.waiting.iter().map(|(i, _)| nodes[*i].disk.outbox.bytes() as u64);
            part.report.true_difference_bytes = waiting.sum();
        }
    }

    pub fn event(&mut self, now: Time, at: usize, event: &Event, nodes: &[SimNode]) {
        for part in self.0.iter_mut().filter(|part| part.members.contains(&at)) {
            match event {
                Event::PartitionDetected { .. } if part.ended.is_none() => {
                    let after = now.since(part.cut).as_secs_f64();
                    part.apart.insert(at, nodes[at].incarnation);
                    part.report.detected_s.get_or_insert(after);
                    part.report.autonomous_s = Some(after);
                }
                Event::PartitionHealed { .. } => {
                    part.apart.remove(&at);
                    part.apart.retain(|&i, run| nodes[i].is_up() && nodes[i].incarnation == *run);
                    let is_news = part.report.detected_s.is_some() && part.report.healed_s.is_none();
                    if let Some(ended) = part.ended.filter(|_| is_news && part.apart.is_empty()) {
                        part.report.healed_s = Some(now.since(ended).as_secs_f64());
                        let roots = (0..nodes.len()).filter(|&i| nodes[i].is_up() && link_up(nodes, i).is_none());
                        part.report.roots_after = Some(roots.count());
                    }
                }
                _ => {}
            }
        }
    }

    /// All live nodes name one root.
    pub fn agree(&mut self, now: Time) {
        for part in &mut self.0 {
            if let Some(ended) = part.ended {
                part.report.one_root_s.get_or_insert(now.since(ended).as_secs_f64());
            }
        }
    }

    /// Whether some part is on its way back.
    pub fn are_healing(&self) -> bool {
        self.0.iter().any(|part| part.ended.is_some() && part.report.flushed_s.is_none())
    }

    /// A frame has arrived.
    pub fn received(&mut self, now: Time, from: usize, to: usize, bytes: usize) {
        for part in self.0.iter_mut().filter(|part| part.ended.is_some() && part.report.flushed_s.is_none()) {
            if part.members.contains(&from) != part.members.contains(&to) {
                part.report.contact_s.get_or_insert(now.as_secs_f64());
                part.report.bytes_to_heal += bytes as u64;
            }
        }
    }

    /// Looks at what the parts show, and whether what waited at the end of a cut is counted.
    pub fn second(&mut self, now: Time, nodes: &[SimNode]) {
        for part in self.0.iter_mut().filter(|part| part.ended.is_none()) {
            let summaries = part.members.iter().filter_map(|&i| Some(nodes[i].node.as_ref()?.router.summary()));
            let shown = summaries.filter_map(|summary| Some(summary.provisional.as_ref()?.samples)).max();
            part.report.provisional_samples = part.report.provisional_samples.max(shown.unwrap_or(0));
        }
        for part in self.0.iter_mut().filter(|part| part.report.flushed_s.is_none()) {
            let Some(ended) = part.ended else { continue };
            let oldest = |i: usize| nodes[i].disk.outbox.sequences().next();
            if part.waiting.iter().all(|&(i, end)| oldest(i).is_none_or(|oldest| oldest >= end)) {
                part.report.flushed_s = Some(now.since(ended).as_secs_f64());
            }
        }
    }

    pub fn reports(self) -> Vec<PartitionReport> {
        self.0.into_iter().map(|part| part.report).collect()
    }
}
