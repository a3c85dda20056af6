//! What is kept of certificates in the store. Fields of newer versions survive a rewrite.

use jiff::Timestamp;
use rung_api::wire::certificates::Challenge;
use rung_model::keys;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::keyring::{Keyring, Origin};

/// At which authority certificates are ordered: [`keys::TLS_ACCOUNT`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Account {
    pub directory: String,
    pub email: Option<String>,
    /// Who vouches for the authority's own address, PEM.
    pub trust: Option<String>,
    pub at: Timestamp,
    pub by: String,
    /// Hexadecimal; `None` until the authority has made the account.
    pub sealed_credentials: Option<String>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// What a domain has, and how ordering went: below [`keys::TLS_CERTIFICATES`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    pub held: Option<Held>,
    /// Since the last success.
    pub trouble: Option<Trouble>,
    /// Somebody wants it ordered now.
    pub asked: Option<Timestamp>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Held {
    /// PEM, leaf first.
    pub chain: String,
    /// Hexadecimal.
    pub sealed_key: String,
    pub from: Timestamp,
    pub until: Timestamp,
    /// When the next one is ordered.
    pub renew: Timestamp,
    /// When the authority is asked for its advice on that again.
    pub ask_again: Timestamp,
    /// The authority has given advice on this certificate.
    #[serde(default)]
    pub advised: Option<Timestamp>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trouble {
    pub failures: u32,
    pub why: String,
    pub at: Timestamp,
    /// Not ordered before.
    pub again: Timestamp,
}

/// Below [`keys::TLS_CHALLENGES`], by token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KeptChallenge {
    pub challenge: Challenge,
    /// Whoever wrote it removes it; what a killed server left is removed after this.
    pub until: Timestamp,
}

pub(crate) fn record_key(domain: &str) -> String {
    format!("{}{domain}", keys::TLS_CERTIFICATES)
}

pub(crate) fn challenge_key(token: &str) -> String {
    format!("{}{token}", keys::TLS_CHALLENGES)
}

#[derive(Debug, thiserror::Error)]
#[error("what is sealed at {at} can't be opened with this secret.key")]
pub(crate) struct SealTrouble {
    pub at: String,
}

/// Something sealed at a place of the store, in hexadecimal.
pub(crate) fn seal(keys: &Keyring, at: &str, value: &str) -> String {
    hex::encode(keys.seal(at, value.as_bytes(), Origin::default()))
}

pub(crate) fn open(keys: &Keyring, at: &str, sealed: &str) -> Result<String, SealTrouble> {
    let trouble = || SealTrouble { at: at.to_owned() };
    let sealed = hex::decode(sealed).map_err(|_| trouble())?;
    let opened = keys.open(at, &sealed).map_err(|_| trouble())?;
    String::from_utf8(opened).map_err(|_| trouble())
}

/// The same under the primary master key; `None` when it is there already.
pub(crate) fn rewrap(keys: &Keyring, at: &str, sealed: &str) -> Result<Option<String>, SealTrouble> {
    let trouble = || SealTrouble { at: at.to_owned() };
    let sealed = hex::decode(sealed).map_err(|_| trouble())?;
    Ok(keys.rewrap(at, &sealed).map_err(|_| trouble())?.map(hex::encode))
}
