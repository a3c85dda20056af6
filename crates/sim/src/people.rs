//! People: what they ask of the server's API, and what it has promised them.

use std::collections::BTreeMap;
use std::time::Duration;

use rung_model::app::Destroying;
use rung_model::rollout::Stage;
use rung_model::{
    App, AppFile, AppName, Deployment, DeploymentKind, DeploymentNumber, Document, Draft, Phase,
    ReleaseNumber, Run, RunId, RunKind, RunState, Scale, ServiceName, TimelineEntry, keys,
};
use rung_planner::World;
use rung_store::{Guard, Op, Txn};

use crate::agenda::Happening;
use crate::apps::{any_file, digest};
use crate::story::Story;
use crate::wiring::Wiring;

/// What was acknowledged and must not be lost, of the app that has the name now.
#[derive(Debug, Default)]
pub struct People {
    pub promises: BTreeMap<AppName, Promises>,
    sources: u64,
    runs: u64,
}

#[derive(Debug, Default)]
pub struct Promises {
    pub deployments: Vec<DeploymentNumber>,
    /// Moves of settings, and what config is after each that succeeds. One that is reverted takes its change back.
    pub config: Vec<(DeploymentNumber, BTreeMap<String, String>)>,
    /// While no other deployment changed what the file says.
    pub scale: BTreeMap<ServiceName, Scale>,
    pub runs: Vec<RunId>,
    pub is_destroyed: bool,
}

/// The writes of one request, and what it promises.
struct Request {
    guards: Vec<Guard>,
    ops: Vec<Op>,
    promise: Box<dyn FnOnce(&mut Promises)>,
}

impl Request {
    fn put<T: Document>(&mut self, key: String, value: &T, replaces: Option<u64>) {
        self.guards.push(match replaces {
            Some(revision) => Guard::Modified { key: key.clone(), revision },
            None => Guard::Absent { key: key.clone() },
        });
        let value = value.to_json();
        self.ops.push(Op::Put { key, value, lease: None });
    }

    fn new(promise: impl FnOnce(&mut Promises) + 'static) -> Self {
        Self { guards: Vec::new(), ops: Vec::new(), promise: Box::new(promise) }
    }
}

/// What a deployment brings.
enum Brings {
    Draft(Box<Draft>),
    Again(ReleaseNumber),
}

impl Story {
    pub fn person_acts(&mut self) {
        if self.faults.have_ended {
            return;
        }
        let next = self.between_ms(50, 4000);
        self.after(next, Happening::PersonActs);
        let app = self.any_app();
        let Some(reconcile) = &self.server.reconcile else { return };
        let world = reconcile.world().clone();
        if world.revision == 0 {
            return;
        }
        let Some(request) = self.any_request(&world, &app) else { return };
        let outcome = self.txn(None, request.guards, request.ops);
        let taken = matches!(outcome, Some(Txn::Committed(_)));
        if taken || (self.wiring == Wiring::AnswersBeforeTheStore && outcome != Some(Txn::Conflict)) {
            (request.promise)(self.people.promises.entry(app).or_default());
        } else if outcome == Some(Txn::Unknown) {
            // It may have been done: nothing that was promised of the same kind can be held against anybody now.
            let promises = self.people.promises.entry(app).or_default();
            promises.config.clear();
            promises.scale.clear();
        }
    }

    fn any_request(&mut self, world: &World, app: &AppName) -> Option<Request> {
        let held = world.apps.get(app);
        let record = held.map_or_else(|| App::new(app.clone()), |held| held.value.clone());
        let revision = held.map(|held| held.revision);
        if record.destroying.is_some() {
            return None;
        }
        let active = world.active_deployment(app).cloned();
        let current = record.current.and_then(|number| world.release(app, number)).cloned();
        let what = self.rng.u32(0..20);
        match (what, active, current) {
            (0 | 1, Some(active), _) => Some(self.cancel(world, active)),
            (2, ..) if revision.is_some() => Some(self.destroy(record, revision)),
            (3 | 4, _, Some(current)) => {
                let service = self.any_service(&current.file);
                Some(self.scale(record, revision, &current.file, service))
            }
            (5, _, Some(current)) => Some(self.one_off(app, current.number)),
            (6 | 7, None, Some(current)) => {
                let number = current.number;
                Some(self.begin(record, revision, DeploymentKind::Restart, Brings::Again(number)))
            }
            (8 | 9, None, Some(_)) => {
                let to = record.succeeded[self.rng.usize(0..record.succeeded.len())];
                let release = world.release(app, to)?.clone();
                let config = release.config.clone();
                let brings = self.again(release.file, release.config, release.source, Some(release.artifact));
                Some(self.move_settings(record, revision, DeploymentKind::Rollback, brings, config))
            }
            (10 | 11, None, Some(current)) => {
                let mut record = record;
                let value = self.rng.u32(..).to_string();
                record.config.insert("LEVEL".into(), value);
                let brings =
                    self.again(current.file, record.config.clone(), current.source, Some(current.artifact));
                let config = record.config.clone();
                Some(self.move_settings(record, revision, DeploymentKind::Config, brings, config))
            }
            (12.., None, _) => Some(self.deploy(record, revision)),
            (17.., Some(active), _) => self.go_on(world, active),
            _ => None,
        }
    }

