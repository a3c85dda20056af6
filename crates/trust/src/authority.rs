//! The cluster's certificate authority.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm, date_time_ymd,
};
use ring::rand::{SecureRandom, SystemRandom};
use rung_model::{NodeId, NodeRole};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::fingerprint::Fingerprint;
use crate::peer::{node_name, role_name};

/// Short, so that one that was stolen is soon worth nothing; renewed at two thirds of it.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// What a server signs whose clock is ahead holds for the others at once: one that shows the time of the wrong zone is up to 14
/// hours ahead. When a certificate ends does not hang on it.
const BEGINS_EARLIER: Duration = Duration::from_secs(15 * 3600);
/// An uncompressed point of the curve P-256: 4, x, y.
const POINT_BYTES: usize = 65;

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("making the cluster's certificate authority")]
    Make(#[source] rcgen::Error),
    #[error("reading the cluster's certificate authority")]
    Damaged(#[source] rcgen::Error),
    #[error("reading the certificate of the cluster's authority")]
    DamagedCertificate(#[source] rustls::pki_types::pem::Error),
    #[error("signing a certificate for {node}")]
    Sign { node: NodeId, source: rcgen::Error },
    #[error("the public key of {node} is not a point of the curve P-256")]
    NotAPoint { node: NodeId },
}

/// What is kept of an authority, both PEM. The key is a secret.
#[derive(Clone)]
pub struct AuthorityFile {
    pub certificate: String,
    pub key: String,
}

impl std::fmt::Debug for AuthorityFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthorityFile").finish_non_exhaustive()
    }
}

/// A node's public key, as it sends it to be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl PublicKey {
    /// `None` when it is not a point of P-256 in its uncompressed form.
    pub fn new(point: Vec<u8>) -> Option<Self> {
        (point.len() == POINT_BYTES && point[0] == 4).then_some(Self(point))
    }

    pub fn from_hex(text: &str) -> Option<Self> {
        hex::decode(text).ok().and_then(Self::new)
    }

    pub fn to_hex(&self) -> String {
        hex::encode(&self.0)
    }

    /// As [`crate::Peer`] finds it in a certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.subject_public_key_info())
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// What is to be certified.
#[derive(Debug, Clone)]
pub struct Certificate<'a> {
    pub node: &'a NodeId,
    pub role: NodeRole,
    pub key: &'a PublicKey,
    /// Where tools that know nothing of Rung's names reach it; for servers.
    pub addresses: &'a [IpAddr],
    pub host: Option<&'a str>,
    pub now: SystemTime,
    pub life: Duration,
}

/// Signs what nodes are.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    file: AuthorityFile,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new cluster's.
    ///
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn generate(now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Make)?;
        let mut params = params_of(&key);
        params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(now - BEGINS_EARLIER);
        params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(now + AUTHORITY_LIFE);
        let certificate = params.self_signed(&key).map_err(AuthorityError::Make)?;
        let file = AuthorityFile { certificate: certificate.pem(), key: key.serialize_pem() };
        let der = certificate.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), certificate: der, file })
    }

    /// The one that was kept.
    ///
    /// # Errors
    /// It is damaged.
    pub fn from_file(file: AuthorityFile) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(&file.key).map_err(AuthorityError::Damaged)?;
        let certificate = CertificateDer::from_pem_slice(file.certificate.as_bytes())
            .map_err(AuthorityError::DamagedCertificate)?;
        Ok(Self { issuer: Issuer::new(params_of(&key), key), certificate, file })
    }

    pub fn file(&self) -> &AuthorityFile {
        &self.file
    }

    /// By which joining machines and people recognize the cluster.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Signs a certificate, PEM.
    ///
    /// # Errors
    /// The key is not one.
    pub fn certify(&self, wanted: &Certificate<'_>) -> Result<String, AuthorityError> {
        let node = wanted.node;
        let sign_error = |source| AuthorityError::Sign { node: node.clone(), source };
        let mut names = vec![node_name(node), role_name(wanted.role)];
        names.extend(wanted.host.map(str::to_owned));
        let mut params = CertificateParams::new(names).map_err(sign_error)?;
        params.subject_alt_names.extend(wanted.addresses.iter().copied().map(SanType::IpAddress));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{node} ({})", wanted.role));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Every node is asked by some and asks others.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(wanted.now - BEGINS_EARLIER);
        params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(wanted.now + wanted.life);
        // Renewals are for the same key; no serial number may come twice all the same.
        params.serial_number = Some(random_serial());
        let certificate = params.signed_by(wanted.key, &self.issuer).map_err(sign_error)?;
        webpki::EndEntityCert::try_from(certificate.der())
            .map_err(|_| AuthorityError::NotAPoint { node: node.clone() })?;
        Ok(certificate.pem())
    }
}

fn random_serial() -> SerialNumber {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes");
    // Positive, and as long as it says.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// The same for the same key, but for the time: only its name counts when something is signed.
fn params_of(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mark: String = params.key_identifier(key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Rung cluster {mark}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// rcgen takes times of a crate that we need nowhere else: the epoch and a duration make one.
fn since_epoch(time: SystemTime) -> Duration {
    Duration::from_secs(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
}
