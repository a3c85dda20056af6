//! One service of a Compose file.

use rung_model::SecretName;
use rung_model::appfile::{is_reserved, slug};

use super::Notes;
use crate::import::draft::{Check, Draft, Health, Port, Service};
use crate::import::fields;
use crate::import::values::{self, fill, is_secret};
use crate::import::yaml::{Entry, Node, Value};

/// Reads a service into the draft.
pub fn import(entry: &Entry, draft: &mut Draft, notes: &mut Notes) {
    let field = format!("services.{}", entry.key);
    let name = slug(&entry.key);
    if name != entry.key {
        notes.add(entry.line, &field, format!("names use a to z, 0 to 9 and -: it is called {name}"));
    }
    let mut reader = Reader { field, service: Service { name, ..Service::default() }, draft, notes };
    reader.command(&entry.node);
    for entry in entry.node.entries() {
        reader.entry(entry);
    }
    let service = reader.service;
    draft.services.push(service);
}

struct Reader<'d> {
    /// `services.web`.
    field: String,
    service: Service,
    draft: &'d mut Draft,
    notes: &'d mut Notes,
}

impl Reader<'_> {
    fn entry(&mut self, entry: &Entry) {
        match entry.key.as_str() {
            // Read elsewhere: they are about the image, or belong together.
            "image" | "build" | "profiles" | "command" | "entrypoint" => {}
            "ports" => self.ports(entry),
            "expose" => self.expose(entry),
            "environment" => self.environment(entry),
            "volumes" => self.volumes(entry),
            "healthcheck" => self.health(entry),
            "deploy" => self.deploy(entry),
            "restart" => self.restart(entry),
            "scale" => self.service.instances = self.number(entry),
            "mem_limit" => self.service.memory = self.size(entry),
            "cpus" => self.service.cpu = self.cores(entry),
            "mem_reservation" => self.note(entry, "memory is given out by its limit: write mem_limit"),
            "stop_grace_period" => self.service.stop_grace = self.duration(entry),
            "stop_signal" => {
                if entry.node.text() != Some("SIGTERM") {
                    self.note(entry, "instances are stopped by SIGTERM, then SIGKILL");
                }
            }
            _ => self.notes.unknown(fields::SERVICE, &self.field, entry),
        }
    }

    fn name(&self, entry: &Entry) -> String {
        format!("{}.{}", self.field, entry.key)
    }

    fn note(&mut self, entry: &Entry, why: impl Into<String>) {
        let field = self.name(entry);
        self.notes.add(entry.line, field, why);
    }

    fn text(&mut self, entry: &Entry) -> Option<String> {
        let field = self.name(entry);
        self.notes.filled(&entry.node, &field)
    }

    fn number(&mut self, entry: &Entry) -> Option<u32> {
        let number = self.text(entry).and_then(|text| text.parse().ok());
        self.understood(entry, number)
    }

    fn size(&mut self, entry: &Entry) -> Option<String> {
        let size = self.text(entry).and_then(|text| values::size(&text));
        self.understood(entry, size)
    }

    fn duration(&mut self, entry: &Entry) -> Option<String> {
        let duration = self.text(entry).and_then(|text| values::duration(&text));
        self.understood(entry, duration)
    }

    fn cores(&mut self, entry: &Entry) -> Option<String> {
        let cores =
            self.text(entry).and_then(|text| text.trim().parse::<f64>().ok()).filter(|cores| *cores > 0.0);
        self.understood(entry, cores.map(|cores| cores.to_string()))
    }

    fn understood<T>(&mut self, entry: &Entry, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.note(entry, "its value is not understood");
        }
        value
    }

    /// `entrypoint` and `command` are one line here. Without either, the image's own.
    fn command(&mut self, node: &Node) {
        let entrypoint = node.get("entrypoint").and_then(|entry| self.line(entry));
        let command = node.get("command").and_then(|entry| self.line(entry));
        if let (Some(entry), None) = (node.get("command"), node.get("entrypoint")) {
            self.note(
                entry,
                "it stands for the image's ENTRYPOINT, too: put that in front of it, where there is one",
            );
        }
        self.service.command = match (entrypoint, command) {
            (Some(entrypoint), Some(command)) => Some(format!("{entrypoint} {command}")),
            (one, other) => one.or(other),
        };
    }

    fn line(&mut self, entry: &Entry) -> Option<String> {
        let field = self.name(entry);
        let line = match &entry.node.value {
            Value::Text(_) => self.notes.filled(&entry.node, &field)?,
            Value::List(items) => {
                let words: Vec<String> =
                    items.iter().filter_map(|item| self.notes.filled(item, &field)).collect();
                values::line(&words.iter().map(String::as_str).collect::<Vec<_>>())
            }
            Value::Null | Value::Map(_) => return None,
        };
        (!line.trim().is_empty()).then_some(line)
    }

    fn ports(&mut self, entry: &Entry) {
        for item in entry.node.items() {
            let field = self.name(entry);
            let published = match &item.value {
                Value::Text(_) => self.notes.filled(item, &field).and_then(|text| values::port(&text)),
                _ => long_port(item),
            };
            let Some(published) = published else {
                self.notes.add(item.line, field, "its value is not understood");
                continue;
            };
            if !published.is_tcp {
                self.notes.add(
                    item.line,
                    field,
                    "the ingress speaks HTTP: other protocols are not published",
                );
            } else if self.service.port == Port::None {
                self.service.port = Port::Number(published.inside);
                if let Some(outside) = published.outside {
                    let host = self.draft.app.as_str().replace('@', "-");
                    let why = format!(
                        "it is served by the ingress, at http://{host}.localhost:8080, not at {outside}"
                    );
                    self.notes.add(item.line, field, why);
                }
            } else {
                let why = format!("a service has one port: {} is not served", published.inside);
                self.notes.add(item.line, field, why);
            }
        }
    }

    fn expose(&mut self, entry: &Entry) {
        let first = entry.node.items().first().and_then(Node::text).and_then(values::port);
        match (first, self.service.port) {
            (Some(port), Port::None) => self.service.port = Port::Number(port.inside),
            (None, _) => self.note(entry, "its value is not understood"),
            (Some(_), Port::Number(_)) => {}
        }
    }

    fn environment(&mut self, entry: &Entry) {
        let field = self.name(entry);
        for entry in entry.node.entries() {
            self.variable(&field, &entry.key, entry.line, entry.node.text());
        }
        for item in entry.node.items() {
            let Some(text) = item.text() else { continue };
            match text.split_once('=') {
                Some((name, value)) => self.variable(&field, name, item.line, Some(value)),
                None => self.variable(&field, text, item.line, None),
            }
        }
    }

    fn variable(&mut self, within: &str, name: &str, line: usize, value: Option<&str>) {
        let field = format!("{within}.{name}");
        let filled = value.map(fill);
        let is_open = filled.as_ref().is_none_or(|filled| !filled.missing.is_empty());
        if name == "PORT" {
            self.notes.add(line, field, "Rung sets it");
        } else if is_reserved(name) || SecretName::new(name).is_err() {
            self.notes.add(line, field, "no variable can be called so");
        } else if is_secret(name) {
            if !self.draft.secrets.iter().any(|known| known == name) {
                self.draft.secrets.push(name.to_owned());
            }
            self.notes.add(
                line,
                field,
                format!("secrets do not stand in the app file: rung secret set {name}"),
            );
        } else if is_open {
            let why = format!("its value is known to whoever runs Compose: rung config set {name}=VALUE");
            self.notes.add(line, field, why);
        } else if let Some(filled) = filled {
            for name in &filled.defaulted {
                self.notes.add(line, &field, format!("${{{name}}} became its default"));
            }
            match self.draft.env.iter().find(|(known, _)| known == name) {
                Some((_, known)) if *known != filled.text => {
                    let why = "the environment holds for the whole app, and another service says otherwise";
                    self.notes.add(line, field, why);
                }
                Some(_) => {}
                None => self.draft.env.push((name.to_owned(), filled.text)),
            }
        }
    }

    fn volumes(&mut self, entry: &Entry) {
        let field = self.name(entry);
        for item in entry.node.items() {
            let (kind, source, target) = match &item.value {
                Value::Text(_) => short_volume(&self.notes.filled(item, &field).unwrap_or_default()),
                _ => long_volume(item),
            };
            match (kind.as_str(), source, target) {
                ("volume", Some(source), Some(target)) => {
                    let volume = slug(&source);
                    if !self.draft.volumes.contains(&volume) {
                        self.draft.volumes.push(volume.clone());
                    }
                    if is_read_only(item) {
                        self.notes.add(item.line, &field, "a service may write into what it mounts");
                    }
                    self.service.mounts.push((volume, target));
                }
                ("volume", None, Some(target)) => {
                    let why = format!(
                        "a volume has a name: write `data:{target}`, or it is lost with the instance"
                    );
                    self.notes.add(item.line, &field, why);
                }
                ("bind", Some(source), _) => {
                    let why = format!(
                        "{source} is a path of one machine: put its files into the image, or copy them into a volume"
                    );
                    self.notes.add(item.line, &field, why);
                }
                ("tmpfs", ..) => self.notes.add(item.line, &field, "every instance has a /tmp of its own"),
                _ => self.notes.add(item.line, &field, "its value is not understood"),
            }
        }
    }

    fn health(&mut self, entry: &Entry) {
        let field = self.name(entry);
        let mut health = Health::default();
        let is_off = entry.node.get("disable").is_some_and(|entry| entry.node.text() == Some("true"));
        for part in entry.node.entries() {
            let duration = || part.node.text().and_then(values::duration);
            match part.key.as_str() {
                "test" => health.check = self.check(&field, part),
                "interval" => health.interval = duration(),
                "timeout" => health.timeout = duration(),
                "start_period" => health.grace = duration(),
                "retries" => health.unhealthy_after = part.node.text().and_then(|text| text.parse().ok()),
                "disable" if is_off => {
                    let why = "an instance that can't be asked is healthy when it listens, or stays up";
                    self.notes.add(part.line, format!("{field}.disable"), why);
                }
                "disable" => {}
                "start_interval" => {
                    let why = "a starting instance is asked all the time";
                    self.notes.add(part.line, format!("{field}.start_interval"), why);
                }
                _ => self.notes.unknown(&[], &field, part),
            }
        }
        if !is_off {
            self.service.health = Some(health);
        }
    }

    fn check(&mut self, field: &str, entry: &Entry) -> Option<Check> {
        let field = format!("{field}.test");
        let command = match &entry.node.value {
            Value::Text(_) => self.notes.filled(&entry.node, &field)?,
            _ => {
                let words: Vec<String> =
                    entry.node.items().iter().filter_map(|item| self.notes.filled(item, &field)).collect();
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                match words.as_slice() {
                    ["CMD-SHELL", line] => (*line).to_owned(),
                    ["CMD", words @ ..] if !words.is_empty() => values::line(words),
                    ["NONE"] => return None,
                    _ => {
                        self.notes.add(entry.line, field, "its value is not understood");
                        return None;
                    }
                }
            }
        };
        Some(values::check(&command))
    }

    fn deploy(&mut self, entry: &Entry) {
        let field = self.name(entry);
        for part in entry.node.entries() {
            match part.key.as_str() {
                "replicas" => {
                    self.service.instances = part.node.text().and_then(|text| fill(text).text.parse().ok());
                }
                "resources" => self.resources(&format!("{field}.resources"), part),
                _ => self.notes.unknown(fields::DEPLOY, &field, part),
            }
        }
    }

    fn resources(&mut self, field: &str, entry: &Entry) {
        for part in entry.node.entries() {
            let field = format!("{field}.{}", part.key);
            if part.key != "limits" {
                self.notes.add(
                    part.line,
                    field,
                    "memory is given out by its limit, and a cpu limit is a ceiling",
                );
                continue;
            }
            for limit in part.node.entries() {
                let text = limit.node.text().map(|text| fill(text).text).unwrap_or_default();
                match limit.key.as_str() {
                    "memory" => self.service.memory = values::size(&text),
                    "cpus" => {
                        let cores = text.parse::<f64>().ok().filter(|cores| *cores > 0.0);
                        self.service.cpu = cores.map(|cores| cores.to_string());
                    }
                    _ => {
                        let field = format!("{field}.{}", limit.key);
                        self.notes.add(limit.line, field, "processes are bounded for every instance");
                    }
                }
            }
        }
    }

    fn restart(&mut self, entry: &Entry) {
        match entry.node.text() {
            Some("always" | "unless-stopped") => {}
            Some("no" | "false") => {
                self.note(
                    entry,
                    "a service is always started again; what runs to its end is a job: [jobs.NAME]",
                );
            }
            _ => self.note(entry, "a service is always started again, with growing pauses"),
        }
    }
}

