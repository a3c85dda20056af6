//! Finding the server: what the person said, else what `rung up` left in its data directory.

use anyhow::Context as _;
use rung_api::{Address, Client};

use crate::args::Global;
use crate::edge::Hinted;
use crate::server_file::{ServerFile, data_directory};

/// A client of the server that is meant. Nothing is sent yet.
///
/// # Errors
/// No server is named and none runs here, or the address is not one.
pub fn connect(global: &Global) -> anyhow::Result<Client> {
    let said = global.api.clone().or_else(|| std::env::var("RUNG_API").ok().filter(|api| !api.is_empty()));
    let data = data_directory(global.data.as_deref());
    let file = match &data {
        Ok(data) => {
            ServerFile::read(data).with_context(|| format!("reading {}", ServerFile::path(data).display()))
        }
        Err(_) => Ok(None),
    };
    let Some(said) = said else {
        let data = data?;
        let Some(file) = file? else {
            let message =
                format!("no rung server runs here: there is no {}", ServerFile::path(&data).display());
            let hint = "start one with `rung up`, or say where it is with --data, or with --api and --token";
            return Err(Hinted::failed(message, hint).into());
        };
        let token = global.token.clone().unwrap_or(file.token);
        return Ok(Client::new(file.api.parse()?, Some(token)));
    };
    let address: Address = said.parse().map_err(|error| {
        Hinted::usage(format!("{error}"), "take --api and RUNG_API away to use the server of this machine")
    })?;
    // The token of this machine's server is for nobody else.
    let own = file.ok().flatten().filter(|file| file.api.parse::<Address>().is_ok_and(|own| own == address));
    let token = global.token.clone().or_else(|| own.map(|file| file.token));
    Ok(Client::new(address, token))
}
