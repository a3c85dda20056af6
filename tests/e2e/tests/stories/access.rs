//! Who may: two teams on one platform, tokens that end, and guessing that has no speed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rung_e2e::git::Repository;
use rung_e2e::http::{Answer, Connection};
use rung_e2e::{Rung, Said, SmallDisk, Start, TestApp, ending, eventually, process, rung_binary};
use serde_json::Value;

/// One request with a token, on a connection of its own.
#[track_caller]
fn ask(rung: &Rung, token: &str, method: &str, path: &str, body: &str) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let mut connection = Connection::open(rung.api_address()).expect("the API can be reached");
    let answer = connection.ask(method, "rung", path, &headers, body.as_bytes());
    answer.unwrap_or_else(|failure| panic!("{method} {path}: {failure:?}"))
}

/// `rung token create …`, answering with the token.
#[track_caller]
fn token(rung: &Rung, arguments: &[&str]) -> String {
    let said = rung.cli(&[&["token", "create"], arguments].concat()).succeeds();
    said.out.trim().to_owned()
}

/// A command of the CLI with another token than the owner's.
fn cli_as(rung: &Rung, token: &str, arguments: &[&str]) -> Said {
    let mut command = rung.cli_command(arguments);
    command.env("RUNG_TOKEN", token);
    ending::run(format!("rung {}", arguments.join(" ")), command)
}

/// What a path's parameters are of an app that is there.
fn parameters(rung: &Rung, app: &str) -> BTreeMap<&'static str, String> {
    let text = rung.api_get(&format!("/v1/apps/{app}/releases")).expect("the owner sees its releases");
    let releases: Value = serde_json::from_slice(&text).expect("JSON");
    let artifact = releases[0]["artifact"].as_str().expect("a release has an artifact").to_owned();
    let node = rung.instances(app)[0].node.to_string();
    BTreeMap::from([
        ("app", app.to_owned()),
        ("deployment", "1".to_owned()),
        ("release", "1".to_owned()),
        ("digest", artifact),
        ("run", format!("{app}.run-n1")),
        ("job", "nightly".to_owned()),
        ("node", node),
        ("proxy", "ingress".to_owned()),
        ("token", "team-shop".to_owned()),
    ])
}

fn filled(path: &str, parameters: &BTreeMap<&str, String>) -> String {
    let mut out = path.to_owned();
    while let Some((before, rest)) = out.split_once('{') {
        let (name, after) = rest.split_once('}').expect("braces are closed");
        let value = parameters.get(name).map_or("1", String::as_str);
        out = format!("{before}{value}{after}");
    }
    out
}

/// Every method of every path that the platform says it has.
fn endpoints(rung: &Rung) -> Vec<(String, String)> {
    let document: Value =
        serde_json::from_slice(&rung.api_get("/v1/openapi.json").expect("the description")).expect("JSON");
    let paths = document["paths"].as_object().expect("it has paths");
    let mut found = Vec::new();
    for (path, item) in paths {
        for method in ["get", "post", "put", "patch", "delete"] {
            if item.get(method).is_some() {
                found.push((method.to_uppercase(), path.clone()));
            }
        }
    }
    assert!(found.len() > 30, "the description is not whole: {found:?}");
    found
}

