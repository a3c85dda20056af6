//! Certificates that the platform orders: followed by long poll, kept on disk, used from the next handshake on.
//!
//! A poll names what is in use already, and so is the acknowledgement that a challenge can be seen here. Each certificate
//! lies with its key in one file of `managed/`, replaced whole, so that an ingress starts with what it had although no
//! server answers. What proves a name to an authority lives in memory only; an order that it belongs to is begun anew.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rung_api::seal::write_private;
use rung_api::wire::certificates::{CertificateNews, CertificatePoll, Challenge, ChallengeWay};
use rung_api::{Client, ClientError};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::certificates::Certificates;

/// What an authority's probe asks for instead of a protocol.
pub(crate) const ACME_TLS: &[u8] = b"acme-tls/1";
/// Where an authority's plain question begins.
const WELL_KNOWN: &str = "/.well-known/acme-challenge/";

const WAIT: Duration = Duration::from_secs(20);
/// Beyond the time that the server was allowed; then another one is asked.
const MARGIN: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// A server of an older version has no certificates to give; it is not asked more often than this.
const RETRY_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum ManagedError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("what the server gave for {host} can't be used: {why}")]
    Unfit { host: String, why: String },
    #[error("keeping the certificate of {host}")]
    Keep { host: String, source: io::Error },
    #[error("making the certificate that proves {host}: {source}")]
    Prove { host: String, source: rcgen::Error },
}

#[derive(Debug)]
struct Pair {
    version: String,
    key: Arc<CertifiedKey>,
}

#[derive(Debug, Default)]
struct Held {
    pairs: HashMap<String, Pair>,
    /// Shown to `acme-tls/1`, by host.
    proofs: HashMap<String, Arc<CertifiedKey>>,
    challenges: Vec<Challenge>,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Managed {
    directory: PathBuf,
    held: RwLock<Held>,
    /// So that a request pays one look for challenges that are hardly ever there.
    has_challenges: AtomicBool,
}

impl Managed {
    /// Reads what was kept.
    pub(crate) fn open(directory: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        std::fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let mut held = Held::default();
        for path in std::fs::read_dir(&directory)?.flatten().map(|entry| entry.path()) {
            let Some(host) = kept_host(&path) else { continue };
            let read = std::fs::read_to_string(&path).map_err(|error| error.to_string());
            match read.and_then(|text| usable(&text)) {
                // Whether it is still the newest the server says.
                Ok(key) => {
                    held.pairs.insert(host, Pair { version: String::new(), key: Arc::new(key) });
                }
                Err(why) => tracing::warn!(path = %path.display(), why, "passing over a kept certificate"),
            }
        }
        Ok(Self { directory, held: RwLock::new(held), has_challenges: AtomicBool::new(false) })
    }

    fn read<T>(&self, read: impl FnOnce(&Held) -> T) -> T {
        read(&self.held.read().expect("nobody panics while holding this"))
    }

    /// `host` is in lower case.
    pub(crate) fn find(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        self.read(|held| held.pairs.get(host).map(|pair| pair.key.clone()))
    }

    pub(crate) fn has(&self, host: &str) -> bool {
        self.read(|held| held.pairs.contains_key(host))
    }

    /// What is shown to an authority that looks by TLS.
    pub(crate) fn proof(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        self.read(|held| held.proofs.get(host).cloned())
    }

    /// What an authority that asks plainly wants to read. Anything else under that path is the application's.
    pub(crate) fn answer(&self, host: &str, path: &str) -> Option<String> {
        if !self.has_challenges.load(Ordering::Relaxed) {
            return None;
        }
        let token = path.strip_prefix(WELL_KNOWN)?;
        self.read(|held| {
            let asked = |challenge: &&Challenge| {
                challenge.way == ChallengeWay::Http01 && challenge.host == host && challenge.token == token
            };
            held.challenges.iter().find(asked).map(|challenge| challenge.authorization.clone())
        })
    }

