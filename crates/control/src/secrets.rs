//! Secrets: opened for a launch, listed by version, generated, and put under another master key.

use std::collections::BTreeMap;

use ring::rand::{SecureRandom, SystemRandom};
use rung_api::wire::{Alphabet, KeyRotated, SecretVersion};
use rung_api::{Code, ErrorBody};
use rung_model::{AppName, ReleaseNumber, SecretName, keys};
use rung_store::{Guard, Op, Txn};

use crate::given::STRING_MAX_BYTES;
use crate::keyring::{Keyring, RotateError};
use crate::shared::{Control, contended, store_error};

/// Linux gives 2 MiB to arguments and environment as a whole, with the usual limit of the stack; the rest is the app's own.
const TOGETHER_MAX_BYTES: usize = 1024 * 1024;

const PAGE: usize = 100;

/// How often everything is looked at again for values that were sealed meanwhile.
const ROUNDS: usize = 16;

/// What is sealed can be opened only as the value that it was sealed as.
pub(crate) fn seal_context(app: &AppName, name: &SecretName, version: u64) -> String {
    format!("{app}/{name}/{version}")
}

/// The context of what is at a key of the store: `secrets/shop/TOKEN/0000000001` as `shop/TOKEN/1`.
fn context_of(key: &str) -> Option<String> {
    let mut parts = key.strip_prefix(keys::SECRETS)?.rsplitn(3, '/');
    let (version, name, app) = (parts.next()?, parts.next()?, parts.next()?);
    Some(format!("{app}/{name}/{}", version.parse::<u64>().ok()?))
}

/// What an environment can't hold is refused with the way out.
pub(crate) fn check_value(name: &SecretName, value: &str) -> Result<(), ErrorBody> {
    if value.contains('\0') {
        let message = format!("secret {name} holds a zero byte, which no environment variable can");
        return Err(ErrorBody::new(Code::InvalidRequest, message)
            .hint("keep it as base64, which the application decodes: --base64"));
    }
    let bytes = name.as_str().len() + "=".len() + value.len() + 1;
    if bytes > STRING_MAX_BYTES {
        let message = format!(
            "secret {name} comes to {bytes} bytes with its name, and Linux allows an environment variable \
             {STRING_MAX_BYTES}"
        );
        return Err(ErrorBody::new(Code::TooLarge, message).hint(
            "encrypt the large part, keep it in a volume or in the app's tree, and make its key the secret",
        ));
    }
    Ok(())
}

impl Control {
    /// The values, and the names of those that can't be opened.
    pub(crate) async fn open_secrets(
        &self,
        app: &AppName,
        secrets: &BTreeMap<SecretName, u64>,
    ) -> Result<(BTreeMap<String, String>, Vec<SecretName>), ErrorBody> {
        let (mut opened, mut lost) = (BTreeMap::new(), Vec::new());
        for (name, version) in secrets {
            match self.open_secret(app, name, *version).await {
                Ok(value) => drop(opened.insert(name.to_string(), value)),
                Err(error) if error.code == Code::Unavailable => return Err(error),
                Err(_) => lost.push(name.clone()),
            }
        }
        Ok((opened, lost))
    }

    /// Nothing is begun that could not be started: secrets that were sealed with another key or are gone, or that come
    /// to more than an environment holds.
    pub(crate) async fn refuse_lost_secrets(
        &self,
        app: &AppName,
        secrets: &BTreeMap<SecretName, u64>,
    ) -> Result<(), ErrorBody> {
        let (opened, lost) = self.open_secrets(app, secrets).await?;
        if !lost.is_empty() {
            let names: Vec<&str> = lost.iter().map(SecretName::as_str).collect();
            let message = format!("secrets of app {app} can't be opened with this key: {}", names.join(", "));
            return Err(ErrorBody::new(Code::MissingSecret, message).hint(format!(
                "put the old secret.key back into the data directory, or set them again: rung secret set {} --app {app}",
                names.join(" ")
            )));
        }
        let together: usize = opened.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        if together > TOGETHER_MAX_BYTES {
            let message = format!(
                "secrets of app {app} come to {together} bytes together; {TOGETHER_MAX_BYTES} at most, so that they \
                 fit into an environment"
            );
            return Err(ErrorBody::new(Code::TooLarge, message)
                .hint("take some away, or keep large ones encrypted in a volume"));
        }
        Ok(())
    }

