//! `rung deploy`.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use rung_api::Client;
use rung_api::wire::{DeployRequest, PromoteRequest, ReleaseRequest};
use rung_model::appfile::{self, AppFile};
use rung_model::{AppName, Asked, EnvironmentName, Goal, ImageSource, Origin, ReleaseCommand, ReleaseNumber};

use super::Session;
use crate::app::{FoundFile, find_file, in_environment};
use crate::args::{DeployArgs, PromoteArgs};
use crate::edge::{Exit, Hinted};
use crate::follow::{Follow, OnInterrupt};
use crate::import::{Note, app_json};
use crate::screen::Screen;
use crate::upload::{Tree, ensure_nothing, ensure_source};

/// How a directory is deployed.
#[derive(Debug, Clone)]
pub struct DeployOptions {
    /// Must be the name that `rung.toml` says; the name of an app that has a `Procfile` only.
    pub app: Option<AppName>,
    /// Production, when none is said.
    pub environment: Option<EnvironmentName>,
    pub note: Option<String>,
    pub sends: Sends,
    pub asked: Asked,
    pub wait: bool,
    pub on_interrupt: OnInterrupt,
    /// Where it comes from, when its directory is in no repository that says so.
    pub origin: Option<Origin>,
    /// Who deploys; `None`: the person who runs this.
    pub by: Option<String>,
    pub tree: Tree,
}

/// What of a directory is deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sends {
    Everything,
    /// What runs now goes on with another app file.
    AppFileOnly,
}

impl Default for DeployOptions {
    fn default() -> Self {
        Self {
            app: None,
            environment: None,
            note: None,
            sends: Sends::Everything,
            asked: Asked::default(),
            wait: true,
            on_interrupt: OnInterrupt::Detach,
            origin: None,
            by: None,
            tree: Tree::Directory,
        }
    }
}

pub(super) async fn deploy(session: &mut Session<'_>, args: DeployArgs) -> anyhow::Result<Exit> {
    if let Some(release) = args.release() {
        return deploy_release(session, release, &args).await;
    }
    let goal = if args.build_only { Goal::Release } else { Goal::Serve };
    let asked = Asked { release_command: args.release_command(), goal };
    let options = DeployOptions {
        app: session.global.app.clone(),
        environment: session.global.environment.clone(),
        note: args.message,
        sends: if args.config_only { Sends::AppFileOnly } else { Sends::Everything },
        asked,
        wait: !args.wait.no_wait,
        ..DeployOptions::default()
    };
    deploy_directory(&session.client, &args.directory, &options, &mut session.screen).await
}

/// A release that was made with `--build-only`.
async fn deploy_release(
    session: &mut Session<'_>,
    release: ReleaseNumber,
    args: &DeployArgs,
) -> anyhow::Result<Exit> {
    if args.config_only || args.build_only || args.message.is_some() {
        let message = format!("{release} is made already: it has its app file and its note");
        return Err(Hinted::usage(message, format!("say `rung deploy {release}` alone")).into());
    }
    let since = Instant::now();
    let app = session.app().await?;
    let request = ReleaseRequest { release_command: args.release_command(), by: crate::person::name() };
    let context = || format!("deploying {release} of {app}");
    let started = session.client.deploy_release(&app, release, &request).await.with_context(context)?;
    let Session { client, screen, .. } = session;
    let follow = Follow { client, app: &app, on_interrupt: OnInterrupt::Detach, wait: !args.wait.no_wait };
    follow.settle(started, since, screen).await
}

pub(super) async fn promote(session: &mut Session<'_>, args: PromoteArgs) -> anyhow::Result<Exit> {
    let since = Instant::now();
    let app = session.app().await?;
    let from = app.in_environment(&args.from);
    if from == app {
        let message = format!("{app} would be promoted to itself");
        return Err(Hinted::usage(message, "name the environment to promote to with --env").into());
    }
    let skips = args.skip_release;
    let request = PromoteRequest {
        from: from.clone(),
        release: args.release,
        release_command: if skips { ReleaseCommand::Skip } else { ReleaseCommand::Once },
        note: args.message,
        by: crate::person::name(),
    };
    let context = || format!("promoting {from} to {}", app.environment());
    let started = session.client.promote(&app, &request).await.with_context(context)?;
    let Session { client, screen, .. } = session;
    let follow = Follow { client, app: &app, on_interrupt: OnInterrupt::Detach, wait: !args.wait.no_wait };
    follow.settle(started, since, screen).await
}

