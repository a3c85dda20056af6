//! `rung secret`: values come from a prompt, from standard input or from a file, and go to the server alone.

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _, Read as _};
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use base64::Engine as _;
use rung_api::wire::{Alphabet, Existing, GenerateRequest, SecretListing, SecretRequest};
use rung_model::SecretName;

use super::Session;
use super::change::settle;
use crate::args::{AlphabetChoice, SecretCommand, SecretGenerateArgs, WaitArgs, is_refused};
use crate::edge::{Exit, Hinted};
use crate::{env_file, person, render};

type Changes = BTreeMap<SecretName, Option<String>>;

pub async fn secret(session: &mut Session<'_>, command: SecretCommand) -> anyhow::Result<Exit> {
    match command {
        SecretCommand::Set { names, file, base64, wait } => {
            let form = if base64 { Form::Base64 } else { Form::Text };
            let changes = values_of(names, file.as_deref(), form)?;
            change(session, changes, &wait).await
        }
        SecretCommand::Unset { names, wait } => {
            change(session, names.into_iter().map(|name| (name, None)).collect(), &wait).await
        }
        SecretCommand::Generate(args) => generate(session, args).await,
        SecretCommand::Import { file, wait } => import(session, &file, &wait).await,
        SecretCommand::List { name } => list(session, name).await,
        SecretCommand::RotateKey => rotate_key(session).await,
    }
}

async fn change(session: &mut Session<'_>, changes: Changes, wait: &WaitArgs) -> anyhow::Result<Exit> {
    let since = Instant::now();
    let app = session.app().await?;
    let request = SecretRequest { changes, by: person::name() };
    let context = || format!("changing the secrets of {app}");
    let started = session.client.set_secrets(&app, &request).await.with_context(context)?;
    settle(session, &app, started, since, wait).await
}

async fn generate(session: &mut Session<'_>, args: SecretGenerateArgs) -> anyhow::Result<Exit> {
    let since = Instant::now();
    let app = session.app().await?;
    let request = GenerateRequest {
        name: args.name.clone(),
        length: args.length,
        alphabet: match args.alphabet {
            AlphabetChoice::Alphanumeric => Alphabet::Alphanumeric,
            AlphabetChoice::Hex => Alphabet::Hex,
            AlphabetChoice::UrlSafe => Alphabet::UrlSafe,
            AlphabetChoice::Symbols => Alphabet::Symbols,
        },
        existing: if args.replace { Existing::Replace } else { Existing::Keep },
        by: person::name(),
    };
    let context = || format!("generating secret {} of {app}", args.name);
    let started = session.client.generate_secret(&app, &request).await.with_context(context)?;
    settle(session, &app, started, since, &args.wait).await
}

async fn import(session: &mut Session<'_>, file: &Path, wait: &WaitArgs) -> anyhow::Result<Exit> {
    let text = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let wrong = |why: String| {
        Hinted::failed(format!("{} can't be imported: {why}", file.display()), "nothing was set")
    };
    let text = String::from_utf8(text).map_err(|_| wrong("it is not UTF-8 text".to_owned()))?;
    let found = env_file::parse(&text).map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() {
        return Err(wrong("it holds no variable".to_owned()).into());
    }
    let app = session.app().await?;
    let known = session.client.secrets(&app).await.unwrap_or_default();
    let is_set = |name: &SecretName| known.iter().any(|secret| secret.name == *name && secret.version > 0);
    let (replaced, new): (Vec<_>, Vec<_>) = found.iter().map(|(name, _)| name).partition(|name| is_set(name));
    for (what, names) in [("new", new), ("replaced", replaced)] {
        if !names.is_empty() {
            let names = names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
            session.screen.say(&format!("{what}: {names}"))?;
        }
    }
    if !session.global.yes {
        confirm(&format!("set {} of {app}? [y/N] ", render::count(found.len() as u64, "secret")))?;
    }
    change(session, found.into_iter().map(|(name, value)| (name, Some(value))).collect(), wait).await
}

fn confirm(question: &str) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(Hinted::usage("importing secrets asks first", "say -y where nobody can answer").into());
    }
    console::Term::stderr().write_str(question).context("asking")?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("reading the answer")?;
    match line.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Hinted::failed("nothing was set", "answer y to go on").into()),
    }
}

