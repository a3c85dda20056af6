//! What each field of a Compose file means in an app file.

mod service;

use rung_model::AppName;
use rung_model::appfile::slug;

use super::Note;
use super::draft::{Build, Draft};
use super::fields::{self, why};
use super::values::fill;
use super::yaml::{self, Entry, Node, Value, Wrong};

/// What came of a file.
#[derive(Debug)]
pub struct Drafted {
    pub draft: Draft,
    pub notes: Vec<Note>,
}

/// Notes while a file is read.
#[derive(Debug, Default)]
pub struct Notes(Vec<Note>);

impl Notes {
    pub fn add(&mut self, line: usize, field: impl Into<String>, why: impl Into<String>) {
        self.0.push(Note { line, field: field.into(), why: why.into() });
    }

    /// A field without a counterpart.
    pub fn unknown(&mut self, table: &[(&str, &'static str)], within: &str, entry: &Entry) {
        if entry.key.starts_with("x-") {
            return;
        }
        let field = if within.is_empty() { entry.key.clone() } else { format!("{within}.{}", entry.key) };
        self.add(entry.line, field, why(table, &entry.key).unwrap_or("it is not known here"));
    }

    /// A text with its variables filled, each of which is named.
    pub fn filled(&mut self, node: &Node, field: &str) -> Option<String> {
        let filled = fill(node.text()?);
        for name in filled.missing {
            self.add(
                node.line,
                field,
                format!("${{{name}}} is known to whoever runs Compose, and left empty: write its value"),
            );
        }
        for name in filled.defaulted {
            self.add(node.line, field, format!("${{{name}}} became its default"));
        }
        Some(filled.text)
    }
}

/// Reads a Compose file. `only`: the services that are meant.
///
/// # Errors
/// It is no Compose file, or has no service that could be run.
pub fn import(text: &str, app: Option<AppName>, only: &[String]) -> Result<Drafted, Wrong> {
    let file = yaml::read(text)?;
    let no_services = |line| Wrong::new(line, "the file has no `services`", "is this a Compose file?");
    if file.entries().is_empty() {
        return Err(no_services(file.line));
    }
    let services = &file.get("services").ok_or_else(|| no_services(file.line))?.node;
    let mut notes = Notes::default();
    let app = app_name(&file, app, &mut notes)?;
    let chosen = choose(services, only, &mut notes)?;
    let mut draft = Draft {
        app,
        build: chosen.build,
        env: Vec::new(),
        secrets: Vec::new(),
        volumes: Vec::new(),
        services: Vec::new(),
    };
    for entry in &chosen.services {
        service::import(entry, &mut draft, &mut notes);
    }
    for entry in file.entries() {
        match entry.key.as_str() {
            "services" | "name" | "version" => {}
            "volumes" => volumes(entry, &draft, &mut notes),
            _ => notes.unknown(fields::TOP, "", entry),
        }
    }
    let mut notes = notes.0;
    notes.sort_by_key(|note| note.line);
    Ok(Drafted { draft, notes })
}

fn app_name(file: &Node, said: Option<AppName>, notes: &mut Notes) -> Result<AppName, Wrong> {
    if let Some(said) = said {
        return Ok(match file.get("name") {
            // The directory's name is only what is left when the file says nothing.
            Some(entry) => notes
                .filled(&entry.node, "name")
                .and_then(|name| AppName::new(slug(&name)).ok())
                .unwrap_or(said),
            None => said,
        });
    }
    let named = file.get("name").and_then(|entry| notes.filled(&entry.node, "name"));
    named
        .and_then(|name| AppName::new(slug(&name)).ok())
        .ok_or_else(|| Wrong::new(file.line, "nothing says how the app is called", "name it with --app"))
}

struct Chosen<'f> {
    build: Build,
    services: Vec<&'f Entry>,
}

/// An app has one image: that of the service that is built here, else of the one that is published, else the first.
fn choose<'f>(services: &'f Node, only: &[String], notes: &mut Notes) -> Result<Chosen<'f>, Wrong> {
    if let Some(unknown) = only.iter().find(|name| services.get(name).is_none()) {
        let known = services.entries().iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>().join(", ");
        let message = format!("there is no service {unknown}");
        return Err(Wrong::new(services.line, message, format!("the file has {known}")));
    }
    let is_meant = |entry: &&Entry| match only {
        [] => entry.node.get("profiles").is_none(),
        _ => only.contains(&entry.key),
    };
    let meant: Vec<&Entry> = services.entries().iter().filter(is_meant).collect();
    let first = |key: &str| meant.iter().find(|entry| entry.node.get(key).is_some());
    let first = first("build").or_else(|| first("ports")).or_else(|| first("image"));
    let Some(first) = first else {
        let message = "no service says what it runs";
        return Err(Wrong::new(services.line, message, "give one an `image` or a `build`"));
    };
    let mut build = None;
    let mut chosen = Vec::new();
    let image = first.node.get("image").and_then(|image| image.node.text());
    for entry in services.entries() {
        let field = format!("services.{}", entry.key);
        if !meant.iter().any(|meant| meant.key == entry.key) {
            if only.is_empty() {
                let why = "services with a profile are left out; import it with --service, or run it as a job: [jobs.NAME]";
                notes.add(entry.line, field, why);
            }
            continue;
        }
        let is_same = entry.key == first.key
            || match (first.node.get("build"), entry.node.get("build")) {
                (Some(one), Some(other)) => same_build(&one.node, &other.node),
                // What one service builds and names, another one uses by that name.
                (_, None) => entry.node.get("image").is_some_and(|other| other.node.text() == image),
                (None, Some(_)) => false,
            };
        if is_same {
            let made = build_of(entry, &field, notes);
            if entry.key == first.key {
                build = made;
            }
            chosen.push(entry);
        } else {
            let runs = entry
                .node
                .get("image")
                .and_then(|image| image.node.text())
                .unwrap_or("an image of its own build");
            let why = format!(
                "it runs another image ({runs}), and an app has one: make it an app of its own (rung import --service {} \
                 --app NAME --output DIR/rung.toml), and give its address with `rung config set`",
                entry.key
            );
            notes.add(entry.line, field, why);
        }
    }
    let build = build.ok_or_else(|| {
        Wrong::new(
            first.line,
            format!("service {} does not say what it runs", first.key),
            "give it an `image` or a `build`",
        )
    })?;
    Ok(Chosen { build, services: chosen })
}

