//! Whom `rung login` has logged in where: `rung/login.json` in the person's configuration, mode 0600.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rung_api::seal::write_private;
use rung_trust::Fingerprint;
use serde::{Deserialize, Serialize};

use crate::edge::Hinted;

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// `https://rung.example.com:7864`.
    pub api: String,
    pub token: String,
    /// The authority that vouches for the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("api", &self.api).field("ca", &self.ca).finish_non_exhaustive()
    }
}

/// The person's place for it.
///
/// # Errors
/// There is no home to put it in.
pub fn path() -> anyhow::Result<PathBuf> {
    Ok(directory()?.join("login.json"))
}

/// Where what belongs to the person alone is kept.
///
/// # Errors
/// There is no home to put it in.
pub fn directory() -> anyhow::Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    match config {
        Some(config) => Ok(config.join("rung")),
        None => {
            let hint = "set HOME, or give RUNG_API and RUNG_TOKEN instead";
            Err(Hinted::usage("there is no home directory to keep a login in", hint).into())
        }
    }
}

/// Writes a file that nobody else reads, and its directory.
///
/// # Errors
/// The directory can't be made, or not be written to.
pub fn write_own(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || {
        if let Some(directory) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        write_private(path, bytes)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

impl Login {
    /// `None`: nobody is logged in.
    ///
    /// # Errors
    /// It can't be read, or is not what a rung of this version writes.
    pub fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let read = serde_json::from_slice(&bytes);
        read.map(Some).map_err(|error| {
            let message = format!("{} can't be understood: {error}", path.display());
            Hinted::failed(message, "`rung logout` removes it; then log in again").into()
        })
    }

    /// # Errors
    /// The directory can't be made, or not be written to.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        write_own(path, &serde_json::to_vec_pretty(self)?)
    }

    /// Whether there was one.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn remove(path: &Path) -> anyhow::Result<bool> {
        match std::fs::remove_file(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
        }
    }

    /// # Errors
    /// The file was written by hand, and wrongly.
    pub fn authority(&self) -> anyhow::Result<Option<Fingerprint>> {
        Ok(self.ca.as_deref().map(str::parse).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_login_is_kept_for_its_owner_alone() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("rung/login.json");
        assert_eq!(Login::read(&path).unwrap(), None);
        let login = Login { api: "https://10.0.0.1:7864".into(), token: "t0ken".into(), ca: None };
        login.write(&path).unwrap();
        assert_eq!(Login::read(&path).unwrap(), Some(login.clone()));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "the token is readable by others");
        assert!(!format!("{login:?}").contains("t0ken"), "the token is in debug output");
        assert!(Login::remove(&path).unwrap() && !Login::remove(&path).unwrap());
    }
}
