//! The invariants of several nodes: 3, 4, 5 and 7 of `ARCHITECTURE.md`.

use std::collections::BTreeSet;

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
        let asks = |assigned: &AssignedInstance| assigned.service.as_str() == "batch";
        let here = self.machines[node].processes.values().filter(|process| asks(&process.assigned));
        let used = (here.count() as u64 + u64::from(asks(assigned))) * ASKED;
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
        for (name, told) in self.scaled_to.clone() {
            let stands = self.wanted(name);
            if stands != told as usize {
                self.fail(format!("{told} of {name} were asked for and acknowledged, {stands} stand there"));
            }
        }
        for (name, wanted) in [("ledger", 1), ("batch", self.wanted("batch")), ("web", self.wanted("web"))] {
            let alive = self.alive_of(name).len();
            if alive != wanted {
                self.fail(format!("it is not at rest: {alive} of {wanted} of {name} are alive"));
            }
        }
        self.look_at_routes();
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

    pub(super) fn alive_of(&self, service: &str) -> BTreeSet<InstanceId> {
        let processes = self.machines.iter().flat_map(|machine| &machine.processes);
        let of_it = processes.filter(|(_, process)| process.assigned.service.as_str() == service);
        of_it.map(|(id, _)| id.clone()).collect()
    }
}
