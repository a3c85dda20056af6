//! Who may import whom, and which rooms stay pure.

use super::{File, Violation, lines_where};

/// The rooms of the design, and which of our own crates each may use. Tests of a crate keep to it too.
const ROOMS: &[(&str, &[&str])] = &[
    ("rung-model", &[]),
    ("rung-planner", &["rung-model"]),
    ("rung-store", &["rung-model"]),
    ("rung-artifact", &["rung-model"]),
    ("rung-trust", &["rung-model"]),
    ("rung-api", &["rung-model", "rung-trust"]),
    ("rung-process", &["rung-api"]),
    (
        "rung-control",
        &[
            "rung-model",
            "rung-planner",
            "rung-store",
            "rung-artifact",
            "rung-trust",
            "rung-api",
            "rung-process",
        ],
    ),
    ("rung-agent", &["rung-model", "rung-artifact", "rung-trust", "rung-api"]),
    ("rung-ingress", &["rung-model", "rung-trust", "rung-api"]),
    ("rung-floating", &["rung-api", "rung-ingress", "rung-process"]),
    ("rung-cli", &["rung-model", "rung-artifact", "rung-trust", "rung-api"]),
    (
        "rung-sim",
        &[
            "rung-model",
            "rung-planner",
            "rung-store",
            "rung-artifact",
            "rung-trust",
            "rung-api",
            "rung-control",
            "rung-agent",
            "rung-ingress",
        ],
    ),
    (
        "rung",
        &[
            "rung-model",
            "rung-store",
            "rung-trust",
            "rung-api",
            "rung-control",
            "rung-agent",
            "rung-ingress",
            "rung-floating",
            "rung-cli",
        ],
    ),
    ("rung-e2e", &["rung-model", "rung-api"]),
    ("rung-bench", &["rung-model", "rung-planner", "rung-store", "rung-api", "rung-trust", "rung-e2e"]),
    // Apart from the workspace; parsers are where bytes of strangers come in first.
    ("rung-fuzz", &["rung-ingress"]),
    ("xtask", &[]),
];

/// Crates that bring threads, clocks, randomness or I/O.
const IMPURE: &[&str] =
    &["tokio", "hyper", "axum", "rusqlite", "object_store", "nix", "libc", "fastrand", "rand", "socket2"];
const PURE: &[&str] = &["rung-model", "rung-planner"];

pub fn imports_follow_the_rooms(files: &[File]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for manifest in manifests(files) {
        let allowed = ROOMS.iter().find(|(name, _)| *name == manifest.name).map(|(_, allowed)| *allowed);
        let Some(allowed) = allowed else {
            violations.push(manifest.violation(
                &manifest.name,
                format!("the crate {} is not in the list of rooms", manifest.name),
                "a crate must earn its door: add it to xtask/src/tidy/rooms.rs and say why in the design",
            ));
            continue;
        };
        for dependency in manifest.dependencies.iter().filter(|d| d.starts_with("rung")) {
            if !allowed.contains(&dependency.as_str()) {
                violations.push(manifest.violation(
                    dependency,
                    format!("{} imports {dependency}", manifest.name),
                    "control, agent, ingress and the store's users never import each other; only `rung` composes",
                ));
            }
        }
    }
    violations
}

pub fn pure_crates_stay_pure(files: &[File]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for manifest in manifests(files).filter(|manifest| PURE.contains(&manifest.name.as_str())) {
        for dependency in manifest.normal.iter().filter(|d| IMPURE.contains(&d.as_str())) {
            violations.push(manifest.violation(
                dependency,
                format!("{} depends on {dependency}", manifest.name),
                "the model and the planner have no clock, no randomness, no I/O and no async",
            ));
        }
    }
    let sources = files.iter().filter(|file| {
        file.path.ends_with(".rs")
            && !file.path.ends_with("/tests.rs")
            && !file.path.contains("/tests/")
            && (file.path.starts_with("crates/model/src/") || file.path.starts_with("crates/planner/src/"))
    });
    for file in sources {
        violations.extend(lines_where(
            file,
            "a clock, randomness, I/O or an unordered map",
            "what the planner answers depends on its input alone, to the byte",
            |line| {
                let code = line.split("//").next().unwrap_or_default();
                [
                    "SystemTime",
                    "Instant",
                    "Timestamp::now",
                    "Zoned::now",
                    "std::fs",
                    "std::net::Tcp",
                    "std::env",
                    "HashMap",
                    "HashSet",
                ]
                .iter()
                .any(|word| code.contains(word))
            },
        ));
    }
    violations
}

struct Manifest<'a> {
    file: &'a File,
    name: String,
    normal: Vec<String>,
    /// `normal`, and those of tests and build scripts.
    dependencies: Vec<String>,
}

impl Manifest<'_> {
    fn violation(&self, word: &str, what: String, why: &'static str) -> Violation {
        let line = self.file.text.lines().position(|line| line.contains(word)).map_or(1, |index| index + 1);
        Violation { path: self.file.path.clone(), line, what, why }
    }
}

fn manifests(files: &[File]) -> impl Iterator<Item = Manifest<'_>> {
    files.iter().filter(|file| file.path.ends_with("/Cargo.toml")).filter_map(|file| {
        let table: toml::Table = file.text.parse().ok()?;
        let name = table.get("package")?.get("name")?.as_str()?.to_owned();
        let keys = |section: &str| -> Vec<String> {
            table
                .get(section)
                .and_then(|s| s.as_table())
                .map(|s| s.keys().cloned().collect())
                .unwrap_or_default()
        };
        let normal = keys("dependencies");
        let mut dependencies = normal.clone();
        dependencies.extend(keys("dev-dependencies"));
        dependencies.extend(keys("build-dependencies"));
        Some(Manifest { file, name, normal, dependencies })
    })
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    #[test]
    fn an_agent_that_imports_the_ingress_is_found_at_its_line() {
        let text =
            "[package]\nname = \"rung-agent\"\n\n[dependencies]\nrung-model = \"1\"\nrung-ingress = \"1\"\n";
        let found = imports_follow_the_rooms(&[file("crates/agent/Cargo.toml", text)]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].line, 6);
    }

    #[test]
    fn a_planner_with_a_clock_is_found() {
        let source = file("crates/planner/src/lib.rs", "//! Instant answers.\nlet now = Instant::now();\n");
        let manifest = file(
            "crates/planner/Cargo.toml",
            "[package]\nname = \"rung-planner\"\n[dependencies]\ntokio = \"1\"\n",
        );
        assert_eq!(pure_crates_stay_pure(&[source, manifest]).len(), 2);
    }

    #[test]
    fn the_tests_of_a_pure_crate_may_read_files() {
        let text = "let page = std::fs::read_to_string(page).unwrap();\n";
        let at = |path| pure_crates_stay_pure(&[file(path, text)]).len();
        assert_eq!(at("crates/model/src/appfile/tests.rs"), 0);
        assert_eq!(at("crates/model/src/appfile/tests/documentation.rs"), 0);
        assert_eq!(at("crates/model/src/appfile.rs"), 1);
    }
}
