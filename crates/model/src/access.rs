//! Who may do what: tokens, each with a role and the apps that it reaches.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{AppName, InvalidId, TokenName};

/// What a token allows. Each role may do what those before it may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks at apps: status, releases, logs, events, config, the names of secrets.
    Viewer,
    /// Changes apps: deploys, settings, secrets, scale, runs of commands and jobs.
    Deployer,
    /// Everything, on every app: tokens, the audit trail, nodes, the platform itself.
    Admin,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Deployer => "deployer",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Viewer, Self::Deployer, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a role: there are viewer, deployer and admin"))
    }
}

/// Which apps a token reaches: `shop` (in production), `shop@staging`, `shop@*` (in every environment, production
/// included), `*@staging`, `*@*`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppPattern {
    /// `None`: every app.
    app: Option<String>,
    /// `None`: every environment.
    environment: Option<String>,
}

/// The environment of an app's name that says none.
const PRODUCTION: &str = "production";

/// `shop@staging` as `("shop", "staging")`.
fn parts(id: &str) -> (&str, &str) {
    id.split_once('@').unwrap_or((id, PRODUCTION))
}

impl AppPattern {
    pub fn matches(&self, app: &AppName) -> bool {
        let (name, environment) = parts(app.as_str());
        self.app.as_deref().is_none_or(|wanted| wanted == name)
            && self.environment.as_deref().is_none_or(|wanted| wanted == environment)
    }
}

impl FromStr for AppPattern {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let fail = |why| InvalidId { what: "a pattern of apps", text: text.to_owned(), why };
        if text == "*" {
            return Err(fail("write \"*@*\" for every app in every environment"));
        }
        let (app, environment) = parts(text);
        let read = |part: &str| match part {
            "*" => Ok(None),
            name if name.contains('@') => Err(()),
            // Names of apps and environments are made of the same characters.
            name => AppName::new(name).map(|_| Some(name.to_owned())).map_err(drop),
        };
        match (read(app), read(environment)) {
            (Ok(app), Ok(environment)) => Ok(Self { app, environment }),
            _ => Err(fail("write it like \"shop\", \"shop@staging\" or \"shop@*\"")),
        }
    }
}

impl fmt::Display for AppPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let app = self.app.as_deref().unwrap_or("*");
        match self.environment.as_deref() {
            Some(PRODUCTION) => f.pad(app),
            environment => f.pad(&format!("{app}@{}", environment.unwrap_or("*"))),
        }
    }
}

impl fmt::Debug for AppPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for AppPattern {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<AppPattern> for String {
    fn from(pattern: AppPattern) -> Self {
        pattern.to_string()
    }
}

/// What a token may: a role, and the apps that it holds for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Grant {
    pub role: Role,
    /// An admin's is empty: there is nothing that it does not reach.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub apps: Vec<AppPattern>,
}

impl Grant {
    pub fn admin() -> Self {
        Self { role: Role::Admin, apps: Vec::new() }
    }

    /// The role that it gives over an app; `None`: the app is none of its business.
    pub fn over(&self, app: &AppName) -> Option<Role> {
        let reaches = self.role == Role::Admin || self.apps.iter().any(|pattern| pattern.matches(app));
        reaches.then_some(self.role)
    }
}

/// A token, at `tokens/<name>`. The token itself was shown once and is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub name: TokenName,
    pub grant: Grant,
    /// SHA-256 of the token's secret part, in hexadecimal digits.
    pub hash: String,
    pub at: Timestamp,
    pub by: String,
    /// From then on it is refused.
    #[serde(default)]
    pub expires: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(pattern: &str) -> Vec<&'static str> {
        let pattern: AppPattern = pattern.parse().unwrap();
        let all = ["shop", "shop@staging", "blog"];
        all.into_iter().filter(|app| pattern.matches(&AppName::new(*app).unwrap())).collect()
    }

    #[test]
    fn a_pattern_reaches_what_it_says_and_nothing_beside_it() {
        assert_eq!(reached("shop"), ["shop"]);
        assert_eq!(reached("shop@production"), ["shop"]);
        assert_eq!(reached("shop@*"), ["shop", "shop@staging"]);
        assert_eq!(reached("shop@staging"), ["shop@staging"], "staging's token reached production");
        assert_eq!(reached("*@staging"), ["shop@staging"]);
        assert_eq!(reached("*@*"), ["shop", "shop@staging", "blog"]);
        assert_eq!(reached("sho"), [""; 0], "a part of a name was taken for the whole");
    }

    #[test]
    fn patterns_are_read_and_written_as_people_write_them() {
        for text in ["shop", "shop@staging", "shop@*", "*@staging", "*@*"] {
            assert_eq!(text.parse::<AppPattern>().unwrap().to_string(), text);
        }
        for wrong in ["", "*", "@", "shop@", "@staging", "sh*p", "shop@a@b", "Shop", "shop/x"] {
            assert!(wrong.parse::<AppPattern>().is_err(), "{wrong:?} was taken for a pattern");
        }
    }

    #[test]
    fn an_admin_reaches_every_app_and_the_others_what_was_granted() {
        let shop = AppName::new("shop").unwrap();
        assert_eq!(Grant::admin().over(&shop), Some(Role::Admin));
        let grant = Grant { role: Role::Viewer, apps: vec!["blog".parse().unwrap()] };
        assert_eq!(grant.over(&shop), None);
        assert_eq!(grant.over(&AppName::new("blog").unwrap()), Some(Role::Viewer));
    }
}
