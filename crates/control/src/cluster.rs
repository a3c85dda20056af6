//! The cluster's authority, and which machines it vouches for.
//!
//! The authority lies in the store, its key sealed, so that every server signs with the same one. It is made when a
//! server first serves its API to other machines; one machine alone has none.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use rung_model::{Document, Member, NodeId, NodeRole, keys};
use rung_planner::{World, rewrite};
use rung_store::{Event as StoreEvent, Guard, Op, StoreError, Txn};
use rung_trust::{
    Authority, AuthorityError, AuthorityFile, CERTIFICATE_LIFE, Certificate, CredentialsError,
    DirectoryError, Fingerprint, Identity, LOOK_AT_THE_CLOCK, Member as Known, MemberList, PublicKey,
    TrustDirectory, renewal_is_due,
};

use crate::keyring::Origin;
use crate::reconcile::Event;
use crate::shared::Control;

const SEAL_CONTEXT: &str = "cluster/authority";

#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("keeping the cluster's authority in the store")]
    Store(#[from] StoreError),
    #[error("the store did not say whether the cluster's authority was kept; start again")]
    Unknown,
    #[error(
        "the cluster's authority can't be opened with this secret.key; put the old one back into the data directory"
    )]
    Sealed,
    #[error("what the store holds as the cluster's authority is damaged")]
    Damaged,
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(
        "this server does not serve its API to other machines; start it with --api and an address they reach"
    )]
    Alone,
}

/// As it is kept in the store.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct KeptAuthority {
    certificate: String,
    /// Hexadecimal.
    sealed_key: String,
}

rung_model::documents!(KeptAuthority);

/// A node's certificate and the authority's, both PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    pub certificate: String,
    pub authority: String,
}

impl Control {
    /// Reads the cluster's authority, or makes it.
    ///
    /// # Errors
    /// The store can't be used, or the authority can't be opened.
    pub async fn ensure_authority(&self) -> Result<Fingerprint, ClusterError> {
        if let Some(authority) = self.inner.authority.get() {
            return Ok(authority.fingerprint());
        }
        let authority = match self.kept_authority().await? {
            Some(authority) => authority,
            None => match self.keep_authority(Authority::generate(SystemTime::now())?).await? {
                Some(made) => made,
                // Another server was quicker.
                None => self.kept_authority().await?.ok_or(ClusterError::Damaged)?,
            },
        };
        Ok(self.inner.authority.get_or_init(|| authority).fingerprint())
    }

    async fn kept_authority(&self) -> Result<Option<Authority>, ClusterError> {
        let Some(entry) = self.inner.store.get(keys::AUTHORITY).await?.value else { return Ok(None) };
        let kept = KeptAuthority::from_json(&entry.value).map_err(|_| ClusterError::Damaged)?;
        let sealed = hex::decode(&kept.sealed_key).map_err(|_| ClusterError::Damaged)?;
        let key = self.inner.keys.open(SEAL_CONTEXT, &sealed).map_err(|_| ClusterError::Sealed)?;
        let key = String::from_utf8(key).map_err(|_| ClusterError::Damaged)?;
        Ok(Some(Authority::from_file(AuthorityFile { certificate: kept.certificate, key })?))
    }

    /// Puts the authority's key under the primary master key. `false`: it is there already, or there is none.
    pub(crate) async fn rewrap_authority(&self) -> Result<bool, ClusterError> {
        let Some(entry) = self.inner.store.get(keys::AUTHORITY).await?.value else { return Ok(false) };
        let kept = KeptAuthority::from_json(&entry.value).map_err(|_| ClusterError::Damaged)?;
        let sealed = hex::decode(&kept.sealed_key).map_err(|_| ClusterError::Damaged)?;
        let wrapped = self.inner.keys.rewrap(SEAL_CONTEXT, &sealed).map_err(|_| ClusterError::Sealed)?;
        let Some(wrapped) = wrapped else { return Ok(false) };
        let now = KeptAuthority { sealed_key: hex::encode(wrapped), ..kept.clone() };
        let value = rewrite(&entry.value, &kept, &now);
        let guard = Guard::Modified { key: entry.key.clone(), revision: entry.modified };
        self.txn(vec![guard], vec![Op::Put { key: entry.key, value, lease: None }]).await?;
        Ok(true)
    }

    async fn keep_authority(&self, authority: Authority) -> Result<Option<Authority>, ClusterError> {
        let file = authority.file();
        let _sealing = self.inner.keys.sealing().await;
        let kept = KeptAuthority {
            certificate: file.certificate.clone(),
            sealed_key: hex::encode(self.inner.keys.seal(
                SEAL_CONTEXT,
                file.key.as_bytes(),
                Origin::default(),
            )),
        };
        let value = kept.to_json();
        let guard = Guard::Absent { key: keys::AUTHORITY.to_owned() };
        let put = Op::Put { key: keys::AUTHORITY.to_owned(), value, lease: None };
        match self.txn(vec![guard], vec![put]).await? {
            Txn::Committed(_) => Ok(Some(authority)),
            Txn::Conflict => Ok(None),
            Txn::Unknown => Err(ClusterError::Unknown),
        }
    }

    /// The authority by which joining machines recognize the cluster; `None` on one machine alone.
    pub fn authority_fingerprint(&self) -> Option<Fingerprint> {
        self.inner.authority.get().map(Authority::fingerprint)
    }

