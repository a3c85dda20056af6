//! Who this machine's user is to a registry: `~/.docker/config.json`, and the credential helpers that it names.
//!
//! A helper is asked at each pull and its answer is kept nowhere: tokens of ECR and the like end after hours, and the
//! helper knows when. The engine gets what it says in a request's header, never in an argument list.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use rung_model::image::DEFAULT_REGISTRY;

use crate::engine::base64_url;

/// What Docker calls its own registry in the file.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// A helper that asks a cloud takes a second or two.
const HELPER_WAIT: Duration = Duration::from_secs(30);
/// Tokens of clouds have some kilobytes.
const ANSWER_MAX: u64 = 64 * 1024;
/// What a helper says with this name for a user is a token.
const TOKEN_USER: &str = "<token>";

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("reading {path}")]
    Read { path: String, source: std::io::Error },
    #[error("{path} is not what `docker login` writes")]
    NotUnderstood { path: String, source: serde_json::Error },
    #[error(
        "credential helper {helper}, which {path} names for {registry}, can't be started: install it, or `docker login {registry}`"
    )]
    NoHelper { helper: String, path: String, registry: String, source: std::io::Error },
    #[error("credential helper {helper} did not answer within {} s", HELPER_WAIT.as_secs())]
    Silent { helper: String },
    #[error("credential helper {helper} said no for {registry}: {said}")]
    Helper { helper: String, registry: String, said: String },
}

/// What the engine shows to a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: String,
    secret: String,
    registry: String,
    /// Where they come from, for people.
    pub source: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Credentials {
    /// The value of the engine's `X-Registry-Auth`.
    pub fn header(&self) -> String {
        #[derive(Serialize)]
        struct Auth<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            username: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            password: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            identitytoken: Option<&'a str>,
            serveraddress: &'a str,
        }
        let is_token = self.user == TOKEN_USER;
        let auth = Auth {
            username: (!is_token).then_some(self.user.as_str()),
            password: (!is_token).then_some(self.secret.as_str()),
            identitytoken: is_token.then_some(self.secret.as_str()),
            serveraddress: &self.registry,
        };
        base64_url(&serde_json::to_vec(&auth).expect("texts serialize"))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default)]
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
struct Auth {
    /// `user:password` in base64.
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
}

/// Where the file of the user who runs this process is: `DOCKER_CONFIG`, or the home directory.
pub fn config_path() -> Option<PathBuf> {
    let directory = match std::env::var_os("DOCKER_CONFIG").filter(|directory| !directory.is_empty()) {
        Some(directory) => PathBuf::from(directory),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    Some(directory.join("config.json"))
}

/// `None`: nobody said who we are there; a public image needs no name.
///
/// # Errors
/// The file or the helper that it names is of no use.
pub async fn credentials(path: &Path, registry: &str) -> Result<Option<Credentials>, CredentialsError> {
    let name = || path.display().to_string();
    let config: ConfigFile = match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|source| CredentialsError::NotUnderstood { path: name(), source })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CredentialsError::Read { path: name(), source }),
    };
    let known_as: Vec<String> = if registry == DEFAULT_REGISTRY {
        vec![DOCKER_HUB.to_owned(), registry.to_owned(), "index.docker.io".to_owned()]
    } else {
        vec![registry.to_owned(), format!("https://{registry}"), format!("http://{registry}")]
    };
    let own_helper = known_as.iter().find_map(|known| config.cred_helpers.get(known));
    if let Some(helper) = own_helper.or(config.creds_store.as_ref())
        && let Some(found) = ask_helper(helper, &known_as[0], &name()).await?
    {
        return Ok(Some(found));
    }
    let auth = known_as.iter().find_map(|known| config.auths.get(known));
    Ok(auth.and_then(|auth| from_file(auth, &known_as[0], &name())))
}

fn from_file(auth: &Auth, registry: &str, path: &str) -> Option<Credentials> {
    let made = |user: &str, secret: &str| Credentials {
        user: user.to_owned(),
        secret: secret.to_owned(),
        registry: registry.to_owned(),
        source: path.to_owned(),
    };
    if !auth.identitytoken.is_empty() {
        return Some(made(TOKEN_USER, &auth.identitytoken));
    }
    let text = String::from_utf8(decode_base64(&auth.auth)?).ok()?;
    let (user, secret) = text.split_once(':')?;
    Some(made(user, secret.trim_end_matches('\0')))
}

