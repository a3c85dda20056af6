//! Deployments: what starts one, what follows it.

use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::extract::State;
use jiff::Timestamp;
use rung_api::wire::{DeployRequest, RestartRequest, RollbackRequest, Started};
use rung_api::{Code, ErrorBody};
use rung_artifact::Limits;
use rung_model::{
    App, AppFile, AppName, Asked, Deployment, DeploymentKind, DeploymentNumber, Digest, Document, Draft,
    ImageSource, Phase, Provenance, Release, ReleaseCommand, ReleaseNumber, Role, TimelineEntry, keys,
};
use rung_store::{Guard, Op};

use super::Answer;
use super::extract::{Body, Json, Named, Query};
use super::rollouts::no_such_deployment;
use crate::access::Caller;
use crate::hosts::Claiming;
use crate::shared::{ATTEMPTS, Committed, Control, contended};

/// What a deployment may take before its first phase sets its own budget.
const FIRST_BUDGET: Duration = Duration::from_secs(120);

/// Of an app file with its overlays: a release keeps them beside what they mean, in one transaction of a megabyte.
const FILES_BYTES_MAX: usize = 256 * 1024;

/// What a new deployment does.
pub(crate) enum Move {
    /// Make a release of this, then roll it out.
    Make(Box<Draft>),
    /// Roll out a release that was made before and never served.
    Made(ReleaseNumber),
    /// Start the instances of a release anew.
    Again(ReleaseNumber),
}

pub async fn has_source(State(control): State<Control>, caller: Caller, named: Named) -> Answer<bool> {
    let digest: Digest = named.get("digest")?;
    caller.require_role(Role::Deployer)?;
    Ok(Json(caller.may_use(&digest) && control.has_artifact(&digest).await?))
}

pub async fn put_source(
    State(control): State<Control>,
    caller: Caller,
    named: Named,
    body: HttpBody,
) -> Answer<()> {
    let digest: Digest = named.get("digest")?;
    caller.require_role(Role::Deployer)?;
    control.inner.trees.put(&digest, Limits::source(), body.into_data_stream()).await?;
    control.copy_to_another(&digest).await;
    caller.has_uploaded(&digest);
    Ok(Json(()))
}

pub async fn deploy(
    State(control): State<Control>,
    caller: Caller,
    named: Named,
    Body(request): Body<DeployRequest>,
) -> Answer<Started> {
    let app: AppName = named.get("app")?;
    let file = read_file(&app, &request)?;
    if let Some(source) = &request.source
        && (!caller.may_use(source) || !control.has_artifact(source).await?)
    {
        let message = format!("source {source} was not uploaded");
        return Err(ErrorBody::new(Code::NotFound, message).hint("upload it first, then deploy").into());
    }
    let _turn = control.turn_of(&app).await?;
    for _ in 0..ATTEMPTS {
        let (record, revision) = control.record_or_new(&app)?;
        require_secrets(&record, &file)?;
        control.refuse_taken_hosts(&caller, &app, Some(&file))?;
        let mut remarks = Vec::new();
        let draft = match &request.source {
            Some(source) => control.drafted(&record, &file, &request, source, &mut remarks).await?,
            None => control.drafted_of_file(&record, &file, &request, &mut remarks).await?,
        };
        if let Some(release) = control.is_unchanged(&record, &draft, request.asked) {
            return Ok(Json(Started::Unchanged { release }));
        }
        let what = Move::Make(Box::new(draft));
        remarks.extend(control.remark_on_warmth(&record, &file));
        if let Some(number) = control
            .begin_as(record, revision, DeploymentKind::Deploy, what, &request.by, request.asked)
            .await?
        {
            return Ok(Json(Started::Deployment { number, release: None, remarks }));
        }
    }
    Err(contended(&format!("app {app}")).into())
}

