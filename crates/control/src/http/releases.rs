//! Releases in detail, two of them compared, one of another environment promoted, and what became of a commit.

use axum::extract::State;
use rung_api::wire::{
    CommitState, CommitStatus, PromoteRequest, ReleaseDetail, ReleaseDiff, ReleaseRequest, Started,
};
use rung_api::{Code, ErrorBody};
use rung_model::{
    App, AppName, Asked, Deployment, DeploymentKind, Draft, Goal, Outcome, Promoted, Provenance, Release,
    ReleaseNumber, Role, Run,
};
use rung_planner::World;

use super::Answer;
use super::apps::no_such_app;
use super::deploy::{Move, require_secrets};
use super::extract::{Body, Json, Named, Query, Wait};
use crate::access::Caller;
use crate::diff;
use crate::prune::{artifacts_in_use, waits};
use crate::shared::{ATTEMPTS, Control, contended};
use crate::status::{listing, summary};

/// Fewer digits name several commits before long.
const COMMIT_DIGITS_MIN: usize = 7;

pub(super) fn no_such_release(app: &AppName, number: ReleaseNumber) -> ErrorBody {
    ErrorBody::new(Code::NotFound, format!("app {app} has no release {number}"))
        .hint("`rung releases` lists those that are kept")
}

impl Control {
    fn release_of(&self, app: &AppName, number: ReleaseNumber) -> Result<Release, ErrorBody> {
        self.status_of(app)?;
        let found = self.read(|world| world.release(app, number).cloned());
        found.ok_or_else(|| no_such_release(app, number))
    }

    async fn refuse_pruned(&self, release: &Release) -> Result<(), ErrorBody> {
        if self.has_artifact(&release.artifact).await? {
            return Ok(());
        }
        let why = self.inner.trees.why_not(&release.artifact);
        let message = format!("the artifact of {} of app {} {why}", release.number, release.app);
        Err(ErrorBody::new(Code::Refused, message).hint("deploy its source again"))
    }
}

pub async fn show(State(control): State<Control>, named: Named) -> Answer<ReleaseDetail> {
    let app: AppName = named.get("app")?;
    let release = control.release_of(&app, named.get("release")?)?;
    let mut detail = control.read(|world| detail(world, release));
    control.find_unpruned(&app, std::slice::from_mut(&mut detail.listing)).await;
    Ok(Json(detail))
}

fn detail(world: &World, release: Release) -> ReleaseDetail {
    let all = world.deployments.get(&release.app).into_iter().flat_map(|of_app| of_app.values());
    let of_release: Vec<&Deployment> =
        all.map(|held| &held.value).filter(|deployment| deployment.release == Some(release.number)).collect();
    let build = release.provenance.build.clone();
    let ids =
        of_release.iter().flat_map(|deployment| &deployment.runs).filter(|id| Some(*id) != build.as_ref());
    let ids = build.iter().chain(ids);
    let runs: Vec<Run> = ids.filter_map(|id| world.runs.get(id)).map(|held| held.value.clone()).collect();
    ReleaseDetail {
        listing: listing(world, &artifacts_in_use(world), &release),
        deployments: of_release.into_iter().map(summary).collect(),
        build,
        promoted_from: release.provenance.promoted_from,
        config: release.config,
        secrets: release.secrets,
        runs,
    }
}

pub async fn diff(State(control): State<Control>, named: Named) -> Answer<ReleaseDiff> {
    let app: AppName = named.get("app")?;
    let from = control.release_of(&app, named.get("release")?)?;
    let to = control.release_of(&app, named.get("other")?)?;
    let trees = if from.artifact == to.artifact {
        Ok(Default::default())
    } else {
        let before = control.inner.trees.listing(&from.artifact).await;
        let after = control.inner.trees.listing(&to.artifact).await;
        before.and_then(|before| Ok((before, after?))).map_err(|error| error.message)
    };
    Ok(Json(ReleaseDiff {
        from: from.number,
        to: to.number,
        artifact: diff::artifacts(&from.artifact, &to.artifact, trees),
        file: diff::files(&from.file, &to.file),
        config: diff::config(&from, &to),
        secrets: diff::secrets(&from, &to),
    }))
}