/// Builds, releases and rolls out what is in `dir`, and shows how it goes.
///
/// # Errors
/// The app file or the directory is wrong, somebody else is deploying, or the server can't be reached. A deployment
/// that does not succeed is no error but an [`Exit`], already explained.
pub async fn deploy_directory(
    client: &Client,
    dir: &Path,
    options: &DeployOptions,
    screen: &mut Screen,
) -> anyhow::Result<Exit> {
    let since = Instant::now();
    let deployed = deploy_since(since, client, dir, options, screen).await;
    screen.still();
    deployed
}

async fn deploy_since(
    since: Instant,
    client: &Client,
    dir: &Path,
    options: &DeployOptions,
    screen: &mut Screen,
) -> anyhow::Result<Exit> {
    let Meant { found, file, notes } = app_file(dir, options.app.as_ref(), options.environment.as_ref())?;
    let app = &file.app;
    screen.say(&screen.paint.bold(&format!("deploying {app}")))?;
    let app_json = found.path.with_file_name(app_json::FILE_NAME).display().to_string();
    for note in &notes {
        screen.say(&format!("  {}", note.line_in(&app_json)))?;
    }
    let is_image_by_name = matches!(&file.build.image, Some(ImageSource::Name { .. }));
    let source = match options.sends {
        Sends::Everything if is_image_by_name => Some(ensure_nothing(client, screen).await?.digest),
        Sends::Everything => Some(ensure_source(client, dir, options.tree, screen).await?.digest),
        Sends::AppFileOnly => None,
    };
    let request = DeployRequest {
        file: found.text()?,
        source,
        origin: match options.tree {
            Tree::Directory => crate::git::origin(dir),
            Tree::Commit => options.origin.clone(),
        },
        asked: options.asked,
        note: options.note.clone(),
        by: options.by.clone().unwrap_or_else(crate::person::name),
    };
    screen.moving("starting");
    let started = client.deploy(app, &request).await.with_context(|| format!("deploying {app}"))?;
    let follow = Follow { client, app, on_interrupt: options.on_interrupt, wait: options.wait };
    follow.settle(started, since, screen).await
}

/// Finds out whether a directory could be deployed, as far as its app file says.
///
/// # Errors
/// There is no app file, or something is wrong with it.
pub fn check_directory(dir: &Path, environment: Option<&EnvironmentName>) -> anyhow::Result<()> {
    app_file(dir, None, environment).map(drop)
}

/// What a directory says of its app.
struct Meant {
    found: FoundFile,
    file: AppFile,
    /// What an `app.json` says and is not honoured.
    notes: Vec<Note>,
}

fn app_file(
    dir: &Path,
    said: Option<&AppName>,
    environment: Option<&EnvironmentName>,
) -> anyhow::Result<Meant> {
    let found = find_file(dir)?.ok_or_else(|| no_file(dir))?;
    read_file(found, dir, said, environment)
}

fn read_file(
    found: FoundFile,
    dir: &Path,
    said: Option<&AppName>,
    environment: Option<&EnvironmentName>,
) -> anyhow::Result<Meant> {
    let app = said.cloned().or_else(|| found.directory_name.clone());
    let app = app.map_or_else(|| AppName::new("app").context("naming the app"), Ok)?;
    if found.name == appfile::PROCFILE && said.is_none() && found.directory_name.is_none() {
        let message = format!("a Procfile does not name its app, and {} makes no name", dir.display());
        return Err(Hinted::usage(message, "name it with --app").into());
    }
    let (found, notes) = found.settled(&app)?;
    let file = found.parse(&in_environment(&app, environment)?)?;
    match said {
        Some(said) if said.base() != file.app.base() => {
            let message = format!("{} says app = \"{}\", and --app says {said}", found.name, file.app.base());
            Err(Hinted::usage(message, "leave --app out, or change the file").into())
        }
        _ => Ok(Meant { found, file, notes }),
    }
}

fn no_file(dir: &Path) -> anyhow::Error {
    if !dir.is_dir() {
        return Hinted::failed(format!("{} is not a directory", dir.display()), "name the app's directory")
            .into();
    }
    let name =
        dir.canonicalize().ok().and_then(|dir| Some(appfile::slug(&dir.file_name()?.to_string_lossy())));
    let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| "shop".to_owned());
    let hint = format!(
        "write a rung.toml there:\n\n    app = \"{name}\"\n\n    [services.web]\n    command = \"bin/server\"   # listens on 127.0.0.1:$PORT\n"
    );
    Hinted::failed(format!("there is no rung.toml and no Procfile in {}", dir.display()), hint).into()
}
