//! The images of artifacts, in the machine's engine.
//!
//! An app that runs from an image has an artifact like every other: a tree, addressed by its digest, kept by the
//! server. In it is [`DOCUMENT`], which says which image it is, and where to pull it, by its digest; an image that no
//! registry has (built here from a Dockerfile) lies in the tree itself. So a release keeps its image wherever it runs,
//! however often the tag moves. In the engine each of them has a tag of ours, `rung/artifact:<digest>`: nobody's
//! clean-up takes it for left over, and what the server does not keep any more is found and removed.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::Method;
use hyper::body::{Frame, Incoming};
use rung_api::client::Body;
use rung_api::{Client, Code};
use rung_model::{Digest, ImageName};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use crate::artifacts::{Artifacts, FetchError, blocking};
use crate::converge::Cause;
use crate::engine::{Engine, EngineError, Image, ListedImage, Query};
use crate::registry::{self, CredentialsError};

/// In an artifact's tree: which image it is.
pub const DOCUMENT: &str = "rung-image.json";
/// In an artifact's tree: the image itself, as `docker save` writes it.
pub const ARCHIVE: &str = "image.tar";
/// Our own name for images in the engine; the tag is the artifact's digest.
const REPOSITORY: &str = "rung/artifact";
/// A registry's own words for why it won't say more.
const DENIED: [&str; 5] = ["unauthorized", "denied", "authentication required", "no basic auth", "401"];
const UNREACHABLE: [&str; 8] = [
    "connection refused",
    "no such host",
    "i/o timeout",
    "no route to host",
    "network is unreachable",
    "temporary failure in name resolution",
    "request canceled",
    "server gave http response to https client",
];
/// The engine's words for content that does not fit its digest.
const ALTERED: [&str; 3] = ["verification failed", "digest mismatch", "did not match digest"];
const MISSING: [&str; 4] = ["manifest unknown", "not found", "does not exist", "name unknown"];

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("asking who we are to {registry}")]
    Credentials { registry: String, source: CredentialsError },
    #[error(
        "registry {registry} refused to give {image} to {who}: {said}; run `docker login {registry}` as the user who runs rung, or look at its credential helper"
    )]
    Denied { registry: String, image: String, who: String, said: String },
    #[error("registry {registry} can't be reached for {image}: {said}; deploy again when it can")]
    Unreachable { registry: String, image: String, said: String },
    #[error("registry {registry} has no {image}: {said}; look at its tag or digest")]
    Missing { registry: String, image: String, said: String },
    #[error(
        "what registry {registry} gives for {image} is not what its digest says, and was not run: {said}; push it again, or find out who has changed it there"
    )]
    Altered { registry: String, image: String, said: String },
    #[error("pulling {image}: {said}")]
    Pull { image: String, said: String },
    #[error("artifact {digest} does not say which image it is")]
    NoDocument { digest: Digest, source: std::io::Error },
    #[error("loading the image of {digest}: {said}")]
    Load { digest: Digest, said: String },
    #[error("keeping {path}")]
    Io { path: String, source: std::io::Error },
}

/// [`DOCUMENT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// As people know it: what the app file says, or the Dockerfile's path.
    pub name: String,
    /// The engine's own name for the content.
    pub id: String,
    /// Where it is pulled from, by its digest. `None`: it lies beside this document.
    #[serde(default)]
    pub pull: Option<ImageName>,
}

/// What came of a pull.
#[derive(Debug)]
pub struct Pulled {
    pub image: Image,
    /// What the name meant; `None` when the engine does not say.
    pub digest: Option<Digest>,
}

#[derive(Debug, Clone)]
pub struct Images {
    engine: Engine,
    artifacts: Artifacts,
    client: Client,
    /// One at a time for each.
    coming: Arc<Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>>,
}

impl ImageError {
    /// Whether trying again may help.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Fetch(error) => error.cause(),
            Self::NoDocument { .. } => Cause::Lasting,
            _ => Cause::Passing,
        }
    }
}

