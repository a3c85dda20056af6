//! What a push moves.

use crate::edge::Hinted;
use crate::render::harmless;

const BRANCHES: &str = "refs/heads/";
const TAGS: &str = "refs/tags/";

/// One line that git gives to a pre-receive hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Where it was; only zeros when it is new.
    pub old: String,
    /// Where it goes; only zeros when it is deleted.
    pub new: String,
    /// `refs/heads/main`.
    pub name: String,
    /// `main`; empty when it is no branch.
    pub branch: String,
}

impl Update {
    pub fn is_new(&self) -> bool {
        is_zero(&self.old)
    }
}

fn is_zero(id: &str) -> bool {
    id.bytes().all(|b| b == b'0')
}

fn is_id(id: &str) -> bool {
    matches!(id.len(), 40 | 64) && id.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Reads `<old> <new> <name>` lines.
pub fn parse(bytes: &[u8]) -> Result<Vec<Update>, Hinted> {
    let wrong =
        || Hinted::failed("git says what nobody understands", "use another version of git on the server");
    let read = |line: &[u8]| {
        let line = String::from_utf8_lossy(line);
        let mut words = line.splitn(3, ' ');
        let (old, new, name) = (words.next()?, words.next()?, words.next()?);
        let branch = name.strip_prefix(BRANCHES).unwrap_or_default();
        let update = Update { old: old.into(), new: new.into(), name: name.into(), branch: branch.into() };
        (is_id(old) && is_id(new)).then_some(update)
    };
    let lines = bytes.split(|&b| b == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| read(line).ok_or_else(wrong)).collect()
}

/// The one branch that a push moves; `None` when it only brings tags.
///
/// # Errors
/// It moves what can't be meant, or more than one branch.
pub fn only_branch(updates: &[Update]) -> Result<Option<&Update>, Hinted> {
    let mut branches = Vec::new();
    for update in updates {
        let name = harmless(&update.name);
        if update.name.starts_with(TAGS) {
            continue;
        }
        if update.branch.is_empty() {
            let message = format!("{name} is neither a branch nor a tag");
            return Err(Hinted::failed(message, "push the branch that is deployed: git push rung main"));
        }
        if is_zero(&update.new) {
            let message = format!("deleting {} would stop nothing", harmless(&update.branch));
            return Err(Hinted::failed(message, "`rung destroy` stops the app and forgets what was pushed"));
        }
        branches.push(update);
    }
    match branches.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(only)),
        several => {
            let names: Vec<_> = several.iter().map(|update| harmless(&update.branch)).collect();
            let message = format!(
                "the push brings {} branches ({}), and a push is one deploy",
                several.len(),
                names.join(", ")
            );
            Err(Hinted::failed(message, "push the branch that is deployed: git push rung main"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "1111111111111111111111111111111111111111";
    const NONE: &str = "0000000000000000000000000000000000000000";

    fn updates(lines: &[(&str, &str, &str)]) -> Vec<Update> {
        let text: String = lines.iter().map(|(old, new, name)| format!("{old} {new} {name}\n")).collect();
        parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn one_branch_is_a_deploy_and_tags_come_along() {
        let pushed = updates(&[(NONE, A, "refs/heads/main"), (NONE, A, "refs/tags/v1")]);
        let head = only_branch(&pushed).unwrap().unwrap();
        assert_eq!(head.branch, "main");
        assert!(head.is_new());
        assert_eq!(only_branch(&updates(&[(NONE, A, "refs/tags/v1")])).unwrap(), None);
    }

    #[test]
    fn what_can_t_be_meant_is_refused_with_the_way_out() {
        let refused = |lines: &[(&str, &str, &str)]| only_branch(&updates(lines)).unwrap_err();
        assert!(refused(&[(A, NONE, "refs/heads/main")]).hint.contains("rung destroy"));
        assert!(refused(&[(NONE, A, "refs/notes/x")]).message.contains("neither a branch nor a tag"));
        let several = refused(&[(NONE, A, "refs/heads/main"), (NONE, A, "refs/heads/$(reboot)")]);
        assert!(several.message.contains("2 branches (main, $(reboot))"), "{several}");
        assert!(parse(b"HEAD").is_err() && parse(b"--exec a refs/heads/x\n").is_err());
    }
}
