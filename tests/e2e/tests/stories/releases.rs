//! Releases: made, compared, promoted, taken back, and explained afterwards.

use std::path::Path;
use std::process::Command;

use rung_api::wire::{CommitState, CommitStatus, ReleaseDiff, ReleaseListing};
use rung_e2e::{Rung, TestApp, Webhook, eventually};
use rung_model::deployment::{Deployment, Phase};

fn path(app: &TestApp) -> String {
    app.directory().to_str().expect("temporary directories have names in UTF-8").to_owned()
}

/// Newest first.
fn releases(rung: &Rung, app: &str) -> Vec<ReleaseListing> {
    rung.cli(&["releases", "--app", app, "--json"]).succeeds().json()
}

/// With a release command that writes down each version it ran for, where `/state?name=released` shows it.
fn with_release_command(name: &str) -> TestApp {
    let mut app = TestApp::new(name, 1);
    app.sections.push("[deploy]\nrelease = \"python3 -B app.py release\"".into());
    app.sections.push("[volumes.state]".into());
    app.web().lines.push("mounts = { state = \"/state\" }".into());
    app
}

#[test]
fn the_artifact_that_was_tried_in_staging_is_the_one_that_serves_in_production() {
    let rung = Rung::start();
    let mut app = TestApp::new("shop", 1);
    app.sections.push("[build]\ncommand = \"date +%N > built && echo the build speaks\"".into());
    app.sections.push("[environments.staging]\nenv.COLOUR = \"blue\"".into());
    app.set("COLOUR", "red");
    rung.cli(&["deploy", &path(&app), "--env", "staging", "-m", "a new cart"])
        .succeeds()
        .mentions("the build speaks");
    rung.cli(&["config", "set", "SIZE=small", "--app", "shop@staging"]).succeeds();

    let promoted = rung.cli(&["promote", "--from", "staging", "--app", "shop"]).succeeds();
    assert!(!promoted.out.contains("the build speaks"), "it was built again: {}", promoted.everything());
    let (there, here) = (releases(&rung, "shop@staging"), releases(&rung, "shop"));
    assert_eq!(here[0].artifact, there[0].artifact, "it is not the very same artifact");
    assert_eq!(rung.page("shop", "/env?name=COLOUR"), "red", "the app file says so for production");
    assert_eq!(rung.page("shop-staging", "/env?name=COLOUR"), "blue");
    let unset = rung.get("shop", "/env?name=SIZE").expect("an answer");
    assert_eq!(unset.status, 404, "settings were promoted, too: {}", unset.text());
    rung.cli(&["releases", "v1", "--app", "shop"]).succeeds().mentions("from shop@staging v2");
    rung.cli(&["logs", "--build", "v1", "--app", "shop"]).succeeds().mentions("the build speaks");
    rung.cli(&["releases", "v1", "--app", "shop@staging"])
        .succeeds()
        .mentions("a new cart")
        .mentions("the build speaks");
    rung.cli(&["promote", "--from", "staging", "--app", "shop"]).succeeds().mentions("nothing has changed");
    rung.cli(&["promote", "--from", "staging", "--app", "shop@staging"]).ends_with(2).mentions("to itself");
    rung.cli(&["promote", "--from", "qa", "--app", "shop"]).ends_with(1).mentions("there is no app shop@qa");
}

#[test]
fn two_releases_are_compared_by_files_app_file_config_and_versions_of_secrets() {
    let rung = Rung::start();
    let mut app = TestApp::new("compared", 1);
    rung.deploy(app.directory()).succeeds();
    rung.cli(&["config", "set", "COLOUR=green", "--app", "compared"]).succeeds();
    rung.set_secret("compared", "TOKEN", "hunter2");
    app.version = "2 now".into();
    app.web().instances = 2;
    std::fs::write(app.directory().join("added"), "more").expect("a file of the app");
    rung.deploy(app.directory()).succeeds();

    let said = rung.cli(&["diff", "v1", "v4", "--app", "compared"]).succeeds();
    assert!(!format!("{}{}", said.out, said.err).contains("hunter2"), "{}", said.everything());
    let diff: ReleaseDiff = rung.cli(&["diff", "v1", "v4", "--app", "compared", "--json"]).succeeds().json();
    let files: Vec<&str> = diff.artifact.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(files, ["added", "rung.toml", "version"]);
    assert_eq!(diff.file.len(), 1, "{:?}", diff.file);
    said.mentions("~ services.web.instances: 1 -> 2")
        .mentions("+ COLOUR: green")
        .mentions("+ TOKEN: version 1")
        .mentions("+ added  4 bytes")
        .mentions("~ version  1 bytes -> 5 bytes");
    // Without names: the current one against the one before.
    rung.cli(&["diff", "--app", "compared"]).succeeds().mentions("v4 against v3").mentions("+ added");
    rung.cli(&["diff", "v2", "v3", "--app", "compared"]).succeeds().mentions("TOKEN: version 1");
    rung.cli(&["diff", "v1", "v9", "--app", "compared"]).ends_with(1).mentions("has no release v9");
}

