//! A certificate authority of this machine's own, for names under `localhost`.
//!
//! Made once, kept beside the ingress's other files. A person who wants their browser to trust it imports `ca.crt`; its
//! name constraints keep it from vouching for anything but `localhost`, its subdomains and the loopback addresses.
//! Certificates are made per name when they are first asked for, in memory: browsers take no `*.localhost`.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, date_time_ymd,
};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

/// Its directory, in the ingress's.
pub(crate) const AUTHORITY: &str = "development-ca";
const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const AUTHORITY_YEARS: i16 = 10;
/// A process may live for long: well before its end a certificate is made anew.
const LEAF_DAYS: i64 = 90;
const LEAF_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Names are chosen by clients: no more are kept than any machine has apps.
const LEAVES_MAX: usize = 1000;

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("keeping the development certificate authority at {path}")]
    File { path: PathBuf, source: io::Error },
    #[error(
        "reading the development certificate authority at {path}: remove the directory to have another one made"
    )]
    Malformed { path: PathBuf, source: rcgen::Error },
    #[error("making a certificate for {name}")]
    Make { name: String, source: rcgen::Error },
    #[error("using the certificate made for {name}")]
    Use { name: String, source: rustls::Error },
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct DevelopmentAuthority {
    issuer: Issuer<'static, KeyPair>,
    leaves: Mutex<HashMap<String, (Instant, Arc<CertifiedKey>)>>,
}

impl DevelopmentAuthority {
    /// Where the certificate lies that people import.
    pub(crate) fn certificate(directory: &Path) -> PathBuf {
        directory.join(CERTIFICATE)
    }

    /// Reads the authority, or makes it.
    pub(crate) fn ensure(directory: &Path) -> Result<Self, AuthorityError> {
        let file_error = |path: &Path| {
            let path = path.to_owned();
            move |source| AuthorityError::File { path, source }
        };
        std::fs::create_dir_all(directory).map_err(file_error(directory))?;
        let path = directory.join(KEY);
        let key = match std::fs::read_to_string(&path) {
            Ok(text) => {
                KeyPair::from_pem(&text).map_err(|source| AuthorityError::Malformed { path, source })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate()
                    .map_err(|source| AuthorityError::Make { name: "itself".into(), source })?;
                write_new(&path, key.serialize_pem().as_bytes(), 0o600).map_err(file_error(&path))?;
                key
            }
            Err(source) => return Err(AuthorityError::File { path, source }),
        };
        let params = authority_params(&key);
        let path = Self::certificate(directory);
        if !path.exists() {
            let certificate = params
                .self_signed(&key)
                .map_err(|source| AuthorityError::Make { name: "itself".into(), source })?;
            write_new(&path, certificate.pem().as_bytes(), 0o644).map_err(file_error(&path))?;
        }
        Ok(Self { issuer: Issuer::new(params, key), leaves: Mutex::default() })
    }

    /// Whether it vouches for a name.
    pub(crate) fn covers(name: &str) -> bool {
        name == "localhost" || name.ends_with(".localhost")
    }

    /// A certificate for a name that it covers.
    pub(crate) fn certify(&self, name: &str) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let mut leaves = self.leaves.lock().expect("nobody panics while holding this");
        if let Some((made, leaf)) = leaves.get(name)
            && made.elapsed() < LEAF_KEPT
        {
            return Ok(leaf.clone());
        }
        let leaf = Arc::new(self.make(name)?);
        if leaves.len() >= LEAVES_MAX {
            leaves.clear();
        }
        leaves.insert(name.to_owned(), (Instant::now(), leaf.clone()));
        Ok(leaf)
    }

    fn make(&self, name: &str) -> Result<CertifiedKey, AuthorityError> {
        let make_error = |source| AuthorityError::Make { name: name.to_owned(), source };
        let mut names = vec![name.to_owned()];
        if name == "localhost" {
            names.extend(["127.0.0.1".to_owned(), "::1".to_owned()]);
        }
        let mut params = CertificateParams::new(names).map_err(make_error)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let date = today() - 1.day();
        params.not_before =
            date_time_ymd(date.year().into(), date.month().cast_unsigned(), date.day().cast_unsigned());
        let date = today() + LEAF_DAYS.days();
        params.not_after =
            date_time_ymd(date.year().into(), date.month().cast_unsigned(), date.day().cast_unsigned());
        // A key for each: serial numbers are made of them, and none may come twice.
        let key = KeyPair::generate().map_err(make_error)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(make_error)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        CertifiedKey::from_der(vec![certificate.der().clone()], private, &default_provider())
            .map_err(|source| AuthorityError::Use { name: name.to_owned(), source })
    }
}

/// The same for the same key, so that only the key need be kept to sign.
fn authority_params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mark: String = params.key_identifier(key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = DistinguishedName::new();
    // Every machine has its own: the name tells them apart in a browser's list.
    params.distinguished_name.push(DnType::CommonName, format!("Rung development authority {mark}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![
            GeneralSubtree::DnsName("localhost".to_owned()),
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([127, 0, 0, 0], 8)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix(
                std::net::Ipv6Addr::LOCALHOST.octets(),
                128,
            )),
        ],
        excluded_subtrees: Vec::new(),
    });
    let date = today() - 1.day();
    params.not_before =
        date_time_ymd(date.year().into(), date.month().cast_unsigned(), date.day().cast_unsigned());
    let date = today() + AUTHORITY_YEARS.years();
    params.not_after =
        date_time_ymd(date.year().into(), date.month().cast_unsigned(), date.day().cast_unsigned());
    params
}

fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
}

/// The file appears whole or not at all.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_extension(format!("new.{}", std::process::id()));
    let mut file: File =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
