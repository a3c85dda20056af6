//! Secrets reach the application, and nobody else.

use std::path::Path;

use rung_e2e::{Rung, TestApp, process};

const VALUE: &str = "correct-horse-battery-staple-7141";

#[test]
fn a_secret_reaches_the_application_and_is_nowhere_else() {
    let rung = Rung::start();
    let mut app = TestApp::new("vault", 1);
    app.sections.push("[secrets]\nrequired = [\"API_KEY\"]".into());
    app.sections.push("[build]\ncommand = \"env\"".into());
    rung.deploy(app.directory()).ends_with(1).mentions("API_KEY").mentions("rung secret set");

    let mut said =
        vec![rung.cli(&["secret", "set", &format!("API_KEY={VALUE}"), "--app", "vault"]).succeeds()];
    said.push(rung.deploy(app.directory()).succeeds());
    rung.wait_until_settled("vault", "web", 1);
    assert_eq!(rung.page("vault", "/env?name=API_KEY"), VALUE);

    for words in [
        &["status"][..],
        &["ps"],
        &["releases"],
        &["secret", "list"],
        &["config", "get"],
        &["logs"],
        &["events"],
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
    for said in &said {
        assert!(!said.out.contains(VALUE) && !said.err.contains(VALUE), "`{}` shows the secret", said.words);
    }
    assert!(!rung.output().contains(VALUE), "`rung up` has printed the secret");
    for path in ["status", "secrets", "releases", "deployments", "config"] {
        let body =
            rung.api_get(&format!("/v1/apps/vault/{path}")).unwrap_or_else(|instead| panic!("{instead}"));
        assert!(!String::from_utf8_lossy(&body).contains(VALUE), "the API shows the secret at {path}");
    }
    for life in rung.processes() {
        assert!(!process::describe(life.pid).contains(VALUE), "a command line shows the secret");
    }
    assert_not_below(rung.data());
}

/// Sealed at rest: no file of the data directory holds the value.
fn assert_not_below(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.filter_map(Result::ok) {
        let kind = entry.file_type().expect("the type of a file");
        if kind.is_dir() {
            assert_not_below(&entry.path());
        } else if kind.is_file()
            && let Ok(bytes) = std::fs::read(entry.path())
        {
            let found = bytes.windows(VALUE.len()).any(|part| part == VALUE.as_bytes());
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
