//! The platform dies, and its applications do not.

use rung_e2e::http::Connection;
use rung_e2e::{Load, Rung, Start, TestApp, eventually, process, rung_binary};

fn deployed(name: &str) -> (Rung, TestApp) {
    let rung = Rung::start();
    let app = TestApp::new(name, 2);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled(name, "web", 2);
    (rung, app)
}

#[test]
fn kill_9_of_the_platform_leaves_every_instance_and_the_next_start_adopts_them() {
    let (mut rung, mut app) = deployed("phoenix");
    let lives = rung.lives("phoenix");
    let endpoint = rung.instances("phoenix")[0].endpoint.expect("a service with a port has an endpoint");
    rung.kill_9();
    assert!(lives.values().all(|life| life.goes_on()), "an instance died with the platform: {lives:?}");
    let mut direct = Connection::open(endpoint).expect("the instance takes connections");
    let said = direct
        .get("phoenix.localhost", "/print?text=while%20nobody%20watched")
        .expect("the instance answers");
    assert_eq!(said.status, 200);

    rung.up(None, &[]);
    let adopted = rung.wait_until_settled("phoenix", "web", 2);
    assert_eq!(rung.lives("phoenix"), lives, "the next start must adopt, not restart");
    assert!(adopted.iter().all(|instance| instance.restarts == 0), "{adopted:?}");
    rung.page("phoenix", "/");
    rung.cli(&["logs", "--app", "phoenix"]).succeeds().mentions("while nobody watched");

    app.version = "2".into();
    rung.deploy(app.directory()).succeeds();
    assert!(rung.page("phoenix", "/").contains("version 2 "), "adopted instances can be replaced");
    lives.into_values().for_each(process::wait_until_gone);
}

#[test]
fn a_release_that_ends_with_the_platform_in_its_first_seconds_is_not_taken_back() {
    let (mut rung, mut app) = deployed("napper");
    app.version = "2".into();
    rung.deploy(app.directory()).succeeds();
    rung.interrupt();
    rung.up(None, &[]);
    let again = rung.wait_until_settled("napper", "web", 2);
    assert!(again.iter().all(|instance| instance.restarts == 1), "they ended with the platform: {again:?}");
    let last = eventually("its first seconds are over", || {
        let last = rung.last_deployment("napper");
        if last.aftercare.is_none() { Ok(last) } else { Err(format!("{:?}", last.aftercare)) }
    });
    assert_ne!(last.by, "rung", "rung has taken it back: {last:#?}");
    assert!(rung.page("napper", "/").contains("version 2 "), "what was deployed last does not serve");
}

#[test]
fn kill_9_of_the_ingress_refuses_no_connection() {
    let (rung, _app) = deployed("doorman");
    let load = Load::start(rung.http(), "doorman.localhost", "/");
    load.wait_for(100);
    for _ in 0..5 {
        let ingress = rung.ingress();
        process::kill_9(ingress.pid);
        process::wait_until_gone(ingress);
        rung.page("doorman", "/");
        load.wait_for(100);
    }
    let tally = load.stop();
    // Connections that the dead process held are reset; nobody who connects is refused or left waiting.
    use rung_e2e::Outcome;
    assert_eq!(tally.count(Outcome::Refused), 0, "{tally:?}");
    assert_eq!(tally.count(Outcome::TimedOut), 0, "{tally:?}");
    let allowed = tally.count(Outcome::Reset) + tally.count(Outcome::Closed) + tally.count(Outcome::Broken);
    assert_eq!(tally.lost(), allowed, "{tally:?}");
    assert!(allowed <= 5 * 4, "each kill may cost each of four clients its one connection: {tally:?}");
}

#[test]
fn keep_leaves_the_instances_to_the_next_start() {
    let mut rung = Rung::start_with(Start { options: vec!["--keep".into()], ..Start::default() });
    let app = TestApp::new("keeper", 2);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("keeper", "web", 2);
    let lives = rung.lives("keeper");
    assert!(rung.interrupt().success());
    assert!(lives.values().all(|life| life.goes_on()), "--keep leaves the instances");
    rung.up(None, &[]);
    rung.wait_until_settled("keeper", "web", 2);
    assert_eq!(rung.lives("keeper"), lives, "they were adopted");
    assert!(rung.interrupt().success());
    assert!(lives.values().all(|life| !life.goes_on()), "without --keep they end");
    rung.wait_until_nothing_is_left();
}

#[test]
fn a_second_platform_on_the_same_data_is_refused_with_a_word() {
    let (rung, _app) = deployed("single");
    let output = rung.up_command(None, &[]).output().expect("starting a second rung up");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}");
    let names_it = said.contains(rung.data().to_str().expect("UTF-8"));
    assert!(
        names_it && said.contains(&rung.pid().to_string()),
        "it names the directory and who holds it: {said}"
    );
    rung.page("single", "/");
}

