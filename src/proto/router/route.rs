//! Routing decisions: a pure function of the view, the packet and where it came from.

use std::collections::BTreeSet;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::election::Role;
use crate::proto::packet::{DataPacket, Direction, Target};
use crate::proto::topology::{Descendant, View, capability_hash};

/// What to do with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoutingDecision {
    Consume,
    Forward(NodeId),
    ConsumeAndForward(NodeId),
    ForwardMulticast(Vec<NodeId>),
    ConsumeAndForwardMulticast(Vec<NodeId>),
    /// The label says why.
    Drop(&'static str),
}

impl RoutingDecision {
    pub fn consumes(&self) -> bool {
        matches!(self, Self::Consume | Self::ConsumeAndForward(_) | Self::ConsumeAndForwardMulticast(_))
    }

    /// Where it goes on to.
    pub fn ways(&self) -> &[NodeId] {
        match self {
            Self::Forward(way) | Self::ConsumeAndForward(way) => std::slice::from_ref(way),
            Self::ForwardMulticast(ways) | Self::ConsumeAndForwardMulticast(ways) => ways,
            Self::Consume | Self::Drop(_) => &[],
        }
    }
}

/// Decides about a packet that came over a link of the tree, or from this node itself (`from` = `None`).
///
/// A packet never goes back to where it came from, it goes only where targets are, and it crosses each link once.
pub fn decide(view: &View, packet: &DataPacket, from: Option<NodeId>) -> RoutingDecision {
    let most = if packet.direction == Direction::Lateral { Limits::COORDINATION_HOPS } else { Limits::HOPS };
    if packet.hops > most {
        return RoutingDecision::Drop("too_many_hops");
    }
    if from.is_some() && packet.source == view.me {
        return RoutingDecision::Drop("own_packet");
    }
    let (consume, mut ways) = reach(view, &packet.target, from);
    ways.retain(|way| Some(*way) != from);
    match (consume, ways.len()) {
        (true, 0) => RoutingDecision::Consume,
        (true, 1) => RoutingDecision::ConsumeAndForward(ways[0]),
        (true, _) => RoutingDecision::ConsumeAndForwardMulticast(ways),
        (false, 0) => RoutingDecision::Drop("unroutable"),
        (false, 1) => RoutingDecision::Forward(ways[0]),
        (false, _) => RoutingDecision::ForwardMulticast(ways),
    }
}

/// Whether this node is a target, and the links behind which there are, or may be, others.
fn reach(view: &View, target: &Target, from: Option<NodeId>) -> (bool, Vec<NodeId>) {
    let children = || view.children.keys().copied();
    match target {
        Target::Everyone => (true, view.parent_id().into_iter().chain(children()).collect()),
        Target::Children => match from {
            None => (false, children().collect()),
            Some(peer) => (view.parent_id() == Some(peer), Vec::new()),
        },
        Target::Laterals => match from {
            None => (false, view.laterals.iter().copied().collect()),
            // A leader knows members whom the source does not.
            Some(_) if view.role == Role::Leader => (true, view.laterals.iter().copied().collect()),
            Some(_) => (true, Vec::new()),
        },
        Target::Node(id) if *id == view.me => (true, Vec::new()),
        Target::Node(id) => {
            let lateral = view.laterals.get(id).copied().filter(|_| from.is_none());
            (false, view.way_down(id).or(lateral).or(view.parent_id()).into_iter().collect())
        }
        Target::Subtree(top) if view.is_within(top) => {
            let above = view.parent_id().filter(|_| view.me != *top);
            (true, above.into_iter().chain(children()).collect())
        }
        Target::Subtree(top) => (false, view.way_down(top).or(view.parent_id()).into_iter().collect()),
        Target::Level(level) => (view.level == *level, everywhere(view, |below| below.level == *level)),
        Target::Capability(kind) => {
            let hash = capability_hash(kind);
            let mine = view.capabilities.iter().any(|own| own.kind == *kind);
            (mine, everywhere(view, |below| below.capabilities.contains(&hash)))
        }
        Target::Account(account) if view.own_account == Some(*account) => (true, Vec::new()),
        Target::Account(account) => {
            let below = view.descendants.values().find(|(_, below)| below.account == Some(*account));
            (false, below.map(|(via, _)| *via).or(view.parent_id()).into_iter().collect())
        }
    }
}