impl Images {
    pub fn new(engine: Engine, artifacts: Artifacts, client: Client) -> Self {
        Self { engine, artifacts, client, coming: Arc::default() }
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The image of an artifact: pulled or loaded when the engine does not have it.
    pub async fn ensure(&self, digest: &Digest) -> Result<Image, ImageError> {
        let turn = {
            let mut coming = self.coming.lock().expect("no panic while held");
            // Nobody waits for those any more.
            coming.retain(|_, turn| Arc::strong_count(turn) > 1);
            coming.entry(digest.clone()).or_default().clone()
        };
        let _turn = turn.lock().await;
        match self.engine.image(&tag_of(digest)).await {
            Err(error) if error.is_not_found() => {}
            found => return Ok(found?),
        }
        let tree = self.artifacts.ensure(digest).await?;
        let pinned = read_document(&tree, digest)?;
        let image = match self.engine.image(&pinned.id).await {
            Ok(image) => image,
            Err(error) if error.is_not_found() => self.bring(&pinned, &tree, digest).await?,
            Err(error) => return Err(error.into()),
        };
        self.name(&image.id, digest).await?;
        Ok(image)
    }

    async fn bring(&self, pinned: &Pinned, tree: &Path, digest: &Digest) -> Result<Image, ImageError> {
        match &pinned.pull {
            Some(name) => Ok(self.pull(name).await?.image),
            None => {
                self.load(&tree.join(ARCHIVE), digest).await?;
                Ok(self.engine.image(&pinned.id).await?)
            }
        }
    }

    /// Gives an image our own name.
    pub async fn name(&self, id: &str, digest: &Digest) -> Result<(), EngineError> {
        let query = Query::default().with("repo", REPOSITORY).with("tag", hex(digest));
        self.engine.post(&query.on(&format!("/images/{id}/tag")), None).await
    }

    /// Pulls what a name means now, with the credentials that the machine's user has at this moment. When the registry
    /// does not take them they are asked for once more: a helper's token may have ended in between.
    pub async fn pull(&self, name: &ImageName) -> Result<Pulled, ImageError> {
        let registry = name.registry();
        let first = self.credentials(registry).await?;
        let said = match self.pull_as(name, first.as_ref()).await? {
            Ok(pulled) => return Ok(pulled),
            Err(said) => said,
        };
        if contains_any(&said, &DENIED) {
            let again = self.credentials(registry).await?;
            if again != first
                && let Ok(pulled) = self.pull_as(name, again.as_ref()).await?
            {
                return Ok(pulled);
            }
        }
        Err(refusal(name, first.map(|credentials| credentials.source), said))
    }

    async fn credentials(&self, registry: &str) -> Result<Option<registry::Credentials>, ImageError> {
        let Some(path) = registry::config_path() else { return Ok(None) };
        registry::credentials(&path, registry)
            .await
            .map_err(|source| ImageError::Credentials { registry: registry.to_owned(), source })
    }

    /// The inner error is what the registry or the engine said.
    async fn pull_as(
        &self,
        name: &ImageName,
        credentials: Option<&registry::Credentials>,
    ) -> Result<Result<Pulled, String>, EngineError> {
        let name = name.with_tag();
        let query = match (name.digest(), name.tag()) {
            (Some(digest), _) => {
                Query::default().with("fromImage", name.repository()).with("tag", digest.as_str())
            }
            (None, tag) => {
                Query::default().with("fromImage", name.repository()).with("tag", tag.unwrap_or_default())
            }
        };
        let header = credentials.map(registry::Credentials::header);
        let headers: Vec<(&str, &str)> =
            header.iter().map(|value| ("x-registry-auth", value.as_str())).collect();
        let empty = rung_api::client::full(Bytes::new());
        let sent = self.engine.send(Method::POST, &query.on("/images/create"), &headers, empty).await;
        let body = match sent {
            Ok(response) => response.into_body(),
            Err(EngineError::Refused { message, .. }) => return Ok(Err(message)),
            Err(error) => return Err(error),
        };
        let told = hear(body).await;
        if let Some(error) = told.error {
            return Ok(Err(error));
        }
        let wanted = match name.digest() {
            Some(digest) => name.at(&digest),
            None => name.clone(),
        };
        let image = match self.engine.image(wanted.as_str()).await {
            Ok(image) => image,
            Err(error) if error.is_not_found() => {
                return Ok(Err(format!("the engine pulled it and does not have it: {error}")));
            }
            Err(error) => return Err(error),
        };
        let digest = name.digest().or(told.digest).or_else(|| digest_of(&image, &name));
        Ok(Ok(Pulled { image, digest }))
    }

    async fn load(&self, archive: &Path, digest: &Digest) -> Result<(), ImageError> {
        let body = file_body(archive)
            .map_err(|source| ImageError::Io { path: archive.display().to_string(), source })?;
        let headers = [("content-type", "application/x-tar")];
        let answer = self.engine.send(Method::POST, "/images/load?quiet=1", &headers, body).await?;
        match hear(answer.into_body()).await.error {
            None => Ok(()),
            Some(said) => Err(ImageError::Load { digest: digest.clone(), said }),
        }
    }

    /// Writes an image into a file, as `docker save` does.
    pub async fn save(&self, id: &str, into: &Path) -> Result<(), ImageError> {
        let failed = |source| ImageError::Io { path: into.display().to_string(), source };
        let mut body = self.engine.stream(Method::GET, &format!("/images/{id}/get")).await?;
        let mut file = tokio::fs::File::create(into).await.map_err(failed)?;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| failed(std::io::Error::other(error)))?;
            if let Ok(bytes) = frame.into_data() {
                file.write_all(&bytes).await.map_err(failed)?;
            }
        }
        file.flush().await.map_err(failed)
    }

    /// Removes images of ours whose artifact the server does not keep any more. What a container still uses stays until
    /// the next time.
    pub async fn prune(&self) -> Result<usize, EngineError> {
        let filters = serde_json::json!({ "reference": [REPOSITORY] }).to_string();
        let listed: Vec<ListedImage> =
            self.engine.get(&Query::default().with("filters", &filters).on("/images/json")).await?;
        let mut removed = 0;
        for name in listed.into_iter().flat_map(|image| image.repo_tags.unwrap_or_default()) {
            let Some(hex) =
                name.rsplit_once(':').filter(|(of, _)| of.ends_with(REPOSITORY)).map(|(_, hex)| hex)
            else {
                continue;
            };
            let Ok(digest) = Digest::new(format!("sha256:{hex}")) else { continue };
            let is_gone = match self.client.artifact(&digest).await {
                Ok(_) => false,
                Err(error) => error.code() == Some(Code::NotFound),
            };
            if !is_gone {
                continue;
            }
            match self.forget(&name).await {
                Ok(()) => removed += 1,
                Err(error) if error.is_silence() => return Err(error),
                // A container of it runs still.
                Err(error) => tracing::debug!(image = name, %error, "removing an image"),
            }
        }
        Ok(removed)
    }

    /// Takes our name from an image; when nobody else has one for it, it goes.
    async fn forget(&self, name: &str) -> Result<(), EngineError> {
        let image = self.engine.image(name).await?;
        let ours = |tag: &String| tag.contains(&format!("{REPOSITORY}:"));
        let is_ours_alone = image.repo_tags.iter().flatten().all(ours);
        tracing::info!(image = name, "removing an image that no release needs any more");
        self.engine.delete(&format!("/images/{name}")).await?;
        if !is_ours_alone {
            return Ok(());
        }
        for pulled_as in image.repo_digests.iter().flatten().filter(|name| !name.starts_with(REPOSITORY)) {
            match self.engine.delete(&format!("/images/{pulled_as}")).await {
                Err(error) if error.is_silence() => return Err(error),
                // In use, or gone with the name before.
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

fn hex(digest: &Digest) -> &str {
    digest.as_str().trim_start_matches("sha256:")
}

fn tag_of(digest: &Digest) -> String {
    format!("{REPOSITORY}:{}", hex(digest))
}

fn read_document(tree: &Path, digest: &Digest) -> Result<Pinned, ImageError> {
    let failed = |source| ImageError::NoDocument { digest: digest.clone(), source };
    let bytes = std::fs::read(tree.join(DOCUMENT)).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(std::io::Error::other(error)))
}

/// What the engine tells while it pulls or loads: a document a line.
#[derive(Debug, Default)]
struct Told {
    error: Option<String>,
    digest: Option<Digest>,
}

async fn hear(mut body: Incoming) -> Told {
    let (mut told, mut held) = (Told::default(), Vec::new());
    loop {
        match body.frame().await {
            None => {
                hear_line(&held, &mut told);
                return told;
            }
            Some(Ok(frame)) => {
                held.extend(frame.into_data().unwrap_or_default());
                let whole = held.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
                let lines: Vec<u8> = held.drain(..whole).collect();
                lines.split(|&byte| byte == b'\n').for_each(|line| hear_line(line, &mut told));
            }
            Some(Err(error)) => {
                told.error.get_or_insert_with(|| format!("the engine broke off: {error}"));
                return told;
            }
        }
    }
}

fn hear_line(line: &[u8], told: &mut Told) {
    #[derive(Deserialize)]
    struct Word {
        #[serde(default)]
        error: Option<String>,
        #[serde(default)]
        status: Option<String>,
    }
    let Ok(word) = serde_json::from_slice::<Word>(line) else { return };
    if word.error.is_some() {
        told.error = word.error;
    }
    let digest = word.status.as_deref().and_then(|status| status.strip_prefix("Digest: "));
    if let Some(digest) = digest.and_then(|digest| Digest::new(digest).ok()) {
        told.digest = Some(digest);
    }
}

/// By what the engine remembers of where an image came from.
fn digest_of(image: &Image, name: &ImageName) -> Option<Digest> {
    let known = image.repo_digests.iter().flatten();
    let short = name.repository().trim_start_matches("docker.io/").trim_start_matches("library/");
    let found = known.filter_map(|known| known.split_once('@')).find(|(of, _)| of.ends_with(short));
    found.and_then(|(_, digest)| Digest::new(digest).ok())
}

fn contains_any(said: &str, words: &[&str]) -> bool {
    let said = said.to_ascii_lowercase();
    words.iter().any(|word| said.contains(word))
}

fn refusal(name: &ImageName, shown: Option<String>, said: String) -> ImageError {
    let (registry, image) = (name.registry().to_owned(), name.to_string());
    let who =
        shown.map_or("somebody without credentials".to_owned(), |source| format!("who {source} says we are"));
    if contains_any(&said, &UNREACHABLE) {
        ImageError::Unreachable { registry, image, said }
    } else if contains_any(&said, &ALTERED) {
        ImageError::Altered { registry, image, said }
    } else if contains_any(&said, &["manifest"]) && contains_any(&said, &MISSING) {
        ImageError::Missing { registry, image, said }
    } else if contains_any(&said, &DENIED) {
        // A registry says so, too, of what it does not have: it tells strangers nothing.
        ImageError::Denied { registry, image, who, said }
    } else if contains_any(&said, &MISSING) {
        ImageError::Missing { registry, image, said }
    } else {
        ImageError::Pull { image, said }
    }
}

/// A file as a request's body, read in pieces by a thread of its own.
pub fn file_body(path: &Path) -> std::io::Result<Body> {
    const CHUNK: usize = 256 * 1024;
    let mut file = std::fs::File::open(path)?;
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(4);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = vec![0; CHUNK];
            let piece = match file.read(&mut chunk) {
                Ok(0) => return,
                Ok(count) => {
                    chunk.truncate(count);
                    Ok(Bytes::from(chunk))
                }
                Err(error) => Err(error),
            };
            let failed = piece.is_err();
            if sender.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    });
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk| (chunk.map(Frame::data), receiver))
    });
    Ok(BodyExt::boxed(StreamBody::new(stream)))
}

