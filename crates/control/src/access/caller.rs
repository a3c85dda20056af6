//! Who sends a request, and what that one may.

use std::sync::{Arc, Mutex};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use rung_api::wire::Whoami;
use rung_api::{Code, ErrorBody};
use rung_model::{AppName, Digest, Grant, Role, Token};

use crate::http::{Refused, no_such_app};
use crate::shared::Control;

/// Names that no token may have: they stand for these.
pub(crate) const OWNER: &str = "owner";
pub(crate) const LOCAL: &str = "local";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// Came in by the socket that only the owner of the data directory can open.
    Local,
    /// Carries the token of the first start.
    Owner,
    Token(Token),
}

impl Who {
    pub fn name(&self) -> &str {
        match self {
            Self::Local => LOCAL,
            Self::Owner => OWNER,
            Self::Token(token) => token.name.as_str(),
        }
    }
}

/// Put into each request by the guard; handlers take it as an argument.
#[derive(Clone)]
pub(crate) struct Caller {
    control: Control,
    who: Arc<Who>,
    told: Arc<Mutex<Told>>,
}

/// What the audit trail tells beside the endpoint.
#[derive(Debug, Default)]
struct Told {
    note: Option<String>,
    by: Option<String>,
}

/// Longer notes are cut: room in the trail is reserved for lines of a usual length.
const NOTE_MAX: usize = 500;

impl Caller {
    pub fn new(control: Control, who: Who) -> Self {
        Self { control, who: Arc::new(who), told: Arc::default() }
    }

    pub fn who(&self) -> &Who {
        &self.who
    }

    pub fn grant(&self) -> Grant {
        match &*self.who {
            Who::Local | Who::Owner => Grant::admin(),
            Who::Token(token) => token.grant.clone(),
        }
    }

    pub fn whoami(&self) -> Whoami {
        let expires = match &*self.who {
            Who::Token(token) => token.expires,
            Who::Local | Who::Owner => None,
        };
        Whoami { name: self.who.name().to_owned(), grant: self.grant(), expires }
    }

    /// The role over an app; `None`: for this caller the app does not exist.
    fn over(&self, app: &AppName) -> Option<Role> {
        match &*self.who {
            Who::Local | Who::Owner => Some(Role::Admin),
            Who::Token(token) => token.grant.over(app),
        }
    }

    pub fn may(&self, role: Role, app: &AppName) -> bool {
        self.over(app).is_some_and(|own| own >= role)
    }

    /// Whether there is anything that this caller may do as that.
    pub fn is_at_least(&self, role: Role) -> bool {
        match &*self.who {
            Who::Local | Who::Owner => true,
            Who::Token(token) => token.grant.role >= role,
        }
    }

    /// Refuses what is not allowed. An app that the caller must not know of is answered like one that is not there;
    /// nothing is looked up for that, so the time tells nothing either.
    pub fn require(&self, role: Role, app: &AppName) -> Result<(), ErrorBody> {
        match self.over(app) {
            None => Err(no_such_app(app)),
            Some(own) if own >= role => Ok(()),
            Some(own) => {
                let message =
                    format!("token {} is a {own} of app {app}: this takes a {role}", self.who.name());
                Err(ErrorBody::new(Code::Forbidden, message).hint(ASK))
            }
        }
    }

    pub fn require_role(&self, role: Role) -> Result<(), ErrorBody> {
        if self.is_at_least(role) {
            return Ok(());
        }
        let message = format!("token {} may not do this: it takes a token of role {role}", self.who.name());
        Err(ErrorBody::new(Code::Forbidden, message).hint(ASK))
    }

    /// Whether a tree is this caller's to deploy: uploaded by it, or part of an app that it deploys. Who knows a digest
    /// has not thereby seen what it names.
    pub fn may_use(&self, digest: &Digest) -> bool {
        let Who::Token(token) = &*self.who else { return true };
        if token.grant.role == Role::Admin
            || self.control.inner.access.has_uploaded(token.name.as_str(), digest)
        {
            return true;
        }
        self.control.read(|world| {
            let own = world.releases.iter().filter(|(app, _)| self.may(Role::Deployer, app));
            let mut releases = own.flat_map(|(_, releases)| releases.values().map(|held| &held.value));
            releases.any(|release| release.artifact == *digest || release.source.as_ref() == Some(digest))
        })
    }

    pub fn has_uploaded(&self, digest: &Digest) {
        if let Who::Token(token) = &*self.who {
            self.control.inner.access.uploaded(token.name.as_str(), digest);
        }
    }

    /// The name under which something is recorded, given what the request says of itself. Only the owner's word is
    /// taken for it: a token is called by its name first.
    pub fn signed(&self, claimed: &str) -> String {
        let harmless: String = claimed.chars().filter(|c| !c.is_control()).take(100).collect();
        if !harmless.is_empty() {
            self.told.lock().expect("no panic while held").by = Some(harmless.clone());
        }
        match &*self.who {
            Who::Local | Who::Owner => harmless,
            Who::Token(token) if harmless.is_empty() => token.name.to_string(),
            Who::Token(token) => format!("{} ({harmless})", token.name),
        }
    }

    /// What the audit trail shall tell beside the endpoint: names, never values.
    pub fn note(&self, note: impl Into<String>) {
        let note = note.into().chars().take(NOTE_MAX).collect();
        self.told.lock().expect("no panic while held").note = Some(note);
    }

    /// The note, and who asked by its own word.
    pub fn told(&self) -> (Option<String>, Option<String>) {
        let told = std::mem::take(&mut *self.told.lock().expect("no panic while held"));
        (told.note, told.by)
    }

    /// Returns once this caller has lost its right; never for the owner.
    pub async fn ends(&self) {
        match &*self.who {
            Who::Local | Who::Owner => std::future::pending().await,
            Who::Token(token) => self.control.token_ends(token).await,
        }
    }
}

const ASK: &str = "`rung whoami` shows what a token may; an admin makes another one with `rung token create`";

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Refused;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        let caller = parts.extensions.get::<Self>();
        Ok(caller.expect("the guard stands before every handler that asks who calls").clone())
    }
}
