//! A bucket of an S3-compatible object store, and what its answers mean to people.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::aws::AmazonS3Builder;
use object_store::buffered::BufWriter;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};
use rung_api::{Code, ErrorBody};
use rung_model::Digest;
use tokio::io::AsyncWriteExt;

use super::carrier::Carrier;
use super::credentials::{CredentialsError, Source};
use super::place::{BucketAddress, Style};
use super::{TREES, chain, digest_of, object_path};

/// The smallest part that S3 takes. Two are on their way while a third is filled: that is all an upload holds.
const PART_BYTES: usize = 5 * 1024 * 1024;
const PARTS_ON_THEIR_WAY: usize = 2;

/// A store that stumbles is asked again; one that is away is not waited for by whoever deploys.
const RETRIES: usize = 3;
const RETRY_WITHIN: Duration = Duration::from_secs(20);
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// Whoever looks whether all is well waits no longer.
const CHECKED_WITHIN: Duration = Duration::from_secs(5);

/// Written to know that it can be.
const PROBE: &str = "rung-doctor";

#[derive(Debug)]
pub(super) struct Bucket {
    address: BucketAddress,
    objects: Arc<dyn ObjectStore>,
    credentials: Arc<Source>,
    seen: Mutex<Seen>,
}

/// What is known of its objects.
#[derive(Debug, Default)]
struct Seen {
    there: BTreeSet<Digest>,
    /// Their trees have other digests than their names say: they count as missing until they are stored anew.
    damaged: BTreeSet<Digest>,
}

/// Why something could not be done with a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub what: String,
    pub way_out: String,
}

#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("preparing to speak with it: {0}")]
    Client(object_store::Error),
}

