//! Which app is meant, in which environment, and what its directory says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rung_api::Client;
use rung_model::appfile::{self, AppFile, AppFileErrors, AppText, Texts};
use rung_model::{AppName, EnvironmentName};

use crate::args::Global;
use crate::edge::Hinted;
use crate::import::{Note, app_json};

/// The app file of a directory, as it was found.
#[derive(Debug, Clone)]
pub struct FoundFile {
    /// `rung.toml` or `Procfile`.
    pub name: &'static str,
    /// With the directory as it was named.
    pub path: PathBuf,
    pub bytes: Vec<u8>,
    /// Each `rung.<environment>.toml` beside it.
    pub overlays: BTreeMap<EnvironmentName, Vec<u8>>,
    /// What a `Procfile` leaves to its directory.
    pub directory_name: Option<AppName>,
    /// What stands beside a `Procfile`.
    pub app_json: Option<Vec<u8>>,
}

impl FoundFile {
    /// The meaning of the file for an app in its environment.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(&self, app: &AppName) -> Result<AppFile, AppFileErrors> {
        let overlays = self.overlays.iter().map(|(name, bytes)| (name.clone(), bytes.as_slice())).collect();
        let texts = Texts { name: self.name, text: &self.bytes, overlays };
        texts
            .parse(app)
            .map_err(|errors| errors.named(|file| self.path.with_file_name(file).display().to_string()))
    }

    /// A `Procfile` with an `app.json` as the one app file that they make, and what of it is not honoured.
    ///
    /// # Errors
    /// One of the two is wrong.
    pub fn settled(mut self, app: &AppName) -> anyhow::Result<(Self, Vec<Note>)> {
        let Some(app_json) = self.app_json.take() else { return Ok((self, Vec::new())) };
        let path = self.path.with_file_name(app_json::FILE_NAME).display().to_string();
        let written = app_json::write(&app.base(), &self.bytes, &app_json, &path)?;
        Ok((Self { name: appfile::FILE_NAME, bytes: written.toml.into_bytes(), ..self }, written.notes))
    }

    /// All of it as text, for the server.
    ///
    /// # Errors
    /// One of the files is not text.
    pub fn text(&self) -> anyhow::Result<AppText> {
        let read = |path: PathBuf, bytes: &[u8]| {
            String::from_utf8(bytes.to_vec()).map_err(|_| {
                Hinted::failed(format!("{} is not UTF-8 text", path.display()), "save it as UTF-8")
            })
        };
        let mut overlays = BTreeMap::new();
        for (environment, bytes) in &self.overlays {
            let path = self.path.with_file_name(appfile::overlay_file(environment));
            overlays.insert(environment.clone(), read(path, bytes)?);
        }
        Ok(AppText { name: self.name.to_owned(), text: read(self.path.clone(), &self.bytes)?, overlays })
    }

    /// The app's name that the file says, or leaves to its directory.
    pub fn app(&self) -> Option<AppName> {
        match self.name {
            appfile::PROCFILE => self.directory_name.clone(),
            _ => appfile::name_of(&String::from_utf8_lossy(&self.bytes)),
        }
    }
}

