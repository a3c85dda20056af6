//! `git push`, over HTTP: one repository for each app below `/git/<app>`.
//!
//! The machine's `git http-backend` answers, as a CGI program of ours; what decides is in [`crate::git`] and in its gate.
//! Git knows nothing of bearer tokens and shows an error only when it is plain text: both are translated here, so that
//! the same guard stands before these endpoints as before all others.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use futures_util::StreamExt as _;
use rung_api::{Code, ErrorBody};
use rung_model::AppName;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

use super::Refused;
use super::extract::{Named, Query};
use crate::git::{GitError, Place, Pusher, Turn, starting_git};
use crate::shared::Control;

/// Where git's endpoints are; with a slash, for whoever only looks at the beginning.
const BELOW: &str = "/git/";

/// A client that sends nothing for so long has gone.
const SILENCE: Duration = Duration::from_secs(120);

/// The head of a CGI answer is three short lines.
const HEAD_MAX_BYTES: u64 = 8 * 1024;

/// What is kept of git's complaints, for our own log.
const COMPLAINT_MAX_BYTES: u64 = 4 * 1024;

/// Chunks on their way: enough to keep both sides busy.
const CHUNKS: usize = 8;
const CHUNK_BYTES: usize = 32 * 1024;

/// What is asked of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    /// A push.
    Receive,
    /// A fetch, which `--force-with-lease` and `git fetch --all` need.
    Upload,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Receive => "git-receive-pack",
            Self::Upload => "git-upload-pack",
        }
    }
}

#[derive(Debug, serde::Deserialize)]
pub struct Asked {
    #[serde(default)]
    service: String,
}

/// What the person's own git calls the one who pushes.
#[derive(Debug, Clone)]
struct User(String);

pub async fn advertise(
    State(control): State<Control>,
    named: Named,
    Query(asked): Query<Asked>,
    request: Request,
) -> Result<Response, Refused> {
    let service = match asked.service.as_str() {
        "git-receive-pack" => Service::Receive,
        "git-upload-pack" => Service::Upload,
        _ => {
            let body = ErrorBody::new(Code::InvalidRequest, "this version of git is too old to push here");
            return Err(body.hint("git speaks the protocol that is needed since 1.6.6").into());
        }
    };
    control.serve_git(named.get("app")?, service, Step::Advertise, request).await
}

pub async fn receive(
    State(control): State<Control>,
    named: Named,
    request: Request,
) -> Result<Response, Refused> {
    control.serve_git(named.get("app")?, Service::Receive, Step::Exchange, request).await
}

pub async fn upload(
    State(control): State<Control>,
    named: Named,
    request: Request,
) -> Result<Response, Refused> {
    control.serve_git(named.get("app")?, Service::Upload, Step::Exchange, request).await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Advertise,
    Exchange,
}

impl Control {
    async fn serve_git(
        &self,
        app: AppName,
        service: Service,
        step: Step,
        request: Request,
    ) -> Result<Response, Refused> {
        self.admit(&app, service, step).await?;
        let pusher = pusher(&request);
        let turn = match (service, step) {
            (Service::Receive, Step::Exchange) => self.inner.repositories.turn(&app).await,
            _ => Turn::Taken,
        };
        let place = self.inner.repositories.open(&app).await.map_err(ErrorBody::from)?;
        let mut command = self.inner.repositories.git();
        self.inner.repositories.tell_gate(&mut command, &app, &pusher, &turn, &place);
        describe(&mut command, &app, service, step, request.headers());
        command.env("GIT_PROJECT_ROOT", self.inner.repositories.parent());
        command.stdin(std::process::Stdio::piped()).kill_on_drop(service == Service::Upload);
        let exchange = Exchange { control: self.clone(), app, service, step, turn, place };
        Ok(exchange.begin(command, request.into_body()).await.map_err(ErrorBody::from)?)
    }

    /// A push may be an app's first deploy; what is fetched must be there.
    async fn admit(&self, app: &AppName, service: Service, step: Step) -> Result<(), ErrorBody> {
        let repositories = &self.inner.repositories;
        match self.record_of(app) {
            Ok(_) => {}
            Err(error) if error.code == Code::NotFound && service == Service::Receive => {
                if step == Step::Advertise {
                    // What an app of this name had before it was destroyed is not what it has now.
                    repositories.forget(app).await?;
                }
            }
            Err(error) => return Err(error),
        }
        if service == Service::Upload && !repositories.exists(app) {
            let message = format!("nothing was pushed to app {app} yet");
            return Err(ErrorBody::new(Code::NotFound, message).hint("git push rung main"));
        }
        Ok(())
    }
}

