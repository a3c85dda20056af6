//! What is read of the engine's answers; the rest of them is passed over.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Version {
    #[serde(default)]
    pub version: String,
    #[serde(default)]
    pub components: Vec<Component>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Component {
    #[serde(default)]
    pub name: String,
}

impl Version {
    /// `docker 28.2`, `podman 4.3`.
    pub fn name(&self) -> String {
        let is_podman = self.components.iter().any(|component| component.name.contains("Podman"));
        format!("{} {}", if is_podman { "podman" } else { "docker" }, self.version)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Container {
    pub id: String,
    pub state: ContainerState,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerState {
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited`, `dead`.
    pub status: String,
    #[serde(default)]
    pub pid: u32,
    #[serde(default)]
    pub exit_code: i32,
    #[serde(default, rename = "OOMKilled")]
    pub out_of_memory: bool,
    #[serde(default)]
    pub error: String,
    #[serde(default)]
    pub started_at: Option<String>,
    #[serde(default)]
    pub finished_at: Option<String>,
    #[serde(default)]
    pub health: Option<Health>,
}

impl ContainerState {
    pub fn is_running(&self) -> bool {
        matches!(self.status.as_str(), "running" | "paused" | "restarting" | "stopping")
    }

    pub fn was_started(&self) -> bool {
        !matches!(self.status.as_str(), "created" | "initialized" | "configured")
    }

    pub fn started_ms(&self) -> Option<i64> {
        milliseconds(self.started_at.as_deref()?)
    }

    pub fn finished_ms(&self) -> Option<i64> {
        milliseconds(self.finished_at.as_deref()?)
    }
}

/// The engine's zero is the year 1.
fn milliseconds(text: &str) -> Option<i64> {
    let at: jiff::Timestamp = text.parse().ok()?;
    Some(at.as_millisecond()).filter(|ms| *ms > 0)
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    /// `starting`, `healthy`, `unhealthy`, `none`.
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub log: Option<Vec<HealthRun>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthRun {
    #[serde(default)]
    pub exit_code: i32,
    #[serde(default)]
    pub output: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Image {
    pub id: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub repo_digests: Option<Vec<String>>,
    #[serde(default)]
    pub config: Option<ImageConfig>,
}

impl Image {
    pub fn config(&self) -> ImageConfig {
        self.config.clone().unwrap_or_default()
    }
}

/// How its author means it to be run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageConfig {
    #[serde(default)]
    pub user: String,
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    #[serde(default)]
    pub cmd: Option<Vec<String>>,
    /// `8080/tcp`.
    #[serde(default)]
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
}

impl ImageConfig {
    /// What it runs when nobody says a command.
    pub fn own_command(&self) -> Vec<String> {
        [&self.entrypoint, &self.cmd].into_iter().flatten().flatten().cloned().collect()
    }

    /// The one TCP port that it says it listens on; `None` when it says none, or several.
    pub fn only_port(&self) -> Option<u16> {
        let ports = self.exposed_ports.as_ref()?;
        let mut tcp = ports.keys().filter_map(|port| port.strip_suffix("/tcp")?.parse().ok());
        let first = tcp.next()?;
        tcp.next().is_none().then_some(first)
    }
}

/// A container in a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Listed {
    pub id: String,
    /// Each begins with `/`.
    #[serde(default)]
    pub names: Vec<String>,
}

/// An image in a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListedImage {
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_says_what_it_runs_and_where_it_listens() {
        let image: Image = serde_json::from_str(
            r#"{"Id":"sha256:1","Config":{"User":"app","Entrypoint":["/entry"],"Cmd":["serve"],
                "ExposedPorts":{"8080/tcp":{},"9000/udp":{}},"Env":null}}"#,
        )
        .unwrap();
        assert_eq!(image.config().own_command(), ["/entry", "serve"]);
        assert_eq!(image.config().only_port(), Some(8080));
        let two: ImageConfig =
            serde_json::from_str(r#"{"ExposedPorts":{"80/tcp":{},"443/tcp":{}},"Cmd":null}"#).unwrap();
        assert_eq!((two.only_port(), two.own_command().len()), (None, 0));
    }

    #[test]
    fn moments_of_the_engine_are_read_and_its_zero_is_none() {
        assert_eq!(milliseconds("0001-01-01T00:00:00Z"), None);
        assert_eq!(milliseconds("2026-01-01T00:00:00.5Z"), Some(1_767_225_600_500));
    }
}