#[test]
fn an_app_file_alone_is_deployed_without_a_build_and_without_a_new_artifact() {
    let rung = Rung::start();
    let mut app = with_release_command("filed");
    app.sections.push("[build]\ncommand = \"date +%N > built\"".into());
    rung.deploy(app.directory()).succeeds();
    app.version = "2".into();
    app.web().instances = 2;
    rung.cli(&["deploy", &path(&app), "--config-only"]).succeeds();
    rung.wait_until_settled("filed", "web", 2);
    assert!(rung.page("filed", "/").contains("version 1 "), "the tree was deployed, too");
    let all = releases(&rung, "filed");
    assert_eq!(all[0].artifact, all[1].artifact);
    assert_eq!(rung.page("filed", "/state?name=released"), "1\n", "the release command ran again");
    app.sections.pop();
    rung.cli(&["deploy", &path(&app), "--config-only"]).ends_with(1).mentions("must be built anew");
    let fresh = TestApp::new("fresh", 1);
    rung.cli(&["deploy", &path(&fresh), "--config-only"]).ends_with(1).mentions("serves no artifact yet");
}

#[test]
fn a_release_is_made_now_and_rolled_out_later() {
    let rung = Rung::start();
    let mut app = with_release_command("later");
    rung.deploy(app.directory()).succeeds();
    app.version = "2".into();
    rung.cli(&["deploy", &path(&app), "--build-only"])
        .succeeds()
        .mentions("v2 is built")
        .mentions("rung deploy v2");
    assert!(rung.page("later", "/").contains("version 1 "), "something was rolled out");
    assert_eq!(rung.page("later", "/state?name=released"), "1\n", "the release command ran");
    assert!(releases(&rung, "later")[0].waits, "v2 is not shown as waiting");
    rung.cli(&["status", "--app", "later"]).succeeds().mentions("`rung deploy v2` rolls it out");

    rung.cli(&["deploy", "v2", "--app", "later"]).succeeds();
    assert!(rung.page("later", "/").contains("version 2 "));
    assert_eq!(rung.page("later", "/state?name=released"), "1\n2\n");
    assert_eq!(releases(&rung, "later").len(), 2, "another release was made");
    rung.cli(&["deploy", "v1", "--app", "later"]).ends_with(1).mentions("rung rollback v1");

    app.version = "3".into();
    rung.cli(&["deploy", &path(&app), "--skip-release"]).succeeds();
    assert!(rung.page("later", "/").contains("version 3 "));
    assert_eq!(rung.page("later", "/state?name=released"), "1\n2\n", "the release command was not left out");
    rung.cli(&["explain", "--app", "later"]).succeeds().mentions("without its release command");
    // The next deploy of the same makes up for it, and the one after that has nothing to do.
    rung.deploy(app.directory()).succeeds();
    assert_eq!(rung.page("later", "/state?name=released"), "1\n2\n3\n", "what was left out counts as done");
    rung.deploy(app.directory()).succeeds().mentions("nothing has changed");
}

