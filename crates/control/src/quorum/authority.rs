//! The certificates between etcd's members and their clients.
//!
//! An authority of etcd's own, because its members must find together before anybody can read the state, in which the
//! cluster's authority lies. Every server has its key, as every server can read every state anyway. etcd reads its
//! certificate anew at each handshake; it is made anew at each start of its server.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rung_api::seal::write_private;
use rung_store::etcd::EtcdTls;

use super::QuorumError;

/// Longer than a cluster lives: who can read its key has the state already.
const AUTHORITY_YEARS: i32 = 30;
/// Servers are started more often than that; until then a member must work without anybody who could sign.
const MEMBER_YEARS: i32 = 5;
/// Clocks of machines differ.
const BACKDATED_DAYS: i64 = 1;

pub(super) struct Files {
    pub authority: PathBuf,
    pub authority_key: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Files {
    pub fn of(data: &Path) -> Self {
        let directory = data.join("etcd").join("tls");
        Self {
            authority: directory.join("ca.crt"),
            authority_key: directory.join("ca.key"),
            certificate: directory.join("member.crt"),
            key: directory.join("member.key"),
        }
    }
}

fn read(path: &Path) -> Result<String, QuorumError> {
    std::fs::read_to_string(path).map_err(QuorumError::file("reading", path))
}

fn write(path: &Path, text: &str) -> Result<(), QuorumError> {
    write_private(path, text.as_bytes()).map_err(QuorumError::file("writing", path))
}

fn lasting(params: &mut CertificateParams, years: i32) {
    let now = jiff::Timestamp::now();
    let day = 24 * 3600;
    let seconds =
        |at: i64| rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(at.cast_unsigned());
    params.not_before = seconds(now.as_second() - BACKDATED_DAYS * day);
    params.not_after = seconds(now.as_second() + i64::from(years) * 365 * day);
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "rung etcd authority");
    lasting(&mut params, AUTHORITY_YEARS);
    params
}

/// Makes the authority where there is none, and a certificate for this machine's member.
pub(super) fn ensure(data: &Path, name: &str, address: IpAddr) -> Result<(), QuorumError> {
    let files = Files::of(data);
    let directory = files.authority.parent().expect("it lies in a directory");
    std::fs::create_dir_all(directory).map_err(QuorumError::file("making", directory))?;
    if !files.authority.exists() {
        let key = KeyPair::generate()?;
        write(&files.authority_key, &key.serialize_pem())?;
        write(&files.authority, &authority_params().self_signed(&key)?.pem())?;
    }
    let issuer = Issuer::new(authority_params(), KeyPair::from_pem(&read(&files.authority_key)?)?);
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    let mut params =
        CertificateParams::new(vec!["localhost".to_owned(), loopback.to_string(), address.to_string()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    lasting(&mut params, MEMBER_YEARS);
    let key = KeyPair::generate()?;
    // A handshake between these two lines fails, and is made again.
    write(&files.key, &key.serialize_pem())?;
    write(&files.certificate, &params.signed_by(&key, &issuer)?.pem())
}

/// What this server shows as a client of etcd's.
pub(super) fn client(data: &Path) -> Result<EtcdTls, QuorumError> {
    let files = Files::of(data);
    let (authority, certificate) = (read(&files.authority)?, read(&files.certificate)?);
    let key = read(&files.key)?;
    Ok(EtcdTls::from_pem(authority.as_bytes(), certificate.as_bytes(), key.as_bytes())?)
}
