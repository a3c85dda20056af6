//! The certificates that the ingress shows: files, read while it runs, those that the platform orders ([`Managed`]), and
//! those of the development authority.
//!
//! `certificates/<host>.crt` holds the chain and `<host>.key` its key, both PEM; `*.example.com` is a host too. The
//! directory is looked at once a second, so a renewed pair is in use within one, without a word to anybody. A pair that
//! can't be used (half replaced, say) changes nothing: what was there before is shown until it can.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use rustls::client::verify_server_name;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig, SupportedProtocolVersion};

use jiff::Timestamp;
use rung_api::wire::certificates::{FileCertificate, UselessFile};
use rung_trust::Leaf;

use crate::development::DevelopmentAuthority;
use crate::managed::{ACME_TLS, Managed};

/// How soon a replaced certificate is used.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// With very many files the looks become rarer: they take a hundredth of the time at most.
const REST_PER_LOOK: u32 = 100;
const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// Why a pair of files is not used.
#[derive(Debug, thiserror::Error)]
enum PairError {
    #[error("reading {path}")]
    Read { path: PathBuf, source: pem::Error },
    #[error("{path} holds no certificate")]
    Empty { path: PathBuf },
    #[error("{path} is protected by a password; `openssl pkey -in OLD -out NEW` takes it off")]
    Locked { path: PathBuf },
    #[error("the key is not the certificate's")]
    Strangers,
    #[error("certificate and key can't be used: {0}")]
    Unfit(rustls::Error),
}

/// Tells whether a file is still the one that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    inode: u64,
    size: u64,
}

/// What was found at the last look, by host; `None` where a key is missing.
type Found = BTreeMap<String, (Stamp, Option<Stamp>)>;

#[derive(Debug, Default)]
struct Held {
    found: Found,
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows the `*`: `.example.com`.
    wildcards: HashMap<String, Arc<CertifiedKey>>,
    /// Why a host's files are of no use.
    useless: BTreeMap<String, String>,
}

impl Held {
    /// `host` is as the file is called; names of hosts have no case.
    fn get(&self, host: &str) -> Option<&Arc<CertifiedKey>> {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix('*') {
            Some(suffix) => self.wildcards.get(suffix),
            None => self.exact.get(&host),
        }
    }

    fn insert(&mut self, host: &str, key: Arc<CertifiedKey>) {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix('*') {
            Some(suffix) => self.wildcards.insert(suffix.to_owned(), key),
            None => self.exact.insert(host, key),
        };
    }

    /// `name` is in lower case.
    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        self.exact.get(name).or_else(|| {
            let label = name.find('.').filter(|at| *at > 0)?;
            self.wildcards.get(&name[label..])
        })
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Certificates {
    directory: PathBuf,
    held: RwLock<Arc<Held>>,
    managed: Arc<Managed>,
    authority: DevelopmentAuthority,
}

impl Certificates {
    /// Reads what is there.
    pub(crate) fn open(
        directory: PathBuf,
        managed: Arc<Managed>,
        authority: DevelopmentAuthority,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        let certificates = Self { directory, held: RwLock::default(), managed, authority };
        certificates.look();
        Ok(certificates)
    }

