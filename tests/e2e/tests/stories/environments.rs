//! One app in several environments: each deployed on its own, none in the other's way.

use rung_e2e::{Rung, TestApp};

/// An app with a staging environment that differs in one variable and its count of instances.
fn shop() -> TestApp {
    let mut app = TestApp::new("shop", 2);
    app.sections.push("[volumes.state]".into());
    app.sections.push("[environments.staging]\nenv.COLOUR = \"blue\"\nservices.web.instances = 1".into());
    app.web().lines.push("mounts = { state = \"/state\" }".into());
    app.set("COLOUR", "red");
    app
}

#[test]
fn an_environment_is_an_app_of_its_own() {
    let rung = Rung::start();
    let mut app = shop();
    let directory = app.directory().to_str().expect("UTF-8").to_owned();
    rung.deploy(app.directory()).succeeds();
    rung.cli(&["deploy", &directory, "--env", "staging"]).succeeds().mentions("shop-staging.localhost");
    rung.wait_until_settled("shop", "web", 2);
    rung.wait_until_settled("shop@staging", "web", 1);
    assert_eq!(rung.page("shop", "/env?name=COLOUR"), "red");
    assert_eq!(rung.page("shop-staging", "/env?name=COLOUR"), "blue");
    assert_eq!(rung.page("shop", "/env?name=RUNG_ENVIRONMENT"), "production");
    assert_eq!(rung.page("shop-staging", "/env?name=RUNG_ENVIRONMENT"), "staging");

    rung.cli(&["config", "set", "SIZE=small", "--app", "shop", "--env", "staging"]).succeeds();
    assert_eq!(rung.page("shop-staging", "/env?name=SIZE"), "small");
    rung.cli(&["config", "get", "SIZE", "--app", "shop"]).ends_with(1);
    app.version = "2".into();
    rung.cli(&["deploy", app.directory().to_str().expect("UTF-8"), "--env", "staging"]).succeeds();
    assert!(rung.page("shop-staging", "/").contains("version 2 "));
    assert!(rung.page("shop", "/").contains("version 1 "), "production was not touched");
    rung.cli(&["run", "--app", "shop@staging", "--", "sh", "-c", "echo mine > $RUNG_VOLUME_STATE/note"])
        .succeeds();
    let production =
        rung.cli(&["run", "--app", "shop", "--", "sh", "-c", "ls $RUNG_VOLUME_STATE"]).succeeds();
    assert!(!production.out.contains("note"), "volumes are shared: {}", production.everything());

    let status = rung.cli(&["status", "--app", "shop"]).succeeds();
    status.mentions("staging").mentions("http://shop-staging.localhost").mentions("1 of 1");
    rung.cli(&["logs", "--app", "shop", "--env", "staging"]).succeeds().mentions("shop@staging-web");

    rung.cli(&["destroy", "--app", "shop", "--env", "staging", "--volumes", "-y"]).succeeds();
    rung.wait_until_settled("shop", "web", 2);
    assert!(
        rung.page("shop", "/").contains("version 1 "),
        "the other environment's end was production's, too"
    );
}

#[test]
fn what_is_wrong_with_an_environment_is_said_before_anything_happens() {
    let rung = Rung::start();
    let app = shop();
    let directory = app.directory().to_str().expect("UTF-8").to_owned();
    rung.cli(&["deploy", &directory, "--env", "stagin"])
        .ends_with(1)
        .mentions("no environment `stagin`")
        .mentions("did you mean `staging`?");
    std::fs::write(app.directory().join("rung.qa.toml"), "[services.web]\ninstances = -1\n")
        .expect("an overlay");
    rung.cli(&["deploy", &directory, "--env", "qa"]).ends_with(1).mentions("rung.qa.toml:2:13");
    rung.cli(&["deploy", &directory, "--env", "staging"]).succeeds();
    rung.cli(&["status", "--app", "shop"]).ends_with(1).mentions("--env staging");
    let other = TestApp::new("shop-staging", 1);
    rung.deploy(other.directory()).ends_with(1).mentions("shop-staging.localhost").mentions("another name");
}
