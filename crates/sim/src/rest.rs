//! The end of a story: faults have stopped, and within a stated time everything is as it was asked for.

use std::time::Duration;

use rung_model::{App, AppName, AssignedInstance, Deployment, InstanceState, Intent, Outcome, RouteDocument};
use rung_planner::World;

use crate::agenda::Happening;
use crate::apps::Behaviour;
use crate::people::Promises;
use crate::story::{REST_WITHIN, Story, say};

/// Invariant 7 is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Story {
    pub fn look(&mut self) {
        match self.at_rest() {
            Ok(()) => {
                say!(self, "everything is at rest");
                if let Err(lost) = self.promises_kept() {
                    self.fail(lost);
                }
                self.is_over = true;
            }
            Err(why) if self.now >= self.faults.end + REST_WITHIN => {
                self.fail(format!("not at rest {REST_WITHIN:?} after the faults have ended: {why}"));
            }
            Err(_) => self.after(LOOK_EVERY, Happening::Look),
        }
    }

    /// What is stored, as it is.
    fn stored_world(&self) -> World {
        let mut world = World::new(self.store.epoch());
        for entry in self.store.list("", None, usize::MAX).value.entries {
            world
                .put(&entry.key, &entry.value, entry.modified)
                .expect("only documents of the model are stored");
        }
        world
    }

    fn at_rest(&self) -> Result<(), String> {
        let world = self.stored_world();
        for (app, held) in &world.apps {
            if held.value.destroying.is_some() {
                return Err(format!("{app} is still being destroyed"));
            }
            if let Some(deployment) = world.active_deployment(app) {
                return Err(format!("{} of {app} is still {:?}", deployment.number, deployment.phase));
            }
        }
        self.instances_are_as_wanted(&world)?;
        let Some(assignment) = world.assignments.get(&self.node) else { return Ok(()) };
        // Jobs go on for ever.
        let mut runs = assignment.value.runs.values().filter(|run| run.of_job().is_none());
        if runs.next().is_some() || assignment.value.purges().next().is_some() {
            return Err("runs or purges are still assigned".into());
        }
        for (id, process) in self.machine.processes.iter().filter(|(_, process)| process.is_alive()) {
            if !assignment.value.instances.contains_key(id) {
                return Err(format!("an orphan: {id} of {} is alive", process.assigned.app));
            }
        }
        self.proxies_follow(&world)
    }

    fn instances_are_as_wanted(&self, world: &World) -> Result<(), String> {
        let assigned = || world.assignments.values().flat_map(|held| &held.value.instances);
        for (id, instance) in assigned() {
            let live = world.apps.get(&instance.app).and_then(|held| held.value.live);
            // An instance of a release that was taken back serves on while those of the one before don't come up.
            let stands_in = instance.intent == Intent::Run && !is_good(world, instance);
            if (live != Some(instance.deployment) && !stands_in) || instance.intent == Intent::Stop {
                return Err(format!("{id} is still there"));
            }
        }
        for (app, held) in &world.apps {
            let record: &App = &held.value;
            let Some(release) = record.current.and_then(|number| world.release(app, number)) else {
                continue;
            };
            for (service, declared) in &release.file.services {
                let count = record.count(service, declared.instances);
                let wanted = if declared.exclusive { count.min(1) } else { count } as usize;
                let of_service = assigned().filter(|(_, instance)| {
                    (&instance.app, &instance.service) == (app, service)
                        && record.live == Some(instance.deployment)
                });
                let states: Vec<Option<InstanceState>> = of_service.map(|(id, _)| state(world, id)).collect();
                if states.len() != wanted {
                    return Err(format!("{app}/{service} has {} of {wanted} instances", states.len()));
                }
                let is_good = Behaviour::of(declared.command.as_deref().unwrap_or_default()).is_good();
                if is_good && states.iter().any(|state| *state != Some(InstanceState::Healthy)) {
                    return Err(format!("{app}/{service} is {states:?}"));
                }
                let routes = world.routes.get(app).and_then(|held| held.value.backends.get(service));
                let routed = routes.map_or(0, |backend| backend.endpoints.len());
                if is_good && declared.port && routed != wanted {
                    return Err(format!("{app}/{service}: {routed} of {wanted} are routed"));
                }
            }
        }
        Ok(())
    }

    fn proxies_follow(&self, world: &World) -> Result<(), String> {
        let stored: Vec<&RouteDocument> = world.routes.values().map(|held| &held.value).collect();
        if self.ingress.view.is_none() {
            return Err("the ingress is not there".into());
        }
        for (number, thread) in self.ingress.threads.iter().enumerate() {
            let held: Vec<&RouteDocument> = thread.documents.iter().collect();
            if held != stored {
                return Err(format!(
                    "thread {number} of the ingress picks from other routes than the stored ones"
                ));
            }
        }
        Ok(())
    }

    /// Invariant 6.
    fn promises_kept(&self) -> Result<(), String> {
        let world = self.stored_world();
        self.people.promises.iter().try_for_each(|(app, promises)| kept(&world, app, promises))
    }
}

fn state(world: &World, id: &rung_model::InstanceId) -> Option<InstanceState> {
    world.observed.values().find_map(|held| Some(held.value.instances.get(id)?.state))
}

/// Whether the service of an instance comes up, in the release that its app is at.
fn is_good(world: &World, instance: &AssignedInstance) -> bool {
    let current = world.apps.get(&instance.app).and_then(|held| held.value.current);
    let release = current.and_then(|number| world.release(&instance.app, number));
    let service = release.and_then(|release| release.file.services.get(&instance.service));
    service.is_none_or(|service| Behaviour::of(service.command.as_deref().unwrap_or_default()).is_good())
}

fn kept(world: &World, app: &AppName, promises: &Promises) -> Result<(), String> {
    if promises.is_destroyed {
        return Err(format!("{app} was destroyed, as acknowledged, and is there"));
    }
    let Some(record) = world.apps.get(app).map(|held| &held.value) else {
        let is_empty = promises.deployments.is_empty();
        return if is_empty { Ok(()) } else { Err(format!("{app} was acknowledged and is lost")) };
    };
    for number in &promises.deployments {
        if !world.deployment(app, *number).is_some_and(|deployment| deployment.has_ended()) {
            return Err(format!("{number} of {app} was acknowledged and is lost"));
        }
    }
    let succeeded =
        |number| world.deployment(app, number).and_then(Deployment::outcome) == Some(Outcome::Succeeded);
    if let Some((number, config)) = promises.config.iter().rev().find(|(number, _)| succeeded(*number))
        && record.config != *config
    {
        let is = &record.config;
        return Err(format!("config of {app} was {config:?} with {number}, as acknowledged, and is {is:?}"));
    }
    let file = record.current.and_then(|number| world.release(app, number)).map(|release| &release.file);
    for (service, scale) in &promises.scale {
        let declared = file.and_then(|file| file.services.get(service));
        let is_same_file = declared.is_some_and(|declared| declared.instances == scale.from_file);
        if is_same_file && record.count(service, scale.from_file) != scale.count {
            return Err(format!(
                "{app}/{service} was scaled to {}, as acknowledged, and is not",
                scale.count
            ));
        }
    }
    for run in &promises.runs {
        if !world.runs.get(run).is_some_and(|held| held.value.has_ended()) {
            return Err(format!("run {run} was acknowledged and is lost"));
        }
    }
    Ok(())
}
