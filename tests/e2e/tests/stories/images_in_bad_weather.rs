//! Images whose registry, credentials or engine fail, and what a lying registry gives.

use rung_api::wire::InstanceStatus;
use rung_e2e::engine::{Access, PASSWORD, Registry};
use rung_e2e::{Rung, Start, eventually};
use rung_model::observed::InstanceState;
use tempfile::TempDir;

use super::images::{Stage, app, of_image, write};

#[test]
fn credentials_are_asked_for_at_each_pull() {
    let stage = Stage::new();
    let registry = Registry::start(Access::Ada);
    stage.web("shop:1", "private");
    let image = registry.push(&stage.engine, "shop:1", "acme/shop:1");
    let config = stage.config.path().join("config.json");
    let programs = tempfile::tempdir().expect("a temporary directory");
    let mut env = stage.env();
    let path = std::env::var("PATH").expect("there is one");
    env.push(("PATH".into(), format!("{}:{path}", programs.path().display())));
    let rung = Rung::start_with(Start { environment: env, ..Start::default() });
    let directory = app(&of_image("shop", &image, ""));

    rung.deploy(directory.path()).ends_with(1).mentions("docker login");
    std::fs::write(&config, registry.client_config("wrong")).expect("a file");
    rung.deploy(directory.path()).ends_with(1).mentions("config.json").mentions("docker login");
    std::fs::write(&config, registry.client_config(PASSWORD)).expect("a file");
    rung.deploy(directory.path()).succeeds();
    assert!(rung.page("shop", "/").contains("private"));

    // A helper, called as ECR's is, whose first token has ended: it is asked again, and the second is good.
    let helper = programs.path().join("docker-credential-ecr-login");
    let state = programs.path().join("asked");
    let script = format!(
        "#!/bin/sh\nread registry\nif [ -e {0} ]; then secret='{PASSWORD}'; else secret=ended; fi\necho \"$1 $registry\" >> {0}\nprintf '{{\"ServerURL\":\"%s\",\"Username\":\"ada\",\"Secret\":\"%s\"}}' \"$registry\" \"$secret\"\n",
        state.display()
    );
    std::fs::write(&helper, script).expect("a helper");
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
    std::fs::write(&config, format!("{{\"credHelpers\":{{\"{}\":\"ecr-login\"}}}}", registry.name()))
        .expect("a file");
    stage.web("shop:2", "the second");
    registry.push(&stage.engine, "shop:2", "acme/shop:1");
    rung.deploy(directory.path()).succeeds();
    assert!(rung.page("shop", "/").contains("the second"));
    let asked = || std::fs::read_to_string(&state).unwrap_or_default();
    let once = format!("get {}\n", registry.name());
    assert_eq!(asked(), once.repeat(2), "the helper was not asked again for the token that had ended");
    // And with the next deploy, although what it said last is still good: nothing of it was kept.
    rung.deploy(directory.path()).succeeds();
    assert_eq!(asked(), once.repeat(3), "the helper was not asked for the next pull");

    // It is gone in the middle of everything: what serves goes on, and the next deploy says what is missing.
    std::fs::remove_file(&helper).expect("it is there");
    rung.deploy(directory.path())
        .ends_with(1)
        .mentions("docker-credential-ecr-login")
        .mentions("docker login");
    assert!(rung.page("shop", "/").contains("the second"));
    let secrets = rung.cli(&["logs", "--app", "shop"]).everything() + &rung.output();
    assert!(!secrets.contains(PASSWORD), "a password is in a log");
}

/// An app of one container that is well.
fn one_runs() -> (Stage, Rung, TempDir) {
    let stage = Stage::new();
    stage.web("shop:1", "still here");
    let rung = stage.rung();
    let directory = app(&(of_image("shop", "shop:1", "") + "health = { interval = \"200ms\" }\n"));
    rung.deploy(directory.path()).succeeds();
    rung.wait_until_settled("shop", "web", 1);
    (stage, rung, directory)
}