/// Rolls out a release that was made and never served: as it is, or, when config or secrets have changed since, as the
/// next release with those of now.
pub async fn deploy(
    State(control): State<Control>,
    caller: Caller,
    named: Named,
    Body(request): Body<ReleaseRequest>,
) -> Answer<Started> {
    let (app, number): (AppName, ReleaseNumber) = (named.get("app")?, named.get("release")?);
    let _turn = control.turn_of(&app).await?;
    for _ in 0..ATTEMPTS {
        let (record, revision) = control.record_of(&app)?;
        let release = control.release_of(&app, number)?;
        if record.current == Some(number) {
            return Ok(Json(Started::Unchanged { release: number }));
        }
        if !control.read(|world| waits(world, &app, number)) {
            let message = format!("{number} of app {app} was rolled out before");
            let hint = format!("go back to it with `rung rollback {number}`, or deploy its source again");
            return Err(ErrorBody::new(Code::Refused, message).hint(hint).into());
        }
        control.refuse_pruned(&release).await?;
        require_secrets(&record, &release.file)?;
        control.refuse_taken_hosts(&caller, &app, Some(&release.file))?;
        let asked = Asked { release_command: request.release_command, goal: Goal::Serve };
        let (what, remarks) = as_of_now(&record, release);
        let begun =
            control.begin_as(record, revision, DeploymentKind::Deploy, what, &request.by, asked).await?;
        if let Some(number) = begun {
            return Ok(Json(Started::Deployment { number, release: None, remarks }));
        }
    }
    Err(contended(&format!("app {app}")).into())
}

fn as_of_now(record: &App, release: Release) -> (Move, Vec<String>) {
    if release.config == record.config && release.secrets == record.secrets {
        return (Move::Made(release.number), Vec::new());
    }
    let remark =
        format!("config or secrets have changed since {} was made: those of now are used", release.number);
    let draft = Draft {
        reason: format!("deploy of {}", release.number),
        file: release.file,
        config: record.config.clone(),
        secrets: record.secrets.clone(),
        source: release.source,
        artifact: Some(release.artifact),
        note: release.note,
        provenance: release.provenance,
    };
    (Move::Make(Box::new(draft)), vec![remark])
}

pub async fn promote(
    State(control): State<Control>,
    caller: Caller,
    named: Named,
    Body(request): Body<PromoteRequest>,
) -> Answer<Started> {
    let app: AppName = named.get("app")?;
    if request.from.base() != app.base() || request.from == app {
        let message = format!("{} is not another environment of app {app}", request.from);
        return Err(ErrorBody::new(Code::InvalidRequest, message).into());
    }
    if !caller.may(Role::Viewer, &request.from) {
        return Err(no_such_app(&request.from).into());
    }
    let _turn = control.turn_of(&app).await?;
    for _ in 0..ATTEMPTS {
        let promoted = control.promoted(&request)?;
        control.refuse_pruned(&promoted).await?;
        let (record, revision) = control.record_or_new(&app)?;
        let draft = promotion(&record, promoted, &request)?;
        require_secrets(&record, &draft.file)?;
        control.refuse_taken_hosts(&caller, &app, Some(&draft.file))?;
        let asked = Asked { release_command: request.release_command, goal: Goal::Serve };
        if let Some(release) = control.is_unchanged(&record, &draft, asked) {
            return Ok(Json(Started::Unchanged { release }));
        }
        let what = Move::Make(Box::new(draft));
        let begun =
            control.begin_as(record, revision, DeploymentKind::Promote, what, &request.by, asked).await?;
        if let Some(number) = begun {
            return Ok(Json(Started::Deployment { number, release: None, remarks: Vec::new() }));
        }
    }
    Err(contended(&format!("app {app}")).into())
}

impl Control {
    /// The release whose artifact is taken over: one that serves, or has served, or waits to be rolled out there.
    fn promoted(&self, request: &PromoteRequest) -> Result<Release, ErrorBody> {
        let from = &request.from;
        let (record, _) = self.record_of(from)?;
        let Some(number) = request.release.or(record.current) else {
            let message = format!("app {from} serves nothing that could be promoted");
            return Err(ErrorBody::new(Code::Refused, message).hint("deploy it there first"));
        };
        let is_good = record.succeeded.contains(&number) || self.read(|world| waits(world, from, number));
        let release = self.release_of(from, number)?;
        if is_good {
            return Ok(release);
        }
        let message = format!("{number} of app {from} never served");
        Err(ErrorBody::new(Code::Refused, message).hint("promote one that did: `rung releases` shows them"))
    }
}

