//! Answers that get smaller on their way, and those that must not be touched.

use std::io::Read;
use std::sync::mpsc::channel;

use flate2::read::GzDecoder;
use http::Method;
use rung_model::RouteDocument;
use rung_model::route::{Compression, HeaderChange, RoutePolicy};

use crate::application::Application;
use crate::client::{Answer, Client};
use crate::http2::{connect, request as http2_request, story};
use crate::routes::{ask, shop_with, to_web};
use crate::stage::Stage;

fn compressing(app: &Application) -> RouteDocument {
    let policy = RoutePolicy { compression: Compression::On, ..RoutePolicy::default() };
    shop_with(app, vec![to_web("/*", policy)])
}

/// An application that answers each request with such a head and such a body.
fn saying(head: impl Fn(&str) -> String + Send + Sync + 'static, body: Vec<u8>) -> Application {
    Application::start("a-1", move |connection| {
        while let Some(seen) = connection.request() {
            let head = format!("HTTP/1.1 {}Content-Length: {}\r\n\r\n", head(seen.path()), body.len());
            let is_head = seen.head.starts_with("HEAD ");
            let written = connection.write(head);
            if written.and_then(|()| connection.write(if is_head { b"" } else { &body[..] })).is_err() {
                return;
            }
        }
    })
}

/// So much text that it gains.
fn page() -> Vec<u8> {
    (0..400).flat_map(|n| format!("<li>item {n} of the list</li>\n").into_bytes()).collect()
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: shop.localhost\r\n{headers}\r\n")
}

const GZIP: &str = "Accept-Encoding: gzip, deflate, br\r\n";

fn unpacked(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    GzDecoder::new(body).read_to_end(&mut out).expect("the body is gzip, and whole");
    out
}

fn is_compressed(answer: &Answer) -> bool {
    answer.header("Content-Encoding") == Some("gzip")
}

#[test]
fn who_takes_gzip_gets_gzip_and_others_get_the_page_as_it_is() {
    let head = |_: &str| {
        "200 OK\r\nContent-Type: text/html\r\nETag: \"v1\"\r\nAccept-Ranges: bytes\r\nVary: Cookie\r\n"
            .to_owned()
    };
    let app = saying(head, page());
    let stage = Stage::start(vec![compressing(&app)]);
    let mut client = Client::connect(stage.http);
    for _ in 0..3 {
        client.send(get("/", GZIP));
        let answer = client.answer().expect("the connection is kept");
        assert!(is_compressed(&answer), "{}", answer.head);
        assert!(answer.body.len() * 4 < page().len(), "{} of {} bytes", answer.body.len(), page().len());
        assert_eq!(unpacked(&answer.body), page());
        assert_eq!(answer.header("ETag"), Some("W/\"v1\""), "other bytes have the same strong tag");
        assert_eq!((answer.header("Content-Length"), answer.header("Accept-Ranges")), (None, None));
        assert!(answer.head.contains("Vary: Cookie\r\n"), "{}", answer.head);
        assert!(answer.head.contains("Vary: Accept-Encoding\r\n"), "{}", answer.head);
    }
    for headers in ["", "Accept-Encoding: deflate\r\n", "Accept-Encoding: gzip;q=0, *\r\n"] {
        let answer = ask(&stage, &get("/", headers));
        assert_eq!((answer.header("Content-Encoding"), &answer.body), (None, &page()), "{headers:?}");
        assert_eq!(answer.header("ETag"), Some("\"v1\""));
        assert!(answer.head.contains("Vary: Accept-Encoding\r\n"), "a cache mixes them up: {}", answer.head);
    }
    let old = ask(&stage, "GET / HTTP/1.0\r\nHost: shop.localhost\r\nAccept-Encoding: gzip\r\n\r\n");
    assert_eq!(old.body, page(), "HTTP/1.0 gets a length");
    assert_eq!(
        app.seen()[0].header("Accept-Encoding"),
        Some("gzip, deflate, br"),
        "the application may, too"
    );
}

