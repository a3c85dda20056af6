//! Rules of Rust sources: names, sizes, tests.

use super::{File, Violation, lines_where};

/// What reads in one sitting, at most.
const LINES_MAX: usize = 800;

const EMPTY_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "common", "manager", "misc"];

fn rust(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|file| file.path.ends_with(".rs"))
}

pub fn names_say_something(files: &[File]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in rust(files) {
        let mut parts: Vec<&str> = file.path.trim_end_matches(".rs").split('/').collect();
        if parts.last() == Some(&"mod") {
            violations.push(Violation {
                path: file.path.clone(),
                line: 1,
                what: "a file named mod.rs".into(),
                why: "a file is its main noun: `drain.rs`, with `drain/` when it grows",
            });
            parts.pop();
        }
        if let Some(name) = parts.iter().find(|part| EMPTY_NAMES.contains(part)) {
            violations.push(Violation {
                path: file.path.clone(),
                line: 1,
                what: format!("the name `{name}` says nothing"),
                why: "a file is its main noun, and what has no noun is not understood yet",
            });
        }
    }
    violations
}

pub fn files_read_in_one_sitting(files: &[File]) -> Vec<Violation> {
    rust(files)
        .filter_map(|file| {
            let lines = without_tests(&file.text).lines().count();
            (lines > LINES_MAX).then(|| Violation {
                path: file.path.clone(),
                line: LINES_MAX,
                what: format!("{lines} lines without its tests"),
                why: "a file reads in one sitting: about 400 lines, 800 at most",
            })
        })
        .collect()
}

pub fn tests_are_never_ignored(files: &[File]) -> Vec<Violation> {
    rust(files)
        .flat_map(|file| {
            lines_where(
                file,
                "an ignored test",
                "a test that does not run tells nothing; mend it or take it away",
                |line| line.trim_start().starts_with("#[ignore"),
            )
        })
        .collect()
}

pub fn tests_wait_for_events(files: &[File]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in rust(files) {
        let whole_file_is_tests = file.path.split('/').any(|part| part == "tests");
        let tests_begin = if whole_file_is_tests { 0 } else { without_tests(&file.text).lines().count() };
        let found = lines_where(
            file,
            "a sleep in a test",
            "tests wait for events; where a line must let time pass, it says so after `// tidy:`",
            |line| sleeps(line.split("//").next().unwrap_or_default()) && !says_why(line),
        );
        violations.extend(found.into_iter().filter(|violation| violation.line > tests_begin));
    }
    violations
}

/// A call of `sleep`, by itself or by its path; `time.sleep(` is a test application's Python.
fn sleeps(code: &str) -> bool {
    code.match_indices("sleep(").any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c == '.' || c == '_' || c.is_alphanumeric()) && !code.contains("fn sleep(")
    })
}

fn says_why(line: &str) -> bool {
    line.split_once("// tidy:").is_some_and(|(_, reason)| reason.trim().len() > 10)
}

pub fn each_crate_introduces_itself(files: &[File]) -> Vec<Violation> {
    rust(files)
        .filter(|file| file.path.ends_with("src/lib.rs") && !file.text.starts_with("//!"))
        .map(|file| Violation {
            path: file.path.clone(),
            line: 1,
            what: "no introduction".into(),
            why: "each lib.rs opens with its purpose, how it works, and what it deliberately does not do",
        })
        .collect()
}

/// The part before the module of tests.
fn without_tests(text: &str) -> &str {
    let Some(at) = text.find("\n#[cfg(test)]\nmod ") else { return text };
    &text[..=at]
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    #[test]
    fn sleeps_are_found_in_tests_only() {
        let text = "fn f() { sleep(1); }\n#[cfg(test)]\nmod tests {\n    std::thread::sleep(x);\n    tokio::time::sleep(x); // tidy: the clock itself is tested here\n}\n";
        let found = tests_wait_for_events(&[file("crates/a/src/x.rs", text)]);
        assert_eq!(found.iter().map(|v| v.line).collect::<Vec<_>>(), [4]);
        let integration = concat!("sle", "ep(1);\n\"time.sle", "ep(1)\"\n");
        assert_eq!(tests_wait_for_events(&[file("crates/a/tests/x.rs", integration)]).len(), 1);
    }

    #[test]
    fn size_counts_what_comes_before_the_tests() {
        let long = "x\n".repeat(801);
        let tested = format!("a\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
        let found = files_read_in_one_sitting(&[file("a.rs", &long), file("b.rs", &tested)]);
        assert_eq!(found.iter().map(|v| v.path.as_str()).collect::<Vec<_>>(), ["a.rs"]);
    }

    #[test]
    fn empty_names_and_ignored_tests_are_found() {
        let files = [
            file("crates/a/src/util.rs", ""),
            file("crates/a/src/x/mod.rs", ""),
            file("crates/a/src/common/y.rs", ""),
        ];
        assert_eq!(names_say_something(&files).len(), 3);
        assert_eq!(tests_are_never_ignored(&[file("a.rs", "    #[ignore = \"slow\"]\n")]).len(), 1);
    }

    #[test]
    fn a_library_without_introduction_is_found() {
        assert_eq!(each_crate_introduces_itself(&[file("crates/a/src/lib.rs", "mod x;\n")]).len(), 1);
    }
}
