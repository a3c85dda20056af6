//! App files that can't be meant: all errors at once, each with its place and the way out.

use rung_e2e::{Rung, TestApp};

fn deploy_file(rung: &Rung, bytes: &[u8]) -> rung_e2e::Said {
    let directory =
        tempfile::Builder::new().prefix("rung-e2e-app-").tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("rung.toml"), bytes).expect("an app file");
    rung.deploy(directory.path())
}

#[test]
fn every_error_of_an_app_file_is_told_at_once_with_its_place() {
    let rung = Rung::start();
    let text = "app = \"Shop!\"\n\n[services.web]\ncomand = \"x\"\ninstances = 99999999999\n";
    let said = deploy_file(&rung, text.as_bytes());
    assert!(matches!(said.code, Some(1 | 2)), "{}", said.everything());
    said.mentions("rung.toml:1:").mentions("rung.toml:4:").mentions("command").mentions("rung.toml:5:");
}

#[test]
fn what_is_not_toml_or_not_text_is_told_so() {
    let rung = Rung::start();
    for bytes in [b"app = \xff\xfe".as_slice(), b"app == 3", b""] {
        let said = deploy_file(&rung, bytes);
        assert!(matches!(said.code, Some(1 | 2)), "{}", said.everything());
        said.mentions("rung.toml");
    }
    rung.api_get("/v1/health").expect("the server serves on");
}

#[test]
fn a_directory_without_an_app_file_says_what_to_write() {
    let rung = Rung::start();
    let empty = tempfile::tempdir().expect("a temporary directory");
    let said = rung.deploy(empty.path());
    assert!(matches!(said.code, Some(1 | 2)), "{}", said.everything());
    said.mentions("rung.toml");
}

#[test]
fn a_procfile_alone_is_enough() {
    let rung = Rung::start();
    let app = TestApp::new("proc", 1);
    let directory = tempfile::Builder::new()
        .prefix("procfile")
        .rand_bytes(0)
        .tempdir_in(rung.data().parent().expect("a parent"));
    let directory = directory.expect("a temporary directory");
    for name in ["app.py", "version"] {
        std::fs::copy(app.directory().join(name), directory.path().join(name)).expect("a file of the app");
    }
    std::fs::write(directory.path().join("Procfile"), "web: exec python3 -B app.py\n").expect("a Procfile");
    rung.deploy(directory.path()).succeeds();
    rung.wait_until_settled("procfile", "web", 1);
    assert!(rung.page("procfile", "/").contains("version 1 "));
}
