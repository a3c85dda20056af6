//! Errors on the wire: a stable code for programs, a message and a hint for people.

use serde::{Deserialize, Serialize};

/// Stable: a code's meaning never changes, new ones may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    InvalidRequest,
    InvalidAppFile,
    InvalidArchive,
    MissingSecret,
    Unauthorized,
    /// The node that asks was taken out of the cluster.
    Removed,
    /// The token is valid, and does not allow this.
    Forbidden,
    NotFound,
    /// A deployment of the app is going on.
    Deploying,
    /// The state does not allow it (nothing to roll back to, nothing deployed yet).
    Refused,
    /// Somebody else changed the same thing at the same moment.
    Conflict,
    TooLarge,
    /// Too many wrong tokens came from this address.
    Limited,
    /// The store or the node can't be reached, or its disk is full. Nothing was changed.
    Unavailable,
    /// It may or may not have been done; ask before doing it again.
    Unknown,
    Internal,
}

impl Code {
    /// The HTTP status it travels with.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::InvalidAppFile | Self::InvalidArchive => 400,
            Self::Unauthorized => 401,
            Self::Removed => 403,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Deploying | Self::Conflict => 409,
            Self::MissingSecret | Self::Refused => 422,
            Self::TooLarge => 413,
            Self::Limited => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::Unknown => 504,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, utoipa::ToSchema)]
#[error("{message}")]
pub struct ErrorBody {
    pub code: Code,
    /// Lower case; names the object and the attempted act.
    pub message: String,
    /// The way out, when there is one.
    #[serde(default)]
    pub hint: Option<String>,
}

impl ErrorBody {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
