//! `rung maintenance`: an app answers with a page of its own instead of with its instances.

use axum::extract::State;
use rung_api::wire::{AppStatus, MaintenanceRequest};
use rung_model::AppName;
use rung_model::route::Maintenance;

use super::Answer;
use super::apps::as_seen_by;
use super::extract::{Body, Json, Named};
use crate::access::Caller;
use crate::shared::{ATTEMPTS, Committed, Control, contended};

pub async fn maintenance(
    State(control): State<Control>,
    caller: Caller,
    named: Named,
    Body(request): Body<MaintenanceRequest>,
) -> Answer<AppStatus> {
    let app: AppName = named.get("app")?;
    let word = match request.maintenance {
        Maintenance::On => "on",
        Maintenance::Off => "off",
    };
    let _turn = control.turn_of(&app).await?;
    for _ in 0..ATTEMPTS {
        let (mut record, revision) = control.record_of(&app)?;
        record.maintenance = request.maintenance;
        let (guard, op) = control.replace_app(&record, revision);
        if let Committed::Done = control.commit(vec![guard], vec![op]).await? {
            control.record(Some(&app), "maintenance", format!("{word} by {}", request.by));
            caller.note(word);
            return Ok(Json(as_seen_by(&caller, control.status_of(&app)?)));
        }
    }
    Err(contended(&format!("app {app}")).into())
}