#[test]
fn two_teams_neither_see_nor_touch_each_others_app_by_any_endpoint() {
    let rung = Rung::start();
    let mut shop = TestApp::new("shop", 1);
    shop.sections.push("[jobs.nightly]\ncommand = \"true\"".into());
    rung.deploy(shop.directory()).succeeds();
    rung.wait_until_settled("shop", "web", 1);
    rung.cli(&["run", "--no-tty", "--app", "shop", "true"]).succeeds();
    let teams = [
        token(&rung, &["team-blog", "--role", "deployer", "--apps", "blog@*"]),
        token(&rung, &["watch-blog", "--role", "viewer", "--app", "blog"]),
    ];
    // The other team's token works, and for its own app only.
    let mut blog = TestApp::new("blog", 1);
    let directory = blog.directory().to_str().expect("UTF-8").to_owned();
    cli_as(&rung, &teams[0], &["deploy", &directory]).succeeds();
    cli_as(&rung, &teams[1], &["status", "--app", "blog"]).succeeds().mentions("blog");
    cli_as(&rung, &teams[1], &["restart", "--app", "blog"]).ends_with(1).mentions("takes a deployer");
    blog.name = "shop".into();
    cli_as(&rung, &teams[0], &["deploy", blog.directory().to_str().expect("UTF-8")])
        .ends_with(1)
        .mentions("there is no app shop");

    let before = (rung.app("shop"), rung.deployments("shop").len(), rung.lives("shop"));
    let there = parameters(&rung, "shop");
    let mut elsewhere = there.clone();
    elsewhere.insert("app", "nowhere".to_owned());
    elsewhere.insert("run", "nowhere.run-n1".to_owned());
    for (method, path) in endpoints(&rung) {
        for token in &teams {
            let answer = ask(&rung, token, &method, &filled(&path, &there), "{}");
            let what = format!("{method} {path}: {}: {}", answer.status, answer.text());
            if path.contains("{app}") && answer.status != 401 {
                let nowhere = ask(&rung, token, &method, &filled(&path, &elsewhere), "{}");
                assert_eq!(answer.status, 404, "{what}");
                assert_eq!(
                    answer.text(),
                    nowhere.text().replace("nowhere", "shop"),
                    "{method} {path} tells an app that is there from one that is not"
                );
                continue;
            }
            // The description has examples.
            let is_told = answer.text().contains("shop") && path != "/v1/openapi.json";
            assert!(!is_told, "the other team's app is told of by {what}");
            match (method.as_str(), path.as_str()) {
                (
                    "GET",
                    "/v1/apps" | "/v1/openapi.json" | "/v1/whoami" | "/v1/events" | "/v1/health"
                    | "/v1/metrics" | "/v1/traffic",
                ) => {
                    assert_eq!(answer.status, 200, "{what}");
                }
                // As if it were not there; and without the content it can't be claimed.
                ("GET", "/v1/sources/{digest}") => {
                    assert!(answer.text() == "false" || answer.status == 403, "{what}");
                }
                ("PUT", "/v1/sources/{digest}") => {
                    assert!([400, 403].contains(&answer.status), "{what}");
                }
                // A machine joins by a token of its own, in the body; people's tokens are nothing there.
                ("POST", "/v1/join") => assert_eq!(answer.status, 400, "{what}"),
                _ => assert!([401, 403].contains(&answer.status), "{what}"),
            }
        }
    }
    // A source that another team has uploaded is not there, although its digest is known.
    let source = source_of(&rung, "shop");
    let file = "app = \"blog\"\n[services.web]\ncommand = \"true\"\n";
    let request =
        serde_json::json!({ "file": { "name": "rung.toml", "text": file }, "source": source, "by": "eve" });
    let stolen = ask(&rung, &teams[0], "POST", "/v1/apps/blog/deployments", &request.to_string());
    assert_eq!(stolen.status, 404, "another team's source was deployed: {}", stolen.text());
    // A run of another app is not there either, through one's own app.
    for path in ["/v1/apps/blog/runs/shop.run-n1", "/v1/apps/blog/logs?run=shop.run-n1"] {
        let answer = ask(&rung, &teams[0], "GET", path, "");
        let missing = ask(&rung, &teams[0], "GET", &path.replace("shop.run-n1", "shop.run-n9"), "");
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
        assert_eq!(answer.text(), missing.text().replace("shop.run-n9", "shop.run-n1"));
    }
    let after = (rung.app("shop"), rung.deployments("shop").len(), rung.lives("shop"));
    assert_eq!(format!("{before:?}"), format!("{after:?}"), "something of the other team's app was changed");
    rung.cli(&["logs", "--app", "shop"]).succeeds();
}