impl Control {
    /// An uploaded source with the settings of now; with its artifact when that needs no build.
    async fn drafted(
        &self,
        record: &App,
        file: &AppFile,
        request: &DeployRequest,
        source: &Digest,
        remarks: &mut Vec<String>,
    ) -> Result<Draft, ErrorBody> {
        let provenance = Provenance {
            text: Some(request.file.clone()),
            origin: request.origin.clone(),
            ..Provenance::default()
        };
        let mut draft = Draft {
            file: file.clone(),
            config: record.config.clone(),
            secrets: record.secrets.clone(),
            source: Some(source.clone()),
            artifact: None,
            reason: "deploy".to_owned(),
            note: request.note.clone(),
            provenance,
        };
        if file.build.is_empty() {
            draft.artifact = Some(source.clone());
        } else if let Some(earlier) = self.built_before(&record.name, &draft).await? {
            let number = earlier.number;
            remarks.push(format!("source and build section are those of {number}: its build is used again"));
            draft.provenance.build = earlier.provenance.build;
            draft.artifact = Some(earlier.artifact);
        }
        Ok(draft)
    }

    /// A new app file for the artifact that serves.
    async fn drafted_of_file(
        &self,
        record: &App,
        file: &AppFile,
        request: &DeployRequest,
        remarks: &mut Vec<String>,
    ) -> Result<Draft, ErrorBody> {
        let app = &record.name;
        let current =
            record.current.and_then(|number| self.read(|world| world.release(app, number).cloned()));
        let Some(current) = current else {
            let message = format!("app {app} serves no artifact yet that an app file could be deployed with");
            return Err(ErrorBody::new(Code::Refused, message).hint("deploy it without --config-only first"));
        };
        if current.file.build != file.build {
            let message =
                format!("[build] is not that of {}: the artifact must be built anew", current.number);
            return Err(ErrorBody::new(Code::Refused, message).hint("deploy it without --config-only"));
        }
        if !file.build.is_empty() && current.file.env != file.env {
            remarks
                .push(format!("the build of {} saw the [env] of then; it is not run again", current.number));
        }
        let provenance = Provenance {
            text: Some(request.file.clone()),
            origin: request.origin.clone().or(current.provenance.origin),
            ..current.provenance
        };
        Ok(Draft {
            file: file.clone(),
            config: record.config.clone(),
            secrets: record.secrets.clone(),
            source: current.source,
            artifact: Some(current.artifact),
            reason: "app file".to_owned(),
            note: request.note.clone(),
            provenance,
        })
    }
}

fn read_file(app: &AppName, request: &DeployRequest) -> Result<AppFile, ErrorBody> {
    let bytes = request.file.bytes();
    if bytes > FILES_BYTES_MAX {
        let message = format!("app file and overlays have {bytes} bytes; {FILES_BYTES_MAX} at most");
        return Err(
            ErrorBody::new(Code::TooLarge, message).hint("app files are short; are these the right ones?")
        );
    }
    let parsed = request.file.parse(app);
    let file = parsed.map_err(|errors| ErrorBody::new(Code::InvalidAppFile, errors.to_string()))?;
    if file.app != *app {
        let message = format!("{} is for app {}, not for {app}", request.file.name, file.app.base());
        return Err(ErrorBody::new(Code::InvalidAppFile, message).hint("leave --app out, or change `app`"));
    }
    Ok(file)
}

pub(super) fn require_secrets(record: &App, file: &AppFile) -> Result<(), ErrorBody> {
    let signing = file.notify.as_ref().and_then(|notify| notify.secret.as_ref());
    let missing: Vec<&str> = file
        .required_secrets
        .iter()
        .chain(signing)
        .filter(|name| !record.secrets.contains_key(name))
        .map(|name| name.as_str())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let app = &file.app;
    let message = format!("secrets that app {app} requires are not set: {}", missing.join(", "));
    Err(ErrorBody::new(Code::MissingSecret, message)
        .hint(format!("rung secret set {} --app {app}", missing.join(" "))))
}