    pub(crate) async fn open_secret(
        &self,
        app: &AppName,
        name: &SecretName,
        version: u64,
    ) -> Result<String, ErrorBody> {
        let key = keys::secret(app, name, version);
        let read = self.inner.store.get(&key).await.map_err(|error| store_error(&error))?;
        let Some(entry) = read.value else {
            return Err(ErrorBody::new(
                Code::Internal,
                format!("version {version} of secret {name} is gone"),
            )
            .hint(format!("set it again: rung secret set {name} --app {app}")));
        };
        let context = seal_context(app, name, version);
        let opened = self.inner.keys.open(&context, &entry.value).map_err(|error| {
            ErrorBody::new(Code::Internal, error.to_string())
                .hint("was secret.key of the data directory replaced? put the old one back")
        })?;
        String::from_utf8(opened)
            .map_err(|_| ErrorBody::new(Code::Internal, format!("secret {name} is not text any more")))
    }

    /// Every version of an app's secrets that is kept, newest first.
    pub(crate) async fn secret_versions(
        &self,
        app: &AppName,
    ) -> Result<BTreeMap<SecretName, Vec<SecretVersion>>, ErrorBody> {
        let prefix = format!("{}{app}/", keys::SECRETS);
        let mut versions: BTreeMap<SecretName, Vec<SecretVersion>> = BTreeMap::new();
        let mut from: Option<String> = None;
        loop {
            let read = self.inner.store.list(&prefix, from.as_deref(), PAGE).await;
            let page = read.map_err(|error| store_error(&error))?.value;
            for entry in &page.entries {
                let parts = entry.key.strip_prefix(&prefix).and_then(|rest| rest.split_once('/'));
                let Some((name, version)) = parts else { continue };
                let (Ok(name), Ok(version)) = (SecretName::new(name), version.parse()) else { continue };
                let origin = Keyring::origin(&entry.value);
                let releases = self.releases_with(app, &name, version);
                let listed = SecretVersion { version, at: origin.at, by: origin.by, releases };
                versions.entry(name).or_default().insert(0, listed);
            }
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(versions),
            }
        }
    }

    fn releases_with(&self, app: &AppName, name: &SecretName, version: u64) -> Vec<ReleaseNumber> {
        self.read(|world| {
            let releases = world.releases.get(app).into_iter().flatten();
            let with = releases.filter(|(_, held)| held.value.secrets.get(name) == Some(&version));
            with.map(|(number, _)| *number).collect()
        })
    }

    /// Puts every value under another master key. Nothing is restarted: values stay what they are.
    pub(crate) async fn rotate_key(&self) -> Result<KeyRotated, ErrorBody> {
        let _turn = self.inner.keys.turn_to_rotate().await;
        if self.has_other_servers() {
            let message =
                "other servers open secrets with the same master key, and would not have the new one";
            let hint = "take them out with `rung node remove`, replace the key, and let them join again";
            return Err(ErrorBody::new(Code::Refused, message).hint(hint));
        }
        self.inner.keys.begin_rotation().map_err(|error| rotate_error(&error))?;
        self.inner.keys.all_is_written().await;
        let mut wrapped = 0;
        for _ in 0..ROUNDS {
            let round = self.wrap_all_anew().await?;
            wrapped += round.wrapped;
            // What was written while this went over it is found by another look.
            if round.wrapped == 0 {
                self.inner.keys.end_rotation().map_err(|error| rotate_error(&error))?;
                return Ok(KeyRotated { wrapped, lost: round.lost });
            }
        }
        Err(contended("secrets"))
    }

    async fn wrap_all_anew(&self) -> Result<KeyRotated, ErrorBody> {
        let mut done = KeyRotated { wrapped: 0, lost: Vec::new() };
        // The cluster's authority rests under the same key.
        let authority = self.rewrap_authority().await.map_err(|error| {
            ErrorBody::new(Code::Unavailable, crate::trees::chain(&error))
                .hint("both master keys are kept; try again when that is mended")
        })?;
        done.wrapped += u64::from(authority);
        let certificates = self.rewrap_certificates(&mut done.lost).await;
        done.wrapped += certificates.map_err(|error| store_error(&error))?;
        let mut from: Option<String> = None;
        loop {
            let read = self.inner.store.list(keys::SECRETS, from.as_deref(), PAGE).await;
            let page = read.map_err(|error| store_error(&error))?.value;
            for entry in page.entries {
                let Some(context) = context_of(&entry.key) else { continue };
                let value = match self.inner.keys.rewrap(&context, &entry.value) {
                    Ok(Some(value)) => value,
                    Ok(None) => continue,
                    Err(_) => {
                        done.lost.push(context);
                        continue;
                    }
                };
                // One that was written or pruned meanwhile is looked at again in the next round.
                let guard = Guard::Modified { key: entry.key.clone(), revision: entry.modified };
                let put = Op::Put { key: entry.key, value, lease: None };
                match self.txn(vec![guard], vec![put]).await.map_err(|error| store_error(&error))? {
                    Txn::Committed(_) | Txn::Conflict | Txn::Unknown => done.wrapped += 1,
                }
            }
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(done),
            }
        }
    }
}

