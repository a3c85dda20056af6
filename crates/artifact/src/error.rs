//! What can go wrong, named by the path it went wrong with.

use std::io;
use std::path::PathBuf;

use rung_model::Digest;

/// A tree was not packed (or its digest not computed). What was written to the output by then is useless.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("can't {act} {path}")]
    Read { act: &'static str, path: PathBuf, source: io::Error },
    #[error("can't walk {path}")]
    Walk { path: PathBuf, source: ignore::Error },
    #[error("{path} is not a directory")]
    NotADirectory { path: PathBuf },
    #[error("{path} is a {kind}, which an artifact can't hold; delete it, or name it in .rungignore")]
    Special { path: PathBuf, kind: &'static str },
    #[error(
        "{path} links to {target}, outside the directory; link relatively to something inside, or name it in .rungignore"
    )]
    LinkEscapes { path: PathBuf, target: PathBuf },
    #[error(
        "{path} is setuid or setgid, which instances can't use; remove that with `chmod ug-s`, or name it in .rungignore"
    )]
    Privileged { path: PathBuf },
    #[error("{path} changed while it was being read; deploy again when nothing writes to it")]
    Changed { path: PathBuf },
    #[error(
        "{path} holds {}, and {} is the most that can be deployed; {largest} alone has {}: name what is not needed in \
         .rungignore, and keep data in a volume",
        gigabytes(*bytes), gigabytes(*limit), gigabytes(*of_largest)
    )]
    TooLarge { path: PathBuf, bytes: u64, limit: u64, largest: PathBuf, of_largest: u64 },
    #[error(
        "{path} holds {entries} files and directories, and {limit} are the most that can be deployed; {largest} alone has \
         {of_largest}: name what is not needed in .rungignore, and keep data in a volume"
    )]
    TooManyEntries { path: PathBuf, entries: u64, limit: u64, largest: PathBuf, of_largest: u64 },
    #[error("can't write the archive")]
    Write { source: io::Error },
    /// Two or more; each is one of the above.
    #[error("{} things in it can't be packed:{}", problems.len(), listed(problems))]
    Several { problems: Vec<PackError> },
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// So many problems are told at a time; the rest is counted.
const LISTED_MAX: usize = 20;

/// A line each, with its cause.
fn listed(problems: &[PackError]) -> String {
    use std::fmt::Write;
    let mut lines = String::new();
    for problem in problems.iter().take(LISTED_MAX) {
        let cause = std::error::Error::source(problem).map(|cause| format!(": {cause}"));
        write!(lines, "\n  {problem}{}", cause.unwrap_or_default()).expect("writing to a string succeeds");
    }
    if problems.len() > LISTED_MAX {
        write!(lines, "\n  and {} more", problems.len() - LISTED_MAX).expect("writing to a string succeeds");
    }
    lines
}

/// An archive was refused or could not be written to disk. Nothing of it was left behind.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("can't read the archive")]
    Read { source: io::Error },
    #[error("archive ends too early; send it again")]
    Truncated,
    #[error("archive is not one that rung packs: {why}; pack it with `rung deploy`")]
    Malformed { why: &'static str },
    #[error("archive refused: path {path} {why}")]
    Path { path: PathBuf, why: &'static str },
    #[error("archive refused: {path} is {kind}; only files, directories and symbolic links are taken")]
    Kind { path: PathBuf, kind: &'static str },
    #[error("archive refused: {path} is setuid or setgid")]
    Privileged { path: PathBuf },
    #[error("archive refused: {path} links to {target}, outside the tree")]
    LinkEscapes { path: PathBuf, target: PathBuf },
    #[error("archive refused: {path} occurs twice")]
    Duplicate { path: PathBuf },
    #[error("archive refused: it has more than {limit} entries")]
    TooManyEntries { limit: u64 },
    #[error("archive refused: it unpacks to more than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("archive has digest {found}, not {expected}; send it again")]
    Mismatch { expected: Digest, found: Digest },
    #[error("{path} exists already; nothing was unpacked over it")]
    Exists { path: PathBuf },
    #[error("can't {act} {path}")]
    Write { act: &'static str, path: PathBuf, source: io::Error },
}
