//! `rung destroy`: shows what is lost, asks, and waits until it is gone.

use std::io::{BufRead as _, IsTerminal as _};
use std::time::Duration;

use anyhow::Context as _;
use rung_api::wire::{AppStatus, DestroyRequest};
use rung_api::{Client, ClientError, Code};
use rung_model::AppName;
use rung_model::app::Destroying;

use super::Session;
use crate::args::DestroyArgs;
use crate::edge::{Exit, Hinted};
use crate::follow::may_pass;
use crate::{person, render};

/// Between two looks whether the app is gone.
const LOOK: Duration = Duration::from_millis(100);

pub async fn destroy(session: &mut Session<'_>, args: &DestroyArgs) -> anyhow::Result<Exit> {
    let app = session.app().await?;
    let status = session.client.app(&app).await.with_context(|| format!("destroying {app}"))?;
    let volumes = if args.volumes { Destroying::WithVolumes } else { Destroying::KeepVolumes };
    if !session.global.yes {
        session.screen.say(&plan(&status, volumes))?;
        confirm(app.as_str())?;
    }
    let request = DestroyRequest { volumes, by: person::name() };
    session.client.destroy(&app, &request).await.with_context(|| format!("destroying {app}"))?;
    if !args.wait.no_wait {
        session.screen.moving(&format!("stopping {app}"));
        until_gone(&session.client, &app).await.with_context(|| format!("waiting until {app} is gone"))?;
    }
    session.screen.still();
    let words = if args.wait.no_wait { "is being destroyed" } else { "is destroyed" };
    session.screen.show(&serde_json::json!({ "app": app, "destroyed": !args.wait.no_wait }), |_, _, _| {
        format!("{app} {words}")
    })?;
    Ok(Exit::Done)
}

async fn until_gone(client: &Client, app: &AppName) -> Result<(), ClientError> {
    loop {
        match client.app(app).await {
            Err(error) if error.code() == Some(Code::NotFound) => return Ok(()),
            Err(error) if !may_pass(&error) => return Err(error),
            Ok(_) | Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

fn plan(status: &AppStatus, volumes: Destroying) -> String {
    let instances: usize = status.services.iter().map(|service| service.instances.len()).sum();
    let volumes = match volumes {
        Destroying::KeepVolumes => "its volumes stay (--volumes takes them, too)",
        Destroying::WithVolumes => "its volumes, with everything that is in them",
    };
    let instances = render::count(instances as u64, "instance");
    format!(
        "this stops {} ({instances}) and removes its releases, config, secrets and logs;\n{volumes}",
        status.app
    )
}

fn confirm(app: &str) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(
            Hinted::usage(format!("destroying {app} asks first"), "say -y where nobody can answer").into()
        );
    }
    let terminal = console::Term::stderr();
    terminal.write_str("type the app's name to go on: ").context("asking")?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("reading the answer")?;
    if line.trim() == app {
        return Ok(());
    }
    Err(Hinted::failed(
        format!("{:?} is not {app}: nothing was destroyed", line.trim()),
        "type the app's name",
    )
    .into())
}
