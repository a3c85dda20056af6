//! Other servers: admitted by one that is in charge, entered on the machine of the new one.
//!
//! A new member of etcd comes as a *learner*: it gets the state, but counts for no majority until it has all of it. So
//! admitting a server that never comes costs nothing. It promotes itself once it is up to date.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rung_api::seal::write_private;
use rung_store::etcd::EtcdAdmin;
use serde::{Deserialize, Serialize};

use super::authority::Files;
use super::climb::{CLIENT_PORT, PEER_PORT};
use super::record::{Record, SQLITE, Start};
use super::{Quorum, QuorumError, Tell};

/// A learner that has to fetch a large state takes its time.
const PROMOTE_AGAIN: Duration = Duration::from_millis(500);

/// Everything that makes a machine a server of this cluster. It holds keys: whoever has it has the state.
#[derive(Clone, Serialize, Deserialize)]
pub struct Bundle {
    pub record: Record,
    authority: String,
    authority_key: String,
    /// By which secrets are sealed, hexadecimal.
    secret_key: String,
    token: String,
}

/// What is known of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It was told that it may come, and did not yet.
    Awaited,
    HasServed,
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle").field("record", &self.record).finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, QuorumError> {
    std::fs::read(path).map_err(QuorumError::file("reading", path))
}

fn text(path: &Path) -> Result<String, QuorumError> {
    std::fs::read_to_string(path).map_err(QuorumError::file("reading", path))
}

impl Quorum {
    /// Makes room for a server of that name at that address, and says what it needs. Again for the same one is fine.
    pub async fn admit(&self, name: &str, address: IpAddr) -> Result<Bundle, QuorumError> {
        let (client, peer) = (SocketAddr::new(address, CLIENT_PORT), SocketAddr::new(address, PEER_PORT));
        let url = format!("https://{peer}");
        let members = self.admin().members().await?;
        if members.iter().any(|member| member.name == name) {
            return Err(QuorumError::Refused(format!(
                "server {name} belongs to this cluster already; `rung node remove {name}` first when it is another one"
            )));
        }
        if let Some(learner) = members.iter().find(|member| member.is_learner && !member.name.is_empty()) {
            return Err(QuorumError::Later(format!("server {} still gets the state", learner.name)));
        }
        let (awaited, known): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| member.name.is_empty());
        match awaited.first() {
            None => drop(self.admin().add_learner(&url).await?),
            Some(same) if same.peers.contains(&url) => {}
            Some(other) => {
                return Err(QuorumError::Later(format!(
                    "another server is awaited at {}; start it, or `rung node remove` it",
                    other.peers.join(" ")
                )));
            }
        }
        let mut initial = vec![(name.to_owned(), peer)];
        let mut endpoints = vec![client];
        for member in known {
            initial
                .extend(member.peers.iter().filter_map(|url| Some((member.name.clone(), socket_of(url)?))));
            endpoints.extend(member.clients.iter().filter_map(|url| socket_of(url)));
        }
        let data = self.member.data();
        let files = Files::of(data);
        Ok(Bundle {
            record: Record {
                name: name.to_owned(),
                client,
                peer,
                directory: "member-1".to_owned(),
                token: self.record.token.clone(),
                start: Start::Joins,
                initial,
                endpoints,
                epoch: self.record.epoch,
                quota_bytes: self.record.quota_bytes,
            },
            authority: text(&files.authority)?,
            authority_key: text(&files.authority_key)?,
            secret_key: hex::encode(read(&data.join("secret.key"))?),
            token: text(&data.join("token"))?,
        })
    }

    /// Takes a server's member out, if it has one; what it holds is worth nothing then. One that is awaited has no name
    /// yet, and there is never more than one of them: it is not taken for one that has served and is out already, as when
    /// two people remove the same server while another one joins.
    pub(crate) async fn remove(&self, name: &str, standing: Standing) -> Result<(), QuorumError> {
        let members = self.admin().members().await?;
        let named = members.iter().find(|member| member.name == name);
        let awaited = || members.iter().find(|member| member.name.is_empty());
        match named.or_else(|| awaited().filter(|_| standing == Standing::Awaited)) {
            Some(found) => Ok(self.admin().remove_member(found.id).await?),
            None => Ok(()),
        }
    }

    /// Whether the others know this server no more. `None`: nobody could say.
    pub(super) async fn is_removed(&self) -> Option<bool> {
        let members = self.admin().members().await.ok()?;
        Some(!members.iter().any(|member| {
            member.name == self.record.name
                || member.peers.iter().any(|url| socket_of(url) == Some(self.record.peer))
        }))
    }

    /// Where the members serve their clients, as they have agreed.
    pub async fn endpoints(&self) -> Result<Vec<SocketAddr>, QuorumError> {
        let members = self.admin().members().await?;
        let serving = members.iter().filter(|member| !member.is_learner);
        Ok(serving.flat_map(|member| &member.clients).filter_map(|url| socket_of(url)).collect())
    }

    /// Becomes a full member as soon as this one has all of the state.
    pub(super) async fn promote_itself(&self, tell: Tell<'_>) {
        loop {
            match promote(&self.admin(), &self.record.name).await {
                Ok(Promoted::Already) => return,
                Ok(Promoted::Now) => {
                    tell(&format!("server {} is a full member of etcd now", self.record.name));
                    return;
                }
                // Most often: it is not up to date yet.
                Err(error) => tracing::debug!(%error, "promoting this member"),
            }
            tokio::time::sleep(PROMOTE_AGAIN).await;
        }
    }
}

enum Promoted {
    Already,
    Now,
}

async fn promote(admin: &EtcdAdmin, name: &str) -> Result<Promoted, QuorumError> {
    let members = admin.members().await?;
    match members.iter().find(|member| member.name == name) {
        Some(member) if member.is_learner => {
            admin.promote(member.id).await?;
            Ok(Promoted::Now)
        }
        Some(_) => Ok(Promoted::Already),
        None => Err(QuorumError::Refused(format!("this cluster has no server {name} yet"))),
    }
}

pub(crate) fn socket_of(url: &str) -> Option<SocketAddr> {
    url.split_once("://").map_or(url, |(_, address)| address).trim_end_matches('/').parse().ok()
}

/// What of a state, or of where it is, lies in a data directory: with it the directory is a server's.
pub fn state_in(data: &Path) -> Option<PathBuf> {
    [data.join(SQLITE), Record::path(data)].into_iter().find(|path| path.exists())
}

/// On the new machine: puts in place what [`Quorum::admit`] gave. The data directory must hold no state.
pub fn enter(data: &Path, bundle: &Bundle) -> Result<(), QuorumError> {
    if let Some(state) = state_in(data) {
        return Err(QuorumError::Refused(format!(
            "{} is there; a new server starts with an empty data directory",
            state.display()
        )));
    }
    let files = Files::of(data);
    let directory = files.authority.parent().expect("it lies in a directory");
    std::fs::create_dir_all(directory).map_err(QuorumError::file("making", directory))?;
    let secret_key = hex::decode(&bundle.secret_key)
        .map_err(|_| QuorumError::Refused("what makes this machine a server is damaged".to_owned()))?;
    for (path, bytes) in [
        (&files.authority, bundle.authority.as_bytes()),
        (&files.authority_key, bundle.authority_key.as_bytes()),
        (&data.join("secret.key"), secret_key.as_slice()),
        (&data.join("token"), bundle.token.as_bytes()),
    ] {
        write_private(path, bytes).map_err(QuorumError::file("writing", path))?;
    }
    // Last: with it the machine is a server.
    bundle.record.write(data)
}
