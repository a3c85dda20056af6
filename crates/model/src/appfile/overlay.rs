//! Environments: an app file together with its overlays, and how an overlay changes the file.
//!
//! An overlay is `[environments.<name>]` in the file, or a `rung.<name>.toml` beside it. Its tables are merged key by key
//! into those of the file; every other value, lists included, takes the place of the file's. `false` takes away what is
//! a text, a list or a table in the file. Spans of an overlay's file count from behind the end of the app file, so that
//! one number says which of the two texts it is about.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{AppFileErrors, Findings};
use super::parse::{self, text_of};
use super::procfile::parse_procfile;
use super::read::{Table, clip, nearest};
use super::{AppFile, PROCFILE, schema};
use crate::ids::{AppName, EnvironmentName};

/// An app file as it was written, with the overlays that stand in files of their own: all that any environment needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AppText {
    /// `rung.toml` or `Procfile`.
    pub name: String,
    pub text: String,
    /// Each `rung.<environment>.toml`.
    #[serde(default)]
    pub overlays: BTreeMap<EnvironmentName, String>,
}

impl AppText {
    /// What it means for an app in its environment. A `Procfile` does not name its app, and has no overlays.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn parse(&self, app: &AppName) -> Result<AppFile, AppFileErrors> {
        let overlays = self.overlays.iter().map(|(name, text)| (name.clone(), text.as_bytes())).collect();
        Texts { name: &self.name, text: self.text.as_bytes(), overlays }.parse(app)
    }

    pub fn bytes(&self) -> usize {
        self.text.len() + self.overlays.values().map(String::len).sum::<usize>()
    }
}

/// [`AppText`] before anybody knows whether it is text.
#[derive(Debug)]
pub struct Texts<'t> {
    pub name: &'t str,
    pub text: &'t [u8],
    pub overlays: BTreeMap<EnvironmentName, &'t [u8]>,
}

impl Texts<'_> {
    /// As [`AppText::parse`].
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn parse(&self, app: &AppName) -> Result<AppFile, AppFileErrors> {
        if self.name == PROCFILE {
            return parse_procfile(app.clone(), self.text);
        }
        let environment = app.environment();
        let text = text_of(self.name, self.text)?;
        let file_name = overlay_file(&environment);
        let overlay = match self.overlays.get(&environment) {
            Some(bytes) => Some(Behind::new(text_of(&file_name, bytes)?, text.len() + 1)),
            None => None,
        };
        let mut findings = Findings::new(self.name, text);
        let mut document = parse::document(text, &mut findings);
        let own = overlay.as_ref().map(|behind| {
            findings.add_source(&file_name, behind.text(), behind.start);
            parse::document(&behind.padded, &mut findings)
        });
        let chosen = Chosen { environment: &environment, files: self.overlays.keys().collect() };
        chosen.lay_over(document.get_mut(), own, &mut findings);
        let file = parse::read(&document, &environment, &mut findings);
        findings.finish()?;
        Ok(file.expect("a file without errors has a name"))
    }
}

/// A text that stands behind another one: as many line ends in front of it as the other has bytes.
struct Behind {
    padded: String,
    start: usize,
}

impl Behind {
    fn new(text: &str, start: usize) -> Self {
        Self { padded: "\n".repeat(start) + text, start }
    }

    fn text(&self) -> &str {
        &self.padded[self.start..]
    }
}

/// How the overlay of an environment is called when it has a file of its own.
pub fn overlay_file(environment: &EnvironmentName) -> String {
    format!("rung.{environment}.toml")
}

/// The environment whose overlay a file of this name is.
pub fn overlay_environment(file_name: &str) -> Option<EnvironmentName> {
    EnvironmentName::new(file_name.strip_prefix("rung.")?.strip_suffix(".toml")?).ok()
}

/// The environment that is meant.
struct Chosen<'c> {
    environment: &'c EnvironmentName,
    /// Those that have an overlay in a file of its own.
    files: Vec<&'c EnvironmentName>,
}