    /// Follows the servers for ever.
    pub(crate) async fn follow(self: Arc<Self>, client: Client, proxy: String, files: Arc<Certificates>) {
        let mut last = CertificateNews::default();
        let mut failures: u32 = 0;
        loop {
            let poll =
                CertificatePoll { after: last.mark.clone(), files: files.ends(), useless: files.useless() };
            let polled =
                tokio::time::timeout(WAIT + MARGIN, client.poll_certificates(&proxy, &poll, WAIT)).await;
            let done = match polled {
                Ok(Ok(news)) => self.take(news, &mut last),
                Ok(Err(error)) => Err(error.into()),
                // The server is gone or stopped: another is asked.
                Err(_) => continue,
            };
            self.fetch_missing(&client, &proxy, &last.certificates).await;
            if let Err(error) = done {
                failures = failures.saturating_add(1);
                if failures == 1 {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "following the platform's certificates failed; those held go on");
                }
                let pause = RETRY_FIRST.saturating_mul(1 << (failures - 1).min(5)).min(RETRY_MAX);
                tokio::time::sleep(pause).await;
            } else {
                failures = 0;
            }
        }
    }

    /// Shows the challenges that the server names, and nothing that it names no more.
    fn take(&self, news: CertificateNews, last: &mut CertificateNews) -> Result<(), ManagedError> {
        if news.mark != last.mark {
            self.prove(&news.challenges)?;
            self.forget(&news.certificates);
            *last = news;
        }
        Ok(())
    }

    /// Gets what is named and not held. What can't be had is asked for again after the next poll, and holds up no other.
    async fn fetch_missing(&self, client: &Client, proxy: &str, named: &BTreeMap<String, String>) {
        for (host, version) in self.read(|held| missing(held, named)) {
            match self.fetch(client, proxy, &host, version).await {
                Ok(()) => tracing::info!(host, "a certificate that the platform ordered is in use"),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(host, error, "a certificate can't be had; what was there before stays");
                }
            }
        }
    }

    async fn fetch(
        &self,
        client: &Client,
        proxy: &str,
        host: &str,
        version: String,
    ) -> Result<(), ManagedError> {
        let pair = client.certificate(proxy, host).await?;
        let text = format!("{}{}", pair.key, pair.chain);
        let unfit = |why| ManagedError::Unfit { host: host.to_owned(), why };
        let key = Arc::new(usable(&text).map_err(unfit)?);
        let path = self.directory.join(format!("{host}.pem"));
        write_private(&path, text.as_bytes())
            .map_err(|source| ManagedError::Keep { host: host.to_owned(), source })?;
        let mut held = self.held.write().expect("nobody panics while holding this");
        held.pairs.insert(host.to_owned(), Pair { version, key });
        Ok(())
    }

    fn prove(&self, challenges: &[Challenge]) -> Result<(), ManagedError> {
        let by_tls = challenges.iter().filter(|challenge| challenge.way == ChallengeWay::TlsAlpn01);
        let proofs = by_tls.map(|challenge| Ok((challenge.host.clone(), Arc::new(proof(challenge)?))));
        let proofs = proofs.collect::<Result<_, ManagedError>>()?;
        let mut held = self.held.write().expect("nobody panics while holding this");
        held.proofs = proofs;
        held.challenges = challenges.to_vec();
        self.has_challenges.store(!challenges.is_empty(), Ordering::Relaxed);
        Ok(())
    }

    fn forget(&self, named: &BTreeMap<String, String>) {
        let mut held = self.held.write().expect("nobody panics while holding this");
        held.pairs.retain(|host, _| {
            let is_named = named.contains_key(host);
            if !is_named {
                // One that is left is passed over and removed at the next news.
                let _ = std::fs::remove_file(self.directory.join(format!("{host}.pem")));
            }
            is_named
        });
    }
}

fn missing(held: &Held, named: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let is_held =
        |host: &String, version: &String| held.pairs.get(host).is_some_and(|pair| pair.version == *version);
    let missing = named.iter().filter(|(host, version)| is_file_name(host) && !is_held(host, version));
    missing.map(|(host, version)| (host.clone(), version.clone())).collect()
}

/// Names come from the server and are checked there; a file outside of the directory is never written all the same.
fn is_file_name(host: &str) -> bool {
    !host.starts_with('.') && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

fn kept_host(path: &Path) -> Option<String> {
    let is_ours = path.extension().is_some_and(|extension| extension == "pem");
    Some(path.file_stem()?.to_str().filter(|_| is_ours)?.to_owned())
}

/// Key and chain of one text.
fn usable(text: &str) -> Result<CertifiedKey, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let chain = chain.map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| error.to_string())?;
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| error.to_string())
}