fn rotate_error(error: &RotateError) -> ErrorBody {
    let body = ErrorBody::new(Code::Refused, crate::trees::chain(error));
    match error {
        RotateError::Write { .. } => body.hint("is the disk full? the old key still holds; try again"),
        RotateError::NoNextCredential => body.hint(
            "give the unit a second one, LoadCredentialEncrypted=rung-secret-key-next:FILE, and start rung again first",
        ),
    }
}

/// A rotation that was cut off is ended after the start.
pub(crate) async fn end_rotation_of_before(control: Control) {
    if !control.inner.keys.is_rotating() {
        return;
    }
    match control.rotate_key().await {
        Ok(rotated) => control.record(
            None,
            "secrets",
            format!("the change of the master key was ended: {} values wrapped anew", rotated.wrapped),
        ),
        Err(error) => {
            tracing::warn!(%error, "the change of the master key goes on with `rung secret rotate-key`")
        }
    }
}

/// Random characters, each as likely as any other.
pub(crate) fn generate(length: usize, alphabet: Alphabet) -> String {
    let characters: Vec<u8> = match alphabet {
        Alphabet::Hex => b"0123456789abcdef".to_vec(),
        Alphabet::Alphanumeric => (b'!'..=b'~').filter(u8::is_ascii_alphanumeric).collect(),
        Alphabet::UrlSafe => {
            (b'!'..=b'~').filter(|b| b.is_ascii_alphanumeric() || b"-_".contains(b)).collect()
        }
        Alphabet::Symbols => (b'!'..=b'~').filter(|b| !b"\"'`\\$".contains(b)).collect(),
    };
    // Bytes beyond the last whole multiple would make the first characters likelier.
    let fair = 256 - 256 % characters.len();
    let random = SystemRandom::new();
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut bytes = [0; 64];
        random.fill(&mut bytes).expect("the kernel gives random bytes");
        let left = length - text.len();
        let usable = bytes.iter().map(|byte| usize::from(*byte)).filter(|byte| *byte < fair).take(left);
        text.extend(usable.map(|byte| char::from(characters[byte % characters.len()])));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_values_are_as_long_as_asked_and_of_nothing_but_the_alphabet() {
        let all = [Alphabet::Alphanumeric, Alphabet::Hex, Alphabet::UrlSafe, Alphabet::Symbols];
        for alphabet in all {
            let value = generate(200, alphabet);
            assert_eq!(value.len(), 200);
            assert_ne!(value, generate(200, alphabet), "the same value twice");
            assert!(value.bytes().all(|b| b.is_ascii_graphic() && !b"\"'`\\$".contains(&b)), "{value}");
        }
        assert!(generate(500, Alphabet::Hex).bytes().all(|b| b.is_ascii_hexdigit()));
    }

    #[test]
    fn what_an_environment_cannot_hold_is_refused_with_the_way_out() {
        let name = SecretName::new("KEY").unwrap();
        check_value(&name, "two\nlines").unwrap();
        check_value(&name, &"x".repeat(STRING_MAX_BYTES - 5)).unwrap();
        let large = check_value(&name, &"x".repeat(STRING_MAX_BYTES - 4)).unwrap_err();
        assert!(large.message.contains("131073 bytes") && large.hint.is_some(), "{large:?}");
        let binary = check_value(&name, "a\0b").unwrap_err();
        assert!(binary.hint.unwrap().contains("base64"));
    }

    #[test]
    fn the_key_of_the_store_says_what_is_sealed_there() {
        let (app, name) = (AppName::new("shop").unwrap(), SecretName::new("TOKEN").unwrap());
        let key = keys::secret(&app, &name, 12);
        assert_eq!(context_of(&key), Some(seal_context(&app, &name, 12)));
        assert_eq!(context_of("secrets/shop"), None);
    }
}