#[test]
fn a_browser_gets_zstd_and_who_prefers_brotli_gets_that() {
    let app = saying(|_| "200 OK\r\nContent-Type: text/html\r\nETag: \"v1\"\r\n".to_owned(), page());
    let stage = Stage::start(vec![compressing(&app)]);
    let read = |coding: &str, body: &[u8]| {
        let mut out = Vec::new();
        match coding {
            "zstd" => {
                out = vec![0; page().len() + 1];
                let length = zstd_safe::decompress(&mut out[..], body).expect("the body is zstd, and whole");
                out.truncate(length);
            }
            _ => {
                brotli::Decompressor::new(body, 4096).read_to_end(&mut out).expect("it is brotli, and whole");
            }
        }
        out
    };
    // Several bodies by one encoder.
    for _ in 0..3 {
        for (takes, coding) in
            [("gzip, deflate, br, zstd", "zstd"), ("zstd", "zstd"), ("br", "br"), ("gzip;q=0.5, br", "br")]
        {
            let answer = ask(&stage, &get("/", &format!("Accept-Encoding: {takes}\r\n")));
            assert_eq!(answer.header("Content-Encoding"), Some(coding), "for {takes}: {}", answer.head);
            assert!(answer.body.len() * 4 < page().len(), "{} of {} bytes", answer.body.len(), page().len());
            assert_eq!(read(coding, &answer.body), page(), "for {takes}");
            assert_eq!(answer.header("ETag"), Some("W/\"v1\""));
            assert!(answer.head.contains("Vary: Accept-Encoding\r\n"), "{}", answer.head);
        }
    }
}

#[test]
fn what_must_arrive_as_it_was_sent_does() {
    let head = |path: &str| match path {
        "/packed" => "200 OK\r\nContent-Type: text/html\r\nContent-Encoding: br\r\n".to_owned(),
        "/exact" => "200 OK\r\nContent-Type: text/html\r\nCache-Control: public, no-transform\r\n".to_owned(),
        "/part" => {
            "206 Partial Content\r\nContent-Type: text/html\r\nContent-Range: bytes 0-9/99\r\n".to_owned()
        }
        "/signed" => "200 OK\r\nContent-Type: text/html\r\nRepr-Digest: sha-256=:AAAA:\r\n".to_owned(),
        "/events" => "200 OK\r\nContent-Type: text/event-stream\r\n".to_owned(),
        "/grpc" => "200 OK\r\nContent-Type: application/grpc+proto\r\n".to_owned(),
        "/image" => "200 OK\r\nContent-Type: image/png\r\n".to_owned(),
        _ => "200 OK\r\n".to_owned(),
    };
    let app = saying(head, page());
    let stage = Stage::start(vec![compressing(&app)]);
    for path in ["/packed", "/exact", "/part", "/signed", "/events", "/grpc", "/image", "/nothing-said"] {
        let answer = ask(&stage, &get(path, GZIP));
        assert_eq!((is_compressed(&answer), &answer.body), (false, &page()), "{path}: {}", answer.head);
    }
    let unwilling = ask(&stage, &get("/", &format!("{GZIP}Cache-Control: no-transform\r\n")));
    assert_eq!(unwilling.body, page());
    let small = saying(|_| "200 OK\r\nContent-Type: text/html\r\n".to_owned(), b"<p>hello".to_vec());
    let stage = Stage::start(vec![compressing(&small)]);
    assert_eq!(ask(&stage, &get("/", GZIP)).text(), "<p>hello", "a small answer was made larger");
}

#[test]
fn head_and_304_say_what_get_would() {
    let app = Application::start("a-1", |connection| {
        while let Some(seen) = connection.request() {
            let said = if seen.header("If-None-Match").is_some() {
                "HTTP/1.1 304 Not Modified\r\nETag: \"v1\"\r\n\r\n"
            } else {
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nETag: \"v1\"\r\nContent-Length: 5000\r\n\r\n"
            };
            if connection.write(said).is_err() {
                return;
            }
        }
    });
    let stage = Stage::start(vec![compressing(&app)]);
    let mut client = Client::connect(stage.http);
    client.send(get("/", GZIP).replace("GET", "HEAD"));
    let answer = client.head().unwrap();
    assert!(is_compressed(&answer), "{}", answer.head);
    assert_eq!((answer.header("Content-Length"), answer.header("ETag")), (None, Some("W/\"v1\"")));
    for (holds, tag) in [("W/\"v1\"", "W/\"v1\""), ("\"v0\", W/\"v1\"", "W/\"v1\""), ("\"v1\"", "\"v1\"")] {
        client.send(get("/", &format!("{GZIP}If-None-Match: {holds}\r\n")));
        let answer = client.answer().expect("a HEAD or a 304 has no body");
        assert_eq!((answer.status, answer.header("ETag")), (304, Some(tag)), "for who holds {holds}");
        assert_eq!(answer.header("Vary"), Some("Accept-Encoding"));
    }
}

