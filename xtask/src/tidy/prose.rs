//! Rules of documentation, and of what must not be written anywhere.

use std::path::{Component, Path, PathBuf};

use super::{File, Violation, lines_where};

/// One page.
const DECISION_LINES_MAX: usize = 60;

pub fn no_machine_is_named(files: &[File]) -> Vec<Violation> {
    // Spelled in pieces, so that this file keeps its own rule.
    let paths = [concat!("/ro", "ot/"), concat!("/home/", "runner"), concat!("/Us", "ers/")];
    files
        .iter()
        .flat_map(|file| {
            lines_where(
                file,
                "a path of one machine",
                "the repository is built and run on other machines too",
                |line| {
                    paths.iter().any(|path| {
                        line.match_indices(path).any(|(at, _)| {
                            // In an address or below another directory it is not a path of a machine.
                            !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}".contains(c))
                        })
                    })
                },
            )
        })
        .collect()
}

pub fn decisions_are_short(files: &[File]) -> Vec<Violation> {
    files
        .iter()
        .filter(|file| file.path.starts_with("docs/decisions/") && file.path.ends_with(".md"))
        .filter_map(|file| {
            let lines = file.text.lines().count();
            let what = if lines > DECISION_LINES_MAX {
                format!("{lines} lines")
            } else if !file.text.starts_with("# ") {
                "no title".to_owned()
            } else {
                return None;
            };
            Some(Violation {
                path: file.path.clone(),
                line: 1,
                what,
                why: "a decision is one page with a title: context, choice, cost",
            })
        })
        .collect()
}

pub fn decisions_are_counted(files: &[File]) -> Vec<Violation> {
    let mut taken = std::collections::BTreeMap::new();
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        let Some(name) = file.path.strip_prefix("docs/decisions/") else { continue };
        let number = name.split('-').next().unwrap_or_default();
        let what = if let Some(other) = taken.insert(number, name) {
            format!("{other} has this number, too")
        } else if !file.text.starts_with(&format!("# {}. ", number.trim_start_matches('0'))) {
            "its title begins with another number".to_owned()
        } else {
            continue;
        };
        let why = "decisions are spoken of by their numbers";
        violations.push(Violation { path: file.path.clone(), line: 1, what, why });
    }
    violations
}

pub fn links_lead_somewhere(files: &[File]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        for (index, line) in file.text.lines().enumerate() {
            for target in targets(line) {
                if !leads_somewhere(&file.path, target, files) {
                    violations.push(Violation {
                        path: file.path.clone(),
                        line: index + 1,
                        what: format!("the link to {target} leads nowhere"),
                        why: "what is promised can be looked up",
                    });
                }
            }
        }
    }
    violations
}

/// The targets of `[text](target)` that are files of the repository.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("](").filter_map(|(at, _)| {
        let target = line[at + 2..].split([')', ' ']).next()?;
        let target = target.split('#').next()?;
        (!target.is_empty() && !target.contains("://") && !target.starts_with("mailto:")).then_some(target)
    })
}

fn leads_somewhere(from: &str, target: &str, files: &[File]) -> bool {
    let mut path = PathBuf::new();
    let start = if target.starts_with('/') {
        Path::new("")
    } else {
        Path::new(from).parent().unwrap_or(Path::new(""))
    };
    for part in start.join(target.trim_start_matches('/')).components() {
        match part {
            Component::ParentDir if !path.pop() => return false,
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    files.iter().any(|file| Path::new(&file.path).starts_with(&path))
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    #[test]
    fn a_link_to_a_missing_file_is_found() {
        let files = [
            file(
                "docs/a.md",
                "[b](b.md) [up](../README.md#x) [dir](../docs) [out](https://x.example/y) [gone](../gone.md)\n",
            ),
            file("docs/b.md", ""),
            file("README.md", ""),
        ];
        let found = links_lead_somewhere(&files);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].what.contains("gone.md"));
    }

    #[test]
    fn paths_of_one_machine_are_found_and_urls_are_not() {
        let path = concat!("cd /ro", "ot/main\nsee https://x.example/ro", "ot/1 and $HOME/ro", "ot/x\n");
        let found = no_machine_is_named(&[file("README.md", path)]);
        assert_eq!(found.iter().map(|v| v.line).collect::<Vec<_>>(), [1], "{found:?}");
    }

    #[test]
    fn a_number_that_two_decisions_have_is_found() {
        let files = [
            file("docs/decisions/0001-a.md", "# 1. A\n"),
            file("docs/decisions/0001-b.md", "# 1. B\n"),
            file("docs/decisions/0010-c.md", "# 9. C\n"),
        ];
        let found = decisions_are_counted(&files);
        assert_eq!(
            found.iter().map(|v| v.path.as_str()).collect::<Vec<_>>(),
            ["docs/decisions/0001-b.md", "docs/decisions/0010-c.md"]
        );
    }

    #[test]
    fn a_long_decision_is_found() {
        let long = "# T\n".repeat(61);
        assert_eq!(decisions_are_short(&[file("docs/decisions/1.md", &long)]).len(), 1);
    }
}
