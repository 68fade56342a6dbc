//! The link index: the phone book of links, written by the TransportActor, read by whoever sends.
//!
//! It holds addresses, not facts; nothing decides on it.

use std::sync::Arc;

use bytes::Bytes;
#[expect(clippy::disallowed_types, reason = "the one use of it")]
use dashmap::DashMap;

use crate::id::NodeId;
use crate::proto::link::ConnId;
use crate::transport::{MeshConnection, TransportError};

/// Peer → the connection that is its link.
#[derive(Clone, Default)]
pub struct LinkIndex {
    #[expect(clippy::disallowed_types, reason = "the one use of it")]
    links: Arc<DashMap<NodeId, Arc<dyn MeshConnection>>>,
}

impl LinkIndex {
    pub(crate) fn insert(&self, connection: Arc<dyn MeshConnection>) {
        self.links.insert(connection.peer(), connection);
    }

    pub(crate) fn remove(&self, peer: &NodeId) {
        self.links.remove(peer);
    }

    pub(crate) fn retain(&self, keep: impl Fn(&NodeId) -> bool) {
        self.links.retain(|peer, _| keep(peer));
    }

    /// Whether this connection is the link to its peer.
    pub fn is_link(&self, peer: &NodeId, conn: ConnId) -> bool {
        self.links.get(peer).is_some_and(|link| link.id() == conn)
    }

    /// Queues a frame on the link to a peer.
    pub fn send(&self, peer: &NodeId, frame: Bytes) -> Result<(), TransportError> {
        match self.links.get(peer) {
            Some(link) => link.send(frame),
            None => Err(TransportError::PeerNotFound { peer: *peer }),
        }
    }
}
