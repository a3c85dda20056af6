//! Finding the server: what the person said, else where `rung login` has logged in, else what `rung up` left in its data
//! directory. Where two could be meant, neither is guessed.

use std::path::Path;

use anyhow::Context as _;
use rung_api::{Address, Client, ClientError, Tls};
use rung_trust::{Belief, Fingerprint, client_config};

use crate::args::Global;
use crate::edge::Hinted;
use crate::login::Login;
use crate::server_file::{ServerFile, data_directory};

/// A client of the server that is meant. Nothing is sent yet.
///
/// # Errors
/// No server is named and none runs here, or the address is not one.
pub fn connect(global: &Global) -> anyhow::Result<Client> {
    let Server { address, token, ca } = server(global)?;
    client(address, token, ca)
}

/// The server that is meant.
pub struct Server {
    pub address: Address,
    pub token: Option<String>,
    /// Of the authority that vouches for it.
    pub ca: Option<Fingerprint>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Finds the server that is meant, as [`connect`] does.
///
/// # Errors
/// As with [`connect`].
pub fn server(global: &Global) -> anyhow::Result<Server> {
    let said = global.api.clone().or_else(|| std::env::var("RUNG_API").ok().filter(|api| !api.is_empty()));
    let data = data_directory(global.data.as_deref());
    let file = match &data {
        Ok(data) => {
            ServerFile::read(data).with_context(|| format!("reading {}", ServerFile::path(data).display()))
        }
        Err(_) => Ok(None),
    };
    let login = crate::login::path().ok().map(|path| Login::read(&path)).transpose()?.flatten();
    let Some(said) = said else {
        // Who names a data directory means the server that runs on it.
        if let (None, Some(login)) = (&global.data, login) {
            refuse_two_servers(&login, file.as_ref().ok().and_then(Option::as_ref))?;
            let token = global.token.clone().unwrap_or_else(|| login.token.clone());
            let ca = global.ca.map_or_else(|| login.authority(), |ca| Ok(Some(ca)))?;
            return Ok(Server { address: login.api.parse()?, token: Some(token), ca });
        }
        let data = data?;
        let Some(file) = file? else {
            let message =
                format!("no rung server runs here: there is no {}", ServerFile::path(&data).display());
            let hint = "start one with `rung up`, log in at another with `rung login`, or say where it is with --data, \
                        or with --api and --token";
            return Err(Hinted::failed(message, hint).into());
        };
        let token = global.token.clone().unwrap_or(file.token);
        return Ok(Server {
            address: file.api.parse()?,
            token: Some(token),
            ca: authority(file.ca.as_deref())?,
        });
    };
    let address: Address = said.parse().map_err(|error| {
        Hinted::usage(format!("{error}"), "take --api and RUNG_API away to use the server of this machine")
    })?;
    // The token of this machine's server is for nobody else.
    let own = file.ok().flatten().filter(|file| file.api.parse::<Address>().is_ok_and(|own| own == address));
    // And that of a login for the server it was given for.
    let login = login.filter(|login| login.api.parse::<Address>().is_ok_and(|own| own == address));
    let known = own.map(|file| (file.token, file.ca)).or_else(|| login.map(|login| (login.token, login.ca)));
    let (token, ca) = known.map_or((None, None), |(token, ca)| (Some(token), ca));
    let ca = match global.ca {
        Some(ca) => Some(ca),
        None => authority(ca.as_deref())?,
    };
    let token = global.token.clone().or(token);
    if token.is_some() {
        refuse_what_is_overheard(&address)?;
    }
    Ok(Server { address, token, ca })
}

/// Why nobody can be asked, where the server of this machine is meant and does not run.
///
/// # Errors
/// There is no home to look for it in, or what it left can't be read.
pub fn absent_server(global: &Global) -> anyhow::Result<Option<String>> {
    let is_said = global.api.is_some() || std::env::var("RUNG_API").is_ok_and(|api| !api.is_empty());
    let login = || Ok::<_, anyhow::Error>(Login::read(&crate::login::path()?)?.is_some());
    if is_said || (global.data.is_none() && login().unwrap_or(false)) {
        return Ok(None);
    }
    let data = data_directory(global.data.as_deref())?;
    let path = ServerFile::path(&data);
    let file = ServerFile::read(&data).with_context(|| format!("reading {}", path.display()))?;
    Ok(match file {
        None => Some(format!("none runs here: there is no {}", path.display())),
        Some(file) if !runs(&file) => {
            Some(format!("none runs here: process {} of {} was killed", file.pid, path.display()))
        }
        Some(_) => None,
    })
}

fn runs(file: &ServerFile) -> bool {
    Path::new(&format!("/proc/{}", file.pid)).exists()
}

/// A token that is sent in the clear is everybody's on the way. Rung serves its API to other machines by TLS alone.
pub(crate) fn refuse_what_is_overheard(address: &Address) -> anyhow::Result<()> {
    let Address::Tcp(authority) = address else { return Ok(()) };
    let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_here =
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if is_here {
        return Ok(());
    }
    let message = format!("http://{authority} would carry the token over the network in the clear");
    Err(Hinted::usage(message, format!("say https://{authority}, with --ca or RUNG_CA")).into())
}

/// What was meant for the laptop must not go to production, nor the other way round.
fn refuse_two_servers(login: &Login, here: Option<&ServerFile>) -> anyhow::Result<()> {
    match here.filter(|file| runs(file)) {
        Some(here) if here.api != login.api => {
            let message = format!(
                "two servers could be meant: {} (rung login) and {}, which runs here",
                login.api, here.api
            );
            Err(Hinted::usage(
                message,
                "say which with --api or --data, or forget the first one: rung logout",
            )
            .into())
        }
        _ => Ok(()),
    }
}

fn authority(text: Option<&str>) -> anyhow::Result<Option<Fingerprint>> {
    Ok(text.map(str::parse).transpose()?)
}

/// Nothing is sent before the other side has shown that it is of the cluster with this authority.
pub(crate) fn client(
    address: Address,
    token: Option<String>,
    ca: Option<Fingerprint>,
) -> anyhow::Result<Client> {
    Ok(match (&address, ca) {
        (Address::Tls(_), Some(ca)) => {
            Client::over_tls(address, token, Tls::to_servers(client_config(Belief::Hash(ca), None)))
        }
        (Address::Tls(_), None) => return Err(ClientError::NoTrust { address: address.to_string() }.into()),
        (Address::Unix(_) | Address::Tcp(_), _) => Client::new(address, token),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::{Exit, explain};

    fn global(data: &Path, api: Option<&str>) -> Global {
        Global { data: Some(data.to_owned()), api: api.map(str::to_owned), ..Global::default() }
    }

    #[test]
    fn the_server_is_the_one_that_was_said_else_the_one_that_runs_here() {
        let data = tempfile::tempdir().unwrap();
        let file = ServerFile {
            api: "http://127.0.0.1:7999".into(),
            token: "t0ken".into(),
            http: "127.0.0.1:8080".into(),
            ca: None,
            pid: 7,
        };
        file.write(data.path()).unwrap();
        let here = connect(&global(data.path(), None)).unwrap();
        assert_eq!(here.address().to_string(), "http://127.0.0.1:7999");
        let there = connect(&global(data.path(), Some("http://10.0.0.1:7864"))).unwrap();
        assert_eq!(there.address().to_string(), "http://10.0.0.1:7864");
        let error = connect(&global(data.path(), Some("nonsense"))).unwrap_err();
        assert_eq!(explain(&error).1, Exit::Usage);
    }

    #[test]
    fn a_token_is_not_sent_over_a_network_in_the_clear() {
        let refused = |address: &str| refuse_what_is_overheard(&address.parse().unwrap()).is_err();
        assert!(refused("http://10.0.0.1:7864") && refused("http://rung.example.com:7864"));
        assert!(!refused("http://127.0.0.1:7864") && !refused("http://[::1]:7864"));
        assert!(!refused("http://localhost:7864") && !refused("https://10.0.0.1:7864"));

        let data = tempfile::tempdir().unwrap();
        let with_token = |api: &str| Global { token: Some("t0ken".into()), ..global(data.path(), Some(api)) };
        let (text, exit) = explain(&connect(&with_token("http://10.0.0.1:7864")).unwrap_err());
        assert!(text.contains("in the clear") && text.contains("https://10.0.0.1:7864"), "{text}");
        assert_eq!(exit, Exit::Usage);
        connect(&with_token("http://127.0.0.1:7864")).unwrap();
    }

    #[test]
    fn without_a_server_the_way_to_start_one_is_told() {
        let data = tempfile::tempdir().unwrap();
        let (text, exit) = explain(&connect(&global(data.path(), None)).unwrap_err());
        assert!(text.contains("no rung server runs here") && text.contains("`rung up`"), "{text}");
        assert_eq!(exit, Exit::Failed);
        std::fs::write(ServerFile::path(data.path()), "{").unwrap();
        let (text, _) = explain(&connect(&global(data.path(), None)).unwrap_err());
        assert!(text.contains("rung.json"), "a damaged file is named: {text}");
    }
}
