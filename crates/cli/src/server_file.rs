//! `<data>/rung.json`: how the commands of this machine find the server that runs on it.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Written by `rung up` with mode 0600: it holds the token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFile {
    /// `http://127.0.0.1:7864`.
    pub api: String,
    pub token: String,
    /// Where apps are served, `127.0.0.1:8080`.
    pub http: String,
    /// The fingerprint of the cluster's authority, where the API is served over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    pub pid: u32,
}

impl std::fmt::Debug for ServerFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerFile").field("api", &self.api).field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl ServerFile {
    pub fn path(data: &Path) -> PathBuf {
        data.join("rung.json")
    }

    /// `None` when there is none.
    ///
    /// # Errors
    /// It can't be read, or is not what a rung of this version writes.
    pub fn read(data: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(Self::path(data)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from)
    }

    /// Replaces the file as a whole: a reader sees the old one or the new one.
    ///
    /// # Errors
    /// The data directory can't be written to.
    pub fn write(&self, data: &Path) -> io::Result<()> {
        let unfinished = data.join(format!("rung.json.{}.tmp", std::process::id()));
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        fs::rename(&unfinished, Self::path(data))
    }

    /// Takes the file away at the end of the server.
    ///
    /// # Errors
    /// The data directory can't be written to.
    pub fn remove(data: &Path) -> io::Result<()> {
        match fs::remove_file(Self::path(data)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The data directory: what was said, else `/var/lib/rung` for root, else a place in the person's home.
///
/// # Errors
/// There is no home to put it in.
pub fn data_directory(said: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(said) = said {
        return Ok(std::path::absolute(said)?);
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/rung"));
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data_home =
        absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    match data_home {
        Some(data_home) => Ok(data_home.join("rung")),
        None => Err(crate::edge::Hinted::usage(
            "there is no home directory to keep data in",
            "say where with --data DIR",
        )
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_one_process_leaves_another_finds_and_nobody_else_reads() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(ServerFile::read(data.path()).unwrap(), None);
        let file = ServerFile {
            api: "http://127.0.0.1:7864".into(),
            token: "t0ken".into(),
            http: "127.0.0.1:8080".into(),
            ca: None,
            pid: 7,
        };
        file.write(data.path()).unwrap();
        assert_eq!(ServerFile::read(data.path()).unwrap(), Some(file.clone()));
        let mode = fs::metadata(ServerFile::path(data.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "the token is readable by others");
        assert!(!format!("{file:?}").contains("t0ken"), "the token is in debug output");
        ServerFile::remove(data.path()).unwrap();
        ServerFile::remove(data.path()).unwrap();
        assert_eq!(ServerFile::read(data.path()).unwrap(), None);
    }
}
