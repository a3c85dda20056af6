//! The index of what the store holds, as typed documents.
//!
//! Kept by [`World::put`] and [`World::delete`] from a listing and then from watch events. Applying events one by
//! one gives the same world as listing everything anew (a property that the tests hold it to).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use rung_model::{
    AddressBlock, App, AppName, Assignment, BlockNumber, Deployment, DeploymentNumber, Document, Generation,
    JobName, JobState, Member, Node, NodeId, Observed, Release, ReleaseNumber, RouteDocument, Run, RunId,
    ServiceName, keys,
};

use crate::addresses::Addresses;
use crate::placed::Placed;
use crate::unknown::Unknown;

/// A document with the revision that wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct Held<T> {
    pub revision: u64,
    pub value: T,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct World {
    pub epoch: u64,
    /// Everything up to this revision is in.
    pub revision: u64,
    pub apps: BTreeMap<AppName, Held<App>>,
    pub releases: BTreeMap<AppName, BTreeMap<ReleaseNumber, Held<Release>>>,
    pub deployments: BTreeMap<AppName, BTreeMap<DeploymentNumber, Held<Deployment>>>,
    pub runs: BTreeMap<RunId, Held<Run>>,
    pub nodes: BTreeMap<NodeId, Held<Node>>,
    pub members: BTreeMap<NodeId, Held<Member>>,
    pub assignments: BTreeMap<NodeId, Held<Assignment>>,
    pub observed: BTreeMap<NodeId, Held<Observed>>,
    pub routes: BTreeMap<AppName, Held<RouteDocument>>,
    pub jobs: BTreeMap<AppName, BTreeMap<JobName, Held<JobState>>>,
    pub addresses: Addresses,
    pub(crate) placed: Placed,
    /// By key, of the few documents that have any.
    unknown: BTreeMap<String, Unknown>,
}

/// A stored document that this version can't read. It is left alone: an older binary must not destroy what a newer
/// one wrote.
#[derive(Debug, thiserror::Error)]
#[error("document at {key} can't be read")]
pub struct Undecodable {
    pub key: String,
    pub source: serde_json::Error,
}

impl World {
    pub fn new(epoch: u64) -> Self {
        Self { epoch, ..Self::default() }
    }

    /// Takes a key's new value in. Keys that the planner does not need are passed over.
    pub fn put(&mut self, key: &str, value: &[u8], revision: u64) -> Result<(), Undecodable> {
        let generation = Generation::new(self.epoch, revision);
        let Some((kind, _)) = key.split_once('/') else { return Ok(()) };
        match kind {
            "apps" => {
                let app: App = self.decode_keeping(key, value)?;
                self.apps.insert(app.name.clone(), Held { revision, value: app });
            }
            "releases" => {
                let release: Release = self.decode_keeping(key, value)?;
                let (app, number) = (release.app.clone(), release.number);
                let before = self.releases.get(&app).and_then(|of_app| of_app.get(&number));
                let before = before.map(|held| &held.value);
                self.placed.reweigh(&app, number, before, Some(&release));
                self.releases.entry(app).or_default().insert(number, Held { revision, value: release });
            }
            "deployments" => {
                let deployment: Deployment = self.decode_keeping(key, value)?;
                let of_app = self.deployments.entry(deployment.app.clone()).or_default();
                of_app.insert(deployment.number, Held { revision, value: deployment });
            }
            "runs" => {
                let run: Run = self.decode_keeping(key, value)?;
                self.runs.insert(run.id.clone(), Held { revision, value: run });
            }
            "jobs" => {
                let state: JobState = self.decode_keeping(key, value)?;
                let of_app = self.jobs.entry(state.app.clone()).or_default();
                of_app.insert(state.job.clone(), Held { revision, value: state });
            }
            "nodes" => {
                let node: Node = self.decode_keeping(key, value)?;
                self.placed.number(&node.id);
                self.nodes.insert(node.id.clone(), Held { revision, value: node });
            }
            "members" => {
                let member: Member = decode(key, value)?;
                self.members.insert(member.node.clone(), Held { revision, value: member });
            }
            "assign" => {
                let mut assignment: Assignment = decode(key, value)?;
                assignment.generation = generation;
                assignment.instances = compact(assignment.instances);
                let node = assignment.node.clone();
                let before = self.assignments.get(&node).map(|held| &held.value);
                let observed = self.observed.get(&node).map(|held| &held.value);
                self.placed.replace(&node, before, Some(&assignment), observed, &self.releases);
                self.assignments.insert(node, Held { revision, value: assignment });
            }
            "observed" => {
                let mut observed: Observed = decode(key, value)?;
                observed.instances = compact(observed.instances);
                let node = observed.node.clone();
                let before = self.observed.get(&node).map(|held| &held.value);
                let assignment = self.assignments.get(&node).map(|held| &held.value);
                self.placed.report(assignment, before, Some(&observed));
                self.observed.insert(node, Held { revision, value: observed });
            }
            "addresses" => {
                let block: AddressBlock = self.decode_keeping(key, value)?;
                self.addresses.put(Held { revision, value: block });
            }
            "routes" => {
                let mut document: RouteDocument = decode(key, value)?;
                document.generation = generation;
                self.routes.insert(document.app.clone(), Held { revision, value: document });
            }
            _ => {}
        }
        Ok(())
    }

