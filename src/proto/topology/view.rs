//! The view: one node's place in the tree, as everybody else in the node reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, NodeName};
use crate::level::Level;
use crate::proto::account::AccountId;
use crate::proto::beacon::Capability;
use crate::proto::election::Role;
use crate::proto::geo::GeoPoint;
use crate::proto::topology::{Fence, Path, Tenure, Waypoint};
use crate::time::Time;

/// Where a node stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Nobody above, and no higher root was ever known.
    #[default]
    Root,
    /// A parent has accepted this node.
    Attached,
    /// There was, or is, somebody to attach to, but no parent now.
    Detached,
    /// Detached for so long that this node leads its part on its own.
    Autonomous,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ParentView {
    pub id: NodeId,
    /// The parent's tenure, which upward frames must carry.
    pub tenure: Tenure,
    /// Our attempt that it accepted.
    pub serial: u64,
    pub since: Time,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChildView {
    /// The child's tenure, which its upward frames must carry.
    pub tenure: Tenure,
    pub serial: u64,
    pub effective_level: Level,
    /// The highest term known to it or below it, when it asked.
    pub fence: Option<Fence>,
    pub since: Time,
}

/// A node somewhere below.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descendant {
    pub id: NodeId,
    pub name: NodeName,
    pub level: Level,
    pub effective_level: Level,
    pub parent: NodeId,
    /// Hashes of the types of its capabilities.
    pub capabilities: Vec<u32>,
    /// Where it commits samples as a root.
    pub account: Option<AccountId>,
    /// The attachment this speaks of: (incarnation, serial); the newest one known is true.
    pub version: (u64, u64),
}

/// The part of the mesh that this node is in is cut off from a higher root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    pub since: Time,
    /// Who leads meanwhile.
    pub root: NodeId,
}

/// A snapshot of the topology machine's decisions; shared, never changed in place.
#[derive(Clone, Debug)]
pub struct View {
    pub me: NodeId,
    pub name: NodeName,
    pub level: Level,
    pub effective_level: Level,
    pub tenure: Tenure,
    pub role: Role,
    /// Who leads the group; the node itself if it stands alone.
    pub leader: NodeId,
    pub standing: Standing,
    pub parent: Option<ParentView>,
    /// The backup that is asked to take the lost parent's place: samples go there before it has answered.
    pub switching_to: Option<ParentView>,
    pub path: Arc<Path>,
    /// Where samples are committed: the root's account, this node's own if it is one, while it switches that behind the
    /// backup. None while a partition heals.
    pub account: Option<AccountId>,
    /// This node's own account, root or not.
    pub own_account: Option<AccountId>,
    pub position: Option<GeoPoint>,
    pub capabilities: Arc<[Capability]>,
    /// The term of command.
    pub fence: Option<Fence>,
    /// The highest base level of a root that this node or anybody below was ever under.
    pub known_root: Option<Level>,
    pub partition: Option<Partition>,
    pub backup: Option<NodeId>,
    pub children: BTreeMap<NodeId, ChildView>,
    /// Nodes for which a slot is kept.
    pub reserved: BTreeSet<NodeId>,
    pub laterals: BTreeSet<NodeId>,
    /// Everyone below and through which child.
    pub descendants: Arc<BTreeMap<NodeId, (NodeId, Descendant)>>,
    pub free_slots: u16,
    pub slots: u16,
    /// Whom links are needed to, whether or not they are up.
    pub wanted: BTreeSet<NodeId>,
    /// How often to look for somebody outside, if at all.
    pub seek: Option<Duration>,
    /// What an unattached node waits for, in words.
    pub waiting_for: Option<String>,
}

impl View {
    /// The view of a node that has just started.
    pub fn alone(me: NodeId, name: NodeName, level: Level, tenure: Tenure, slots: u16) -> Self {
        Self {
            me,
            name,
            level,
            effective_level: level,
            tenure,
            role: Role::Standalone,
            leader: me,
            standing: Standing::Root,
            parent: None,
            switching_to: None,
            path: Arc::default(),
            account: None,
            own_account: None,
            position: None,
            capabilities: Arc::default(),
            fence: None,
            known_root: None,
            partition: None,
            backup: None,
            children: BTreeMap::new(),
            reserved: BTreeSet::new(),
            laterals: BTreeSet::new(),
            descendants: Arc::default(),
            free_slots: slots,
            slots,
            wanted: BTreeSet::new(),
            seek: None,
            waiting_for: None,
        }
    }

    pub fn parent_id(&self) -> Option<NodeId> {
        self.parent.as_ref().map(|parent| parent.id)
    }

    /// Where samples go.
    pub fn way_up(&self) -> Option<&ParentView> {
        self.parent.as_ref().or(self.switching_to.as_ref())
    }

    /// Whether this node is `top` or below it.
    pub fn is_within(&self, top: &NodeId) -> bool {
        self.me == *top || self.path.waypoints.iter().any(|waypoint| waypoint.id == *top)
    }

    pub fn root(&self) -> NodeId {
        self.path.waypoints.last().map_or(self.me, |root| root.id)
    }

    /// Hops to the root.
    pub fn rank(&self) -> u8 {
        self.path.waypoints.len() as u8
    }

    /// The child through which `id` is reached, if it is below.
    pub fn way_down(&self, id: &NodeId) -> Option<NodeId> {
        self.descendants.get(id).map(|(via, _)| *via)
    }

    /// Whether packets would go the same ways as under another view, and commands under the same term.
    pub fn has_the_same_links(&self, other: &Self) -> bool {
        let attachment = |view: &Self| view.parent.as_ref().map(|parent| (parent.id, parent.serial));
        attachment(self) == attachment(other)
            && self.fence == other.fence
            && self.children.keys().eq(other.children.keys())
            && self.laterals == other.laterals
            && (Arc::ptr_eq(&self.descendants, &other.descendants) || self.descendants == other.descendants)
    }

    /// Whether packets may come and go over the link to this peer.
    pub fn is_neighbour(&self, peer: &NodeId) -> bool {
        self.parent_id() == Some(*peer) || self.children.contains_key(peer) || self.laterals.contains(peer)
    }

    /// Peers over links of the tree: parent and children.
    pub fn tree_peers(&self) -> BTreeSet<NodeId> {
        self.parent_id().into_iter().chain(self.children.keys().copied()).collect()
    }

    /// Peers over links that may become ones of the tree: the backup, and those we are backup of.
    pub fn backup_peers(&self) -> BTreeSet<NodeId> {
        self.backup.into_iter().chain(self.reserved.iter().copied()).collect()
    }

    /// What this node tells its children of the way up.
    pub fn path_for_children(&self) -> Path {
        let me =
            Waypoint { id: self.me, name: self.name.clone(), level: self.level, effective_level: self.effective_level };
        let waypoints = std::iter::once(me).chain(self.path.waypoints.iter().cloned()).collect();
        let autonomous = self.standing == Standing::Autonomous || self.path.autonomous;
        let account = if self.parent.is_some() { self.path.account } else { self.own_account };
        Path { waypoints, account, fence: self.fence, autonomous }
    }
}
