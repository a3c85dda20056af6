//! `rung login` and `rung logout`.

use std::io::{BufRead as _, IsTerminal as _, Read as _};

use anyhow::Context as _;
use rung_api::{Address, ClientError, Code};

use crate::args::{Global, LoginArgs};
use crate::connect::{client, refuse_what_is_overheard};
use crate::edge::{Exit, Hinted};
use crate::login::{Login, path};
use crate::render;
use crate::screen::Screen;

/// A token has about a hundred characters.
const TOKEN_MAX: u64 = 4096;

/// Keeps a token for a server, once the server has taken it.
pub async fn login(global: &Global, args: &LoginArgs, screen: &mut Screen) -> anyhow::Result<Exit> {
    let address: Address = args
        .server
        .parse()
        .map_err(|error| Hinted::usage(format!("{error}"), "write it like https://rung.example.com:7864"))?;
    refuse_what_is_overheard(&address)?;
    let token = token()?;
    let client = client(address.clone(), Some(token.clone()), global.ca)?;
    let whoami = client.whoami().await.map_err(|error| refused(error, &address))?;
    let login =
        Login { api: address.to_string(), token, ca: global.ca.map(|authority| authority.to_string()) };
    let path = path()?;
    login.write(&path)?;
    screen.show(&whoami, |whoami, _, clock| {
        let who = render::tokens::whoami(whoami, &login.api, clock);
        format!("logged in as {who}\nkept in {}; `rung logout` removes it", path.display())
    })?;
    Ok(Exit::Done)
}

fn token() -> anyhow::Result<String> {
    let text = if std::io::stdin().is_terminal() {
        let terminal = console::Term::stderr();
        terminal.write_str("token (not shown): ").context("asking for the token")?;
        terminal.read_secure_line().context("reading the token")?
    } else {
        let mut text = String::new();
        std::io::stdin().lock().take(TOKEN_MAX).read_line(&mut text).context("reading the token")?;
        text
    };
    match text.trim() {
        "" => Err(Hinted::usage("no token was given", "an admin makes one: `rung token create`").into()),
        token if token.chars().any(char::is_whitespace) => {
            Err(Hinted::usage("what was given is no token", "give the token alone").into())
        }
        token => Ok(token.to_owned()),
    }
}

fn refused(error: ClientError, address: &Address) -> anyhow::Error {
    if error.code() == Some(Code::Unauthorized) {
        let message = format!("{address} does not take this token");
        return Hinted::failed(message, "was it copied whole? or ask an admin for another one").into();
    }
    anyhow::Error::from(error).context(format!("logging in at {address}"))
}

pub fn logout(screen: &mut Screen) -> anyhow::Result<Exit> {
    let path = path()?;
    let was = Login::remove(&path)?;
    screen.show(&serde_json::json!({ "logged_out": was }), |_, _, _| match was {
        true => format!("logged out: {} is gone; the token itself holds until it is revoked", path.display()),
        false => "nobody was logged in".to_owned(),
    })?;
    Ok(Exit::Done)
}
