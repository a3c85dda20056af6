//! What tells two releases apart: pure functions of the two.

use std::collections::{BTreeMap, BTreeSet};

use rung_api::wire::{ArtifactDiff, Change, FileChange, SecretChange, ValueChange};
use rung_artifact::Listed;
use rung_model::appfile::values::{show_duration, show_size};
use rung_model::{AppFile, Digest, Release};
use serde_json::Value;

/// More than this many files nobody reads.
const FILES_MAX: usize = 1000;

/// The files of a tree by their paths.
pub(crate) type Tree = BTreeMap<Vec<u8>, Listed>;

/// `trees`: of both artifacts, or why there is none to compare.
pub(crate) fn artifacts(from: &Digest, to: &Digest, trees: Result<(Tree, Tree), String>) -> ArtifactDiff {
    let (from, to) = (from.clone(), to.clone());
    let (before, after) = match trees {
        Ok(trees) => trees,
        Err(unknown) => {
            return ArtifactDiff { from, to, files: Vec::new(), omitted: 0, unknown: Some(unknown) };
        }
    };
    let paths: BTreeSet<&Vec<u8>> = before.keys().chain(after.keys()).collect();
    let mut files: Vec<FileChange> =
        paths.into_iter().filter_map(|path| file_change(path, before.get(path), after.get(path))).collect();
    let omitted = files.len().saturating_sub(FILES_MAX) as u64;
    files.truncate(FILES_MAX);
    ArtifactDiff { from, to, files, omitted, unknown: None }
}

fn file_change(path: &[u8], before: Option<&Listed>, after: Option<&Listed>) -> Option<FileChange> {
    let change = match (before, after) {
        (Some(before), Some(after)) if before == after => return None,
        (Some(_), Some(_)) => Change::Changed,
        (None, _) => Change::Added,
        (_, None) => Change::Removed,
    };
    let path = String::from_utf8_lossy(path).into_owned();
    Some(FileChange {
        path,
        change,
        bytes_before: before.map(Listed::bytes),
        bytes_after: after.map(Listed::bytes),
    })
}

/// What differs in the meaning of two app files: `services.web.instances` from 2 to 3.
pub(crate) fn files(before: &AppFile, after: &AppFile) -> Vec<ValueChange> {
    changes(&leaves_of(before), &leaves_of(after))
}

pub(crate) fn config(before: &Release, after: &Release) -> Vec<ValueChange> {
    changes(&before.config, &after.config)
}

pub(crate) fn secrets(before: &Release, after: &Release) -> Vec<SecretChange> {
    let names: BTreeSet<_> = before.secrets.keys().chain(after.secrets.keys()).collect();
    let change = |name: &rung_model::SecretName| {
        let (before, after) = (before.secrets.get(name).copied(), after.secrets.get(name).copied());
        (before != after).then(|| SecretChange { name: name.clone(), before, after })
    };
    names.into_iter().filter_map(change).collect()
}

fn changes(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<ValueChange> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let change = |name: &String| {
        let (before, after) = (before.get(name).cloned(), after.get(name).cloned());
        (before != after).then(|| ValueChange { name: name.clone(), before, after })
    };
    names.into_iter().filter_map(change).collect()
}

fn leaves_of(file: &AppFile) -> BTreeMap<String, String> {
    let mut leaves = BTreeMap::new();
    let text = serde_json::to_vec(file).expect("documents of the model serialize");
    let value: Value = serde_json::from_slice(&text).expect("it was just written");
    gather("", &value, &mut leaves);
    leaves
}

/// Values by their paths, as the app file writes them.
fn gather(path: &str, value: &Value, leaves: &mut BTreeMap<String, String>) {
    match value {
        Value::Null => {}
        Value::Object(entries) => {
            for (key, value) in entries {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                gather(&path, value, leaves);
            }
        }
        Value::Array(elements) if elements.is_empty() => {}
        other => {
            let (name, text) = written(path, other);
            leaves.insert(name, text);
        }
    }
}

/// `drain_ms` of 30000 is `drain` of `30s`; a variable of the environment is what it is.
fn written(path: &str, value: &Value) -> (String, String) {
    let number = value.as_u64().filter(|_| !path.starts_with("env."));
    if let (Some(name), Some(ms)) = (path.strip_suffix("_ms"), number) {
        return (name.to_owned(), show_duration(std::time::Duration::from_millis(ms)));
    }
    if let (Some(name), Some(bytes)) = (path.strip_suffix("_bytes"), number) {
        return (name.to_owned(), show_size(bytes));
    }
    if let (Some(name), Some(millis)) = (path.strip_suffix("_millis"), number) {
        return (name.to_owned(), (millis as f64 / 1000.0).to_string());
    }
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    (path.to_owned(), text)
}

#[cfg(test)]
mod tests {
    use rung_model::appfile;

    use super::*;

    fn file(more: &str) -> AppFile {
        let text = format!("app = \"shop\"\n[services.web]\ncommand = \"serve\"\n{more}");
        appfile::parse("rung.toml", text).unwrap()
    }

    #[test]
    fn changes_of_an_app_file_read_as_it_is_written() {
        let before = file("drain = \"5s\"\nmemory = \"512MB\"\ncpu = 0.5\n[env]\nA = 1\n");
        let after = file("instances = 3\ndrain = \"1m\"\nmemory = \"1GB\"\n[env]\nB_ms = 2\n");
        let told: Vec<String> = files(&before, &after)
            .into_iter()
            .map(|change| {
                let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".into());
                format!("{} {} {}", change.name, or_none(change.before), or_none(change.after))
            })
            .collect();
        assert_eq!(
            told,
            [
                "env.A 1 -",
                "env.B_ms - 2",
                "services.web.cpu 0.5 -",
                "services.web.drain 5s 1m",
                "services.web.instances 1 3",
                "services.web.memory 512MB 1GB",
            ]
        );
        assert!(files(&before, &before).is_empty());
    }

    #[test]
    fn files_of_two_trees_are_compared_by_their_paths() {
        let listed = |bytes, byte| Listed::File { executable: false, bytes, content: [byte; 32] };
        let tree = |files: &[(&str, Listed)]| -> Tree {
            files.iter().map(|(path, listed)| (path.as_bytes().to_vec(), listed.clone())).collect()
        };
        let before = tree(&[("a", listed(1, 1)), ("b", listed(2, 2)), ("c", listed(3, 3))]);
        let after = tree(&[("a", listed(1, 1)), ("b", listed(2, 9)), ("d", listed(4, 4))]);
        let digest = Digest::new(format!("sha256:{}", "0".repeat(64))).unwrap();
        let diff = artifacts(&digest, &digest, Ok((before, after)));
        let told: Vec<(&str, Change)> =
            diff.files.iter().map(|file| (file.path.as_str(), file.change)).collect();
        assert_eq!(told, [("b", Change::Changed), ("c", Change::Removed), ("d", Change::Added)]);
    }
}