fn same_build(one: &Node, other: &Node) -> bool {
    let of = |node: &Node, key: &str| node.get(key).and_then(|entry| entry.node.text().map(str::to_owned));
    let context = |node: &Node| node.text().map(str::to_owned).or_else(|| of(node, "context"));
    context(one) == context(other) && of(one, "dockerfile") == of(other, "dockerfile")
}

fn build_of(entry: &Entry, field: &str, notes: &mut Notes) -> Option<Build> {
    let image = entry.node.get("image");
    let Some(build) = entry.node.get("build") else {
        return Some(Build::Image(notes.filled(&image?.node, &format!("{field}.image"))?));
    };
    let field = format!("{field}.build");
    let context = match &build.node.value {
        Value::Text(_) => Some(&build.node),
        _ => build.node.get("context").map(|entry| &entry.node),
    };
    let context = context.and_then(|context| notes.filled(context, &field)).unwrap_or_else(|| ".".to_owned());
    let context = context.trim_start_matches("./").trim_end_matches('/').to_owned();
    let dockerfile = build.node.get("dockerfile").and_then(|entry| notes.filled(&entry.node, &field));
    let dockerfile = dockerfile.unwrap_or_else(|| "Dockerfile".to_owned());
    for entry in build.node.entries() {
        if !matches!(entry.key.as_str(), "context" | "dockerfile") {
            notes.unknown(fields::BUILD, &field, entry);
        }
    }
    if context.is_empty() || context == "." {
        return Some(Build::Dockerfile(dockerfile));
    }
    let why = format!(
        "the context is the directory of the app file: write rung.toml into {context} (--output {context}/rung.toml), \
         where this path is right"
    );
    notes.add(build.line, format!("{field}.context"), why);
    Some(Build::Dockerfile(dockerfile))
}

/// The top-level table of volumes: which there are is said by the services that mount them.
fn volumes(entry: &Entry, draft: &Draft, notes: &mut Notes) {
    for volume in entry.node.entries() {
        let field = format!("volumes.{}", volume.key);
        for setting in volume.node.entries().iter().filter(|setting| !setting.key.starts_with("x-")) {
            let why = match setting.key.as_str() {
                "external" => "a volume of Rung begins empty: copy what is in the other one into it",
                "name" => "volumes belong to their app, under the name they have here",
                _ => "volumes are directories of the machine that runs the service",
            };
            notes.add(setting.line, format!("{field}.{}", setting.key), why);
        }
        if !draft.volumes.contains(&slug(&volume.key)) {
            notes.add(volume.line, field, "no service of this app mounts it");
        }
    }
}
