//! The files of a commit, judged before one of them is written.

use std::io::BufReader;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::edge::Hinted;
use crate::render::{bytes, harmless};

/// What git's large hosts take, too; more is data.
const FILE_MAX_BYTES: u64 = 100_000_000;

const TREE_MAX_BYTES: u64 = 2_000_000_000;

/// A tree of trees that repeat is endless with few objects.
const ENTRIES_MAX: usize = 200_000;

/// How many files are named; who has more sees what kind they are.
const NAMED: usize = 5;

/// Files that the server reads itself. As links they would lead to files of the server.
const READ_HERE: [&str; 3] = ["Procfile", "app.json", ".rungignore"];

#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    submodules: Vec<String>,
    links: Vec<String>,
    large: Vec<(String, u64)>,
    bytes: u64,
}

/// Reads `git ls-tree -r -t -l -z` and refuses what can't be deployed.
pub fn judge(mut listing: Command) -> anyhow::Result<()> {
    let mut child = listing.stdout(Stdio::piped()).spawn().context("starting git")?;
    let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
    let found = gather(stdout);
    // It may have more to say than was read.
    let _ = child.kill();
    child.wait().context("waiting for git")?;
    refuse(&found?)?;
    Ok(())
}

fn gather(listing: impl std::io::BufRead) -> anyhow::Result<Findings> {
    let mut listing = listing;
    let mut findings = Findings::default();
    let mut entry = Vec::new();
    for count in 0.. {
        entry.clear();
        if listing.read_until(0, &mut entry).context("reading what git lists")? == 0 {
            break;
        }
        if count >= ENTRIES_MAX {
            let message = format!("what was pushed has more than {ENTRIES_MAX} files and directories");
            return Err(Hinted::failed(message, "leave out of git what a build makes anew").into());
        }
        note(&entry, &mut findings).context("git lists what nobody understands")?;
    }
    Ok(findings)
}

/// `100644 blob <id>     123\tpath\0`
fn note(entry: &[u8], findings: &mut Findings) -> Option<()> {
    let entry = entry.strip_suffix(b"\0").unwrap_or(entry);
    let tab = entry.iter().position(|&b| b == b'\t')?;
    let facts = std::str::from_utf8(&entry[..tab]).ok()?;
    let path = String::from_utf8_lossy(&entry[tab + 1..]).into_owned();
    let mut words = facts.split_ascii_whitespace();
    let (mode, _kind, _id, size) = (words.next()?, words.next()?, words.next()?, words.next()?);
    match mode {
        "160000" => findings.submodules.push(path),
        "120000" if is_read_here(&path) => findings.links.push(path),
        "040000" => {}
        _ => {
            let size: u64 = size.parse().ok()?;
            findings.bytes = findings.bytes.saturating_add(size);
            if size > FILE_MAX_BYTES {
                findings.large.push((path, size));
            }
        }
    }
    Some(())
}

fn is_read_here(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    READ_HERE.contains(&name) || (name.starts_with("rung.") && name.ends_with(".toml"))
}

fn refuse(found: &Findings) -> Result<(), Hinted> {
    if !found.submodules.is_empty() {
        let names = named(found.submodules.iter().map(|path| harmless(path)));
        return Err(Hinted::failed(
            format!("{names}: a submodule is a link to another repository, and Rung fetches none"),
            "make it part of this one (git rm --cached PATH, then git add PATH, or git subtree), or deploy the directory \
             with `rung deploy`",
        ));
    }
    if !found.links.is_empty() {
        let names = named(found.links.iter().map(|path| harmless(path)));
        return Err(Hinted::failed(
            format!("{names}: a link, and Rung reads it only as a file"),
            "commit the file itself",
        ));
    }
    if !found.large.is_empty() {
        let show = |(path, size): &(String, u64)| format!("{} ({})", harmless(path), bytes(*size));
        return Err(Hinted::failed(
            format!("{}: larger than {}", named(found.large.iter().map(show)), bytes(FILE_MAX_BYTES)),
            "keep data in a volume, and leave out of git what a build makes anew; the commits that hold it must go, too \
             (git rebase), or the push stays as large",
        ));
    }
    if found.bytes > TREE_MAX_BYTES {
        return Err(Hinted::failed(
            format!(
                "what was pushed holds {}, and {} is the most",
                bytes(found.bytes),
                bytes(TREE_MAX_BYTES)
            ),
            "keep data in a volume, and leave out of git what a build makes anew",
        ));
    }
    Ok(())
}

fn named(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let listed = names.take(NAMED).collect::<Vec<_>>().join(", ");
    if more == 0 { listed } else { format!("{listed} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(entries: &[&str]) -> Result<(), String> {
        let listing = entries.join("\0") + "\0";
        let found = gather(listing.as_bytes()).map_err(|error| error.to_string())?;
        refuse(&found).map_err(|refused| refused.message)
    }

    #[test]
    fn ordinary_files_and_links_pass() {
        let entries = [
            "040000 tree aa       -\tbin",
            "100755 blob aa     123\tbin/$(touch x); server",
            "120000 blob aa       6\tcurrent",
        ];
        assert_eq!(judged(&entries), Ok(()));
    }

    #[test]
    fn what_can_t_be_deployed_is_named() {
        let submodule = judged(&["160000 commit aa       -\tvendor/lib"]).unwrap_err();
        assert!(submodule.starts_with("vendor/lib: a submodule"), "{submodule}");
        for name in ["rung.toml", "rung.staging.toml", "Procfile", "sub/.rungignore"] {
            let link = judged(&[&format!("120000 blob aa 11\t{name}")]).unwrap_err();
            assert!(link.starts_with(&format!("{name}: a link")), "{link}");
        }
        let large = judged(&["100644 blob aa 200000000\tdump.sql"]).unwrap_err();
        assert!(large.starts_with("dump.sql (200 MB): larger than 100 MB"), "{large}");
        let files: Vec<String> = (0..21).map(|n| format!("100644 blob aa 99000000\tf{n}")).collect();
        let whole = judged(&files.iter().map(String::as_str).collect::<Vec<_>>()).unwrap_err();
        assert!(whole.contains("and 2.0 GB is the most"), "{whole}");
        assert!(judged(&["nonsense"]).is_err());
    }

    #[test]
    fn a_tree_without_end_is_not_read_to_its_end() {
        let entry = b"040000 tree aa       -\td\0";
        let endless = BufReader::new(EndlessReader { entry, at: 0 });
        let refused = gather(endless).unwrap_err().to_string();
        assert!(refused.contains("more than 200000 files"), "{refused}");
    }

    struct EndlessReader {
        entry: &'static [u8],
        at: usize,
    }

    impl std::io::Read for EndlessReader {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            for byte in buffer.iter_mut() {
                *byte = self.entry[self.at % self.entry.len()];
                self.at += 1;
            }
            Ok(buffer.len())
        }
    }
}
