//! A `Procfile` with the `app.json` beside it, as Heroku's users have them, as the text of an app file.
//!
//! What the two say is written as a `rung.toml`, so that the server reads nothing but its own format; what can't be
//! honoured is named each time that it is deployed.

use anyhow::Context as _;
use rung_model::appfile::{self, AppFile, is_reserved};
use rung_model::{AppName, SecretName, ServiceName};
use serde_json::{Map, Value};

use super::Note;
use super::draft::text;
use super::fields::why;
use crate::edge::Hinted;

/// How the file beside the `Procfile` is called.
pub const FILE_NAME: &str = "app.json";

const TOP: &[(&str, &str)] = &[
    ("addons", "run databases and the like beside Rung, and give their addresses with `rung secret set`"),
    ("buildpacks", "nothing is detected: say how it is built in rung.toml, [build] command = \"...\""),
    ("environments", "an environment is an overlay: rung.staging.toml"),
    ("features", "it is for another platform"),
    ("image", "an app runs from its tree; in rung.toml [build] image = \"...\" names an image"),
    ("region", "it is for another platform"),
    ("stack", "the machine's own libraries are there"),
];

/// About the project, not about how it runs.
const ABOUT: [&str; 8] =
    ["name", "description", "keywords", "website", "repository", "logo", "success_url", "$schema"];

/// What a size of another platform has.
const SIZES: &[(&str, &str)] = &[
    ("free", "512MB"),
    ("eco", "512MB"),
    ("hobby", "512MB"),
    ("basic", "512MB"),
    ("standard-1x", "512MB"),
    ("standard-2x", "1GB"),
    ("performance-m", "2500MB"),
    ("performance-l", "14GB"),
    ("performance-l-ram", "30GB"),
    ("performance-xl", "62GB"),
    ("performance-2xl", "126GB"),
];

/// What came of the two files.
#[derive(Debug)]
pub struct Written {
    pub toml: String,
    pub notes: Vec<Note>,
}

/// Writes what a `Procfile` and an `app.json` (called by its `path` in errors) say as the text of a `rung.toml`.
///
/// # Errors
/// The `Procfile` is wrong, or the `app.json` is no JSON.
pub fn write(app: &AppName, procfile: &[u8], app_json: &[u8], path: &str) -> anyhow::Result<Written> {
    let file = appfile::parse_procfile(app.clone(), procfile)?;
    let value: Value = serde_json::from_slice(app_json).with_context(|| format!("reading {path}"))?;
    let Value::Object(top) = value else {
        return Err(
            Hinted::failed(format!("{path} holds no object"), "write it like { \"env\": { ... } }").into()
        );
    };
    let app_json = std::str::from_utf8(app_json).expect("what was read as JSON is UTF-8");
    let mut writer = Writer { source: app_json, file: &file, notes: Vec::new() };
    let toml = writer.write(&top);
    writer.notes.sort_by_key(|note| note.line);
    Ok(Written { toml, notes: writer.notes })
}

struct Writer<'s> {
    source: &'s str,
    file: &'s AppFile,
    notes: Vec<Note>,
}

