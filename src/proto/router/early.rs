//! What comes up from a node that a slot is kept for, and that may be a child by now: samples go along with its request,
//! and overtake it here, for a request takes the way through the topology.

use std::collections::BTreeMap;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::packet::RouterFrame;
use crate::proto::router::machine::{Effect, Machine};
use crate::proto::topology::{ATTEMPT, Tenure};
use crate::time::Time;

/// What a frame takes beside its samples, about.
const FRAME: usize = 256;

/// What came from one node, in its order.
#[derive(Debug)]
struct Waiting {
    until: Time,
    bytes: usize,
    frames: Vec<RouterFrame>,
}

#[derive(Debug, Default)]
pub(super) struct Early(BTreeMap<NodeId, Waiting>);

impl Machine {
    /// Keeps a frame of a child to be; says whether it did.
    pub(super) fn keep_early(
        &mut self,
        now: Time,
        from: NodeId,
        parent: Tenure,
        frame: RouterFrame,
        effects: &mut Vec<Effect>,
    ) -> bool {
        if parent != self.view.tenure || !self.view.reserved.contains(&from) {
            return false;
        }
        let RouterFrame::Up { packet, .. } = &frame else { return false };
        let Some(bytes) = packet.payload.telemetry_bytes() else { return false };
        self.drop_late(now, effects);
        let new = || Waiting { until: now + ATTEMPT, bytes: 0, frames: Vec::new() };
        let waiting = self.telemetry.early.0.entry(from).or_insert_with(new);
        waiting.bytes += FRAME + bytes;
        let kept = waiting.bytes <= Limits::EARLY_BYTES;
        if kept {
            waiting.frames.push(frame);
        }
        kept
    }

    /// Takes what came early from those who are children now.
    pub(super) fn take_early(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.drop_late(now, effects);
        let early = &mut self.telemetry.early.0;
        let taken: Vec<_> = early.extract_if(.., |from, _| !self.view.reserved.contains(from)).collect();
        for (from, waiting) in taken {
            waiting.frames.into_iter().for_each(|frame| self.frame(now, from, frame, effects));
        }
    }

    pub(super) fn drop_late(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.telemetry.early.0.retain(|_, waiting| {
            let waits = now < waiting.until;
            if !waits {
                effects.extend(waiting.frames.iter().map(|_| Effect::Dropped("early")));
            }
            waits
        });
    }
}