fn source_of(rung: &Rung, app: &str) -> String {
    let text = rung.api_get(&format!("/v1/apps/{app}/releases")).expect("releases");
    let releases: Value = serde_json::from_slice(&text).expect("JSON");
    // Nothing is built: the source is the artifact.
    releases[0]["artifact"].as_str().expect("an artifact").to_owned()
}

#[test]
fn a_revoked_token_ends_at_once_with_everything_it_has_open() {
    let rung = Rung::start();
    let app = TestApp::new("shop", 1);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("shop", "web", 1);
    let ci = token(&rung, &["ci", "--role", "deployer", "--app", "shop"]);
    cli_as(&rung, &ci, &["whoami"]).succeeds().mentions("token ci: deployer of shop");
    rung.cli(&["token", "create", "ci", "--role", "viewer", "--app", "shop"])
        .ends_with(1)
        .mentions("there is a token ci already");
    let listed = rung.cli(&["token", "list"]).succeeds().mentions("shop").mentions("never");
    assert!(!listed.out.contains(&ci), "the list shows the token itself");

    // A command in an instance, a log and the events: all go on until they are cut.
    let open = |words: &[&str]| {
        let mut command = rung.cli_command(words);
        command.env("RUNG_TOKEN", &ci).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the CLI starts")
    };
    let runs = open(&["run", "--no-tty", "--app", "shop", "sleep", "300"]);
    let follows = open(&["logs", "-f", "--app", "shop"]);
    let watches = open(&["events", "-f", "--app", "shop"]);
    eventually("the command runs", || {
        let listed = rung.cli(&["run", "--list", "--app", "shop"]).succeeds().out;
        if listed.contains("sleep 300") { Ok(()) } else { Err(listed) }
    });
    rung.cli(&["token", "revoke", "ci"]).succeeds();
    for (what, child) in [("run", runs), ("logs -f", follows), ("events -f", watches)] {
        let output = child.wait_with_output().expect("it ends");
        assert!(!output.status.success(), "`rung {what}` goes on as if nothing were");
    }
    cli_as(&rung, &ci, &["status", "--app", "shop"]).ends_with(1).mentions("not valid");
    eventually("the command in the instance is ended", || {
        let listed = rung.cli(&["run", "--list", "--app", "shop"]).succeeds().out;
        if listed.contains("sleep 300") { Err(listed) } else { Ok(()) }
    });
    // One that is made anew under the old name is another one.
    let again = token(&rung, &["ci", "--role", "viewer", "--app", "shop"]);
    assert_eq!(ask(&rung, &ci, "GET", "/v1/whoami", "").status, 401);
    assert_eq!(ask(&rung, &again, "GET", "/v1/whoami", "").status, 200);
}

#[test]
fn a_token_expires_and_says_so() {
    let rung = Rung::start();
    let brief = token(&rung, &["brief", "--role", "viewer", "--apps", "*@*", "--expires", "8s"]);
    assert_eq!(ask(&rung, &brief, "GET", "/v1/apps", "").status, 200);
    // What waits is cut when the time is over, not when it is asked again.
    let stream = ask(&rung, &brief, "GET", "/v1/events?follow=true", "");
    assert_eq!(stream.status, 200, "{}", stream.text());
    let answer = ask(&rung, &brief, "GET", "/v1/apps", "");
    assert_eq!(answer.status, 401);
    assert!(answer.text().contains("token brief has expired"), "{}", answer.text());
}

#[test]
fn guessing_tokens_is_slowed_down_and_whoever_knows_one_goes_on() {
    let rung = Rung::start();
    let known = token(&rung, &["known", "--role", "admin"]);
    assert_eq!(ask(&rung, &known, "GET", "/v1/apps", "").status, 200);
    let statuses: Vec<u16> =
        (0..12).map(|n| ask(&rung, &format!("rung_known_{n:064}"), "GET", "/v1/apps", "").status).collect();
    assert_eq!((statuses[0], statuses[11]), (401, 429), "{statuses:?}");
    let fresh = rung.cli(&["token", "list"]).succeeds();
    assert!(fresh.out.contains("known"), "the owner is locked out");
    assert_eq!(ask(&rung, &known, "GET", "/v1/apps", "").status, 200, "whoever knows a token is locked out");
    rung.cli(&["events"]).succeeds().mentions("too many wrong tokens");
}