impl Writer<'_> {
    fn write(&mut self, top: &Map<String, Value>) -> String {
        let object = |key: &str| top.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
        let (env, secrets) = self.env(&object("env"));
        let release = self.release(&object("scripts"));
        let test =
            top.get("environments").and_then(|environments| environments.pointer("/test/scripts/test"));
        let only_tests =
            |value: &Value| value.as_object().is_some_and(|of| of.keys().all(|name| name == "test"));
        for (key, value) in top.iter().filter(|(key, _)| !ABOUT.contains(&key.as_str())) {
            let is_read = match key.as_str() {
                "env" | "scripts" | "formation" => true,
                "environments" => test.is_some() && only_tests(value),
                _ => false,
            };
            if !is_read {
                let unknown = "it is not known here";
                self.note(&[key], why(TOP, key).unwrap_or(unknown));
            }
        }
        let mut out = format!("# Of Procfile and {FILE_NAME}.\napp = {}\n", text(self.file.app.as_str()));
        if let Some(test) = test.and_then(Value::as_str) {
            out.push_str(&format!("\n[build]\ntest = {}\n", text(test)));
        }
        out.push_str("\n[env]\n");
        out.extend(env.iter().map(|(name, value)| format!("{name} = {}\n", text(value))));
        let names = secrets.iter().map(|name| text(name)).collect::<Vec<_>>().join(", ");
        out.push_str(&format!("\n[secrets]\nrequired = [{names}]\n"));
        if let Some(release) = release {
            out.push_str(&format!("\n[deploy]\nrelease = {}\n", text(&release)));
        }
        self.services(&object("formation"), &mut out);
        out
    }

    fn note(&mut self, path: &[&str], why: impl Into<String>) {
        self.notes.push(Note { line: line_of(self.source, path), field: path.join("."), why: why.into() });
    }

    /// What has a value, and the names of what must be set.
    fn env(&mut self, env: &Map<String, Value>) -> (Vec<(String, String)>, Vec<String>) {
        let (mut values, mut required) = (Vec::new(), Vec::new());
        for (name, said) in env {
            if SecretName::new(name.as_str()).is_err() || is_reserved(name) {
                self.note(&["env", name], "Rung sets it, or no variable can be called so");
                continue;
            }
            let value = said.as_str().or_else(|| said.get("value").and_then(Value::as_str));
            let is_generated = said.get("generator").is_some();
            let is_required = said.get("required").and_then(Value::as_bool).unwrap_or(true);
            match value {
                Some(value) if !is_generated => values.push((name.clone(), value.to_owned())),
                _ if is_generated => {
                    self.note(&["env", name], format!("it is generated once: rung secret generate {name}"));
                    required.push(name.clone());
                }
                _ if is_required => {
                    self.note(&["env", name], format!("it must be set: rung secret set {name}"));
                    required.push(name.clone());
                }
                _ => {}
            }
        }
        (values, required)
    }

    fn release(&mut self, scripts: &Map<String, Value>) -> Option<String> {
        let postdeploy = scripts.get("postdeploy");
        for script in scripts.keys().filter(|script| *script != "postdeploy") {
            self.note(&["scripts", script], "apps for a review are not made by themselves");
        }
        let postdeploy = postdeploy
            .and_then(|script| script.as_str().or_else(|| script.get("command").and_then(Value::as_str)));
        match (&self.file.deploy.release, postdeploy) {
            (Some(release), None) => Some(release.clone()),
            (Some(release), Some(_)) => {
                self.note(
                    &["scripts", "postdeploy"],
                    "the Procfile has a release command, which runs before each release",
                );
                Some(release.clone())
            }
            (None, Some(postdeploy)) => {
                self.note(
                    &["scripts", "postdeploy"],
                    "it runs as the release command: before each new release, not once after the first",
                );
                Some(postdeploy.to_owned())
            }
            (None, None) => None,
        }
    }

    fn services(&mut self, formation: &Map<String, Value>, out: &mut String) {
        for (name, service) in &self.file.services {
            let said = formation.get(name.as_str());
            out.push_str(&format!(
                "\n[services.{name}]\ncommand = {}\nport = {}\n",
                text(service.command.as_deref().unwrap_or_default()),
                service.port
            ));
            if let Some(quantity) = said.and_then(|said| said.get("quantity")).and_then(Value::as_u64) {
                out.push_str(&format!("instances = {quantity}\n"));
            }
            let Some(size) = said.and_then(|said| said.get("size")).and_then(Value::as_str) else { continue };
            let path = ["formation", name.as_str(), "size"];
            match why(SIZES, &size.to_ascii_lowercase()) {
                Some(memory) => {
                    self.note(&path, format!("it is a size of another platform: memory = \"{memory}\""));
                    out.push_str(&format!("memory = \"{memory}\"\n"));
                }
                None => self.note(&path, "it is a size of another platform: write `memory` in rung.toml"),
            }
        }
        for (name, said) in formation {
            let is_known =
                ServiceName::new(name.as_str()).is_ok_and(|name| self.file.services.contains_key(&name));
            if !is_known {
                self.note(&["formation", name], "the Procfile has no such line");
                continue;
            }
            for key in said.as_object().into_iter().flat_map(Map::keys) {
                if !matches!(key.as_str(), "quantity" | "size") {
                    self.note(&["formation", name, key], "it is not known here");
                }
            }
        }
    }
}

/// Where a key stands: behind the keys that it is in.
fn line_of(source: &str, path: &[&str]) -> usize {
    let mut at = 0;
    for key in path {
        let quoted = serde_json::to_string(key).expect("a text is JSON");
        if let Some(found) = source[at..].find(&quoted) {
            at += found + quoted.len();
        }
    }
    source[..at].lines().count().max(1)
}
