//! Requests that two readers could understand differently, and what becomes of each.

use crate::application::{Application, Seen};
use crate::client::Client;
use crate::corpus::Fate::{self, BodyRefused, Refused, Seen as Sees};
use crate::corpus::{CORPUS, H, spelled};
use crate::stage::{Stage, backend, shop};

#[test]
fn every_hostile_request_is_refused_or_has_one_reading() {
    assert!(CORPUS.len() >= 200, "the corpus has shrunk to {}", CORPUS.len());
    let app = Application::answering("a-1", |seen| seen.body.clone());
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut wrong = Vec::new();
    for (name, raw, fate) in CORPUS {
        let before = app.seen().len();
        let mut client = Client::connect(stage.http);
        client.send(spelled(raw));
        if let Err(instead) = judge(fate, &mut client, || app.seen().split_off(before)) {
            wrong.push(format!("{name}: {instead}"));
        }
        assert_eq!(crate::client::get(stage.http, "/next").status, 200, "{name} harmed the next client");
    }
    assert!(wrong.is_empty(), "of {}, {} went wrong:\n{}", CORPUS.len(), wrong.len(), wrong.join("\n"));
}

/// Whether it happened as it shall; `Err` says what happened instead.
fn judge(fate: &Fate, client: &mut Client, seen: impl Fn() -> Vec<Seen>) -> Result<(), String> {
    let is = |holds: bool, instead: String| if holds { Ok(()) } else { Err(instead) };
    match fate {
        Refused(status) => {
            let answer = client.answer().ok_or("closed without an answer")?;
            let said = (answer.status, answer.header("Rung-Error"), answer.header("Connection"));
            is(said == (*status, Some("bad_request"), Some("close")), format!("{answer:?}"))?;
            is(client.is_closed(), "the connection stays open".into())?;
            is(seen().is_empty(), format!("the instance saw {:?}", seen()))
        }
        Sees(expected) => {
            for _ in *expected {
                let answer = client.answer().ok_or("no answer")?;
                is(answer.status == 200, format!("{answer:?}"))?;
            }
            let seen = seen();
            let read: Vec<_> = seen.iter().map(|seen| (first_words(seen), body(seen))).collect();
            let expected: Vec<_> =
                expected.iter().map(|(line, body)| ((*line).to_owned(), (*body).to_owned())).collect();
            is(read == expected, format!("the instance read {read:?}"))?;
            seen.iter().try_for_each(is_canonical)
        }
        BodyRefused => {
            if let Some(answer) = client.answer() {
                is(answer.status == 400, format!("{answer:?}"))?;
            }
            is(client.is_closed(), "the connection stays open".into())?;
            is(seen().is_empty(), format!("the instance took it for whole: {:?}", seen()))
        }
    }
}

fn first_words(seen: &Seen) -> String {
    seen.head.rsplitn(2, " HTTP/1.1\r\n").last().unwrap().split(" HTTP/1.1").next().unwrap().to_owned()
}

fn body(seen: &Seen) -> String {
    String::from_utf8(seen.body.clone()).unwrap()
}

/// One framing, one Host, no header that ends here, nothing that somebody outside says of where a request came from.
fn is_canonical(seen: &Seen) -> Result<(), String> {
    let count = |wanted: &str| {
        let lines = seen.head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(found, _)| found.replace('_', "-").eq_ignore_ascii_case(wanted)).count()
    };
    let once =
        ["host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id", "traceparent"];
    let gone = [
        "connection",
        "upgrade",
        "http2-settings",
        "keep-alive",
        "te",
        "trailer",
        "proxy",
        "forwarded",
        "x-real-ip",
        "x-forwarded-port",
    ];
    let is_fine = once.iter().all(|name| count(name) == 1)
        && gone.iter().all(|name| count(name) == 0)
        && count("content-length") + count("transfer-encoding") <= 1
        && !seen.head.contains("6.6.6.6");
    if is_fine { Ok(()) } else { Err(format!("the instance was told {}", seen.head)) }
}

#[test]
fn endless_heads_and_too_many_headers_are_refused() {
    let app = Application::answering("a-1", |_| Vec::new());
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send(format!("GET / HTTP/1.1\r\n{H}X-A: {}", "a".repeat(33 * 1024)));
    assert_eq!(client.answer().unwrap().status, 431);
    let mut client = Client::connect(stage.http);
    client.send(format!("GET / HTTP/1.1\r\n{H}{}\r\n", "X-A: b\r\n".repeat(200)));
    assert_eq!(client.answer().unwrap().status, 431);
    let mut client = Client::connect(stage.http);
    client.send(format!("GET / HTTP/1.1\r\n{H}X-A: {}\r\n\r\n", "a".repeat(31 * 1024)));
    assert_eq!(client.answer().unwrap().status, 200, "a head within the limit was refused");
    assert_eq!(app.seen().len(), 1);
}

#[test]
fn a_slow_head_is_given_up_and_an_idle_connection_closed() {
    let app = Application::answering("a-1", |_| Vec::new());
    let arguments = ["--head-timeout-ms", "150", "--idle-timeout-ms", "300"];
    let stage = Stage::with_arguments(vec![shop(backend(vec![app.endpoint()]))], &arguments);
    let mut slow = Client::connect(stage.http);
    slow.send("GET / HTTP/1.1\r\nHost: shop");
    assert_eq!(slow.answer().unwrap().status, 408);
    let mut idle = Client::connect(stage.http);
    assert_eq!(idle.get("/").status, 200);
    assert!(idle.is_closed(), "an idle connection got bytes");
}
