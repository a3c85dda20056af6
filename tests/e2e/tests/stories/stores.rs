//! A store that is damaged, or that a newer Rung wrote: refused with the way out, and never overwritten.

use std::path::Path;
use std::process::Command;

use rung_e2e::{Rung, TestApp};

/// A platform that has run, and is stopped; its instances go on.
fn stopped(name: &str) -> Rung {
    let mut rung = Rung::start();
    let app = TestApp::new(name, 1);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled(name, "web", 1);
    assert!(rung.interrupt().success());
    rung
}

/// Starts it in vain; answers with what it said. The store must be as it was.
fn refused(rung: &Rung) -> String {
    let store = rung.data().join("store.db");
    let before = std::fs::read(&store).expect("the store is there");
    let said = rung.up_in_vain(&[]).ends_with(1);
    let said = format!("{}{}", said.out, said.err);
    assert!(said.contains(store.to_str().expect("UTF-8")), "it does not name the store: {said}");
    assert_eq!(std::fs::read(&store).expect("the store is there"), before, "the store was written to");
    said
}

fn sqlite(store: &Path, statement: &str) {
    let script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit(); c.close()";
    let status = Command::new("python3").args(["-c", script]).arg(store).arg(statement).status();
    assert!(status.expect("starting python3").success(), "{statement}");
}

#[test]
fn a_damaged_store_is_refused_with_the_way_out() {
    let mut rung = stopped("scratched");
    let store = rung.data().join("store.db");
    let sound = std::fs::read(&store).expect("the store is there");
    let mut damaged = sound.clone();
    // As a disk does that loses whole blocks; the first page is the schema's.
    damaged.chunks_mut(4096).skip(1).for_each(|page| page.fill(0xa5));
    std::fs::write(&store, damaged).expect("damaging the store");
    let said = refused(&rung);
    assert!(said.contains("damaged") && said.contains("backup"), "no way out is named: {said}");

    std::fs::write(&store, sound).expect("mending the store");
    rung.up(None, &[]);
    rung.wait_until_settled("scratched", "web", 1);
    assert!(rung.page("scratched", "/").contains("version 1 "), "what was acknowledged is there");
}

#[test]
fn an_agent_that_cannot_write_its_ledger_says_which_file_and_the_way_out() {
    let mut rung = stopped("unwritten");
    // What it writes first, before it takes the ledger's place.
    let beside = rung.data().join("node/ledger.tmp");
    std::fs::create_dir(&beside).expect("something in its way");
    let said = rung.up_in_vain(&[]).ends_with(1).mentions("ledger.json").mentions("make room on that disk");
    assert!(!said.everything().contains("panicked"), "{}", said.everything());
    std::fs::remove_dir(&beside).expect("it was made just now");
    rung.up(None, &[]);
    rung.wait_until_settled("unwritten", "web", 1);
    assert!(rung.page("unwritten", "/").contains("version 1 "));
}

#[test]
fn a_store_that_is_no_store_or_cut_off_is_refused() {
    let rung = stopped("foreign");
    let store = rung.data().join("store.db");
    let sound = std::fs::read(&store).expect("the store is there");
    std::fs::write(&store, &sound[..sound.len() / 3]).expect("cutting the store off");
    refused(&rung);
    std::fs::write(&store, b"my diary").expect("another file in its place");
    refused(&rung);
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_left_alone() {
    let rung = stopped("futuristic");
    sqlite(&rung.data().join("store.db"), "PRAGMA user_version = 7");
    let said = refused(&rung);
    assert!(said.contains('7') && said.contains("newer"), "it does not say why: {said}");
}
