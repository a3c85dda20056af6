//! Tokens, the audit trail and keys: for people who say who may, and look who did.

use hyper::Method;
use rung_model::ids::{AppName, TokenName};

use super::{Client, ClientError, fill};
use crate::audit::AuditRecord;
use crate::paths;
use crate::wire::{GenerateRequest, KeyRotated, Started, TokenCreated, TokenListing, TokenRequest, Whoami};

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

    /// Records of the audit trail after a sequence, a page of them; empty at the end.
    pub async fn audit_after(&self, sequence: u64) -> Result<Vec<AuditRecord>, ClientError> {
        self.get(&format!("{}?after={sequence}", paths::AUDIT)).await
    }

    /// The newest records of the audit trail, oldest first.
    pub async fn audit_tail(&self, count: usize) -> Result<Vec<AuditRecord>, ClientError> {
        self.get(&format!("{}?tail={count}", paths::AUDIT)).await
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