impl Bucket {
    /// Asks nobody yet.
    pub fn new(address: BucketAddress, data: &Path, systemd: Option<&Path>) -> Result<Self, BucketError> {
        let credentials = Arc::new(Source::find(data, systemd, |name| std::env::var(name).ok())?);
        let is_plain = address.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let backoff = BackoffConfig { init_backoff: PAUSE_FIRST, max_backoff: PAUSE_MAX, base: 2.0 };
        let retry = RetryConfig { backoff, max_retries: RETRIES, retry_timeout: RETRY_WITHIN };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&address.bucket)
            .with_region(address.region.as_deref().unwrap_or("us-east-1"))
            .with_virtual_hosted_style_request(address.style == Style::Host)
            // Not every store knows how to delete many at once.
            .with_disable_bulk_delete(true)
            .with_credentials(credentials.clone())
            .with_client_options(ClientOptions::new().with_allow_http(is_plain))
            .with_http_connector(Carrier)
            .with_retry(retry);
        if let Some(endpoint) = &address.endpoint {
            builder = builder.with_endpoint(match address.style {
                Style::Path => endpoint.clone(),
                Style::Host => endpoint.replacen("://", &format!("://{}.", address.bucket), 1),
            });
        }
        let store = builder.build().map_err(BucketError::Client)?;
        let objects: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(store, address.prefix.as_str()));
        Ok(Self { address, objects, credentials, seen: Mutex::default() })
    }

    #[cfg(test)]
    pub fn over(address: BucketAddress, objects: Arc<dyn ObjectStore>, credentials: Source) -> Self {
        Self { address, objects, credentials: Arc::new(credentials), seen: Mutex::default() }
    }

    pub fn address(&self) -> &BucketAddress {
        &self.address
    }

    /// By what was seen of it so far.
    pub fn is_known_to_have(&self, digest: &Digest) -> bool {
        self.seen.lock().expect("no panic while held").there.contains(digest)
    }

    pub fn is_damaged(&self, digest: &Digest) -> bool {
        self.seen.lock().expect("no panic while held").damaged.contains(digest)
    }

    /// What was read does not have this digest.
    pub fn found_damaged(&self, digest: &Digest) {
        let mut seen = self.seen.lock().expect("no panic while held");
        seen.there.remove(digest);
        seen.damaged.insert(digest.clone());
    }

    pub async fn has(&self, digest: &Digest) -> Result<bool, ErrorBody> {
        if self.is_damaged(digest) {
            return Ok(false);
        }
        let found = match self.objects.head(&object_path(digest)).await {
            Ok(_) => true,
            Err(object_store::Error::NotFound { .. }) => false,
            Err(error) => return Err(self.failed("looking for", digest, &error)),
        };
        let mut seen = self.seen.lock().expect("no panic while held");
        match found {
            true => seen.there.insert(digest.clone()),
            false => seen.there.remove(digest),
        };
        Ok(found)
    }

    /// Stores an archive that is known to be what its digest says. It is there whole, or not at all.
    pub async fn put(
        &self,
        digest: &Digest,
        mut archive: BoxStream<'static, object_store::Result<Bytes>>,
    ) -> Result<(), ErrorBody> {
        let mut writer = BufWriter::with_capacity(self.objects.clone(), object_path(digest), PART_BYTES)
            .with_max_concurrency(PARTS_ON_THEIR_WAY);
        let sent = async {
            while let Some(chunk) = archive.next().await {
                writer.put(chunk?).await?;
            }
            Ok::<(), object_store::Error>(())
        };
        if let Err(error) = sent.await {
            // What was sent of it is no object yet; where that can't be said now, the bucket's own rules forget it.
            let _ = tokio::time::timeout(CHECKED_WITHIN, writer.abort()).await;
            return Err(self.failed("storing", digest, &error));
        }
        // It sees to its parts by itself when it fails.
        if let Err(error) = writer.shutdown().await.map_err(unwrapped) {
            return Err(self.failed("storing", digest, &error));
        }
        let mut seen = self.seen.lock().expect("no panic while held");
        seen.damaged.remove(digest);
        seen.there.insert(digest.clone());
        Ok(())
    }

    pub async fn get(
        &self,
        digest: &Digest,
    ) -> Result<BoxStream<'static, object_store::Result<Bytes>>, ErrorBody> {
        match self.objects.get(&object_path(digest)).await {
            Ok(found) => Ok(found.into_stream()),
            Err(object_store::Error::NotFound { .. }) => {
                self.seen.lock().expect("no panic while held").there.remove(digest);
                let message = format!("artifact {digest} is not in {}", self.address.short());
                Err(ErrorBody::new(Code::NotFound, message)
                    .hint("old artifacts are pruned; deploy the source again"))
            }
            Err(error) => Err(self.failed("reading", digest, &error)),
        }
    }

    /// All that is there, and since when.
    pub async fn list(&self) -> Result<BTreeMap<Digest, Timestamp>, Trouble> {
        let listing = self.objects.list(Some(&TREES.into()));
        let listed: Vec<_> = listing.try_collect().await.map_err(|error| self.trouble(&error))?;
        let dated = |object: object_store::ObjectMeta| {
            let since = Timestamp::from_second(object.last_modified.timestamp()).unwrap_or(Timestamp::MAX);
            Some((digest_of(&object.location)?, since))
        };
        let found: BTreeMap<Digest, Timestamp> = listed.into_iter().filter_map(dated).collect();
        let mut seen = self.seen.lock().expect("no panic while held");
        seen.there = found.keys().filter(|digest| !seen.damaged.contains(digest)).cloned().collect();
        Ok(found)
    }

    pub async fn remove(&self, digest: &Digest) -> Result<(), Trouble> {
        self.seen.lock().expect("no panic while held").there.remove(digest);
        match self.objects.delete(&object_path(digest)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.trouble(&error)),
        }
    }

    /// The word that the last check has left there, of whichever server.
    pub async fn word(&self) -> Option<String> {
        let reading = async {
            let found = self.objects.get(&PROBE.into()).await.ok()?;
            String::from_utf8(found.bytes().await.ok()?.to_vec()).ok()
        };
        tokio::time::timeout(CHECKED_WITHIN, reading).await.ok().flatten()
    }

    /// Whether it can be read and written now, by leaving a word there; answers what it holds.
    pub async fn check(&self, word: &str) -> Result<BTreeMap<Digest, Timestamp>, Trouble> {
        let checking = async {
            let found = self.list().await?;
            let (at, text) = (PROBE.into(), Bytes::from(word.to_owned()));
            self.objects.put(&at, text.into()).await.map_err(|error| self.trouble(&error))?;
            Ok(found)
        };
        tokio::time::timeout(CHECKED_WITHIN, checking).await.unwrap_or_else(|_| {
            let what = format!("it has not answered within {} s", CHECKED_WITHIN.as_secs());
            Err(Trouble { what, way_out: AWAY.to_owned() })
        })
    }

    fn failed(&self, act: &str, digest: &Digest, error: &object_store::Error) -> ErrorBody {
        let Trouble { what, way_out } = self.trouble(error);
        let message = format!("{act} artifact {digest} in {}: {what}", self.address.short());
        ErrorBody::new(Code::Unavailable, message).hint(way_out)
    }

    fn trouble(&self, error: &object_store::Error) -> Trouble {
        let text = chain(error);
        let said = answer_in(&text);
        let is_about_credentials = CREDENTIAL_CODES.iter().any(|code| text.contains(code));
        match error {
            object_store::Error::Unauthenticated { .. } | object_store::Error::PermissionDenied { .. } => {
                Trouble {
                    what: format!("it refuses this server: {said}"),
                    way_out: match is_about_credentials {
                        true => format!("put the right credentials into {}", self.credentials.shown()),
                        // An answer to a look alone has no words.
                        false if !text.contains("<Code>") => {
                            format!(
                                "`rung doctor` says why; other credentials go into {}",
                                self.credentials.shown()
                            )
                        }
                        false => format!(
                            "let these credentials list, read, write and delete there, or put others into {}",
                            self.credentials.shown()
                        ),
                    },
                }
            }
            _ if text.contains("NoSuchBucket") => Trouble {
                what: format!("there is no bucket {:?}", self.address.bucket),
                way_out: "make it, or name another one with --artifacts".to_owned(),
            },
            _ => Trouble { what: said, way_out: AWAY.to_owned() },
        }
    }
}

