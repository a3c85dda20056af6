//! Who a certificate speaks of.

use rung_model::{NodeId, NodeRole};
use rustls::pki_types::{CertificateDer, ServerName};

use crate::fingerprint::Fingerprint;

/// Certificates name nodes and roles below it. No resolver knows the domain, and none is asked.
const NODES: &str = ".node.rung.internal";
const ROLES: &str = ".role.rung.internal";

/// One side of a mutual TLS connection, as its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub node: NodeId,
    pub role: NodeRole,
    /// Of its public key: a name that was given to another machine later does not fit.
    pub key: Fingerprint,
}

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("reading the certificate of a node")]
    Unreadable(#[source] webpki::Error),
    #[error("the certificate names no node and role")]
    Nameless,
}

/// The name that a node's certificate carries.
pub fn node_name(node: &NodeId) -> String {
    format!("{node}{NODES}")
}

/// The name that every certificate of a role carries.
pub fn role_name(role: NodeRole) -> String {
    format!("{role}{ROLES}")
}

/// For a handshake with whoever carries the name.
pub fn server_name(name: String) -> ServerName<'static> {
    ServerName::try_from(name).expect("names of nodes and roles are DNS labels")
}

impl Peer {
    /// Whom a verified certificate names.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let parsed = webpki::EndEntityCert::try_from(certificate).map_err(PeerError::Unreadable)?;
        let (mut node, mut role) = (None, None);
        for name in parsed.valid_dns_names() {
            if let Some(label) = name.strip_suffix(NODES) {
                node = NodeId::new(label).ok();
            } else if let Some(label) = name.strip_suffix(ROLES) {
                role = label.parse().ok();
            }
        }
        let key = Fingerprint::of(parsed.subject_public_key_info().as_ref());
        match (node, role) {
            (Some(node), Some(role)) => Ok(Self { node, role, key }),
            _ => Err(PeerError::Nameless),
        }
    }
}
