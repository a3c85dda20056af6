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

use super::Refused;

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
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(JsonRejection::BytesRejection(error)) => {
                Err(Refused(ErrorBody::new(Code::TooLarge, error.body_text())))
            }
            Err(error) => Err(invalid(error.body_text())),
        }
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
