//! Identities: newtypes, so that a service's name is never taken for an app's.
//!
//! A cluster holds millions of them, most below two dozen characters: such a text lies in the id itself, and a longer
//! one is shared by its copies (`docs/decisions/0041-what-a-plan-of-two-millions-asks.md`).

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use smol_str::{SmolStr, SmolStrBuilder, format_smolstr};

/// A text that is not a name or number of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: {why}")]
pub struct InvalidId {
    pub what: &'static str,
    pub text: String,
    pub why: &'static str,
}

/// Names become part of host names (`<app>.localhost`, a DNS label), paths and store keys.
/// 40 leaves room for `<app>-<service>-<n>` below the 63 characters of a label's limit in the common case.
const SLUG_MAX: usize = 40;

fn check_slug(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > SLUG_MAX {
        return Err("it is longer than 40 characters");
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return Err("names use a to z, 0 to 9 and -");
    }
    if !text.as_bytes()[0].is_ascii_lowercase() {
        return Err("names start with a letter");
    }
    if text.ends_with('-') {
        return Err("names do not end with -");
    }
    Ok(())
}

/// `<app>-<environment>` is a label of a host name, which has 63 characters at most.
const ENVIRONMENT_MAX: usize = 20;

fn check_environment(text: &str) -> Result<(), &'static str> {
    if text.len() > ENVIRONMENT_MAX {
        return Err("it is longer than 20 characters");
    }
    check_slug(text)
}

/// A slug alone, or with the environment behind an `@`, which no slug has.
fn check_app(text: &str) -> Result<(), &'static str> {
    match text.split_once('@') {
        None => check_slug(text),
        Some((_, EnvironmentName::PRODUCTION)) => Err("in production its name stands alone"),
        Some((app, environment)) => check_slug(app).and_then(|()| check_environment(environment)),
    }
}

/// Labels are written in files, in commands and in tables.
fn check_label_value(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > SLUG_MAX {
        return Err("it is longer than 40 characters");
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err("values use letters, digits, -, _ and .");
    }
    Ok(())
}

fn check_env_name(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 128 {
        return Err("it is longer than 128 characters");
    }
    if text.as_bytes()[0].is_ascii_digit() {
        return Err("it starts with a digit");
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err("names of environment variables use letters, digits and _");
    }
    Ok(())
}

/// Instance and run ids are minted by Rung; the check keeps what comes from outside from becoming a path. A run's id is
/// its app's name, a dot (which no name has, so ids of two apps never meet) and what it is. The name of an app outside
/// of production has an `@`.
fn check_minted(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > 128 {
        return Err("it is empty or longer than 128 characters");
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'@'))
    {
        return Err("ids use a to z, 0 to 9, -, . and @");
    }
    if text.starts_with('.') || text.contains("..") {
        return Err("a dot stands between two words");
    }
    Ok(())
}

fn check_digest(text: &str) -> Result<(), &'static str> {
    let Some(hex) = text.strip_prefix("sha256:") else { return Err("a digest starts with sha256:") };
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err("64 lower-case hexadecimal digits follow sha256:");
    }
    Ok(())
}

/// What git calls an object: SHA-1 or SHA-256.
fn check_commit(text: &str) -> Result<(), &'static str> {
    if !matches!(text.len(), 40 | 64) || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("40 lower-case hexadecimal digits, or 64 where git uses SHA-256");
    }
    Ok(())
}

/// Reads an id where it stands: most need no text of their own on the way.
struct Text<T>(fn(&str) -> Result<T, InvalidId>);

