//! `rung token list` and `rung whoami`.

use rung_api::wire::{TokenListing, Whoami};
use rung_model::{Grant, Role};

use super::paint::{Mood, Paint};
use super::table::{cell, colored, table};
use super::time::Clock;

pub fn render(tokens: &[TokenListing], paint: Paint, clock: &Clock) -> String {
    if tokens.is_empty() {
        return "no token but the owner's; make one with `rung token create`".to_owned();
    }
    let rows: Vec<_> = tokens
        .iter()
        .map(|token| {
            let expires = match token.expires {
                Some(expires) if expires <= clock.now => colored("expired", Mood::Bad),
                Some(expires) => cell(clock.ahead(expires)),
                None => cell("never"),
            };
            vec![
                cell(&token.name),
                cell(token.grant.role),
                cell(reach(&token.grant)),
                expires,
                cell(clock.ago(token.at)),
                cell(&token.by),
            ]
        })
        .collect();
    table(&["TOKEN", "ROLE", "APPS", "EXPIRES", "MADE", "BY"], &rows, paint)
}

fn reach(grant: &Grant) -> String {
    match grant.role {
        Role::Admin => "all".to_owned(),
        _ => grant.apps.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// `deployer of shop until in 30 days (Apr 3 10:00)`.
pub fn in_words(token: &TokenListing, clock: &Clock) -> String {
    grant_in_words(&token.grant, token.expires, clock)
}

fn grant_in_words(grant: &Grant, expires: Option<jiff::Timestamp>, clock: &Clock) -> String {
    let of = match grant.role {
        Role::Admin => String::new(),
        _ => format!(" of {}", reach(grant)),
    };
    let until = match expires {
        Some(expires) => format!("expires {}", clock.ahead(expires)),
        None => "does not expire".to_owned(),
    };
    format!("{}{of}, {until}", grant.role)
}

pub fn whoami(whoami: &Whoami, address: &str, clock: &Clock) -> String {
    let who = match whoami.name.as_str() {
        "owner" | "local" => {
            "the owner of this platform, by what `rung up` left in its data directory".to_owned()
        }
        name => format!("token {name}: {}", grant_in_words(&whoami.grant, whoami.expires, clock)),
    };
    format!("{who}\nat {address}")
}