    /// The protocol's side of it: versions, tickets to resume sessions, HTTP/2 and HTTP/1.1.
    pub(crate) fn server_config(self: Arc<Self>) -> Result<ServerConfig, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let mut config =
            builder.with_protocol_versions(VERSIONS)?.with_no_client_auth().with_cert_resolver(self);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), ACME_TLS.to_vec()];
        // The strongest first, whatever the client prefers: auditors ask for it.
        config.ignore_client_order = true;
        // Sessions are resumed from what the client keeps, in whichever thread; keys change every six hours.
        config.ticketer = Ticketer::new()?;
        Ok(config)
    }

    fn held(&self) -> Arc<Held> {
        self.held.read().expect("nobody panics while holding this").clone()
    }

    /// Whether a host has a certificate of its own, in a file or ordered by the platform. `host` is in lower case.
    pub(crate) fn has_own(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        let by_file = self.held.read().expect("nobody panics while holding this").find(host).is_some();
        by_file || self.managed.has(host)
    }

    pub(crate) fn managed(&self) -> &Arc<Managed> {
        &self.managed
    }

    /// Until when those by file hold.
    pub(crate) fn ends(&self) -> Vec<FileCertificate> {
        let held = self.held();
        let wildcards = held.wildcards.iter().map(|(suffix, key)| (format!("*{suffix}"), key));
        let all = held.exact.iter().map(|(host, key)| (host.clone(), key)).chain(wildcards);
        let mut ends: Vec<_> = all
            .filter_map(|(host, key)| {
                let until = Timestamp::try_from(Leaf::read(key.cert.first()?).ok()?.until).ok()?;
                Some(FileCertificate { host, until })
            })
            .collect();
        ends.sort();
        ends
    }

    /// What lies there and is of no use, and why.
    pub(crate) fn useless(&self) -> Vec<UselessFile> {
        let file = |(host, why): (&String, &String)| UselessFile { host: host.clone(), why: why.clone() };
        self.held().useless.iter().map(file).collect()
    }

    /// Keeps looking for ever.
    pub(crate) async fn follow(self: Arc<Self>) {
        loop {
            let certificates = self.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let began = Instant::now();
                certificates.look();
                began.elapsed()
            });
            // It can't be cancelled, and a panic there was printed.
            let took = looked.await.unwrap_or_default();
            tokio::time::sleep(LOOK_EVERY.max(took * REST_PER_LOOK)).await;
        }
    }

    /// Reads what has changed since the last look.
    fn look(&self) {
        let before = self.held();
        let found = match find(&self.directory) {
            Ok(found) if found == before.found => return,
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(directory = %self.directory.display(), %error, "looking for certificates failed");
                return;
            }
        };
        let mut held = Held::default();
        for (host, stamps) in &found {
            let earlier = before.get(host);
            if before.found.get(host) == Some(stamps) {
                // Unchanged, or as useless as before.
                earlier.into_iter().for_each(|key| held.insert(host, key.clone()));
                held.useless.extend(before.useless.get_key_value(host).map(|(a, b)| (a.clone(), b.clone())));
                continue;
            }
            match read_pair(&self.directory, host) {
                Ok(key) => {
                    if names(&key, host) {
                        tracing::info!(host, "a certificate is in use");
                    } else {
                        tracing::warn!(host, "a certificate is in use that {NOT_NAMED}");
                        held.useless.insert(host.clone(), format!("it {NOT_NAMED}"));
                    }
                    held.insert(host, Arc::new(key));
                }
                Err(error) => {
                    held.useless.insert(host.clone(), spelled(&error));
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(host, error, "a certificate can't be used; what was there before stays");
                    earlier.into_iter().for_each(|key| held.insert(host, key.clone()));
                }
            }
        }
        held.found = found;
        *self.held.write().expect("nobody panics while holding this") = Arc::new(held);
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Without a name the client came by an address: only this machine's own may.
        let name = hello.server_name().map_or_else(|| "localhost".to_owned(), str::to_ascii_lowercase);
        if asks_for_proof(&hello) {
            return self.managed.proof(&name);
        }
        if let Some(key) = self.held.read().expect("nobody panics while holding this").find(&name) {
            return Some(key.clone());
        }
        if let Some(key) = self.managed.find(&name) {
            return Some(key);
        }
        if !DevelopmentAuthority::covers(&name) {
            tracing::debug!(name, "no certificate for this name");
            return None;
        }
        self.authority.certify(&name).inspect_err(|error| tracing::warn!(%error, "no certificate")).ok()
    }
}

/// An authority's probe offers this and nothing else.
fn asks_for_proof(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut offered| offered.next() == Some(ACME_TLS) && offered.next().is_none())
}

fn find(directory: &Path) -> io::Result<Found> {
    let mut found = Found::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let is_certificate = path.extension().is_some_and(|extension| extension == "crt");
        let Some(host) = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| is_certificate) else {
            continue;
        };
        // Links are followed: that is how other tools hand certificates over. One that leads nowhere is none.
        if let Some(certificate) = stamp(&path) {
            found.insert(host.to_owned(), (certificate, stamp(&path.with_extension("key"))));
        }
    }
    Ok(found)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(Stamp {
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        inode: metadata.ino(),
        size: metadata.len(),
    })
}

fn read_pair(directory: &Path, host: &str) -> Result<CertifiedKey, PairError> {
    let path = directory.join(format!("{host}.crt"));
    let read_error = |path: &Path| {
        let path = path.to_owned();
        move |source| PairError::Read { path, source }
    };
    let chain = CertificateDer::pem_file_iter(&path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(read_error(&path))?;
    if chain.is_empty() {
        return Err(PairError::Empty { path });
    }
    let path = path.with_extension("key");
    let key = match PrivateKeyDer::from_pem_file(&path) {
        Err(_) if is_locked(&path) => return Err(PairError::Locked { path }),
        read => read.map_err(read_error(&path))?,
    };
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => PairError::Strangers,
        error => PairError::Unfit(error),
    })
}

/// Both ways to write a protected key in PEM say so in words.
fn is_locked(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.contains("ENCRYPTED"))
}

const NOT_NAMED: &str = "is not for this name, so that browsers refuse it";

/// Whether browsers take it for the host.
fn names(key: &CertifiedKey, host: &str) -> bool {
    // A wildcard stands for any name below it.
    let host = host.strip_prefix('*').map_or_else(|| host.to_owned(), |suffix| format!("any{suffix}"));
    let (Some(certificate), Ok(name)) = (key.cert.first(), ServerName::try_from(host)) else { return false };
    let parsed = ParsedCertificate::try_from(certificate);
    parsed.is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
}

