//! What git says of a directory: where a release comes from.

use std::path::Path;
use std::process::{Command, Stdio};

use rung_model::{CommitId, Origin};

/// `None` outside of a repository, in one without a commit, and where there is no git.
pub fn origin(dir: &Path) -> Option<Origin> {
    let commit = CommitId::new(ask(dir, &["rev-parse", "HEAD"])?).ok()?;
    let branch = ask(dir, &["symbolic-ref", "--quiet", "--short", "HEAD"]).filter(|name| !name.is_empty());
    // Only what is deployed counts: the app may be one directory of many.
    let changes = ask(dir, &["status", "--porcelain", "--untracked-files=normal", "--", "."])?;
    Some(Origin { commit, branch, dirty: !changes.is_empty() })
}

fn ask(dir: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    // A look must not take a lock that somebody's own command waits for.
    command.arg("-C").arg(dir).args(arguments).env("GIT_OPTIONAL_LOCKS", "0");
    let answer = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(answer.stdout).ok()?;
    answer.status.success().then(|| text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(dir: &Path, arguments: &[&str]) {
        let mut command = Command::new("git");
        command.arg("-C").arg(dir).args(["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]);
        let done = command.args(arguments).output().expect("git is installed");
        assert!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    #[test]
    fn a_directory_says_its_commit_its_branch_and_whether_it_was_changed_since() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(origin(dir), None, "there is no repository");
        git(dir, &["init", "-q", "-b", "trunk"]);
        assert_eq!(origin(dir), None, "there is no commit");
        std::fs::create_dir(dir.join("app")).unwrap();
        std::fs::write(dir.join("app/server"), "one").unwrap();
        git(dir, &["add", "."]);
        git(dir, &["commit", "-qm", "first"]);
        let clean = origin(&dir.join("app")).expect("there is a commit");
        assert_eq!((clean.branch.as_deref(), clean.dirty), (Some("trunk"), false));
        std::fs::write(dir.join("elsewhere"), "").unwrap();
        assert_eq!(origin(&dir.join("app")), Some(clean.clone()), "what is not deployed does not count");
        std::fs::write(dir.join("app/server"), "two").unwrap();
        let dirty = origin(&dir.join("app")).unwrap();
        assert!(dirty.dirty && dirty.commit == clean.commit);
        git(dir, &["checkout", "-q", "--detach"]);
        assert_eq!(origin(dir).unwrap().branch, None);
    }
}