#[test]
fn an_engine_that_goes_away_is_told_and_its_instances_come_back_with_it() {
    let (mut stage, rung, directory) = one_runs();
    stage.engine.down();
    eventually("the instance says that the engine does not answer", || {
        let instances = rung.instances("shop");
        let reason = instances.first().and_then(|instance| instance.reason.clone()).unwrap_or_default();
        if reason.contains("no container engine answers") { Ok(()) } else { Err(format!("{instances:?}")) }
    });
    assert!(rung.instances("shop").iter().all(|instance| instance.state != InstanceState::Healthy));
    rung.deploy(directory.path()).ends_with(1).mentions("no container engine answers");
    // Nothing new is given to a node without an engine, and what waits says for what.
    eventually("the node says that it has no engine", || {
        let said = rung.cli(&["doctor"]).everything();
        if said.contains("no container engine answers") { Ok(()) } else { Err(said) }
    });
    rung.cli(&["scale", "web=2", "--no-wait", "--app", "shop"]).succeeds();
    eventually("the second instance waits for an engine", || {
        let problems = rung.app("shop").problems.join("; ");
        let is_told = problems.contains("can't be placed yet") && problems.contains("no container engine");
        if is_told { Ok(()) } else { Err(problems) }
    });
    stage.engine.up();
    rung.wait_until_settled("shop", "web", 2);
    assert!(rung.page("shop", "/").contains("still here"));
}

/// The app's only instance, for a person who watches it.
fn only(rung: &Rung, app: &str) -> Result<InstanceStatus, String> {
    let mut instances = rung.instances(app);
    match instances.len() {
        1 => Ok(instances.remove(0)),
        _ => Err(format!("{instances:?}")),
    }
}

#[test]
fn an_engine_that_is_killed_leaves_nobody_to_send_to_and_its_next_start_brings_all_back() {
    let (mut stage, rung, directory) = one_runs();
    let before = rung.lives("shop");

    // Only the part that starts containers: nobody notices.
    stage.engine.kill_containerd();
    assert!(rung.page("shop", "/").contains("still here"));
    assert_eq!(rung.lives("shop"), before, "an instance was started again for nothing");
    assert_eq!(only(&rung, "shop").expect("one runs").restarts, 0);

    // All of it, without a word: the container runs on, and nothing leads to it any more.
    stage.engine.kill_9();
    assert!(before.values().all(|life| life.goes_on()), "the container has ended with the engine");
    eventually("it gets no requests, and says why", || {
        let instance = only(&rung, "shop")?;
        let reason = instance.reason.clone().unwrap_or_default();
        let is_told = reason.contains("no container engine answers");
        if is_told && !instance.routed { Ok(()) } else { Err(format!("{instance:?}")) }
    });
    let answer = rung.get("shop", "/").expect("the ingress answers");
    assert_eq!(answer.status, 503, "who asks is told that nobody is there: {}", answer.text());

    stage.engine.up();
    rung.wait_until_settled("shop", "web", 1);
    assert!(rung.page("shop", "/").contains("still here"));
    eventually("one container is left", || match stage.engine.containers() {
        left if left.len() == 1 => Ok(()),
        left => Err(format!("{left:?}")),
    });
    stage.web("shop:2", "the next");
    write(directory.path(), &(of_image("shop", "shop:2", "") + "health = { interval = \"200ms\" }\n"));
    rung.deploy(directory.path()).succeeds();
    assert!(rung.page("shop", "/").contains("the next"));
}

#[test]
fn what_a_registry_gives_is_what_its_digest_says_or_it_is_not_run() {
    let stage = Stage::new();
    let registry = Registry::start(Access::Anybody);
    let rung = stage.rung();
    stage.web("shop:1", "the first");
    let image = registry.push(&stage.engine, "shop:1", "acme/shop:1");
    let directory = app(&of_image("shop", &image, ""));
    rung.deploy(directory.path()).succeeds();

    // By the digest of an image that somebody has put another one in the place of.
    stage.web("shop:2", "the second");
    registry.push(&stage.engine, "shop:2", "acme/shop:2");
    stage.web("evil:1", "evil");
    registry.push(&stage.engine, "evil:1", "acme/shop:evil");
    let digest = registry.digest("acme/shop", "2");
    registry.put_in_place(&digest, &registry.digest("acme/shop", "evil"));
    write(directory.path(), &of_image("shop", &registry.image(&format!("acme/shop@{digest}")), ""));
    rung.deploy(directory.path())
        .ends_with(1)
        .mentions("is not what its digest says")
        .mentions("was not run");

    // Layers of which a part was changed, by a tag.
    stage.web("shop:3", "the third");
    let third = registry.push(&stage.engine, "shop:3", "acme/shop:3");
    registry.damage_layers();
    write(directory.path(), &of_image("shop", &third, ""));
    rung.deploy(directory.path())
        .ends_with(1)
        .mentions("is not what its digest says")
        .mentions("was not run");
    assert!(rung.page("shop", "/").contains("the first"), "what serves was touched");

    // What is no digest at all is refused with the app file.
    write(directory.path(), &of_image("shop", &registry.image("acme/shop@sha256:abc"), ""));
    rung.deploy(directory.path()).ends_with(1).mentions("rung.toml:3").mentions("digits follow sha256:");
}