    /// Signs what a node is. Whether it may be that is for the caller to have decided.
    pub(crate) fn certify(
        &self,
        node: &NodeId,
        role: NodeRole,
        key: &PublicKey,
        addresses: &[IpAddr],
    ) -> Result<Issued, ClusterError> {
        let authority = self.inner.authority.get().ok_or(ClusterError::Alone)?;
        let host = (role == NodeRole::Server).then_some("localhost");
        let wanted =
            Certificate { node, role, key, addresses, host, now: SystemTime::now(), life: CERTIFICATE_LIFE };
        let certificate = authority.certify(&wanted)?;
        Ok(Issued { certificate, authority: authority.file().certificate.clone() })
    }

    /// `api` is where other machines reach the API. Makes this machine a member and gives it an identity that is renewed as long as the server runs.
    ///
    /// # Errors
    /// The store or the directory can't be written to.
    pub async fn own_identity(
        &self,
        directory: TrustDirectory,
        addresses: Vec<IpAddr>,
        api: String,
    ) -> Result<Arc<Identity>, ClusterError> {
        self.ensure_authority().await?;
        let key = directory.ensure_key()?.public();
        self.admit_itself(&key, api).await?;
        let made = SystemTime::now();
        let issued = self.certify(&self.inner.node, NodeRole::Server, &key, &addresses)?;
        directory.keep(&issued.certificate, &issued.authority)?;
        let credentials = directory.read()?.ok_or(ClusterError::Damaged)?;
        let identity = Identity::new(&credentials)?;
        let identity = self.inner.identity.get_or_init(|| identity).clone();
        tokio::spawn(self.clone().renew_own(directory, identity.clone(), key, addresses, made));
        Ok(identity)
    }

    async fn renew_own(
        self,
        directory: TrustDirectory,
        identity: Arc<Identity>,
        key: PublicKey,
        addresses: Vec<IpAddr>,
        mut made: SystemTime,
    ) {
        loop {
            tokio::time::sleep(LOOK_AT_THE_CLOCK).await;
            let now = SystemTime::now();
            if !renewal_is_due(made, CERTIFICATE_LIFE, now) {
                continue;
            }
            let renewed = || -> Result<(), ClusterError> {
                let issued = self.certify(&self.inner.node, NodeRole::Server, &key, &addresses)?;
                directory.keep(&issued.certificate, &issued.authority)?;
                let credentials = directory.read()?.ok_or(ClusterError::Damaged)?;
                Ok(identity.renew(&credentials)?)
            };
            match renewed() {
                Ok(()) => made = now,
                Err(error) => {
                    tracing::error!(
                        error = crate::trees::chain(&error),
                        "renewing this server's certificate"
                    );
                }
            }
        }
    }

    async fn admit_itself(&self, key: &PublicKey, api: String) -> Result<(), ClusterError> {
        let node = &self.inner.node;
        let held = self.inner.store.get(&keys::member(node)).await?.value;
        let known = held.as_ref().and_then(|entry| Member::from_json(&entry.value).ok());
        let fingerprint = key.fingerprint().to_string();
        let joined = known.as_ref().map_or_else(Timestamp::now, |known| known.joined);
        let member =
            Member { node: node.clone(), role: NodeRole::Server, key: fingerprint, joined, api: Some(api) };
        if known.as_ref() == Some(&member) {
            return Ok(());
        }
        let value = match held.as_ref().zip(known.as_ref()) {
            Some((entry, known)) => rewrite(&entry.value, known, &member),
            None => member.to_json(),
        };
        let guard = match held {
            Some(entry) => Guard::Modified { key: entry.key, revision: entry.modified },
            None => Guard::Absent { key: keys::member(node) },
        };
        match self.txn(vec![guard], vec![Op::Put { key: keys::member(node), value, lease: None }]).await? {
            Txn::Committed(_) => Ok(()),
            Txn::Conflict | Txn::Unknown => Err(ClusterError::Unknown),
        }
    }

    /// Whoever accepts connections of nodes asks these.
    pub fn members(&self) -> rung_trust::Members {
        self.inner.members.clone()
    }

    /// They are as the index has them now.
    pub(crate) fn set_members(&self, world: &World, which: &MembersTouched) {
        if world.revision == 0 {
            return;
        }
        match which {
            MembersTouched::Any => {
                let all = world.members.values().filter_map(|held| known(&held.value));
                self.inner.members.set(MemberList(all.collect()));
            }
            MembersTouched::Only(nodes) => {
                for node in nodes {
                    let member = world.members.get(node).and_then(|held| known(&held.value));
                    self.inner.members.set_one(node, member.map(|(_, member)| member));
                }
            }
        }
    }
}

fn known(member: &Member) -> Option<(NodeId, Known)> {
    let key = member.key.parse().ok()?;
    Some((member.node.clone(), Known { role: member.role, key }))
}

/// Of which members an event says something. When thousands join, each is one of thousands.
pub(crate) enum MembersTouched {
    Any,
    Only(Vec<NodeId>),
}

impl MembersTouched {
    pub fn by(event: &Event) -> Self {
        match event {
            Event::Listed { .. } => Self::Any,
            Event::Changed(batch) | Event::ChangedOnTheWay(batch) => {
                let keys = batch.events.iter().map(StoreEvent::key);
                let nodes = keys.filter_map(|key| NodeId::new(key.strip_prefix(keys::MEMBERS)?).ok());
                Self::Only(nodes.collect())
            }
            _ => Self::Only(Vec::new()),
        }
    }
}
