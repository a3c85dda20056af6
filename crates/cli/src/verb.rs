//! The verbs: each asks the server, follows what it started, and shows what came of it.

mod attached;
mod audit;
mod certificate;
mod change;
mod cluster;
pub mod command;
pub mod deploy;
mod destroy;
mod git;
mod job;
mod login;
mod logs;
mod maintenance;
mod node;
mod read;
mod releases;
mod scale;
mod secret;
mod terminal;
mod token;
mod top;

use std::io::Write as _;

use clap::CommandFactory as _;
use rung_api::Client;
use rung_model::AppName;

use crate::args::{Cli, ConfigCommand, GitCommand, Global, Verb};
use crate::connect::connect;
use crate::edge::{Exit, explain};
use crate::screen::{Format, Screen};

/// What a verb works with.
#[derive(Debug)]
struct Session<'g> {
    global: &'g Global,
    client: Client,
    screen: Screen,
}

impl Session<'_> {
    /// The app that is meant.
    async fn app(&self) -> anyhow::Result<AppName> {
        crate::app::meant(self.global, &self.client).await
    }
}

/// Does what a person asks, prints it, and says what to exit with.
pub fn run(global: &Global, verb: Verb) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(dispatch(global, verb));
            // A thread that still reads standard input is not waited for.
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(anyhow::Error::from(error).context("starting")),
    };
    done.unwrap_or_else(|error| {
        let (text, exit) = explain(&error);
        if !text.is_empty() {
            // Nobody is left to be told when this fails.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
        exit
    })
}

async fn dispatch(global: &Global, verb: Verb) -> anyhow::Result<Exit> {
    if let Verb::Completion { shell } = verb {
        clap_complete::generate(shell, &mut Cli::command(), "rung", &mut std::io::stdout());
        return Ok(Exit::Done);
    }
    if let Verb::Git(GitCommand::Credential { operation }) = verb {
        return git::credential(global, &operation);
    }
    if let Verb::Import(args) = verb {
        return crate::import::import(global, &args);
    }
    let format = if global.json { Format::Json } else { Format::People };
    let mut screen = Screen::stdout(format);
    match &verb {
        Verb::Login(args) => return login::login(global, args, &mut screen).await,
        Verb::Logout => return login::logout(&mut screen),
        _ => {}
    }
    // Only what may go on for ever ends with its reader.
    if !matches!(verb, Verb::Logs(_) | Verb::Events(_) | Verb::Top(_) | Verb::Run(_)) {
        screen.outlives_reader();
    }
    let mut session = Session { global, client: connect(global)?, screen };
    let session = &mut session;
    match verb {
        Verb::Deploy(args) => deploy::deploy(session, args).await,
        Verb::Status(args) => read::status(session, &args).await,
        Verb::Ps => read::ps(session).await,
        Verb::Top(args) => top::top(session, &args).await,
        Verb::Logs(args) => logs::logs(session, args).await,
        Verb::Scale(args) => scale::scale(session, args).await,
        Verb::Restart(args) => change::restart(session, &args).await,
        Verb::Maintenance(args) => maintenance::maintenance(session, &args).await,
        Verb::Releases(args) => releases::releases(session, &args).await,
        Verb::Diff(args) => releases::diff(session, &args).await,
        Verb::Promote(args) => deploy::promote(session, args).await,
        Verb::Explain(args) => releases::explain(session, &args).await,
        Verb::Rollback(args) => change::rollback(session, &args).await,
        Verb::Continue(args) => change::go_on(session, &args).await,
        Verb::Cancel(args) => change::cancel(session, &args).await,
        Verb::Config(ConfigCommand::Get { name }) => read::config(session, name).await,
        Verb::Config(change) => change::config(session, change).await,
        Verb::Secret(command) => secret::secret(session, command).await,
        Verb::Run(args) => command::one_off(session, args).await,
        Verb::Job(command) => job::job(session, command).await,
        Verb::Import(_) => unreachable!("it was answered above, without a server"),
        Verb::Git(GitCommand::Remote { name }) => git::remote(session, &name).await,
        Verb::Git(GitCommand::Credential { .. }) => {
            unreachable!("it was answered above, without asking the server")
        }
        Verb::Node(command) => node::node(session, command).await,
        Verb::Events(args) => logs::events(session, &args).await,
        Verb::Open => read::open(session).await,
        Verb::Destroy(args) => destroy::destroy(session, &args).await,
        Verb::Certificate(command) => certificate::certificate(session, command).await,
        Verb::Token(command) => token::token(session, command).await,
        Verb::Audit(args) => audit::audit(session, args).await,
        Verb::Whoami => token::whoami(session).await,
        Verb::Cluster { command } => cluster::cluster(session, command).await,
        Verb::Doctor => read::doctor(session).await,
        Verb::Completion { .. } | Verb::Login(_) | Verb::Logout => {
            unreachable!("it was answered above, without a server")
        }
    }
}