const AWAY: &str = "mend that, then try again; `rung doctor` says whether it answers. What runs goes on";

/// What stores say of keys that they do not know, of wrong secrets and of what has expired.
const CREDENTIAL_CODES: [&str; 5] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
];

/// The writer says it as an error of input and output.
fn unwrapped(error: std::io::Error) -> object_store::Error {
    match error.downcast::<object_store::Error>() {
        Ok(error) => error,
        Err(error) => object_store::Error::Generic { store: "S3", source: Box::new(error) },
    }
}

/// The store's own words, out of those of the client: `<Code>` and `<Message>`, or what went wrong last.
fn answer_in(text: &str) -> String {
    let between = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once('<')?.0.trim())
    };
    match (between("Code"), between("Message")) {
        (Some(code), Some(message)) if !message.is_empty() => format!("{code}: {message}"),
        (Some(code), _) => code.to_owned(),
        _ => {
            let (_, last) = text.rsplit_once(" - ").unwrap_or(("", text));
            let last = last.trim_start_matches("HTTP error: ");
            let last = last.trim_start_matches("Server returned non-2xx status code: ");
            last.trim_end_matches([':', ' ']).to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_client_says_people_get_the_stores_own_words() {
        let refused = "Error performing PUT http://s3/b/o in 2ms - Server returned non-2xx status code: 403 Forbidden: \
                       <?xml version=\"1.0\"?><Error><Code>InvalidAccessKeyId</Code><Message>It does not exist.</Message></Error>";
        assert_eq!(answer_in(refused), "InvalidAccessKeyId: It does not exist.");
        let bare = "Error performing HEAD http://s3/b/o in 2ms - Server returned non-2xx status code: 403 Forbidden: ";
        assert_eq!(answer_in(bare), "403 Forbidden");
        let away = "Generic S3 error: Error performing GET http://s3/b in 1s, after 3 retries, max_retries: 3, \
                    retry_timeout: 20s  - HTTP error: connecting to s3:80 failed: Connection refused (os error 111)";
        assert_eq!(answer_in(away), "connecting to s3:80 failed: Connection refused (os error 111)");
    }
}
