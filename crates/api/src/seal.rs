//! Sealed values: how secrets rest in the store and on nodes.
//!
//! ChaCha20-Poly1305 with a random nonce in front. The context (which app, which name, which version) is
//! authenticated, so a sealed value can't be moved to another place.

use std::io;
use std::path::Path;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

/// A key that seals and opens. Kept in a file of mode 0600; never printed.
pub struct SealKey {
    key: LessSafeKey,
    id: String,
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealKey").field("id", &self.id).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("reading or making the key at {path}")]
    Io { path: String, source: io::Error },
    #[error("key at {path} is not 32 bytes long; it is damaged, restore it from a backup")]
    Damaged { path: String },
}

#[derive(Debug, thiserror::Error)]
#[error("sealed value of {context} can't be opened: it was sealed with another key or was changed")]
pub struct OpenError {
    context: String,
}

impl OpenError {
    pub fn of(context: &str) -> Self {
        Self { context: context.to_owned() }
    }
}

impl SealKey {
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, bytes).expect("32 bytes are this cipher's key length");
        let hash = digest(&SHA256, &[b"id of a key of rung\n".as_slice(), bytes].concat());
        let id = hash.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { key: LessSafeKey::new(key), id }
    }

    /// Tells keys apart without telling anything of them.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Reads the key, or makes one when there is no file yet.
    pub fn ensure(path: &Path) -> Result<Self, KeyError> {
        if let Some(key) = Self::read(path)? {
            return Ok(key);
        }
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes");
        write_private(path, &bytes)
            .map_err(|source| KeyError::Io { path: path.display().to_string(), source })?;
        Ok(Self::from_bytes(&bytes))
    }

    /// Reads the key; `None` when there is no file.
    pub fn read(path: &Path) -> Result<Option<Self>, KeyError> {
        match std::fs::read(path) {
            Ok(bytes) => match <&[u8; 32]>::try_from(bytes.as_slice()) {
                Ok(bytes) => Ok(Some(Self::from_bytes(bytes))),
                Err(_) => Err(KeyError::Damaged { path: path.display().to_string() }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(KeyError::Io { path: path.display().to_string(), source }),
        }
    }

    pub fn seal(&self, context: &str, value: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).expect("the kernel gives random bytes");
        let mut sealed = value.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context.as_bytes()),
                &mut sealed,
            )
            .expect("values are far below the cipher's limit of 256 GiB");
        let mut out = nonce.to_vec();
        out.append(&mut sealed);
        out
    }

    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let fail = || OpenError::of(context);
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN).ok_or_else(fail)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| fail())?;
        let mut value = rest.to_vec();
        let length = self
            .key
            .open_in_place(nonce, Aad::from(context.as_bytes()), &mut value)
            .map_err(|_| fail())?
            .len();
        value.truncate(length);
        Ok(value)
    }
}

/// Writes a file that only its owner may read, whole or not at all, and durably.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("tmp");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    if let Some(directory) = path.parent() {
        std::fs::File::open(directory)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_only_in_its_own_place_and_unchanged() {
        let key = SealKey::from_bytes(&[7; 32]);
        let mut sealed = key.seal("shop/TOKEN/1", b"s3cret");
        assert!(!sealed.windows(6).any(|w| w == b"s3cret"), "the value is readable in its sealed form");
        assert_eq!(key.open("shop/TOKEN/1", &sealed).unwrap(), b"s3cret");
        assert!(key.open("shop/TOKEN/2", &sealed).is_err(), "it opened under another version");
        *sealed.last_mut().unwrap() ^= 1;
        assert!(key.open("shop/TOKEN/1", &sealed).is_err(), "it opened although it was changed");
    }
}
