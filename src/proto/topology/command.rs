//! Terms of command: who may command under which fencing token, and what a part does that is cut off from its root.
//!
//! A token is adopted only from the accepted chain of parents and never goes back. Where a higher one is known below,
//! the root is told, and takes one higher still: so what was commanded on the other side of a cut is out of date.

use std::time::Duration;

use crate::id::NodeId;
use crate::level::Level;
use crate::proto::event::Event;
use crate::proto::topology::machine::{Effect, Machine};
use crate::proto::topology::{Fence, Frame, Partition, Path};
use crate::time::Time;

/// How long a root has been one before it takes a term: a mesh that is forming has many roots for a moment.
const SETTLED: Duration = Duration::from_secs(3);

#[derive(Clone, Debug)]
pub(super) struct Command {
    pub fence: Option<Fence>,
    /// The highest term heard of, here or below.
    highest: Option<Fence>,
    /// The highest base level of a root that this node or anybody below was ever under.
    pub known_root: Option<Level>,
    pub partition: Option<Partition>,
    /// Since when a higher root is above again, while the partition is not yet healed.
    healing_since: Option<Time>,
    /// Since when nobody above was found, though a higher root is known.
    cut_off_since: Option<Time>,
    autonomous: bool,
}

impl Command {
    pub fn new(fence: Option<Fence>, known_root: Option<Level>) -> Self {
        Self {
            fence,
            highest: fence,
            known_root,
            partition: None,
            healing_since: None,
            cut_off_since: None,
            autonomous: false,
        }
    }

    pub fn is_autonomous(&self) -> bool {
        self.autonomous
    }

    pub fn highest(&self) -> Option<Fence> {
        self.highest
    }
}

impl Machine {
    /// Takes the term of the path above; a lower one than is known here is reported up.
    pub(super) fn follow_term(&mut self, parent: NodeId, path: &Path, effects: &mut Vec<Effect>) {
        let command = &mut self.command;
        command.fence = command.fence.max(path.fence);
        command.highest = command.highest.max(path.fence);
        if let Some(highest) = command.highest.filter(|highest| Some(*highest) > path.fence) {
            effects.push(Effect::Send(parent, Frame::Fence(highest)));
        }
    }

    pub(super) fn fence_below(&mut self, from: NodeId, fence: Fence, effects: &mut Vec<Effect>) {
        match self.downlink.children.contains_key(&from) {
            true => self.heard_of_term(Some(fence), effects),
            false => effects.push(Effect::Dropped("fence_of_stranger")),
        }
    }

    /// Somebody below knows of this term.
    pub(super) fn heard_of_term(&mut self, fence: Option<Fence>, effects: &mut Vec<Effect>) {
        let Some(news) = fence.filter(|_| fence > self.command.highest) else { return };
        self.command.highest = fence;
        match &self.uplink.parent {
            Some(parent) => effects.push(Effect::Send(parent.id, Frame::Fence(news))),
            None => self.take_term(),
        }
    }

    fn take_term(&mut self) {
        let counter = self.command.highest.map_or(0, |fence| fence.counter).saturating_add(1);
        let term = Some(Fence { counter, leader: self.settings.me });
        // At the end of the counter, where only a liar can have put it, there may be none that is higher.
        if term > self.command.highest {
            (self.command.fence, self.command.highest) = (term, term);
            self.touch();
        }
    }

    /// A root that has somebody below commands under a term of its own.
    pub(super) fn consider_a_term(&mut self, now: Time) {
        let Some(since) = self.uplink.unattached_since else { return };
        let own = self.command.fence.is_some_and(|fence| fence.leader == self.settings.me);
        if !own && !self.downlink.children.is_empty() && now.since(since) >= SETTLED {
            self.take_term();
        }
    }

    /// Follows the partition clock: cut off, on our own, a root above again, healed.
    pub(super) fn watch_partition(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let attached = self.uplink.parent.is_some();
        let lowered = self.command.known_root > Some(self.settings.level);
        self.command.cut_off_since = match attached || !lowered || self.uplink.is_searching(now) {
            true => None,
            false => self.command.cut_off_since.or(Some(now)),
        };
        let expired = |since: Time| now.since(since) >= self.settings.partition_timeout;
        self.command.autonomous = self.command.cut_off_since.is_some_and(expired);
        let apart = self.command.autonomous || (attached && self.uplink.path.autonomous);
        let root = self.uplink.path.waypoints.last().map_or(self.settings.me, |root| root.id);
        match (apart, self.command.partition) {
            (true, None) => {
                // It has lasted since the tree above was gone, for who has noticed that.
                let since = self.command.cut_off_since.unwrap_or(now);
                self.command.partition = Some(Partition { since, root });
                effects.push(Effect::Event(Event::PartitionDetected { root }));
                self.touch();
            }
            (true, Some(partition)) if partition.root != root => {
                self.command.partition = Some(Partition { root, ..partition });
                self.touch();
            }
            (false, Some(partition)) if attached => self.heal(now, partition, effects),
            _ => {}
        }
        if apart || !attached {
            self.command.healing_since = None;
        }
    }

    /// The partition is over when a root as high as the one that was lost has stood above for long enough.
    fn heal(&mut self, now: Time, partition: Partition, effects: &mut Vec<Effect>) {
        let root = self.uplink.path.waypoints.last().map(|root| root.level);
        // Not before there is one term for all that is below.
        if root < self.command.known_root || self.uplink.path.fence < self.command.highest {
            self.command.healing_since = None;
            return;
        }
        let since = *self.command.healing_since.get_or_insert(now);
        let wait = self.settings.partition_confirm.saturating_sub(now.since(since));
        if !wait.is_zero() {
            return self.think_within(now, wait);
        }
        self.command.partition = None;
        effects.push(Effect::Event(Event::PartitionHealed { lasted: now.since(partition.since) }));
        self.touch();
    }
}
