//! A person's word to a deployment that takes its time.

use axum::extract::State;
use rung_api::{Code, ErrorBody};
use rung_model::duration::in_words;
use rung_model::rollout::Stage;
use rung_model::{App, AppFile, AppName, Deployment, DeploymentNumber, Phase, keys};
use rung_store::{Guard, Op};

use super::Answer;
use super::extract::{Body, Json, Named};
use crate::shared::{ATTEMPTS, Committed, Control, contended};

pub async fn go_on(State(control): State<Control>, named: Named, Body(by): Body<String>) -> Answer<()> {
    let (app, number): (AppName, DeploymentNumber) = (named.get("app")?, named.get("deployment")?);
    control
        .amend_deployment(&app, number, |deployment| {
            refuse_unless_it_waits(deployment)?;
            deployment.rollout.get_or_insert_default().continued_by = Some(by.clone());
            Ok(())
        })
        .await?;
    Ok(Json(()))
}

pub(super) fn no_such_deployment(app: &AppName, number: DeploymentNumber) -> ErrorBody {
    ErrorBody::new(Code::NotFound, format!("app {app} has no deployment {number}"))
        .hint("`rung explain` alone tells of the newest; the last hundred are kept")
}

fn refuse_unless_it_waits(deployment: &Deployment) -> Result<(), ErrorBody> {
    let Deployment { app, number, .. } = deployment;
    if deployment.has_ended() {
        let message = format!("{number} of app {app} has ended already");
        return Err(ErrorBody::new(Code::Refused, message).hint("`rung status` shows how"));
    }
    let stage = deployment.rollout.as_ref().map(|rollout| rollout.stage).unwrap_or_default();
    if deployment.phase != Phase::Rolling || stage == Stage::Moving {
        let message = format!("{number} of app {app} does not wait for anybody");
        return Err(ErrorBody::new(Code::Refused, message)
            .hint("a step can be continued once its instances serve; `rung status` shows how far it is"));
    }
    Ok(())
}

impl Control {
    /// Changes a deployment that is there, again when somebody else does so meanwhile. `amend` says why it may not be.
    pub(super) async fn amend_deployment(
        &self,
        app: &AppName,
        number: DeploymentNumber,
        amend: impl Fn(&mut Deployment) -> Result<(), ErrorBody>,
    ) -> Result<(), ErrorBody> {
        for _ in 0..ATTEMPTS {
            let held = self.read(|world| world.deployments.get(app)?.get(&number).cloned());
            let held = held.ok_or_else(|| no_such_deployment(app, number))?;
            let mut deployment = held.value;
            amend(&mut deployment)?;
            let key = keys::deployment(app, number);
            let value = self.encode(&key, &deployment);
            let guard = Guard::Modified { key: key.clone(), revision: held.revision };
            if let Committed::Done =
                self.commit(vec![guard], vec![Op::Put { key, value, lease: None }]).await?
            {
                return Ok(());
            }
        }
        Err(contended(&format!("{number} of app {app}")))
    }

    /// What is kept warm counts against the memory: the person who deploys shall know before.
    pub(super) fn remark_on_warmth(&self, record: &App, file: &AppFile) -> Option<String> {
        let keep = file.deploy.rollout.keep;
        let (live, current) = record.live.zip(record.current).filter(|_| !keep.is_zero())?;
        let (count, bytes) = self.read(|world| {
            let release = world.release(&record.name, current);
            let assigned = world.assignments.values().flat_map(|held| held.value.instances.values());
            let of_live =
                assigned.filter(|assigned| assigned.app == record.name && assigned.deployment == live);
            of_live.fold((0, 0), |(count, bytes), assigned| {
                let service = release.and_then(|release| release.file.services.get(&assigned.service));
                (count + 1, bytes + service.and_then(|service| service.memory_bytes).unwrap_or(0))
            })
        });
        let memory = if bytes > 0 { format!(" ({} MB)", bytes / 1_000_000) } else { String::new() };
        let instances = if count == 1 { "instance" } else { "instances" };
        Some(format!(
            "{count} {instances} of {current} stay for {} after success, and count against the memory{memory}",
            in_words(keep)
        ))
    }
}