/// The very same artifact, with what its app file says for this environment, and with this environment's settings.
fn promotion(record: &App, promoted: Release, request: &PromoteRequest) -> Result<Draft, ErrorBody> {
    let Release { app: from, number, provenance, .. } = promoted;
    let Some(text) = provenance.text else {
        let message =
            format!("{number} of app {from} was made by a version that did not keep its app file's text");
        return Err(ErrorBody::new(Code::Refused, message).hint("deploy it there again, then promote that"));
    };
    let file = text
        .parse(&record.name)
        .map_err(|errors| ErrorBody::new(Code::InvalidAppFile, errors.to_string()))?;
    if file.build.command != promoted.file.build.command {
        let message =
            format!("the build command here is not the one that made the artifact of {from} {number}");
        return Err(ErrorBody::new(Code::Refused, message)
            .hint("take `build.command` out of the overlays, or deploy the source here"));
    }
    Ok(Draft {
        file,
        config: record.config.clone(),
        secrets: record.secrets.clone(),
        source: promoted.source,
        artifact: Some(promoted.artifact),
        reason: format!("promoted from {from} {number}"),
        note: request.note.clone().or(promoted.note),
        provenance: Provenance {
            text: Some(text),
            promoted_from: Some(Promoted { app: from, release: number }),
            ..provenance
        },
    })
}

pub async fn commit(
    State(control): State<Control>,
    named: Named,
    Query(wait): Query<Wait>,
) -> Answer<CommitStatus> {
    let app: AppName = named.get("app")?;
    let digits = named.text("commit").to_ascii_lowercase();
    if digits.len() < COMMIT_DIGITS_MIN || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        let message = format!("{digits:?} is not a commit: name it by {COMMIT_DIGITS_MIN} digits or more");
        return Err(ErrorBody::new(Code::InvalidRequest, message).into());
    }
    control.status_of(&app)?;
    let look = |world: &World| commit_status(world, &app, &digits);
    let ended = control.wait_for(wait.duration(), |reconcile| match look(reconcile.world()) {
        Some(status) if status.state == CommitState::Going => None,
        other => Some(other),
    });
    let found = match ended.await {
        Some(found) => found,
        None => control.read(look),
    };
    found.map(Json).ok_or_else(|| {
        let message = format!("app {app} has no deployment of commit {digits}");
        ErrorBody::new(Code::NotFound, message).hint("`rung releases` shows the commits that it knows").into()
    })
}

fn commit_status(world: &World, app: &AppName, digits: &str) -> Option<CommitStatus> {
    let origin_of = |number: ReleaseNumber| world.release(app, number)?.provenance.origin.as_ref();
    // One that has its draft still made no release of its own.
    let brought = |deployment: &Deployment| match &deployment.draft {
        Some(draft) => draft.provenance.origin.clone(),
        None => deployment.release.and_then(origin_of).cloned(),
    };
    let of_commit = |deployment: &&Deployment| {
        brought(deployment).is_some_and(|origin| origin.commit.as_str().starts_with(digits))
    };
    let mut newest_first = world.deployments.get(app)?.values().rev().map(|held| &held.value);
    let deployment = newest_first.find(of_commit)?;
    let commit = brought(deployment)?.commit;
    let current = world.apps.get(app).and_then(|held| held.value.current);
    // Of a deployment that had nothing to change, too: what it brought is what serves.
    let changed_nothing = deployment.draft.is_some() && deployment.release == current && current.is_some();
    let of_current = current.and_then(origin_of).is_some_and(|origin| origin.commit == commit);
    Some(CommitStatus {
        state: match deployment.outcome() {
            None => CommitState::Going,
            Some(Outcome::Succeeded) => CommitState::Succeeded,
            Some(Outcome::RolledBack) => CommitState::RolledBack,
            Some(Outcome::Failed) => CommitState::Failed,
        },
        serves: changed_nothing || of_current,
        deployment: summary(deployment),
        commit,
    })
}
