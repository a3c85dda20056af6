//! `rung git`: the remote that is pushed to, and the token for it.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::Context as _;
use base64::Engine as _;
use rung_api::client::fill;
use rung_api::{Address, paths};

use super::Session;
use super::command::quoted;
use crate::args::Global;
use crate::connect::{Server, server};
use crate::edge::{Exit, Hinted};
use crate::person;
use crate::{note, say};

/// What git says of the host it wants a password for is short.
const QUESTION_MAX: u64 = 64 * 1024;

/// Adds the remote, or moves it to where the server is now. The token stays where it is: git asks [`credential`].
pub async fn remote(session: &mut Session<'_>, name: &str) -> anyhow::Result<Exit> {
    let app = session.app().await?;
    let address = web_address(&session.client.address())?;
    let url = format!("{address}{}", fill(paths::GIT, &[&app]));
    if !git(&["rev-parse", "--git-dir"])?.status.success() {
        let message = "this directory is in no git repository";
        return Err(Hinted::failed(message, "git init && git add . && git commit -m first").into());
    }
    if !git(&["check-ref-format", &format!("refs/remotes/{name}/main")])?.status.success() {
        return Err(
            Hinted::usage(format!("{name:?} is not a name of a remote"), "rung git remote rung").into()
        );
    }
    let verb = if git(&["config", "--get", &format!("remote.{name}.url")])?.status.success() {
        "set-url"
    } else {
        "add"
    };
    must(&["remote", verb, "--", name, &url])?;
    let key = format!("credential.{address}.helper");
    // An empty helper first: no other one shall be asked, or keep the token.
    must(&["config", "--replace-all", &key, ""])?;
    must(&["config", "--add", &key, &helper(session.global)?])?;
    trust_authority(session, &address).await?;
    let branch = git(&["symbolic-ref", "--quiet", "--short", "HEAD"])?;
    let branch = String::from_utf8_lossy(&branch.stdout).trim().to_owned();
    let branch = if branch.is_empty() { "main".to_owned() } else { branch };
    session.screen.show(&serde_json::json!({ "remote": name, "url": url }), |_, _, _| {
        format!("remote {name} is {url}\ndeploy with: git push {name} {branch}")
    })?;
    Ok(Exit::Done)
}

/// Git knows nothing of fingerprints: it is given the certificate that this one is of, which the server has just shown.
async fn trust_authority(session: &Session<'_>, address: &str) -> anyhow::Result<()> {
    let Some(known) = server(session.global)?.ca else { return Ok(()) };
    let Some(certificate) = session.client.authority(known).await? else { return Ok(()) };
    let path = crate::login::directory()?.join(format!("authority-{}.pem", &known.hex()[..16]));
    crate::login::write_own(&path, pem(&certificate).as_bytes())?;
    let path = path.to_str().context("the path of the authority's certificate is not UTF-8")?;
    must(&["config", "--replace-all", &format!("http.{address}.sslCAInfo"), path])?;
    if std::env::var_os("GIT_SSL_CAINFO").is_some() {
        note!("GIT_SSL_CAINFO is set here, and git prefers it: push with `env -u GIT_SSL_CAINFO git push …`");
    }
    Ok(())
}

/// A certificate as programs that use OpenSSL or GnuTLS read it.
fn pem(certificate: &[u8]) -> String {
    const LINE: usize = 64;
    let encoded = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, left) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = left;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

fn web_address(address: &Address) -> anyhow::Result<String> {
    if matches!(address, Address::Unix(_)) {
        let message = format!("git can't push to {address}");
        return Err(Hinted::usage(message, "give the server's address with --api http://HOST:7864").into());
    }
    Ok(address.to_string())
}

/// This very program, with what was said of the server. Git hands it to a shell.
fn helper(global: &Global) -> anyhow::Result<String> {
    let program = std::env::current_exe().context("finding rung's own program file")?;
    let text = |path: &Path| quoted(&path.display().to_string());
    let mut words = vec![format!("!{}", text(&program))];
    if let Some(data) = &global.data {
        let data = std::path::absolute(data).context("finding the data directory")?;
        words.extend(["--data".to_owned(), text(&data)]);
    }
    if let Some(api) = &global.api {
        words.extend(["--api".to_owned(), quoted(api)]);
    }
    words.push("git credential".to_owned());
    Ok(words.join(" "))
}

/// Git's question for a password. For any other server it stays without an answer.
pub fn credential(global: &Global, operation: &str) -> anyhow::Result<Exit> {
    if operation != "get" {
        return Ok(Exit::Done);
    }
    let mut question = String::new();
    let reading = std::io::stdin().lock().take(QUESTION_MAX).read_to_string(&mut question);
    reading.context("reading what git asks for")?;
    let said = |key: &str| question.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let Server { address, token, .. } = server(global)?;
    let asked = format!("{}://{}", said("protocol").unwrap_or_default(), said("host").unwrap_or_default());
    if let Some(token) = token.filter(|_| asked == address.to_string()) {
        say!("username={}\npassword={token}", person::name());
    }
    Ok(Exit::Done)
}

fn git(arguments: &[&str]) -> anyhow::Result<Output> {
    Command::new("git").args(arguments).output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Hinted::failed("git is not installed here", "install it, or use `rung deploy`").into()
        }
        _ => anyhow::Error::from(error).context("starting git"),
    })
}

fn must(arguments: &[&str]) -> anyhow::Result<()> {
    let output = git(arguments)?;
    if output.status.success() {
        return Ok(());
    }
    anyhow::bail!("git {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr).trim())
}
