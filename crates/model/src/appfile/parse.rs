//! `rung.toml` as an [`AppFile`]: what the keys say, with the defaults filled in.

use std::collections::BTreeMap;

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::check::{self, Places};
use super::defaults;
use super::error::{AppFileErrors, Findings, unreadable};
use super::job;
use super::notify;
use super::overlay::Texts;
use super::pages;
use super::read::{Field, Table, clip};
use super::routes;
use super::schema;
use super::service::{self, Runs};
use super::strategy;
use super::{AppFile, Build, DeployPolicy, GitPolicy, Job, RolloutPolicy, Route, Service, Volume, values};
use crate::ids::{AppName, EnvironmentName, InvalidId, JobName, SecretName, ServiceName, VolumeName};
use crate::image::ImageSource;

/// Reads a `rung.toml` as it is in production, without overlays in files. `file_name` is how it is called in errors.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn parse(file_name: &str, text: impl AsRef<[u8]>) -> Result<AppFile, AppFileErrors> {
    let production = AppName::new("app").expect("it is a slug");
    Texts { name: file_name, text: text.as_ref(), overlays: BTreeMap::new() }.parse(&production)
}

/// The tables of a text, as far as it is TOML.
pub(super) fn document<'t>(text: &'t str, findings: &mut Findings<'_>) -> Spanned<DeTable<'t>> {
    let (document, broken) = DeTable::parse_recoverable(text);
    for error in broken {
        let span = error.span().unwrap_or(text.len()..text.len());
        let way_out = way_out_of_syntax(error.message());
        findings.syntax(span, format!("not TOML: {}", error.message()), Some(way_out.to_owned()));
    }
    document
}

/// What the tables mean; `None` without the app's name.
pub(super) fn read(
    document: &Spanned<DeTable<'_>>,
    environment: &EnvironmentName,
    findings: &mut Findings<'_>,
) -> Option<AppFile> {
    let mut file = Reader { findings, places: Places::default(), runs: Runs::Tree }.file(document)?;
    file.app = file.app.in_environment(environment);
    Some(file)
}

/// The app's name that a `rung.toml` says, whatever else is wrong with it.
pub fn name_of(text: &str) -> Option<AppName> {
    let (document, _) = DeTable::parse_recoverable(text);
    let (_, value) = document.get_ref().iter().find(|(key, _)| key.get_ref() == "app")?;
    match value.get_ref() {
        DeValue::String(text) => AppName::new(text.as_ref()).ok().filter(AppName::is_in_production),
        _ => None,
    }
}

/// The text of a file's bytes, when they are UTF-8 and not too many.
pub(super) fn text_of<'t>(file_name: &str, bytes: &'t [u8]) -> Result<&'t str, AppFileErrors> {
    if bytes.len() > defaults::FILE_BYTES_MAX {
        let message =
            format!("the file is larger than {}", values::show_size(defaults::FILE_BYTES_MAX as u64));
        return Err(unreadable(file_name, "", 0, &message, "app files are short; is this the right file?"));
    }
    // Editors of Windows put a byte order mark in front.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let lossy = String::from_utf8_lossy(bytes);
        // Up to the first wrong byte the lossy text is the same.
        unreadable(
            file_name,
            &lossy,
            error.valid_up_to(),
            "the file is not UTF-8 text here",
            "save it as UTF-8",
        )
    })
}

fn way_out_of_syntax(message: &str) -> &'static str {
    if message.contains("string values must be quoted") || message.contains("invalid unquoted") {
        "texts stand in quotes: key = \"value\""
    } else if message.contains("duplicate key") {
        "keep one of the two"
    } else if message.contains("recurse") {
        "nothing in an app file is nested so deeply"
    } else {
        "a line is key = value, or begins a table: [services.web]"
    }
}

struct Reader<'r, 't> {
    findings: &'r mut Findings<'t>,
    places: Places,
    /// Known once the build section was read.
    runs: Runs,
}

impl Reader<'_, '_> {
    fn file(mut self, document: &Spanned<DeTable<'_>>) -> Option<AppFile> {
        let top = Table::open(String::new(), &schema::TOP, document.get_ref(), 0..0, self.findings);
        let app = self.app(&top);
        let file = AppFile {
            // A placeholder lets the rest be checked; the file is refused anyway.
            app: app.clone().unwrap_or_else(|| AppName::new("app").expect("it is a slug")),
            domains: self.domains(&top),
            build: self.build(&top),
            env: self.env(&top),
            required_secrets: self.secrets(&top),
            volumes: self.volumes(&top),
            deploy: self.deploy(&top),
            git: self.git(&top),
            services: self.services(&top),
            jobs: self.jobs(&top),
            routes: self.routes(&top),
            pages: pages::read(&top, self.findings),
            notify: notify::read(&top, self.findings),
        };
        if !self.findings.has_syntax_errors() {
            check::whole(&file, &self.places, self.findings);
        }
        app.map(|_| file)
    }