/// With what led to it.
fn spelled(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        _directory: tempfile::TempDir,
        certificates: Certificates,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let authority = DevelopmentAuthority::ensure(&directory.path().join("authority")).unwrap();
            let managed = Arc::new(Managed::open(directory.path().join("managed")).unwrap());
            let place = directory.path().join("certificates");
            let certificates = Certificates::open(place, managed, authority).unwrap();
            Self { _directory: directory, certificates }
        }

        fn put(&self, file: &str, text: &str) {
            std::fs::write(self.certificates.directory.join(file), text).unwrap();
        }

        /// What is shown to who asks for `name`.
        fn shown(&self, name: &str) -> Option<CertificateDer<'static>> {
            self.certificates.look();
            self.certificates.held().find(name).map(|key| key.cert[0].clone())
        }
    }

    fn make(host: &str) -> (String, String, CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem(), made.cert.der().clone())
    }

    #[test]
    fn a_pair_that_is_half_replaced_changes_nothing_until_it_is_whole() {
        let place = Place::new();
        let (old, old_key, old_shown) = make("a.example");
        let (new, new_key, new_shown) = make("a.example");
        place.put("a.example.crt", &old);
        assert_eq!(place.shown("a.example"), None, "a certificate without its key is shown");
        place.put("a.example.key", &old_key);
        assert_eq!(place.shown("a.example"), Some(old_shown.clone()));
        place.put("a.example.crt", &new);
        assert_eq!(place.shown("a.example"), Some(old_shown.clone()), "half a pair took the whole one away");
        place.put("a.example.crt", "no certificate at all");
        assert_eq!(place.shown("a.example"), Some(old_shown), "a broken file took a good one away");
        place.put("a.example.crt", &new);
        place.put("a.example.key", &new_key);
        assert_eq!(place.shown("a.example"), Some(new_shown));
        std::fs::remove_file(place.certificates.directory.join("a.example.crt")).unwrap();
        assert_eq!(place.shown("a.example"), None, "what was removed is still shown");
    }

    #[test]
    fn what_is_of_no_use_says_why() {
        let place = Place::new();
        let (certificate, key, _) = make("a.example");
        let (other, _, _) = make("a.example");
        let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIGb\n-----END ENCRYPTED PRIVATE KEY-----\n";
        for (crt, key, why) in [
            ("nothing", key.as_str(), "holds no certificate"),
            (other.as_str(), key.as_str(), "the key is not the certificate's"),
            (certificate.as_str(), locked, "is protected by a password"),
            (certificate.as_str(), "nothing", "a.example.key"),
        ] {
            place.put("a.example.crt", crt);
            place.put("a.example.key", key);
            assert_eq!(place.shown("a.example"), None);
            let useless = place.certificates.useless();
            assert!(useless[0].host == "a.example" && useless[0].why.contains(why), "{why}: {useless:?}");
            place.certificates.look();
            assert_eq!(place.certificates.useless(), useless, "it is forgotten at the next look");
        }
        place.put("a.example.crt", &certificate);
        place.put("a.example.key", &key);
        assert!(place.shown("a.example").is_some() && place.certificates.useless().is_empty());
        place.put("b.example.crt", &certificate);
        place.put("b.example.key", &key);
        assert!(place.shown("b.example").is_some(), "it is shown for want of a better one");
        assert!(place.certificates.useless()[0].why.contains("not for this name"));
    }

    #[test]
    fn an_exact_name_comes_before_a_wildcard_that_covers_one_level() {
        let place = Place::new();
        let mut shown = Vec::new();
        for host in ["*.example.com", "shop.example.com"] {
            let (certificate, key, der) = make(host);
            place.put(&format!("{host}.crt"), &certificate);
            place.put(&format!("{host}.key"), &key);
            shown.push(der);
        }
        let (certificate, key, der) = make("Blog.Example.org");
        place.put("Blog.Example.org.crt", &certificate);
        place.put("Blog.Example.org.key", &key);
        assert_eq!(place.shown("blog.example.org"), Some(der), "the letters of a file's name count");
        assert_eq!(place.shown("shop.example.com").as_ref(), Some(&shown[1]));
        assert_eq!(place.shown("blog.example.com").as_ref(), Some(&shown[0]));
        for name in ["a.blog.example.com", "example.com", ".example.com", "localhost"] {
            assert_eq!(place.shown(name), None, "{name} is not covered");
        }
        assert!(place.certificates.has_own("blog.example.com"));
        assert!(place.certificates.has_own("blog.example.com."), "a dot at its end makes it no other host");
    }

    #[test]
    fn the_authority_is_made_once_and_vouches_for_localhost_only() {
        let directory = tempfile::tempdir().unwrap();
        let read = || std::fs::read(DevelopmentAuthority::certificate(directory.path())).unwrap();
        let authority = DevelopmentAuthority::ensure(directory.path()).unwrap();
        let first = read();
        let again = DevelopmentAuthority::ensure(directory.path()).unwrap();
        assert_eq!(read(), first, "it was made again");
        let one = authority.certify("shop.localhost").unwrap();
        assert!(Arc::ptr_eq(&one, &authority.certify("shop.localhost").unwrap()), "each handshake makes one");
        assert_ne!(one.cert, again.certify("shop.localhost").unwrap().cert);
        for (name, covered) in [("localhost", true), ("a.b.localhost", true), ("notlocalhost", false)] {
            assert_eq!(DevelopmentAuthority::covers(name), covered, "{name}");
        }
    }
}
