//! Tokens, the audit trail and keys: for people who say who may, and look who did.

use std::time::Duration;

use hyper::Method;
use jiff::Timestamp;
use rung_model::ids::{AppName, NodeId, TokenName};

use super::{Client, ClientError, encode_query, fill, with_wait};
use crate::audit::{AuditRecord, KeptTrail, ServerTrail};
use crate::paths;
use crate::wire::{
    GenerateRequest, KeyRotated, OwnEvents, OwnPlace, Started, TokenCreated, TokenListing, TokenRequest,
    Whoami,
};

/// Which trail, and whose word about it.
#[derive(Debug, Clone)]
pub enum AuditOf {
    /// The server's own.
    Server(NodeId),
    /// The copy that the server that is asked has of it.
    Copy { server: NodeId, joined: Timestamp },
}

impl Client {
    pub async fn whoami(&self) -> Result<Whoami, ClientError> {
        self.get(paths::WHOAMI).await
    }

    pub async fn tokens(&self) -> Result<Vec<TokenListing>, ClientError> {
        self.get(paths::TOKENS).await
    }

    pub async fn create_token(&self, request: &TokenRequest) -> Result<TokenCreated, ClientError> {
        self.call(Method::POST, paths::TOKENS, request).await
    }

    pub async fn revoke_token(&self, token: &TokenName) -> Result<(), ClientError> {
        self.call(Method::DELETE, &fill(paths::TOKEN, &[token]), &()).await
    }

    /// Records of a trail after a sequence, a page of them; empty at the end.
    pub async fn audit_after(&self, of: &AuditOf, sequence: u64) -> Result<Vec<AuditRecord>, ClientError> {
        let of = match of {
            AuditOf::Server(server) => format!("&server={server}"),
            AuditOf::Copy { server, joined } => {
                format!("&copy={server}&joined={}", encode_query(&joined.to_string()))
            }
        };
        self.get(&format!("{}?after={sequence}{of}", paths::AUDIT)).await
    }

    /// The newest records of the trail of each server that is or was one, oldest first.
    pub async fn audits(&self, tail: usize) -> Result<Vec<ServerTrail>, ClientError> {
        self.get(&format!("{}?tail={tail}", paths::AUDIT_SERVERS)).await
    }

    /// For servers: records of the other one's own trail after a sequence; after `wait` none, at the latest.
    pub async fn own_audit(&self, after: u64, wait: Duration) -> Result<Vec<AuditRecord>, ClientError> {
        self.get(&format!("{}&after={after}", with_wait(paths::OWN_AUDIT.to_owned(), wait))).await
    }

    /// For servers: every trail that the other one has, its own first.
    pub async fn kept_audits(&self, tail: usize) -> Result<Vec<KeptTrail>, ClientError> {
        self.get(&format!("{}?tail={tail}", paths::KEPT_AUDITS)).await
    }

    /// For servers: where the other one keeps artifacts.
    pub async fn own_artifacts(&self) -> Result<OwnPlace, ClientError> {
        self.get(paths::OWN_ARTIFACTS).await
    }

    /// For servers: what happened at the other one and nowhere else, after one of its numbers.
    pub async fn own_events(&self, after: u64, wait: Duration) -> Result<OwnEvents, ClientError> {
        self.get(&format!("{}&after={after}", with_wait(paths::OWN_EVENTS.to_owned(), wait))).await
    }

    pub async fn generate_secret(
        &self,
        app: &AppName,
        request: &GenerateRequest,
    ) -> Result<Started, ClientError> {
        self.call(Method::POST, &fill(paths::SECRETS_GENERATE, &[app]), request).await
    }

    pub async fn rotate_key(&self) -> Result<KeyRotated, ClientError> {
        self.call(Method::POST, paths::ROTATE_KEY, &()).await
    }
}
