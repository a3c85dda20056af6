//! Apps that run from container images, on an engine of the story's own.

use std::path::Path;

use rung_api::wire::InstanceStatus;
use rung_e2e::engine::{Access, Dockerd, Registry};
use rung_e2e::podman::Podman;
use rung_e2e::{Rung, Start, eventually, example};
use rung_model::observed::InstanceState;
use serde_json::Value;
use tempfile::TempDir;

/// An image's web server: pages from `/www`, and a script that tells its environment.
pub const SERVE: &str = r#"CMD ["httpd","-f","-p","8080","-h","/www"]"#;
pub const EXPOSE: &str = "EXPOSE 8080";
const TELL: &str = "#!/bin/sh\necho 'Content-Type: text/plain'\necho\nid -u\nenv\n";

pub struct Stage {
    pub engine: Dockerd,
    pub config: TempDir,
}

impl Stage {
    pub fn new() -> Self {
        let config = tempfile::tempdir().expect("a temporary directory");
        Self { engine: Dockerd::start(), config }
    }

    /// `rung up` for the user whose `~/.docker` is the stage's.
    pub fn rung(&self) -> Rung {
        Rung::start_with(Start { environment: self.env(), ..Start::default() })
    }

    pub fn env(&self) -> Vec<(String, String)> {
        let config = self.config.path().display().to_string();
        vec![("DOCKER_HOST".into(), self.engine.host()), ("DOCKER_CONFIG".into(), config)]
    }

    /// An image that serves this page, and more.
    pub fn image(&self, name: &str, page: &str, more: &[&str]) {
        let files = [("www/index.html", page), ("www/cgi-bin/tell", TELL)];
        self.engine.import_with(name, more, &files);
    }

    pub fn web(&self, name: &str, page: &str) {
        self.image(name, page, &[SERVE, EXPOSE]);
    }
}

/// The directory of an app that is its app file only.
pub fn app(file: &str) -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    write(directory.path(), file);
    directory
}

pub fn write(directory: &Path, file: &str) {
    std::fs::write(directory.join("rung.toml"), file).expect("an app file");
}

/// BusyBox's server, as the first process of a container, passes over SIGTERM: its grace period is short.
pub fn of_image(name: &str, image: &str, more: &str) -> String {
    format!("app = \"{name}\"\n[build]\nimage = \"{image}\"\n{more}\n[services.web]\nstop_grace = \"1s\"\n")
}

/// What the timeline of the newest deployment says.
fn timeline(rung: &Rung, app: &str) -> String {
    let entries = rung.last_deployment(app).timeline;
    entries.iter().map(|entry| format!("{}\n", entry.message)).collect()
}

#[test]
fn an_image_is_pinned_when_it_is_deployed_and_a_tag_that_moved_is_told() {
    let stage = Stage::new();
    let mut registry = Registry::start(Access::Anybody);
    stage.web("shop:1", "the first");
    let image = registry.push(&stage.engine, "shop:1", "acme/shop:stable");
    let rung = stage.rung();
    let directory = example("image");
    let file = std::fs::read_to_string(directory.path().join("rung.toml")).expect("the example's app file");
    write(directory.path(), &file.replace("nginx:1.27", &image));
    rung.deploy(directory.path()).succeeds();
    rung.wait_until_settled("image", "web", 1);
    assert!(rung.page("image", "/").contains("the first"));
    let pages = rung.page("image", "/cgi-bin/tell");
    assert!(pages.contains("PORT=8080"), "the port that the image exposes is its PORT: {pages}");

    // The tag moves; what was released does not.
    stage.web("shop:2", "the second");
    registry.push(&stage.engine, "shop:2", "acme/shop:stable");
    rung.cli(&["restart", "--app", "image"]).succeeds();
    rung.wait_until_settled("image", "web", 1);
    assert!(rung.page("image", "/").contains("the first"), "a restart brought what the tag means now");

    rung.deploy(directory.path()).succeeds();
    assert!(rung.page("image", "/").contains("the second"));
    let told = timeline(&rung, "image");
    assert!(told.contains("has moved"), "nobody was told that the tag moved: {told}");

    // And again, without anything being new.
    rung.wait_until_settled("image", "web", 1);
    let before = rung.lives("image");
    let said = rung.deploy(directory.path()).succeeds();
    said.mentions("image v2 is live already: nothing has changed");
    assert_eq!(rung.lives("image"), before, "an instance was started for nothing");
    let releases: Vec<Value> = rung.cli(&["releases", "--app", "image", "--json"]).succeeds().json();
    assert_eq!(releases.len(), 2, "a release was made of what is there already: {releases:#?}");

    // What was run once is here: going back asks nobody.
    registry.down();
    rung.cli(&["rollback", "--app", "image"]).succeeds();
    assert!(rung.page("image", "/").contains("the first"), "the release before had another image");
}

