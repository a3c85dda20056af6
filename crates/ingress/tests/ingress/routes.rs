//! What routes ask for beside a path: conditions, rewriting, redirects, headers, bounds, pages, and coming back.

use std::collections::BTreeMap;
use std::time::Duration;

use rung_model::route::{
    Affinity, Conditions, Destination, HeaderChange, Maintenance, Pages, Redirect, RoutePolicy,
};
use rung_model::{Route, RouteDocument, ServiceName};

use crate::application::Application;
use crate::client::{Answer, Client, get};
use crate::stage::{Stage, backend, shop};

/// The shop with these routes instead of its own, all to one instance.
pub fn shop_with(app: &Application, rules: Vec<Route>) -> RouteDocument {
    RouteDocument { rules, ..shop(backend(vec![app.endpoint()])) }
}

pub fn to_web(path: &str, policy: RoutePolicy) -> Route {
    Route { policy: Box::new(policy), ..Route::to_service(path, ServiceName::new("web").unwrap()) }
}

fn to_elsewhere(path: &str, to: &str, status: u16) -> Route {
    Route {
        to: Destination::Redirect(Redirect { to: to.into(), status }),
        ..to_web(path, RoutePolicy::default())
    }
}

pub fn ask(stage: &Stage, request: &str) -> Answer {
    let mut client = Client::connect(stage.http);
    client.send(request);
    client.answer().expect("the connection closed without an answer")
}

fn set(pairs: &[(&str, Option<&str>)]) -> BTreeMap<String, HeaderChange> {
    let change =
        |value: Option<&str>| value.map_or(HeaderChange::Remove, |value| HeaderChange::Set(value.into()));
    pairs.iter().map(|(name, value)| ((*name).to_owned(), change(*value))).collect()
}

#[test]
fn the_application_sees_the_rewritten_path_and_the_query_stays() {
    let app = Application::answering("a-1", |seen| seen.path().as_bytes().to_vec());
    let rules = vec![
        to_web("/api/*", RoutePolicy { rewrite: Some("/*".into()), ..RoutePolicy::default() }),
        to_web("/v1/*", RoutePolicy { rewrite: Some("/v2/*".into()), ..RoutePolicy::default() }),
        to_web("/*", RoutePolicy::default()),
    ];
    let stage = Stage::start(vec![shop_with(&app, rules)]);
    for (path, seen) in [
        ("/api/users?page=2", "/users?page=2"),
        ("/api", "/"),
        ("/v1/users", "/v2/users"),
        ("/%61pi/a%2Fb", "/a%2Fb"),
        ("/other", "/other"),
    ] {
        assert_eq!(get(stage.http, path).text(), seen, "{path} reached the application as something else");
    }
}

