//! What stands before an application: keys that rotate, paths, and a page while it is looked after.

use rung_e2e::http::{Answer, Connection};
use rung_e2e::{Rung, TestApp, eventually};

fn ask(rung: &Rung, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut connection = Connection::open(rung.http()).expect("the ingress takes connections");
    connection.ask("GET", "shop.localhost", path, headers, b"").expect("an answer")
}

fn with_key(rung: &Rung, path: &str, key: &str) -> u16 {
    ask(rung, path, &[("X-API-Key", key)]).status
}

/// A change of the routes reaches the ingress a moment after the command's end.
fn becomes(what: &str, is_it: impl Fn() -> bool) {
    eventually(&format!("{what} is there"), || if is_it() { Ok(()) } else { Err("not yet".to_owned()) });
}

#[test]
fn a_key_opens_a_route_until_the_secret_has_a_new_version() {
    let rung = Rung::start();
    let mut app = TestApp::new("shop", 1);
    app.sections.push("[secrets]\nrequired = [\"API_KEYS\"]".into());
    app.sections.push(
        "[[routes]]\npath = \"/*\"\nservice = \"web\"\n\n\
         [[routes]]\npath = \"/api/*\"\nservice = \"web\"\nstrip = true\nauth = { api_key = \"API_KEYS\" }\n\
         limit = { per_key = \"1000/h\" }\nresponse_headers = { X-Served = \"by rung\" }\n\n\
         [[routes]]\npath = \"/old/*\"\nredirect = \"/new/*\""
            .into(),
    );
    rung.deploy(app.directory()).ends_with(1).mentions("API_KEYS");
    rung.set_secret("shop", "API_KEYS", "acme: first-key-7141\n").succeeds();
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("shop", "web", 1);
    becomes("the gate", || with_key(&rung, "/api/", "first-key-7141") == 200);
    assert_eq!(with_key(&rung, "/api/", "wrong"), 401);
    let answer = ask(&rung, "/api/", &[("X-API-Key", "first-key-7141")]);
    assert_eq!(answer.header("x-served"), Some("by rung"), "{}", answer.text());
    assert!(answer.header("ratelimit").is_some(), "what is left is not said: {}", answer.text());
    assert_eq!(ask(&rung, "/old/a?b=c", &[]).header("location"), Some("/new/a?b=c"));
    assert_eq!(rung.get("shop", "/").expect("an answer").status, 200, "a route beside asked for a key");

    rung.set_secret("shop", "API_KEYS", "acme: second-key-2718\n").succeeds();
    becomes("the new key", || with_key(&rung, "/api/", "second-key-2718") == 200);
    assert_eq!(with_key(&rung, "/api/", "first-key-7141"), 401, "the old key still opens");
    for file in walk(&rung.data().join("ingress")) {
        let bytes = std::fs::read(&file).unwrap_or_default();
        let holds = |key: &[u8]| bytes.windows(key.len()).any(|window| window == key);
        assert!(!holds(b"first-key") && !holds(b"second-key"), "{} holds a key", file.display());
    }
}

#[test]
fn a_route_that_asks_for_it_compresses_what_the_application_says() {
    use std::io::Read;
    let rung = Rung::start();
    let mut app = TestApp::new("shop", 1);
    app.sections.push(
        "[[routes]]\npath = \"/*\"\nservice = \"web\"\n\n\
         [[routes]]\npath = \"/packed/*\"\nservice = \"web\"\nstrip = true\ncompress = true"
            .into(),
    );
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("shop", "web", 1);
    let text = "what is said twice is said once\n".repeat(500);
    let echo = |path: &str, takes: &str| {
        let mut connection = Connection::open(rung.http()).expect("the ingress takes connections");
        let headers = [("Accept-Encoding", takes)];
        connection.ask("POST", "shop.localhost", path, &headers, text.as_bytes()).expect("an answer")
    };
    becomes("the route", || echo("/packed/", "gzip").header("content-encoding").is_some());
    let packed = echo("/packed/", "gzip, br");
    assert_eq!(packed.header("content-encoding"), Some("gzip"), "{:?}", packed.headers);
    assert!(packed.body.len() < 1000, "{} bytes of {}", packed.body.len(), text.len());
    let mut read = String::new();
    flate2::read::GzDecoder::new(&packed.body[..]).read_to_string(&mut read).expect("it is gzip");
    assert_eq!(read, text);
    for coding in ["zstd", "br"] {
        let packed = echo("/packed/", coding);
        assert_eq!(packed.header("content-encoding"), Some(coding), "{:?}", packed.headers);
        assert!(packed.body.len() < 1000, "{} bytes of {}", packed.body.len(), text.len());
    }
    assert_eq!(echo("/packed/", "deflate").text(), text, "who takes none of them can't read it");
    let plain = echo("/", "gzip, br");
    assert_eq!((plain.header("content-encoding"), plain.text()), (None, text.clone()));
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files.extend(walk(&entry.path())),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}

#[test]
fn an_app_in_maintenance_shows_its_page_and_keeps_its_instances() {
    let rung = Rung::start();
    let mut app = TestApp::new("shop", 1);
    app.sections.push("[pages]\nmaintenance = \"<h1>Back in an hour</h1>\"".into());
    rung.deploy(app.directory()).succeeds();
    let before = rung.wait_until_settled("shop", "web", 1);
    rung.cli(&["maintenance", "on", "--app", "shop"]).succeeds().mentions("maintenance off");
    becomes("the page", || ask(&rung, "/", &[]).status == 503);
    assert_eq!(ask(&rung, "/", &[]).text(), "<h1>Back in an hour</h1>");
    rung.cli(&["status", "--app", "shop"]).mentions("maintenance page");
    // A deploy meanwhile goes its way behind the page.
    app.version = "2".into();
    rung.deploy(app.directory()).succeeds();
    assert_eq!(ask(&rung, "/", &[]).status, 503, "a deploy has ended the maintenance");
    rung.cli(&["maintenance", "off", "--app", "shop"]).succeeds();
    becomes("the app", || ask(&rung, "/", &[]).status == 200);
    assert_ne!(rung.wait_until_settled("shop", "web", 1)[0].id, before[0].id, "version 2 never started");
    rung.cli(&["maintenance", "sideways", "--app", "shop"]).ends_with(2);
}