/// The first file of the audit trail.
fn trail(rung: &Rung) -> std::path::PathBuf {
    rung.data().join("audit/audit-000000000001.log")
}

#[test]
fn the_audit_trail_tells_who_did_what_and_shows_when_it_was_changed() {
    let mut rung = Rung::start();
    let app = TestApp::new("shop", 1);
    rung.deploy(app.directory()).succeeds();
    let ci = token(&rung, &["ci", "--role", "viewer", "--app", "shop"]);
    cli_as(&rung, &ci, &["scale", "web=2", "--app", "shop"]).ends_with(1);
    rung.cli(&["config", "set", "COLOUR=green", "--app", "shop"]).succeeds();
    let told = rung.cli(&["audit"]).succeeds();
    for words in ["Deploy an uploaded source", "Make a token", "ci: viewer of shop", "forbidden", "owner ("] {
        assert!(told.out.contains(words), "{words:?} is not told: {}", told.out);
    }
    assert!(!told.out.contains("green") && !told.out.contains(&ci), "a value is told: {}", told.out);
    cli_as(&rung, &ci, &["audit"]).ends_with(1).mentions("role admin");

    // What was answered is told, also after a kill -9.
    rung.kill_9();
    rung.up(None, &[]);
    rung.cli(&["audit"]).succeeds().mentions("Change config");
    let verified = rung.cli(&["audit", "verify"]).succeeds().mentions("is whole");
    let head = verified.out.trim().lines().next_back().expect("a line").to_owned();
    rung.cli(&["audit", "verify", "--seen", &head]).succeeds();

    let whole = std::fs::read_to_string(trail(&rung)).expect("the trail");
    let lines: Vec<&str> = whole.lines().collect();
    let last = lines.len() - 1;
    let spoilt = [
        ("changed", whole.replacen("\"who\":\"owner\"", "\"who\":\"nobody\"", 1)),
        ("removed", [&lines[..2], &lines[3..]].concat().join("\n") + "\n"),
        ("turned around", [&lines[..1], &[lines[2], lines[1]], &lines[3..]].concat().join("\n") + "\n"),
        ("cut off", lines[..last].join("\n") + "\n"),
        ("begun later", lines[1..].join("\n") + "\n"),
    ];
    for (what, text) in spoilt {
        std::fs::write(trail(&rung), text).expect("the trail can be spoilt");
        let said = rung.cli(&["audit", "verify", "--seen", &head]);
        assert_eq!(said.code, Some(1), "nobody sees that a record was {what}: {}", said.everything());
    }
}

#[test]
fn a_change_that_cannot_be_told_is_not_made() {
    let disk = SmallDisk::new("24m");
    let data = disk.path().join("data");
    let rung = Rung::start_with(Start { data: Some(data), ..Start::default() });
    let owner = rung.access().token;
    // An agent that can't write down that it began ends, and rung with it.
    eventually("the agent has begun", || {
        let said = rung.cli(&["doctor"]).out;
        if said.contains(": beats") { Ok(()) } else { Err(said) }
    });
    disk.fill();
    // Some room was reserved; it is used up by changes of nothing.
    let path = format!("/v1/apps/{}/restart", "x".repeat(40));
    let mut told = 0;
    let refused = loop {
        let answer = ask(&rung, &owner, "POST", &path, "{\"by\":\"ada\"}");
        if answer.status == 503 {
            break answer;
        }
        told += 1;
        assert!(told < 3000, "the disk is full, and still everything is written down");
    };
    assert!(
        refused.text().contains("audit trail") && refused.text().contains("was not made"),
        "{}",
        refused.text()
    );
    assert_eq!(ask(&rung, &owner, "GET", "/v1/apps", "").status, 200, "looking is refused, too");
    disk.free();
    rung.cli(&["token", "create", "ci", "--role", "admin"]).succeeds();
    rung.cli(&["audit", "verify"]).succeeds().mentions("is whole");
}

