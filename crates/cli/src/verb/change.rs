//! Verbs that start a deployment: `restart`, `rollback`, `cancel`, `config set`.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context as _;
use rung_api::wire::{ConfigRequest, RestartRequest, RollbackRequest};

use super::Session;
use crate::args::{ConfigCommand, RollbackArgs, WaitArgs};
use crate::edge::{Exit, Hinted};
use crate::follow::{Follow, OnInterrupt};
use crate::person;
use crate::render::status::doing;

pub async fn restart(session: &mut Session<'_>, args: &WaitArgs) -> anyhow::Result<Exit> {
    let since = Instant::now();
    let app = session.app().await?;
    let request = RestartRequest { by: person::name() };
    let started =
        session.client.restart(&app, &request).await.with_context(|| format!("restarting {app}"))?;
    settle(session, &app, started, since, args).await
}

pub async fn rollback(session: &mut Session<'_>, args: &RollbackArgs) -> anyhow::Result<Exit> {
    let since = Instant::now();
    let app = session.app().await?;
    let request = RollbackRequest { to: args.release, by: person::name() };
    let started =
        session.client.rollback(&app, &request).await.with_context(|| format!("rolling {app} back"))?;
    settle(session, &app, started, since, &args.wait).await
}

pub(super) async fn settle(
    session: &mut Session<'_>,
    app: &rung_model::AppName,
    started: rung_api::wire::Started,
    since: Instant,
    wait: &WaitArgs,
) -> anyhow::Result<Exit> {
    let Session { client, screen, .. } = session;
    let follow = Follow { client, app, on_interrupt: OnInterrupt::Detach, wait: !wait.no_wait };
    follow.settle(started, since, screen).await
}

/// The deployment that is going on.
async fn going_on(
    session: &Session<'_>,
    app: &rung_model::AppName,
    hint: &str,
) -> anyhow::Result<rung_model::DeploymentNumber> {
    let status = session.client.app(app).await.with_context(|| format!("asking for the status of {app}"))?;
    let going_on = status.deployment.filter(|deployment| doing(deployment.phase).is_some());
    match going_on {
        Some(deployment) => Ok(deployment.number),
        None => Err(Hinted::failed(format!("no deployment of {app} is going on"), hint.to_owned()).into()),
    }
}

pub async fn go_on(session: &mut Session<'_>, args: &WaitArgs) -> anyhow::Result<Exit> {
    let since = Instant::now();
    let app = session.app().await?;
    let number = going_on(session, &app, "`rung deploy` begins one").await?;
    let context = || format!("continuing deployment {number} of {app}");
    session.client.continue_deployment(&app, number, &person::name()).await.with_context(context)?;
    if args.no_wait {
        session.screen.say(&format!("deployment {number} of {app} takes its next step"))?;
        return Ok(Exit::Done);
    }
    let Session { client, screen, .. } = session;
    let follow = Follow { client, app: &app, on_interrupt: OnInterrupt::Detach, wait: true };
    follow.to_its_end(number, since, screen).await
}

pub async fn cancel(session: &mut Session<'_>, args: &WaitArgs) -> anyhow::Result<Exit> {
    let since = Instant::now();
    let app = session.app().await?;
    let number = going_on(session, &app, "go back to an earlier release with `rung rollback`").await?;
    let context = || format!("cancelling deployment {number} of {app}");
    session.client.cancel(&app, number, &person::name()).await.with_context(context)?;
    if args.no_wait {
        session.screen.say(&format!("deployment {number} of {app} is being reverted"))?;
        return Ok(Exit::Done);
    }
    let Session { client, screen, .. } = session;
    let follow = Follow { client, app: &app, on_interrupt: OnInterrupt::Detach, wait: true };
    follow.to_its_end(number, since, screen).await?;
    // That it did not succeed is what was asked for; that it had succeeded already was said.
    Ok(Exit::Done)
}

pub async fn config(session: &mut Session<'_>, change: ConfigCommand) -> anyhow::Result<Exit> {
    let since = Instant::now();
    let (changes, wait): (BTreeMap<String, Option<String>>, WaitArgs) = match change {
        ConfigCommand::Set { values, wait } => {
            let values = crate::once::once(values, "name")?;
            (values.into_iter().map(|(name, value)| (name, Some(value))).collect(), wait)
        }
        ConfigCommand::Unset { names, wait } => (names.into_iter().map(|name| (name, None)).collect(), wait),
        ConfigCommand::Get { .. } => unreachable!("reading is dispatched elsewhere"),
    };
    let app = session.app().await?;
    let request = ConfigRequest { changes, by: person::name() };
    let context = || format!("changing the config of {app}");
    let started = session.client.set_config(&app, &request).await.with_context(context)?;
    settle(session, &app, started, since, &wait).await
}