    /// A document as it is to be stored: with the fields of the stored one that this version does not know.
    ///
    /// Assignments, route documents and what nodes report are made whole each time, by whoever writes them: a field that
    /// its maker does not know would be out of date there.
    pub fn encode<T: Document>(&self, key: &str, document: &T) -> Vec<u8> {
        match self.unknown.get(key) {
            None => document.to_json(),
            Some(unknown) => unknown.put_back(document.to_json()),
        }
    }

    fn decode_keeping<T>(&mut self, key: &str, value: &[u8]) -> Result<T, Undecodable>
    where
        T: Document + PartialEq,
    {
        let document = decode(key, value)?;
        let unknown = Unknown::of(value, &document);
        if unknown.is_empty() {
            self.unknown.remove(key);
        } else {
            self.unknown.insert(key.to_owned(), unknown);
        }
        Ok(document)
    }

    pub fn delete(&mut self, key: &str) {
        self.unknown.remove(key);
        let mut parts = key.splitn(3, '/');
        let (Some(kind), Some(first)) = (parts.next(), parts.next()) else { return };
        let second = parts.next();
        match kind {
            "apps" => remove(&mut self.apps, first),
            "nodes" => remove(&mut self.nodes, first),
            "members" => remove(&mut self.members, first),
            "assign" => {
                if let Some((node, held)) =
                    NodeId::new(first).ok().and_then(|node| self.assignments.remove_entry(&node))
                {
                    self.placed.replace(&node, Some(&held.value), None, None, &self.releases);
                }
            }
            "observed" => {
                if let Some((node, held)) =
                    NodeId::new(first).ok().and_then(|node| self.observed.remove_entry(&node))
                {
                    let assignment = self.assignments.get(&node).map(|held| &held.value);
                    self.placed.report(assignment, Some(&held.value), None);
                }
            }
            "routes" => remove(&mut self.routes, first),
            "addresses" => {
                if let Ok(block) = first.parse() {
                    self.addresses.delete(block);
                }
            }
            "runs" => {
                if let Some(Ok(id)) = second.map(RunId::new) {
                    self.runs.remove(&id);
                }
            }
            "releases" => {
                let number = second.and_then(number(ReleaseNumber));
                if let (Ok(app), Some(number)) = (AppName::new(first), number) {
                    let before = self.releases.get(&app).and_then(|of_app| of_app.get(&number));
                    let before = before.map(|held| &held.value);
                    self.placed.reweigh(&app, number, before, None);
                }
                remove_below(&mut self.releases, first, second, |_| number);
            }
            "deployments" => remove_below(&mut self.deployments, first, second, number(DeploymentNumber)),
            "jobs" => remove_below(&mut self.jobs, first, second, |name| JobName::new(name).ok()),
            _ => {}
        }
    }

    pub fn release(&self, app: &AppName, number: ReleaseNumber) -> Option<&Release> {
        self.releases.get(app)?.get(&number).map(|held| &held.value)
    }

    pub fn deployment(&self, app: &AppName, number: DeploymentNumber) -> Option<&Deployment> {
        self.deployments.get(app)?.get(&number).map(|held| &held.value)
    }

    /// The app's newest deployment, ended or not.
    pub fn last_deployment(&self, app: &AppName) -> Option<&Deployment> {
        self.deployments.get(app)?.last_key_value().map(|(_, held)| &held.value)
    }

    /// The deployment that is going on.
    pub fn active_deployment(&self, app: &AppName) -> Option<&Deployment> {
        self.last_deployment(app).filter(|deployment| !deployment.has_ended())
    }

    /// Whether the machine of a proxy, which is called `<node>.ingress`, belongs to the cluster.
    pub fn knows_machine_of(&self, proxy: &str) -> bool {
        let node = proxy.rsplit_once('.').and_then(|(node, _)| NodeId::new(node).ok());
        node.is_none_or(|node| self.nodes.contains_key(&node) || self.members.contains_key(&node))
    }