    /// A rollback or a change of config, after which config is `config`.
    fn move_settings(
        &self,
        record: App,
        revision: Option<u64>,
        kind: DeploymentKind,
        brings: Brings,
        config: BTreeMap<String, String>,
    ) -> Request {
        let number = record.last_deployment.next();
        let mut request = self.begin(record, revision, kind, brings);
        let promise = request.promise;
        request.promise = Box::new(move |promises| {
            promises.config.push((number, config));
            promise(promises);
        });
        request
    }

    fn any_service(&mut self, file: &AppFile) -> ServiceName {
        let names: Vec<&ServiceName> = file.services.keys().collect();
        names[self.rng.usize(0..names.len())].clone()
    }

    fn deploy(&mut self, record: App, revision: Option<u64>) -> Request {
        let file = any_file(&record.name, &mut self.rng);
        self.people.sources += 1;
        let source = digest(self.people.sources);
        let artifact = file.build.is_empty().then(|| source.clone());
        let brings = self.again(file, record.config.clone(), Some(source), artifact);
        self.begin(record, revision, DeploymentKind::Deploy, brings)
    }

    fn again(
        &self,
        file: AppFile,
        config: BTreeMap<String, String>,
        source: Option<rung_model::Digest>,
        artifact: Option<rung_model::Digest>,
    ) -> Brings {
        let secrets = BTreeMap::new();
        let reason = "a story".to_owned();
        Brings::Draft(Box::new(Draft {
            file,
            config,
            secrets,
            source,
            artifact,
            reason,
            note: None,
            provenance: Default::default(),
        }))
    }

    fn begin(&self, mut record: App, revision: Option<u64>, kind: DeploymentKind, brings: Brings) -> Request {
        let number = record.last_deployment.next();
        record.last_deployment = number;
        let at = self.wall();
        let (phase, draft, release) = match brings {
            Brings::Draft(draft) => (Phase::Building, Some(*draft), None),
            Brings::Again(release) => (Phase::Rolling, None, Some(release)),
        };
        let deployment = Deployment {
            app: record.name.clone(),
            number,
            kind,
            by: "ada".into(),
            at,
            phase,
            draft,
            release,
            from: record.current,
            run: None,
            remaining: Duration::from_secs(20),
            cancelled_by: None,
            trouble: None,
            timeline: vec![TimelineEntry::milestone(at, phase, "begun")],
            asked: Default::default(),
            runs: Vec::new(),
            notification: None,
            rollout: None,
            aftercare: None,
        };
        let mut request = Request::new(move |promises| {
            promises.deployments.push(number);
            promises.scale.clear();
        });
        request.put(keys::deployment(&record.name, number), &deployment, None);
        request.put(keys::app(&record.name), &record, revision);
        request
    }

    fn cancel(&self, world: &World, mut deployment: Deployment) -> Request {
        deployment.cancelled_by = Some("bob".into());
        let key = keys::deployment(&deployment.app, deployment.number);
        let revision = world.revision_of(&key);
        let mut request = Request::new(|_| {});
        request.put(key, &deployment, revision);
        request
    }

    /// `rung continue`, of a deployment that holds a step or waits.
    fn go_on(&self, world: &World, mut deployment: Deployment) -> Option<Request> {
        let rollout = deployment.rollout.as_mut().filter(|rollout| rollout.stage != Stage::Moving)?;
        rollout.continued_by = Some("bob".into());
        let key = keys::deployment(&deployment.app, deployment.number);
        let revision = world.revision_of(&key);
        let mut request = Request::new(|_| {});
        request.put(key, &deployment, revision);
        Some(request)
    }

    fn destroy(&mut self, mut record: App, revision: Option<u64>) -> Request {
        let volumes = if self.rng.bool() { Destroying::WithVolumes } else { Destroying::KeepVolumes };
        record.destroying = Some(volumes);
        let mut request = Request::new(|promises| promises.is_destroyed = true);
        request.put(keys::app(&record.name), &record, revision);
        request
    }

    fn scale(
        &mut self,
        mut record: App,
        revision: Option<u64>,
        file: &AppFile,
        service: ServiceName,
    ) -> Request {
        let declared = &file.services[&service];
        let most = if declared.exclusive { 1 } else { 4 };
        let scale = Scale { count: self.rng.u32(0..=most), from_file: declared.instances };
        record.scale.insert(service.clone(), scale);
        let mut request = Request::new(move |promises| {
            promises.scale.insert(service, scale);
        });
        request.put(keys::app(&record.name), &record, revision);
        request
    }

    fn one_off(&mut self, app: &AppName, release: ReleaseNumber) -> Request {
        self.people.runs += 1;
        let id = RunId::new(format!("{app}-run-{}", self.people.runs)).expect("a name and a number");
        let command = "run takes=500 ends=good".to_owned();
        let run = Run {
            id: id.clone(),
            app: app.clone(),
            kind: RunKind::OneOff { release, command, terminal: None },
            by: "ada".into(),
            at: self.wall(),
            node: None,
            timeout: Duration::from_secs(5),
            cancelled: false,
            state: RunState::Pending,
        };
        let key = keys::run(app, &id);
        let mut request = Request::new(move |promises| promises.runs.push(id));
        request.put(key, &run, None);
        request
    }
}

/// What is promised of an app ends with it.
impl People {
    pub fn app_is_gone(&mut self, app: &AppName) {
        self.promises.remove(app);
    }
}
