//! Who calls: tokens are looked up, wrong ones are counted, and what a revoked one has open is told to end.
//!
//! A token is read from the store with every request, so that a revocation holds from its commit on, whichever server
//! is asked. Only SHA-256 of its secret part is stored; the secret is 256 random bits, which no slow hash would make
//! harder to guess.

mod caller;
mod doorkeeper;
mod text;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rung_api::{Code, ErrorBody};
use rung_model::{Digest, Document, Token, TokenName, keys};
use tokio::sync::watch;

pub(crate) use caller::{Caller, LOCAL, OWNER, Who};
use doorkeeper::{Door, Doorkeeper};
pub(crate) use text::{TokenText, is_equal};

use crate::shared::{Control, store_error};

/// What was uploaded belongs to nothing until its deployment is recorded; the same time spares it from pruning.
const UPLOADS_KEPT: Duration = Duration::from_secs(3600);

/// A client that uploads without ever deploying must not fill the memory.
const UPLOADS_MAX: usize = 10_000;

/// A token's end is looked for again after this: the wall clock may have been set meanwhile.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(60);

/// Waiting before the store is watched again after that failed.
const WATCH_AGAIN: Duration = Duration::from_millis(500);

/// What the server knows of those who call.
#[derive(Debug)]
pub(crate) struct Access {
    /// SHA-256 of the token of the first start.
    owner: [u8; 32],
    doorkeeper: Mutex<Doorkeeper>,
    /// Counts changes of tokens.
    changes: watch::Sender<u64>,
    /// Who has uploaded what: a digest alone is no right to what it names.
    uploads: Mutex<BTreeMap<(String, Digest), Instant>>,
}

impl Access {
    pub fn new(owner: &str) -> Self {
        Self {
            owner: text::hash(owner),
            doorkeeper: Mutex::default(),
            changes: watch::Sender::new(0),
            uploads: Mutex::default(),
        }
    }

    pub fn uploaded(&self, who: &str, digest: &Digest) {
        let mut uploads = self.uploads.lock().expect("no panic while held");
        uploads.retain(|_, at| at.elapsed() < UPLOADS_KEPT);
        if uploads.len() < UPLOADS_MAX {
            uploads.insert((who.to_owned(), digest.clone()), Instant::now());
        }
    }

    pub fn has_uploaded(&self, who: &str, digest: &Digest) -> bool {
        let uploads = self.uploads.lock().expect("no panic while held");
        uploads.get(&(who.to_owned(), digest.clone())).is_some_and(|at| at.elapsed() < UPLOADS_KEPT)
    }
}

fn unauthorized(message: impl Into<String>) -> ErrorBody {
    ErrorBody::new(Code::Unauthorized, message)
}

impl Control {
    /// Who sends this `Authorization` header from there.
    pub(crate) async fn authenticate(&self, from: IpAddr, header: Option<&str>) -> Result<Who, ErrorBody> {
        let Some(given) = header.and_then(|header| header.strip_prefix("Bearer ")) else {
            return Err(unauthorized("request carries no token").hint(
                "`rung login` keeps one, RUNG_TOKEN gives one; or run the command as the user who started rung",
            ));
        };
        let hash = text::hash(given);
        let door = self.doorkeeper(|keeper| keeper.door(from, &hash, Instant::now()));
        if let Door::Shut { wait } = door {
            let message = format!("too many wrong tokens came from {from}");
            let hint = format!("wait {} s, then try again with the right one", wait.as_secs() + 1);
            return Err(ErrorBody::new(Code::Limited, message).hint(hint));
        }
        match self.find_token(given, &hash).await? {
            Ok(who) => {
                self.doorkeeper(|keeper| keeper.right(from, hash, Instant::now()));
                Ok(who)
            }
            Err(refused) => {
                let door = self.doorkeeper(|keeper| keeper.wrong(from, Instant::now()));
                if let Door::Shut { wait } = door {
                    let message = format!(
                        "too many wrong tokens came from {from}; it is not listened to for {} s",
                        wait.as_secs()
                    );
                    self.record(None, "access_limited", message);
                }
                Err(refused)
            }
        }
    }

    fn doorkeeper<T>(&self, ask: impl FnOnce(&mut Doorkeeper) -> T) -> T {
        ask(&mut self.inner.access.doorkeeper.lock().expect("no panic while held"))
    }

    /// The outer error: it could not be looked up. The inner one: it is no valid token.
    async fn find_token(&self, given: &str, hash: &[u8; 32]) -> Result<Result<Who, ErrorBody>, ErrorBody> {
        if is_equal(hash, &self.inner.access.owner) {
            return Ok(Ok(Who::Owner));
        }
        let wrong = || {
            Err(unauthorized("the token that was given is not valid (any more)")
                .hint("ask an admin for another one: `rung token create`"))
        };
        let Some(text) = TokenText::parse(given) else { return Ok(wrong()) };
        let Some(token) = self.token(text.name()).await? else { return Ok(wrong()) };
        if !text.proves(&token.hash) {
            return Ok(wrong());
        }
        if let Some(expired) = token.expires.filter(|expires| *expires <= Timestamp::now()) {
            return Ok(Err(unauthorized(format!("token {} has expired at {expired}", token.name))
                .hint("ask an admin for another one: `rung token create`")));
        }
        Ok(Ok(Who::Token(token)))
    }

    /// The token of that name.
    pub(crate) async fn token(&self, name: &TokenName) -> Result<Option<Token>, ErrorBody> {
        let read = self.inner.store.get(&keys::token(name)).await.map_err(|error| store_error(&error))?;
        let Some(entry) = read.value else { return Ok(None) };
        let token = Token::from_json(&entry.value).map_err(|error| {
            ErrorBody::new(Code::Internal, format!("token {name} can't be read by this version: {error}"))
        })?;
        Ok(Some(token))
    }

    /// Returns once the token does not hold any more: revoked, replaced or expired.
    pub(crate) async fn token_ends(&self, token: &Token) {
        let mut changes = self.inner.access.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let now = Timestamp::now();
            let expired = token.expires.is_some_and(|expires| expires <= now);
            match self.token(&token.name).await {
                Ok(found) if found.as_ref() != Some(token) => return,
                // What can't be looked up now can't be called revoked.
                Ok(_) | Err(_) if expired => return,
                Ok(_) | Err(_) => {}
            }
            let left = token.expires.map_or(LOOK_AT_CLOCK, |expires| {
                Duration::try_from(expires.duration_since(now)).unwrap_or_default()
            });
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(left.min(LOOK_AT_CLOCK)) => {}
            }
        }
    }
}

/// Tells whoever waits for a token's end that tokens have changed.
pub(crate) async fn watch_tokens(control: Control) {
    loop {
        if let Err(error) = follow_tokens(&control).await {
            tracing::warn!(%error, "the tokens can't be watched");
        }
        control.inner.access.changes.send_modify(|count| *count += 1);
        tokio::time::sleep(WATCH_AGAIN).await;
    }
}

async fn follow_tokens(control: &Control) -> Result<(), rung_store::StoreError> {
    let store = &control.inner.store;
    let revision = store.list(keys::TOKENS, None, 1).await?.revision;
    // Compacted or closed: both are begun anew.
    let Ok(mut watch) = store.watch(keys::TOKENS, revision).await else { return Ok(()) };
    loop {
        control.inner.access.changes.send_modify(|count| *count += 1);
        if watch.next().await.is_err() {
            return Ok(());
        }
    }
}
