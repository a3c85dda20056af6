//! The invariants of several nodes: 3, 4, 5 and 7 of `ARCHITECTURE.md`.

use rung_model::{AssignedInstance, Assignment, Document as _, Generation, InstanceId, keys};

use rung_store::Revision;

use super::stage::{ASKED, MEMORY, is_exclusive};
use super::{NODES, Story};

impl Story {
    /// Invariant 3: a fenced leader changes nothing.
    pub(super) fn audit_leader(&mut self, server: usize, fence: Option<Revision>) {
        let leads = self.store.get(keys::LEADER).value.map(|held| held.created);
        if fence.is_none() || fence != leads {
            self.fail(format!("server {server} wrote although another leads"));
        }
    }

    /// Invariant 3: generations never go back.
    pub(super) fn audit_generation(&mut self, node: usize, known: Generation, taken: Generation) {
        if taken < known {
            self.fail(format!("the assignment of node-{node} went back from {known} to {taken}"));
        }
    }

    /// Invariant 5: never two of what is exclusive, and each with a higher token than all before it. Invariant 4: a node is
    /// not given more than it has.
    pub(super) fn audit_start(&mut self, node: usize, id: &InstanceId, assigned: &AssignedInstance) {
        if is_exclusive(assigned) {
            self.audit_exclusive(node, id, assigned);
        }
        let here = self.machines[node].processes.values().filter(|process| !is_exclusive(&process.assigned));
        let used = (here.count() as u64 + u64::from(!is_exclusive(assigned))) * ASKED;
        if used > MEMORY {
            self.fail(format!("node-{node} runs {used} bytes, and has {MEMORY}"));
        }
    }

    fn audit_exclusive(&mut self, node: usize, id: &InstanceId, assigned: &AssignedInstance) {
        for other in 0..NODES {
            let alive = self.machines[other].processes.iter();
            let mut alive = alive.filter(|(_, process)| is_exclusive(&process.assigned));
            if let Some((alive, _)) = alive.next() {
                let what = format!("{alive} on node-{other} and {id} on node-{node} are alive");
                return self.fail(what);
            }
        }
        let Some(fence) = assigned.fence else { return self.fail(format!("{id} has no fencing token")) };
        // What was started last may be started again.
        if fence < self.highest_fence {
            self.fail(format!("{id} has the token {fence}, and {} was given before", self.highest_fence));
        }
        self.highest_fence = fence;
        let was_elsewhere = self.last_home.replace(node).is_some_and(|home| home != node);
        self.summary.moves += u64::from(was_elsewhere);
    }

    /// Invariant 7: when faults stop, it converges. Invariant 6: what was acknowledged is there.
    pub(super) fn look(&mut self) {
        self.is_over = true;
        if let Some(told) = self.scaled_to
            && self.batch_wanted() != told as usize
        {
            self.fail(format!(
                "{told} others were asked for and acknowledged, {} stand there",
                self.batch_wanted()
            ));
        }
        let of = |exclusive: bool| {
            let processes = self.machines.iter().flat_map(|machine| machine.processes.values());
            processes.filter(|process| is_exclusive(&process.assigned) == exclusive).count()
        };
        let (exclusive, batch, wanted) = (of(true), of(false), self.batch_wanted());
        if (exclusive, batch) != (1, wanted) {
            self.fail(format!(
                "it is not at rest: {exclusive} of 1 exclusive and {batch} of {wanted} others are alive"
            ));
        }
        for machine in 0..NODES {
            let id = self.machines[machine].id.clone();
            let held = self.store.get(&keys::assign(&id)).value;
            let assigned = held.map_or(0, |entry| {
                let assignment = Assignment::from_json(&entry.value).expect("only documents are stored");
                assignment.instances.len()
            });
            let alive = self.machines[machine].processes.len();
            if assigned != alive {
                self.fail(format!("it is not at rest: {id} has {assigned} instances, {alive} are alive"));
            }
        }
    }
}
