//! Apps: shown, scaled, destroyed; and what concerns the server as a whole.

use axum::extract::State;
use rung_api::wire::{
    AppStatus, DestroyRequest, DoctorReport, HealthReport, OwnPlace, ReleaseListing, ScaleRequest,
    UpgradeRequest,
};
use rung_api::{Code, ErrorBody};
use rung_model::app::Destroying;
use rung_model::{App, AppFile, AppName, Role, Scale, keys};
use rung_store::{Guard, Op};

use super::extract::{Body, Json, Named};
use super::{Answer, Refused};
use crate::access::Caller;
use crate::shared::{ATTEMPTS, Committed, Control, contended};
use crate::status;

/// A typing mistake must not ask one machine for a million processes.
const COUNT_MAX: u32 = 1000;

pub(crate) fn no_such_app(app: &AppName) -> ErrorBody {
    ErrorBody::new(Code::NotFound, format!("there is no app {app}")).hint("`rung status` lists the apps")
}

impl Control {
    pub(crate) fn status_of(&self, app: &AppName) -> Result<AppStatus, ErrorBody> {
        let found = self.read_loop(|reconcile| status::app_status(reconcile, app, &self.inner.http));
        let mut status = found.ok_or_else(|| no_such_app(app))?;
        if let Some(port) = self.inner.services {
            for service in &mut status.services {
                let address = self.read(|world| world.address(app, &service.name));
                let address = address.filter(|_| service.port);
                service.inside = address.map(|address| format!("http://{address}:{port}"));
            }
        }
        status.problems.extend(self.store_trouble());
        status.problems.extend(self.certificate_problems(app));
        Ok(status)
    }

    /// The app's record with the revision it was read at. An app that is being destroyed is not to be changed.
    pub(crate) fn record_of(&self, app: &AppName) -> Result<(App, u64), ErrorBody> {
        let held = self.read(|world| world.apps.get(app).cloned()).ok_or_else(|| no_such_app(app))?;
        if held.value.destroying.is_some() {
            let message = format!("app {app} is being destroyed");
            return Err(
                ErrorBody::new(Code::Refused, message).hint("wait until it is gone, then deploy it anew")
            );
        }
        Ok((held.value, held.revision))
    }

    /// Replaces an app's record if nobody else did meanwhile.
    pub(crate) fn replace_app(&self, app: &App, revision: u64) -> (Guard, Op) {
        let key = keys::app(&app.name);
        let value = self.encode(&key, app);
        (Guard::Modified { key: key.clone(), revision }, Op::Put { key, value, lease: None })
    }

    /// The app file of the release that serves.
    pub(crate) fn current_file(&self, app: &App) -> Option<AppFile> {
        self.read(|world| Some(world.release(&app.name, app.current?)?.file.clone()))
    }
}

pub async fn health(State(control): State<Control>) -> Json<HealthReport> {
    Json(HealthReport {
        version: control.inner.version.clone(),
        node: control.inner.node.clone(),
        http: control.inner.http.clone(),
        data: control.inner.data.display().to_string(),
        started: control.inner.started_at,
    })
}

pub async fn list(State(control): State<Control>, caller: Caller) -> Json<Vec<AppStatus>> {
    let apps: Vec<AppName> = control
        .read(|world| world.apps.keys().filter(|app| caller.may(Role::Viewer, app)).cloned().collect());
    // One that is forgotten in between is left out.
    let shown = apps.iter().filter_map(|app| control.status_of(app).ok());
    Json(shown.map(|status| as_seen_by(&caller, status)).collect())
}

pub async fn show(State(control): State<Control>, caller: Caller, named: Named) -> Answer<AppStatus> {
    Ok(Json(as_seen_by(&caller, control.status_of(&named.get("app")?)?)))
}

/// Without the environments that the caller may not see.
pub(super) fn as_seen_by(caller: &Caller, mut status: AppStatus) -> AppStatus {
    status.environments.retain(|other| caller.may(Role::Viewer, &other.app));
    status
}

pub async fn releases(State(control): State<Control>, named: Named) -> Answer<Vec<ReleaseListing>> {
    let app: AppName = named.get("app")?;
    control.status_of(&app)?;
    let mut listed = control.read(|world| status::releases(world, &app));
    control.find_unpruned(&app, &mut listed).await;
    Ok(Json(listed))
}

