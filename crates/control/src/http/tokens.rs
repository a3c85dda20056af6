//! Tokens: made, listed, revoked; and who one is.

use axum::extract::State;
use jiff::Timestamp;
use rung_api::wire::{TokenCreated, TokenListing, TokenRequest, Whoami};
use rung_api::{Code, ErrorBody};
use rung_model::{Document, Role, Token, TokenName, keys};
use rung_store::{Guard, Op};

use super::Answer;
use super::extract::{Body, Json, Named};
use crate::access::{Caller, LOCAL, OWNER, TokenText};
use crate::shared::{Committed, Control, store_error};

/// Each is read whole when they are listed.
const TOKENS_MAX: usize = 1000;
const PATTERNS_MAX: usize = 100;

pub async fn whoami(caller: Caller) -> Json<Whoami> {
    Json(caller.whoami())
}

pub async fn list(State(control): State<Control>) -> Answer<Vec<TokenListing>> {
    let tokens = control.tokens().await?;
    Ok(Json(tokens.into_iter().map(listing).collect()))
}

fn listing(token: Token) -> TokenListing {
    TokenListing { name: token.name, grant: token.grant, at: token.at, by: token.by, expires: token.expires }
}

impl Control {
    async fn tokens(&self) -> Result<Vec<Token>, ErrorBody> {
        let mut tokens = Vec::new();
        let mut from: Option<String> = None;
        // To the end: a few more than the most may have been made at the same moment, and none may be hidden.
        loop {
            let read = self.inner.store.list(keys::TOKENS, from.as_deref(), TOKENS_MAX).await;
            let page = read.map_err(|error| store_error(&error))?.value;
            // One that a newer version wrote is left out; it is refused when it is used, too.
            tokens.extend(page.entries.iter().filter_map(|entry| Token::from_json(&entry.value).ok()));
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(tokens),
            }
        }
    }
}

pub async fn create(
    State(control): State<Control>,
    caller: Caller,
    Body(request): Body<TokenRequest>,
) -> Answer<TokenCreated> {
    let name = &request.name;
    check(&request)?;
    let text = TokenText::generate(name.clone());
    let token = Token {
        name: name.clone(),
        grant: request.grant.clone(),
        hash: text.hash(),
        at: Timestamp::now(),
        by: request.by.clone(),
        expires: request.expires,
    };
    if control.tokens().await?.len() >= TOKENS_MAX {
        let message = format!("there are {TOKENS_MAX} tokens already, and that is the most");
        return Err(ErrorBody::new(Code::Refused, message).hint("revoke some: rung token list").into());
    }
    let key = keys::token(name);
    let value = token.to_json();
    let guard = Guard::Absent { key: key.clone() };
    match control.commit(vec![guard], vec![Op::Put { key, value, lease: None }]).await? {
        Committed::Done => {
            caller.note(format!("{name}: {}", in_words(&token)));
            control.record(None, "token", format!("token {name} is made by {}", request.by));
            Ok(Json(TokenCreated { token: text.reveal(), listing: listing(token) }))
        }
        Committed::Conflict => {
            let message = format!("there is a token {name} already");
            Err(ErrorBody::new(Code::Refused, message)
                .hint(format!("choose another name, or revoke that one first: rung token revoke {name}"))
                .into())
        }
    }
}

fn in_words(token: &Token) -> String {
    let apps: Vec<String> = token.grant.apps.iter().map(ToString::to_string).collect();
    let of = if apps.is_empty() { String::new() } else { format!(" of {}", apps.join(", ")) };
    let until = token.expires.map(|expires| format!(" until {expires:.0}")).unwrap_or_default();
    format!("{}{of}{until}", token.grant.role)
}

fn check(request: &TokenRequest) -> Result<(), ErrorBody> {
    let (name, grant) = (&request.name, &request.grant);
    let wrong = |message: String, hint: &str| Err(ErrorBody::new(Code::InvalidRequest, message).hint(hint));
    if [OWNER, LOCAL].contains(&name.as_str()) {
        let message = format!("{name} is what the server's own machine is called in the audit trail");
        return wrong(message, "choose another name");
    }
    if grant.role == Role::Admin && !grant.apps.is_empty() {
        return wrong(format!("token {name} of role admin can't be kept to some apps"), "leave the apps out");
    }
    if grant.role != Role::Admin && grant.apps.is_empty() {
        let message = format!("token {name} of role {} would reach no app", grant.role);
        return wrong(message, "say which: --app shop, --app shop@staging, --app 'shop@*'");
    }
    if grant.apps.len() > PATTERNS_MAX {
        return wrong(format!("token {name} names more than {PATTERNS_MAX} apps"), "make several tokens");
    }
    if request.expires.is_some_and(|expires| expires <= Timestamp::now()) {
        return wrong(format!("token {name} would have expired already"), "is the clock right?");
    }
    Ok(())
}

pub async fn revoke(State(control): State<Control>, caller: Caller, named: Named) -> Answer<()> {
    let name: TokenName = named.get("token")?;
    if name.as_str() == OWNER {
        let message = "the owner's token can't be revoked: it is the way back in";
        let hint = "to replace it, remove `token` from the data directory and start rung again";
        return Err(ErrorBody::new(Code::Refused, message).hint(hint).into());
    }
    if control.token(&name).await?.is_none() {
        let message = format!("there is no token {name}");
        return Err(ErrorBody::new(Code::NotFound, message).hint("`rung token list` shows them").into());
    }
    control.commit(Vec::new(), vec![Op::Delete { key: keys::token(&name) }]).await?;
    caller.note(name.to_string());
    control.record(None, "token", format!("token {name} is revoked by {}", caller.who().name()));
    Ok(Json(()))
}
