//! Routing decisions: a pure function of the view, the packet and where it came from.

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::packet::{DataPacket, Direction, Target};
use crate::proto::topology::View;

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

/// Decides about a packet that came over a link of the tree, or from this node itself (`from` = `None`).
///
/// A packet never goes back to where it came from, and one for everyone crosses each link of the tree once.
pub fn decide(view: &View, packet: &DataPacket, from: Option<NodeId>) -> RoutingDecision {
    let most = if packet.direction == Direction::Lateral { Limits::COORDINATION_HOPS } else { Limits::HOPS };
    if packet.hops > most {
        return RoutingDecision::Drop("too_many_hops");
    }
    if from.is_some() && packet.source == view.me {
        return RoutingDecision::Drop("own_packet");
    }
    match packet.target {
        Target::Everyone => {
            let ways: Vec<_> = neighbours(view).filter(|peer| Some(*peer) != from).collect();
            match ways.is_empty() {
                true => RoutingDecision::Consume,
                false => RoutingDecision::ConsumeAndForwardMulticast(ways),
            }
        }
        Target::Children if from.is_none() => {
            RoutingDecision::ForwardMulticast(view.children.keys().copied().collect())
        }
        Target::Children if from == view.parent_id() => RoutingDecision::Consume,
        Target::Children => RoutingDecision::Drop("not_for_me"),
        Target::Node(id) if id == view.me => RoutingDecision::Consume,
        Target::Node(id) => {
            let way = view.way_down(&id).or(view.parent_id()).filter(|way| Some(*way) != from);
            way.map_or(RoutingDecision::Drop("unroutable"), RoutingDecision::Forward)
        }
    }
}

fn neighbours(view: &View) -> impl Iterator<Item = NodeId> {
    view.parent_id().into_iter().chain(view.children.keys().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Keypair, NodeName};
    use crate::level::Level;
    use crate::proto::packet::{Command, Order, PacketType, Payload};
    use crate::proto::topology::{ChildView, Descendant, ParentView, Tenure};
    use crate::time::Time;
    use std::sync::Arc;
    use uuid::Uuid;

    fn id(n: u8) -> NodeId {
        Keypair::from_seed([n; 32]).id()
    }

    /// Node 1 with parent 2, children 3 and 4, and node 5 below 3.
    fn view() -> View {
        let name = NodeName::new("n").unwrap();
        let mut view = View::alone(id(1), name.clone(), Level::SQUAD, Tenure::default(), 16);
        let tenure = Tenure::default();
        view.parent = Some(ParentView { id: id(2), tenure, serial: 1, since: Time::ZERO });
        let child = ChildView { tenure, serial: 1, effective_level: Level::PLATFORM, since: Time::ZERO };
        view.children.extend([(id(3), child), (id(4), child)]);
        let below = Arc::make_mut(&mut view.descendants);
        for (node, via) in [(3, 3), (4, 4), (5, 3)] {
            let level = Level::PLATFORM;
            let parent = if node == 5 { id(3) } else { id(1) };
            let descendant =
                Descendant { id: id(node), name: name.clone(), level, effective_level: level, parent, version: (0, 0) };
            below.insert(id(node), (id(via), descendant));
        }
        view
    }

    fn packet(target: Target) -> DataPacket {
        let command = Command { id: Uuid::nil(), issuer: id(2), order: Order::Host("hold".into()), remaining_ms: 1000 };
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

    fn ways(decision: RoutingDecision) -> Vec<NodeId> {
        match decision {
            RoutingDecision::ConsumeAndForwardMulticast(mut ways) | RoutingDecision::ForwardMulticast(mut ways) => {
                ways.sort();
                ways
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn everyone_is_reached_over_every_link_but_the_one_it_came_by() {
        let mut below = vec![id(3), id(4)];
        below.sort();
        assert_eq!(ways(decide(&view(), &packet(Target::Everyone), Some(id(2)))), below);
        let mut others = vec![id(2), id(4)];
        others.sort();
        assert_eq!(ways(decide(&view(), &packet(Target::Everyone), Some(id(3)))), others);
    }

    #[test]
    fn one_node_is_reached_down_its_branch_or_up() {
        let down = decide(&view(), &packet(Target::Node(id(5))), Some(id(2)));
        assert_eq!(down, RoutingDecision::Forward(id(3)));
        let up = decide(&view(), &packet(Target::Node(id(9))), Some(id(3)));
        assert_eq!(up, RoutingDecision::Forward(id(2)));
        let back = decide(&view(), &packet(Target::Node(id(9))), Some(id(2)));
        assert_eq!(back, RoutingDecision::Drop("unroutable"));
        assert_eq!(decide(&view(), &packet(Target::Node(id(1))), Some(id(2))), RoutingDecision::Consume);
    }

    #[test]
    fn children_are_the_sources_own() {
        assert_eq!(decide(&view(), &packet(Target::Children), Some(id(2))), RoutingDecision::Consume);
        assert_eq!(decide(&view(), &packet(Target::Children), Some(id(3))), RoutingDecision::Drop("not_for_me"));
        let own = DataPacket { source: id(1), ..packet(Target::Children) };
        assert_eq!(ways(decide(&view(), &own, None)).len(), 2);
    }

    #[test]
    fn loops_end() {
        let tired = DataPacket { hops: Limits::HOPS + 1, ..packet(Target::Everyone) };
        assert_eq!(decide(&view(), &tired, Some(id(2))), RoutingDecision::Drop("too_many_hops"));
        let own = DataPacket { source: id(1), ..packet(Target::Everyone) };
        assert_eq!(decide(&view(), &own, Some(id(2))), RoutingDecision::Drop("own_packet"));
    }
}
