//! The same platform for somebody who is not root.

use std::os::unix::fs::PermissionsExt;

use rung_e2e::process::{self, Life};
use rung_e2e::{Load, Rung, Service, Start, TestApp, eventually, rung_binary};

/// A user that owns nothing on the machine (`nobody`).
const USER: u32 = 65534;

/// A platform of `nobody`, and the place of its binary, which must be readable for it.
fn platform_of_nobody() -> (Rung, tempfile::TempDir) {
    let place = tempfile::Builder::new().prefix("rung-e2e-bin-").tempdir().expect("a temporary directory");
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).expect("its mode");
    let binary = place.path().join("rung");
    std::fs::copy(rung_binary(), &binary).expect("a copy of the binary");
    let rung = Rung::start_with(Start { binary: Some(binary), user: Some(USER), ..Start::default() });
    (rung, place)
}

#[test]
fn without_root_an_app_runs_is_replaced_and_ends() {
    let (mut rung, _place) = platform_of_nobody();
    let mut app = TestApp::new("modest", 2);
    app.sections.push("[volumes.state]".into());
    app.web().lines.push("mounts = { state = \"/state\" }".into());
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("modest", "web", 2);
    assert_eq!(rung.page("modest", "/count"), "1\n", "the volume can be written to");

    let load = Load::start(rung.http(), "modest.localhost", "/");
    app.version = "2".into();
    rung.deploy(app.directory()).succeeds();
    load.wait_for(50);
    load.stop().assert_none_lost("a deploy without root");
    rung.cli(&["doctor"]).mentions("user");

    assert!(rung.interrupt().success());
    rung.wait_until_nothing_is_left();
}

#[test]
fn without_root_no_child_outlives_its_instance() {
    let (rung, _place) = platform_of_nobody();
    let app = TestApp::new("hare", 1);
    rung.deploy(app.directory()).succeeds();
    let main = rung.wait_until_settled("hare", "web", 1)[0].pid.expect("a healthy instance has a process");
    for _ in 0..3 {
        rung.page("hare", "/fork");
    }
    let children: Vec<Life> = eventually("three children run", || {
        let children = process::children(main);
        if children.len() == 3 { Ok(children) } else { Err(format!("{children:?}")) }
    });
    process::kill_9(main);
    children.into_iter().for_each(process::wait_until_gone);
    rung.wait_until_settled("hare", "web", 1);
}

#[test]
fn without_root_services_call_each_other_and_it_is_said_that_nobody_is_refused() {
    let (rung, _place) = platform_of_nobody();
    let mut app = TestApp::new("owl", 1);
    let api = Service { name: "api".into(), ..app.web().clone() };
    app.services.push(api);
    rung.deploy(app.directory()).succeeds();
    let answered_by = rung.page("owl", "/call?url=RUNG_SERVICE_API_URL&path=/env?name=RUNG_SERVICE");
    assert_eq!(answered_by, "api", "another service answered");
    let by_name = "/call?at=http://api.owl.internal:PORT&path=/env?name=RUNG_SERVICE";
    let by_name = by_name.replace("PORT", &rung.page("owl", "/env?name=RUNG_SERVICES_PORT"));
    assert_eq!(rung.page("owl", &by_name), "api", "its name is another service's");
    rung.cli(&["doctor"])
        .mentions("`allow` in app files is not enforced")
        .mentions("reaches instances by their ports");
}
