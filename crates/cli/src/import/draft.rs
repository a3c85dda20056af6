//! An app file that is being made, and how it is written.

use std::fmt::Write as _;

use rung_model::AppName;

/// What will be an app file; texts are as the app file takes them.
#[derive(Debug)]
pub struct Draft {
    pub app: AppName,
    pub build: Build,
    pub env: Vec<(String, String)>,
    pub secrets: Vec<String>,
    pub volumes: Vec<String>,
    pub services: Vec<Service>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Build {
    Image(String),
    Dockerfile(String),
}

#[derive(Debug, Default)]
pub struct Service {
    pub name: String,
    pub command: Option<String>,
    pub port: Port,
    pub instances: Option<u32>,
    pub memory: Option<String>,
    pub cpu: Option<String>,
    pub health: Option<Health>,
    pub stop_grace: Option<String>,
    /// Volume and where it is seen.
    pub mounts: Vec<(String, String)>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    #[default]
    None,
    Number(u16),
}

#[derive(Debug, Default, Clone)]
pub struct Health {
    pub check: Option<Check>,
    pub interval: Option<String>,
    pub timeout: Option<String>,
    pub grace: Option<String>,
    pub unhealthy_after: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    Path(String),
    Command(String),
}

/// A text of TOML. JSON's escapes are TOML's, and DEL is the one character that only TOML forbids.
pub fn text(value: &str) -> String {
    serde_json::to_string(value).expect("a text is JSON").replace('\u{7f}', "\\u007F")
}

impl Draft {
    pub fn write(&self, source: &str) -> String {
        let source: String = source.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let mut out = format!("# Made of {source} by `rung import`.\napp = {}\n", text(self.app.as_str()));
        let mut line = |written: std::fmt::Arguments<'_>| {
            out.write_fmt(written).expect("writing to a string succeeds");
            out.push('\n');
        };
        line(format_args!("\n[build]"));
        match &self.build {
            Build::Image(image) => line(format_args!("image = {}", text(image))),
            Build::Dockerfile(path) => line(format_args!("dockerfile = {}", text(path))),
        }
        if !self.env.is_empty() {
            line(format_args!("\n[env]"));
            for (name, value) in &self.env {
                line(format_args!("{name} = {}", text(value)));
            }
        }
        if !self.secrets.is_empty() {
            let names = self.secrets.iter().map(|name| text(name)).collect::<Vec<_>>().join(", ");
            line(format_args!("\n[secrets]\nrequired = [{names}]"));
        }
        for volume in &self.volumes {
            line(format_args!("\n[volumes.{volume}]"));
        }
        for service in &self.services {
            service.write(&mut line);
        }
        out
    }
}

impl Service {
    fn write(&self, line: &mut impl FnMut(std::fmt::Arguments<'_>)) {
        line(format_args!("\n[services.{}]", self.name));
        if let Some(command) = &self.command {
            line(format_args!("command = {}", text(command)));
        }
        match self.port {
            Port::None => line(format_args!("port = false")),
            Port::Number(number) => line(format_args!("port = {number}")),
        }
        if let Some(instances) = self.instances {
            line(format_args!("instances = {instances}"));
        }
        if let Some(memory) = &self.memory {
            line(format_args!("memory = {}", text(memory)));
        }
        if let Some(cpu) = &self.cpu {
            line(format_args!("cpu = {cpu}"));
        }
        if let Some(health) = self.health.as_ref().map(Health::inline).filter(|health| !health.is_empty()) {
            line(format_args!("health = {{ {health} }}"));
        }
        if let Some(grace) = &self.stop_grace {
            line(format_args!("stop_grace = {}", text(grace)));
        }
        if !self.mounts.is_empty() {
            let mount = |(volume, path): &(String, String)| format!("{volume} = {}", text(path));
            let mounts = self.mounts.iter().map(mount).collect::<Vec<_>>().join(", ");
            line(format_args!("mounts = {{ {mounts} }}"));
        }
    }
}

impl Health {
    fn inline(&self) -> String {
        let mut parts = Vec::new();
        match &self.check {
            Some(Check::Path(path)) => parts.push(format!("path = {}", text(path))),
            Some(Check::Command(command)) => parts.push(format!("command = {}", text(command))),
            None => {}
        }
        let durations = [("interval", &self.interval), ("timeout", &self.timeout), ("grace", &self.grace)];
        parts.extend(
            durations
                .iter()
                .filter_map(|(key, value)| Some(format!("{key} = {}", text((*value).as_deref()?)))),
        );
        if let Some(count) = self.unhealthy_after {
            parts.push(format!("unhealthy_after = {count}"));
            // The file's own default would be less than what it must be at least.
            parts.push(format!("restart_after = {}", count.max(5)));
        }
        parts.join(", ")
    }
}
