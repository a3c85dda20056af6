//! Which instances are assigned, by app and service, and what their nodes have given out to them.
//!
//! A part of the world's index: kept by each document that is taken in, equal to one that is counted from scratch. At two
//! million instances no plan can afford to look at all of them to find those of one service.

use std::collections::BTreeMap;

use rung_model::{
    AppName, AssignedInstance, Assignment, InstanceId, Intent, NodeId, Release, ReleaseNumber, ServiceName,
};

use crate::world::Held;

type Instances = BTreeMap<InstanceId, NodeId>;
pub(crate) type Releases = BTreeMap<AppName, BTreeMap<ReleaseNumber, Held<Release>>>;

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Placed {
    by_app: BTreeMap<AppName, BTreeMap<ServiceName, Instances>>,
    given: BTreeMap<NodeId, Given>,
    making_way: Instances,
}

/// What a node has given to its instances, by what their releases ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Given {
    pub memory_bytes: u64,
    /// Ceilings may add up to more than there is.
    pub cpu_millis: u64,
    pub ports: u32,
    /// Instances that shall run.
    pub running: u32,
}

impl Given {
    pub fn of(assigned: &AssignedInstance, release: Option<&Release>) -> Self {
        let service = release.and_then(|release| release.file.services.get(&assigned.service));
        Self {
            memory_bytes: service.and_then(|service| service.memory_bytes).unwrap_or(0),
            cpu_millis: service.and_then(|service| service.cpu_millis).unwrap_or(0).into(),
            ports: service.is_some_and(|service| service.port).into(),
            running: (assigned.intent == Intent::Run).into(),
        }
    }

    pub fn take(&mut self, more: Self) {
        self.memory_bytes += more.memory_bytes;
        self.cpu_millis += more.cpu_millis;
        self.ports += more.ports;
        self.running += more.running;
    }

    pub fn give_back(&mut self, less: Self) {
        // What was taken is given back by the same release.
        self.memory_bytes = self.memory_bytes.saturating_sub(less.memory_bytes);
        self.cpu_millis = self.cpu_millis.saturating_sub(less.cpu_millis);
        self.ports = self.ports.saturating_sub(less.ports);
        self.running = self.running.saturating_sub(less.running);
    }
}

impl Placed {
    /// A node's assignment was written anew, or removed.
    pub fn replace(
        &mut self,
        node: &NodeId,
        before: Option<&Assignment>,
        after: Option<&Assignment>,
        releases: &Releases,
    ) {
        let none = BTreeMap::new();
        let was = before.map_or(&none, |assignment| &assignment.instances);
        let is = after.map_or(&none, |assignment| &assignment.instances);
        for (id, assigned) in was {
            if is.get(id) != Some(assigned) {
                self.remove(node, id, assigned, releases);
            }
        }
        for (id, assigned) in is {
            if was.get(id) != Some(assigned) {
                self.add(node, id, assigned, releases);
            }
        }
        match after {
            Some(_) => drop(self.given.entry(node.clone()).or_default()),
            None => drop(self.given.remove(node)),
        }
    }

    fn add(&mut self, node: &NodeId, id: &InstanceId, assigned: &AssignedInstance, releases: &Releases) {
        let of_app = self.by_app.entry(assigned.app.clone()).or_default();
        of_app.entry(assigned.service.clone()).or_default().insert(id.clone(), node.clone());
        if assigned.making_way.is_some() {
            self.making_way.insert(id.clone(), node.clone());
        }
        self.given.entry(node.clone()).or_default().take(weigh(assigned, releases));
    }

    fn remove(&mut self, node: &NodeId, id: &InstanceId, assigned: &AssignedInstance, releases: &Releases) {
        if let Some(of_app) = self.by_app.get_mut(&assigned.app) {
            if let Some(of_service) = of_app.get_mut(&assigned.service) {
                of_service.remove(id);
                if of_service.is_empty() {
                    of_app.remove(&assigned.service);
                }
            }
            if of_app.is_empty() {
                self.by_app.remove(&assigned.app);
            }
        }
        self.making_way.remove(id);
        self.given.entry(node.clone()).or_default().give_back(weigh(assigned, releases));
    }

    /// A release was written, or removed: what its instances weigh is known by it. In a listing it comes after them.
    pub fn reweigh(
        &mut self,
        app: &AppName,
        number: ReleaseNumber,
        before: Option<&Release>,
        after: Option<&Release>,
        assignments: &BTreeMap<NodeId, Held<Assignment>>,
    ) {
        let of_app = self.by_app.get(app).into_iter().flat_map(BTreeMap::values).flatten();
        for (id, node) in of_app {
            let assigned = assignments.get(node).and_then(|held| held.value.instances.get(id));
            let Some(assigned) = assigned.filter(|assigned| assigned.release == number) else { continue };
            let given = self.given.entry(node.clone()).or_default();
            given.give_back(Given { running: 0, ..Given::of(assigned, before) });
            given.take(Given { running: 0, ..Given::of(assigned, after) });
        }
    }

    pub fn services(&self, app: &AppName) -> impl Iterator<Item = &ServiceName> {
        self.by_app.get(app).into_iter().flat_map(BTreeMap::keys)
    }

    pub fn instances(
        &self,
        app: &AppName,
        service: &ServiceName,
    ) -> impl Iterator<Item = (&InstanceId, &NodeId)> {
        self.by_app.get(app).and_then(|of_app| of_app.get(service)).into_iter().flatten()
    }

    /// Instances that shall not stay where they are.
    pub fn making_way(&self) -> impl Iterator<Item = (&InstanceId, &NodeId)> {
        self.making_way.iter()
    }

    pub fn given(&self, node: &NodeId) -> Given {
        self.given.get(node).copied().unwrap_or_default()
    }
}

fn weigh(assigned: &AssignedInstance, releases: &Releases) -> Given {
    let release = releases.get(&assigned.app).and_then(|of_app| of_app.get(&assigned.release));
    Given::of(assigned, release.map(|held| &held.value))
}
