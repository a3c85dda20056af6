//! TLS as Rung speaks it between machines: 1.3 only, certificates of the cluster's authority only.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::ring::default_provider;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, Error, OtherError, RootCertStore,
    ServerConfig, SignatureScheme, SupportedProtocolVersion,
};

use crate::explain::Explained;
use crate::fingerprint::Fingerprint;
use crate::identity::Identity;
use crate::listener::Clients;

const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Offered by machines and taken by servers. It is a name of our own for HTTP/2: what people use (curl, git) offers `h2`
/// wherever it goes, and would get it without having asked for it.
const SIDE_BY_SIDE: &[u8] = b"rung-h2";
const ONE_BY_ONE: &[u8] = b"http/1.1";

/// How questions go over a connection, as both sides have agreed in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, which every version of Rung speaks, and every person's tool.
    OneByOne,
    /// HTTP/2.
    SideBySide,
}

impl Protocol {
    /// What came of a handshake. Who knows of no choice has made none.
    pub fn agreed(connection: &CommonState) -> Self {
        if connection.alpn_protocol() == Some(SIDE_BY_SIDE) { Self::SideBySide } else { Self::OneByOne }
    }
}

/// Whether its connections may come to carry questions side by side.
pub fn offers_side_by_side(config: &ClientConfig) -> bool {
    config.alpn_protocols.iter().any(|name| name == SIDE_BY_SIDE)
}

/// The same client, for connections that carry one question at a time.
pub fn one_by_one(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![ONE_BY_ONE.to_vec()];
    Arc::new(config)
}

/// Whom a client takes for its cluster.
#[derive(Debug, Clone)]
pub enum Belief {
    /// Only the hash of the authority's certificate is known: from a join token, or a person's configuration.
    Hash(Fingerprint),
    Authority(CertificateDer<'static>),
}

/// How a client connects; with an identity it shows who it is, and may ask several things at a time.
///
/// # Panics
/// Never: the versions and algorithms are fixed and fit each other.
pub fn client_config(belief: Belief, identity: Option<Arc<Identity>>) -> Arc<ClientConfig> {
    let provider = Arc::new(default_provider());
    let verifier = Arc::new(OfTheCluster { belief, provider: provider.clone() });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(VERSIONS)
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let (mut config, offered) = match identity {
        Some(identity) => {
            (builder.with_client_cert_resolver(identity), vec![SIDE_BY_SIDE.to_vec(), ONE_BY_ONE.to_vec()])
        }
        None => (builder.with_no_client_auth(), vec![ONE_BY_ONE.to_vec()]),
    };
    // Each handshake says anew who is there.
    config.resumption = Resumption::disabled();
    config.alpn_protocols = offered;
    Arc::new(config)
}

/// How a node is asked by others.
///
/// # Panics
/// Never: the versions and algorithms are fixed and fit each other.
pub fn server_config(identity: Arc<Identity>, clients: Clients) -> Arc<ServerConfig> {
    let provider = Arc::new(default_provider());
    let roots =
        Arc::new(only(identity.authority().clone()).expect("an identity's authority is a certificate"));
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
    let verifier = match clients {
        Clients::Anybody => verifier.allow_unauthenticated().build(),
        Clients::Nodes => verifier.build(),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(VERSIONS)
        .expect("the provider has TLS 1.3")
        .with_client_cert_verifier(verifier.expect("there is a root"))
        .with_cert_resolver(identity);
    // A resumed session would not be asked again for a certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = match clients {
        // The first that both know is taken.
        Clients::Anybody => vec![SIDE_BY_SIDE.to_vec(), ONE_BY_ONE.to_vec()],
        // Agents and proxies are asked for logs, terminals and instances: each is a connection of its own anyway.
        Clients::Nodes => vec![ONE_BY_ONE.to_vec()],
    };
    Arc::new(config)
}

fn only(authority: CertificateDer<'static>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    Ok(roots)
}

/// Accepts certificates of one authority for the name that is asked for: a node's or a role's, never an address.
#[derive(Debug)]
struct OfTheCluster {
    belief: Belief,
    provider: Arc<CryptoProvider>,
}

impl OfTheCluster {
    fn authority(&self, shown: &[CertificateDer<'_>]) -> Result<CertificateDer<'static>, Error> {
        match &self.belief {
            Belief::Authority(authority) => Ok(authority.clone()),
            Belief::Hash(hash) => {
                let found = shown.iter().find(|certificate| Fingerprint::of(certificate) == *hash);
                found.map(|found| found.clone().into_owned()).ok_or_else(|| {
                    let other = OtherError(Arc::new(Explained::OtherCluster { expected: *hash }));
                    Error::InvalidCertificate(CertificateError::Other(other))
                })
            }
        }
    }
}

impl ServerCertVerifier for OfTheCluster {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = only(self.authority(intermediates)?)?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &roots, &[], now, algorithms)?;
        verify_server_name(&certificate, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken between machines".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
