//! Artifacts in an object store (SeaweedFS speaks S3): they live there and not on the servers, and when it is away, refuses,
//! or holds something else, that is said, deploys end, and what runs goes on.

use std::fs;
use std::path::Path;

use rung_e2e::{Bucket, Hosts, Rung, Start, TestApp, eventually};

fn start(bucket: &Bucket) -> Rung {
    let options = vec!["--artifacts".to_owned(), bucket.place()];
    Rung::start_with(Start { options, environment: bucket.environment(), ..Start::default() })
}

/// What this machine keeps of artifacts, as a new machine's disk would be.
fn forget_trees(data: &Path) {
    let _ = fs::remove_dir_all(data.join("artifacts/trees"));
    for tree in fs::read_dir(data.join("node/trees")).expect("the agent keeps trees").flatten() {
        if tree.path().is_dir() {
            fs::remove_dir_all(tree.path()).expect("nothing runs in it");
        }
    }
}

#[test]
fn artifacts_live_in_a_bucket_and_a_machine_that_lost_its_own_gets_them_from_there() {
    let bucket = Bucket::start();
    let mut rung = start(&bucket);
    let app = TestApp::new("shop", 1);
    rung.deploy(app.directory()).succeeds();
    assert_eq!(bucket.archives().len(), 1, "the artifact is in the bucket when deploy returns");
    let shown = bucket.shown();
    rung.cli(&["cluster"]).succeeds().mentions(&format!("artifacts are in {shown}"));
    rung.cli(&["doctor"]).mentions(&format!("{shown} can be read and written; 1 there"));
    let told = rung.get("shop", "/env?name=AWS_SECRET_ACCESS_KEY").expect("the app answers");
    assert_eq!(told.status, 404, "an instance got the credentials");

    rung.interrupt();
    forget_trees(rung.data());
    // Where artifacts are was written down.
    rung.up(None, &[]);
    rung.wait_until_settled("shop", "web", 1);
    assert!(rung.page("shop", "/").contains("version 1 "), "it runs from what the bucket gave");
    assert!(!rung.output().contains(bucket.secret()), "the secret is in what rung says:\n{}", rung.output());
}

#[test]
fn a_bucket_that_is_away_or_refuses_ends_deploys_with_a_word_and_nothing_that_runs() {
    let mut bucket = Bucket::start();
    let mut rung = start(&bucket);
    let mut app = TestApp::new("shop", 1);
    rung.deploy(app.directory()).succeeds();
    let shown = bucket.shown();

    bucket.kill_9();
    app.version = "2".to_owned();
    rung.deploy(app.directory()).ends_with(1).mentions(&shown).mentions("connecting to");
    rung.cli(&["doctor"]).mentions(&shown).mentions("What runs goes on");
    rung.cli(&["cluster"]).mentions(&format!("artifacts can't be read or written in {shown}"));
    assert!(rung.page("shop", "/").contains("version 1 "), "what runs goes on");
    rung.cli(&["restart", "--app", "shop"]).succeeds();
    bucket.restart();
    rung.deploy(app.directory()).succeeds();
    assert_eq!(bucket.archives().len(), 2);

    rung.interrupt();
    bucket.write_credentials(rung.data(), Some("wrong"));
    rung.up(None, &[]);
    rung.wait_until_settled("shop", "web", 1);
    app.version = "3".to_owned();
    let refused = rung.deploy(app.directory()).ends_with(1).mentions("it refuses this server");
    let refused = refused.mentions("artifacts.credentials");
    rung.cli(&["doctor"]).mentions("SignatureDoesNotMatch");
    assert!(!refused.everything().contains(bucket.secret()), "{}", refused.everything());
    assert!(rung.page("shop", "/").contains("version 2 "), "what runs goes on");
    bucket.write_credentials(rung.data(), None);
    rung.deploy(app.directory()).succeeds();
    assert!(rung.page("shop", "/").contains("version 3 "), "other keys need no restart");
}

