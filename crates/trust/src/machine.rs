//! Whom this machine trusts beyond the cluster: the authorities of the world, as its distribution keeps them.

use std::path::PathBuf;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Where distributions keep them.
const PLACES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this machine has no file of authorities: install ca-certificates, or set SSL_CERT_FILE")]
pub struct NoAuthorities;

/// The file that `SSL_CERT_FILE` names, or else the distribution's. Read anew each time: it may be replaced while rung
/// runs.
///
/// # Errors
/// No file of them holds a certificate.
pub fn machine_authorities() -> Result<RootCertStore, NoAuthorities> {
    let said = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    first_of(said.into_iter().chain(PLACES.map(PathBuf::from)))
}

fn first_of(places: impl Iterator<Item = PathBuf>) -> Result<RootCertStore, NoAuthorities> {
    let mut roots = RootCertStore::empty();
    for place in places {
        if let Ok(certificates) = CertificateDer::pem_file_iter(&place) {
            // One that can't be read takes nothing from the others.
            roots.add_parsable_certificates(certificates.flatten());
        }
        if !roots.is_empty() {
            return Ok(roots);
        }
    }
    Err(NoAuthorities)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use crate::Authority;

    use super::*;

    #[test]
    fn the_first_file_that_holds_a_certificate_counts_and_none_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let authority = Authority::generate(SystemTime::now()).unwrap().file().certificate.clone();
        std::fs::write(at("empty.pem"), "# nobody\n").unwrap();
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(at("one.pem"), format!("{broken}{authority}")).unwrap();
        let places = ["absent.pem", "empty.pem", "one.pem"].map(at);
        assert_eq!(first_of(places.clone().into_iter()).unwrap().len(), 1);
        assert_eq!(first_of(places[..2].iter().cloned()).unwrap_err(), NoAuthorities);
    }
}