    fn app(&mut self, top: &Table<'_, '_>) -> Option<AppName> {
        let Some(field) = top.field("app") else {
            self.findings.missing(0..0, "the app has no name", "write app = \"shop\" at the top");
            return None;
        };
        let text = field.text(self.findings, "\"shop\"")?;
        if let Some((app, _)) = text.split_once('@') {
            let way_out = format!("write app = \"{}\", and choose the environment with --env", slug(app));
            field.report(self.findings, "the app's name has an environment in it", way_out);
            return None;
        }
        self.named(&field, field.span.clone(), AppName::new(text), text)
    }

    /// Reports a name that is refused, with one that would be taken.
    fn named<T>(
        &mut self,
        field: &Field<'_, '_>,
        span: std::ops::Range<usize>,
        name: Result<T, InvalidId>,
        text: &str,
    ) -> Option<T> {
        let error = match name {
            Ok(name) => return Some(name),
            Err(error) => error,
        };
        let slug = slug(text);
        let way_out = if slug.is_empty() {
            "write it like `shop-2`".to_owned()
        } else {
            format!("write it like `{slug}`")
        };
        let shown =
            if field.key == text { clip(text) } else { format!("{} = {:?}", clip(&field.key), clip(text)) };
        self.findings.report(span, format!("`{shown}` is not {}: {}", error.what, error.why), way_out);
        None
    }

    fn domains(&mut self, top: &Table<'_, '_>) -> Vec<String> {
        let Some(field) = top.field("domains") else { return Vec::new() };
        let elements = field.elements(self.findings, "domains = [\"shop.example.com\"]");
        if elements.len() > defaults::DOMAINS_MAX {
            field.report(
                self.findings,
                format!("more than {} domains", defaults::DOMAINS_MAX),
                "use a wildcard: \"*.example.com\"",
            );
        }
        let mut domains = Vec::new();
        for element in elements {
            let Some(domain) = element.parsed(self.findings, "[\"shop.example.com\"]", values::domain) else {
                continue;
            };
            if domains.contains(&domain) {
                element.report(self.findings, format!("{domain:?} is listed twice"), "take one of them out");
            } else {
                domains.push(domain);
            }
        }
        domains
    }

    fn build(&mut self, top: &Table<'_, '_>) -> Build {
        let mut build = Build { timeout: defaults::BUILD_TIMEOUT, ..Build::default() };
        let Some(field) = top.field("build") else { return build };
        let example = "[build] with command = \"make\" below it";
        let Some(table) = field.table(&schema::BUILD, self.findings, example) else { return build };
        let command = table.field("command");
        let test = table.field("test");
        build.command = command.and_then(|field| self.command(&field));
        build.test = test.and_then(|field| self.command(&field));
        build.image = self.image(&table);
        if let Some(field) = table.field("timeout") {
            if let Some(timeout) = field.duration(self.findings, defaults::WORK_BOUNDS) {
                build.timeout = timeout;
            }
            self.places.build_timeout = Some(field.key_span.clone());
        }
        build
    }

    fn image(&mut self, build: &Table<'_, '_>) -> Option<ImageSource> {
        let (image, dockerfile) = (build.field("image"), build.field("dockerfile"));
        if image.is_some() || dockerfile.is_some() {
            self.runs = Runs::Image;
        }
        let given: Vec<Field<'_, '_>> =
            ["command", "image", "dockerfile"].into_iter().filter_map(|key| build.field(key)).collect();
        if let [first, second, ..] = given.as_slice() {
            second.report(
                self.findings,
                format!("`{}` and `{}` are two ways to build", first.key, second.key),
                "an app has one: take the others out (`test` goes with each)",
            );
        }
        if let Some(field) = image {
            let image = field.parsed(self.findings, "\"ghcr.io/acme/shop:2.1\"", values::image)?;
            return Some(ImageSource::Name { image });
        }
        let path = dockerfile?.parsed(self.findings, "\"Dockerfile\"", values::path_inside)?;
        Some(ImageSource::Dockerfile { path })
    }

    fn command(&mut self, field: &Field<'_, '_>) -> Option<String> {
        field.text(self.findings, "\"bin/start\"").map(str::to_owned)
    }

