//! `rung maintenance`: a page instead of the app, and back.

use anyhow::Context as _;
use rung_api::wire::MaintenanceRequest;
use rung_model::route::Maintenance;

use super::Session;
use crate::args::MaintenanceArgs;
use crate::edge::Exit;
use crate::person;

pub async fn maintenance(session: &mut Session<'_>, args: &MaintenanceArgs) -> anyhow::Result<Exit> {
    let app = session.app().await?;
    let maintenance = args.switch.into();
    let request = MaintenanceRequest { maintenance, by: person::name() };
    let context = || format!("changing the maintenance of {app}");
    let status = session.client.maintenance(&app, &request).await.with_context(context)?;
    session.screen.show(&status, |_, paint, _| match maintenance {
        Maintenance::On => {
            let text = format!("{app} answers every request with its maintenance page");
            format!("{}\nend it with `rung maintenance off --app {app}`", paint.good(&text))
        }
        Maintenance::Off => paint.good(&format!("{app} answers requests again")),
    })?;
    Ok(Exit::Done)
}
