//! The gate of `git push`: git starts it as its pre-receive hook, and it deploys what is pushed.
//!
//! What it prints is what the person sees in the push's output; that it fails is what keeps the branch from moving. It
//! runs as the server's user and finds the server by its socket: the server has found out already who may push here, and
//! says so in the environment, with the token that the push came with: the gate deploys by it, and may no more than it.
//! Everything that was pushed is somebody else's: it is judged ([`tree`]) before a file of it is written, names are never
//! read by a shell, and nothing is followed that could lead out of the tree.

mod tree;
mod update;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use anyhow::Context as _;
use rung_api::{Address, Client};
use rung_model::appfile::AppFile;
use rung_model::{AppName, CommitId, Origin};

use crate::app::find_file;
use crate::edge::{Exit, Hinted, explain};
use crate::follow::OnInterrupt;
use crate::render::harmless;
use crate::screen::{Format, Screen};
use crate::upload::Tree;
use crate::verb::command::quoted;
use crate::verb::deploy::{DeployOptions, deploy_directory};
use crate::{note, say};
use update::Update;

/// What a push may say of what it moves: thousands of tags fit.
const UPDATES_MAX_BYTES: u64 = 1024 * 1024;

/// A subject longer than this is a message without one.
const NOTE_MAX_CHARS: usize = 200;

/// Judges and deploys what is pushed. What it exits with is git's answer: anything but 0 refuses the push.
pub fn gate_main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting");
    let decided = runtime.and_then(|runtime| runtime.block_on(async { Gate::from_git()?.decide().await }));
    let exit = match decided {
        Ok(Exit::Done) => return ExitCode::SUCCESS,
        Ok(exit) => exit,
        Err(error) => {
            let (text, exit) = explain(&error);
            note!("{text}");
            // That nobody reads on is no word for yes.
            if exit == Exit::Done { Exit::Failed } else { exit }
        }
    };
    note!("the push is refused, no branch has moved (exit code {})", exit.code());
    ExitCode::FAILURE
}

struct Gate {
    app: AppName,
    by: String,
    client: Client,
    turn: Turn,
    /// A directory of its own, which the server removes.
    scratch: PathBuf,
    /// The repository, which git started it in.
    repository: PathBuf,
    updates: Vec<Update>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Mine,
    Taken,
}

impl Gate {
    fn from_git() -> anyhow::Result<Self> {
        let told = |name: &str| {
            let value = std::env::var(name);
            value.map_err(|_| {
                Hinted::usage(format!("there is no {name}"), "git starts this; a person does not")
            })
        };
        let mut bytes = Vec::new();
        let reading = std::io::stdin().lock().take(UPDATES_MAX_BYTES + 1).read_to_end(&mut bytes);
        reading.context("reading what git says")?;
        if bytes.len() as u64 > UPDATES_MAX_BYTES {
            return Err(Hinted::failed("the push moves too many names", "push one branch").into());
        }
        let address: Address = told("RUNG_GATE_API")?.parse()?;
        Ok(Self {
            app: AppName::new(told("RUNG_GATE_APP")?)?,
            by: told("RUNG_GATE_BY")?,
            client: Client::new(address, std::env::var("RUNG_GATE_TOKEN").ok()),
            turn: if told("RUNG_GATE_TURN")? == "mine" { Turn::Mine } else { Turn::Taken },
            scratch: told("RUNG_GATE_SCRATCH")?.into(),
            repository: std::env::current_dir().context("looking where git started this")?,
            updates: update::parse(&bytes)?,
        })
    }

    async fn decide(&self) -> anyhow::Result<Exit> {
        let app = &self.app;
        if self.turn == Turn::Taken {
            let message = format!("another push to {app} is going on");
            return Err(Hinted {
                exit: Exit::Deploying,
                ..Hinted::failed(message, "push again when it has ended")
            }
            .into());
        }
        let Some(head) = update::only_branch(&self.updates)? else {
            say!("tags are kept, and nothing is deployed");
            return Ok(Exit::Done);
        };
        self.refuse_moved(head)?;
        let directory = self.check_out(head)?;
        // What is wrong with the app file is told by its name in the repository.
        std::env::set_current_dir(&directory).context("entering what was pushed")?;
        let file = self.app_file(head)?;
        if !file.git.deploys(&head.branch) {
            return Err(not_deployed(head, &file).into());
        }
        self.tell_rewritten(head)?;
        let options = DeployOptions {
            app: Some(app.clone()),
            note: self.subject(head)?,
            origin: CommitId::new(head.new.clone()).ok().map(|commit| Origin {
                commit,
                branch: Some(head.branch.clone()),
                dirty: false,
            }),
            on_interrupt: OnInterrupt::LeaveToCaller,
            by: Some(self.by.clone()),
            tree: Tree::Commit,
            ..DeployOptions::default()
        };
        let mut screen = Screen::stdout(Format::People);
        deploy_directory(&self.client, Path::new("."), &options, &mut screen).await
    }

