//! Verbs that change nothing.

use anyhow::Context as _;
use rung_api::wire::InstanceStatus;
use rung_api::{ClientError, Code};
use serde_json::json;

use super::Session;
use crate::args::StatusArgs;
use crate::edge::{Exit, Hinted};
use crate::note;
use crate::render;

pub async fn status(session: &mut Session<'_>, args: &StatusArgs) -> anyhow::Result<Exit> {
    if let Some(commit) = &args.commit {
        return super::releases::commit(session, commit, args.no_wait).await;
    }
    match crate::app::named(session.global)? {
        Some(app) => {
            let status = match session.client.app(&app).await {
                Ok(status) => status,
                Err(error) => return Err(elsewhere(session, error, &app).await),
            };
            session.screen.show(&status, render::status::render)?;
        }
        // Nothing says which: all of them.
        None => {
            let mut apps = session.client.apps().await?;
            if let Some(environment) = &session.global.environment {
                apps.retain(|status| status.app.environment() == *environment);
                if apps.is_empty() {
                    return Err(crate::app::none_in(environment).into());
                }
            }
            session
                .screen
                .show(&apps, |apps, paint, clock| render::status::render_all(apps, paint, clock))?;
        }
    }
    Ok(Exit::Done)
}

/// The app may be there in other environments.
async fn elsewhere(session: &Session<'_>, error: ClientError, app: &rung_model::AppName) -> anyhow::Error {
    let missing = error.code() == Some(Code::NotFound);
    let apps = if missing { session.client.apps().await.unwrap_or_default() } else { Vec::new() };
    let others: Vec<_> = apps.iter().filter(|status| status.app.base() == app.base()).collect();
    let Some(first) = others.first() else { return not_deployed(error, app) };
    let names = others.iter().map(|status| status.app.as_str()).collect::<Vec<_>>().join(", ");
    let hint = format!("it has {names}; say --env {}", first.app.environment());
    Hinted::failed(format!("the server has no app {app}"), hint).into()
}

fn not_deployed(error: ClientError, app: &rung_model::AppName) -> anyhow::Error {
    if error.code() == Some(Code::NotFound) {
        return Hinted::failed(format!("the server has no app {app}"), "deploy it with `rung deploy`").into();
    }
    anyhow::Error::from(error).context(format!("asking for the status of {app}"))
}

pub async fn ps(session: &mut Session<'_>) -> anyhow::Result<Exit> {
    let app = session.app().await?;
    let status = session.client.app(&app).await.map_err(|error| not_deployed(error, &app))?;
    // Beside the list, which programs read.
    status.problems.iter().for_each(|problem| note!("note: {problem}"));
    let instances: Vec<InstanceStatus> =
        status.services.into_iter().flat_map(|service| service.instances).collect();
    let runs = session.client.runs(&app).await.with_context(|| format!("listing the runs of {app}"))?;
    // Who may not see the nodes is told where instances are when they are on several.
    let nodes = session.client.nodes().await.map_or(0, |nodes| nodes.len());
    let place = render::instances::Place::of(&instances, nodes);
    session.screen.show(&instances, |all, paint, clock| {
        let mut text = render::instances::render(all, place, paint, clock);
        if !runs.is_empty() {
            text = format!("{text}\n\n{}", render::runs::render(&runs, paint, clock));
        }
        text
    })?;
    Ok(Exit::Done)
}

pub async fn config(session: &mut Session<'_>, name: Option<String>) -> anyhow::Result<Exit> {
    let app = session.app().await?;
    let config = session.client.config(&app).await.with_context(|| format!("reading the config of {app}"))?;
    let Some(name) = name else {
        session.screen.show(&config, |config, _, _| render::config::render(config))?;
        return Ok(Exit::Done);
    };
    let Some(value) = config.get(&name) else {
        let hint = "`rung config get` lists what is set; what the app file's [env] says is not listed";
        return Err(Hinted::failed(format!("{name} is not set for {app}"), hint).into());
    };
    // As it is: scripts read it.
    session.screen.show(value, |value, _, _| value.clone())?;
    Ok(Exit::Done)
}

pub async fn open(session: &mut Session<'_>) -> anyhow::Result<Exit> {
    let app = session.app().await?;
    let status = session.client.app(&app).await.map_err(|error| not_deployed(error, &app))?;
    let Some(url) = status.urls.first() else {
        let hint = "give a service a port, and deploy";
        return Err(Hinted::failed(format!("{app} is served nowhere"), hint).into());
    };
    session.screen.show(&json!({ "urls": status.urls }), |_, _, _| url.clone())?;
    let desktop = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
    if desktop && session.screen.is_terminal() {
        // The address is printed; a desktop without the opener is no failure.
        let _ = std::process::Command::new("xdg-open").arg(url).status();
    }
    Ok(Exit::Done)
}

pub async fn doctor(session: &mut Session<'_>) -> anyhow::Result<Exit> {
    let report = session.client.doctor().await.context("asking the server how it is")?;
    session.screen.show(&report, |report, paint, _| render::doctor::render(report, paint))?;
    Ok(if render::doctor::is_broken(&report) { Exit::Failed } else { Exit::Done })
}
