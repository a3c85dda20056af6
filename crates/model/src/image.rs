//! Container images by name: `nginx`, `ghcr.io/acme/shop:2.1`, `registry.example.com:5000/shop@sha256:…`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, InvalidId, ServiceName};

/// Where a name without a registry comes from.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// What a name without a tag means.
pub const DEFAULT_TAG: &str = "latest";
/// As the registries' own specification has it.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// The name of an image, as an app file or a person writes it. What it names may change unless it ends with a digest.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(value_type = String)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

impl ImageName {
    /// # Errors
    /// It is not the name of an image, and why.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
        let text = text.into();
        match check(&text) {
            Ok(()) => Ok(Self(text)),
            Err(why) => Err(InvalidId { what: "an image's name", text, why }),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `docker.io` unless the name says another: its first part has a dot or a port, or is `localhost`.
    pub fn registry(&self) -> &str {
        match self.0.split_once('/') {
            Some((first, _)) if is_registry(first) => first,
            _ => DEFAULT_REGISTRY,
        }
    }

    /// Everything before the tag and the digest, as it was written.
    pub fn repository(&self) -> &str {
        split(&self.0).0
    }

    pub fn tag(&self) -> Option<&str> {
        split(&self.0).1
    }

    /// What makes it name the same image for ever.
    pub fn digest(&self) -> Option<Digest> {
        split(&self.0).2.and_then(|digest| Digest::new(digest).ok())
    }

    /// The same repository, at a digest.
    pub fn at(&self, digest: &Digest) -> Self {
        Self(format!("{}@{digest}", self.repository()))
    }

    /// With the tag that it has when it says neither a tag nor a digest.
    pub fn with_tag(&self) -> Self {
        match split(&self.0) {
            (name, None, None) => Self(format!("{name}:{DEFAULT_TAG}")),
            _ => self.clone(),
        }
    }
}

fn is_registry(part: &str) -> bool {
    part.contains('.') || part.contains(':') || part == "localhost"
}

/// Name, tag, digest.
fn split(text: &str) -> (&str, Option<&str>, Option<&str>) {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    match rest[last..].split_once(':') {
        Some((name, tag)) => (&rest[..last + name.len()], Some(tag), digest),
        None => (rest, None, digest),
    }
}

fn check(text: &str) -> Result<(), &'static str> {
    if text.contains("://") {
        return Err("a name has no scheme: write it without https://");
    }
    let (name, tag, digest) = split(text);
    if name.is_empty() || name.len() > NAME_MAX {
        return Err("it is empty, or longer than 255 characters");
    }
    let mut parts = name.split('/').peekable();
    if name.contains('/') && parts.peek().is_some_and(|first| is_registry(first)) {
        check_registry(parts.next().unwrap_or_default())?;
    }
    for part in parts {
        check_part(part)?;
    }
    if let Some(tag) = tag {
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        if tag.is_empty() || tag.len() > TAG_MAX || !tag.bytes().all(fine) || tag.starts_with(['.', '-']) {
            return Err("its tag is not one: tags use letters, digits, _, . and -");
        }
    }
    match digest.map(Digest::new) {
        Some(Err(error)) => Err(error.why),
        Some(Ok(_)) | None => Ok(()),
    }
}

fn check_registry(text: &str) -> Result<(), &'static str> {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if host.is_empty() || !host.bytes().all(fine) {
        return Err("its registry is not a host name");
    }
    match port.map(str::parse::<u16>) {
        Some(Err(_)) => Err("its registry's port is not one"),
        Some(Ok(_)) | None => Ok(()),
    }
}

fn check_part(part: &str) -> Result<(), &'static str> {
    let fine =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'.' | b'-');
    if part.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("names of images are lower case");
    }
    if part.is_empty() || !part.bytes().all(fine) {
        return Err("names of images use a to z, 0 to 9, _, . and - between slashes");
    }
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !ends(part.bytes().next()) || !ends(part.bytes().last()) {
        return Err("each part of an image's name begins and ends with a letter or a digit");
    }
    Ok(())
}

impl TryFrom<String> for ImageName {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::new(text)
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> String {
        name.0
    }
}

impl FromStr for ImageName {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::new(text)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an app's image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum ImageSource {
    /// `[build] image`: pulled, and pinned to the digest that its name had.
    Name { image: ImageName },
    /// `[build] dockerfile`: built by the engine from the deployed tree.
    Dockerfile { path: String },
}

impl ImageSource {
    /// Whether the same words may come to another image tomorrow although the deployed tree is the same.
    pub fn may_move(&self) -> bool {
        match self {
            Self::Name { image } => image.digest().is_none(),
            Self::Dockerfile { .. } => false,
        }
    }
}

/// What a build run makes when the app runs from an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ImageBuild {
    pub source: ImageSource,
    /// Services that have no command in the app file: the image must have one of its own.
    #[serde(default)]
    pub commandless: Vec<ServiceName>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ImageName {
        ImageName::new(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, registry, repository, tag) in [
            ("nginx", "docker.io", "nginx", None),
            ("acme/shop:2.1", "docker.io", "acme/shop", Some("2.1")),
            ("localhost/shop", "localhost", "localhost/shop", None),
            ("127.0.0.1:5000/shop:v1", "127.0.0.1:5000", "127.0.0.1:5000/shop", Some("v1")),
            ("ghcr.io/acme/shop-2", "ghcr.io", "ghcr.io/acme/shop-2", None),
        ] {
            let name = name(text);
            assert_eq!(
                (name.registry(), name.repository(), name.tag()),
                (registry, repository, tag),
                "{text}"
            );
            assert_eq!(name.digest(), None, "{text}");
        }
        let pinned = name(&format!("ghcr.io/acme/shop:2@{digest}"));
        assert_eq!(pinned.digest().map(|digest| digest.to_string()), Some(digest.clone()));
        assert_eq!(pinned.repository(), "ghcr.io/acme/shop");
        assert_eq!(
            name("a.b:1/shop:2").at(&pinned.digest().expect("it has one")).as_str(),
            format!("a.b:1/shop@{digest}")
        );
        assert_eq!(name("nginx").with_tag().as_str(), "nginx:latest");
        assert_eq!(name("a.b:1/nginx").with_tag().as_str(), "a.b:1/nginx:latest");
    }

    #[test]
    fn what_is_not_a_name_says_why() {
        for (text, why) in [
            ("https://ghcr.io/shop", "scheme"),
            ("Shop", "lower case"),
            ("shop:", "tag"),
            ("shop:a b", "tag"),
            ("shop@sha256:1", "hexadecimal"),
            ("a//b", "between slashes"),
            ("-shop", "begins and ends"),
            ("host.example:port/shop", "port"),
            ("", "empty"),
            ("shop; rm -rf /", "between slashes"),
        ] {
            let error = ImageName::new(text).expect_err(text);
            assert!(error.why.contains(why), "{text:?}: {}", error.why);
        }
    }
}