impl Chosen<'_> {
    /// Changes the document to what it is in this environment.
    fn lay_over<'i>(
        &self,
        document: &mut DeTable<'i>,
        own: Option<Spanned<DeTable<'i>>>,
        findings: &mut Findings<'_>,
    ) {
        let environments = taken(document, "environments");
        if !self.environment.is_production() {
            // A host name belongs to one environment: those at the top of the file are production's.
            taken(document, "domains");
        }
        let tables = self.tables(&environments, findings);
        let table = tables.iter().find(|(name, ..)| name == self.environment);
        if let (Some((name, at, _)), Some(_)) = (table, &own) {
            let way_out = format!("take one of them out: this table, or {}", overlay_file(name));
            findings.report(at.clone(), format!("environment `{name}` has two overlays"), way_out);
        }
        if let Some((.., table)) = table {
            merge(document, (*table).clone(), Depth::Top);
        }
        if let Some(own) = own {
            Table::open(String::new(), &schema::ENVIRONMENT, own.get_ref(), 0..0, findings);
            merge(document, own.into_inner(), Depth::Top);
        } else if table.is_none() && !self.environment.is_production() {
            self.report_unknown(&tables, findings);
        }
    }

    /// The overlays that the file itself has, checked as far as their own keys go.
    fn tables<'d, 'i>(
        &self,
        environments: &'d Option<(Range<usize>, Spanned<DeValue<'i>>)>,
        findings: &mut Findings<'_>,
    ) -> Vec<(EnvironmentName, Range<usize>, &'d DeTable<'i>)> {
        let Some((_, value)) = environments else { return Vec::new() };
        let example = "write [environments.staging] with env.LOG_LEVEL = \"debug\" below it";
        let DeValue::Table(entries) = value.get_ref() else {
            findings.report(value.span(), "`environments` must be a table", example);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (key, value) in entries.iter() {
            let name = match EnvironmentName::new(key.get_ref().as_ref()) {
                Ok(name) => name,
                Err(error) => {
                    let message = format!("`{}` is not {}: {}", clip(key.get_ref()), error.what, error.why);
                    findings.report(key.span(), message, "write it like [environments.staging]");
                    continue;
                }
            };
            let DeValue::Table(table) = value.get_ref() else {
                findings.report(value.span(), format!("`environments.{name}` must be a table"), example);
                continue;
            };
            let title = format!("environments.{name}");
            Table::open(title, &schema::ENVIRONMENT, table, key.span(), findings);
            tables.push((name, key.span(), table));
        }
        tables
    }

    /// A typing error must not make an environment of its own.
    fn report_unknown(
        &self,
        tables: &[(EnvironmentName, Range<usize>, &DeTable<'_>)],
        findings: &mut Findings<'_>,
    ) {
        let environment = self.environment;
        let production = EnvironmentName::production();
        let mut known: Vec<&EnvironmentName> = vec![&production];
        known.extend(tables.iter().map(|(name, ..)| name));
        known.extend(self.files.iter().copied());
        let way_out = match nearest(environment.as_str(), known.iter().map(|name| name.as_str())) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!(
                "write [environments.{environment}], with what is different there (it may be empty), or {}",
                overlay_file(environment)
            ),
        };
        findings.missing(0..0, format!("the app has no environment `{environment}`"), way_out);
    }
}

fn taken<'i>(table: &mut DeTable<'i>, key: &str) -> Option<(Range<usize>, Spanned<DeValue<'i>>)> {
    let key = table.keys().find(|known| known.get_ref() == key)?.clone();
    let value = table.remove(&key)?;
    Some((key.span(), value))
}

/// Whether a `false` there is a value, or takes something away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    Top,
    Inside,
    /// Variables: `false` is one of their values.
    Variables,
}

impl Depth {
    fn below(self, key: &str) -> Self {
        match self {
            Self::Top if key == "env" => Self::Variables,
            Self::Top | Self::Inside => Self::Inside,
            Self::Variables => Self::Variables,
        }
    }
}

