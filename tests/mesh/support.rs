//! What several tests need: small meshes, and waiting for what is expected.

use std::time::Duration;

use tokio::time::Instant;
use tussock::transport::memory::{Switchboard, Wires};
use tussock::{Keypair, Level, Node, NodeBuilder};

/// Waits until it is so; the deadline is generous, for only a failure waits that long.
pub async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !so().await {
        assert!(started.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn key(n: u8) -> Keypair {
    Keypair::from_seed([n; 32])
}

pub fn builder(n: u8, name: &str, level: Level) -> NodeBuilder {
    Node::builder().name(name).level(level).key(key(n))
}

pub struct SmallMesh {
    pub root: Node,
    pub squads: [Node; 2],
    pub leaf: Node,
}

impl SmallMesh {
    /// A company, two squads and a platform on one switchboard, formed.
    pub async fn formed(seed: u64) -> Self {
        let board = Switchboard::new(seed, Wires::default());
        let spawn = async |n, name, level| builder(n, name, level).memory(&board).seed(seed).spawn().await.unwrap();
        let mesh = Self {
            root: spawn(1, "root", Level::COMPANY).await,
            squads: [spawn(2, "squad-a", Level::SQUAD).await, spawn(3, "squad-b", Level::SQUAD).await],
            leaf: spawn(4, "leaf", Level::PLATFORM).await,
        };
        mesh.until_formed().await;
        mesh
    }

    pub async fn until_formed(&self) {
        let root = self.root.id();
        eventually("the mesh forms", async || {
            self.root.view().descendants.len() == 3
                && self.leaf.view().rank() == 2
                && self.all().iter().all(|node| node.view().root() == root)
        })
        .await;
        // A backup and its slot take a moment more.
        eventually("the leaf has a backup", async || self.leaf.view().backup.is_some()).await;
    }

    pub fn all(&self) -> [&Node; 4] {
        [&self.root, &self.squads[0], &self.squads[1], &self.leaf]
    }

    /// The squad that is the leaf's parent.
    pub fn parent(&self) -> &Node {
        let parent = self.leaf.view().parent_id();
        self.squads.iter().find(|squad| Some(squad.id()) == parent).expect("the leaf is below a squad")
    }
}
