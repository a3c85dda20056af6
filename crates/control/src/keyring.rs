//! The master key, and how secrets rest in the store: each value under a data key of its own, which the master key wraps.
//!
//! So the master key is replaced by wrapping the small data keys anew; values are neither opened nor moved. While that
//! goes on there are two master keys: everything is opened with whichever fits and wrapped with the next one. Values that
//! older versions sealed with the master key itself still open, and are put into an envelope then.
//!
//! ```text
//! secret.key ──► secret.key and secret.key.next ──► (all wrapped anew) ──► secret.key
//! ```
//! The key lies in a file of mode 0600, or systemd hands it over as the credential `rung-secret-key`
//! (`LoadCredentialEncrypted=`); then `rung-secret-key-next` is the next one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use rung_api::seal::{KeyError, OpenError, SealKey, write_private};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub const CREDENTIAL: &str = "rung-secret-key";
const NEXT_CREDENTIAL: &str = "rung-secret-key-next";

/// The master keys that there are.
#[derive(Debug)]
pub struct Keyring {
    keys: RwLock<Keys>,
    file: PathBuf,
    source: Source,
    /// Shared by those who seal, from then until it is written.
    sealing: tokio::sync::RwLock<()>,
    rotating: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    File,
    Credential,
}

#[derive(Debug)]
struct Keys {
    /// Seals.
    primary: SealKey,
    /// Open what the primary one does not.
    others: Vec<SealKey>,
}

#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error("making the next master key at {path}")]
    Write { path: String, source: io::Error },
    #[error("the master key is a credential of systemd, and there is no next one")]
    NoNextCredential,
}

/// A sealed value as it is kept. Fields of newer versions are kept when it is wrapped anew.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope {
    format: u32,
    /// Which master key wraps the data key.
    key: String,
    wrapped: String,
    sealed: String,
    #[serde(default)]
    at: Option<Timestamp>,
    #[serde(default)]
    by: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// When a value was set, and by whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    pub at: Option<Timestamp>,
    pub by: Option<String>,
}

const FORMAT: u32 = 2;

impl Keyring {
    /// Reads the keys; makes the first one when there is none.
    ///
    /// # Errors
    /// A key can't be read, or is none.
    pub fn load(file: &Path, credentials: Option<&Path>) -> Result<Self, KeyError> {
        let credential = |name: &str| match credentials {
            Some(directory) => SealKey::read(&directory.join(name)),
            None => Ok(None),
        };
        let mut found = Vec::new();
        found.extend(credential(NEXT_CREDENTIAL)?);
        found.extend(credential(CREDENTIAL)?);
        let source = if found.is_empty() { Source::File } else { Source::Credential };
        let next = SealKey::read(&next_file(file))?;
        match source {
            Source::File => {
                found.extend(next);
                found.push(SealKey::ensure(file)?);
            }
            Source::Credential => found.extend(SealKey::read(file)?.into_iter().chain(next)),
        }
        let mut keys = found.into_iter();
        let primary = keys.next().expect("a key was made where there was none");
        Ok(Self {
            keys: RwLock::new(Keys { primary, others: keys.collect() }),
            file: file.to_owned(),
            source,
            sealing: tokio::sync::RwLock::default(),
            rotating: tokio::sync::Mutex::default(),
        })
    }

    /// Whether a rotation was begun and not ended.
    /// To be held from before something is sealed until it is written: a key that wraps it stays for so long.
    pub(crate) async fn sealing(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.sealing.read().await
    }

    /// Waits for everybody who may have sealed with the key from before.
    pub(crate) async fn all_is_written(&self) {
        drop(self.sealing.write().await);
    }

    /// One replaces the key at a time: who ends must not end what another one has begun since.
    pub(crate) async fn turn_to_rotate(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.rotating.lock().await
    }

    pub(crate) fn is_rotating(&self) -> bool {
        self.source == Source::File && next_file(&self.file).exists()
    }

    /// A key that lies open beside the credential that stands for it.
    pub fn left_behind(&self) -> Option<&Path> {
        (self.source == Source::Credential && self.file.exists()).then_some(self.file.as_path())
    }

    /// From now on everything is wrapped with the next key. Does nothing when that has begun already.
    pub(crate) fn begin_rotation(&self) -> Result<(), RotateError> {
        let mut keys = self.keys.write().expect("no panic while held");
        if self.source == Source::Credential {
            let others = !keys.others.is_empty();
            return if others { Ok(()) } else { Err(RotateError::NoNextCredential) };
        }
        let path = next_file(&self.file);
        if path.exists() {
            return Ok(());
        }
        let bytes = random_key();
        write_private(&path, &bytes)
            .map_err(|source| RotateError::Write { path: path.display().to_string(), source })?;
        let old = std::mem::replace(&mut keys.primary, SealKey::from_bytes(&bytes));
        keys.others.push(old);
        Ok(())
    }

