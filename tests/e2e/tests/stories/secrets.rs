//! Secrets reach the application, and nobody else.

use std::path::Path;

use rung_e2e::http::{Answer, Connection};
use rung_e2e::{Rung, Said, TestApp, process};

const VALUE: &str = "correct-horse-battery-staple-7141";
const SECOND: &str = "incorrect-donkey-capacitor-2718";

#[track_caller]
fn set(rung: &Rung, app: &str, name: &str, value: &str) -> Said {
    rung.set_secret(app, name, value)
}

/// What every endpoint answers to the owner, as text.
fn everything_the_api_says(rung: &Rung, app: &str) -> String {
    let paths =
        ["status", "secrets", "releases", "deployments", "deployments/1", "config", "runs", "jobs", "logs"];
    let of_app = paths.map(|path| format!("/v1/apps/{app}/{path}"));
    let whole = ["/v1/apps", "/v1/events", "/v1/audit", "/v1/doctor", "/v1/tokens"].map(str::to_owned);
    let answers = of_app.iter().chain(&whole).map(|path| match rung.api_get(path) {
        Ok(body) => String::from_utf8_lossy(&body).into_owned(),
        Err(instead) => panic!("{instead}"),
    });
    answers.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_secret_reaches_the_application_and_is_nowhere_else_through_a_whole_life() {
    let mut rung = Rung::start();
    let mut app = TestApp::new("vault", 1);
    app.sections.push("[secrets]\nrequired = [\"API_KEY\"]".into());
    app.sections.push("[build]\ncommand = \"env\"".into());
    rung.deploy(app.directory()).ends_with(1).mentions("API_KEY").mentions("rung secret set");
    assert!(rung.try_app("vault").is_err(), "something was begun without the secret that is required");

    // As an argument everybody on the machine could read it.
    let refused = rung.cli(&["secret", "set", &format!("API_KEY={VALUE}"), "--app", "vault"]);
    let refused = refused.ends_with(2).mentions("is no argument");
    let mut said = vec![refused, set(&rung, "vault", "API_KEY", VALUE)];
    said.push(rung.deploy(app.directory()).succeeds());
    rung.wait_until_settled("vault", "web", 1);
    assert_eq!(rung.page("vault", "/env?name=API_KEY"), VALUE);
    // A wrong request is refused without a word of what is in it.
    let wrong = serde_json::json!({ "changes": VALUE, "by": "ada" }).to_string();
    let answer = owner_asks(&rung, "PATCH", "/v1/apps/vault/secrets", &wrong);
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(!answer.text().contains(VALUE), "an error shows the secret: {}", answer.text());

    // A new version is rolled out, one goes back, a crash, a restart of rung, an end.
    said.push(set(&rung, "vault", "API_KEY", SECOND));
    assert_eq!(
        rung.page("vault", "/env?name=API_KEY"),
        SECOND,
        "the new value did not reach the application"
    );
    said.push(rung.cli(&["secret", "list", "API_KEY", "--app", "vault"]).succeeds().mentions("v1"));
    said.push(rung.cli(&["rollback", "--app", "vault"]).succeeds());
    assert_eq!(
        rung.page("vault", "/env?name=API_KEY"),
        VALUE,
        "the rollback did not bring the old value back"
    );
    rung.kill_9();
    rung.up(None, &[]);
    rung.wait_until_settled("vault", "web", 1);
    said.push(rung.cli(&["restart", "--app", "vault"]).succeeds());
    assert_eq!(rung.page("vault", "/env?name=API_KEY"), VALUE, "the secret was lost with a kill -9");

    for words in [
        &["status"][..],
        &["ps"],
        &["releases"],
        &["secret", "list"],
        &["config", "get"],
        &["logs"],
        &["events"],
        &["audit"],
    ] {
        for json in [false, true] {
            let mut arguments = words.to_vec();
            arguments.extend(["--app", "vault"]);
            if json && words != ["logs"] && words != ["events"] {
                arguments.push("--json");
            }
            said.push(rung.cli(&arguments).succeeds());
        }
    }
    let api = everything_the_api_says(&rung, "vault");
    let arguments: String = process::all().iter().map(|life| process::describe(life.pid)).collect();
    for value in [VALUE, SECOND] {
        for said in &said {
            let shown = format!("{}{}", said.out, said.err);
            assert!(!shown.contains(value), "`{}` shows the secret", said.words);
        }
        assert!(!rung.output().contains(value), "`rung up` has printed the secret");
        assert!(!api.contains(value), "the API shows the secret");
        assert!(!arguments.contains(value), "a command line shows the secret");
        assert_not_below(rung.data(), value);
    }
    rung.cli(&["destroy", "-y", "--volumes", "--app", "vault"]).succeeds();
    assert_not_below(rung.data(), VALUE);
}

fn owner_asks(rung: &Rung, method: &str, path: &str, body: &str) -> Answer {
    let bearer = format!("Bearer {}", rung.access().token);
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let mut connection = Connection::open(rung.api_address()).expect("the API can be reached");
    connection.ask(method, "rung", path, &headers, body.as_bytes()).expect("an answer")
}

#[test]
fn values_that_no_environment_holds_are_refused_with_the_way_out() {
    let rung = Rung::start();
    let key = "-----BEGIN KEY-----\nAAAA\nBBBB\n-----END KEY-----";
    set(&rung, "odd", "PEM", &format!("{key}\n"));
    let limit = 128 * 1024 - "LARGE=".len() - 1;
    set(&rung, "odd", "LARGE", &"x".repeat(limit));
    let app = TestApp::new("odd", 1);
    rung.deploy(app.directory()).succeeds();
    assert_eq!(rung.page("odd", "/env?name=PEM"), key, "a value of several lines was changed");
    assert_eq!(rung.page("odd", "/env?name=LARGE").len(), limit, "the longest value did not arrive whole");

    let refused =
        |value: &[u8]| rung.cli_with_input(&["secret", "set", "ODD", "--app", "odd"], value).ends_with(1);
    refused("x".repeat(limit + 8).as_bytes()).mentions("131072").mentions("hint");
    refused("x".repeat(1_000_000).as_bytes()).mentions("Linux allows").mentions("hint");
    refused("x".repeat(3_000_000).as_bytes()).mentions("more than 1 MiB");
    refused(b"a\0b").mentions("zero byte").mentions("--base64");
    refused(b"\xff\xfe").mentions("not text").mentions("--base64");
    let config =
        owner_asks(&rung, "PATCH", "/v1/apps/odd/config", r#"{"changes":{"A":"x\u0000"},"by":"me"}"#);
    assert!(config.status == 400 && config.text().contains("A holds a zero byte"), "{}", config.text());
    // The way out of binary ones: from standard input, or from a file.
    let bytes: Vec<u8> = (0..=255).collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &bytes).expect("it can be written");
    let path = file.path().to_str().expect("UTF-8");
    rung.cli(&["secret", "set", "BINARY", "--base64", "--file", path, "--app", "odd"]).succeeds();
    let encoded = rung.page("odd", "/env?name=BINARY");
    assert!(encoded.starts_with("AAECAwQFBgc") && encoded.len() == 344, "{encoded}");
}

#[test]
fn a_value_is_generated_once_and_a_dotenv_file_is_imported_by_its_names() {
    let rung = Rung::start();
    let generate =
        ["secret", "generate", "SESSION_KEY", "--length", "48", "--alphabet", "hex", "--app", "made"];
    let first = rung.cli(&generate).succeeds();
    rung.cli(&generate).ends_with(1).mentions("is set already").mentions("--replace");
    let app = TestApp::new("made", 1);
    rung.deploy(app.directory()).succeeds();
    let value = rung.page("made", "/env?name=SESSION_KEY");
    assert!(value.len() == 48 && value.bytes().all(|b| b.is_ascii_hexdigit()), "{value}");
    assert!(!first.out.contains(&value) && !first.err.contains(&value), "the value was shown");
    rung.cli(&[&generate[..], &["--replace"]].concat()).succeeds();
    assert_ne!(rung.page("made", "/env?name=SESSION_KEY"), value, "--replace kept the value");

    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join(".env");
    std::fs::write(&file, format!("# local\nexport DB_URL=\"postgres://a:p$w@h\"\nMAIL={VALUE}\n"))
        .expect("written");
    let path = file.to_str().expect("UTF-8");
    rung.cli(&["secret", "import", path, "--app", "made"]).ends_with(2).mentions("asks first");
    let said =
        rung.cli(&["secret", "import", path, "-y", "--app", "made"]).succeeds().mentions("DB_URL, MAIL");
    assert!(!said.out.contains(VALUE) && !said.err.contains(VALUE), "the import shows values");
    assert_eq!(rung.page("made", "/env?name=DB_URL"), "postgres://a:p$w@h");
    rung.cli(&["secret", "list", "--app", "made"]).succeeds().mentions("DB_URL").mentions("MAIL");
}

#[test]
fn a_secret_that_the_app_file_requires_is_not_taken_away() {
    let rung = Rung::start();
    let mut app = TestApp::new("needy", 1);
    app.sections.push("[secrets]\nrequired = [\"TOKEN\"]".into());
    rung.set_secret("needy", "TOKEN", "one");
    rung.deploy(app.directory()).succeeds();
    let said = rung.cli(&["secret", "unset", "TOKEN", "--app", "needy"]).ends_with(1);
    said.mentions("requires secret TOKEN").mentions("nothing was changed");
    rung.set_secret("needy", "TOKEN", "two");
    app.sections.clear();
    rung.deploy(app.directory()).succeeds();
    rung.cli(&["secret", "unset", "TOKEN", "--app", "needy"]).succeeds();
}

#[test]
fn the_master_key_is_replaced_without_touching_an_instance() {
    let mut rung = Rung::start();
    set(&rung, "vault", "API_KEY", VALUE);
    let app = TestApp::new("vault", 1);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("vault", "web", 1);
    let (lives, key) = (rung.lives("vault"), rung.data().join("secret.key"));
    let before = std::fs::read(&key).expect("the key");
    rung.cli(&["secret", "rotate-key"]).succeeds().mentions("1 value wrapped anew");
    assert_ne!(std::fs::read(&key).expect("the key"), before, "the key is the old one");
    assert_eq!(rung.lives("vault"), lives, "an instance was restarted");
    rung.kill_9();
    rung.up(None, &[]);
    rung.cli(&["restart", "--app", "vault"]).succeeds();
    assert_eq!(rung.page("vault", "/env?name=API_KEY"), VALUE);
    // With the old key nothing opens any more.
    assert!(rung.interrupt().success());
    std::fs::write(&key, before).expect("it can be written");
    rung.up(None, &[]);
    rung.cli(&["doctor"]).ends_with(1).mentions("can't be opened with this key").mentions("API_KEY");
}

/// Sealed at rest: no file of the data directory holds the value.
fn assert_not_below(directory: &Path, value: &str) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.filter_map(Result::ok) {
        let kind = entry.file_type().expect("the type of a file");
        if kind.is_dir() {
            assert_not_below(&entry.path(), value);
        } else if kind.is_file()
            && let Ok(bytes) = std::fs::read(entry.path())
        {
            let found = bytes.windows(value.len()).any(|part| part == value.as_bytes());
            assert!(!found, "{} holds the secret", entry.path().display());
        }
    }
}

#[test]
fn what_opens_the_platform_is_readable_by_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let rung = Rung::start();
    let mode = |path: &Path| {
        std::fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode()
            & 0o777
    };
    assert_eq!(mode(rung.data()), 0o700);
    for name in ["rung.json", "secret.key", "token"] {
        assert_eq!(mode(&rung.data().join(name)), 0o600, "{name}");
    }
    let answer = rung_e2e::http::get(rung.api_address(), "rung", "/v1/apps").expect("an answer");
    assert_eq!(answer.status, 401, "without the token nothing is told: {}", answer.text());
}
