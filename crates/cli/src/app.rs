//! Which app is meant, and what its directory says.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rung_api::Client;
use rung_model::AppName;
use rung_model::appfile::{self, AppFile, AppFileErrors};

use crate::edge::Hinted;

/// The app file of a directory, as it was found.
#[derive(Debug, Clone)]
pub struct FoundFile {
    /// `rung.toml` or `Procfile`.
    pub name: &'static str,
    /// With the directory as it was named.
    pub path: PathBuf,
    pub bytes: Vec<u8>,
    /// What a `Procfile` leaves to its directory.
    pub directory_name: Option<AppName>,
}

impl FoundFile {
    /// The meaning of the file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(&self, app: &AppName) -> Result<AppFile, AppFileErrors> {
        let path = self.path.display().to_string();
        appfile::parse_as(self.name, app, &self.bytes).map_err(|errors| errors.named(&path))
    }

    /// The app's name that the file says, or leaves to its directory.
    pub fn app(&self) -> Option<AppName> {
        match self.name {
            appfile::PROCFILE => self.directory_name.clone(),
            _ => appfile::name_of(&String::from_utf8_lossy(&self.bytes)),
        }
    }
}

/// Looks for `rung.toml`, then for a `Procfile`.
///
/// # Errors
/// One is there and can't be read.
pub fn find_file(dir: &Path) -> anyhow::Result<Option<FoundFile>> {
    for name in [appfile::FILE_NAME, appfile::PROCFILE] {
        let path = dir.join(name);
        match read_whole(&path) {
            Ok(bytes) => {
                let path = path.strip_prefix(".").unwrap_or(&path).to_owned();
                return Ok(Some(FoundFile { name, path, bytes, directory_name: name_of_directory(dir) }));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }
    Ok(None)
}

/// Of a pipe, a device or a directory nothing is read: it might never end.
fn read_whole(path: &Path) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a file; an app file is a plain text file"));
    }
    std::fs::read(path)
}

fn name_of_directory(dir: &Path) -> Option<AppName> {
    let whole: PathBuf = dir.canonicalize().ok()?;
    AppName::new(appfile::slug(&whole.file_name()?.to_string_lossy())).ok()
}

/// The app that this directory is, if it is one.
pub fn of_directory(dir: &Path) -> Option<AppName> {
    find_file(dir).ok().flatten()?.app()
}

/// The app that is meant: what was said, else the directory's, else the only one on the server.
///
/// # Errors
/// Nothing says which of several.
pub async fn meant(said: Option<&AppName>, client: &Client) -> anyhow::Result<AppName> {
    let here = || of_directory(Path::new("."));
    if let Some(app) = said.cloned().or_else(here) {
        return Ok(app);
    }
    let mut apps: Vec<AppName> = client.apps().await?.into_iter().map(|status| status.app).collect();
    match apps.len() {
        0 => Err(Hinted::usage("the server has no app yet", "deploy one with `rung deploy DIR`").into()),
        1 => Ok(apps.remove(0)),
        _ => {
            let names = apps.iter().map(|app| app.as_str()).collect::<Vec<_>>().join(", ");
            let hint = "name it with --app, or go into its directory";
            Err(Hinted::usage(format!("which app is meant? the server has {names}"), hint).into())
        }
    }
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