impl Control {
    /// The app's record; a fresh one (at revision 0) when it was never heard of.
    pub(crate) fn record_or_new(&self, app: &AppName) -> Result<(App, u64), ErrorBody> {
        match self.record_of(app) {
            Err(error) if error.code == Code::NotFound => Ok((App::new(app.clone()), 0)),
            found => found,
        }
    }

    /// A release of the same source and build section whose artifact is still kept.
    async fn built_before(&self, app: &AppName, draft: &Draft) -> Result<Option<Release>, ErrorBody> {
        // What a tag names is looked up at each deploy.
        if draft.file.build.image.as_ref().is_some_and(ImageSource::may_move) {
            return Ok(None);
        }
        let same = |release: &Release| {
            release.source == draft.source
                && release.file.build == draft.file.build
                && release.file.env == draft.file.env
        };
        let found = self.read(|world| {
            let mut releases = world.releases.get(app)?.values().rev().map(|held| &held.value);
            releases.find(|release| same(release)).cloned()
        });
        match found {
            Some(release) if self.has_artifact(&release.artifact).await? => Ok(Some(release)),
            _ => Ok(None),
        }
    }

    /// The current release, when the draft would make the very same one.
    pub(super) fn is_unchanged(&self, record: &App, draft: &Draft, asked: Asked) -> Option<ReleaseNumber> {
        let current = record.current?;
        // A release command that was left out is made up for.
        let is_done =
            |release: &Release| asked.release_command == ReleaseCommand::Skip || record.has_migrated(release);
        self.read(|world| {
            let release = world.release(&record.name, current)?;
            let same = Some(&release.artifact) == draft.artifact.as_ref()
                && release.file == draft.file
                && release.config == draft.config
                && release.secrets == draft.secrets
                && is_done(release);
            (same && world.active_deployment(&record.name).is_none()).then_some(current)
        })
    }

    /// Records a new deployment together with the app. `None`: somebody else changed the app; decide anew.
    pub(crate) async fn begin(
        &self,
        record: App,
        revision: u64,
        kind: DeploymentKind,
        what: Move,
        by: &str,
    ) -> Result<Option<DeploymentNumber>, ErrorBody> {
        self.begin_as(record, revision, kind, what, by, Asked::default()).await
    }

    /// As [`Control::begin`], with what is to be otherwise than usual.
    pub(crate) async fn begin_as(
        &self,
        mut record: App,
        revision: u64,
        kind: DeploymentKind,
        what: Move,
        by: &str,
        asked: Asked,
    ) -> Result<Option<DeploymentNumber>, ErrorBody> {
        self.refuse_while_deploying(&record)?;
        let secrets = match &what {
            Move::Make(draft) => draft.secrets.clone(),
            Move::Again(release) | Move::Made(release) => self
                .read(|world| world.release(&record.name, *release).map(|release| release.secrets.clone()))
                .unwrap_or_default(),
        };
        self.refuse_lost_secrets(&record.name, &secrets).await?;
        let file = match &what {
            Move::Make(draft) => Some(draft.file.clone()),
            Move::Again(release) | Move::Made(release) => {
                self.read(|world| world.release(&record.name, *release).map(|release| release.file.clone()))
            }
        };
        let claim = match self.claim_hosts(&record.name, file.as_ref()).await? {
            Claiming::Own => None,
            Claiming::Free(claim) => Some(claim),
            Claiming::Taken => return Ok(None),
        };
        let number = record.last_deployment.next();
        record.last_deployment = number;
        let at = Timestamp::now();
        let (phase, draft, release, message) = match what {
            Move::Make(draft) if draft.artifact.is_none() => {
                (Phase::Building, Some(*draft), None, Some("building"))
            }
            // There is nothing to tell of a build that there is none of.
            Move::Make(draft) => (Phase::Building, Some(*draft), None, None),
            Move::Made(release) => (Phase::Building, None, Some(release), None),
            Move::Again(release) => (Phase::Rolling, None, Some(release), Some("starting new instances")),
        };
        let building = draft.as_ref().filter(|draft| draft.artifact.is_none());
        let remaining = match (building, release) {
            (Some(draft), _) => draft.file.build.timeout + FIRST_BUDGET,
            (None, Some(release)) => {
                let found = self.read(|world| world.release(&record.name, release).cloned());
                found.map_or(FIRST_BUDGET, |release| release.file.deploy.deadline)
            }
            (None, None) => FIRST_BUDGET,
        };
        let deployment = Deployment {
            app: record.name.clone(),
            number,
            kind,
            by: by.to_owned(),
            at,
            phase,
            draft,
            release,
            from: record.current,
            run: None,
            remaining,
            cancelled_by: None,
            trouble: None,
            timeline: message
                .map(|message| TimelineEntry::milestone(at, phase, message))
                .into_iter()
                .collect(),
            asked,
            runs: Vec::new(),
            notification: None,
            rollout: None,
            aftercare: None,
        };
        let key = keys::deployment(&record.name, number);
        let value = deployment.to_json();
        let (mut guard, op) = self.replace_app(&record, revision);
        if revision == 0 {
            guard = Guard::Absent { key: keys::app(&record.name) };
        }
        let mut guards = vec![guard, Guard::Absent { key: key.clone() }];
        let mut ops = vec![op, Op::Put { key, value, lease: None }];
        if let Some(claim) = &claim {
            guards.push(claim.guard.clone());
            ops.push(claim.op.clone());
        }
        match self.commit(guards, ops).await? {
            Committed::Done => Ok(Some(number)),
            Committed::Conflict => Ok(None),
        }
    }