    /// Git looks, too, but only when everything is deployed.
    fn refuse_moved(&self, head: &Update) -> anyhow::Result<()> {
        let now = self.git(&["rev-parse", "--verify", "--quiet", "--end-of-options", &head.name])?;
        let now = String::from_utf8_lossy(&now.stdout).trim().to_owned();
        if now == head.old || (now.is_empty() && head.is_new()) {
            return Ok(());
        }
        let message = format!("somebody else has pushed {} in between", head.branch);
        Err(Hinted::failed(message, "git fetch, look at what is new there, and push again").into())
    }

    /// Writes the commit's tree into a directory, once it was found to be harmless.
    fn check_out(&self, head: &Update) -> anyhow::Result<PathBuf> {
        tree::judge(self.command(&["ls-tree", "-r", "-t", "-l", "-z", "--full-tree", &head.new]))?;
        let directory = self.scratch.join("tree");
        std::fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let index = self.scratch.join("index");
        for arguments in [&["read-tree", &head.new][..], &["checkout-index", "--all", "--force", "--quiet"]] {
            let mut command = self.command(arguments);
            command.env("GIT_INDEX_FILE", &index).env("GIT_WORK_TREE", &directory);
            command.env("GIT_DIR", &self.repository).current_dir(&directory);
            succeeded(arguments[0], &command.output().context("starting git")?)?;
        }
        if let Ok(attributes) = std::fs::read_to_string(directory.join(".gitattributes"))
            && attributes.contains("filter=lfs")
        {
            say!(
                "note: files that Git LFS keeps are deployed as its pointers; `rung deploy` sends them whole"
            );
        }
        Ok(directory)
    }

    /// What the pushed commit says of its app.
    fn app_file(&self, head: &Update) -> anyhow::Result<AppFile> {
        let Some(found) = find_file(Path::new("."))? else {
            let message =
                format!("there is no rung.toml and no Procfile in what {} brings", harmless(&head.branch));
            let hint = format!(
                "commit a rung.toml in the repository's root:\n\n    app = \"{}\"\n\n    [services.web]\n    \
                 command = \"bin/server\"   # listens on 127.0.0.1:$PORT\n",
                self.app
            );
            return Err(Hinted::failed(message, hint).into());
        };
        let file = found.parse(&self.app)?;
        if file.app == self.app {
            return Ok(file);
        }
        let message =
            format!("{} says app = \"{}\", and this is the remote of {}", found.name, file.app, self.app);
        Err(Hinted::failed(message, "set the remote with `rung git remote`, or change `app`").into())
    }

    /// Git has asked for `--force` already; what is lost by it is worth a word in the log of the push.
    fn tell_rewritten(&self, head: &Update) -> anyhow::Result<()> {
        if head.is_new() {
            return Ok(());
        }
        let range = format!("{}..{}", head.new, head.old);
        let left = self.git(&["rev-list", "--count", "--end-of-options", &range])?;
        let count = String::from_utf8_lossy(&left.stdout).trim().to_owned();
        if left.status.success() && count != "0" {
            say!("forced: {count} of the commits that were pushed before are not in this one");
        }
        Ok(())
    }

    fn subject(&self, head: &Update) -> anyhow::Result<Option<String>> {
        let output = self.git(&["log", "-1", "--format=%s", "--end-of-options", &head.new])?;
        succeeded("log", &output)?;
        let subject: String =
            String::from_utf8_lossy(&output.stdout).trim().chars().take(NOTE_MAX_CHARS).collect();
        Ok((!subject.is_empty()).then_some(subject))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(&self.repository).stdin(std::process::Stdio::null());
        command.env("GIT_OPTIONAL_LOCKS", "0").env("GIT_NO_LAZY_FETCH", "1");
        command
    }

    fn git(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        self.command(arguments).output().context("starting git")
    }
}

fn succeeded(what: &str, output: &Output) -> anyhow::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::bail!("git {what} failed on the server: {}", harmless(said.trim()))
}

fn not_deployed(head: &Update, file: &AppFile) -> Hinted {
    let deployed = file.git.shown();
    let target = deployed.split(' ').next().expect("there is a first word");
    let branch = harmless(&head.branch);
    Hinted::failed(
        format!("{branch} is not deployed, and Rung keeps no other branches: {deployed} is"),
        format!(
            "git push rung {}   deploys it, or name it in rung.toml: [git] branch = \"{branch}\"",
            quoted(&format!("{branch}:{target}"))
        ),
    )
}