    /// The next key is the key; the old one is gone.
    pub(crate) fn end_rotation(&self) -> Result<(), RotateError> {
        let mut keys = self.keys.write().expect("no panic while held");
        let result = match self.source {
            Source::File => std::fs::rename(next_file(&self.file), &self.file).and_then(|()| {
                let directory = self.file.parent().unwrap_or(Path::new("/"));
                std::fs::File::open(directory)?.sync_all()
            }),
            Source::Credential => match std::fs::remove_file(&self.file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        result.map_err(|source| RotateError::Write { path: self.file.display().to_string(), source })?;
        keys.others.clear();
        Ok(())
    }

    pub(crate) fn seal(&self, context: &str, value: &[u8], origin: Origin) -> Vec<u8> {
        let data_key = random_key();
        let sealed = SealKey::from_bytes(&data_key).seal(context, value);
        let keys = self.keys.read().expect("no panic while held");
        let envelope = Envelope {
            format: FORMAT,
            key: keys.primary.id().to_owned(),
            wrapped: hex::encode(keys.primary.seal(&wrap_context(context), &data_key)),
            sealed: hex::encode(sealed),
            at: origin.at,
            by: origin.by,
            rest: Map::new(),
        };
        serde_json::to_vec(&envelope).expect("envelopes serialize")
    }

    pub(crate) fn open(&self, context: &str, kept: &[u8]) -> Result<Vec<u8>, OpenError> {
        let keys = self.keys.read().expect("no panic while held");
        let Some(envelope) = Envelope::read(kept) else {
            // Of a version that sealed with the master key itself.
            return keys
                .all()
                .find_map(|key| key.open(context, kept).ok())
                .ok_or_else(|| OpenError::of(context));
        };
        let data_key = keys.unwrap(&envelope, context)?;
        let sealed = hex::decode(&envelope.sealed).map_err(|_| OpenError::of(context))?;
        data_key.open(context, &sealed)
    }

    /// When the value was set, and by whom: what older versions sealed does not say.
    pub(crate) fn origin(kept: &[u8]) -> Origin {
        Envelope::read(kept).map(|envelope| Origin { at: envelope.at, by: envelope.by }).unwrap_or_default()
    }

    /// The value under the primary key; `None` when it is there already.
    pub(crate) fn rewrap(&self, context: &str, kept: &[u8]) -> Result<Option<Vec<u8>>, OpenError> {
        let Some(mut envelope) = Envelope::read(kept) else {
            let value = self.open(context, kept)?;
            return Ok(Some(self.seal(context, &value, Origin::default())));
        };
        let keys = self.keys.read().expect("no panic while held");
        if envelope.key == keys.primary.id() {
            return Ok(None);
        }
        let data_key = keys.unwrap_bytes(&envelope, context)?;
        envelope.key = keys.primary.id().to_owned();
        envelope.wrapped = hex::encode(keys.primary.seal(&wrap_context(context), &data_key));
        Ok(Some(serde_json::to_vec(&envelope).expect("envelopes serialize")))
    }
}

impl Envelope {
    /// What older versions sealed begins with random bytes, and is no JSON.
    fn read(kept: &[u8]) -> Option<Self> {
        serde_json::from_slice(kept).ok()
    }
}

impl Keys {
    fn all(&self) -> impl Iterator<Item = &SealKey> {
        std::iter::once(&self.primary).chain(&self.others)
    }

    fn unwrap_bytes(&self, envelope: &Envelope, context: &str) -> Result<[u8; 32], OpenError> {
        let fail = || OpenError::of(context);
        let wrapped = hex::decode(&envelope.wrapped).map_err(|_| fail())?;
        let mut fitting = self.all().filter(|key| key.id() == envelope.key);
        let bytes =
            fitting.find_map(|key| key.open(&wrap_context(context), &wrapped).ok()).ok_or_else(fail)?;
        bytes.as_slice().try_into().map_err(|_| fail())
    }

    fn unwrap(&self, envelope: &Envelope, context: &str) -> Result<SealKey, OpenError> {
        Ok(SealKey::from_bytes(&self.unwrap_bytes(envelope, context)?))
    }
}

fn wrap_context(context: &str) -> String {
    format!("data key of {context}")
}

fn next_file(file: &Path) -> PathBuf {
    file.with_extension("key.next")
}

fn random_key() -> [u8; 32] {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

/// Nobody says it a second time.
pub(crate) fn random_word() -> String {
    hex::encode(&random_key()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &[u8] = b"correct horse";

    #[test]
    fn a_value_is_opened_in_its_own_place_with_the_key_that_wrapped_it() {
        let dir = tempfile::tempdir().unwrap();
        let ring = Keyring::load(&dir.path().join("secret.key"), None).unwrap();
        let origin = Origin { at: Some(Timestamp::UNIX_EPOCH), by: Some("ada".into()) };
        let kept = ring.seal("shop/TOKEN/1", VALUE, origin.clone());
        assert!(!kept.windows(VALUE.len()).any(|part| part == VALUE), "the value is readable");
        assert_eq!(ring.open("shop/TOKEN/1", &kept).unwrap(), VALUE);
        assert!(ring.open("shop/TOKEN/2", &kept).is_err(), "it opened under another version");
        assert_eq!(Keyring::origin(&kept), origin);
        let other = Keyring::load(&dir.path().join("other.key"), None).unwrap();
        assert!(other.open("shop/TOKEN/1", &kept).is_err(), "it opened with another key");
        assert_ne!(kept, ring.seal("shop/TOKEN/1", VALUE, origin), "two values share a data key");
    }

    #[test]
    fn what_an_older_version_sealed_opens_and_gets_an_envelope() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret.key");
        let kept = SealKey::ensure(&file).unwrap().seal("shop/TOKEN/1", VALUE);
        let ring = Keyring::load(&file, None).unwrap();
        assert_eq!(ring.open("shop/TOKEN/1", &kept).unwrap(), VALUE);
        let enveloped = ring.rewrap("shop/TOKEN/1", &kept).unwrap().expect("it was in none");
        assert_eq!(ring.open("shop/TOKEN/1", &enveloped).unwrap(), VALUE);
        assert_eq!(ring.rewrap("shop/TOKEN/1", &enveloped).unwrap(), None);
    }

    #[test]
    fn the_key_is_replaced_and_a_rotation_that_was_cut_off_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret.key");
        let ring = Keyring::load(&file, None).unwrap();
        let before = std::fs::read(&file).unwrap();
        let kept = ring.seal("shop/TOKEN/1", VALUE, Origin::default());
        ring.begin_rotation().unwrap();
        assert_eq!(ring.open("shop/TOKEN/1", &kept).unwrap(), VALUE, "it does not open meanwhile");
        // Killed here.
        let ring = Keyring::load(&file, None).unwrap();
        assert!(ring.is_rotating());
        ring.begin_rotation().unwrap();
        let wrapped = ring.rewrap("shop/TOKEN/1", &kept).unwrap().expect("the old key wraps it");
        ring.end_rotation().unwrap();
        assert_eq!(ring.open("shop/TOKEN/1", &wrapped).unwrap(), VALUE);
        let again = Keyring::load(&file, None).unwrap();
        assert!(!again.is_rotating() && std::fs::read(&file).unwrap() != before);
        assert_eq!(again.open("shop/TOKEN/1", &wrapped).unwrap(), VALUE);
        assert!(again.open("shop/TOKEN/1", &kept).is_err(), "the old key is still there");
    }

    #[test]
    fn a_credential_of_systemd_takes_the_files_place() {
        let (data, given) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = data.path().join("secret.key");
        let kept = Keyring::load(&file, None).unwrap().seal("shop/TOKEN/1", VALUE, Origin::default());
        std::fs::write(given.path().join(CREDENTIAL), [7; 32]).unwrap();
        let ring = Keyring::load(&file, Some(given.path())).unwrap();
        assert_eq!(ring.open("shop/TOKEN/1", &kept).unwrap(), VALUE, "the file's key is not known any more");
        assert_eq!(ring.left_behind(), Some(file.as_path()));
        ring.begin_rotation().unwrap();
        let wrapped = ring.rewrap("shop/TOKEN/1", &kept).unwrap().expect("the file's key wraps it");
        ring.end_rotation().unwrap();
        assert!(!file.exists(), "the key lies open on the disk still");
        let alone = Keyring::load(&file, Some(given.path())).unwrap();
        assert_eq!(alone.open("shop/TOKEN/1", &wrapped).unwrap(), VALUE);
        assert!(!file.exists(), "a key that nobody needs was made");
        assert!(matches!(alone.begin_rotation(), Err(RotateError::NoNextCredential)));
    }
}
