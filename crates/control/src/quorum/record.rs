//! `cluster.json`: that the state is in etcd, and where.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rung_api::seal::write_private;
use serde::{Deserialize, Serialize};

use super::QuorumError;

pub(super) const SQLITE: &str = "store.db";
const FILE: &str = "cluster.json";

/// Whether the first start of a member founds the cluster or joins one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    Founds,
    Joins,
}

/// What a server needs to start its member of etcd and to reach the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// This server's member.
    pub name: String,
    pub client: SocketAddr,
    pub peer: SocketAddr,
    /// Of this member's files below `etcd/`. A restored cluster gets another one, so that writing this file decides.
    pub directory: String,
    /// Random; keeps members of two clusters from ever taking each other for their own.
    pub token: String,
    pub start: Start,
    /// The members at this member's first start: name and peer address.
    pub initial: Vec<(String, SocketAddr)>,
    /// Where members serve clients, as far as is known.
    pub endpoints: Vec<SocketAddr>,
    /// The newest that this server has seen; a restored state gets a higher one.
    pub epoch: u64,
    /// How large etcd's file may grow. For operators to raise.
    #[serde(default = "usual_quota")]
    pub quota_bytes: u64,
}

/// A state of Rung's is some MB; two million instances are some hundred.
pub(super) fn usual_quota() -> u64 {
    4 << 30
}

impl Record {
    pub fn path(data: &Path) -> PathBuf {
        data.join(FILE)
    }

    /// `None`: the state is not in etcd.
    pub fn read(data: &Path) -> Result<Option<Self>, QuorumError> {
        let path = Self::path(data);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| QuorumError::Record { path, detail: error.to_string() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(QuorumError::file("reading", &path)(error)),
        }
    }

    /// All of it or nothing, and on disk when this returns.
    pub fn write(&self, data: &Path) -> Result<(), QuorumError> {
        let path = Self::path(data);
        let bytes = serde_json::to_vec_pretty(self).expect("a record serializes");
        write_private(&path, &bytes).map_err(QuorumError::file("writing", &path))
    }

    /// From here on the state is in `store.db`.
    pub(super) fn take_away(data: &Path) -> Result<(), QuorumError> {
        let path = Self::path(data);
        std::fs::rename(&path, path.with_extension("json.left"))
            .and_then(|()| std::fs::File::open(data)?.sync_all())
            .map_err(QuorumError::file("taking away", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_and_a_damaged_one_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        let record = Record {
            name: "a".into(),
            client: "127.0.0.1:1".parse().unwrap(),
            peer: "127.0.0.1:2".parse().unwrap(),
            directory: "member-1".into(),
            token: "t".into(),
            start: Start::Founds,
            initial: vec![("a".into(), "127.0.0.1:2".parse().unwrap())],
            endpoints: vec!["127.0.0.1:1".parse().unwrap()],
            epoch: 3,
            quota_bytes: usual_quota(),
        };
        record.write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), Some(record));
        std::fs::write(Record::path(dir.path()), "{").unwrap();
        assert!(Record::read(dir.path()).is_err(), "SQLite would be opened although the state is elsewhere");
    }
}