#[test]
fn a_dockerfile_is_built_by_the_engine_and_its_image_outlives_the_engines_clean_up() {
    let stage = Stage::new();
    let rung = stage.rung();
    let directory = example("dockerfile");
    let file = std::fs::read_to_string(directory.path().join("rung.toml")).expect("the example's app file");
    write(directory.path(), &file.replace("busybox:stable", "base:1"));
    rung.deploy(directory.path()).succeeds();
    assert!(rung.page("dockerfile", "/").contains("built from a Dockerfile"));

    std::fs::write(directory.path().join("www/index.html"), "another page").expect("a page");
    rung.deploy(directory.path()).succeeds();
    assert!(rung.page("dockerfile", "/").contains("another page"));
    rung.wait_until_settled("dockerfile", "web", 1);
    // Somebody makes room on the machine: no container of the first image is left, and nobody else has it.
    stage.engine.docker(&["image", "prune", "-a", "-f"]);
    rung.cli(&["rollback", "--app", "dockerfile"]).succeeds();
    assert!(rung.page("dockerfile", "/").contains("built from a Dockerfile"), "the image was not kept");

    stage.engine.import("base:1", &[]);
    write(
        directory.path(),
        &file.replace("base:1", "no-such-base:1").replace("busybox:stable", "no-such-base:1"),
    );
    rung.deploy(directory.path()).ends_with(1).mentions("building Dockerfile failed");
    write(
        directory.path(),
        &file.replace("busybox:stable", "base:1").replace("test -s /www/index.html", "echo no; exit 3"),
    );
    rung.deploy(directory.path()).ends_with(1).mentions("test exited with code 3");
    assert!(rung.page("dockerfile", "/").contains("built from a Dockerfile"), "a failed build was felt");
}

/// The same over Podman, whose service may be killed: each container has a monitor of its own.
#[test]
fn podman_builds_runs_and_takes_back_and_its_service_may_be_killed() {
    let mut podman = Podman::start();
    podman.import("localhost/base:1", &["sh", "httpd", "wget", "test", "sleep", "echo"]);
    let environment = vec![("DOCKER_HOST".into(), podman.host())];
    let mut rung = Rung::start_with(Start { environment, ..Start::default() });

    let directory = example("dockerfile");
    let file = std::fs::read_to_string(directory.path().join("rung.toml")).expect("the example's app file");
    let own = file.replace("busybox:stable", "localhost/base:1") + "stop_grace = \"1s\"\n";
    write(directory.path(), &own);
    // Without systemd a check in a container would leave a process of Podman's for five minutes.
    let dockerfile =
        std::fs::read_to_string(directory.path().join("Dockerfile")).expect("the example's Dockerfile");
    let unchecked = dockerfile.lines().filter(|line| !line.starts_with("HEALTHCHECK"));
    let unchecked: String = unchecked.map(|line| format!("{line}\n")).collect();
    std::fs::write(directory.path().join("Dockerfile"), unchecked).expect("a Dockerfile");
    rung.deploy(directory.path()).succeeds();
    assert!(rung.page("dockerfile", "/").contains("built from a Dockerfile"));
    rung.cli(&["doctor"]).mentions("container engine (podman");
    std::fs::write(directory.path().join("www/index.html"), "another page").expect("a page");
    rung.deploy(directory.path()).succeeds();
    assert!(rung.page("dockerfile", "/").contains("another page"));
    rung.wait_until_settled("dockerfile", "web", 1);
    podman.podman(&["image", "prune", "--all", "--force"]);
    rung.cli(&["rollback", "--app", "dockerfile"]).succeeds();
    assert!(rung.page("dockerfile", "/").contains("built from a Dockerfile"), "the image was not kept");

    // An image that was made here, and that no registry has.
    podman.import("localhost/ticker:1", &["sh", "sleep", "echo"]);
    let ticker = app(&of_image("ticker", "localhost/ticker:1", "")
        .replace("stop_grace", "command = \"echo begun; sleep 1000\"\nport = false\nstop_grace"));
    rung.deploy(ticker.path()).succeeds();
    eventually("what it prints is in its log", || {
        let said = rung.cli(&["logs", "--app", "ticker"]).succeeds().out;
        if said.contains("begun") { Ok(()) } else { Err(said) }
    });

    // Neither the end of Podman's service nor that of Rung is the end of a container.
    rung.wait_until_settled("dockerfile", "web", 1);
    let before = (rung.lives("dockerfile"), rung.lives("ticker"));
    podman.kill_9();
    rung.kill_9();
    podman.up();
    rung.up(None, &[]);
    rung.wait_until_settled("dockerfile", "web", 1);
    rung.wait_until_settled("ticker", "web", 1);
    assert_eq!((rung.lives("dockerfile"), rung.lives("ticker")), before, "containers were started again");
    assert!(rung.page("dockerfile", "/").contains("built from a Dockerfile"));
}

