//! The collector in memory: one value, changed and copied as a whole.

use std::time::Duration;

use tokio::sync::watch;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::messages::Subsystem;
use crate::metrics::{Counts, MetricsCollector};
use crate::proto::event::Event;
use crate::time::Time;

/// Counts in memory, since the node started.
#[derive(Debug)]
pub struct MemoryMetrics(watch::Sender<Kept>);

#[derive(Debug, Default)]
struct Kept {
    counts: Counts,
    lost: Option<(NodeId, Time)>,
}

impl Default for MemoryMetrics {
    fn default() -> Self {
        Self(watch::Sender::new(Kept::default()))
    }
}

impl MetricsCollector for MemoryMetrics {
    fn event(&self, now: Time, event: &Event) {
        self.0.send_modify(|kept| {
            *kept.counts.events.entry(event.label()).or_default() += 1;
            match event {
                Event::PeerLost { parent, .. } => {
                    kept.lost = Some((*parent, now));
                    kept.counts.last_detection = Some(now);
                }
                Event::PeerSelected { parent: to } | Event::PeerChanged { to, .. } => {
                    if let Some((lost, at)) = kept.lost.take() {
                        kept.counts.last_attachment = Some(now.since(at));
                        kept.counts.false_failovers += u64::from(lost == *to);
                    }
                }
                _ => {}
            }
        });
    }

    fn decided(&self, by: Subsystem, took: Duration) {
        self.0.send_modify(|kept| kept.counts.decisions.entry(by).or_default().add(took));
    }

    fn count(&self, name: &str, by: u64) {
        self.0.send_modify(|kept| {
            let own = &mut kept.counts.own;
            let full = own.len() >= Limits::OWN_METRICS;
            match own.get_mut(name) {
                Some(count) => *count = count.saturating_add(by),
                None if full => {}
                None => drop(own.insert(name.to_owned(), by)),
            }
        });
    }

    fn counts(&self) -> Option<Counts> {
        Some(self.0.borrow().counts.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::topology::Cause;

    #[test]
    fn a_parent_that_comes_back_was_given_up_falsely() {
        let (metrics, a, b) = (MemoryMetrics::default(), NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32]));
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let changed = |to| Event::PeerChanged { from: Some(a), to, cause: Cause::Lost };
        for (time, to) in [(10, b), (20, a)] {
            metrics.event(at(time), &Event::PeerLost { parent: a, reason: String::new() });
            metrics.event(at(time + 1), &changed(to));
        }
        let counts = metrics.counts().unwrap();
        assert_eq!((counts.false_failovers, counts.events["peer_lost"], counts.events["peer_changed"]), (1, 2, 2));
        assert_eq!(counts.last_attachment, Some(Duration::from_secs(1)));
    }

    #[test]
    fn the_hosts_own_names_are_bounded() {
        let metrics = MemoryMetrics::default();
        for n in 0..Limits::OWN_METRICS + 10 {
            metrics.count(&format!("name-{n}"), 1);
        }
        metrics.count("name-0", 4);
        let own = metrics.counts().unwrap().own;
        assert_eq!((own.len(), own["name-0"]), (Limits::OWN_METRICS, 5));
    }
}
