//! A client of the container engine: Docker, or Podman by the same API, over its Unix socket.
//!
//! It speaks the few endpoints that the agent needs, each on a connection of its own: connecting to a local socket is
//! tens of microseconds, and an engine that was restarted is found again without a word. Paths carry no API version, so
//! that old and new engines both take them; only what all of them have is used.

mod answer;
mod frames;
mod words;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rung_api::client::{Body, full};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

pub use answer::{
    Attachment, Container, ContainerState, Healthcheck, Image, ImageConfig, Listed, ListedImage,
    ListedNetwork, Version,
};
pub use frames::{Frames, Piece};
pub use words::{Query, base64_url};

/// A call that only asks or switches something takes milliseconds; under a heavy load, seconds.
const QUICK: Duration = Duration::from_secs(30);
/// An error's body is a sentence.
const ERROR_MAX: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Which places were tried, and what each said.
    #[error("no container engine answers ({tried}); start docker or podman, or set DOCKER_HOST")]
    Absent { tried: String },
    #[error("talking to the container engine at {socket}")]
    Broken { socket: String, source: hyper::Error },
    /// In the engine's own words.
    #[error("{message}")]
    Refused { status: u16, message: String },
    #[error("the container engine did not answer within {} s", QUICK.as_secs())]
    Silent,
    #[error("the container engine's answer to {path} is not understood")]
    NotUnderstood { path: String, source: serde_json::Error },
}

impl EngineError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Somebody has this name already, or it is not in the state for this.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: 409, .. })
    }

    /// The engine did not get to say anything: it says nothing of its containers either.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::Broken { .. } | Self::Silent)
    }
}

/// Finds the engine anew for each call; see the module's documentation.
#[derive(Debug, Clone)]
pub struct Engine {
    places: Arc<Vec<Place>>,
}

#[derive(Debug)]
enum Place {
    Socket(PathBuf),
    /// `DOCKER_HOST` names an engine that can't be used, and why.
    Unusable(String),
}

impl Engine {
    /// The engine that `DOCKER_HOST` names, or the first of the usual places that answers.
    pub fn of_this_machine() -> Self {
        let places = match std::env::var("DOCKER_HOST") {
            Ok(host) if !host.is_empty() => vec![named_place(&host)],
            _ => usual_places().into_iter().map(Place::Socket).collect(),
        };
        Self { places: Arc::new(places) }
    }

    pub fn at(socket: PathBuf) -> Self {
        Self { places: Arc::new(vec![Place::Socket(socket)]) }
    }

    async fn connect(&self) -> Result<(UnixStream, &Path), EngineError> {
        let mut tried = Vec::new();
        for place in self.places.iter() {
            match place {
                Place::Socket(path) => match UnixStream::connect(path).await {
                    Ok(stream) => return Ok((stream, path)),
                    Err(error) => tried.push(format!("{}: {}", path.display(), short(&error))),
                },
                Place::Unusable(why) => tried.push(why.clone()),
            }
        }
        Err(EngineError::Absent { tried: tried.join("; ") })
    }

    /// The socket of the engine that answers now.
    pub async fn socket(&self) -> Result<PathBuf, EngineError> {
        self.connect().await.map(|(_, path)| path.to_owned())
    }