/// `docker-credential-<helper> get`, with the registry's name on its standard input.
async fn ask_helper(
    helper: &str,
    registry: &str,
    path: &str,
) -> Result<Option<Credentials>, CredentialsError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Said {
        username: String,
        secret: String,
    }
    let program = format!("docker-credential-{helper}");
    let failed = |source| CredentialsError::NoHelper {
        helper: program.clone(),
        path: path.to_owned(),
        registry: registry.to_owned(),
        source,
    };
    let mut command = Command::new(&program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // A helper that does not read its input says no by itself.
        let _ = input.write_all(registry.as_bytes()).await;
    }
    let output = match tokio::time::timeout(HELPER_WAIT, answer_of(child)).await {
        Ok(output) => output.map_err(failed)?,
        Err(_) => return Err(CredentialsError::Silent { helper: program }),
    };
    let refused = |said: String| CredentialsError::Helper {
        helper: program.clone(),
        registry: registry.to_owned(),
        said,
    };
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        // The protocol's own word for somebody unknown.
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(refused(said));
    }
    // What it said is not shown: it holds the secret.
    let said: Said = serde_json::from_slice(&output.stdout)
        .map_err(|_| refused("its answer is not what such a helper says".to_owned()))?;
    Ok(Some(Credentials {
        user: said.username,
        secret: said.secret,
        registry: registry.to_owned(),
        source: program,
    }))
}

/// What a helper says until its end; of one that never stops talking the beginning.
async fn answer_of(mut child: Child) -> std::io::Result<Output> {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = tokio::try_join!(beginning(out), beginning(err))?;
    // The pipes are closed now: one that would go on writing ends.
    let status = child.wait().await?;
    Ok(Output { status, stdout, stderr })
}

async fn beginning(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(ANSWER_MAX).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut group, mut bits) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        group = (group << 6) | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((group >> bits) as u8);
            group &= (1 << bits) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn what_docker_login_wrote_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let ask = |registry: &str| block_on(credentials(&path, registry));
        assert_eq!(ask("a.example").unwrap(), None, "no file, no name");
        std::fs::write(
            &path,
            r#"{"auths":{"a.example":{"auth":"YWRhOnM6ZWNyZXQ="},"https://index.docker.io/v1/":{"identitytoken":"t"}}}"#,
        )
        .unwrap();
        let found = ask("a.example").unwrap().expect("it is in the file");
        assert_eq!((found.user.as_str(), found.secret.as_str()), ("ada", "s:ecret"));
        assert!(!format!("{found:?}").contains("ecret"), "a secret is shown: {found:?}");
        assert_eq!(ask("docker.io").unwrap().expect("it is in the file").user, TOKEN_USER);
        assert_eq!(ask("b.example").unwrap(), None);
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(ask("a.example"), Err(CredentialsError::NotUnderstood { .. })));
        std::fs::write(&path, r#"{"credHelpers":{"a.example":"of-no-such-name"}}"#).unwrap();
        let error = ask("a.example").unwrap_err().to_string();
        assert!(
            error.contains("docker-credential-of-no-such-name") && error.contains("docker login"),
            "{error}"
        );
    }

    #[test]
    fn a_helper_that_never_stops_talking_fills_no_memory() {
        let output = block_on(async {
            let mut endless = Command::new("yes");
            let endless = endless.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
            answer_of(endless.spawn().unwrap()).await.unwrap()
        });
        assert_eq!(output.stdout.len() as u64, ANSWER_MAX);
        assert!(!output.status.success(), "its answer was cut off and taken for a whole one");
    }

    #[test]
    fn base64_comes_back() {
        for text in ["", "a", "ab", "abc", "user:p\u{e4}ss\u{1f600}"] {
            assert_eq!(decode_base64(&base64_url(text.as_bytes())).unwrap(), text.as_bytes());
        }
        assert_eq!(decode_base64("a b"), None);
    }
}
