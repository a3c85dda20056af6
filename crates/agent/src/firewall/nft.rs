//! Telling the kernel's nftables, by the program that everybody has for it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// `nft` where Debian has it, which is not on everybody's `PATH`.
const NFT: &str = "/usr/sbin/nft";
/// It needs milliseconds; on a machine that is too busy for this an instance starts all the same.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How the tables of all data directories begin.
const PREFIX: &str = "rung_";
/// nftables takes 127 bytes.
const COMMENT_MAX: usize = 120;

#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("nft is not installed: apt-get install nftables")]
    NotInstalled,
    #[error("running nft: {0}")]
    Run(io::Error),
    #[error("nft did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Silent,
    #[error("nft refused the table: {0}")]
    Refused(String),
}

/// What tells this data directory's tables from another's.
#[derive(Debug, Clone)]
pub struct Owner {
    pub name: String,
    /// For people, and for the Rung that finds its tables when this one's directory is gone.
    home: PathBuf,
}

impl Owner {
    /// `tag` is `rung-` and some digits.
    pub fn new(tag: &str, home: &Path) -> Self {
        // Whoever reads it later is in another directory.
        let home = std::path::absolute(home).unwrap_or_else(|_| home.to_owned());
        Self { name: tag.replace('-', "_"), home }
    }

    /// A line of a table. Left out for a path that nftables could misread.
    pub fn comment(&self) -> String {
        let is_plain =
            |home: &&str| home.len() <= COMMENT_MAX && !home.contains(|c: char| c == '"' || c.is_control());
        self.home.to_str().filter(is_plain).map(|home| format!("comment \"{home}\"")).unwrap_or_default()
    }
}

/// Carries a script out, whole or not at all; answers what it prints.
pub async fn nft(script: &str) -> Result<String, NftError> {
    let program = if Path::new(NFT).exists() { NFT } else { "nft" };
    let mut command = Command::new(program);
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = async {
        let mut child = command.kill_on_drop(true).spawn()?;
        let mut stdin = child.stdin.take().expect("it was asked for");
        // It reads everything before it says anything; one that has ended already says why.
        let _ = stdin.write_all(script.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let Output { status, stdout, stderr } = match tokio::time::timeout(ANSWER_WITHIN, run).await {
        Err(_) => return Err(NftError::Silent),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Err(NftError::NotInstalled),
        Ok(Err(error)) => return Err(NftError::Run(error)),
        Ok(Ok(output)) => output,
    };
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&stderr);
    let first = said.lines().map(str::trim).find(|line| !line.is_empty());
    Err(NftError::Refused(first.map_or_else(|| status.to_string(), str::to_owned)))
}

/// All tables that a Rung has made: `inet rung_1a2b3c4d`.
pub async fn tables() -> Result<Vec<String>, NftError> {
    let listed = nft("list tables\n").await?;
    let tables = listed.lines().filter_map(|line| line.trim().strip_prefix("table "));
    let is_ours = |table: &&str| table.split_once(' ').is_some_and(|(_, name)| name.starts_with(PREFIX));
    Ok(tables.filter(is_ours).map(str::to_owned).collect())
}

/// Takes the tables away of a Rung that was killed, and whose data is gone.
pub async fn sweep() -> Result<(), NftError> {
    for table in tables().await? {
        let listed = nft(&format!("list table {table}\n")).await?;
        if home_of(&listed).is_some_and(|home| !home.exists()) {
            nft(&nothing(&table)).await?;
        }
    }
    Ok(())
}

/// The path in a listed table's comment.
pub fn home_of(listed: &str) -> Option<&Path> {
    let line = listed.lines().find_map(|line| line.trim().strip_prefix("comment \""))?;
    Some(Path::new(line.strip_suffix('"')?))
}

/// Whatever was in a table goes, in the same transaction: added first, for what is not there can't be deleted.
pub fn nothing(table: &str) -> String {
    format!("add table {table}\ndelete table {table}\n")
}

/// Nothing at all for an empty set, which nft does not read.
pub fn elements(of: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = of.collect();
    if all.is_empty() { String::new() } else { format!("elements = {{ {} }}", all.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_a_table_is_can_be_read_from_it() {
        let listed = |home: &str| Owner::new("rung-1a2b3c4d", Path::new(home)).comment();
        assert_eq!(home_of(&listed("/var/lib/rung/node")), Some(Path::new("/var/lib/rung/node")));
        for odd in ["/a\"; flush ruleset; \"", "/a\nb", &"/long".repeat(40)] {
            assert_eq!(listed(odd), "", "{odd:?} is told to nftables");
            assert_eq!(home_of(&listed(odd)), None, "{odd:?} was read back");
        }
    }
}