#[test]
fn a_body_goes_with_a_rewritten_head() {
    let app = Application::answering("a-1", |seen| [seen.path().as_bytes(), b" ", &seen.body].concat());
    let policy = RoutePolicy {
        rewrite: Some("/*".into()),
        request_headers: set(&[("X-Tier", Some("gold")), ("X-Debug", None)]),
        ..RoutePolicy::default()
    };
    let stage = Stage::start(vec![shop_with(&app, vec![to_web("/api/*", policy)])]);
    let head = "POST /api/order HTTP/1.1\r\nHost: shop.localhost\r\nX-Debug: 1\r\nX_Debug: 1\r\nx-tier: iron\r\nX_Tier: iron\r\n";
    let whole = ask(&stage, &format!("{head}Content-Length: 5\r\n\r\nhello"));
    assert_eq!(whole.text(), "/order hello");
    let chunked = ask(&stage, &format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
    assert_eq!(chunked.text(), "/order hello");
    for seen in app.seen() {
        assert_eq!(seen.header("X-Tier"), Some("gold"), "{}", seen.head);
        assert!(!seen.head.contains("Debug"), "behind WSGI both spellings are one: {}", seen.head);
        assert_eq!(seen.head.matches("ier: ").count(), 1, "the client's own word came too: {}", seen.head);
    }
}

#[test]
fn answers_get_headers_and_lose_some() {
    let app = Application::start("a-1", |connection| {
        while connection.request().is_some() {
            let answer = b"HTTP/1.1 200 OK\r\nServer: shop/1\r\nX-Frame-Options: ALLOWALL\r\nContent-Length: 0\r\n\r\n";
            if connection.write(answer).is_err() {
                return;
            }
        }
    });
    let response_headers = set(&[("X-Frame-Options", Some("DENY")), ("Server", None)]);
    let policy = RoutePolicy { response_headers, ..RoutePolicy::default() };
    let stage = Stage::start(vec![shop_with(&app, vec![to_web("/*", policy)])]);
    let answer = get(stage.http, "/");
    assert_eq!(answer.header("Server"), None, "{answer:?}");
    assert_eq!(answer.header("X-Frame-Options"), Some("DENY"), "{answer:?}");
    assert_eq!(answer.head.matches("X-Frame-Options").count(), 1, "{answer:?}");
}

#[test]
fn redirects_keep_what_follows_and_never_lead_to_another_host_by_accident() {
    let app = Application::answering("a-1", |_| b"app".to_vec());
    let rules = vec![
        to_elsewhere("/old/*", "/new/*", 308),
        to_elsewhere("/blog/*", "https://blog.example.com/*", 301),
        to_elsewhere("/drop/*", "/*", 307),
        to_elsewhere("/start", "/", 302),
        to_web("/*", RoutePolicy::default()),
    ];
    let stage = Stage::start(vec![shop_with(&app, rules)]);
    let mut client = Client::connect(stage.http);
    for (path, status, location) in [
        ("/old/a/b?x=1", 308, "/new/a/b?x=1"),
        ("/blog/2026", 301, "https://blog.example.com/2026"),
        ("/start?x=1", 302, "/?x=1"),
        ("/drop//evil.example/", 307, "/evil.example/"),
        ("/drop/a/%2e%2e//evil.example/", 307, "/evil.example/"),
    ] {
        let answer = client.get(path);
        assert_eq!(
            (answer.status, answer.header("Location")),
            (status, Some(location)),
            "{path}: {answer:?}"
        );
    }
    assert_eq!(client.get("/").text(), "app", "the connection could not be used again");
}

#[test]
fn the_route_with_more_conditions_wins_and_others_fall_through() {
    let app = Application::answering("a-1", |seen| seen.path().as_bytes().to_vec());
    let marked = |mark: &str, when: Conditions| Route {
        when,
        ..to_web("/*", RoutePolicy { rewrite: Some(format!("/{mark}/*")), ..RoutePolicy::default() })
    };
    let host = |host: &str| Conditions { host: Some(host.into()), ..Conditions::default() };
    let methods = Conditions { methods: ["DELETE".to_owned()].into(), ..Conditions::default() };
    let headers = |value: Option<&str>| Conditions {
        headers: [("x-version".to_owned(), value.map(str::to_owned))].into(),
        ..Conditions::default()
    };
    let rules = vec![
        to_web("/*", RoutePolicy::default()),
        marked("any-version", headers(None)),
        marked("version-2", headers(Some("2"))),
        marked("deleted", methods),
        marked("admin", host("admin.shop.example")),
        marked("tenant", host("*.shop.example")),
    ];
    let hosts = vec!["shop.localhost".into(), "admin.shop.example".into(), "*.shop.example".into()];
    // Of two with equally many conditions the first in the file is tried first.
    let mut rules = rules;
    rules.swap(1, 2);
    let stage = Stage::start(vec![RouteDocument { hosts, ..shop_with(&app, rules) }]);
    for (line, headers, seen) in [
        ("GET /a", "Host: shop.localhost", "/a"),
        ("DELETE /a", "Host: shop.localhost", "/deleted/a"),
        ("GET /a", "Host: shop.localhost\r\nX-Version: 2", "/version-2/a"),
        ("GET /a", "Host: shop.localhost\r\nX-Version: 3", "/any-version/a"),
        ("GET /a", "Host: admin.shop.example", "/admin/a"),
        ("DELETE /a", "Host: admin.shop.example", "/admin/a"),
        ("GET /a", "Host: acme.shop.example:80", "/tenant/a"),
        ("GET /a", "Host: acme.shop.example.", "/tenant/a"),
        ("GET /a", "Host: Admin.shop.example.:80", "/admin/a"),
    ] {
        let answer = ask(&stage, &format!("{line} HTTP/1.1\r\n{headers}\r\n\r\n"));
        assert_eq!(answer.text(), seen, "{line} with {headers:?}");
    }
}

#[test]
fn a_body_that_is_too_large_is_refused_however_it_is_framed() {
    let app = Application::answering("a-1", |seen| seen.body.clone());
    let policy = RoutePolicy { max_body_bytes: Some(10), ..RoutePolicy::default() };
    let stage = Stage::start(vec![shop_with(&app, vec![to_web("/*", policy)])]);
    let head = "POST / HTTP/1.1\r\nHost: shop.localhost\r\n";
    let fits = ask(&stage, &format!("{head}Content-Length: 10\r\n\r\n0123456789"));
    assert_eq!((fits.status, fits.text()), (200, "0123456789"));
    let announced = ask(&stage, &format!("{head}Content-Length: 11\r\n\r\n"));
    assert_eq!((announced.status, announced.header("Rung-Error")), (413, Some("body_too_large")));
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\nb\r\n0123456789a\r\n0\r\n\r\n");
    let chunked = ask(&stage, &chunked);
    assert_eq!((chunked.status, chunked.header("Rung-Error")), (413, Some("body_too_large")));
}

#[test]
fn headers_that_are_too_large_are_refused() {
    let app = Application::answering("a-1", |_| b"ok".to_vec());
    let policy = RoutePolicy { max_head_bytes: Some(1000), ..RoutePolicy::default() };
    let stage = Stage::start(vec![shop_with(&app, vec![to_web("/*", policy)])]);
    assert_eq!(get(stage.http, "/").status, 200);
    let large = "x".repeat(1000);
    let answer = ask(&stage, &format!("GET / HTTP/1.1\r\nHost: shop.localhost\r\nCookie: a={large}\r\n\r\n"));
    assert_eq!((answer.status, answer.header("Rung-Error")), (431, Some("head_too_large")));
}

#[test]
fn a_route_has_a_patience_of_its_own() {
    let app = Application::start("a-1", |connection| {
        let _ = connection.request();
        // Until the ingress has enough.
        let _ = connection.request();
    });
    let policy = RoutePolicy { response_timeout: Some(Duration::from_millis(100)), ..RoutePolicy::default() };
    let stage = Stage::start(vec![shop_with(&app, vec![to_web("/*", policy)])]);
    let answer = get(stage.http, "/");
    assert_eq!((answer.status, answer.header("Rung-Error")), (504, Some("response_timeout")));
}

#[test]
fn an_app_in_maintenance_shows_its_own_page_and_comes_back() {
    let app = Application::answering("a-1", |_| b"app".to_vec());
    let pages = Pages {
        maintenance: Some("<h1>Back soon</h1> {{status}} {{request_id}}".into()),
        by_status: [(404, "<h1>Lost?</h1>".to_owned())].into(),
        error: None,
    };
    let open = RouteDocument { pages, ..shop_with(&app, vec![to_web("/shop/*", RoutePolicy::default())]) };
    let closed = RouteDocument { maintenance: Maintenance::On, ..open.clone() };
    let stage = Stage::start(vec![closed]);
    let mut client = Client::connect(stage.http);
    client.send("GET /shop/ HTTP/1.1\r\nHost: shop.localhost\r\nX-Request-Id: r-1\r\n\r\n");
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.header("Rung-Error")), (503, Some("maintenance")));
    assert_eq!(answer.text(), "<h1>Back soon</h1> 503 r-1");
    client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\nAccept: application/json\r\n\r\n");
    let json: serde_json::Value = serde_json::from_slice(&client.answer().unwrap().body).unwrap();
    assert_eq!(json["error"], "maintenance", "who asks for JSON gets a page");
    let generation = stage.server.publish(vec![open]);
    stage.server.await_acknowledged(generation);
    assert_eq!(client.get("/shop/").text(), "app");
    let lost = client.get("/elsewhere");
    assert_eq!((lost.status, lost.text()), (404, "<h1>Lost?</h1>"));
}

