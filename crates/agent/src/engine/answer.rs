//! What is read of the engine's answers; the rest of them is passed over.

use std::collections::BTreeMap;
use std::time::Duration;

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
    #[serde(default)]
    config: Option<ContainerConfig>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerConfig {
    #[serde(default)]
    healthcheck: Option<Healthcheck>,
    #[serde(default)]
    shell: Option<Vec<String>>,
}

/// How an image's author checks that it is well; times are in nanoseconds, and zero is none.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    #[serde(default)]
    test: Option<Vec<String>>,
    #[serde(default)]
    timeout: u64,
    #[serde(default)]
    start_period: u64,
}

impl Container {
    pub fn healthcheck(&self) -> Option<&Healthcheck> {
        self.config.as_ref()?.healthcheck.as_ref()
    }

    /// What the image's author has its command lines run by.
    pub fn shell(&self) -> Option<&[String]> {
        self.config.as_ref()?.shell.as_deref()
    }
}

impl Healthcheck {
    /// What is executed in the container; `None`: nothing is.
    pub fn command(&self, shell: Option<&[String]>) -> Option<Vec<String>> {
        let (form, words) = self.test.as_deref()?.split_first()?;
        match form.as_str() {
            "CMD" => Some(words.to_vec()).filter(|words| !words.is_empty()),
            "CMD-SHELL" => {
                let default = || vec!["/bin/sh".to_owned(), "-c".to_owned()];
                let mut argv =
                    shell.filter(|shell| !shell.is_empty()).map_or_else(default, <[String]>::to_vec);
                argv.push(words.first()?.clone());
                Some(argv)
            }
            _ => None,
        }
    }

    pub fn timeout(&self) -> Option<Duration> {
        Some(Duration::from_nanos(self.timeout)).filter(|time| !time.is_zero())
    }

    /// For so long after the start a failure says nothing.
    pub fn start_period(&self) -> Option<Duration> {
        Some(Duration::from_nanos(self.start_period)).filter(|time| !time.is_zero())
    }
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
        let mut ports = self.ports();
        let first = ports.next()?;
        ports.next().is_none().then_some(first)
    }

    /// The TCP ports that it says it listens on.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        let all = self.exposed_ports.iter().flat_map(BTreeMap::keys);
        all.filter_map(|port| port.strip_suffix("/tcp")?.parse().ok())
    }
}

/// A container in a list.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Listed {
    pub id: String,
    /// Each begins with `/`.
    #[serde(default)]
    pub names: Vec<String>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    network_settings: Option<ListedNetworks>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedNetworks {
    #[serde(default)]
    networks: Option<BTreeMap<String, Option<Attachment>>>,
}

impl Listed {
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// Where it is on the engine's networks, while it runs.
    pub fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        let networks = self.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
        networks.into_iter().flat_map(BTreeMap::values).flatten()
    }
}

/// A container's place on a network. What it has not is empty.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Attachment {
    #[serde(default, rename = "IPAddress")]
    pub v4: Option<String>,
    #[serde(default, rename = "GlobalIPv6Address")]
    pub v6: Option<String>,
    #[serde(default, rename = "MacAddress")]
    pub mac: Option<String>,
    #[serde(default, rename = "Gateway")]
    pub gateway: Option<String>,
}

/// A network in a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListedNetwork {
    #[serde(default, rename = "IPAM")]
    ipam: Option<Ipam>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    #[serde(default)]
    config: Option<Vec<Range>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Range {
    #[serde(default)]
    subnet: Option<String>,
}

impl ListedNetwork {
    /// `172.17.0.0/16`.
    pub fn subnets(&self) -> impl Iterator<Item = &str> {
        let ranges = self.ipam.as_ref().and_then(|ipam| ipam.config.as_ref());
        ranges.into_iter().flatten().filter_map(|range| range.subnet.as_deref())
    }
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
