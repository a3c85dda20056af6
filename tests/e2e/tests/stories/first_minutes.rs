//! The first five minutes: the README's first screen, with the example.

use rung_e2e::http::Connection;
use rung_e2e::{Rung, Start, eventually, example};

fn write_in(rung: &Rung, name: &str, text: &str) {
    let mut connection = Connection::open(rung.http()).expect("the ingress takes connections");
    let form = format!("name={name}&text={text}");
    let kind = ("Content-Type", "application/x-www-form-urlencoded");
    let answer =
        connection.ask("POST", "guestbook.localhost", "/", &[kind], form.as_bytes()).expect("an answer");
    assert_eq!(answer.status, 303, "the guestbook did not take the message: {}", answer.text());
}

#[test]
fn a_directory_that_cannot_be_deployed_starts_nothing() {
    let place = tempfile::Builder::new().prefix("rung-e2e-app-").tempdir().expect("a temporary directory");
    let data = place.path().join("data");
    let up = |directory: &std::path::Path| {
        // Should it start after all, it is ended in order.
        let mut command = std::process::Command::new("timeout");
        command.arg("30").arg(rung_e2e::rung_binary()).arg("up").arg(directory).arg("--data").arg(&data);
        let output = command.output().expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(!data.exists(), "something was started: {said}");
        said
    };
    let missing = place.path().join("missing");
    assert!(up(&missing).contains("missing is not a directory"));
    std::fs::write(place.path().join("rung.toml"), "app = 1").expect("an app file");
    let said = up(place.path());
    let path = place.path().join("rung.toml");
    assert!(said.contains(&format!("{}:1:7", path.display())), "{said}");
}

#[test]
fn one_command_runs_the_guestbook_and_says_where() {
    let guestbook = example("guestbook");
    let rung = Rung::start_with(Start { directory: Some(guestbook.path().into()), ..Start::default() });
    rung.wait_until_said("guestbook.localhost");
    rung.wait_until_settled("guestbook", "web", 2);
    rung.wait_until_settled("guestbook", "worker", 1);

    assert!(rung.page("guestbook", "/").contains("Nobody yet"), "the book is new");
    write_in(&rung, "Ada", "wonderful+%3Cb%3Eengines%3C%2Fb%3E");
    let page = rung.page("guestbook", "/");
    assert!(page.contains("&lt;b&gt;engines"), "what was written is shown, escaped: {page}");
    eventually("the worker has counted the words", || {
        let page = rung.page("guestbook", "/");
        if page.contains("Often heard here") { Ok(()) } else { Err(page) }
    });
    // What is printed is in the log a moment later.
    eventually("the worker's words are in its log", || {
        let said = rung.cli(&["logs", "--app", "guestbook", "--service", "worker"]).succeeds().out;
        if said.contains("counted the words of message 1") { Ok(()) } else { Err(said) }
    });
}

#[test]
fn ctrl_c_stops_everything_and_the_next_start_brings_it_back() {
    let guestbook = example("guestbook");
    let mut rung = Rung::start_with(Start { directory: Some(guestbook.path().into()), ..Start::default() });
    rung.wait_until_settled("guestbook", "web", 2);
    write_in(&rung, "Ada", "still+here");
    let lives = rung.lives("guestbook");

    let status = rung.interrupt();
    assert!(status.success(), "Ctrl-C is the normal end, and it said {status}\n{}", rung.output());
    assert!(lives.values().all(|life| !life.goes_on()), "instances went on after Ctrl-C: {lives:?}");
    rung.wait_until_nothing_is_left();

    rung.up(None, &[]);
    rung.wait_until_settled("guestbook", "web", 2);
    assert!(rung.page("guestbook", "/").contains("still here"), "the volume outlived the stop");
}

#[test]
fn what_the_guestbook_says_is_in_the_logs_and_follows() {
    let guestbook = example("guestbook");
    let rung = Rung::start_with(Start { directory: Some(guestbook.path().into()), ..Start::default() });
    rung.wait_until_settled("guestbook", "web", 2);
    let mut follow = rung.cli_command(&["logs", "--app", "guestbook", "-f"]);
    let mut follow = follow.stdout(std::process::Stdio::piped()).spawn().expect("starting rung logs -f");
    write_in(&rung, "Ada", "hello");
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().expect("it is piped")));
    let found = lines.by_ref().map_while(Result::ok).any(|line| line.contains("message 1 was written"));
    // A follower that was ended is what this test is done with.
    let _ = follow.kill();
    let _ = follow.wait();
    assert!(found, "the new line came to the follower");
}

#[test]
fn doctor_looks_at_the_machine_before_there_is_a_server() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let data = home.path().join("data");
    let doctor = || {
        let mut command = std::process::Command::new(rung_e2e::rung_binary());
        command.env_remove("RUNG_API").arg("doctor").arg("--data").arg(&data);
        let said = command.output().expect("rung starts");
        assert_eq!(said.status.code(), Some(1), "{said:?}");
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    let said = doctor();
    for words in
        ["XX  server: none runs here", "is not there yet; `rung up` makes it", "MB free at", "memory limit"]
    {
        assert!(said.contains(words), "{words:?} is missing:\n{said}");
    }
    assert!(!data.exists(), "looking has made the data directory");
    std::fs::create_dir(&data).expect("a directory");
    std::fs::write(data.join("store.db"), "").expect("a file");
    let said = doctor();
    assert!(said.contains("holds the state of before"), "{said}");
}

#[test]
fn every_read_speaks_json() {
    let guestbook = example("guestbook");
    let rung = Rung::start_with(Start { directory: Some(guestbook.path().into()), ..Start::default() });
    rung.wait_until_settled("guestbook", "web", 2);
    for words in
        [&["status"][..], &["ps"], &["releases"], &["config", "get"], &["secret", "list"], &["doctor"]]
    {
        let mut arguments = words.to_vec();
        arguments.push("--json");
        if words != ["doctor"] {
            arguments.extend(["--app", "guestbook"]);
        }
        let said = rung.cli(&arguments).succeeds();
        let _: serde_json::Value = said.json();
    }
}