    pub(crate) fn refuse_while_deploying(&self, record: &App) -> Result<(), ErrorBody> {
        let app = &record.name;
        let active = self.read(|world| world.active_deployment(app).cloned());
        let Some(active) = active else { return Ok(()) };
        let since = (Timestamp::now().as_second() - active.at.as_second()).max(0);
        let message = format!("{} is deploying app {app} ({}, since {since} s)", active.by, active.number);
        Err(ErrorBody::new(Code::Deploying, message)
            .hint(format!("wait until it ends, or stop it: rung cancel --app {app}")))
    }
}

pub async fn list(State(control): State<Control>, named: Named) -> Answer<Vec<Deployment>> {
    let app: AppName = named.get("app")?;
    control.status_of(&app)?;
    let newest_first = control.read(|world| {
        let of_app = world.deployments.get(&app).into_iter().flat_map(|of_app| of_app.values().rev());
        of_app.map(|held| held.value.clone()).collect()
    });
    Ok(Json(newest_first))
}

#[derive(Debug, serde::Deserialize)]
pub struct Seen {
    #[serde(default)]
    seen: usize,
    #[serde(default)]
    wait_ms: u64,
}

/// Answers once there is more of the timeline than was seen, or the deployment has ended, or the wait is over.
pub async fn show(
    State(control): State<Control>,
    named: Named,
    Query(seen): Query<Seen>,
) -> Answer<Deployment> {
    let (app, number): (AppName, DeploymentNumber) = (named.get("app")?, named.get("deployment")?);
    let find = || control.read(|world| world.deployment(&app, number).cloned());
    let missing = || no_such_deployment(&app, number);
    find().ok_or_else(missing)?;
    let wait = Duration::from_millis(seen.wait_ms).min(Duration::from_secs(60));
    let news = control.wait_for(wait, |reconcile| {
        let deployment = reconcile.world().deployment(&app, number)?;
        (deployment.has_ended() || deployment.timeline.len() > seen.seen).then(|| deployment.clone())
    });
    match news.await {
        Some(deployment) => Ok(Json(deployment)),
        None => Ok(Json(find().ok_or_else(missing)?)),
    }
}