/// A request as a CGI program gets it. Nothing in it is of the client's own wording but what is checked here.
fn describe(command: &mut Command, app: &AppName, service: Service, step: Step, headers: &HeaderMap) {
    let (method, tail) = match step {
        Step::Advertise => ("GET", "info/refs"),
        Step::Exchange => ("POST", service.name()),
    };
    command.arg("http-backend");
    command.env("GIT_HTTP_EXPORT_ALL", "1").env("REMOTE_USER", "rung").env("REQUEST_METHOD", method);
    command.env("PATH_INFO", format!("/{app}.git/{tail}"));
    match step {
        Step::Advertise => command.env("QUERY_STRING", format!("service={}", service.name())),
        Step::Exchange => command
            .env("QUERY_STRING", "")
            .env("CONTENT_TYPE", format!("application/x-{}-request", service.name())),
    };
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if text(header::CONTENT_ENCODING) == Some("gzip") {
        command.env("HTTP_CONTENT_ENCODING", "gzip");
    }
    let length = text(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if let Some(length) = length {
        command.env("CONTENT_LENGTH", length.to_string());
    }
    let is_plain = |text: &&str| {
        text.len() < 100 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"=:.-".contains(&b))
    };
    if let Some(protocol) = text(HeaderName::from_static("git-protocol")).filter(is_plain) {
        command.env("GIT_PROTOCOL", protocol);
    }
}

/// One answer of git, and what belongs to it until its end.
struct Exchange {
    control: Control,
    app: AppName,
    service: Service,
    step: Step,
    turn: Turn,
    place: Place,
}

impl Exchange {
    async fn begin(self, mut command: Command, body: Body) -> Result<Response, GitError> {
        let mut child = command.spawn().map_err(starting_git())?;
        let stdin = child.stdin.take().expect("it is piped");
        let mut stdout = BufReader::with_capacity(CHUNK_BYTES, child.stdout.take().expect("it is piped"));
        let feeding = tokio::spawn(feed(body, stdin));
        let complaint = tokio::spawn(complaint(child.stderr.take().expect("it is piped")));
        let Some(head) = read_head(&mut stdout).await else {
            feeding.abort();
            let said = complaint.await.unwrap_or_default();
            return Err(GitError::Failed { act: "serving a repository", said });
        };
        let (chunks, mut receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(CHUNKS);
        tokio::spawn(async move {
            drain(stdout, &chunks, self.service).await;
            // Its end is git's own: nothing more is read of what the client sends.
            feeding.abort();
            self.end(child, complaint).await;
        });
        let body = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
        let mut response = Response::new(Body::from_stream(body));
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        Ok(response)
    }

    async fn end(self, mut child: Child, complaint: tokio::task::JoinHandle<String>) {
        let status = child.wait().await;
        let said = complaint.await.unwrap_or_default();
        if !said.is_empty() {
            tracing::info!(app = %self.app, ?status, %said, "git said");
        }
        if self.service == Service::Upload || self.step == Step::Advertise {
            return;
        }
        match self.control.inner.repositories.tidy(&self.place).await {
            Ok(false) => {}
            Ok(true) => self.control.record(
                Some(&self.app),
                "git_repository_renewed",
                format!(
                    "the repository of {} had grown too large and is begun anew by the next push",
                    self.app
                ),
            ),
            Err(error) => tracing::warn!(app = %self.app, %error, "tidying a repository"),
        }
        drop(self.turn);
    }
}

/// Hands the request's body to git. One that breaks off is a pack that ends too early, which git refuses.
async fn feed(body: Body, mut stdin: ChildStdin) {
    let mut chunks = body.into_data_stream();
    while let Ok(Some(Ok(chunk))) = tokio::time::timeout(SILENCE, chunks.next()).await {
        if stdin.write_all(&chunk).await.is_err() {
            return;
        }
    }
}

/// Passes on what git says. A push whose client has gone goes on: its deployment does, too.
async fn drain(
    mut stdout: BufReader<ChildStdout>,
    chunks: &mpsc::Sender<Result<Bytes, std::io::Error>>,
    service: Service,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match stdout.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => {
                let is_heard = chunks.send(Ok(Bytes::copy_from_slice(&buffer[..count]))).await.is_ok();
                if !is_heard && service == Service::Upload {
                    return;
                }
            }
            Err(error) => {
                // Without it the client would take the part for the whole.
                let _ = chunks.send(Err(error)).await;
                return;
            }
        }
    }
}