/// `target: 80`, `published: 8080`, `protocol: tcp`.
fn long_port(item: &Node) -> Option<values::Published> {
    let text = |key: &str| item.get(key).and_then(|entry| entry.node.text()).map(|text| fill(text).text);
    Some(values::Published {
        outside: text("published"),
        inside: text("target")?.parse().ok()?,
        is_tcp: text("protocol").is_none_or(|protocol| protocol == "tcp"),
    })
}

/// `data:/var/lib/data:ro`.
fn short_volume(text: &str) -> (String, Option<String>, Option<String>) {
    let mut parts = text.split(':');
    let (first, second) = (parts.next().unwrap_or_default(), parts.next());
    let Some(target) = second else {
        return ("volume".to_owned(), None, Some(first.to_owned()));
    };
    let is_path = first.starts_with(['/', '.', '~']);
    let kind = if is_path { "bind" } else { "volume" };
    (kind.to_owned(), Some(first.to_owned()), Some(target.to_owned()))
}

fn long_volume(item: &Node) -> (String, Option<String>, Option<String>) {
    let text = |key: &str| item.get(key).and_then(|entry| entry.node.text()).map(|text| fill(text).text);
    (text("type").unwrap_or_default(), text("source"), text("target"))
}

fn is_read_only(item: &Node) -> bool {
    let options = item.text().and_then(|text| text.split(':').nth(2)).unwrap_or_default();
    options.split(',').any(|option| option == "ro")
        || item.get("read_only").is_some_and(|entry| entry.node.text() == Some("true"))
}
