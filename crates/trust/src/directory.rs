//! Where a machine keeps who it is: a directory of three files, read by every role that runs on it.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::identity::{Credentials, CredentialsError, NodeKey};

const KEY: &str = "node.key";
const CERTIFICATE: &str = "node.crt";
const AUTHORITY: &str = "authority.crt";

#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("keeping this machine's identity at {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Damaged(#[from] CredentialsError),
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct TrustDirectory(PathBuf);

impl TrustDirectory {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// This machine's key; made when there is none.
    ///
    /// # Errors
    /// It can't be kept, or what is there is no key.
    pub fn ensure_key(&self) -> Result<NodeKey, DirectoryError> {
        let path = self.0.join(KEY);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(NodeKey::from_bytes(bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = NodeKey::generate();
                self.write(KEY, key.bytes())?;
                Ok(key)
            }
            Err(source) => Err(DirectoryError::Io { path, source }),
        }
    }

    /// `None`: this machine has no identity yet.
    ///
    /// # Errors
    /// A file can't be read, or is damaged.
    pub fn read(&self) -> Result<Option<Credentials>, DirectoryError> {
        let read = |name: &str| {
            let path = self.0.join(name);
            match std::fs::read(&path) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(DirectoryError::Io { path, source }),
            }
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(match (read(KEY)?, read(CERTIFICATE)?, read(AUTHORITY)?) {
            (Some(key), Some(certificate), Some(authority)) => Some(Credentials {
                key: NodeKey::from_bytes(key)?,
                certificate: text(certificate),
                authority: text(authority),
            }),
            _ => None,
        })
    }

    /// The certificate comes last: with it the identity is whole.
    ///
    /// # Errors
    /// The directory can't be written to.
    pub fn keep(&self, certificate: &str, authority: &str) -> Result<(), DirectoryError> {
        self.write(AUTHORITY, authority.as_bytes())?;
        self.write(CERTIFICATE, certificate.as_bytes())
    }

    /// Each file appears whole or not at all, and only its owner reads it.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DirectoryError> {
        let path = self.0.join(name);
        let written = || -> io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
            let temporary = path.with_extension("tmp");
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            std::fs::File::open(&self.0)?.sync_all()
        };
        written().map_err(|source| DirectoryError::Io { path: path.clone(), source })
    }
}
