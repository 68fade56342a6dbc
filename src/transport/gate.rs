//! The gate: a switch that silently drops everything from and to chosen peers while connections stay open.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use crate::id::NodeId;

/// Open by default. Shared by an adapter and all its connections.
#[derive(Clone, Debug)]
pub struct Gate(watch::Sender<Arc<BTreeSet<NodeId>>>);

impl Default for Gate {
    fn default() -> Self {
        Self(watch::Sender::new(Arc::default()))
    }
}

impl Gate {
    /// Shuts out exactly these peers; an empty set opens the gate.
    pub fn shut_out(&self, peers: BTreeSet<NodeId>) {
        self.0.send_replace(Arc::new(peers));
    }

    pub fn blocks(&self, peer: &NodeId) -> bool {
        self.0.borrow().contains(peer)
    }

    /// Resolves once the peer may pass. Cancel-safe.
    pub async fn open_for(&self, peer: NodeId) {
        let mut changes = self.0.subscribe();
        // The sender is ours: the wait ends only by the peer being let in.
        let _ = changes.wait_for(|blocked| !blocked.contains(&peer)).await;
    }

    /// Is told of every change.
    pub fn changes(&self) -> watch::Receiver<Arc<BTreeSet<NodeId>>> {
        self.0.subscribe()
    }
}
