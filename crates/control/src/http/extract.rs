//! Path parameters, bodies and waits, with errors that name what was wrong.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use rung_api::{Code, ErrorBody};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Refused;
use crate::access::{Caller, Who};

/// A long poll never waits longer, whatever it asks for: what is between must be able to rely on an answer.
const WAIT_MAX: Duration = Duration::from_secs(60);

fn invalid(message: impl Into<String>) -> Refused {
    Refused(ErrorBody::new(Code::InvalidRequest, message))
}

/// All path parameters of a route by name.
pub(crate) struct Named(BTreeMap<String, String>);

impl Named {
    pub fn get<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<T, Refused> {
        let text = self.0.get(name).expect("handlers ask for what their path has");
        text.parse().map_err(|error: T::Err| invalid(error.to_string()))
    }

    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).expect("handlers ask for what their path has")
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Refused;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let found = Path::<BTreeMap<String, String>>::from_request_parts(parts, state).await;
        found.map(|Path(found)| Self(found)).map_err(|error| invalid(error.to_string()))
    }
}

/// A JSON body of a wire type.
pub(crate) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refused;
    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        let text = signed_body(request).await?;
        serde_json::from_slice(&text).map(Self).map_err(|error| not_understood(&error))
    }
}

fn not_understood(error: &serde_json::Error) -> Refused {
    invalid(format!("the body is not what is taken here: {error}"))
}

/// The request's body, in which a token speaks under its own name.
async fn signed_body(request: Request) -> Result<Bytes, Refused> {
    let caller = request.extensions().get::<Caller>().cloned();
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        return Err(invalid("the body is JSON, so the request must say `Content-Type: application/json`"));
    }
    let text = Bytes::from_request(request, &()).await;
    let text = text.map_err(|error| Refused(ErrorBody::new(Code::TooLarge, error.body_text())))?;
    let Some(caller) = caller.filter(|caller| *caller.who() != Who::Local) else { return Ok(text) };
    let mut body: Value = serde_json::from_slice(&text).map_err(|error| not_understood(&error))?;
    sign(&mut body, &caller);
    Ok(serde_json::to_vec(&body).expect("a value of JSON serializes").into())
}

/// An answer. Its code is shared with everything else that writes the same types, which that of axum's is not.
#[derive(Debug)]
pub(crate) struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        json_response(serde_json::to_vec(&self.0).expect("wire types serialize"))
    }
}

fn json_response(text: Vec<u8>) -> Response {
    ([(CONTENT_TYPE, "application/json")], text).into_response()
}

/// A body that holds secrets: what is wrong with it is told without a word of what is in it.
pub(crate) struct Private<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Private<T> {
    type Rejection = Refused;
    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let path = request.uri().path().to_owned();
        match Body::<T>::from_request(request, state).await {
            Ok(Body(value)) => Ok(Self(value)),
            Err(Refused(error)) if error.code == Code::InvalidRequest => {
                let error =
                    ErrorBody::new(Code::InvalidRequest, format!("the body is not what {path} takes"));
                Err(Refused(error.hint("/v1/openapi.json describes it")))
            }
            Err(refused) => Err(refused),
        }
    }
}

/// Requests say in `by` who asks (a body that is only a text says nothing else). A token is not taken at its word: what
/// is recorded begins with the token's name. The socket's callers are the platform itself.
fn sign(body: &mut Value, caller: &Caller) {
    let by = match body {
        Value::Object(fields) => fields.get_mut("by"),
        Value::String(_) => Some(body),
        _ => None,
    };
    if let Some(Value::String(by)) = by {
        *by = caller.signed(by);
    }
}

/// The query's parameters.
pub(crate) struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refused;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let found = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        found.map(|found| Self(found.0)).map_err(|error| invalid(error.body_text()))
    }
}

/// `?wait_ms=…`, zero when it is not given.
#[derive(Debug, Default, serde::Deserialize)]
pub(crate) struct Wait {
    #[serde(default)]
    wait_ms: u64,
}

impl Wait {
    pub fn duration(&self) -> Duration {
        Duration::from_millis(self.wait_ms).min(WAIT_MAX)
    }
}

/// `?after=…&wait_ms=…`: what comes behind that number, once there is something.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Beyond {
    #[serde(default)]
    pub after: u64,
    #[serde(default)]
    wait_ms: u64,
}

impl Beyond {
    pub fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms).min(WAIT_MAX)
    }
}
