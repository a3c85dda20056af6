//! Applications of the stories: one that behaves as badly as it is told, and copies of the examples.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::binary::workspace;

const APPLICATION: &str = include_str!("app.py");

/// One service of a [`TestApp`], as lines of its app file.
#[derive(Debug, Clone)]
pub struct Service {
    pub name: String,
    pub instances: u32,
    /// More lines, such as `exclusive = true`.
    pub lines: Vec<String>,
}

/// A directory with an app file and an application of Python's standard library. Its behaviour is set by environment
/// variables, so that a change of it is a change of the app file.
#[derive(Debug)]
pub struct TestApp {
    directory: TempDir,
    pub name: String,
    /// What `X-Version` and the page say; a file of the tree, so that a new version is a new artifact.
    pub version: String,
    pub env: Vec<(String, String)>,
    pub services: Vec<Service>,
    /// Lines in front of the services, such as `[build]` and its keys.
    pub sections: Vec<String>,
}

impl TestApp {
    /// Version `1` of an app with so many instances of `web`.
    pub fn new(name: &str, instances: u32) -> Self {
        let web = Service {
            name: "web".into(),
            instances,
            lines: vec![
                "health = { path = \"/up\", interval = \"200ms\", timeout = \"2s\" }".into(),
                "drain = \"5s\"".into(),
            ],
        };
        let app = Self {
            directory: tempfile::Builder::new()
                .prefix("rung-e2e-app-")
                .tempdir()
                .expect("a temporary directory"),
            name: name.into(),
            version: "1".into(),
            env: Vec::new(),
            services: vec![web],
            sections: Vec::new(),
        };
        app.write();
        app
    }

    /// Its directory, as `rung deploy` gets it. Writes what was changed.
    pub fn directory(&self) -> &Path {
        self.write();
        self.directory.path()
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.env.retain(|(n, _)| n != name);
        self.env.push((name.into(), value.into()));
    }

    pub fn unset(&mut self, name: &str) {
        self.env.retain(|(n, _)| n != name);
    }

    pub fn web(&mut self) -> &mut Service {
        &mut self.services[0]
    }

    /// The app file.
    pub fn file(&self) -> String {
        let mut text = format!("app = {:?}\n\n", self.name);
        for section in &self.sections {
            text.push_str(section);
            text.push_str("\n\n");
        }
        text.push_str("[env]\n");
        for (name, value) in &self.env {
            text.push_str(&format!("{name} = {value:?}\n"));
        }
        for service in &self.services {
            text.push_str(&format!("\n[services.{}]\n", service.name));
            if !service.lines.iter().any(|line| line.starts_with("instances")) {
                text.push_str(&format!("instances = {}\n", service.instances));
            }
            if !service.lines.iter().any(|line| line.starts_with("command")) {
                text.push_str("command = \"exec python3 -B app.py\"\n");
            }
            for line in &service.lines {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }

    fn write(&self) {
        let write = |name: &str, text: &str| {
            std::fs::write(self.directory.path().join(name), text)
                .unwrap_or_else(|error| panic!("writing {name}: {error}"));
        };
        write("app.py", APPLICATION);
        write("version", &self.version);
        write("rung.toml", &self.file());
    }
}

/// A copy of an example that a story may change.
pub fn example(name: &str) -> TempDir {
    let copy = tempfile::Builder::new().prefix("rung-e2e-example-").tempdir().expect("a temporary directory");
    copy_tree(&workspace().join("examples").join(name), copy.path());
    copy
}

fn copy_tree(from: &Path, to: &Path) {
    let entries =
        std::fs::read_dir(from).unwrap_or_else(|error| panic!("reading {}: {error}", from.display()));
    for entry in entries {
        let entry = entry.expect("an entry of an example's directory");
        let target: PathBuf = to.join(entry.file_name());
        if entry.file_type().expect("its type").is_dir() {
            std::fs::create_dir_all(&target).expect("a directory of the copy");
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("a file of the copy");
        }
    }
}
