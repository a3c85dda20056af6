//! The answers that Rung gives itself: plain, helpful, and honest about who failed.

use rung_model::Absence;
use rung_model::route::Pages;

use crate::head::{Request, push, push_number};
use crate::response::ClientConnection;

/// What went wrong. Each has a status and a stable name, sent as `Rung-Error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    BadRequest {
        status: u16,
        why: &'static str,
    },
    RequestTimeout,
    /// The service speaks HTTP/2 only, the client does not.
    NeedsHttp2,
    /// The service speaks HTTP/2 only, and the request is one that HTTP/1.1 has.
    NeedsHttp1,
    NoRoute,
    /// The address that was called inside the cluster is no service's.
    NoService,
    /// The service is not for the app that calls.
    CallerRefused,
    NotReady,
    NoInstance(Absence),
    HoldFull,
    HeldTooLong,
    ConnectFailed,
    ConnectionLost,
    BadResponse(&'static str),
    ResponseTimeout,
    Overloaded,
    /// Every instance has as many requests as it can bear, and enough wait already.
    Busy,
    /// The instances only fail, and are left alone for a while.
    CircuitOpen,
    Maintenance,
    /// The route is not for this address.
    Forbidden,
    /// No key or password, or one that is not known.
    Unauthorized,
    /// Nobody knows yet whose tokens to believe.
    IssuerUnknown,
    RateLimited,
    BodyTooLarge,
    HeadTooLarge,
}

enum Side {
    Client,
    Rung,
    Application,
}