#[test]
fn a_rollback_brings_back_artifact_app_file_config_and_secrets() {
    let rung = Rung::start();
    let mut app = TestApp::new("undone", 1);
    rung.deploy(app.directory()).succeeds();
    rung.cli(&["config", "set", "COLOUR=red", "--app", "undone"]).succeeds();
    rung.set_secret("undone", "TOKEN", "one");
    rung.cli(&["config", "set", "COLOUR=green", "--app", "undone"]).succeeds();
    rung.set_secret("undone", "TOKEN", "two");
    app.version = "2".into();
    app.set("SHAPE", "round");
    rung.deploy(app.directory()).succeeds();
    assert_eq!(rung.page("undone", "/env?name=TOKEN"), "two");

    rung.cli(&["rollback", "v3", "--app", "undone"]).succeeds().mentions("not undone");
    assert!(rung.page("undone", "/").contains("version 1 "));
    assert_eq!(rung.page("undone", "/env?name=COLOUR"), "red");
    assert_eq!(rung.page("undone", "/env?name=TOKEN"), "one");
    let unset = rung.get("undone", "/env?name=SHAPE").expect("an answer");
    assert_eq!(unset.status, 404, "the app file is the new one: {}", unset.text());
    rung.cli(&["config", "get", "COLOUR", "--app", "undone"]).succeeds().mentions("red");
    // What was taken back does not come again with the next change.
    rung.cli(&["config", "set", "SIZE=small", "--app", "undone"]).succeeds();
    assert_eq!(rung.page("undone", "/env?name=COLOUR"), "red");
    assert_eq!(rung.page("undone", "/env?name=TOKEN"), "one");
}