#[test]
fn an_ingress_that_hangs_is_not_waited_for_in_silence() {
    let (mut rung, _app) = deployed("patient");
    let ingress = rung.ingress();
    process::freeze(ingress.pid);
    let asked = std::time::Instant::now();
    assert!(rung.interrupt().success(), "{}", rung.output());
    assert!(rung.output().contains("waiting for requests in flight"), "{}", rung.output());
    assert!(asked.elapsed() < std::time::Duration::from_secs(25), "it took {:?}", asked.elapsed());
    process::wait_until_gone(ingress);
}

#[test]
fn a_new_binary_takes_over_under_load_and_an_older_one_goes_back() {
    let place = tempfile::Builder::new().prefix("rung-e2e-bin-").tempdir().expect("a temporary directory");
    let older = place.path().join("rung");
    let newer = place.path().join("rung-newer");
    std::fs::copy(rung_binary(), &older).expect("a copy of the binary");
    std::fs::copy(rung_binary(), &newer).expect("a copy of the binary");
    let mut rung = Rung::start_with(Start { binary: Some(older.clone()), ..Start::default() });
    let app = TestApp::new("lasting", 2);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("lasting", "web", 2);
    let lives = rung.lives("lasting");
    let load = Load::start(rung.http(), "lasting.localhost", "/");
    load.wait_for(100);

    rung.cli(&["upgrade", newer.to_str().expect("UTF-8"), "-y"]).succeeds();
    eventually("the upgraded platform serves its API", || rung.api_get("/v1/health").map(|_| ()));
    load.wait_for(100);
    rung.cli(&["upgrade", older.to_str().expect("UTF-8"), "-y"]).succeeds();
    eventually("the older platform serves its API", || rung.api_get("/v1/health").map(|_| ()));
    load.wait_for(100);
    assert!(rung.ended().is_none(), "the platform goes on in the same process");
    rung.wait_until_settled("lasting", "web", 2);
    assert_eq!(rung.lives("lasting"), lives, "no instance was restarted");
    load.stop().assert_none_lost("an upgrade and the way back");
    let backups = std::fs::read_dir(rung.data().join("backups")).expect("a directory of backups").count();
    assert_eq!(backups, 2, "each upgrade backed the state up first");
}

#[test]
fn an_older_binary_that_knows_no_tls_takes_over_all_the_same() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = tempfile::Builder::new().prefix("rung-e2e-bin-").tempdir().expect("a temporary directory");
    let older = place.path().join("rung-older");
    let program = rung_binary().display();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--https*) echo \"error: unexpected argument '--https'\" >&2; exit 2;; esac\n\
         case \"$*\" in *--help*) {program} \"$@\" | grep -v https; exit;; esac\nexec {program} \"$@\"\n"
    );
    std::fs::write(&older, script).expect("a script in an older binary's place");
    std::fs::set_permissions(&older, std::fs::Permissions::from_mode(0o755)).expect("it can be executed");
    let options = vec!["--https".to_owned(), "127.0.0.1:0".to_owned()];
    let rung = Rung::start_with(Start { options, ..Start::default() });
    let app = TestApp::new("elder", 1);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("elder", "web", 1);
    let lives = rung.lives("elder");

    rung.cli(&["upgrade", older.to_str().expect("UTF-8"), "-y"]).succeeds().mentions("took over");
    rung.wait_until_said("serves no TLS");
    rung.wait_until_settled("elder", "web", 1);
    assert_eq!(rung.lives("elder"), lives, "no instance was restarted");
    assert!(rung.page("elder", "/").contains("version 1 "));
}

#[test]
fn ctrl_c_during_a_deploy_ends_too_and_the_next_start_finishes_what_was_begun() {
    let (mut rung, mut app) = deployed("interrupted");
    app.version = "2".into();
    app.set("BE_SLOW_TO_START", "2000");
    let mut deploy = rung.begin_deploy(app.directory());
    eventually("the deploy has begun", || {
        let n = rung.deployments("interrupted").len();
        if n == 2 { Ok(()) } else { Err(format!("{n} deployments")) }
    });
    rung.interrupt();
    assert_ne!(deploy.wait().expect("waiting for rung deploy").code(), Some(0), "it has lost its server");
    rung.up(None, &[]);
    eventually("the deployment has ended", || {
        let last = rung.last_deployment("interrupted");
        if last.has_ended() { Ok(()) } else { Err(format!("{last:?}")) }
    });
    rung.wait_until_settled("interrupted", "web", 2);
    rung.page("interrupted", "/");
}

#[test]
fn the_unit_of_the_machine_leaves_instances_alone_when_it_stops_the_platform() {
    let rung = Rung::start();
    let said = rung.cli(&["service", "install", "--print"]).succeeds();
    said.mentions("KillMode=process").mentions("Delegate=").mentions("[Install]");
}