/// A platform that other machines could reach; it ends with this.
struct Reachable(Child);

impl Drop for Reachable {
    fn drop(&mut self) {
        process::signal(self.0.id(), libc::SIGTERM);
        let _ = self.0.wait();
    }
}

/// A platform whose API is reached by TLS, and what a person elsewhere must know of it.
struct Elsewhere {
    _platform: Reachable,
    data: tempfile::TempDir,
    api: String,
    ca: String,
}

impl Elsewhere {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let data = directory.path().join("data");
        let mut command = Command::new(rung_binary());
        command.args(["up", "--http", "127.0.0.1:0", "--api", "0.0.0.0:0", "--data"]).arg(&data);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let platform = Reachable(command.spawn().expect("rung starts"));
        let file: Value = eventually("the platform says where it is", || {
            let text = std::fs::read(data.join("rung.json")).map_err(|error| error.to_string())?;
            serde_json::from_slice(&text).map_err(|error| error.to_string())
        });
        let text = |name: &str| file[name].as_str().expect("a text").to_owned();
        let port = text("api").rsplit_once(':').expect("a port").1.to_owned();
        let (api, ca) = (format!("https://127.0.0.1:{port}"), text("ca"));
        Self { _platform: platform, data: directory, api, ca }
    }

    /// Of a token that the owner makes.
    fn token(&self, home: &Path, arguments: &[&str]) -> String {
        let data = self.data.path().join("data");
        let data = ["--data", data.to_str().expect("UTF-8")];
        let said = at_home(home, &[&["token", "create"], arguments, &data].concat(), "");
        said.succeeds().out.trim().to_owned()
    }
}

/// `rung …` of a person with a home and nothing else.
fn at_home(home: &Path, arguments: &[&str], input: &str) -> Said {
    let mut command = Command::new(rung_binary());
    command.args(arguments).current_dir(home).env("HOME", home);
    for name in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "RUNG_DATA", "RUNG_API", "RUNG_TOKEN", "RUNG_CA"] {
        command.env_remove(name);
    }
    ending::run_with_input(format!("rung {}", arguments.join(" ")), command, input.as_bytes())
}

