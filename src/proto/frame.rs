//! Frames: everything that travels on a link's stream.

use std::sync::Arc;

use crate::proto::beacon::Beacon;
use crate::proto::link::Hello;
use crate::proto::packet::RouterFrame;
use crate::proto::topology;

/// One frame on a link. Its wire form is in [`crate::messages::wire`].
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    Hello(Hello),
    Beacon(Arc<Beacon>),
    Topology(topology::Frame),
    Router(RouterFrame),
}

impl Frame {
    /// The kind under which traffic is counted.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Beacon(_) => "beacon",
            Self::Topology(_) => "topology",
            Self::Router(frame) => frame.kind(),
        }
    }
}