async fn list(session: &mut Session<'_>, name: Option<SecretName>) -> anyhow::Result<Exit> {
    let app = session.app().await?;
    let secrets =
        session.client.secrets(&app).await.with_context(|| format!("listing the secrets of {app}"))?;
    let Some(name) = name else {
        session
            .screen
            .show(&secrets, |secrets, paint, clock| render::config::render_secrets(secrets, paint, clock))?;
        return Ok(Exit::Done);
    };
    let found: Option<SecretListing> = secrets.into_iter().find(|secret| secret.name == name);
    let Some(found) = found else {
        let hint = "`rung secret list` shows the names";
        return Err(Hinted::failed(format!("{app} has no secret {name}"), hint).into());
    };
    session.screen.show(&found, render::config::render_versions)?;
    Ok(Exit::Done)
}

async fn rotate_key(session: &mut Session<'_>) -> anyhow::Result<Exit> {
    let rotated = session.client.rotate_key().await.context("replacing the master key")?;
    session.screen.show(&rotated, |rotated, _, _| {
        let mut text = format!(
            "the master key was replaced: {} wrapped anew, no instance was touched\n\
             backups from before need the old key to be of use",
            render::count(rotated.wrapped, "value")
        );
        if !rotated.lost.is_empty() {
            text = format!("{text}\nlost already, no key opens them: {}", rotated.lost.join(", "));
        }
        text
    })?;
    Ok(Exit::Done)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Base64,
}

/// Asks for the values: without echo on a terminal, else from standard input or the file.
fn values_of(names: Vec<SecretName>, file: Option<&Path>, form: Form) -> anyhow::Result<Changes> {
    if names.iter().any(is_refused) {
        let message = "the value of a secret is no argument: everybody on this machine could read it";
        let hint = "give the name alone and type the value, or pipe it: rung secret set NAME < FILE";
        return Err(Hinted::usage(message, hint).into());
    }
    let terminal = std::io::stdin().is_terminal();
    if names.len() > 1 && (file.is_some() || !terminal) {
        let message = "one value is there, and several secrets have none";
        return Err(
            Hinted::usage(message, "set them one after the other, or import them from a .env file").into()
        );
    }
    let mut changes = BTreeMap::new();
    for name in names {
        let bytes = match file {
            Some(file) => from_file(&name, file)?,
            None if terminal => prompt(&name)?.into_bytes(),
            None => from_stdin(&name)?,
        };
        changes.insert(name.clone(), Some(text_of(&name, bytes, form)?));
    }
    Ok(changes)
}

fn prompt(name: &SecretName) -> anyhow::Result<String> {
    let terminal = console::Term::stderr();
    terminal.write_str(&format!("value of {name} (not shown): ")).context("asking for the value")?;
    terminal.read_secure_line().with_context(|| format!("reading the value of {name}"))
}

/// The server says what is too large for an environment; this only keeps a mistaken file out of memory.
const READ_MAX: u64 = 1024 * 1024;

fn from_file(name: &SecretName, file: &Path) -> anyhow::Result<Vec<u8>> {
    let opened = std::fs::File::open(file).with_context(|| format!("opening {}", file.display()))?;
    read(name, opened, &file.display().to_string())
}

fn from_stdin(name: &SecretName) -> anyhow::Result<Vec<u8>> {
    let mut bytes = read(name, std::io::stdin().lock(), "standard input")?;
    if bytes.is_empty() {
        let message = format!("standard input holds no value for {name}");
        return Err(Hinted::usage(message, "when it shall be empty: --file /dev/null").into());
    }
    // `echo` and editors add one.
    if bytes.ends_with(b"\n") {
        bytes.pop();
    }
    Ok(bytes)
}

fn read(name: &SecretName, from: impl std::io::Read, what: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let reading = from.take(READ_MAX + 1).read_to_end(&mut bytes);
    reading.with_context(|| format!("reading the value of {name} from {what}"))?;
    if bytes.len() as u64 > READ_MAX {
        let message =
            format!("{what} holds more than 1 MiB, and an environment variable has room for 128 KiB");
        let hint =
            "encrypt the large part, keep it in a volume or in the app's tree, and make its key the secret";
        return Err(Hinted::failed(message, hint).into());
    }
    Ok(bytes)
}

fn text_of(name: &SecretName, bytes: Vec<u8>, form: Form) -> anyhow::Result<String> {
    if form == Form::Base64 {
        return Ok(base64::engine::general_purpose::STANDARD.encode(bytes));
    }
    String::from_utf8(bytes).map_err(|_| {
        let message = format!("the value of {name} is not text, and an environment holds text alone");
        Hinted::failed(message, "keep it as base64, which the application decodes: --base64").into()
    })
}
