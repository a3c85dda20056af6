//! Where artifacts are kept, as people write it: `disk`, or `s3://bucket/prefix?endpoint=https://…&region=…&style=…`.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;

/// Where artifacts are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On the disks of the servers.
    Disk,
    Bucket(BucketAddress),
}

/// A bucket of an S3-compatible object store, and where in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketAddress {
    pub(super) bucket: String,
    /// Without slashes around it; may be empty.
    pub(super) prefix: String,
    /// Amazon's own when it is `None`.
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
    pub(super) style: Style,
}

/// Where a request names the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// In the path: what most stores but Amazon's want.
    Path,
    /// In the name of the host.
    Host,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlace {
    #[error("{0:?} is no place for artifacts; write disk, or s3://bucket/prefix?endpoint=https://…")]
    Unreadable(String),
    #[error(
        "credentials do not belong into the place of artifacts, which is shown; docs/artifacts.md says where to"
    )]
    Credentials,
    #[error(
        "{0:?} is nothing that can be said of a bucket: endpoint, region and style=path or style=host can"
    )]
    Parameter(String),
    #[error("endpoint {0:?} is not like https://s3.example.com:9000")]
    Endpoint(String),
}

impl FromStr for Place {
    type Err = InvalidPlace;
    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        if text == "disk" {
            return Ok(Self::Disk);
        }
        let unreadable = || InvalidPlace::Unreadable(text.to_owned());
        let rest = text.strip_prefix("s3://").ok_or_else(unreadable)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        // Not repeated: what stands before it may be a secret.
        if path.contains('@') {
            return Err(InvalidPlace::Credentials);
        }
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if bucket.is_empty() || !bucket.chars().all(is_name) {
            return Err(unreadable());
        }
        let prefix = prefix.trim_matches('/');
        let is_path =
            |part: &str| !part.is_empty() && part != "." && part != ".." && part.chars().all(is_name);
        if !prefix.is_empty() && !prefix.split('/').all(is_path) {
            return Err(unreadable());
        }
        let mut address = BucketAddress {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: None,
            region: None,
            style: Style::Host,
        };
        let mut style = None;
        for said in query.split('&').filter(|said| !said.is_empty()) {
            match said.split_once('=') {
                Some(("endpoint", endpoint)) => address.endpoint = Some(checked_endpoint(endpoint)?),
                Some(("region", region)) if !region.is_empty() && region.chars().all(is_name) => {
                    address.region = Some(region.to_owned());
                }
                Some(("style", "path")) => style = Some(Style::Path),
                Some(("style", "host")) => style = Some(Style::Host),
                other => {
                    // The name alone: the value may be a secret.
                    let name = other.map_or(said, |(name, _)| name);
                    return Err(InvalidPlace::Parameter(name.to_owned()));
                }
            }
        }
        let usual = if address.endpoint.is_some() { Style::Path } else { Style::Host };
        address.style = style.unwrap_or(usual);
        Ok(Self::Bucket(address))
    }
}

fn checked_endpoint(text: &str) -> Result<String, InvalidPlace> {
    let invalid = || InvalidPlace::Endpoint(text.to_owned());
    if text.contains('@') {
        return Err(InvalidPlace::Credentials);
    }
    let uri: Uri = text.parse().map_err(|_| invalid())?;
    let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    let is_bare = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
    if !is_known || uri.host().is_none_or(str::is_empty) || !is_bare {
        return Err(invalid());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

impl BucketAddress {
    /// For people.
    pub fn short(&self) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        format!("s3://{}{slash}{}", self.bucket, self.prefix)
    }

    /// Whether the same objects are meant; how they are reached may be said otherwise.
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        (&self.bucket, &self.prefix) == (&other.bucket, &other.prefix)
    }
}

/// As it is read again.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Bucket(address) = self else { return f.write_str("disk") };
        let style = match address.style {
            Style::Path => "path",
            Style::Host => "host",
        };
        write!(f, "{}?style={style}", address.short())?;
        for (name, value) in [("endpoint", &address.endpoint), ("region", &address.region)] {
            if let Some(value) = value {
                write!(f, "&{name}={value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(text: &str) -> BucketAddress {
        match text.parse() {
            Ok(Place::Bucket(address)) => address,
            other => panic!("{text} was read as {other:?}"),
        }
    }

    #[test]
    fn places_are_read_as_people_write_them_and_as_they_are_kept() {
        assert_eq!("disk".parse(), Ok(Place::Disk));
        let full = bucket("s3://team/rung/prod/?endpoint=http://10.0.0.9:9000/&region=eu-1");
        assert_eq!(full.short(), "s3://team/rung/prod");
        assert_eq!(full.endpoint.as_deref(), Some("http://10.0.0.9:9000"));
        assert_eq!(full.style, Style::Path, "a store of one's own is asked by path");
        let plain = bucket("s3://team");
        assert_eq!((plain.short().as_str(), plain.style), ("s3://team", Style::Host));
        for address in [full, plain, bucket("s3://a/b?endpoint=https://s3.example.com&style=host")] {
            let kept = Place::Bucket(address.clone()).to_string();
            assert_eq!(bucket(&kept), address, "{kept} is read otherwise than it was written");
        }
    }

    #[test]
    fn what_is_no_place_is_refused_with_a_word_and_secrets_are_not_repeated() {
        for wrong in [
            "",
            "s3://",
            "s3:///prefix",
            "/var/artifacts",
            "s3://a/../b",
            "s3://a b",
            "https://s3.example.com/a",
        ] {
            let refused = wrong.parse::<Place>().unwrap_err().to_string();
            assert!(refused.contains("write disk, or s3://"), "{wrong}: {refused}");
        }
        for wrong in [
            "s3://key:s3cret@bucket",
            "s3://b?endpoint=https://key:s3cret@s3.example.com",
            "s3://b?secret=s3cret",
        ] {
            let refused = wrong.parse::<Place>().unwrap_err().to_string();
            assert!(!refused.contains("s3cret"), "{refused}");
        }
        for wrong in [
            "s3://b?endpoint=s3.example.com",
            "s3://b?endpoint=ftp://s3.example.com",
            "s3://b?endpoint=https://e/path",
        ] {
            let refused = wrong.parse::<Place>().unwrap_err().to_string();
            assert!(refused.contains("is not like https://"), "{refused}");
        }
    }
}