/// Writes an artifact's tree for an image.
pub async fn write_tree(tree: PathBuf, pinned: &Pinned) -> Result<(), ImageError> {
    let bytes = serde_json::to_vec_pretty(pinned).expect("a pinned image serializes");
    blocking(move || {
        let path = tree.join(DOCUMENT);
        std::fs::create_dir_all(&tree)
            .and_then(|()| std::fs::write(&path, bytes))
            .map_err(|source| ImageError::Io { path: path.display().to_string(), source })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_says_is_told_with_the_way_out() {
        let name = ImageName::new("r.example:5000/shop:1").unwrap();
        let words = |said: &str| refusal(&name, None, said.to_owned()).to_string();
        let refused =
            words("Get \"https://r.example:5000/v2/\": dial tcp 127.0.0.1:5000: connect: connection refused");
        assert!(refused.contains("can't be reached") && refused.contains("deploy again"), "{refused}");
        let denied =
            words("pull access denied for shop, repository does not exist or may require 'docker login'");
        assert!(denied.contains("run `docker login r.example:5000`"), "{denied}");
        let unauthorized = words("unauthorized: authentication required");
        assert!(unauthorized.contains("docker login r.example:5000"), "{unauthorized}");
        let missing =
            words("manifest for r.example:5000/shop:1 not found: manifest unknown: manifest unknown");
        assert!(missing.contains("has no r.example:5000/shop:1"), "{missing}");
    }

    #[test]
    fn a_pull_tells_its_digest_and_its_error() {
        let mut told = Told::default();
        let digest = format!("sha256:{}", "a".repeat(64));
        hear_line(format!("{{\"status\":\"Digest: {digest}\"}}").as_bytes(), &mut told);
        hear_line(b"", &mut told);
        assert_eq!(told.digest.map(|digest| digest.to_string()), Some(digest));
        hear_line(br#"{"errorDetail":{"message":"x"},"error":"x"}"#, &mut told_of("x"));
    }

    #[tokio::test]
    async fn images_that_nobody_waits_for_are_not_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let away = directory.path().join("nobody.sock");
        let client = Client::new(rung_api::Address::Unix(away.clone()), None);
        let layout = crate::layout::Layout::new(directory.path().to_owned());
        let artifacts = Artifacts::open(layout, client.clone()).unwrap();
        let images = Images::new(Engine::at(away), artifacts, client);
        for letter in "0123456789abcdef".chars() {
            let digest = Digest::new(format!("sha256:{}", letter.to_string().repeat(64))).unwrap();
            let error = images.ensure(&digest).await.unwrap_err();
            assert!(matches!(error, ImageError::Engine(_)), "{error}");
        }
        assert_eq!(images.coming.lock().unwrap().len(), 1, "but for the last one");
    }

    fn told_of(error: &str) -> Told {
        let mut told = Told::default();
        hear_line(format!("{{\"error\":\"{error}\"}}").as_bytes(), &mut told);
        assert_eq!(told.error.as_deref(), Some(error));
        told
    }
}
