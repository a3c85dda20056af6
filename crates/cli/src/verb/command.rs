//! `rung run`: a one-off command in a new instance.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use rung_api::wire::RunRequest;
use rung_model::{AppName, Run, RunId, RunOutcome, RunState};

use super::Session;
use super::attached::{self, Ended};
use super::terminal::{RawTerminal, size};
use crate::args::RunArgs;
use crate::edge::Exit;
use crate::note;
use crate::{person, render};

/// How long one long poll for a run's end waits.
const POLL: Duration = Duration::from_secs(20);

pub(super) async fn one_off(session: &mut Session<'_>, args: RunArgs) -> anyhow::Result<Exit> {
    let app = session.app().await?;
    if args.list {
        return list(session, &app).await;
    }
    if let Some(run) = args.cancel {
        return cancel(session, &app, &run).await;
    }
    let terminal = !args.no_tty && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let command = joined(&args.command);
    let request = RunRequest { command, terminal: terminal.then(size), by: person::name() };
    let context = || format!("running a command in {app}");
    let run = session.client.start_run(&app, &request).await.with_context(context)?;
    let connection = session.client.attach(&app, &run.id).await.with_context(context)?;
    let raw = if terminal { Some(RawTerminal::enter().context("preparing the terminal")?) } else { None };
    let ended = attached::attached(connection, terminal, &mut session.screen).await;
    // The terminal is as it was before anything else is said.
    drop(raw);
    match ended.with_context(context)? {
        Ended::Exited(code) => Ok(exit(code)),
        Ended::Interrupted => {
            session
                .client
                .cancel_run(&app, &run.id)
                .await
                .with_context(|| format!("cancelling {}", run.id))?;
            outcome(session, &app, &run.id).await
        }
        Ended::BrokenOff => {
            note!(
                "the connection to {0} broke off; what it printed: rung logs --app {app} --run {0}",
                run.id
            );
            outcome(session, &app, &run.id).await
        }
    }
}

async fn list(session: &mut Session<'_>, app: &AppName) -> anyhow::Result<Exit> {
    let runs = session.client.runs(app).await.with_context(|| format!("listing the runs of {app}"))?;
    session.screen.show(&runs, |runs, paint, clock| render::runs::render(runs, paint, clock))?;
    Ok(Exit::Done)
}

async fn cancel(session: &mut Session<'_>, app: &AppName, id: &RunId) -> anyhow::Result<Exit> {
    let context = || format!("ending run {id} of {app}");
    session.client.cancel_run(app, id).await.with_context(context)?;
    loop {
        let run = session.client.run(app, id, POLL).await.with_context(context)?;
        if run.has_ended() {
            session.screen.show(&run, |run, _, _| format!("{} has ended", run.id))?;
            return Ok(Exit::Done);
        }
    }
}

/// What the server says of a run whose end was not seen.
pub(super) async fn outcome(session: &mut Session<'_>, app: &AppName, id: &RunId) -> anyhow::Result<Exit> {
    loop {
        let run =
            session.client.run(app, id, POLL).await.with_context(|| format!("asking for the end of {id}"))?;
        if let Some(exit) = told(&run) {
            return Ok(exit);
        }
    }
}

/// Says how a run ended, unless it was well; `None` while it goes on.
pub(super) fn told(run: &Run) -> Option<Exit> {
    let (RunState::Ended { outcome, .. }, id) = (&run.state, &run.id) else { return None };
    Some(match outcome {
        RunOutcome::Succeeded { .. } => Exit::Done,
        RunOutcome::Skipped { reason } => {
            note!("{id} was not started: {}", render::harmless(reason));
            Exit::Failed
        }
        RunOutcome::Cancelled => {
            note!("{id} was cancelled");
            Exit::Failed
        }
        RunOutcome::Failed { reason, exit_code, .. } => {
            note!("{id} {}", render::harmless(reason));
            exit_code.map_or(Exit::Failed, exit)
        }
    })
}

/// As a shell would have it: the low eight bits.
fn exit(code: i32) -> Exit {
    Exit::Command(u8::try_from(code & 0xff).expect("eight bits fit"))
}

/// One argument is a command line for the shell; several are one command with its arguments, each kept whole.
pub fn joined(arguments: &[String]) -> String {
    match arguments {
        [line] => line.clone(),
        several => several.iter().map(|argument| quoted(argument)).collect::<Vec<_>>().join(" "),
    }
}

/// A text that a shell reads as one word.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_reach_the_command_as_they_were_typed() {
        let joined =
            |arguments: &[&str]| joined(&arguments.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(joined(&["ls | wc -l"]), "ls | wc -l");
        assert_eq!(joined(&["python3", "-c", "print('a b')"]), r"python3 -c 'print('\''a b'\'')'");
        assert_eq!(joined(&["echo", ""]), "echo ''");
        assert_eq!(exit(-1), Exit::Command(255));
        assert_eq!(exit(137), Exit::Command(137));
    }
}