#[test]
fn a_bucket_is_reached_by_tls_when_an_authority_of_this_machine_vouches_for_it() {
    let bucket = Bucket::start_with_tls();
    let place = ["--artifacts".to_owned(), bucket.place_by_tls()];
    let mut environment = bucket.environment();
    let own = tempfile::tempdir().expect("a directory");
    let trusted = own.path().join("authorities.pem");
    environment.push(("SSL_CERT_FILE".to_owned(), trusted.display().to_string()));
    let mut rung = Rung::start_with(Start { options: place.to_vec(), environment, ..Start::default() });
    let mut app = TestApp::new("shop", 1);
    // The authorities of the world do not know it.
    rung.deploy(app.directory()).ends_with(1).mentions(&bucket.shown()).mentions("TLS with 127.0.0.1");
    rung.cli(&["doctor"]).mentions("UnknownIssuer");
    assert_eq!(bucket.archives().len(), 0, "something was sent to a store that nobody vouches for");

    fs::copy(bucket.authority(), &trusted).expect("the authority is put beside the others");
    rung.deploy(app.directory()).succeeds();
    assert_eq!(bucket.archives().len(), 1);
    app.version = "2".to_owned();
    rung.deploy(app.directory()).succeeds();
    rung.interrupt();
    forget_trees(rung.data());
    rung.up(None, &[]);
    rung.wait_until_settled("shop", "web", 1);
    assert!(rung.page("shop", "/").contains("version 2 "), "what it runs came back by TLS");
}

#[test]
fn a_store_that_accepts_and_says_nothing_ends_deploys_in_time_and_nothing_that_runs() {
    let bucket = Bucket::start();
    let rung = start(&bucket);
    let mut app = TestApp::new("shop", 1);
    rung.deploy(app.directory()).succeeds();
    bucket.freeze();
    let asked = rung.cli(&["doctor"]).mentions("it has not answered within 5 s");
    assert!(asked.took.as_secs() < 15, "doctor waited too long; {}", asked.everything());
    app.version = "2".to_owned();
    let refused = rung.deploy(app.directory()).ends_with(1).mentions(&bucket.shown());
    let refused = refused.mentions("nothing was answered within 15 s");
    // Asked twice, for 15 s each.
    assert!(refused.took.as_secs() < 60, "a deploy hangs with its store; {}", refused.everything());
    rung.cli(&["restart", "--app", "shop"]).succeeds();
    assert!(rung.page("shop", "/").contains("version 1 "), "what runs goes on");
    bucket.thaw();
    rung.deploy(app.directory()).succeeds();
    assert!(rung.page("shop", "/").contains("version 2 "));
}

#[test]
fn what_is_missing_or_was_tampered_with_is_not_started_and_a_deploy_mends_it() {
    let bucket = Bucket::start();
    let mut rung = start(&bucket);
    let mut app = TestApp::new("shop", 1);
    rung.deploy(app.directory()).succeeds();
    let first = bucket.archives().remove(0);
    app.version = "2".to_owned();
    rung.deploy(app.directory()).succeeds();
    let forget_the_first = |rung: &Rung| {
        let _ = fs::remove_file(rung.data().join("artifacts/trees").join(&first));
        let _ = fs::remove_dir_all(rung.data().join("node/trees").join(first.trim_end_matches(".tar")));
    };

    let other = tempfile::NamedTempFile::new().expect("a file");
    fs::write(other.path(), "not what it was").expect("room on the disk");
    bucket.tamper(&first, other.path());
    rung.interrupt();
    forget_the_first(&rung);
    rung.up(None, &[]);
    rung.wait_until_settled("shop", "web", 1);
    // Refused, where it was seen before; otherwise taken back.
    rung.cli(&["rollback", "v1", "--app", "shop"]).mentions("damaged");
    assert!(rung.page("shop", "/").contains("version 2 "), "what ran before is not touched");
    app.version = "1".to_owned();
    rung.deploy(app.directory()).succeeds();
    assert!(rung.page("shop", "/").contains("version 1 "), "it was stored anew");

    app.version = "3".to_owned();
    rung.deploy(app.directory()).succeeds();
    rung.interrupt();
    bucket.remove(&first);
    forget_the_first(&rung);
    rung.up(None, &[]);
    rung.wait_until_settled("shop", "web", 1);
    rung.cli(&["doctor"]).mentions(&format!("neither in {} nor on this disk: shop v", bucket.shown()));
    rung.cli(&["rollback", "v1", "--app", "shop"]).ends_with(1).mentions("is not kept any more");
    app.version = "1".to_owned();
    rung.deploy(app.directory()).succeeds();
    assert!(bucket.archives().contains(&first), "a deploy brings it back");
}

