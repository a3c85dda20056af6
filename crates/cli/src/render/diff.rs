//! `rung diff`.

use rung_api::wire::{ArtifactDiff, Change, FileChange, ReleaseDiff, ValueChange};

use super::paint::Paint;
use super::{bytes, count, harmless};

/// A value that is longer is cut; `--json` has all of it.
const VALUE_MAX: usize = 80;

pub fn render(diff: &ReleaseDiff, paint: Paint) -> String {
    let mut out = vec![paint.bold(&format!("{} against {}", diff.to, diff.from))];
    artifact(&diff.artifact, paint, &mut out);
    section("app file", diff.file.iter().map(|change| value(change, paint)).collect(), paint, &mut out);
    section("config", diff.config.iter().map(|change| value(change, paint)).collect(), paint, &mut out);
    let version = |version: Option<u64>| version.map(|version| format!("version {version}"));
    let secrets = diff.secrets.iter().map(|change| {
        let (before, after) = (version(change.before), version(change.after));
        value(&ValueChange { name: change.name.to_string(), before, after }, paint)
    });
    section("secrets", secrets.collect(), paint, &mut out);
    if out.len() == 1 {
        out.push("  they are the same".to_owned());
    }
    out.join("\n")
}

fn section(name: &str, lines: Vec<String>, paint: Paint, out: &mut Vec<String>) {
    if !lines.is_empty() {
        out.push(paint.dim(name));
        out.extend(lines);
    }
}

fn artifact(diff: &ArtifactDiff, paint: Paint, out: &mut Vec<String>) {
    if diff.from == diff.to {
        return;
    }
    out.push(paint.dim("files"));
    if let Some(unknown) = &diff.unknown {
        out.push(format!("  they are not the same, and which can't be told: {}", harmless(unknown)));
        return;
    }
    out.extend(diff.files.iter().map(|file| file_line(file, paint)));
    if diff.files.is_empty() {
        out.push("  only directories differ".to_owned());
    }
    if diff.omitted > 0 {
        out.push(format!("  and {} more", count(diff.omitted, "file")));
    }
}

fn file_line(file: &FileChange, paint: Paint) -> String {
    let FileChange { path, change, bytes_before, bytes_after } = file;
    let size = |size: &Option<u64>| size.map(bytes).unwrap_or_default();
    let path = harmless(path);
    match change {
        Change::Added => paint.good(&format!("  + {path}  {}", size(bytes_after))),
        Change::Removed => paint.bad(&format!("  - {path}")),
        Change::Changed if bytes_before == bytes_after => paint.warning(&format!("  ~ {path}")),
        Change::Changed => {
            paint.warning(&format!("  ~ {path}  {} -> {}", size(bytes_before), size(bytes_after)))
        }
    }
}

fn value(change: &ValueChange, paint: Paint) -> String {
    let name = harmless(&change.name);
    match (&change.before, &change.after) {
        (Some(before), Some(after)) => {
            paint.warning(&format!("  ~ {name}: {} -> {}", short(before), short(after)))
        }
        (None, Some(after)) => paint.good(&format!("  + {name}: {}", short(after))),
        (before, None) => paint.bad(&format!("  - {name}: {}", short(before.as_deref().unwrap_or_default()))),
    }
}

fn short(value: &str) -> String {
    let mut text: String = harmless(value).chars().take(VALUE_MAX).collect();
    if value.chars().nth(VALUE_MAX).is_some() {
        text.push('…');
    }
    text
}
