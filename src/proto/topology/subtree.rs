//! Who is below, and by which child: each child claims those below it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::topology::Descendant;

/// Everyone below. Two children may claim the same node while it moves, or because it asked both: its latest request
/// counts. It may be the one that it takes back, so the other claim is not forgotten.
#[derive(Clone, Debug, Default)]
pub(super) struct Subtree {
    known: Arc<BTreeMap<NodeId, (NodeId, Descendant)>>,
    /// Other claims, by whom they are of and who makes them.
    others: BTreeMap<(NodeId, NodeId), Descendant>,
}

impl Subtree {
    /// By id: by which child, and what is known of it.
    pub fn known(&self) -> &Arc<BTreeMap<NodeId, (NodeId, Descendant)>> {
        &self.known
    }

    pub fn get(&self, id: &NodeId) -> Option<&Descendant> {
        self.known.get(id).map(|(_, descendant)| descendant)
    }

    /// How many claims are not preferred.
    pub fn other_claims(&self) -> usize {
        self.others.len()
    }

    /// A child says that somebody is below it; returns whether that changes what is known.
    pub fn claim(&mut self, child: NodeId, descendant: Descendant) -> bool {
        let id = descendant.id;
        match self.known.get(&id) {
            None if self.known.len() >= Limits::DESCENDANTS => return false,
            Some((by, known)) if *by == child && *known == descendant => return false,
            Some((by, known)) if *by != child => {
                if known.version > descendant.version {
                    self.set_aside(child, descendant);
                    return false;
                }
                let (by, known) = (*by, known.clone());
                self.set_aside(by, known);
            }
            _ => {}
        }
        self.others.remove(&(id, child));
        Arc::make_mut(&mut self.known).insert(id, (child, descendant));
        self.prefer_latest(id);
        true
    }

    /// A child says that somebody is not below it any more; returns whether that changes what is known.
    pub fn withdraw(&mut self, child: NodeId, id: NodeId) -> bool {
        self.others.remove(&(id, child));
        let changes = self.known.get(&id).is_some_and(|(by, _)| *by == child);
        if changes {
            Arc::make_mut(&mut self.known).remove(&id);
            self.prefer_latest(id);
        }
        changes
    }

    /// Everyone that a child claims.
    pub fn claimed_by(&self, child: NodeId) -> Vec<NodeId> {
        let known = self.known.iter().filter(|(_, (by, _))| *by == child).map(|(&id, _)| id);
        known.chain(self.others.keys().filter(|(_, by)| *by == child).map(|(id, _)| *id)).collect()
    }

    /// As many are kept as there may be nodes; what is more is known again when its child reports anew.
    fn set_aside(&mut self, child: NodeId, descendant: Descendant) {
        let claim = (descendant.id, child);
        if self.others.len() < Limits::DESCENDANTS || self.others.contains_key(&claim) {
            self.others.insert(claim, descendant);
        }
    }

    fn prefer_latest(&mut self, id: NodeId) {
        let claims = (id, NodeId::from_bytes([0; 32]))..=(id, NodeId::from_bytes([255; 32]));
        let latest = self.others.range(claims).max_by_key(|(_, other)| other.version);
        let Some((&claim, other)) = latest else { return };
        if self.get(&id).is_some_and(|known| known.version >= other.version) {
            return;
        }
        if let Some(other) = self.others.remove(&claim)
            && let Some((by, known)) = Arc::make_mut(&mut self.known).insert(id, (claim.1, other))
        {
            self.set_aside(by, known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeName;
    use crate::level::Level;

    fn id(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    /// That node, by its request to that parent.
    fn below(parent: u8, serial: u64) -> Descendant {
        Descendant {
            id: id(9),
            name: NodeName::new("leaf").unwrap(),
            level: Level::PLATFORM,
            effective_level: Level::PLATFORM,
            parent: id(parent),
            capabilities: Vec::new(),
            account: None,
            version: (1, serial),
        }
    }

    #[test]
    fn who_asked_two_is_below_the_one_that_is_left() {
        let parent = |subtree: &Subtree| subtree.get(&id(9)).map(|leaf| leaf.parent);
        for first_told_first in [true, false] {
            let mut subtree = Subtree::default();
            let (first, second) = ((id(1), below(1, 1)), (id(2), below(2, 2)));
            let claims = if first_told_first { [first, second] } else { [second, first] };
            for (child, leaf) in claims {
                subtree.claim(child, leaf);
            }
            assert_eq!(parent(&subtree), Some(id(2)), "its latest request counts");
            assert_eq!((subtree.claimed_by(id(1)), subtree.claimed_by(id(2))), (vec![id(9)], vec![id(9)]));
            // It took the first one's answer.
            assert!(subtree.withdraw(id(2), id(9)));
            assert_eq!(parent(&subtree), Some(id(1)));
            assert!(subtree.withdraw(id(1), id(9)));
            assert_eq!((parent(&subtree), subtree.others.len()), (None, 0));
        }
    }

    #[test]
    fn a_child_may_take_back_a_later_request_for_an_earlier_one() {
        let mut subtree = Subtree::default();
        assert!(subtree.claim(id(1), below(3, 4)));
        assert!(!subtree.claim(id(2), below(5, 3)));
        // Below the first child it is the earlier one's now: that of the second is later.
        assert!(subtree.claim(id(1), below(4, 2)));
        assert_eq!(subtree.get(&id(9)), Some(&below(5, 3)));
        assert!(subtree.withdraw(id(2), id(9)));
        assert_eq!(subtree.get(&id(9)), Some(&below(4, 2)));
        assert!(!subtree.claim(id(1), below(4, 2)));
    }
}