#[test]
fn a_person_logs_in_from_elsewhere_and_ci_says_everything_in_its_environment() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = tempfile::tempdir().expect("a home");
    let platform = Elsewhere::start();
    let (api, ca) = (&platform.api, &platform.ca);
    let token = platform.token(home.path(), &["ada", "--role", "viewer", "--apps", "*@*"]);

    let wrong = format!("sha256:{}", "0".repeat(64));
    at_home(home.path(), &["login", api, "--ca", &wrong], &token).ends_with(1).mentions("authority");
    at_home(home.path(), &["login", api, "--ca", ca], "rung_ada_0000")
        .ends_with(1)
        .mentions("does not take this token");
    at_home(home.path(), &["login", "http://192.0.2.1:7864"], &token).ends_with(2).mentions("in the clear");
    at_home(home.path(), &["whoami"], "").ends_with(1).mentions("rung login");
    let said = at_home(home.path(), &["login", api, "--ca", ca], &token).succeeds();
    assert!(!said.out.contains(&token), "the token is shown: {}", said.out);
    said.mentions("logged in as token ada: viewer of *@*");
    let kept = home.path().join(".config/rung/login.json");
    let mode = std::fs::metadata(&kept).expect("it is kept").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "others can read the token");
    at_home(home.path(), &["whoami"], "").succeeds().mentions("token ada");
    at_home(home.path(), &["status"], "").succeeds();
    at_home(home.path(), &["logout"], "").succeeds().mentions("logged out");
    assert!(!kept.exists(), "the token is still there");
    at_home(home.path(), &["whoami"], "").ends_with(1);

    let mut ci = Command::new(rung_binary());
    ci.arg("whoami")
        .env("RUNG_API", api)
        .env("RUNG_TOKEN", &token)
        .env("RUNG_CA", ca)
        .env("HOME", home.path());
    let output = ci.output().expect("the CLI starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_person_elsewhere_pushes_over_tls_and_git_knows_the_authority() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = tempfile::tempdir().expect("a home");
    let platform = Elsewhere::start();
    let token = platform.token(home.path(), &["ada", "--role", "deployer", "--app", "shop"]);
    at_home(home.path(), &["login", &platform.api, "--ca", &platform.ca], &token).succeeds();
    let shop = TestApp::new("shop", 1);
    let repository = Repository::of(shop.directory());
    let home_of = |mut command: Command| {
        command.env("HOME", home.path()).env_remove("XDG_CONFIG_HOME").env_remove("GIT_SSL_NO_VERIFY");
        // An environment that names authorities for git wins over its settings.
        for name in ["RUNG_DATA", "RUNG_API", "RUNG_TOKEN", "RUNG_CA", "GIT_SSL_CAINFO"] {
            command.env_remove(name);
        }
        let output = command.output().expect("it starts");
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    let push = || home_of(repository.command(&["push", "rung", "main"]));

    let mut remote = Command::new(rung_binary());
    remote.args(["git", "remote", "--app", "shop"]).current_dir(repository.directory());
    let (is_set, said) = home_of(remote);
    assert!(is_set, "{said}");
    let (is_pushed, said) = push();
    assert!(is_pushed && said.contains("is live"), "{said}");
    let kept = std::fs::read_dir(home.path().join(".config/rung")).expect("it is there").flatten();
    let pem = kept.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "pem"));
    let pem = pem.expect("the authority's certificate is kept");
    assert_eq!(std::fs::metadata(&pem).expect("it is there").permissions().mode() & 0o777, 0o600);

    // Without it git trusts nobody there: it is what made the push possible, and nothing was turned off.
    repository.git(&["config", "--unset", &format!("http.{}.sslCAInfo", platform.api)]).succeeds();
    repository.git(&["commit", "--quiet", "--allow-empty", "-m", "again"]).succeeds();
    let (is_pushed, said) = push();
    assert!(!is_pushed && said.to_lowercase().contains("certificate"), "{said}");
}

#[test]
fn a_domain_that_is_taken_names_no_app_of_another_team() {
    let rung = Rung::start();
    let mut shop = TestApp::new("secret-plan", 1);
    shop.sections.push("domains = [\"www.example.com\"]".into());
    rung.deploy(shop.directory()).succeeds();
    let blog_token = token(&rung, &["team-blog", "--role", "deployer", "--app", "blog"]);
    let mut blog = TestApp::new("blog", 1);
    blog.sections.push("domains = [\"www.example.com\"]".into());
    let directory = blog.directory().to_str().expect("UTF-8").to_owned();
    let is_discreet = |said: &Said| {
        let told = said.everything();
        assert!(told.contains("host www.example.com belongs to another app"), "{told}");
        assert!(!told.contains("secret-plan"), "the other team's app is named: {told}");
    };
    is_discreet(&cli_as(&rung, &blog_token, &["deploy", &directory]).ends_with(1));
    // A push deploys by the token that it came with, not by the server's own right.
    let repository = Repository::of(blog.directory());
    let remote = format!("http://ci:{blog_token}@{}/git/blog", rung.api_address());
    is_discreet(&repository.git(&["push", &remote, "main"]).ends_with(1));
    // Whoever may see both is told.
    rung.cli(&["deploy", &directory]).ends_with(1).mentions("belongs to app secret-plan");

    blog.sections.clear();
    blog.directory();
    repository.commit("a name of its own");
    repository.git(&["push", &remote, "main"]).succeeds();
    let by = rung.deployments("blog").into_iter().map(|deployment| deployment.by).collect::<Vec<_>>();
    assert_eq!(by, ["team-blog (ci)"], "the deployment does not say whose it is");
}