    /// Whether a release is being judged by its traffic.
    pub fn is_judging(&self) -> bool {
        self.apps.keys().any(|app| self.is_judged(app))
    }

    /// Whether the app has such a release.
    pub fn is_judged(&self, app: &AppName) -> bool {
        let live = self.apps.get(app).and_then(|held| held.value.live);
        let live = live.and_then(|live| self.deployment(app, live));
        let aftercare = live.and_then(|deployment| deployment.aftercare.as_ref());
        aftercare.is_some_and(|aftercare| aftercare.watch.is_some())
            || self.active_deployment(app).is_some_and(|active| active.rollout.is_some())
    }

    /// The revision of whatever is held under a key.
    pub fn revision_of(&self, key: &str) -> Option<u64> {
        let mut parts = key.splitn(3, '/');
        let (kind, first) = (parts.next()?, parts.next()?);
        let second = parts.next();
        match kind {
            "apps" => self.apps.get(&AppName::new(first).ok()?).map(|held| held.revision),
            "nodes" => self.nodes.get(&NodeId::new(first).ok()?).map(|held| held.revision),
            "members" => self.members.get(&NodeId::new(first).ok()?).map(|held| held.revision),
            "assign" => self.assignments.get(&NodeId::new(first).ok()?).map(|held| held.revision),
            "observed" => self.observed.get(&NodeId::new(first).ok()?).map(|held| held.revision),
            "routes" => self.routes.get(&AppName::new(first).ok()?).map(|held| held.revision),
            "addresses" => self.addresses.revision_of(first.parse::<BlockNumber>().ok()?),
            "runs" => self.runs.get(&RunId::new(second?).ok()?).map(|held| held.revision),
            "jobs" => {
                let job = JobName::new(second?).ok()?;
                self.jobs.get(&AppName::new(first).ok()?)?.get(&job).map(|held| held.revision)
            }
            "releases" => {
                let number = ReleaseNumber(second?.parse().ok()?);
                self.releases.get(&AppName::new(first).ok()?)?.get(&number).map(|held| held.revision)
            }
            "deployments" => {
                let number = DeploymentNumber(second?.parse().ok()?);
                self.deployments.get(&AppName::new(first).ok()?)?.get(&number).map(|held| held.revision)
            }
            _ => None,
        }
    }

    /// Where a service is reached from inside the cluster.
    pub fn address(&self, app: &AppName, service: &ServiceName) -> Option<Ipv4Addr> {
        self.addresses.of(app, service)
    }

    /// Every key that is held for one app beside its own and its routes, for its destruction.
    pub fn keys_of_app(&self, app: &AppName) -> Vec<String> {
        let mut found = Vec::new();
        found.extend(
            self.runs.values().filter(|run| run.value.app == *app).map(|run| keys::run(app, &run.value.id)),
        );
        let releases = self.releases.get(app).into_iter().flat_map(BTreeMap::keys);
        found.extend(releases.map(|number| keys::release(app, *number)));
        let deployments = self.deployments.get(app).into_iter().flat_map(BTreeMap::keys);
        found.extend(deployments.map(|number| keys::deployment(app, *number)));
        let jobs = self.jobs.get(app).into_iter().flat_map(BTreeMap::keys);
        found.extend(jobs.map(|job| keys::job(app, job)));
        found.extend(self.addresses.blocks_of(app).map(|held| keys::addresses(held.value.number)));
        found
    }
}

fn decode<T: Document>(key: &str, value: &[u8]) -> Result<T, Undecodable> {
    T::from_json(value).map_err(|source| Undecodable { key: key.to_owned(), source })
}

/// Made from what is in order a map has no gaps between its entries; read one by one it is half empty.
fn compact<K: Ord, V>(map: BTreeMap<K, V>) -> BTreeMap<K, V> {
    map.into_iter().collect()
}

fn remove<K: Ord + std::str::FromStr, V>(map: &mut BTreeMap<K, V>, key: &str) {
    if let Ok(key) = key.parse() {
        map.remove(&key);
    }
}

/// Removes `second` of `first`, and `first` with its last.
fn remove_below<K: Ord, V>(
    map: &mut BTreeMap<AppName, BTreeMap<K, V>>,
    first: &str,
    second: Option<&str>,
    read: impl Fn(&str) -> Option<K>,
) {
    let (Ok(app), Some(key)) = (AppName::new(first), second.and_then(read)) else { return };
    if let Some(of_app) = map.get_mut(&app) {
        of_app.remove(&key);
        if of_app.is_empty() {
            map.remove(&app);
        }
    }
}

fn number<K>(make: impl Fn(u64) -> K) -> impl Fn(&str) -> Option<K> {
    move |text| text.parse().ok().map(&make)
}
