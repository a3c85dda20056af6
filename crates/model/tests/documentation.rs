//! Whatever the documentation shows of an app file is read as one, without a word of complaint.

use std::path::{Path, PathBuf};

use rung_model::appfile;

/// The pages that may show a part of an app file.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let docs = std::fs::read_dir(root.join("docs")).expect("there is documentation");
    let mut pages: Vec<PathBuf> = docs.map(|entry| entry.expect("it can be listed").path()).collect();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.push(root.join("README.md"));
    pages
}

/// Each with the number of its first line.
fn blocks(page: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in (1..).zip(page.lines()) {
        match (&mut open, line) {
            (None, "```toml") => open = Some((number + 1, String::new())),
            (Some(_), "```") => blocks.extend(open.take()),
            (Some((_, text)), line) => *text += &format!("{line}\n"),
            (None, _) => {}
        }
    }
    blocks
}

/// With what a page leaves out because it has just been said.
fn completed(shown: &str) -> String {
    let mut text = String::new();
    if !shown.contains("app = ") {
        text += "app = \"shop\"\n";
    }
    match shown {
        canary if canary.starts_with("steps") => text += "[deploy]\nstrategy = \"canary\"\n",
        job if job.starts_with("retries") => text += "[jobs.report]\ncommand = \"bin/report\"\n",
        _ => {}
    }
    text += shown;
    for service in ["web", "api", "next"] {
        let is_named = service == "web" && !shown.contains("[services.")
            || shown.contains(&format!("service = {service:?}"));
        if is_named && !shown.contains(&format!("[services.{service}]")) {
            text += &format!("[services.{service}]\ncommand = \"bin/{service}\"\n");
        }
    }
    if shown.contains("uploads =") && !shown.contains("[volumes.uploads]") {
        text += "[volumes.uploads]\n";
    }
    text
}

#[test]
fn every_app_file_of_the_documentation_is_one() {
    let mut count = 0;
    for path in pages() {
        let page = std::fs::read_to_string(&path).expect("a page is a text");
        for (line, shown) in blocks(&page) {
            let text = completed(&shown);
            if let Err(errors) = appfile::parse("rung.toml", &text) {
                panic!("{}:{line} shows what no app file may hold:\n{errors}\nin\n{text}", path.display());
            }
            count += 1;
        }
    }
    assert!(count > 20, "only {count} were found");
}