#[test]
fn a_compose_file_is_imported_and_what_it_says_runs() {
    let stage = Stage::new();
    let rung = stage.rung();
    let directory = example("compose");
    let at = |name: &str| directory.path().join(name);
    rung.cli(&["import", at("compose.yaml").to_str().expect("UTF-8")]).succeeds();
    let dockerfile = std::fs::read_to_string(at("Dockerfile")).expect("the example's Dockerfile");
    std::fs::write(at("Dockerfile"), dockerfile.replace("busybox:stable", "base:1")).expect("a Dockerfile");
    rung.deploy(directory.path()).ends_with(1).mentions("SESSION_SECRET");
    rung.cli(&["secret", "generate", "SESSION_SECRET", "--app", "greeter"]).succeeds();
    rung.deploy(directory.path()).succeeds();
    rung.wait_until_settled("greeter", "web", 2);
    rung.wait_until_settled("greeter", "worker", 1);
    assert!(rung.page("greeter", "/cgi-bin/greet").starts_with("Hello, and welcome."));
    eventually("the worker's word is on the volume that both mount", || {
        let page = rung.page("greeter", "/cgi-bin/greet");
        if page.lines().count() == 2 { Ok(()) } else { Err(page) }
    });
}

#[test]
fn kill_9_of_the_platform_leaves_containers_running_and_loses_and_doubles_no_line() {
    let stage = Stage::new();
    stage.engine.import(
        "counter:1",
        &[r#"CMD ["sh","-c","i=0; while true; do i=$((i+1)); echo line $i; sleep 0.01; done"]"#],
    );
    let mut rung = stage.rung();
    let directory =
        app("app = \"counter\"\n[build]\nimage = \"counter:1\"\n[services.worker]\nport = false\n");
    rung.deploy(directory.path()).succeeds();
    let before = rung.lives("counter");
    let lines = |rung: &Rung| -> Vec<u64> {
        let said = rung.cli(&["logs", "--app", "counter", "-n", "100000"]).succeeds().out;
        let numbers = said.lines().filter_map(|line| line.rsplit_once("line ")?.1.trim().parse().ok());
        numbers.collect()
    };
    for _ in 0..3 {
        let known = lines(&rung).last().copied().unwrap_or(0);
        rung.kill_9();
        assert!(before.values().all(|life| life.goes_on()), "a container died with the platform: {before:?}");
        rung.up(None, &[]);
        eventually("new lines are in the log", || {
            let last = lines(&rung).last().copied().unwrap_or(0);
            if last > known + 50 { Ok(()) } else { Err(format!("{last} after {known}")) }
        });
    }
    assert_eq!(rung.lives("counter"), before, "the next start must adopt, not restart");
    let all = lines(&rung);
    let expected: Vec<u64> = (1..=all.len() as u64).collect();
    assert!(all == expected, "lines are missing or there twice: {} lines up to {:?}", all.len(), all.last());
    drop(rung);
    assert_eq!(stage.engine.containers(), Vec::<String>::new(), "a container was left behind");
}

#[test]
fn images_run_as_their_authors_expect() {
    let stage = Stage::new();
    let rung = stage.rung();

    // A user, and a volume that becomes the user's.
    stage.image("user:1", "hi", &[SERVE, EXPOSE, "USER app"]);
    let file = of_image("user", "user:1", "[volumes.data]\nsize = \"1MB\"")
        + "mounts = { data = \"/data\" }\n[deploy]\nrelease = \"echo migrated by $(id -u) > /data/done\"\n";
    let directory = app(&file);
    rung.deploy(directory.path()).succeeds();
    let told = rung.page("user", "/cgi-bin/tell");
    assert!(told.starts_with("1234\n"), "it does not run as the image's user: {told}");
    rung.cli(&["run", "--app", "user", "cat /data/done"]).succeeds().mentions("migrated by 1234");
    rung.cli(&["logs", "--app", "user"]).succeeds().mentions("user app").mentions("its own command `httpd");

    // An entrypoint of its own; a command of the app file replaces it, and that is said.
    stage.image(
        "entry:1",
        "hi",
        &[r#"ENTRYPOINT ["httpd","-f","-h","/www","-p"]"#, r#"CMD ["8080"]"#, EXPOSE],
    );
    let directory = app(&of_image("entry", "entry:1", ""));
    rung.deploy(directory.path()).succeeds();
    rung.page("entry", "/");
    write(
        directory.path(),
        &(of_image("entry", "entry:1", "") + "command = \"exec httpd -f -h /www -p $PORT\"\n"),
    );
    rung.deploy(directory.path()).succeeds();
    rung.page("entry", "/");
    rung.cli(&["logs", "--app", "entry"]).succeeds().mentions("replaces its entrypoint");

    // No port in the image: it gets a number, as a process does; a second service says its own.
    stage.image("bare:1", "bare", &[r#"CMD ["sh","-c","exec httpd -f -h /www -p $PORT"]"#]);
    rung.deploy(app(&of_image("bare", "bare:1", "")).path()).succeeds();
    assert!(rung.page("bare", "/").contains("bare"));
    stage.image("own:1", "own", &[SERVE]);
    rung.deploy(app(&(of_image("own", "own:1", "") + "port = 8080\n")).path()).succeeds();
    assert!(rung.page("own", "/").contains("own"));
}

/// Waits until an instance of the app is as it should be.
fn wait_for_instance(rung: &Rung, app: &str, what: &str, is_so: impl Fn(&InstanceStatus) -> bool) {
    eventually(what, || {
        let instances = rung.instances(app);
        if instances.iter().any(&is_so) { Ok(()) } else { Err(format!("{instances:?}")) }
    });
}

#[test]
fn an_image_s_own_healthcheck_decides_and_no_deploy_waits_for_its_interval() {
    let stage = Stage::new();
    let rung = stage.rung();
    // It never passes.
    let check =
        "HEALTHCHECK --interval=200ms --timeout=2s --retries=1 CMD echo not yet && test -e /tmp/ready";
    stage.image("never:1", "checked", &[SERVE, EXPOSE, check]);
    let hasty = "health = { grace = \"2s\", interval = \"200ms\" }\n";
    rung.deploy(app(&(of_image("never", "never:1", "") + hasty)).path())
        .ends_with(1)
        .mentions("HEALTHCHECK")
        .mentions("not yet");

    // As most images have it: the engine itself looks for the first time after half a minute.
    stage.image("usual:1", "well", &[SERVE, EXPOSE, "HEALTHCHECK CMD test ! -e /tmp/ill"]);
    rung.deploy(app(&of_image("usual", "usual:1", "")).path()).succeeds();
    rung.wait_until_settled("usual", "web", 1);

    // One that takes its time, and says so: until then it is neither counted as ill nor started again.
    let slow = "HEALTHCHECK --start-period=5m CMD echo x >> /tmp/n; test $(grep -c x /tmp/n) -ge 10";
    stage.image("slow:1", "at last", &[SERVE, EXPOSE, slow]);
    let strict = "health = { grace = \"1s\", interval = \"200ms\", restart_after = 2 }\n";
    rung.deploy(app(&(of_image("slow", "slow:1", "") + strict)).path()).succeeds();
    assert_eq!(rung.wait_until_settled("slow", "web", 1)[0].restarts, 0, "it was not given its time");

    // Ill later on: un-routed, started again, and well.
    let check = "HEALTHCHECK --interval=200ms --retries=1 CMD test ! -e /tmp/ill || { echo so ill; exit 1; }";
    stage.image("later:1", "well", &[SERVE, EXPOSE, check]);
    rung.deploy(app(&(of_image("later", "later:1", "") + hasty)).path()).succeeds();
    rung.wait_until_settled("later", "web", 1);
    let container = stage.engine.docker(&["ps", "-q", "--filter", "ancestor=later:1"]);
    stage.engine.docker(&["exec", &container, "touch", "/tmp/ill"]);
    wait_for_instance(&rung, "later", "it is ill, gets no requests, and says why", |instance| {
        let reason = instance.reason.as_deref().unwrap_or_default();
        !instance.routed && reason.contains("HEALTHCHECK fails: so ill")
    });
    wait_for_instance(&rung, "later", "it was started again, and is well", |instance| {
        instance.restarts > 0 && instance.routed && instance.state == InstanceState::Healthy
    });
    assert!(rung.page("later", "/").contains("well"));
}

#[test]
fn images_that_can_not_run_are_refused_with_the_way_out() {
    let stage = Stage::new();
    let mut registry = Registry::start(Access::Anybody);
    let rung = stage.rung();

    stage.image("silent:1", "no command", &[EXPOSE]);
    let directory = app(&of_image("silent", "silent:1", ""));
    rung.deploy(directory.path()).ends_with(1).mentions("no command of its own").mentions("[services.web]");

    // It listens where nobody else can hear it.
    stage.image("inward:1", "x", &[r#"CMD ["httpd","-f","-p","127.0.0.1:8080","-h","/www"]"#, EXPOSE]);
    let directory =
        app(&(of_image("inward", "inward:1", "[deploy]\ndeadline = \"20s\"")
            + "health = { grace = \"1s\" }\n"));
    rung.deploy(directory.path()).ends_with(1).mentions("make it listen on 0.0.0.0:8080");

    let missing = registry.image("acme/nothing:7");
    rung.deploy(app(&of_image("missing", &missing, "")).path())
        .ends_with(1)
        .mentions("look at its tag or digest");
    let wrong = registry.image(&format!("acme/nothing@sha256:{}", "0".repeat(64)));
    rung.deploy(app(&of_image("wrong", &wrong, "")).path())
        .ends_with(1)
        .mentions("look at its tag or digest");

    // A registry that goes away leaves what serves alone.
    stage.web("shop:1", "the first");
    let image = registry.push(&stage.engine, "shop:1", "acme/shop:1");
    let directory = app(&of_image("shop", &image, ""));
    rung.deploy(directory.path()).succeeds();
    registry.down();
    rung.deploy(directory.path()).ends_with(1).mentions("can't be reached").mentions("deploy again");
    assert!(rung.page("shop", "/").contains("the first"), "a registry that is down was felt");
    rung.cli(&["restart", "--app", "shop"]).succeeds();
    assert!(rung.page("shop", "/").contains("the first"), "a restart needed the registry");
    registry.up();
    rung.deploy(directory.path()).succeeds();
}

#[test]
fn what_a_container_gets_is_in_no_argument_list_and_its_limits_hold() {
    let stage = Stage::new();
    stage.image("shop:1", "hi", &[SERVE, EXPOSE]);
    let rung = stage.rung();
    let hungry = "[jobs.hungry]\ncommand = \"x=$(cat /dev/zero | tr '\\\\0' 'x' | head -c 200000000); echo ${#x}\"\nmemory = \"32MB\"\n";
    let file = "[secrets]\nrequired = [\"TOKEN\"]\n[env]\nLEVEL = \"high\"";
    let directory = app(&(of_image("shop", "shop:1", file) + hungry));
    rung.set_secret("shop", "TOKEN", "quiet as a mouse");
    rung.deploy(directory.path()).succeeds();
    let told = rung.page("shop", "/cgi-bin/tell");
    assert!(told.contains("TOKEN=quiet as a mouse") && told.contains("LEVEL=high"), "{told}");
    for entry in std::fs::read_dir("/proc").expect("there is a /proc").flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(
            !String::from_utf8_lossy(&line).contains("quiet as a mouse"),
            "a secret is in an argument list: {}",
            String::from_utf8_lossy(&line)
        );
    }
    rung.cli(&["job", "run", "hungry", "--app", "shop"]).ends_with(137).mentions("memory limit of 32 MB");
    let ids = stage.engine.containers();
    let name = ids.first().expect("the instance has a container");
    let ports = stage.engine.docker(&["port", name]);
    assert!(
        ports.contains("127.0.0.1:") && !ports.contains("0.0.0.0"),
        "it is published to everybody: {ports}"
    );

    // A person at a container, with input and an exit code.
    rung.cli(&["run", "--app", "shop", "echo to both; echo aside >&2; exit 7"])
        .ends_with(7)
        .mentions("to both");

    // What nobody knows is removed.
    stage.engine.docker(&["rm", "-f", name]);
    rung.wait_until_settled("shop", "web", 1);
    rung.cli(&["destroy", "--app", "shop", "-y"]).succeeds();
    eventually("no container is left", || {
        let left = stage.engine.containers();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}
