//! `rung import compose.yaml`: a Compose file as a `rung.toml`, with every field that is not honoured named; and an
//! [`app_json`] beside a `Procfile`, which is read at each deploy.
//!
//! [`yaml`] reads the text into nodes that know their lines, [`compose`] says of each field what it means here, and
//! [`draft`] writes the app file. Nothing is guessed in silence: a field that Rung does not know is named like one that
//! it knows and can't honour.

pub mod app_json;
mod compose;
mod draft;
mod fields;
mod values;
mod yaml;

#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rung_model::AppName;
use rung_model::appfile;
use serde::Serialize;

use crate::args::{Global, ImportArgs};
use crate::edge::{Exit, Hinted};
use crate::note;
use crate::render::{count, harmless};
use crate::screen::{Format, Screen};

/// A Compose file is written by people.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The names that Docker Compose looks for, in its order.
const NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];

/// A field that means something else in Rung, or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    pub line: usize,
    /// `services.web.depends_on`.
    pub field: String,
    /// Why it is not honoured, and the way out.
    pub why: String,
}

impl Note {
    /// `compose.yaml:7: services.web.depends_on: nothing waits for another service`.
    pub fn line_in(&self, file: &str) -> String {
        format!("{file}:{}: {}: {}", self.line, harmless(&self.field), harmless(&self.why))
    }
}

/// What became of a Compose file.
#[derive(Debug, Serialize)]
struct Imported<'a> {
    file: &'a Path,
    app: AppName,
    services: usize,
    not_honoured: &'a [Note],
}

/// Writes the app file beside the Compose file.
pub fn import(global: &Global, args: &ImportArgs) -> anyhow::Result<Exit> {
    let source = source(args.file.as_deref())?;
    let text = read(&source)?;
    let shown = source.display().to_string();
    let app = global.app.clone().or_else(|| crate::app::name_of_directory(directory_of(&source)));
    let drafted = compose::import(&text, app, &args.services).map_err(|error| {
        Hinted::failed(format!("{shown}:{}: {}", error.line, harmless(&error.message)), error.hint)
    })?;
    let toml = drafted.draft.write(&shown);
    let parsed = appfile::parse(appfile::FILE_NAME, &toml);
    if args.print {
        std::io::stdout().lock().write_all(toml.as_bytes()).context("writing the app file")?;
        for note in &drafted.notes {
            note!("{}", note.line_in(&shown));
        }
        return Ok(parsed.map(|_| Exit::Done)?);
    }
    let target = args.output.clone().unwrap_or_else(|| directory_of(&source).join(appfile::FILE_NAME));
    write_new(&target, &toml, args.force)?;
    let format = if global.json { Format::Json } else { Format::People };
    let imported = Imported {
        file: &target,
        app: drafted.draft.app.clone(),
        services: drafted.draft.services.len(),
        not_honoured: &drafted.notes,
    };
    Screen::stdout(format).show(&imported, |imported, _, _| told(&shown, imported))?;
    let context = || format!("{} has to be changed before it can be deployed", target.display());
    parsed.map(|_| Exit::Done).with_context(context)
}

fn told(shown: &str, imported: &Imported<'_>) -> String {
    let mut lines = vec![format!(
        "{} says how {} runs, with {}",
        imported.file.display(),
        imported.app,
        count(imported.services as u64, "service")
    )];
    if !imported.not_honoured.is_empty() {
        lines.push(format!(
            "{} of {shown} not honoured as written:",
            count(imported.not_honoured.len() as u64, "field")
        ));
        lines.extend(imported.not_honoured.iter().map(|note| format!("  {}", note.line_in(shown))));
    }
    lines.push("look it over, then: rung deploy".to_owned());
    lines.join("\n")
}

fn directory_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The file that was named, or the one that Compose would take.
fn source(said: Option<&Path>) -> anyhow::Result<PathBuf> {
    let directory = match said {
        Some(file) if !file.is_dir() => return Ok(file.to_owned()),
        Some(directory) => directory,
        None => Path::new("."),
    };
    let found = NAMES.iter().map(|name| directory.join(name)).find(|path| path.is_file());
    let found = found.map(|path| path.strip_prefix(".").map(Path::to_owned).unwrap_or(path));
    found.ok_or_else(|| {
        let message = format!("there is no {} in {}", NAMES[0], directory.display());
        Hinted::usage(message, "name the file: rung import FILE").into()
    })
}

fn read(path: &Path) -> anyhow::Result<String> {
    use std::io::Read as _;
    let reading = || format!("reading {}", path.display());
    let file = std::fs::File::open(path).with_context(reading)?;
    if !file.metadata().with_context(reading)?.is_file() {
        return Err(Hinted::usage(format!("{} is not a file", path.display()), "name a Compose file").into());
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).with_context(reading)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let message = format!("{} is larger than 1 MiB", path.display());
        return Err(Hinted::failed(message, "is this the right file?").into());
    }
    Ok(text)
}

fn write_new(path: &Path, text: &str, force: bool) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = options.open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            let message = format!("{} is there already, and was left as it is", path.display());
            Hinted::failed(message, "look at the other one with --print, write elsewhere with --output, or replace it with --force").into()
        }
        _ => anyhow::Error::from(error).context(format!("writing {}", path.display())),
    })?;
    file.write_all(text.as_bytes()).with_context(|| format!("writing {}", path.display()))
}