    fn env(&mut self, top: &Table<'_, '_>) -> BTreeMap<String, String> {
        let Some(field) = top.field("env") else { return BTreeMap::new() };
        let mut env = BTreeMap::new();
        for entry in field.entries(self.findings, "[env] with LOG_LEVEL = \"info\" below it") {
            let name = entry.key.clone();
            let (span, shown) = (entry.key_span.clone(), clip(&name));
            if let Err(error) = SecretName::new(name.as_str()) {
                let message = format!("`{shown}` is not a name of an environment variable: {}", error.why);
                self.findings.report(span, message, "write it like LOG_LEVEL");
            } else if check::is_reserved(&name) {
                self.findings.report(span, format!("`{shown}` is set by Rung itself"), "choose another name");
            } else if let Some(value) = self.env_value(&entry) {
                self.places.env.insert(name.clone(), span);
                env.insert(name, value);
            }
        }
        env
    }

    fn env_value(&mut self, entry: &Field<'_, '_>) -> Option<String> {
        let value = match entry.value() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(integer) => integer.to_string(),
            DeValue::Float(float) => float.to_string(),
            DeValue::Boolean(value) => value.to_string(),
            DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                let message = format!("`{}` must be a text, a number, true or false", clip(&entry.name));
                entry.report(self.findings, message, "put it in quotes");
                return None;
            }
        };
        if value.contains('\0') {
            entry.report(
                self.findings,
                format!("`{}` contains a NUL character", clip(&entry.name)),
                "take it out: no process can be given one",
            );
            return None;
        }
        if value.len() > defaults::ENV_VALUE_MAX {
            let max = values::show_size(defaults::ENV_VALUE_MAX as u64);
            entry.report(
                self.findings,
                format!("`{}` is longer than {max}", clip(&entry.name)),
                "put it into a file of the application",
            );
            return None;
        }
        Some(value)
    }

    fn secrets(&mut self, top: &Table<'_, '_>) -> Vec<SecretName> {
        let Some(field) = top.field("secrets") else { return Vec::new() };
        let example = "[secrets] with required = [\"SECRET_KEY_BASE\"] below it";
        if let DeValue::Table(entries) = field.value() {
            // The most natural mistake, and one that would put a secret into a repository.
            for (key, value) in entries.iter() {
                if key.get_ref() != "required" && matches!(value.get_ref(), DeValue::String(_)) {
                    let way_out = format!(
                        "take the value out of the file and run `rung secret set {}`",
                        clip(key.get_ref())
                    );
                    self.findings.report(
                        key.span(),
                        "values of secrets do not belong into the app file",
                        way_out,
                    );
                }
            }
        }
        let Some(table) = field.table(&schema::SECRETS, self.findings, example) else { return Vec::new() };
        let Some(required) = table.field("required") else { return Vec::new() };
        let mut names = Vec::new();
        for element in required.elements(self.findings, "required = [\"SECRET_KEY_BASE\"]") {
            let Some(text) = element.text(self.findings, "[\"SECRET_KEY_BASE\"]") else { continue };
            match SecretName::new(text) {
                Ok(name) if check::is_reserved(text) => {
                    element.report(
                        self.findings,
                        format!("`{name}` is set by Rung itself"),
                        "choose another name",
                    );
                }
                Ok(name) if names.contains(&name) => {
                    element.report(
                        self.findings,
                        format!("`{name}` is listed twice"),
                        "take one of them out",
                    );
                }
                Ok(name) => {
                    self.places.secrets.insert(name.clone(), element.span.clone());
                    names.push(name);
                }
                Err(error) => {
                    let message = format!("`{}` is not {}: {}", clip(text), error.what, error.why);
                    element.report(self.findings, message, "write it like SECRET_KEY_BASE");
                }
            }
        }
        names
    }

    fn volumes(&mut self, top: &Table<'_, '_>) -> BTreeMap<VolumeName, Volume> {
        let Some(field) = top.field("volumes") else { return BTreeMap::new() };
        let mut volumes = BTreeMap::new();
        for entry in field.entries(self.findings, "[volumes.data]") {
            let name =
                self.named(&entry, entry.key_span.clone(), VolumeName::new(entry.key.as_str()), &entry.key);
            let table =
                entry.table(&schema::VOLUME, self.findings, "[volumes.data] with size = \"10GB\" below it");
            let size = table.and_then(|table| table.field("size"));
            let size_bytes = size.and_then(|size| size.size(self.findings, defaults::VOLUME_BOUNDS));
            if let Some(name) = name {
                volumes.insert(name, Volume { size_bytes });
            }
        }
        volumes
    }

    fn deploy(&mut self, top: &Table<'_, '_>) -> DeployPolicy {
        let mut policy = DeployPolicy {
            release: None,
            before_release: None,
            release_timeout: defaults::RELEASE_TIMEOUT,
            deadline: defaults::DEADLINE,
            rollout: RolloutPolicy::default(),
        };
        let Some(field) = top.field("deploy") else { return policy };
        let example = "[deploy] with release = \"bin/migrate\" below it";
        let Some(table) = field.table(&schema::DEPLOY, self.findings, example) else { return policy };
        let release = table.field("release");
        policy.release = release.and_then(|field| self.command(&field));
        if let Some(field) = table.field("before_release") {
            policy.before_release = self.command(&field);
            self.places.before_release = Some(field.key_span.clone());
        }
        if let Some(field) = table.field("release_timeout") {
            if let Some(timeout) = field.duration(self.findings, defaults::WORK_BOUNDS) {
                policy.release_timeout = timeout;
            }
            self.places.release_timeout = Some(field.key_span.clone());
        }
        if let Some(field) = table.field("deadline")
            && let Some(deadline) = field.duration(self.findings, defaults::WORK_BOUNDS)
        {
            policy.deadline = deadline;
        }
        policy.rollout = strategy::read(&table, self.findings);
        policy
    }

    fn git(&mut self, top: &Table<'_, '_>) -> GitPolicy {
        let Some(field) = top.field("git") else { return GitPolicy::default() };
        let example = "[git] with branch = \"main\" below it";
        let Some(table) = field.table(&schema::GIT, self.findings, example) else {
            return GitPolicy::default();
        };
        let branch = table.field("branch");
        let branch = branch.and_then(|field| field.parsed(self.findings, "\"main\"", values::branch));
        GitPolicy { branch }
    }

    fn services(&mut self, top: &Table<'_, '_>) -> BTreeMap<ServiceName, Service> {
        let example = "[services.web] with command = \"bin/server\" below it";
        let Some(field) = top.field("services") else {
            self.findings.missing(0..0, "the app has no services", format!("write {example}"));
            return BTreeMap::new();
        };
        let entries = field.entries(self.findings, example);
        if entries.is_empty() {
            self.findings.missing(
                field.key_span.clone(),
                "the app has no services",
                format!("write {example}"),
            );
        }
        if entries.len() > defaults::SERVICES_MAX {
            field.report(
                self.findings,
                format!("more than {} services", defaults::SERVICES_MAX),
                "split the app",
            );
        }
        let mut services = BTreeMap::new();
        for entry in entries {
            let name =
                self.named(&entry, entry.key_span.clone(), ServiceName::new(entry.key.as_str()), &entry.key);
            let Some(table) = entry.table(&schema::SERVICE, self.findings, example) else { continue };
            let (service, places) = service::read(&table, self.runs, self.findings);
            if let Some(name) = name {
                self.places.services.insert(name.clone(), places);
                services.insert(name, service);
            }
        }
        services
    }

    fn routes(&mut self, top: &Table<'_, '_>) -> Vec<Route> {
        let (routes, places) = routes::read(top, self.findings).into_iter().unzip();
        self.places.routes = places;
        routes
    }

    fn jobs(&mut self, top: &Table<'_, '_>) -> BTreeMap<JobName, Job> {
        let example = "[jobs.report] with command = \"bin/report\" below it";
        let mut jobs = BTreeMap::new();
        let Some(field) = top.field("jobs") else { return jobs };
        let entries = field.entries(self.findings, example);
        if entries.len() > defaults::JOBS_MAX {
            field.report(self.findings, format!("more than {} jobs", defaults::JOBS_MAX), "split the app");
        }
        for entry in entries {
            let name =
                self.named(&entry, entry.key_span.clone(), JobName::new(entry.key.as_str()), &entry.key);
            let Some(table) = entry.table(&schema::JOB, self.findings, example) else { continue };
            let (job, places) = job::read(&table, self.findings);
            if let Some(name) = name {
                self.places.jobs.insert(name.clone(), places);
                jobs.insert(name, job);
            }
        }
        jobs
    }
}

/// The name that is nearest to what somebody wrote: `My Shop!` is `my-shop`. Empty when nothing is left.
pub fn slug(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_lowercase() || (c.is_ascii_digit() && !out.is_empty()) {
            out.push(c);
        } else if !out.is_empty() && !out.ends_with('-') && !c.is_ascii_digit() {
            out.push('-');
        }
        if out.len() == 40 {
            break;
        }
    }
    out.trim_end_matches('-').to_owned()
}