fn merge<'i>(file: &mut DeTable<'i>, overlay: DeTable<'i>, depth: Depth) {
    for (key, value) in overlay {
        let known = file.keys().find(|known| known.get_ref() == key.get_ref()).cloned();
        let Some(known) = known else {
            file.insert(key, value);
            continue;
        };
        let below = depth.below(key.get_ref());
        let held = file.get_mut(&known).expect("its key was found");
        match (held.get_mut(), value.get_ref()) {
            (DeValue::Table(inner), DeValue::Table(_)) => {
                let DeValue::Table(overlay) = value.into_inner() else { unreachable!("it was matched") };
                merge(inner, overlay, below);
            }
            (DeValue::String(_) | DeValue::Array(_) | DeValue::Table(_), DeValue::Boolean(false))
                if depth != Depth::Variables =>
            {
                file.remove(&known);
            }
            _ => {
                // The key goes, too: it says where the value stands.
                file.remove(&known);
                file.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{JobName, ServiceName};

    const FILE: &str = r#"
app = "shop"
domains = ["shop.example.com"]

[build]
command = "make"
test = "make test"

[env]
LOG_LEVEL = "info"
DEBUG = "no"

[services.web]
command = "serve"
instances = 3
health = { path = "/up", interval = "5s" }

[services.worker]
command = "work"
port = false

[jobs.report]
command = "report"
schedule = "@daily"

[environments.production]
env.REGION = "eu"
"#;

    fn read(environment: &str, text: &str, overlay: Option<&str>) -> Result<AppFile, String> {
        let environment = EnvironmentName::new(environment).unwrap();
        let overlays = overlay.map(|text| (environment.clone(), text.to_owned())).into_iter().collect();
        let text = AppText { name: "rung.toml".into(), text: text.into(), overlays };
        let app = AppName::new("shop").unwrap().in_environment(&environment);
        text.parse(&app).map_err(|errors| errors.to_string())
    }

    fn service(name: &str) -> ServiceName {
        ServiceName::new(name).unwrap()
    }

    #[test]
    fn an_overlay_changes_what_it_names_and_leaves_the_rest() {
        let overlay = r#"
domains = ["staging.example.com"]
build.test = false
env = { LOG_LEVEL = "debug", DEBUG = false, EXTRA = 1 }
services.worker = false
jobs.report = false

[services.web]
instances = 1
health.path = "/ready"
"#;
        let file = read("staging", FILE, Some(overlay)).unwrap();
        let web = &file.services[&service("web")];
        assert_eq!(file.app.as_str(), "shop@staging");
        assert_eq!(file.domains, ["staging.example.com"]);
        assert_eq!((web.instances, web.command.as_deref()), (1, Some("serve")));
        let interval = std::time::Duration::from_secs(5);
        assert_eq!(web.health.interval, interval, "the file's word on what the overlay does not name");
        assert_eq!((file.build.command.as_deref(), file.build.test), (Some("make"), None));
        let env: Vec<(&str, &str)> = file.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(env, [("DEBUG", "false"), ("EXTRA", "1"), ("LOG_LEVEL", "debug")]);
        assert!(!file.services.contains_key(&service("worker")), "it was taken away");
        assert!(!file.jobs.contains_key(&JobName::new("report").unwrap()), "it was taken away");
    }

    #[test]
    fn the_same_stands_in_a_table_of_the_file() {
        let text = format!("{FILE}\n[environments.staging]\nservices.web.instances = 1\n");
        let staging = read("staging", &text, None).unwrap();
        assert_eq!(staging.services[&service("web")].instances, 1);
        assert_eq!(staging.env.get("REGION"), None, "that is production's");
        assert!(staging.domains.is_empty(), "a domain belongs to one environment");
        let production = read("production", &text, None).unwrap();
        assert_eq!(production.services[&service("web")].instances, 3);
        assert_eq!(production.env["REGION"], "eu");
        assert_eq!(production.app.as_str(), "shop");
        assert_eq!(production.domains, ["shop.example.com"]);
    }

    #[test]
    fn errors_stand_where_the_overlay_has_them() {
        let overlay = "[services.web]\ninstances = \"two\"\n\n[services.api]\nport = true\n";
        let errors = read("staging", FILE, Some(overlay)).unwrap_err();
        expect_test::expect![[r#"
            `services.web.instances` must be a whole number, not a text
             --> rung.staging.toml:2:13
              |
            2 | instances = "two"
              |             ^^^^^
              = write instances = 2, or instances = "per-node" for one on each node

            `services.api` has no command
             --> rung.staging.toml:4:11
              |
            4 | [services.api]
              |           ^^^
              = write command = "bin/server"

            rung.staging.toml has 2 errors"#]]
        .assert_eq(&errors);
        let broken = read("staging", "app = \"shop\n", Some("[services.web\n")).unwrap_err();
        assert!(
            broken.contains("--> rung.toml:1:") && broken.contains("--> rung.staging.toml:1:"),
            "{broken}"
        );
        assert!(broken.ends_with("rung.toml and rung.staging.toml have 2 errors"), "{broken}");
        let text = format!("{FILE}[environments.staging]\nenv.PORT = 1\n");
        let errors = read("staging", &text, None).unwrap_err();
        assert!(errors.contains("--> rung.toml:29:5"), "{errors}");
    }

    #[test]
    fn an_environment_that_nothing_is_said_of_is_a_typing_error() {
        let text = format!("{FILE}[environments.staging]\n");
        assert!(read("staging", &text, None).is_ok(), "it may be empty");
        let errors = read("stagin", &text, None).unwrap_err();
        assert!(errors.contains("no environment `stagin`") && errors.contains("did you mean `staging`?"));
        let errors = read("qa", &text, None).unwrap_err();
        assert!(errors.contains("write [environments.qa]") && errors.contains("rung.qa.toml"), "{errors}");
    }

    #[test]
    fn an_overlay_has_no_name_no_environments_and_no_second_copy() {
        let errors = read("staging", FILE, Some("app = \"store\"\n")).unwrap_err();
        assert!(errors.contains("the same name in every environment"), "{errors}");
        let text = format!("{FILE}[environments.staging]\nservises.web.instances = 1\n");
        let errors = read("production", &text, None).unwrap_err();
        assert!(
            errors.contains("did you mean `services`?"),
            "other environments' keys are checked: {errors}"
        );
        let text = format!("{FILE}[environments.staging]\n");
        let errors = read("staging", &text, Some("")).unwrap_err();
        assert!(errors.contains("environment `staging` has two overlays"), "{errors}");
        let errors = read("production", "app = \"shop@staging\"\nservices.web.command = \"x\"", None);
        assert!(errors.unwrap_err().contains("choose the environment with --env"));
    }
}
