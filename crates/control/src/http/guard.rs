//! What stands before every endpoint but the open ones: who calls, whether that one may, what is cut off when it may no
//! longer, and that each change is told in the audit trail.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, extract::ConnectInfo};
use futures_util::StreamExt;
use rung_api::audit::Act;
use rung_api::{Code, ErrorBody};
use rung_model::{AppName, Role};

use super::callers::CameFrom;
use super::right::Right;
use super::{Refused, Via};
use crate::access::{Caller, Who};
use crate::shared::Control;

/// What is routed, by method and path.
pub(crate) type Duties = BTreeMap<(String, String), Duty>;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Duty {
    pub right: Right,
    /// The endpoint in words.
    pub summary: &'static str,
}

#[derive(Clone)]
pub(super) struct Guard {
    pub control: Control,
    pub duties: Arc<Duties>,
}

pub(super) async fn guard(
    State(guard): State<Guard>,
    Extension(via): Extension<Via>,
    path: MatchedPath,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    let method = request.method().clone();
    let Some(duty) = guard.duty(&method, path.as_str()) else {
        // Of a path that is there: the wrong method, which the router refuses.
        return next.run(request).await;
    };
    let is_local = via == Via::Socket;
    // Taken out first: a request's body can't be shared between threads.
    let (from, header) = (address(&request), authorization(&request));
    let caller = match guard.caller(via, from, header).await {
        Ok(caller) => caller,
        Err(refused) => return Refused(refused).into_response(),
    };
    let allowed = authorize(&caller, duty.right, &params);
    request.extensions_mut().insert(caller.clone());
    let is_change = ![Method::GET, Method::HEAD].contains(&method);
    if is_change {
        let asked = Act::Asked {
            who: caller.who().name().to_owned(),
            from: if is_local { "socket".to_owned() } else { from.to_canonical().to_string() },
            what: duty.summary.to_owned(),
            method: method.to_string(),
            path: bounded(request.uri().path()),
            app: named_app(&params).map(bounded),
        };
        return told(guard.control, caller, asked, allowed, request, next).await;
    }
    if let Err(refused) = allowed {
        return Refused(refused).into_response();
    }
    // What waits is ended with the right to wait; a change that has begun goes on to its end.
    let response = tokio::select! {
        response = next.run(request) => response,
        () = caller.ends() => return Refused(ended(&caller)).into_response(),
    };
    cut_with(response, caller)
}

/// Makes a change, told before and after. It goes on to its end when whoever asked has gone.
async fn told(
    control: Control,
    caller: Caller,
    asked: Act,
    allowed: Result<(), ErrorBody>,
    request: Request,
    next: Next,
) -> Response {
    let of = match control.inner.audit.append(asked).await {
        Ok(of) => of,
        Err(error) => {
            let message =
                format!("the change can't be written into the audit trail: {error}; it was not made");
            let body = ErrorBody::new(Code::Unavailable, message)
                .hint("free some space on the disk of the data directory; what runs goes on meanwhile, what crashes is not started again");
            return Refused(body).into_response();
        }
    };
    let work = tokio::spawn(async move {
        let response = match allowed {
            Ok(()) => next.run(request).await,
            Err(refused) => Refused(refused).into_response(),
        };
        let refused = response.extensions().get::<Code>().copied();
        let status = response.status().as_u16();
        let (note, by) = caller.told();
        let ended = Act::Ended { of, refused, status, note, by };
        if let Err(error) = control.inner.audit.append(ended).await {
            // Its beginning is on the disk.
            tracing::error!(%error, of, "the end of a change can't be written into the audit trail");
        }
        response
    });
    match work.await {
        Ok(response) => response,
        Err(_) => {
            let body = ErrorBody::new(Code::Internal, "answering the request panicked");
            Refused(body.hint("look with `rung status` before doing it again")).into_response()
        }
    }
}

/// Room in the trail is reserved for lines of a usual length.
const TEXT_MAX: usize = 300;

fn bounded(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

fn named_app(params: &RawPathParams) -> Option<&str> {
    params.iter().find(|(name, _)| *name == "app").map(|(_, app)| app)
}

impl Guard {
    fn duty(&self, method: &Method, path: &str) -> Option<Duty> {
        // A HEAD is answered as a GET without its body.
        let method = if method == Method::HEAD { "GET" } else { method.as_str() };
        self.duties.get(&(method.to_owned(), path.to_owned())).copied()
    }

    async fn caller(&self, via: Via, from: IpAddr, header: Option<String>) -> Result<Caller, ErrorBody> {
        let who = match via {
            // Who shows a token there acts as that, and not as the owner: the gate of `git push` does.
            Via::Socket if header.is_none() => Who::Local,
            Via::Socket => self.control.authenticate(from, header.as_deref()).await?,
            // A node's certificate is no right to what people do.
            Via::Tcp | Via::Node(_) => self.control.authenticate(from, header.as_deref()).await?,
        };
        Ok(Caller::new(self.control.clone(), who))
    }
}

fn authorization(request: &Request) -> Option<String> {
    Some(request.headers().get(header::AUTHORIZATION)?.to_str().ok()?.to_owned())
}

/// Where the request came from.
fn address(request: &Request) -> IpAddr {
    let from = request.extensions().get::<ConnectInfo<CameFrom>>();
    from.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(CameFrom(address))| address.ip())
}

fn authorize(caller: &Caller, right: Right, params: &RawPathParams) -> Result<(), ErrorBody> {
    match right {
        Right::Anybody | Right::Anyone => Ok(()),
        Right::Admin => caller.require_role(Role::Admin),
        Right::OfApp(role) => {
            match named_app(params).map(str::parse::<AppName>) {
                Some(Ok(app)) => caller.require(role, &app),
                // A text that names no app is refused by its handler, whoever asks.
                Some(Err(_)) => Ok(()),
                None => caller.require_role(Role::Admin),
            }
        }
        Right::Node => Err(ErrorBody::new(Code::Unauthorized, "this endpoint is for nodes and proxies")),
    }
}

fn ended(caller: &Caller) -> ErrorBody {
    let message = format!("token {} was revoked or has expired meanwhile", caller.who().name());
    ErrorBody::new(Code::Unauthorized, message).hint("ask an admin for another one: `rung token create`")
}

/// A stream that goes on ends with the right to read it.
fn cut_with(response: Response, caller: Caller) -> Response {
    let is_stream = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes() == b"text/event-stream");
    if !is_stream {
        return response;
    }
    response.map(|body| {
        let ends = Box::pin(async move { caller.ends().await });
        Body::from_stream(body.into_data_stream().take_until(ends))
    })
}