/// A certificate that says nothing but that whoever shows it knows of the order (RFC 8737).
fn proof(challenge: &Challenge) -> Result<CertifiedKey, ManagedError> {
    let host = &challenge.host;
    let error = |source| ManagedError::Prove { host: host.clone(), source };
    let mut params = CertificateParams::new(vec![host.clone()]).map_err(error)?;
    params.distinguished_name = DistinguishedName::new();
    let hash = ring::digest::digest(&ring::digest::SHA256, challenge.authorization.as_bytes());
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(hash.as_ref())];
    let key = KeyPair::generate().map_err(error)?;
    let made = params.self_signed(&key).map_err(error)?;
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    // Not as other certificates are taken: nobody but the authority understands its critical extension.
    let private = default_provider().key_provider.load_private_key(private);
    let private = private.map_err(|why| ManagedError::Unfit { host: host.clone(), why: why.to_string() })?;
    Ok(CertifiedKey::new(vec![made.der().clone()], private))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(directory: &Path, host: &str) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
        let text = format!("{}{}", made.signing_key.serialize_pem(), made.cert.pem());
        std::fs::write(directory.join(format!("{host}.pem")), text).unwrap();
        made.cert.der().clone()
    }

    #[test]
    fn a_start_without_a_server_shows_what_was_kept_and_passes_over_what_is_broken() {
        let directory = tempfile::tempdir().unwrap();
        let shown = kept(directory.path(), "shop.example.com");
        std::fs::write(directory.path().join("broken.example.com.pem"), "no certificate").unwrap();
        let managed = Managed::open(directory.path().to_owned()).unwrap();
        assert_eq!(managed.find("shop.example.com").unwrap().cert[0], shown);
        assert!(!managed.has("broken.example.com"));
        managed.forget(&BTreeMap::new());
        assert!(!managed.has("shop.example.com"));
        assert!(!directory.path().join("shop.example.com.pem").exists(), "a key that nobody needs is left");
    }

    #[test]
    fn a_challenge_is_answered_for_its_own_host_and_token_only() {
        let directory = tempfile::tempdir().unwrap();
        let managed = Managed::open(directory.path().to_owned()).unwrap();
        let challenge = |way| Challenge {
            host: "shop.example.com".into(),
            way,
            token: "abc".into(),
            authorization: "abc.thumb".into(),
        };
        let path = "/.well-known/acme-challenge/abc";
        assert_eq!(managed.answer("shop.example.com", path), None);
        managed.prove(&[challenge(ChallengeWay::Http01)]).unwrap();
        assert_eq!(managed.answer("shop.example.com", path).as_deref(), Some("abc.thumb"));
        for (host, path) in
            [("blog.example.com", path), ("shop.example.com", "/.well-known/acme-challenge/other")]
        {
            assert_eq!(managed.answer(host, path), None, "{host}{path} is the application's");
        }
        assert!(managed.proof("shop.example.com").is_none());
        managed.prove(&[challenge(ChallengeWay::TlsAlpn01)]).unwrap();
        assert_eq!(managed.answer("shop.example.com", path), None);
        assert!(managed.proof("shop.example.com").is_some());
        managed.prove(&[]).unwrap();
        assert!(managed.proof("shop.example.com").is_none(), "a proof outlives its order");
    }

    #[test]
    fn what_is_held_is_not_asked_for_again_and_no_name_leaves_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        kept(directory.path(), "a.example");
        let managed = Managed::open(directory.path().to_owned()).unwrap();
        managed.held.write().unwrap().pairs.get_mut("a.example").unwrap().version = "1".into();
        let named = |names: &[(&str, &str)]| {
            names.iter().map(|(host, version)| ((*host).to_owned(), (*version).to_owned())).collect()
        };
        let asked = managed.read(|held| missing(held, &named(&[("a.example", "1"), ("../../etc/x", "1")])));
        assert_eq!(asked, []);
        let asked = managed.read(|held| missing(held, &named(&[("a.example", "2")])));
        assert_eq!(asked, [("a.example".to_owned(), "2".to_owned())]);
    }
}
