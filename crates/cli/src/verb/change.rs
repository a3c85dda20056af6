//! Verbs that start a deployment: `restart`, `rollback`, `cancel`, `config set`, `secret set`.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Read as _};
use std::time::Instant;

use anyhow::Context as _;
use rung_api::wire::{ConfigRequest, RestartRequest, RollbackRequest, SecretRequest};
use rung_model::SecretName;

use super::Session;
use crate::args::{ConfigCommand, RollbackArgs, SecretCommand, WaitArgs};
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

async fn settle(
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

pub async fn cancel(session: &mut Session<'_>, args: &WaitArgs) -> anyhow::Result<Exit> {
    let since = Instant::now();
    let app = session.app().await?;
    let status = session.client.app(&app).await.with_context(|| format!("asking for the status of {app}"))?;
    let going_on = status.deployment.filter(|deployment| doing(deployment.phase).is_some());
    let Some(deployment) = going_on else {
        let hint = "go back to an earlier release with `rung rollback`";
        return Err(Hinted::failed(format!("no deployment of {app} is going on"), hint).into());
    };
    let number = deployment.number;
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

pub async fn secrets(session: &mut Session<'_>, change: SecretCommand) -> anyhow::Result<Exit> {
    let (changes, wait) = match change {
        SecretCommand::Set { values, wait } => (values_of(values)?, wait),
        SecretCommand::Unset { names, wait } => (names.into_iter().map(|name| (name, None)).collect(), wait),
        SecretCommand::List => unreachable!("reading is dispatched elsewhere"),
    };
    let since = Instant::now();
    let app = session.app().await?;
    let request = SecretRequest { changes, by: person::name() };
    let context = || format!("changing the secrets of {app}");
    let started = session.client.set_secrets(&app, &request).await.with_context(context)?;
    settle(session, &app, started, since, &wait).await
}

/// Asks for the values that were not given: without echo on a terminal, else from standard input.
fn values_of(
    values: Vec<(SecretName, Option<String>)>,
) -> anyhow::Result<BTreeMap<SecretName, Option<String>>> {
    let asked = values.iter().filter(|(_, value)| value.is_none()).count();
    let terminal = std::io::stdin().is_terminal();
    if asked > 1 && !terminal {
        let message = "standard input holds one value, and several secrets have none";
        return Err(Hinted::usage(message, "set them one after the other").into());
    }
    let mut changes = BTreeMap::new();
    for (name, value) in values {
        let value = match value {
            Some(value) => value,
            None if terminal => prompt(&name)?,
            None => from_stdin(&name)?,
        };
        changes.insert(name, Some(value));
    }
    Ok(changes)
}

fn prompt(name: &SecretName) -> anyhow::Result<String> {
    let terminal = console::Term::stderr();
    terminal.write_str(&format!("value of {name} (not shown): ")).context("asking for the value")?;
    terminal.read_secure_line().with_context(|| format!("reading the value of {name}"))
}

/// More than this does not fit into an environment.
const SECRET_MAX: u64 = 128 * 1024;

fn from_stdin(name: &SecretName) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let reading = std::io::stdin().lock().take(SECRET_MAX + 1).read_to_end(&mut bytes);
    reading.with_context(|| format!("reading the value of {name} from standard input"))?;
    if bytes.len() as u64 > SECRET_MAX {
        return Err(Hinted::failed(
            format!("the value of {name} is longer than 128 KiB"),
            "an environment does not hold it",
        )
        .into());
    }
    let mut value = String::from_utf8(bytes).map_err(|_| {
        Hinted::failed(
            format!("the value of {name} is not UTF-8 text"),
            "encode it, for instance with `base64`",
        )
    })?;
    if value.is_empty() {
        let message = format!("standard input holds no value for {name}");
        let hint = format!("write {name}= when it shall be empty");
        return Err(Hinted::usage(message, hint).into());
    }
    // `echo` and editors add one.
    if value.ends_with('\n') {
        value.pop();
    }
    Ok(value)
}