/// Looks for `rung.toml`, then for a `Procfile`, with which an `app.json` counts.
///
/// # Errors
/// One is there and can't be read.
pub fn find_file(dir: &Path) -> anyhow::Result<Option<FoundFile>> {
    for name in [appfile::FILE_NAME, appfile::PROCFILE] {
        let path = dir.join(name);
        match read_whole(&path) {
            Ok(bytes) => {
                let overlays = if name == appfile::FILE_NAME { overlays(dir)? } else { BTreeMap::new() };
                let app_json = if name == appfile::PROCFILE { app_json(dir)? } else { None };
                let path = path.strip_prefix(".").unwrap_or(&path).to_owned();
                let directory_name = name_of_directory(dir);
                return Ok(Some(FoundFile { name, path, bytes, overlays, directory_name, app_json }));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }
    Ok(None)
}

fn app_json(dir: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let path = dir.join(app_json::FILE_NAME);
    match read_whole(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn overlays(dir: &Path) -> anyhow::Result<BTreeMap<EnvironmentName, Vec<u8>>> {
    let mut overlays = BTreeMap::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry.with_context(|| format!("reading {}", dir.display()))?;
        let Some(environment) = entry.file_name().to_str().and_then(appfile::overlay_environment) else {
            continue;
        };
        let bytes =
            read_whole(&entry.path()).with_context(|| format!("reading {}", entry.path().display()))?;
        overlays.insert(environment, bytes);
    }
    Ok(overlays)
}

/// Of a pipe, a device or a directory nothing is read: it might never end.
fn read_whole(path: &Path) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a file; an app file is a plain text file"));
    }
    std::fs::read(path)
}

pub(crate) fn name_of_directory(dir: &Path) -> Option<AppName> {
    let whole: PathBuf = dir.canonicalize().ok()?;
    AppName::new(appfile::slug(&whole.file_name()?.to_string_lossy())).ok()
}

/// The app that this directory is, if it is one.
pub fn of_directory(dir: &Path) -> Option<AppName> {
    find_file(dir).ok().flatten()?.app()
}

/// The app in the environment that was said, if one was: `--app shop@staging` says both.
///
/// # Errors
/// The name has another environment than the one that was said.
pub fn in_environment(app: &AppName, said: Option<&EnvironmentName>) -> anyhow::Result<AppName> {
    match said {
        None => Ok(app.clone()),
        Some(said) if app.is_in_production() || app.environment() == *said => Ok(app.in_environment(said)),
        Some(said) => {
            let message = format!("--app says {app}, and --env (or RUNG_ENV) says {said}");
            Err(Hinted::usage(message, "say the environment once").into())
        }
    }
}

/// What `--app` and `--env` say.
///
/// # Errors
/// They contradict each other.
pub fn said(global: &Global) -> anyhow::Result<Option<AppName>> {
    let said = global.app.as_ref().map(|app| in_environment(app, global.environment.as_ref()));
    said.transpose()
}

/// What `--app` and `--env` say, else the directory's app in the environment that was said.
///
/// # Errors
/// They contradict each other.
pub fn named(global: &Global) -> anyhow::Result<Option<AppName>> {
    if let Some(app) = said(global)? {
        return Ok(Some(app));
    }
    let here = of_directory(Path::new("."));
    here.map(|app| in_environment(&app, global.environment.as_ref())).transpose()
}

/// The app that is meant: what was said, else the directory's, else the only one on the server.
///
/// # Errors
/// Nothing says which of several.
pub async fn meant(global: &Global, client: &Client) -> anyhow::Result<AppName> {
    if let Some(app) = named(global)? {
        return Ok(app);
    }
    let environment = global.environment.clone().unwrap_or_else(EnvironmentName::production);
    let apps = client.apps().await?.into_iter().map(|status| status.app);
    let mut apps: Vec<AppName> = apps.filter(|app| app.environment() == environment).collect();
    match apps.len() {
        0 if environment.is_production() => {
            Err(Hinted::usage("the server has no app yet", "deploy one with `rung deploy DIR`").into())
        }
        0 => Err(none_in(&environment).into()),
        1 => Ok(apps.remove(0)),
        _ => {
            let names = apps.iter().map(|app| app.as_str()).collect::<Vec<_>>().join(", ");
            let hint = "name it with --app, or go into its directory";
            Err(Hinted::usage(format!("which app is meant? the server has {names}"), hint).into())
        }
    }
}

pub(crate) fn none_in(environment: &EnvironmentName) -> Hinted {
    let message = format!("the server has no app in environment {environment}");
    Hinted::usage(message, "`rung status` lists what it has")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_in_place_of_the_app_file_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rung.toml");
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        let refused = |what: &str| {
            let error = format!("{:#}", find_file(dir.path()).expect_err(what));
            assert!(error.contains("rung.toml: it is not a file"), "{what}: {error}");
        };
        refused("a device");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        refused("a directory");
        std::fs::remove_dir(&file).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        refused("a pipe");
    }

    #[test]
    fn errors_name_the_file_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("rung.toml"), "app = 1").unwrap();
        let found = find_file(dir.path()).unwrap().unwrap();
        let errors = found.parse(&AppName::new("shop").unwrap()).unwrap_err().to_string();
        let path = dir.path().join("rung.toml");
        assert!(errors.contains(&format!("--> {}:1:7", path.display())), "{errors}");
    }

    #[test]
    fn overlays_are_found_beside_the_file_and_errors_name_the_one_they_are_in() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("rung.toml", "app = \"shop\"\n[services.web]\ncommand = \"serve\"\n");
        write("rung.staging.toml", "[services.web]\ninstances = \"two\"\n");
        write("rung.lock", "");
        let found = find_file(dir.path()).unwrap().unwrap();
        assert_eq!(found.text().unwrap().overlays.len(), 1);
        let shop = AppName::new("shop").unwrap();
        assert!(found.parse(&shop).is_ok(), "production has nothing to do with it");
        let errors = found.parse(&AppName::new("shop@staging").unwrap()).unwrap_err().to_string();
        let path = dir.path().join("rung.staging.toml");
        assert!(errors.contains(&format!("--> {}:2:13", path.display())), "{errors}");
    }

    #[test]
    fn the_environment_is_said_by_the_name_or_beside_it() {
        let said = |app: &str, environment: Option<&str>| {
            let environment = environment.map(|name| EnvironmentName::new(name).unwrap());
            in_environment(&AppName::new(app).unwrap(), environment.as_ref()).map(|app| app.to_string())
        };
        assert_eq!(said("shop", None).unwrap(), "shop");
        assert_eq!(said("shop", Some("staging")).unwrap(), "shop@staging");
        assert_eq!(said("shop", Some("production")).unwrap(), "shop");
        assert_eq!(said("shop@staging", None).unwrap(), "shop@staging");
        assert_eq!(said("shop@staging", Some("staging")).unwrap(), "shop@staging");
        assert!(said("shop@staging", Some("production")).is_err(), "one of the two was not heard");
    }

    #[test]
    fn a_directory_says_which_app_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let shop = dir.path().join("My Shop");
        std::fs::create_dir(&shop).unwrap();
        assert_eq!(of_directory(&shop), None, "there is no app file");
        std::fs::write(shop.join("Procfile"), "web: bin/server").unwrap();
        assert_eq!(of_directory(&shop).unwrap().as_str(), "my-shop");
        std::fs::write(shop.join("rung.toml"), "app = \"store\"\nbroken").unwrap();
        assert_eq!(
            of_directory(&shop).unwrap().as_str(),
            "store",
            "rung.toml wins, also with an error elsewhere"
        );
    }
}