/// For the other servers.
pub async fn own_artifacts(State(control): State<Control>) -> Json<OwnPlace> {
    Json(control.inner.trees.own_place().await)
}

pub async fn doctor(State(control): State<Control>) -> Json<DoctorReport> {
    Json(control.doctor().await)
}

pub async fn scale(
    State(control): State<Control>,
    caller: Caller,
    named: Named,
    Body(request): Body<ScaleRequest>,
) -> Answer<AppStatus> {
    let app: AppName = named.get("app")?;
    let _turn = control.turn_of(&app).await?;
    for _ in 0..ATTEMPTS {
        let (mut record, revision) = control.record_of(&app)?;
        let file = control.current_file(&record).ok_or_else(|| {
            ErrorBody::new(Code::Refused, format!("app {app} is not deployed yet"))
                .hint("`instances` in rung.toml says how many there are at first")
        })?;
        check_counts(&file, &request)?;
        for (service, count) in &request.services {
            let from_file = file.services[service].instances;
            record.scale.insert(service.clone(), Scale { count: *count, from_file });
        }
        let (guard, op) = control.replace_app(&record, revision);
        if let Committed::Done = control.commit(vec![guard], vec![op]).await? {
            let asked: Vec<String> =
                request.services.iter().map(|(service, count)| format!("{service}={count}")).collect();
            control.record(Some(&app), "scaled", format!("{} by {}", asked.join(" "), request.by));
            caller.note(asked.join(" "));
            return Ok(Json(as_seen_by(&caller, control.status_of(&app)?)));
        }
    }
    Err(contended(&format!("app {app}")).into())
}

fn check_counts(file: &AppFile, request: &ScaleRequest) -> Result<(), ErrorBody> {
    for (service, count) in &request.services {
        let Some(declared) = file.services.get(service) else {
            let known: Vec<&str> = file.services.keys().map(|name| name.as_str()).collect();
            let message = format!("app {} has no service {service}", file.app);
            return Err(ErrorBody::new(Code::NotFound, message).hint(format!("it has {}", known.join(", "))));
        };
        if declared.exclusive && *count > 1 {
            let message = format!("service {service} is exclusive: it can't have {count} instances");
            return Err(ErrorBody::new(Code::Refused, message)
                .hint("one process owns its state; remove `exclusive` when that is not so any more"));
        }
        if *count > COUNT_MAX {
            let message = format!("{count} instances of {service} are too many: {COUNT_MAX} at most");
            return Err(ErrorBody::new(Code::InvalidRequest, message));
        }
    }
    Ok(())
}

pub async fn destroy(
    State(control): State<Control>,
    caller: Caller,
    named: Named,
    Body(request): Body<DestroyRequest>,
) -> Answer<()> {
    let app: AppName = named.get("app")?;
    if request.volumes == Destroying::WithVolumes {
        // Everything else can be deployed again.
        caller.require(Role::Admin, &app)?;
    }
    let _turn = control.turn_of(&app).await?;
    for _ in 0..ATTEMPTS {
        let held = control.read(|world| world.apps.get(&app).cloned()).ok_or_else(|| no_such_app(&app))?;
        let mut record = held.value;
        record.destroying = Some(request.volumes);
        let (guard, op) = control.replace_app(&record, held.revision);
        if let Committed::Done = control.commit(vec![guard], vec![op]).await? {
            // What can't be removed now is by the next round of pruning, or the first push to an app of this name.
            let _ = control.inner.repositories.forget(&app).await;
            control.record(Some(&app), "destroyed", format!("app {app} is destroyed by {}", request.by));
            return Ok(Json(()));
        }
    }
    Err(contended(&format!("app {app}")).into())
}

pub async fn upgrade(State(control): State<Control>, Body(request): Body<UpgradeRequest>) -> Answer<()> {
    if !request.program.is_absolute() || !request.program.is_file() {
        let message = format!("{} is not a program on the server's machine", request.program.display());
        return Err(Refused(ErrorBody::new(Code::InvalidRequest, message).hint("give its absolute path")));
    }
    let taken = control.inner.upgrades.try_send(request.program);
    taken.map_err(|_| ErrorBody::new(Code::Conflict, "another upgrade is going on"))?;
    Ok(Json(()))
}
