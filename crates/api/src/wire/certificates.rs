//! Certificates that the platform obtains by itself: what people set and see, and what ingresses follow.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use rung_model::ids::AppName;
use serde::{Deserialize, Serialize};

/// `PUT /v1/certificates/account`: at which authority certificates are ordered, and for whom.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AccountRequest {
    /// Whom the authority may write to.
    #[serde(default)]
    pub email: Option<String>,
    /// The address of its ACME directory; Let's Encrypt when it is left out.
    #[serde(default)]
    pub directory: Option<String>,
    /// Who vouches for the authority's own address, PEM; what the machine trusts when it is left out.
    #[serde(default)]
    pub trust: Option<String>,
    /// Orders need it, and nobody can agree but a person.
    pub terms: Terms,
    pub by: String,
}

/// The authority's terms of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Terms {
    Agreed,
    NotAgreed,
}

/// `GET /v1/certificates`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CertificateReport {
    /// `None`: none are ordered.
    pub account: Option<AccountListing>,
    pub certificates: Vec<CertificateListing>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AccountListing {
    pub directory: String,
    pub email: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub by: String,
}

/// What a domain has, and what is done about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CertificateListing {
    pub domain: String,
    /// `None`: no app names it any more.
    pub app: Option<AppName>,
    pub source: CertificateSource,
    /// Until when it holds; `None`: there is none.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
    /// When the next one is ordered.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub renewal: Option<Timestamp>,
    /// Why the last order failed, when it did.
    pub trouble: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CertificateSource {
    /// Ordered by the platform.
    Acme,
    /// Put there by somebody; it stands before an ordered one.
    File,
    /// Nothing orders it: a wildcard, or no account is set.
    Nobody,
}

impl fmt::Display for CertificateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Acme => "acme",
            Self::File => "file",
            Self::Nobody => "nobody",
        })
    }
}

/// An ingress asks for news of certificates, and says what it has by file.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CertificatePoll {
    /// The mark of what it holds: everything up to it is in use. Empty at first.
    pub after: String,
    #[serde(default)]
    pub files: Vec<FileCertificate>,
    /// What lies there and is of no use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub useless: Vec<UselessFile>,
}

/// A certificate that somebody put beside an ingress, and that browsers would not take.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UselessFile {
    pub host: String,
    pub why: String,
}

/// A certificate that somebody put beside an ingress.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileCertificate {
    pub host: String,
    #[schema(value_type = String, format = DateTime)]
    pub until: Timestamp,
}

/// Everything an ingress shall hold; the certificates themselves are asked for one by one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CertificateNews {
    pub mark: String,
    /// Versions by host.
    pub certificates: BTreeMap<String, String>,
    pub challenges: Vec<Challenge>,
}

/// What proves to an authority that a host leads here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Challenge {
    pub host: String,
    pub way: ChallengeWay,
    pub token: String,
    /// What the authority wants to find.
    pub authorization: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChallengeWay {
    /// A page under `/.well-known/acme-challenge/`, asked for plainly at port 80.
    Http01,
    /// A certificate of its own, shown at port 443 to who asks for `acme-tls/1`.
    TlsAlpn01,
}

impl fmt::Display for ChallengeWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        })
    }
}

/// A certificate and its key, both PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CertificatePair {
    pub chain: String,
    pub key: String,
}

impl fmt::Debug for CertificatePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificatePair").finish_non_exhaustive()
    }
}
