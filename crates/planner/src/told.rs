//! What a plan writes anew of one node: its assignment, and the instances that are given to it.
//!
//! Those lie beside the document until the plan's end, each as its id and whose kind it is: two million of them one by one
//! into sorted maps would cost more than deciding on them.

use rung_model::{AssignedInstance, Assignment, InstanceId};

use crate::numbers::NodeNumber;
use crate::placed::{Given, Placement};

/// Instances of one service that a plan makes, all alike.
#[derive(Debug)]
pub(crate) struct Batch {
    pub instance: AssignedInstance,
    pub given: Given,
    pub made: Vec<(InstanceId, Placement)>,
}

/// Which one, by its place among those of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchNumber(u32);

#[derive(Debug, Default)]
pub(crate) struct Batches(Vec<Batch>);

impl Batches {
    pub fn begin(&mut self, instance: AssignedInstance, given: Given) -> BatchNumber {
        let number = BatchNumber(u32::try_from(self.0.len()).expect("a plan has no four billion batches"));
        self.0.push(Batch { instance, given, made: Vec::new() });
        number
    }

    pub fn get(&self, number: BatchNumber) -> &Batch {
        &self.0[number.0 as usize]
    }

    pub fn get_mut(&mut self, number: BatchNumber) -> &mut Batch {
        &mut self.0[number.0 as usize]
    }

    /// The index of the world does not know these yet.
    pub fn forget_made(&mut self) {
        self.0.iter_mut().for_each(|batch| batch.made = Vec::new());
    }
}

#[derive(Debug)]
pub(crate) struct Told {
    pub document: Assignment,
    fresh: Vec<(InstanceId, BatchNumber)>,
}

impl Told {
    pub fn new(document: Assignment) -> Self {
        Self { document, fresh: Vec::new() }
    }

    /// Gives the node one more, with an id that it never had before.
    pub fn mint(&mut self, number: BatchNumber, batch: &mut Batch, node: NodeNumber, letters: &str) {
        self.document.minted += 1;
        let AssignedInstance { app, service, .. } = &batch.instance;
        let id = InstanceId::mint(app, service, letters, self.document.minted);
        self.fresh.push((id.clone(), number));
        batch.made.push((id, Placement::of(node, &batch.instance, None)));
    }

    pub fn instance<'t>(&'t self, batches: &'t Batches, id: &InstanceId) -> Option<&'t AssignedInstance> {
        let fresh = || self.fresh.iter().find(|(fresh, _)| fresh == id);
        let known = self.document.instances.get(id);
        known.or_else(|| fresh().map(|(_, batch)| &batches.get(*batch).instance))
    }

    /// The whole document.
    pub fn document_mut(&mut self, batches: &Batches) -> &mut Assignment {
        if !self.fresh.is_empty() {
            let fresh = std::mem::take(&mut self.fresh).into_iter();
            let fresh = fresh.map(|(id, batch)| (id, batches.get(batch).instance.clone()));
            if self.document.instances.is_empty() {
                self.document.instances = fresh.collect();
            } else {
                self.document.instances.extend(fresh);
            }
        }
        &mut self.document
    }
}