#[test]
fn artifacts_move_from_the_disk_into_a_bucket_and_back() {
    let mut bucket = Bucket::start();
    let mut rung = Rung::start();
    let mut app = TestApp::new("shop", 1);
    rung.deploy(app.directory()).succeeds();
    rung.interrupt();
    rung.up_in_vain(&["--artifacts".to_owned(), bucket.place()]).mentions("AWS_ACCESS_KEY_ID");
    bucket.write_credentials(rung.data(), None);
    rung.up(None, &["--artifacts".to_owned(), bucket.place()]);
    eventually("what was on the disk is in the bucket", || match bucket.archives().len() {
        1 => Ok(()),
        count => Err(format!("{count} archives\n{}", rung.output())),
    });
    eventually("it is told", || {
        let events = rung.cli(&["events"]).everything();
        let is_told = events.contains("an artifact was copied from this disk to s3://team/rung");
        if is_told { Ok(()) } else { Err(events) }
    });
    rung.interrupt();
    rung.up_in_vain(&["--artifacts".to_owned(), "s3://another".to_owned()]).mentions("--artifacts disk");

    fs::remove_dir_all(rung.data().join("artifacts/trees")).expect("it is a cache");
    rung.up(None, &["--artifacts".to_owned(), "disk".to_owned()]);
    eventually("it is told that the bucket is not needed any more", || {
        let events = rung.cli(&["events"]).everything();
        if events.contains("nothing needs s3://team/rung any more") { Ok(()) } else { Err(events) }
    });
    bucket.kill_9();
    rung.interrupt();
    fs::remove_file(rung.data().join("artifacts.credentials")).expect("it was written");
    rung.up(None, &[]);
    rung.wait_until_settled("shop", "web", 1);
    app.version = "2".to_owned();
    rung.deploy(app.directory()).succeeds();
    assert_eq!(fs::read_dir(rung.data().join("artifacts/trees")).expect("trees").count(), 2);
}

#[test]
fn servers_share_a_bucket_and_nodes_need_no_credentials() {
    let mut hosts = Hosts::new(3);
    let bucket = Bucket::start_on(&hosts, 3);
    let place = bucket.place();
    for server in 1..=2 {
        bucket.write_credentials(&hosts.host(server).data(), None);
    }
    hosts.host_mut(1).serve_with(&["--artifacts", &place]);
    hosts.host(1).cli(&["cluster", "init"]).succeeds();
    hosts.join_with(2, "server", &["--artifacts", &place]);
    hosts.join(3, "worker");
    let app = TestApp::new("shared", 3);
    hosts.host(2).deploy(app.directory()).succeeds();
    hosts.host(1).wait_until_routed("shared", 3, |_| true);
    let nodes: Vec<String> =
        hosts.host(1).instances("shared").into_iter().map(|instance| instance.node.to_string()).collect();
    assert!(nodes.iter().any(|node| node == "host-3"), "the worker runs one of them: {nodes:?}");
    for server in 1..=2 {
        let said = hosts.host(server).cli(&["cluster"]);
        said.mentions(&format!("artifacts are in {}", bucket.shown()));
    }
    let count = hosts.host(3).inside(|| bucket.archives().len());
    assert_eq!(count, 1, "one bucket, one archive");
    let well = hosts.host(1).cli(&["cluster"]);
    assert!(!well.out.contains("keeps artifacts"), "{}", well.out);

    // One is told something else at its next start.
    hosts.host_mut(2).kill_9();
    hosts.host_mut(2).run(&["join", "--artifacts", "disk"]);
    let apart = format!("server host-2 keeps artifacts on its disk, and this one in {}", bucket.shown());
    for asked in ["cluster", "doctor"] {
        eventually("it is told that the servers keep artifacts in two places", || {
            let said = hosts.host(1).cli(&[asked]);
            let is_told = said.out.contains(&apart) && said.out.contains("the same --artifacts");
            if is_told { Ok(()) } else { Err(said.everything()) }
        });
    }
    hosts.host(2).cli(&["cluster"]).ends_with(1).mentions("server host-1 keeps artifacts in");
}