#[test]
fn without_a_restore_point_the_release_command_does_not_run() {
    let rung = Rung::start();
    let mut app = with_release_command("careful");
    app.sections[0] = "[deploy]\nrelease = \"python3 -B app.py release\"\nbefore_release = \"echo saved $RUNG_RELEASE >> $RUNG_VOLUME_STATE/saved\"".into();
    rung.deploy(app.directory()).succeeds();
    assert_eq!(rung.page("careful", "/state?name=saved"), "saved v1\n");
    assert_eq!(rung.page("careful", "/state?name=released"), "1\n");
    app.sections[0] = app.sections[0].replace("echo saved", "echo the disk is full; exit 3; echo");
    app.version = "2".into();
    rung.deploy(app.directory())
        .ends_with(1)
        .mentions("before the release command")
        .mentions("the disk is full");
    assert_eq!(rung.page("careful", "/state?name=released"), "1\n", "it ran without a restore point");
    assert!(rung.page("careful", "/").contains("version 1 "));
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(directory).args(["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]);
    let done = command.args(arguments).output().expect("git is installed");
    assert!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("git speaks UTF-8").trim_end().to_owned()
}

#[test]
fn what_became_of_a_commit_is_there_for_ci_to_read() {
    let rung = Rung::start();
    let mut app = TestApp::new("committed", 1);
    let commit = |app: &TestApp| {
        git(app.directory(), &["add", "."]);
        git(app.directory(), &["commit", "-qm", "a change"]);
        git(app.directory(), &["rev-parse", "HEAD"])
    };
    git(app.directory(), &["init", "-q", "-b", "trunk"]);
    let first = commit(&app);
    rung.deploy(app.directory()).succeeds();
    rung.cli(&["status", "--commit", &first, "--app", "committed"]).succeeds().mentions("serves as v1");
    rung.cli(&["releases", "--app", "committed"]).succeeds().mentions(&first[..10]);
    rung.cli(&["releases", "v1", "--app", "committed"]).succeeds().mentions("on trunk");

    app.set("BE_CRASHING", "of a missing library");
    let second = commit(&app);
    rung.deploy(app.directory()).ends_with(3);
    rung.cli(&["status", "--commit", &second[..12], "--app", "committed"])
        .ends_with(3)
        .mentions("rolled back");
    let status: CommitStatus =
        rung.cli(&["status", "--commit", &first, "--app", "committed", "--json"]).succeeds().json();
    assert_eq!((status.state, status.serves), (CommitState::Succeeded, true));
    let nobodys = "0123456789abcdef0123456789abcdef01234567";
    rung.cli(&["status", "--commit", nobodys, "--app", "committed"])
        .ends_with(1)
        .mentions("no deployment of commit");

    app.unset("BE_CRASHING");
    app.version = "2".into();
    rung.deploy(app.directory()).succeeds();
    rung.cli(&["releases", "v3", "--app", "committed"]).succeeds().mentions("not committed");
}

#[test]
fn a_deployment_is_explained_afterwards_also_when_the_server_died_in_it() {
    let mut rung = Rung::start();
    let mut app = TestApp::new("told", 1);
    rung.deploy(app.directory()).succeeds();
    app.version = "2".into();
    app.set("BE_SLOW_TO_START", "1500");
    rung.cli(&["deploy", &path(&app), "--no-wait"]).succeeds();
    eventually("the second deployment rolls out", || match rung.last_deployment("told") {
        Deployment { phase: Phase::Rolling, number, .. } if number.0 == 2 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    rung.kill_9();
    rung.up(None, &[]);
    eventually("the deployment goes on to its end after the restart", || {
        match rung.last_deployment("told") {
            Deployment { phase: Phase::Succeeded, .. } => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    rung.cli(&["explain", "--app", "told"])
        .succeeds()
        .mentions("told d2")
        .mentions("from v1 to v2")
        .mentions("is healthy at 127.0.0.1:")
        .mentions("gets requests")
        .mentions("all traffic is on v2");
    rung.cli(&["explain", "d1", "--app", "told"]).succeeds().mentions("all traffic is on v1");
    rung.cli(&["explain", "d7", "--app", "told"]).ends_with(1).mentions("no deployment d7");
}

#[test]
fn a_webhook_is_told_how_a_deployment_ended_though_the_server_dies_before_it_listens() {
    let hook = Webhook::answering(&[503]);
    let mut rung = Rung::start();
    let mut app = TestApp::new("loud", 1);
    app.sections.push(format!("[notify]\nwebhook = {:?}\nsecret = \"HOOK_KEY\"", hook.address));
    rung.deploy(app.directory()).ends_with(1).mentions("HOOK_KEY");
    rung.set_secret("loud", "HOOK_KEY", "hunter2");
    rung.cli(&["deploy", &path(&app), "-m", "a new cart"]).succeeds();
    let (_, first) = hook.next();
    rung.kill_9();
    rung.up(None, &[]);
    let (head, again) = hook.next();
    assert_eq!(first, again, "a double is told by its id, and says the same");
    assert!(head.contains("rung-signature: t=") && head.contains("rung-delivery: loud.d1"), "{head}");
    assert_eq!((&again["id"], &again["outcome"]), (&"loud.d1".into(), &"succeeded".into()));
    assert_eq!((&again["release"], &again["note"]), (&"v1".into(), &"a new cart".into()));
    eventually("it is known that the webhook was told", || {
        let said = rung.cli(&["explain", "--app", "loud"]).succeeds();
        if said.out.contains("was told") { Ok(()) } else { Err(said.out) }
    });

    app.set("BE_CRASHING", "of a missing library");
    rung.deploy(app.directory()).ends_with(3);
    let (_, failed) = hook.next();
    assert_eq!((&failed["deployment"], &failed["outcome"]), (&"d2".into(), &"rolled_back".into()));
    assert!(failed["reason"].as_str().expect("a reason").contains("failed"), "{failed}");
}

#[test]
fn the_log_of_a_build_is_kept_with_its_release_although_its_machine_has_it_no_more() {
    let rung = Rung::start();
    let mut app = with_release_command("logged");
    app.sections.push("[build]\ncommand = \"echo compiling; echo done\"\ntest = \"echo 214 passed\"".into());
    rung.deploy(app.directory()).succeeds();
    let copies = rung.data().join("run-logs/logged");
    eventually("the server has copies of both logs", || {
        let found = std::fs::read_dir(&copies).map_err(|error| error.to_string())?.count();
        if found == 2 { Ok(()) } else { Err(format!("it has {found}")) }
    });
    // As if the machine that built were another one, and gone.
    std::fs::remove_dir_all(rung.data().join("node/logs/logged")).expect("the agent's logs");
    let log = rung.cli(&["logs", "--build", "v1", "--app", "logged"]).succeeds();
    let log = log.mentions("compiling").mentions("214 passed");
    assert!(!log.out.contains("is not kept"), "{}", log.out);
    let tail = rung.cli(&["logs", "--build", "v1", "-n", "1", "--app", "logged"]).succeeds();
    assert_eq!(tail.out.lines().count(), 1, "{}", tail.out);
    rung.cli(&["logs", "--run", "logged.d1-release", "--app", "logged"]).succeeds();
    rung.cli(&["releases", "v1", "--app", "logged"]).succeeds().mentions("214 passed");
}