/// Up, where everybody else may be, and down to the children with somebody like that among them.
fn everywhere(view: &View, like: impl Fn(&Descendant) -> bool) -> Vec<NodeId> {
    let below: BTreeSet<_> = view.descendants.values().filter(|(_, d)| like(d)).map(|(via, _)| *via).collect();
    view.parent_id().into_iter().chain(below).collect()
}

/// Whether a neighbour that a packet is passed on to is known to be a target itself.
pub fn is_target(view: &View, target: &Target, peer: NodeId) -> bool {
    let above = view.path.waypoints.first().filter(|above| above.id == peer);
    let below = view.descendants.get(&peer).map(|(_, below)| below);
    match target {
        Target::Everyone | Target::Children | Target::Laterals => true,
        Target::Node(id) => *id == peer,
        // Passed on within the subtree, everybody who gets it is in it.
        Target::Subtree(top) => *top == peer || view.is_within(top),
        Target::Level(level) => above.map(|a| a.level).or(below.map(|d| d.level)) == Some(*level),
        Target::Capability(kind) => below.is_some_and(|d| d.capabilities.contains(&capability_hash(kind))),
        Target::Account(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Keypair, NodeName};
    use crate::level::Level;
    use crate::proto::beacon::Capability;
    use crate::proto::packet::{Command, Order, PacketType, Payload};
    use crate::proto::topology::{ChildView, ParentView, Path, Tenure, Waypoint};
    use crate::time::Time;
    use std::sync::Arc;
    use uuid::Uuid;

    fn id(n: u8) -> NodeId {
        Keypair::from_seed([n; 32]).id()
    }

    /// Node 1, a leader with a radar, with parent 2, children 3 and 4, laterals 6 and 7, and node 5, with a camera, below 3.
    fn view() -> View {
        let name = NodeName::new("n").unwrap();
        let mut view = View::alone(id(1), name.clone(), Level::SQUAD, Tenure::default(), 16);
        let tenure = Tenure::default();
        view.parent = Some(ParentView { id: id(2), tenure, serial: 1, since: Time::ZERO });
        let child = ChildView { tenure, serial: 1, effective_level: Level::PLATFORM, fence: None, since: Time::ZERO };
        view.children.extend([(id(3), child), (id(4), child)]);
        view.laterals.extend([id(6), id(7)]);
        view.role = Role::Leader;
        view.capabilities = vec![Capability { kind: "radar".into(), confidence_percent: 90 }].into();
        let above = Waypoint { id: id(2), name: name.clone(), level: Level::PLATOON, effective_level: Level::PLATOON };
        view.path = Arc::new(Path { waypoints: vec![above], ..Path::default() });
        let below = Arc::make_mut(&mut view.descendants);
        for (node, via) in [(3, 3), (4, 4), (5, 3)] {
            let level = Level::PLATFORM;
            let parent = if node == 5 { id(3) } else { id(1) };
            let (id, via, name) = (id(node), id(via), name.clone());
            let capabilities = if node == 5 { vec![capability_hash("camera")] } else { Vec::new() };
            let (account, version) = (None, (0, 0));
            let descendant =
                Descendant { id, name, level, effective_level: level, parent, capabilities, account, version };
            below.insert(id, (via, descendant));
        }
        view
    }

    fn packet(target: Target) -> DataPacket {
        let command = Command {
            id: Uuid::nil(),
            issuer: id(2),
            order: Order::Host("hold".into()),
            fence: None,
            remaining_ms: 1000,
        };
        DataPacket {
            id: Uuid::nil(),
            source: id(2),
            target,
            direction: Direction::Downward,
            kind: PacketType::Command,
            epoch: 0,
            sequence: 1,
            hops: 1,
            payload: Payload::Command(command),
        }
    }

    fn sorted(ids: &[u8]) -> Vec<NodeId> {
        let mut ids: Vec<_> = ids.iter().map(|&n| id(n)).collect();
        ids.sort();
        ids
    }

    /// Whether it is consumed, and where it goes on to.
    fn decided(target: Target, from: Option<u8>) -> (bool, Vec<NodeId>) {
        let own = DataPacket { source: id(1), ..packet(target.clone()) };
        let packet = if from.is_none() { own } else { packet(target) };
        let decision = decide(&view(), &packet, from.map(id));
        let mut ways = decision.ways().to_vec();
        ways.sort();
        (decision.consumes(), ways)
    }

    #[test]
    fn everyone_is_reached_over_every_link_but_the_one_it_came_by() {
        assert_eq!(decided(Target::Everyone, Some(2)), (true, sorted(&[3, 4])));
        assert_eq!(decided(Target::Everyone, Some(3)), (true, sorted(&[2, 4])));
        assert_eq!(decided(Target::Everyone, None), (true, sorted(&[2, 3, 4])));
    }

    #[test]
    fn one_node_is_reached_down_its_branch_or_up() {
        assert_eq!(decided(Target::Node(id(5)), Some(2)), (false, sorted(&[3])));
        assert_eq!(decided(Target::Node(id(9)), Some(3)), (false, sorted(&[2])));
        assert_eq!(decided(Target::Node(id(9)), Some(2)), (false, Vec::new()));
        assert_eq!(decided(Target::Node(id(1)), Some(2)), (true, Vec::new()));
        let lost = decide(&view(), &packet(Target::Node(id(9))), Some(id(2)));
        assert_eq!(lost, RoutingDecision::Drop("unroutable"));
    }

    #[test]
    fn children_are_the_sources_own() {
        assert_eq!(decided(Target::Children, Some(2)), (true, Vec::new()));
        assert_eq!(decided(Target::Children, Some(3)), (false, Vec::new()));
        assert_eq!(decided(Target::Children, None), (false, sorted(&[3, 4])));
    }

    #[test]
    fn a_subtree_is_gone_to_and_then_covered() {
        // From above to a node below, from below to somebody else's subtree, and within one's own.
        assert_eq!(decided(Target::Subtree(id(3)), Some(2)), (false, sorted(&[3])));
        assert_eq!(decided(Target::Subtree(id(9)), Some(3)), (false, sorted(&[2])));
        assert_eq!(decided(Target::Subtree(id(1)), Some(2)), (true, sorted(&[3, 4])));
        assert_eq!(decided(Target::Subtree(id(1)), Some(3)), (true, sorted(&[4])));
        // The parent's subtree contains this node, and goes on above it.
        assert_eq!(decided(Target::Subtree(id(2)), Some(3)), (true, sorted(&[2, 4])));
        assert_eq!(decided(Target::Subtree(id(2)), Some(2)), (true, sorted(&[3, 4])));
    }

    #[test]
    fn a_level_and_a_capability_are_looked_for_only_where_they_are() {
        assert_eq!(decided(Target::Level(Level::PLATFORM), Some(2)), (false, sorted(&[3, 4])));
        assert_eq!(decided(Target::Level(Level::SQUAD), Some(2)), (true, Vec::new()));
        assert_eq!(decided(Target::Level(Level::COMPANY), Some(3)), (false, sorted(&[2])));
        assert_eq!(decided(Target::Capability("camera".into()), Some(2)), (false, sorted(&[3])));
        assert_eq!(decided(Target::Capability("radar".into()), Some(2)), (true, Vec::new()));
        assert_eq!(decided(Target::Capability("sonar".into()), Some(2)), (false, Vec::new()));
    }

    #[test]
    fn laterals_are_reached_directly_and_through_the_leader() {
        assert_eq!(decided(Target::Laterals, None), (false, sorted(&[6, 7])));
        // This node leads, so it passes on to those whom the source may not know.
        assert_eq!(decided(Target::Laterals, Some(6)), (true, sorted(&[7])));
        assert_eq!(decided(Target::Node(id(7)), None), (false, sorted(&[7])));
        let mut member = view();
        member.role = Role::Member;
        assert_eq!(decide(&member, &packet(Target::Laterals), Some(id(6))), RoutingDecision::Consume);
    }

    #[test]
    fn loops_end() {
        let tired = DataPacket { hops: Limits::HOPS + 1, ..packet(Target::Everyone) };
        assert_eq!(decide(&view(), &tired, Some(id(2))), RoutingDecision::Drop("too_many_hops"));
        let sideways = DataPacket { hops: Limits::COORDINATION_HOPS + 1, ..packet(Target::Laterals) };
        let sideways = DataPacket { direction: Direction::Lateral, ..sideways };
        assert_eq!(decide(&view(), &sideways, Some(id(6))), RoutingDecision::Drop("too_many_hops"));
        let own = DataPacket { source: id(1), ..packet(Target::Everyone) };
        assert_eq!(decide(&view(), &own, Some(id(2))), RoutingDecision::Drop("own_packet"));
    }
}