pub async fn cancel(State(control): State<Control>, named: Named, Body(by): Body<String>) -> Answer<()> {
    let (app, number): (AppName, DeploymentNumber) = (named.get("app")?, named.get("deployment")?);
    control
        .amend_deployment(&app, number, |deployment| {
            if deployment.has_ended() {
                let message = format!("{number} of app {app} has ended already");
                return Err(ErrorBody::new(Code::Refused, message)
                    .hint("`rung rollback` goes back to the release before it"));
            }
            deployment.cancelled_by = Some(by.clone());
            Ok(())
        })
        .await?;
    Ok(Json(()))
}

pub async fn rollback(
    State(control): State<Control>,
    caller: Caller,
    named: Named,
    Body(request): Body<RollbackRequest>,
) -> Answer<Started> {
    let app: AppName = named.get("app")?;
    let _turn = control.turn_of(&app).await?;
    for _ in 0..ATTEMPTS {
        let (record, revision) = control.record_of(&app)?;
        let target = control.rollback_target(&record, request.to)?;
        if !control.has_artifact(&target.artifact).await? {
            let message = format!(
                "the artifact of {} {}",
                target.number,
                control.inner.trees.why_not(&target.artifact)
            );
            return Err(ErrorBody::new(Code::Refused, message)
                .hint("`rung releases` shows which ones are; or deploy its source again")
                .into());
        }
        control.refuse_taken_hosts(&caller, &app, Some(&target.file))?;
        let draft = Draft {
            file: target.file,
            config: target.config,
            secrets: target.secrets,
            source: target.source,
            artifact: Some(target.artifact),
            reason: format!("rollback to {}", target.number),
            note: None,
            provenance: target.provenance,
        };
        let what = Move::Make(Box::new(draft));
        if let Some(number) =
            control.begin(record, revision, DeploymentKind::Rollback, what, &request.by).await?
        {
            let remarks = vec![
                "artifact, app file, config and secrets are those of then".to_owned(),
                "what a release command changed (a migration) is not undone".to_owned(),
            ];
            return Ok(Json(Started::Deployment { number, release: None, remarks }));
        }
    }
    Err(contended(&format!("app {app}")).into())
}

impl Control {
    /// The named release, or the successful one before the current.
    fn rollback_target(&self, record: &App, to: Option<ReleaseNumber>) -> Result<Release, ErrorBody> {
        let app = &record.name;
        let Some(current) = record.current else {
            let message = format!("app {app} has no release to go back from");
            return Err(ErrorBody::new(Code::Refused, message).hint("deploy it first"));
        };
        let number = match to {
            Some(number) if number == current => {
                let message = format!("{number} is the release that serves");
                return Err(ErrorBody::new(Code::Refused, message));
            }
            Some(number) if record.succeeded.contains(&number) => number,
            Some(number) => {
                let message = format!("{number} is not a release of app {app} that ever served");
                return Err(ErrorBody::new(Code::NotFound, message).hint("`rung releases` lists them"));
            }
            None => *record.succeeded.iter().rev().find(|number| **number != current).ok_or_else(|| {
                ErrorBody::new(Code::Refused, format!("{current} is the first release of app {app}"))
                    .hint("deploy another one first; there is nothing to go back to")
            })?,
        };
        let found = self.read(|world| world.release(app, number).cloned());
        found.ok_or_else(|| ErrorBody::new(Code::NotFound, format!("release {number} is not kept any more")))
    }
}

pub async fn restart(
    State(control): State<Control>,
    named: Named,
    Body(request): Body<RestartRequest>,
) -> Answer<Started> {
    let app: AppName = named.get("app")?;
    let _turn = control.turn_of(&app).await?;
    for _ in 0..ATTEMPTS {
        let (record, revision) = control.record_of(&app)?;
        let Some(current) = record.current else {
            let message = format!("app {app} is not deployed yet: nothing can be restarted");
            return Err(ErrorBody::new(Code::Refused, message).into());
        };
        let what = Move::Again(current);
        if let Some(number) =
            control.begin(record, revision, DeploymentKind::Restart, what, &request.by).await?
        {
            return Ok(Json(Started::Deployment { number, release: Some(current), remarks: Vec::new() }));
        }
    }
    Err(contended(&format!("app {app}")).into())
}