#[test]
fn while_an_instance_pauses_its_client_has_all_it_said() {
    let (go, wait) = channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let app = Application::start("a-1", move |connection| {
        connection.request().unwrap();
        let head =
            "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";
        connection.write(head).unwrap();
        while wait.lock().unwrap().recv().is_ok() {
            connection.write("7\r\n{\"n\":1}\r\n").unwrap();
        }
        connection.write("0\r\n\r\n").unwrap();
    });
    let stage = Stage::start(vec![compressing(&app)]);
    let mut client = Client::connect(stage.http);
    client.send(get("/", GZIP));
    let head = client.head().expect("the head came before the first piece");
    assert!(is_compressed(&head), "{}", head.head);
    let mut packed = Vec::new();
    for count in 1..=3 {
        go.send(()).unwrap();
        let mut seen = vec![0; 7 * count];
        while GzDecoder::new(packed.as_slice()).read_exact(&mut seen).is_err() {
            packed.extend(client.chunk().expect("the answer goes on"));
        }
        assert_eq!(seen, b"{\"n\":1}".repeat(count), "piece {count}");
    }
    drop(go);
    loop {
        let chunk = client.chunk().expect("the answer ends well");
        if chunk.is_empty() {
            break;
        }
        packed.extend(chunk);
    }
    assert_eq!(unpacked(&packed), b"{\"n\":1}".repeat(3));
}

#[test]
fn a_long_answer_comes_whole_and_half_an_answer_does_not_look_whole() {
    let app = Application::start("a-1", |connection| {
        while let Some(seen) = connection.request() {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6000000\r\n\r\n";
            let lines = if seen.path() == "/half" { 100_000 } else { 200_000 };
            let body = (0..lines).flat_map(|n: u32| format!("{n:029}\n").into_bytes()).collect::<Vec<u8>>();
            if connection.write(head).and_then(|()| connection.write(body)).is_err() || lines < 200_000 {
                return;
            }
        }
    });
    let stage = Stage::start(vec![compressing(&app)]);
    let answer = ask(&stage, &get("/whole", GZIP));
    let body = unpacked(&answer.body);
    assert_eq!(body.len(), 6_000_000);
    assert!(body.ends_with(b"00199999\n") && answer.body.len() < 2_000_000, "{} bytes", answer.body.len());
    let mut client = Client::connect(stage.http);
    client.send(get("/half", GZIP));
    assert_eq!(client.answer(), None, "half an answer looks like a whole one");
    let log = stage.directory.path().join("access.log");
    let logged = || std::fs::read_to_string(&log).unwrap_or_default();
    while !logged().contains("/half") {
        std::thread::yield_now();
    }
    let line = logged().lines().find(|line| line.contains("/whole")).unwrap().to_owned();
    let bytes = format!("\"bytes\":{},", answer.body.len());
    assert!(line.contains(&bytes), "the log has what went to the client: {line}");
}

#[test]
fn a_stream_of_http2_is_compressed_as_well() {
    let app = saying(|_| "200 OK\r\nContent-Type: text/html\r\n".to_owned(), page());
    let stage = Stage::start(vec![compressing(&app)]);
    story(async {
        let mut client = connect(stage.http).await;
        let mut request = http2_request(Method::GET, "/");
        request.headers_mut().insert("accept-encoding", "gzip".parse().unwrap());
        let (response, _) = client.send_request(request, true).unwrap();
        let (head, mut body) = response.await.unwrap().into_parts();
        assert_eq!(head.headers.get("content-encoding").unwrap(), "gzip", "{head:?}");
        assert_eq!(head.headers.get("content-length"), None);
        let mut packed = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.expect("the answer broke off");
            body.flow_control().release_capacity(data.len()).unwrap();
            packed.extend_from_slice(&data);
        }
        assert_eq!(unpacked(&packed), page());
    });
}

#[test]
fn a_route_may_hide_from_the_application_what_clients_take() {
    let app = saying(|_| "200 OK\r\nContent-Type: text/html\r\n".to_owned(), page());
    let policy = RoutePolicy {
        compression: Compression::On,
        request_headers: [("Accept-Encoding".to_owned(), HeaderChange::Remove)].into(),
        ..RoutePolicy::default()
    };
    let stage = Stage::start(vec![shop_with(&app, vec![to_web("/*", policy)])]);
    assert!(is_compressed(&ask(&stage, &get("/", GZIP))));
    assert_eq!(app.seen()[0].header("Accept-Encoding"), None);
    // A route that does not ask for it is as ever.
    let stage = Stage::start(vec![shop_with(&app, vec![to_web("/*", RoutePolicy::default())])]);
    let answer = ask(&stage, &get("/", GZIP));
    assert_eq!((answer.header("Vary"), &answer.body), (None, &page()));
}
