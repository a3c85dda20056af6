//! A team's repository, and its own git.

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::ending;
use crate::rung::Rung;
use crate::said::Said;

/// A directory under git, as a team has it. The directory is the story's.
#[derive(Debug)]
pub struct Repository {
    directory: PathBuf,
}

impl Repository {
    /// Puts what is in `directory` under git, on the branch `main`, with one commit.
    pub fn of(directory: &Path) -> Self {
        let repository = Self { directory: directory.to_owned() };
        repository.git(&["init", "--quiet", "--initial-branch=main"]).succeeds();
        repository.commit("the beginning");
        repository
    }

    /// One that is there already.
    pub fn opened(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Commits everything, also what `.gitignore` names, and answers with its id.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all", "--force"]).succeeds();
        self.git(&["commit", "--quiet", "--allow-empty", "-m", message]).succeeds();
        self.id("HEAD")
    }

    pub fn id(&self, name: &str) -> String {
        self.git(&["rev-parse", name]).succeeds().out.trim().to_owned()
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.directory.join(name);
        std::fs::create_dir_all(path.parent().expect("a file is in a directory")).expect("its directory");
        std::fs::write(&path, content).unwrap_or_else(|error| panic!("writing {name}: {error}"));
    }

    /// A command of git, not yet started, that knows nothing of whoever runs the tests.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(&self.directory).stdin(Stdio::null());
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        command.env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C.UTF-8").env_remove("RUNG_TOKEN");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "Ada").env(format!("GIT_{who}_EMAIL"), "ada@example.com");
        }
        command
    }

    /// # Panics
    /// When git can't be started, or does not end.
    #[track_caller]
    pub fn git(&self, arguments: &[&str]) -> Said {
        ending::run(format!("git {}", arguments.join(" ")), self.command(arguments))
    }

    /// One that reads this from its standard input.
    #[track_caller]
    pub fn git_reading(&self, arguments: &[&str], input: &str) -> Said {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(input.as_bytes()).and_then(|()| file.rewind()).expect("it can be written");
        let mut command = self.command(arguments);
        command.stdin(file);
        ending::run(format!("git {}", arguments.join(" ")), command)
    }

    /// `git push`, with the token in the remote's address.
    pub fn push(&self, rung: &Rung, app: &str, arguments: &[&str]) -> Said {
        let remote = rung.git_remote(app);
        self.git(&[&["push", &remote], arguments].concat())
    }

    /// A push that goes on.
    pub fn pushing(&self, rung: &Rung, app: &str, arguments: &[&str]) -> Child {
        let remote = rung.git_remote(app);
        let mut command = self.command(&[&["push", &remote], arguments].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("git is installed")
    }
}

impl Rung {
    /// Where an app is pushed to, with the token as the password.
    pub fn git_remote(&self, app: &str) -> String {
        format!("http://ada:{}@{}/git/{app}", self.access().token, self.api_address())
    }
}