async fn complaint(stderr: impl AsyncRead + Unpin) -> String {
    let mut said = Vec::new();
    let mut limited = stderr.take(COMPLAINT_MAX_BYTES);
    let _ = limited.read_to_end(&mut said).await;
    // Git must not wait for a reader of the rest.
    let _ = tokio::io::copy(&mut limited.into_inner(), &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&said).trim().to_owned()
}

struct Head {
    status: StatusCode,
    headers: HeaderMap,
}

/// The head of a CGI answer; `None` when there is none.
async fn read_head(stdout: &mut BufReader<ChildStdout>) -> Option<Head> {
    let mut head = Head { status: StatusCode::OK, headers: HeaderMap::new() };
    let mut limited = stdout.take(HEAD_MAX_BYTES);
    loop {
        let mut line = String::new();
        limited.read_line(&mut line).await.ok()?;
        if !line.ends_with('\n') {
            return None;
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return line.trim_end().is_empty().then_some(head);
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            head.status = value.split(' ').next()?.parse().ok()?;
        } else {
            head.headers.insert(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
        }
    }
}

/// Translates between git and the API, outside of the guard: `Basic` with the token as the password is the bearer's
/// token, and an error is a text that git shows.
pub async fn speak_git(mut request: Request, next: Next) -> Response {
    if !request.uri().path().starts_with(BELOW) {
        return next.run(request).await;
    }
    if let Some((user, bearer)) = basic(request.headers()) {
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
        request.extensions_mut().insert(User(user));
    }
    let response = next.run(request).await;
    if response.status().is_success() { response } else { plain(response).await }
}

fn pusher(request: &Request) -> Pusher {
    let by = request.extensions().get::<User>().map_or_else(|| "git".to_owned(), |User(by)| by.clone());
    let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = bearer.and_then(|bearer| bearer.strip_prefix("Bearer "));
    Pusher { by, token: token.map(str::to_owned) }
}

fn basic(headers: &HeaderMap) -> Option<(String, HeaderValue)> {
    let encoded = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, token) = text.split_once(':')?;
    let user: String = user.chars().filter(|c| !c.is_control()).take(100).collect();
    let mut bearer = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    bearer.set_sensitive(true);
    Some((if user.is_empty() { "git".to_owned() } else { user }, bearer))
}

/// Errors of the API are JSON, and short.
async fn plain(response: Response) -> Response {
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 64 * 1024).await.unwrap_or_default();
    let text = match serde_json::from_slice::<ErrorBody>(&bytes) {
        Ok(body) => match body.hint {
            Some(hint) => format!("error: {}\nhint: {hint}\n", body.message),
            None => format!("error: {}\n", body.message),
        },
        Err(_) => String::from_utf8_lossy(&bytes).into_owned(),
    };
    let mut plain = (status, text).into_response();
    if status == StatusCode::UNAUTHORIZED {
        // Asked this way, git asks its credential helpers, and then the person.
        let realm = HeaderValue::from_static("Basic realm=\"rung\"");
        plain.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(authorization: &str) -> HeaderMap {
        [(header::AUTHORIZATION, HeaderValue::try_from(authorization).unwrap())].into_iter().collect()
    }

    #[test]
    fn the_password_of_git_is_the_token() {
        let encode = |text: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
        let (user, bearer) = basic(&headers(&encode("ada@laptop:t0ken:with:colons"))).unwrap();
        assert_eq!((user.as_str(), bearer.to_str().unwrap()), ("ada@laptop", "Bearer t0ken:with:colons"));
        assert_eq!(basic(&headers(&encode(":t0ken"))).unwrap().0, "git");
        assert!(!format!("{bearer:?}").contains("t0ken"), "the token is in debug output");
        for wrong in ["Basic ???", "Bearer t0ken", "Basic "] {
            assert!(basic(&headers(wrong)).is_none(), "{wrong} was read");
        }
    }

    #[tokio::test]
    async fn an_error_is_a_text_that_git_shows() {
        let body =
            ErrorBody::new(Code::Unauthorized, "request carries no valid token").hint("set RUNG_TOKEN");
        let answer = plain(Refused(body).into_response()).await;
        assert_eq!(answer.headers()[header::WWW_AUTHENTICATE], "Basic realm=\"rung\"");
        let text = axum::body::to_bytes(answer.into_body(), 1000).await.unwrap();
        assert_eq!(text, "error: request carries no valid token\nhint: set RUNG_TOKEN\n");
    }
}
