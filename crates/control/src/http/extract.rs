//! Path parameters, bodies and waits, with errors that name what was wrong.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use rung_api::{Code, ErrorBody};
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
    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let caller = request.extensions().get::<Caller>().cloned();
        let read = |rejected| match rejected {
            JsonRejection::BytesRejection(error) => {
                Refused(ErrorBody::new(Code::TooLarge, error.body_text()))
            }
            error => invalid(error.body_text()),
        };
        match caller {
            Some(caller) if *caller.who() != Who::Local => {
                let Json(mut body) = Json::<Value>::from_request(request, state).await.map_err(read)?;
                sign(&mut body, &caller);
                serde_json::from_value(body).map(Self).map_err(|error| invalid(error.to_string()))
            }
            _ => Json::<T>::from_request(request, state).await.map(|Json(value)| Self(value)).map_err(read),
        }
    }
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