impl Failure {
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::BadRequest { status, .. } => status,
            Self::RequestTimeout => 408,
            Self::NeedsHttp2 => 426,
            Self::NeedsHttp1 => 501,
            Self::NoRoute | Self::NoService => 404,
            Self::Unauthorized => 401,
            Self::Forbidden | Self::CallerRefused => 403,
            Self::BodyTooLarge => 413,
            Self::RateLimited => 429,
            Self::HeadTooLarge => 431,
            Self::NotReady
            | Self::NoInstance(_)
            | Self::HoldFull
            | Self::HeldTooLong
            | Self::Overloaded
            | Self::Busy
            | Self::CircuitOpen
            | Self::IssuerUnknown
            | Self::Maintenance => 503,
            Self::ConnectFailed | Self::ConnectionLost | Self::BadResponse(_) => 502,
            Self::ResponseTimeout => 504,
        }
    }

    /// Stable: tests, dashboards and people search for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BadRequest { .. } => "bad_request",
            Self::RequestTimeout => "request_timeout",
            Self::NeedsHttp2 => "needs_http2",
            Self::NeedsHttp1 => "needs_http1",
            Self::NoRoute => "no_route",
            Self::NoService => "no_service",
            Self::CallerRefused => "caller_refused",
            Self::NotReady => "not_ready",
            Self::NoInstance(_) => "no_instance",
            Self::HoldFull => "hold_full",
            Self::HeldTooLong => "held_too_long",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectionLost => "connection_lost",
            Self::BadResponse(_) => "bad_response",
            Self::ResponseTimeout => "response_timeout",
            Self::Overloaded => "overloaded",
            Self::Busy => "busy",
            Self::CircuitOpen => "circuit_open",
            Self::Maintenance => "maintenance",
            Self::Forbidden => "forbidden",
            Self::Unauthorized => "unauthorized",
            Self::IssuerUnknown => "issuer_unknown",
            Self::RateLimited => "rate_limited",
            Self::BodyTooLarge => "body_too_large",
            Self::HeadTooLarge => "head_too_large",
        }
    }

    fn side(self) -> Side {
        match self {
            Self::BadRequest { .. }
            | Self::RequestTimeout
            | Self::NeedsHttp2
            | Self::NeedsHttp1
            | Self::Forbidden
            | Self::CallerRefused
            | Self::Unauthorized
            | Self::RateLimited
            | Self::BodyTooLarge
            | Self::HeadTooLarge => Side::Client,
            Self::NoRoute
            | Self::NoService
            | Self::NotReady
            | Self::NoInstance(Absence::Intended)
            | Self::HoldFull
            | Self::HeldTooLong
            | Self::Overloaded
            | Self::Busy
            | Self::IssuerUnknown
            | Self::Maintenance => Side::Rung,
            Self::NoInstance(Absence::Failing)
            | Self::CircuitOpen
            | Self::ConnectFailed
            | Self::ConnectionLost
            | Self::BadResponse(_)
            | Self::ResponseTimeout => Side::Application,
        }
    }

    fn message(self, explanation: &str) -> String {
        let with = |text: &str| {
            if explanation.is_empty() { format!("{text}.") } else { format!("{text}: {explanation}.") }
        };
        match self {
            Self::BadRequest { why, .. } => format!("The request was refused: {why}."),
            Self::RequestTimeout => "The request did not arrive in time.".into(),
            Self::NeedsHttp2 => "The application speaks HTTP/2 only: come by HTTP/2.".into(),
            Self::NeedsHttp1 => "The application speaks HTTP/2 only, and takes no WebSockets.".into(),
            Self::NoRoute => "No application answers to this host and path.".into(),
            Self::NoService => "No service of the cluster has this address.".into(),
            Self::CallerRefused => with("This service is not for this caller"),
            Self::NotReady => "The routes are not known yet. Try again in a moment.".into(),
            Self::NoInstance(_) => with("No instance of the application can take the request"),
            Self::HoldFull => with("The application is changing hands and too many requests wait already"),
            Self::HeldTooLong => with("The application is changing hands and it took too long"),
            Self::ConnectFailed => "The application does not accept connections.".into(),
            Self::ConnectionLost => "The application closed the connection without an answer.".into(),
            Self::BadResponse(why) => format!("The application's answer can't be passed on: {why}."),
            Self::ResponseTimeout => "The application did not answer in time.".into(),
            Self::Overloaded => "Too many requests are open. Try again in a moment.".into(),
            Self::Busy => {
                "The application has as many requests as it can bear. Try again in a moment.".into()
            }
            Self::CircuitOpen => {
                "The application fails again and again, and is left alone for a moment.".into()
            }
            Self::Maintenance => "The application is being looked after, and will be back soon.".into(),
            Self::Forbidden => "This is not for requests from your address.".into(),
            Self::Unauthorized => "This needs a key or a password that is known here.".into(),
            Self::IssuerUnknown => {
                "The keys that tokens are signed by are not known yet. Try again in a moment.".into()
            }
            Self::RateLimited => "Too many requests came. Try again later.".into(),
            Self::BodyTooLarge => "The request's body is larger than what is taken here.".into(),
            Self::HeadTooLarge => "The request's headers are larger than what is taken here.".into(),
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

/// What is said, and in whose words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page<'p> {
    pub(crate) failure: Failure,
    pub(crate) explanation: &'p str,
    /// The app's own pages.
    pub(crate) own: Option<&'p Pages>,
}

fn of_app(pages: &Pages, failure: Failure) -> Option<&str> {
    let maintenance = pages.maintenance.as_deref().filter(|_| failure == Failure::Maintenance);
    let by_status = || pages.by_status.get(&failure.status()).map(String::as_str);
    maintenance.or_else(by_status).or(pages.error.as_deref())
}

/// `{{status}}`, `{{message}}` and `{{request_id}}` of an app's page.
fn fill_in(page: &str, failure: Failure, explanation: &str, id: &str) -> String {
    page.replace("{{status}}", &failure.status().to_string())
        .replace("{{message}}", &escape(&failure.message(explanation)))
        .replace("{{request_id}}", &escape(id))
}

/// Appends a whole answer to `out`; returns the length of its body.
pub(crate) fn write(
    out: &mut Vec<u8>,
    page: &Page<'_>,
    request: &Request,
    connection: ClientConnection,
) -> u64 {
    let Page { failure, explanation, own } = *page;
    let body = match own.and_then(|pages| of_app(pages, failure)) {
        _ if request.wants_json => json(failure, explanation, &request.id),
        Some(own) => fill_in(own, failure, explanation, &request.id),
        None => html(failure, explanation, &request.id),
    };
    let kind: &[u8] = if request.wants_json { b"application/json" } else { b"text/html; charset=utf-8" };
    out.extend_from_slice(b"HTTP/1.1 ");
    push_number(out, u64::from(failure.status()));
    push(out, &[b" ", reason(failure.status()).as_bytes(), b"\r\nContent-Type: ", kind]);
    out.extend_from_slice(b"\r\nContent-Length: ");
    push_number(out, body.len() as u64);
    push(out, &[b"\r\nCache-Control: no-store\r\nRung-Error: ", failure.name().as_bytes()]);
    if !request.id.is_empty() {
        push(out, &[b"\r\nX-Request-Id: ", request.id.as_bytes()]);
    }
    match failure {
        Failure::Maintenance => out.extend_from_slice(b"\r\nRetry-After: 60"),
        _ if failure.status() == 503 => out.extend_from_slice(b"\r\nRetry-After: 1"),
        _ => {}
    }
    if let Some(dress) = request.dress.borrow().as_ref() {
        out.extend_from_slice(b"\r\n");
        dress.write(out);
        // Each line of it ends with what comes next here.
        out.truncate(out.len() - 2);
    }
    match connection {
        ClientConnection::Close => out.extend_from_slice(b"\r\nConnection: close\r\n\r\n"),
        ClientConnection::KeepAlive if request.is_http_10() => {
            out.extend_from_slice(b"\r\nConnection: keep-alive\r\n\r\n");
        }
        ClientConnection::KeepAlive => out.extend_from_slice(b"\r\n\r\n"),
    }
    if request.is_head() {
        return 0;
    }
    out.extend_from_slice(body.as_bytes());
    body.len() as u64
}

fn json(failure: Failure, explanation: &str, id: &str) -> String {
    let side = match failure.side() {
        Side::Client => "client",
        Side::Rung => "rung",
        Side::Application => "application",
    };
    let value = serde_json::json!({
        "error": failure.name(),
        "status": failure.status(),
        "message": failure.message(explanation),
        "failed": side,
        "request_id": id,
    });
    format!("{value}\n")
}

fn html(failure: Failure, explanation: &str, id: &str) -> String {
    let status = failure.status();
    let title = reason(status);
    let message = escape(&failure.message(explanation));
    let side = match failure.side() {
        Side::Client => "The request was not served by Rung, which answers here; no application saw it.",
        Side::Rung => "This answer comes from Rung, which serves here; no application saw the request.",
        Side::Application => "The application failed; this page comes from Rung, which serves it.",
    };
    let id =
        if id.is_empty() { String::new() } else { format!("<p>Request <code>{}</code></p>\n", escape(id)) };
    let name = failure.name();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{status} {title}</title>\n\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em}}code{{font-size:.9em}}</style>\n\
         <h1>{status} {title}</h1>\n<p>{message}</p>\n<p>{side}</p>\n{id}<p><code>{name}</code></p>\n</html>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_can_not_bring_markup_into_the_page() {
        let request = Request::default();
        let mut out = Vec::new();
        let failure = Failure::NoInstance(Absence::Failing);
        let page = Page { failure, explanation: "<script>", own: None };
        write(&mut out, &page, &request, ClientConnection::Close);
        let page = String::from_utf8(out).unwrap();
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"), "{page}");
        assert!(page.contains("Rung-Error: no_instance\r\n"), "{page}");
        assert!(page.contains("The application failed"), "{page}");
    }

    #[test]
    fn an_application_that_is_scaled_to_nothing_has_not_failed() {
        let request = Request { wants_json: true, ..Request::default() };
        let mut out = Vec::new();
        let failure = Failure::NoInstance(Absence::Intended);
        let page = Page { failure, explanation: "web is scaled to 0 instances", own: None };
        write(&mut out, &page, &request, ClientConnection::Close);
        let answer = String::from_utf8(out).unwrap();
        assert!(answer.contains(r#""failed":"rung""#) && answer.contains("scaled to 0"), "{answer}");
        assert!(answer.contains("Rung-Error: no_instance\r\n"), "{answer}");
    }
}