impl<T> de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, utoipa::ToSchema)]
        #[schema(value_type = String)]
        pub struct $name(SmolStr);

        impl $name {
            pub fn new(text: impl Into<SmolStr>) -> Result<Self, InvalidId> {
                let text = text.into();
                match $check(&text) {
                    Ok(()) => Ok(Self(text)),
                    Err(why) => Err(InvalidId { what: $what, text: text.into(), why }),
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Text(|text| Self::new(text)))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// A team's application in one of its environments: `shop` in production, `shop@staging` in another one. Each is
    /// deployed on its own and has everything of its own: releases, config, secrets, volumes, logs, hosts.
    AppName, "an app's name", check_app);
text_id!(
    /// Where an app runs beside its other copies: `production`, `staging`.
    EnvironmentName, "an environment's name", check_environment);
text_id!(
    /// A named long-running part of an app.
    ServiceName, "a service's name", check_slug);
text_id!(
    /// A named part of an app that runs to completion.
    JobName, "a job's name", check_slug);
text_id!(
    /// A named directory that outlives instances and releases.
    VolumeName, "a volume's name", check_slug);
text_id!(
    /// A machine that runs instances.
    NodeId, "a node's name", check_slug);
text_id!(
    /// What is said of a node: `disk`, `zone`.
    LabelName, "a label's name", check_slug);
text_id!(
    /// What a label says: `ssd`, `eu-1`.
    LabelValue, "a label's value", check_label_value);
text_id!(
    /// The name of a secret, which is also the environment variable that carries it.
    SecretName, "a secret's name", check_env_name);
text_id!(
    /// The name of a token, by which it is listed and revoked and by which the audit trail tells who it was.
    TokenName, "a token's name", check_slug);
text_id!(
    /// One running copy of a service: `<app>-<service>-<node's letter><count>`, never used twice on a node.
    InstanceId, "an instance's id", check_minted);
text_id!(
    /// One execution of a build, a release command, a one-off command or a job.
    RunId, "a run's id", check_minted);
text_id!(
    /// `sha256:` and 64 hexadecimal digits; addresses an artifact or an uploaded source.
    Digest, "a digest", check_digest);

text_id!(
    /// A commit of a git repository, whole.
    CommitId, "a commit", check_commit);

impl CommitId {
    /// As people write it.
    pub fn short(&self) -> &str {
        &self.0[..10]
    }
}

impl InstanceId {
    /// The next one of a node, by the letters of the node and how many it has made.
    pub fn mint(app: &AppName, service: &ServiceName, letters: &str, count: u64) -> Self {
        // By the million: not through the machinery of formats, but for the number.
        let mut id = SmolStrBuilder::new();
        for part in [app.as_str(), "-", service.as_str(), "-", letters] {
            id.push_str(part);
        }
        write!(id, "{count}").expect("a text takes all");
        Self(id.finish())
    }
}

impl EnvironmentName {
    /// The environment of an app whose name says none.
    pub const PRODUCTION: &str = "production";

    pub fn production() -> Self {
        Self(SmolStr::new_static(Self::PRODUCTION))
    }

    pub fn is_production(&self) -> bool {
        self.0 == Self::PRODUCTION
    }
}

impl AppName {
    /// The name without the environment, as the app file says it: the app in production.
    #[must_use]
    pub fn base(&self) -> Self {
        Self(self.0.split('@').next().expect("a split has a first part").into())
    }

    pub fn environment(&self) -> EnvironmentName {
        match self.0.split_once('@') {
            Some((_, environment)) => EnvironmentName(environment.into()),
            None => EnvironmentName::production(),
        }
    }

    /// The same app in that environment.
    #[must_use]
    pub fn in_environment(&self, environment: &EnvironmentName) -> Self {
        let base = self.base();
        if environment.is_production() { base } else { Self(format_smolstr!("{base}@{environment}")) }
    }

    pub fn is_in_production(&self) -> bool {
        !self.0.contains('@')
    }

    /// Where it is served without any domain: `shop.localhost`, `shop-staging.localhost`.
    pub fn host(&self) -> String {
        format!("{}.localhost", self.0.replace('@', "-"))
    }
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let digits = text.strip_prefix($prefix).unwrap_or(text);
                match digits.parse() {
                    Ok(n) if n > 0 => Ok(Self(n)),
                    _ => Err(InvalidId { what: $what, text: text.to_owned(), why: concat!("write it like ", $prefix, "7") }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&format!(concat!($prefix, "{}"), self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

number_id!(
    /// Releases of an app are counted from `v1`.
    ReleaseNumber, "v", "a release");
number_id!(
    /// Deployments of an app are counted from `d1`. The number also names the cohort of instances that a
    /// deployment started, so a restart of `v7` can tell its new instances from the old ones of `v7`.
    DeploymentNumber, "d", "a deployment");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_a_host_name_or_a_path_are_refused() {
        for bad in ["", "-a", "a-", "A", "ä", "a/b", "..", "a.b", "1a", &"a".repeat(41)] {
            assert!(AppName::new(bad).is_err(), "{bad:?} was taken for an app's name");
        }
        for good in ["a", "shop", "shop-2", &"a".repeat(40)] {
            assert!(AppName::new(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn an_app_is_another_one_in_each_environment() {
        let shop = AppName::new("shop").unwrap();
        let staging = EnvironmentName::new("staging").unwrap();
        let there = shop.in_environment(&staging);
        assert_eq!((there.as_str(), there.host().as_str()), ("shop@staging", "shop-staging.localhost"));
        assert_eq!(AppName::new("shop@staging"), Ok(there.clone()), "its name is read as it is written");
        assert_eq!((there.base(), there.environment()), (shop.clone(), staging));
        assert_eq!(there.in_environment(&EnvironmentName::production()), shop);
        assert!(shop.is_in_production() && !there.is_in_production());
        assert!(RunId::new(format!("{there}.d1-build")).is_ok() && InstanceId::new("shop@a-web-n1").is_ok());
        let long = format!("shop@{}", "a".repeat(21));
        for bad in ["shop@", "@staging", "shop@production", "shop@a@b", "shop@A", "shop@a/b", &long] {
            assert!(AppName::new(bad).is_err(), "{bad:?} was taken for an app's name");
        }
        let longest = format!("{}@{}", "a".repeat(40), "b".repeat(20));
        let label = AppName::new(longest).unwrap().host();
        assert!(label.split('.').next().unwrap().len() <= 63, "{label} is no host name");
    }

    #[test]
    fn a_release_is_written_with_or_without_its_v() {
        assert_eq!("v7".parse(), Ok(ReleaseNumber(7)));
        assert_eq!("7".parse(), Ok(ReleaseNumber(7)));
        assert!("v0".parse::<ReleaseNumber>().is_err());
        assert!("seven".parse::<ReleaseNumber>().is_err());
        assert_eq!(ReleaseNumber(7).to_string(), "v7");
    }
}
