//! Applications that others wrote, installed by their own build command, each loaded during ten deploys.

use std::path::Path;

use rung_e2e::http::Connection;
use rung_e2e::{Load, Rung, example};

const DEPLOYS: u32 = 10;

/// A change of the app file alone: a new release of the same artifact.
fn set_stop_grace(directory: &Path, seconds: u32) {
    let path = directory.join("rung.toml");
    let text = std::fs::read_to_string(&path).expect("the example's app file");
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("stop_grace =")).collect();
    let section = "[services.web]\n";
    let changed = kept.join("\n").replacen(section, &format!("{section}stop_grace = \"{seconds}s\"\n"), 1);
    std::fs::write(&path, changed).expect("the copy's app file");
}

/// The build's tree does not depend on the app file, so that a change of it builds nothing.
fn leave_the_app_file_out_of_the_tree(directory: &Path) {
    let path = directory.join(".rungignore");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    std::fs::write(&path, format!("{text}rung.toml\n")).expect("the copy's .rungignore");
}

#[test]
fn datasette_is_built_and_deployed_ten_times_under_load() {
    let datasette = example("datasette");
    leave_the_app_file_out_of_the_tree(datasette.path());
    let rung = Rung::start();
    rung.deploy(datasette.path()).succeeds();
    rung.wait_until_settled("datasette", "web", 2);
    assert!(rung.page("datasette", "/elements/elements/26.json").contains("Iron"));
    let load = Load::start_clients(rung.http(), "datasette.localhost", "/elements/elements/26.json", 2, PACE);
    for n in 1..=DEPLOYS {
        if n % 5 == 0 {
            build_another_element(&rung, datasette.path(), 200 + n);
        } else {
            set_stop_grace(datasette.path(), 10 + n);
            rung.deploy(datasette.path()).succeeds();
        }
    }
    load.stop().assert_none_lost("ten deploys of Datasette");
}

/// A changed source: this deploy builds anew, and what it built is served when it is done.
fn build_another_element(rung: &Rung, directory: &Path, number: u32) {
    let csv = directory.join("elements.csv");
    let text = std::fs::read_to_string(&csv).expect("the example's data");
    std::fs::write(&csv, format!("{text}{number},X,Unobtainium {number},9\n")).expect("the copy's data");
    rung.deploy(directory).succeeds();
    let page = rung.page("datasette", &format!("/elements/elements/{number}.json"));
    assert!(page.contains(&format!("Unobtainium {number}")), "the new build is served: {page}");
}

#[test]
fn wagtail_migrates_its_database_and_is_deployed_ten_times_under_load() {
    let wagtail = example("wagtail");
    leave_the_app_file_out_of_the_tree(wagtail.path());
    let rung = Rung::start();
    rung.cli(&["secret", "generate", "SECRET_KEY", "--app", "wagtail"]).succeeds();
    rung.deploy(wagtail.path()).succeeds();
    rung.wait_until_settled("wagtail", "web", 2);
    assert!(rung.page("wagtail", "/").contains("Welcome to your new Wagtail site"));
    assert!(rung.page("wagtail", "/admin/login/").contains("csrfmiddlewaretoken"));
    let load = Load::start_clients(rung.http(), "wagtail.localhost", "/", 2, PACE);
    for n in 1..=DEPLOYS {
        set_stop_grace(wagtail.path(), 10 + n);
        rung.deploy(wagtail.path()).succeeds();
    }
    load.stop().assert_none_lost("ten deploys of Wagtail");
    let users = [
        "run",
        "--app",
        "wagtail",
        "--",
        "python3",
        "-m",
        "django",
        "createsuperuser",
        "--no-input",
        "--username",
        "ada",
        "--email",
        "ada@example.com",
    ];
    rung.cli(&users).succeeds().mentions("created");
}

#[test]
fn verdaccio_owns_its_storage_and_is_deployed_ten_times_under_load() {
    let verdaccio = example("verdaccio");
    leave_the_app_file_out_of_the_tree(verdaccio.path());
    let rung = Rung::start();
    rung.deploy(verdaccio.path()).succeeds();
    rung.wait_until_settled("verdaccio", "web", 1);
    let mut connection = Connection::open(rung.http()).expect("the ingress takes connections");
    let user = br#"{"name":"ada","password":"difference-engine"}"#;
    let kind = ("Content-Type", "application/json");
    let path = "/-/user/org.couchdb.user:ada";
    let answer = connection.ask("PUT", "verdaccio.localhost", path, &[kind], user).expect("an answer");
    assert_eq!(answer.status, 201, "a user was added: {}", answer.text());
    let load = Load::start_clients(rung.http(), "verdaccio.localhost", "/-/ping", 2, PACE);
    for n in 1..=DEPLOYS {
        set_stop_grace(verdaccio.path(), 10 + n);
        rung.deploy(verdaccio.path()).succeeds();
    }
    load.stop().assert_none_lost("ten deploys of Verdaccio, which is exclusive");
    let mut connection = Connection::open(rung.http()).expect("the ingress takes connections");
    let wrong = br#"{"name":"ada","password":"analytical-engine"}"#;
    let answer = connection.ask("PUT", "verdaccio.localhost", path, &[kind], wrong).expect("an answer");
    assert!(
        answer.status == 401 || answer.status == 409,
        "the user is remembered over ten deploys: {}",
        answer.text()
    );
}

/// These applications take milliseconds of processor a request: enough load to notice a loss, and cores left to serve it.
const PACE: std::time::Duration = std::time::Duration::from_millis(40);
