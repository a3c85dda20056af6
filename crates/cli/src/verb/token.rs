//! `rung token` and `rung whoami`.

use anyhow::Context as _;
use jiff::Timestamp;
use rung_api::wire::TokenRequest;
use rung_model::{AppPattern, Grant, Role, TokenName};

use super::Session;
use crate::args::{TokenCommand, TokenCreateArgs};
use crate::edge::{Exit, Hinted};
use crate::note;
use crate::person;
use crate::render;

pub async fn token(session: &mut Session<'_>, command: TokenCommand) -> anyhow::Result<Exit> {
    match command {
        TokenCommand::Create(args) => create(session, args).await,
        TokenCommand::List => {
            let tokens = session.client.tokens().await.context("listing the tokens")?;
            session
                .screen
                .show(&tokens, |tokens, paint, clock| render::tokens::render(tokens, paint, clock))?;
            Ok(Exit::Done)
        }
        TokenCommand::Revoke { name } => {
            let context = || format!("revoking token {name}");
            session.client.revoke_token(&name).await.with_context(context)?;
            session.screen.show(&serde_json::json!({ "token": name, "revoked": true }), |_, _, _| {
                format!("token {name} is revoked; what it had open is cut off")
            })?;
            Ok(Exit::Done)
        }
    }
}

async fn create(session: &mut Session<'_>, args: TokenCreateArgs) -> anyhow::Result<Exit> {
    let mut apps = args.apps;
    if let Some(app) = &session.global.app {
        let app = crate::app::in_environment(app, session.global.environment.as_ref())?;
        apps.push(app.as_str().parse()?);
    }
    let name = match args.name {
        Some(name) => name,
        None => usual_name(args.role, &apps)?,
    };
    let expires = args.expires.map(|holds| Timestamp::now().checked_add(holds)).transpose();
    let expires = expires.map_err(|_| Hinted::usage("that is too long a time", "write it like 30d"))?;
    let request = TokenRequest {
        name: name.clone(),
        grant: Grant { role: args.role, apps },
        expires,
        by: person::name(),
    };
    let created =
        session.client.create_token(&request).await.with_context(|| format!("making token {name}"))?;
    if !session.screen.is_json() {
        // Beside the output, so that `TOKEN=$(rung token create …)` holds the token alone.
        let told = render::tokens::in_words(&created.listing, &session.screen.clock());
        note!("token {name}: {told}; it is shown only now:");
    }
    session.screen.show(&created, |created, _, _| created.token.clone())?;
    Ok(Exit::Done)
}

/// `shop-deployer`, `shop-staging-viewer`.
fn usual_name(role: Role, apps: &[AppPattern]) -> anyhow::Result<TokenName> {
    let named = match apps {
        [only] => TokenName::new(format!("{}-{role}", only.to_string().replace('@', "-"))).ok(),
        _ => None,
    };
    named.ok_or_else(|| {
        let hint = format!("say it: rung token create ci --role {role} …");
        Hinted::usage("the token has no name", hint).into()
    })
}

pub async fn whoami(session: &mut Session<'_>) -> anyhow::Result<Exit> {
    let whoami = session.client.whoami().await.context("asking the server who this is")?;
    let address = session.client.address().to_string();
    session.screen.show(&whoami, |whoami, _, clock| render::tokens::whoami(whoami, &address, clock))?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_one_app_needs_no_name() {
        let usual = |role, apps: &[&str]| {
            let apps: Vec<AppPattern> = apps.iter().map(|app| app.parse().unwrap()).collect();
            usual_name(role, &apps).map(|name| name.to_string()).ok()
        };
        assert_eq!(usual(Role::Deployer, &["shop"]).as_deref(), Some("shop-deployer"));
        assert_eq!(usual(Role::Viewer, &["shop@staging"]).as_deref(), Some("shop-staging-viewer"));
        assert_eq!(usual(Role::Viewer, &["shop@*"]), None);
        assert_eq!(usual(Role::Admin, &[]), None);
    }
}
