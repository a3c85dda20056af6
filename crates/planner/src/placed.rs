//! Which instances are assigned, by app and service, and what their nodes have given out to them.
//!
//! A part of the world's index: kept by each document that is taken in, equal to one that is counted from scratch. At two
//! million instances no plan can afford to look at all of them to find those of one service, nor to look up in its node's
//! two documents what is asked of each: it stands here, side by side.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use rung_model::{
    AppName, AssignedInstance, Assignment, DeploymentNumber, InstanceId, InstanceState, Intent, MakingWay,
    NodeId, Observed, ObservedInstance, Release, ReleaseNumber, ServiceName,
};

use crate::numbers::{NodeNumber, Numbers};
use crate::world::Held;

type Instances = BTreeMap<ByAge, Placement>;
pub(crate) type Releases = BTreeMap<AppName, BTreeMap<ReleaseNumber, Held<Release>>>;

#[derive(Debug, Clone, Default)]
pub(crate) struct Placed {
    numbers: Numbers,
    by_app: BTreeMap<AppName, BTreeMap<ServiceName, Instances>>,
    /// By the number of the node.
    given: Vec<Given>,
    making_way: BTreeMap<InstanceId, NodeId>,
}

impl PartialEq for Placed {
    /// Numbers are those of one index: what they stand for is compared.
    fn eq(&self, other: &Self) -> bool {
        self.making_way == other.making_way
            && self.given_by_name().eq(other.given_by_name())
            && self.spelled().eq(other.spelled())
    }
}

/// One instance, as its assignment has it and as its node saw it last.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Placement {
    pub node: NodeNumber,
    pub release: ReleaseNumber,
    pub cohort: DeploymentNumber,
    pub intent: Intent,
    pub making_way: Option<Box<MakingWay>>,
    /// `None` while its node has not reported on it.
    pub state: Option<InstanceState>,
    /// Where it listens, as its node says.
    pub endpoint: Option<SocketAddr>,
}

impl Placement {
    pub fn of(node: NodeNumber, assigned: &AssignedInstance, seen: Option<&ObservedInstance>) -> Self {
        let mut placement = Self {
            node,
            release: assigned.release,
            cohort: assigned.deployment,
            intent: assigned.intent,
            making_way: assigned.making_way.clone(),
            state: None,
            endpoint: None,
        };
        placement.see(seen);
        placement
    }

    fn see(&mut self, seen: Option<&ObservedInstance>) {
        self.state = seen.map(|seen| seen.state);
        self.endpoint = seen.and_then(|seen| seen.endpoint);
    }
}

/// Ids end with a count, so of those of one node the older ones are the shorter, and then the smaller.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ByAge(InstanceId);

impl Ord for ByAge {
    fn cmp(&self, other: &Self) -> Ordering {
        by_age(&self.0, &other.0)
    }
}

impl PartialOrd for ByAge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