    /// Sends a request and answers with the response's head and streaming body. Statuses of 400 and more are errors.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Result<Response<Incoming>, EngineError> {
        let (stream, socket) = self.connect().await?;
        let broken = |source| EngineError::Broken { socket: socket.display().to_string(), source };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(async move {
            // Its end is seen by whoever reads the answer.
            let _ = connection.with_upgrades().await;
        });
        let mut request = Request::builder().method(method).uri(path).header("host", "engine");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).expect("paths and headers are made of encoded parts");
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status().as_u16() < 400 {
            return Ok(response);
        }
        Err(refused(response).await)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Bytes, EngineError> {
        let bytes =
            body.map(|body| serde_json::to_vec(body).expect("a value serializes")).unwrap_or_default();
        let asked = async {
            let headers = [("content-type", "application/json")];
            let response = self.send(method, path, &headers, full(bytes)).await?;
            let socket = String::new();
            let broken = |source| EngineError::Broken { socket, source };
            Ok(response.into_body().collect().await.map_err(broken)?.to_bytes())
        };
        tokio::time::timeout(QUICK, asked).await.map_err(|_| EngineError::Silent)?
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, EngineError> {
        understand(path, &self.call(Method::GET, path, None).await?)
    }

    pub async fn post(&self, path: &str, body: Option<&serde_json::Value>) -> Result<(), EngineError> {
        self.call(Method::POST, path, body).await.map(drop)
    }

    pub async fn post_for<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<T, EngineError> {
        understand(path, &self.call(Method::POST, path, body).await?)
    }

    pub async fn delete(&self, path: &str) -> Result<(), EngineError> {
        self.call(Method::DELETE, path, None).await.map(drop)
    }

    /// A body of any length in both directions, without a limit of time: the caller has one.
    pub async fn stream(&self, method: Method, path: &str) -> Result<Incoming, EngineError> {
        self.send(method, path, &[], full(Bytes::new())).await.map(Response::into_body)
    }

    /// A connection that carries what a container reads and prints from now on.
    pub async fn hijack(&self, path: &str) -> Result<TokioIo<hyper::upgrade::Upgraded>, EngineError> {
        let headers = [("connection", "Upgrade"), ("upgrade", "tcp")];
        let response = self.send(Method::POST, path, &headers, full(Bytes::new())).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let message = format!("{path} was not upgraded ({})", response.status());
            return Err(EngineError::Refused { status: response.status().as_u16(), message });
        }
        let broken = |source| EngineError::Broken { socket: String::new(), source };
        hyper::upgrade::on(response).await.map(TokioIo::new).map_err(broken)
    }

    pub async fn version(&self) -> Result<Version, EngineError> {
        self.get("/version").await
    }

    /// # Errors
    /// It does not answer.
    pub async fn ping(&self) -> Result<(), EngineError> {
        self.call(Method::GET, "/_ping", None).await.map(drop)
    }

    pub async fn container(&self, name: &str) -> Result<Container, EngineError> {
        self.get(&format!("/containers/{name}/json")).await
    }

    /// `name` is a name with its tag or digest, or an id.
    pub async fn image(&self, name: &str) -> Result<Image, EngineError> {
        self.get(&format!("/images/{name}/json")).await
    }

    /// Answers when the container does not run, at once when it does not now. As long as it takes.
    pub async fn wait(&self, name: &str) -> Result<(), EngineError> {
        let body = self.stream(Method::POST, &format!("/containers/{name}/wait")).await?;
        let broken = |source| EngineError::Broken { socket: String::new(), source };
        body.collect().await.map(drop).map_err(broken)
    }
}

fn understand<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, EngineError> {
    serde_json::from_slice(bytes)
        .map_err(|source| EngineError::NotUnderstood { path: path.to_owned(), source })
}

async fn refused(response: Response<Incoming>) -> EngineError {
    #[derive(serde::Deserialize)]
    struct Said {
        message: String,
    }
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let bytes = &bytes[..bytes.len().min(ERROR_MAX)];
    let message = match serde_json::from_slice::<Said>(bytes) {
        Ok(said) => said.message,
        Err(_) => String::from_utf8_lossy(bytes).trim().to_owned(),
    };
    EngineError::Refused { status, message }
}

fn named_place(host: &str) -> Place {
    match host.strip_prefix("unix://") {
        Some(path) => Place::Socket(path.into()),
        None => Place::Unusable(format!(
            "DOCKER_HOST is {host}: only an engine of this machine can be used (unix:///path), for instances are reached at 127.0.0.1"
        )),
    }
}

fn usual_places() -> Vec<PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let mut places = vec![PathBuf::from("/var/run/docker.sock")];
    places.extend(own.iter().map(|own| own.join("docker.sock")));
    places.push("/run/podman/podman.sock".into());
    places.extend(own.iter().map(|own| own.join("podman/podman.sock")));
    places
}

fn short(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "is not there".to_owned(),
        std::io::ErrorKind::ConnectionRefused => "nobody listens".to_owned(),
        std::io::ErrorKind::PermissionDenied => {
            "this user may not use it (add it to the group `docker`)".to_owned()
        }
        _ => error.to_string(),
    }
}
