//! What a machine is: its key, its certificate, and the authority that signed it.

use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureScheme, client::ResolvesClientCert};

use crate::authority::PublicKey;
use crate::fingerprint::Fingerprint;
use crate::peer::{Peer, PeerError};

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("reading a certificate of this machine")]
    Certificate(#[source] pem::Error),
    #[error("this machine's private key can't be used")]
    Key,
    #[error("this machine's key and certificate do not fit each other")]
    Unfit(#[source] rustls::Error),
    #[error(transparent)]
    Peer(#[from] PeerError),
}

/// A node's own key; the private half never leaves the machine that made it.
#[derive(Clone)]
pub struct NodeKey(Vec<u8>);

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKey").finish_non_exhaustive()
    }
}

impl NodeKey {
    pub fn generate() -> Self {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .expect("the kernel gives random bytes");
        Self(pkcs8.as_ref().to_vec())
    }

    /// PKCS #8, as it is kept.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// # Errors
    /// These are not what [`Self::bytes`] gave.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, CredentialsError> {
        pair(&bytes)?;
        Ok(Self(bytes))
    }

    pub fn public(&self) -> PublicKey {
        let pair = pair(&self.0).expect("it was checked when it was made");
        PublicKey::new(pair.public_key().as_ref().to_vec()).expect("ring gives uncompressed points")
    }
}

fn pair(bytes: &[u8]) -> Result<EcdsaKeyPair, CredentialsError> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, bytes, &SystemRandom::new())
        .map_err(|_| CredentialsError::Key)
}

/// What is kept of an identity, certificates in PEM.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub key: NodeKey,
    pub certificate: String,
    pub authority: String,
}

/// An identity in use. What is renewed is shown from the next handshake on.
#[derive(Debug)]
pub struct Identity {
    peer: Peer,
    authority: CertificateDer<'static>,
    shown: RwLock<Arc<CertifiedKey>>,
}

impl Identity {
    /// # Errors
    /// The parts are damaged or do not fit each other.
    pub fn new(credentials: &Credentials) -> Result<Arc<Self>, CredentialsError> {
        let authority = certificate(&credentials.authority)?;
        let shown = certified(credentials)?;
        let peer = Peer::of(&shown.cert[0])?;
        Ok(Arc::new(Self { peer, authority, shown: RwLock::new(Arc::new(shown)) }))
    }

    /// Shows these from now on.
    ///
    /// # Errors
    /// The parts are damaged or do not fit each other.
    pub fn renew(&self, credentials: &Credentials) -> Result<(), CredentialsError> {
        let shown = Arc::new(certified(credentials)?);
        *self.shown.write().expect("nobody panics while holding this") = shown;
        Ok(())
    }

    /// Who this machine is.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    pub fn authority_fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.authority)
    }

    fn shown(&self) -> Arc<CertifiedKey> {
        self.shown.read().expect("nobody panics while holding this").clone()
    }
}

fn certificate(text: &str) -> Result<CertificateDer<'static>, CredentialsError> {
    CertificateDer::from_pem_slice(text.as_bytes()).map_err(CredentialsError::Certificate)
}

fn certified(credentials: &Credentials) -> Result<CertifiedKey, CredentialsError> {
    // The authority comes along: who knows it by its hash only needs to see it.
    let chain = vec![certificate(&credentials.certificate)?, certificate(&credentials.authority)?];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(credentials.key.bytes().to_vec()));
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(CredentialsError::Unfit)
}

/// Whether a certificate that was made for `life` is to be renewed: at two thirds of it, and when the clock by which it was made
/// has been set back since.
///
/// Clocks are set while machines run, at their start most of all, so whoever waits for this looks at the clock every
/// [`LOOK_AT_THE_CLOCK`].
pub fn renewal_is_due(made: SystemTime, life: Duration, now: SystemTime) -> bool {
    match now.duration_since(made) {
        Ok(age) => age >= life * 2 / 3,
        Err(ahead) => ahead.duration() > CLOCK_IS_CORRECTED,
    }
}

pub const LOOK_AT_THE_CLOCK: Duration = Duration::from_secs(5);
/// A time service corrects by less, again and again.
const CLOCK_IS_CORRECTED: Duration = Duration::from_secs(60);

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.shown())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life_and_when_the_clock_was_set() {
        let (made, life) = (SystemTime::UNIX_EPOCH + HOUR * 1000, HOUR * 24);
        let is_due = |now| renewal_is_due(made, life, now);
        assert!(!is_due(made + HOUR * 15), "it is good for hours");
        assert!(is_due(made + HOUR * 16));
        assert!(is_due(made + HOUR * 24 * 365), "the clock that made it was a year behind");
        assert!(is_due(made - HOUR * 3), "the clock that made it was hours ahead");
        assert!(!is_due(made - Duration::from_secs(2)), "a time service corrects a little all the time");
    }
}
