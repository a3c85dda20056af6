//! Nodes by number: names are compared once, when they come in, and not for each of two million instances in each plan.
//!
//! A number is given to a node when its name is first met, and never to another. It means something inside of one index
//! only: whatever leaves the planner has names.

use std::collections::BTreeMap;

use rung_model::NodeId;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct NodeNumber(u32);

impl NodeNumber {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Numbers {
    by_name: BTreeMap<NodeId, NodeNumber>,
    names: Vec<NodeId>,
}

impl Numbers {
    pub fn ensure(&mut self, node: &NodeId) -> NodeNumber {
        if let Some(number) = self.by_name.get(node) {
            return *number;
        }
        let number = NodeNumber(u32::try_from(self.names.len()).expect("nobody has four billion nodes"));
        self.names.push(node.clone());
        self.by_name.insert(node.clone(), number);
        number
    }

    pub fn find(&self, node: &NodeId) -> Option<NodeNumber> {
        self.by_name.get(node).copied()
    }

    pub fn name(&self, number: NodeNumber) -> &NodeId {
        &self.names[number.index()]
    }

    /// In the order of numbers.
    pub fn names(&self) -> &[NodeId] {
        &self.names
    }

    /// In the order of names, which does not hang on who came first.
    pub fn by_name(&self) -> impl Iterator<Item = (&NodeId, NodeNumber)> {
        self.by_name.iter().map(|(name, number)| (name, *number))
    }
}