pub(crate) fn by_age(a: &InstanceId, b: &InstanceId) -> Ordering {
    let (a, b) = (a.as_str(), b.as_str());
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
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
        Self::by(&assigned.service, assigned.intent, release)
    }

    fn by(service: &ServiceName, intent: Intent, release: Option<&Release>) -> Self {
        let service = release.and_then(|release| release.file.services.get(service));
        Self {
            memory_bytes: service.and_then(|service| service.memory_bytes).unwrap_or(0),
            cpu_millis: service.and_then(|service| service.cpu_millis).unwrap_or(0).into(),
            ports: service.is_some_and(|service| service.port).into(),
            running: (intent == Intent::Run).into(),
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
    /// The node's number, which it gets now if it has none.
    pub fn number(&mut self, node: &NodeId) -> NodeNumber {
        let number = self.numbers.ensure(node);
        if self.given.len() <= number.index() {
            self.given.resize(number.index() + 1, Given::default());
        }
        number
    }

    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    fn given_by_name(&self) -> impl Iterator<Item = (&NodeId, Given)> {
        let all = self.numbers.by_name().map(|(node, number)| (node, self.given(number)));
        all.filter(|(_, given)| *given != Given::default())
    }

    /// Every instance, with the name of its node.
    fn spelled(&self) -> impl Iterator<Item = (&AppName, &ServiceName, &InstanceId, &NodeId, Placement)> {
        let services = self.by_app.iter().flat_map(|(app, of_app)| {
            of_app.iter().map(move |(service, instances)| (app, service, instances))
        });
        services.flat_map(move |(app, service, instances)| {
            instances.iter().map(move |(ByAge(id), placement)| {
                let node = self.numbers.name(placement.node);
                (app, service, id, node, Placement { node: NodeNumber::default(), ..placement.clone() })
            })
        })
    }

    /// A node's assignment was written anew, or removed.
    pub fn replace(
        &mut self,
        node: &NodeId,
        before: Option<&Assignment>,
        after: Option<&Assignment>,
        observed: Option<&Observed>,
        releases: &Releases,
    ) {
        let none = BTreeMap::new();
        let was = before.map_or(&none, |assignment| &assignment.instances);
        let is = after.map_or(&none, |assignment| &assignment.instances);
        let number = self.number(node);
        for (id, assigned) in was {
            if is.get(id) != Some(assigned) {
                self.remove(number, id, assigned, releases);
            }
        }
        for (id, assigned) in is {
            if was.get(id) != Some(assigned) {
                let placement = Placement::of(number, assigned, seen(observed, id));
                self.add(id, assigned, placement, releases);
            }
        }
        if after.is_none() {
            self.given[number.index()] = Given::default();
        }
    }

    fn add(
        &mut self,
        id: &InstanceId,
        assigned: &AssignedInstance,
        placement: Placement,
        releases: &Releases,
    ) {
        if assigned.making_way.is_some() {
            self.making_way.insert(id.clone(), self.numbers.name(placement.node).clone());
        }
        self.given[placement.node.index()].take(weigh(assigned, releases));
        let of_app = self.by_app.entry(assigned.app.clone()).or_default();
        of_app.entry(assigned.service.clone()).or_default().insert(ByAge(id.clone()), placement);
    }

    fn remove(
        &mut self,
        node: NodeNumber,
        id: &InstanceId,
        assigned: &AssignedInstance,
        releases: &Releases,
    ) {
        if let Some(of_app) = self.by_app.get_mut(&assigned.app) {
            if let Some(of_service) = of_app.get_mut(&assigned.service) {
                of_service.remove(&ByAge(id.clone()));
                if of_service.is_empty() {
                    of_app.remove(&assigned.service);
                }
            }
            if of_app.is_empty() {
                self.by_app.remove(&assigned.app);
            }
        }
        self.making_way.remove(id);
        self.given[node.index()].give_back(weigh(assigned, releases));
    }

    /// A node has reported anew, or its report was removed.
    pub fn report(
        &mut self,
        assignment: Option<&Assignment>,
        before: Option<&Observed>,
        after: Option<&Observed>,
    ) {
        for (id, assigned) in assignment.into_iter().flat_map(|assignment| &assignment.instances) {
            let is = seen(after, id);
            let told = |seen: &ObservedInstance| (seen.state, seen.endpoint);
            if is.map(told) == seen(before, id).map(told) {
                continue;
            }
            let of_app = self.by_app.get_mut(&assigned.app);
            let of_service = of_app.and_then(|of_app| of_app.get_mut(&assigned.service));
            if let Some(placement) = of_service.and_then(|of_service| of_service.get_mut(&ByAge(id.clone())))
            {
                placement.see(is);
            }
        }
    }

    /// A release was written, or removed: what its instances weigh is known by it. In a listing it comes after them.
    pub fn reweigh(
        &mut self,
        app: &AppName,
        number: ReleaseNumber,
        before: Option<&Release>,
        after: Option<&Release>,
    ) {
        for (service, instances) in self.by_app.get(app).into_iter().flatten() {
            let of_release = instances.values().filter(|placement| placement.release == number);
            for placement in of_release {
                let given = &mut self.given[placement.node.index()];
                let weighed = |release| Given { running: 0, ..Given::by(service, placement.intent, release) };
                given.give_back(weighed(before));
                given.take(weighed(after));
            }
        }
    }

    pub fn services(&self, app: &AppName) -> impl Iterator<Item = &ServiceName> {
        self.by_app.get(app).into_iter().flat_map(BTreeMap::keys)
    }

    pub fn has_service(&self, app: &AppName, service: &ServiceName) -> bool {
        self.by_app.get(app).is_some_and(|of_app| of_app.contains_key(service))
    }

    /// Oldest first.
    pub fn instances(
        &self,
        app: &AppName,
        service: &ServiceName,
    ) -> impl Iterator<Item = (&InstanceId, &Placement)> {
        let of_service = self.by_app.get(app).and_then(|of_app| of_app.get(service));
        of_service.into_iter().flatten().map(|(ByAge(id), placement)| (id, placement))
    }

    /// Whether any instance is of this release.
    pub fn has_any_of(&self, app: &AppName, release: ReleaseNumber) -> bool {
        let of_app = self.by_app.get(app).into_iter().flat_map(BTreeMap::values);
        of_app.flat_map(BTreeMap::values).any(|placement| placement.release == release)
    }

    /// Instances that shall not stay where they are.
    pub fn making_way(&self) -> impl Iterator<Item = (&InstanceId, &NodeId)> {
        self.making_way.iter()
    }

    pub fn given(&self, node: NodeNumber) -> Given {
        self.given.get(node.index()).copied().unwrap_or_default()
    }
}

fn seen<'o>(observed: Option<&'o Observed>, id: &InstanceId) -> Option<&'o ObservedInstance> {
    observed?.instances.get(id)
}

fn weigh(assigned: &AssignedInstance, releases: &Releases) -> Given {
    let release = releases.get(&assigned.app).and_then(|of_app| of_app.get(&assigned.release));
    Given::of(assigned, release.map(|held| &held.value))
}