#[test]
fn a_visitor_comes_back_to_the_same_instance_until_it_is_gone() {
    let apps: Vec<Application> = ["a-1", "a-2", "a-3"]
        .into_iter()
        .map(|id| Application::answering(id, move |_| id.as_bytes().to_vec()))
        .collect();
    let policy = || RoutePolicy { affinity: Affinity::Cookie, ..RoutePolicy::default() };
    let document = |apps: &[&Application]| RouteDocument {
        rules: vec![to_web("/*", policy())],
        ..shop(backend(apps.iter().map(|app| app.endpoint()).collect()))
    };
    let stage = Stage::start(vec![document(&apps.iter().collect::<Vec<_>>())]);
    let first = get(stage.http, "/");
    let cookie = first.header("Set-Cookie").expect("a new visitor is told its instance").to_owned();
    assert!(cookie.starts_with("rung-instance-web=") && cookie.contains("HttpOnly"), "{cookie}");
    assert!(!cookie.contains(first.text()), "the cookie names the instance: {cookie}");
    let pair = cookie.split(';').next().unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: shop.localhost\r\nCookie: a=b; {pair}\r\n\r\n");
    for _ in 0..20 {
        let again = ask(&stage, &request);
        assert_eq!(again.text(), first.text(), "the visitor came to another instance");
        assert_eq!(again.header("Set-Cookie"), None, "what is known is said again");
    }
    let left: Vec<&Application> = apps.iter().filter(|app| app.id.as_str() != first.text()).collect();
    let generation = stage.server.publish(vec![document(&left)]);
    stage.server.await_acknowledged(generation);
    let moved = ask(&stage, &request);
    assert_eq!(moved.status, 200);
    assert_ne!(moved.text(), first.text());
    assert!(moved.header("Set-Cookie").is_some(), "nobody told the visitor of its new instance");
}
