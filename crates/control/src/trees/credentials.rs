//! Who this server is to an object store. Never an argument: other users of the machine read those.
//!
//! Of these the first that is there: systemd's credential `rung-artifacts`, the file `artifacts.credentials` in the data
//! directory, the environment. Both files hold the variables of the environment, one a line; they are read with each
//! request, so keys are replaced without a restart.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

pub const CREDENTIAL: &str = "rung-artifacts";
const FILE: &str = "artifacts.credentials";

const KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET: &str = "AWS_SECRET_ACCESS_KEY";
const TOKEN: &str = "AWS_SESSION_TOKEN";

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error(
        "there are no credentials for it: {KEY_ID} and {SECRET} are neither in the environment nor in {file}"
    )]
    None { file: PathBuf },
    #[error("reading the credentials in {file}")]
    Read { file: PathBuf, source: io::Error },
    #[error("{file} holds secrets and others may read it; chmod 600 {file}")]
    Open { file: PathBuf },
    #[error("{file} has no line {name}=…")]
    Missing { file: PathBuf, name: &'static str },
}

/// Where credentials are found.
pub(super) enum Source {
    File(PathBuf),
    Environment(Arc<AwsCredential>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(file) => f.debug_tuple("File").field(file).finish(),
            Self::Environment(_) => f.write_str("Environment"),
        }
    }
}

impl Source {
    /// # Errors
    /// There are none, or what is there can't be used.
    pub fn find(
        data: &Path,
        systemd: Option<&Path>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, CredentialsError> {
        let own = data.join(FILE);
        let files = [systemd.map(|directory| directory.join(CREDENTIAL)), Some(own.clone())];
        if let Some(file) = files.into_iter().flatten().find(|file| file.exists()) {
            let found = Self::File(file);
            found.read()?;
            return Ok(found);
        }
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        match (variable(KEY_ID), variable(SECRET)) {
            (Some(key_id), Some(secret_key)) => {
                let token = variable(TOKEN);
                Ok(Self::Environment(Arc::new(AwsCredential { key_id, secret_key, token })))
            }
            _ => Err(CredentialsError::None { file: own }),
        }
    }

    /// Where to put other ones.
    pub fn shown(&self) -> String {
        match self {
            Self::File(file) => format!("{}, which is read anew with each request", file.display()),
            Self::Environment(_) => format!("{KEY_ID} and {SECRET} of the environment, and start rung again"),
        }
    }

    fn read(&self) -> Result<Arc<AwsCredential>, CredentialsError> {
        match self {
            Self::File(file) => read_file(file).map(Arc::new),
            Self::Environment(found) => Ok(found.clone()),
        }
    }
}

fn read_file(file: &Path) -> Result<AwsCredential, CredentialsError> {
    let failed = |source| CredentialsError::Read { file: file.to_owned(), source };
    let mode = std::fs::metadata(file).map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(CredentialsError::Open { file: file.to_owned() });
    }
    let text = std::fs::read_to_string(file).map_err(failed)?;
    let value = |wanted: &str| {
        let lines = text.lines().map(|line| line.trim().trim_start_matches("export "));
        let mut pairs = lines.filter_map(|line| line.split_once('='));
        let (_, value) = pairs.find(|(name, _)| name.trim() == wanted)?;
        let value = value.trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.to_owned())
    };
    let required = |name| value(name).ok_or(CredentialsError::Missing { file: file.to_owned(), name });
    Ok(AwsCredential { key_id: required(KEY_ID)?, secret_key: required(SECRET)?, token: value(TOKEN) })
}

#[async_trait::async_trait]
impl CredentialProvider for Source {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.read().map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    fn nothing(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn systemds_credential_comes_before_the_file_and_the_file_before_the_environment() {
        let directory = tempfile::tempdir().unwrap();
        let (data, systemd) = (directory.path().join("data"), directory.path().join("systemd"));
        let write = |file: &Path, id: &str| {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("# ours\n{KEY_ID}={id}\nexport {SECRET}=\"of {id}\"\n")).unwrap();
            fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
        };
        let variables = |name: &str| (name != TOKEN).then(|| format!("environment's {name}"));
        let find = || Source::find(&data, Some(&systemd), variables).unwrap().read().unwrap();
        assert_eq!(find().key_id, format!("environment's {KEY_ID}"));
        write(&data.join(FILE), "file");
        assert_eq!((find().key_id.as_str(), find().secret_key.as_str()), ("file", "of file"));
        write(&systemd.join(CREDENTIAL), "systemd");
        assert_eq!(find().key_id, "systemd");
        let kept = Source::find(&data, None, nothing).unwrap();
        write(&data.join(FILE), "replaced");
        assert_eq!(kept.read().unwrap().key_id, "replaced", "keys are not replaced without a restart");
    }

    #[test]
    fn credentials_that_are_missing_or_open_to_others_are_refused_with_the_way_out() {
        let data = tempfile::tempdir().unwrap();
        let refused = Source::find(data.path(), None, nothing).unwrap_err().to_string();
        assert!(refused.contains(KEY_ID) && refused.contains("artifacts.credentials"), "{refused}");
        let file = data.path().join(FILE);
        fs::write(&file, format!("{KEY_ID}=a\n{SECRET}=s3cret\n")).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        let refused = Source::find(data.path(), None, nothing).unwrap_err().to_string();
        assert!(refused.contains("chmod 600"), "{refused}");
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        assert!(!format!("{:?}", Source::find(data.path(), None, nothing).unwrap()).contains("s3cret"));
        fs::write(&file, format!("{KEY_ID}=a\n")).unwrap();
        let refused = Source::find(data.path(), None, nothing).unwrap_err().to_string();
        assert!(refused.contains(SECRET), "{refused}");
    }
}
