//! Ways in beside `rung deploy`: `git push`, an `app.json`, a Compose file.

use std::os::unix::fs::symlink;

use rung_api::wire::ReleaseListing;
use rung_e2e::git::Repository;
use rung_e2e::{Load, Rung, Said, TestApp, eventually, example};
use rung_model::deployment::Phase;

/// An app that was pushed once.
fn pushed(name: &str) -> (Rung, TestApp, Repository) {
    let rung = Rung::start();
    let app = TestApp::new(name, 1);
    let repository = Repository::of(app.directory());
    repository.push(&rung, name, &["main"]).succeeds();
    rung.wait_until_settled(name, "web", 1);
    (rung, app, repository)
}

/// The next version, committed.
fn next(app: &mut TestApp, repository: &Repository, version: &str) {
    app.version = version.into();
    app.directory();
    repository.commit(&format!("version {version}"));
}

fn releases(rung: &Rung, app: &str) -> Vec<ReleaseListing> {
    rung.cli(&["releases", "--app", app, "--json"]).succeeds().json()
}

/// Where the branch is on the server; empty when it is nowhere.
fn remote_head(rung: &Rung, repository: &Repository, app: &str) -> String {
    let listed = repository.git(&["ls-remote", &rung.git_remote(app), "refs/heads/*"]).succeeds().out;
    listed.split_whitespace().next().unwrap_or_default().to_owned()
}

#[test]
fn git_push_deploys_the_guestbook_and_shows_how_it_goes() {
    let rung = Rung::start();
    let guestbook = example("guestbook");
    let repository = Repository::of(guestbook.path());
    let mut remote = rung.cli_command(&["--app", "guestbook", "git", "remote"]);
    let remote = remote.current_dir(guestbook.path()).output().expect("starting rung git remote");
    assert!(remote.status.success(), "{}", String::from_utf8_lossy(&remote.stderr));
    let settings = repository.git(&["config", "--list"]).succeeds().out;
    assert!(!settings.contains(&rung.access().token), "the token is in the repository: {settings}");

    let said = repository.git(&["push", "rung", "main"]).succeeds();
    said.mentions("remote: deploying guestbook").mentions("is live at http").mentions("main -> main");
    rung.wait_until_settled("guestbook", "web", 2);
    assert!(rung.page("guestbook", "/").contains("Nobody yet"));
    assert_eq!(releases(&rung, "guestbook")[0].note.as_deref(), Some("the beginning"));

    repository.write("page.html", std::fs::read(guestbook.path().join("page.html")).expect("a page"));
    repository.write("NEWS", "a second version");
    let second = repository.commit("say what is new");
    let load = Load::start(rung.http(), "guestbook.localhost", "/");
    repository.git(&["push", "rung", "main"]).succeeds().mentions("in place of v1");
    load.stop().assert_none_lost("a push");
    assert_eq!(releases(&rung, "guestbook")[0].note.as_deref(), Some("say what is new"));
    assert_eq!(remote_head(&rung, &repository, "guestbook"), second);
    repository.git(&["push", "rung", "main"]).succeeds().mentions("Everything up-to-date");
}

#[test]
fn a_push_whose_deploy_fails_is_refused_and_the_branch_stays() {
    let (rung, mut app, repository) = pushed("picky");
    let before = repository.id("HEAD");
    app.set("BE_CRASHING", "of a missing comma");
    app.sections.push("[deploy]\ndeadline = \"6s\"".into());
    next(&mut app, &repository, "2");
    let load = Load::start(rung.http(), "picky.localhost", "/");
    let said = repository.push(&rung, "picky", &["main"]).ends_with(1);
    load.stop().assert_none_lost("a push that was refused");
    said.mentions("of a missing comma").mentions("exit code 3").mentions("[remote rejected] main -> main");
    assert_eq!(remote_head(&rung, &repository, "picky"), before, "the branch has moved");
    assert!(rung.page("picky", "/").contains("version 1 "));

    app.unset("BE_CRASHING");
    next(&mut app, &repository, "3");
    repository.push(&rung, "picky", &["main"]).succeeds();
    assert!(rung.page("picky", "/").contains("version 3 "));
}

#[test]
fn an_app_file_that_is_wrong_or_missing_is_told_in_the_push() {
    let rung = Rung::start();
    let app = TestApp::new("typo", 1);
    let repository = Repository::of(app.directory());
    repository.write("rung.toml", "app = \"typo\"\n[services.web]\ncomand = \"x\"\n");
    repository.commit("a typing error");
    let said = repository.push(&rung, "typo", &["main"]).ends_with(1);
    said.mentions("rung.toml:3:1").mentions("did you mean `command`");
    repository.write("rung.toml", "app = \"other\"\n[services.web]\ncommand = \"x\"\n");
    repository.commit("another name");
    let said = repository.push(&rung, "typo", &["main"]).ends_with(1);
    said.mentions("app = \"other\"").mentions("the remote of typo");
    std::fs::remove_file(repository.directory().join("rung.toml")).expect("the app file");
    repository.commit("no app file");
    repository.push(&rung, "typo", &["main"]).ends_with(1).mentions("no rung.toml");
    assert!(rung.try_app("typo").is_err(), "nothing was ever deployed");
}

#[test]
fn a_branch_that_is_not_deployed_is_refused_with_the_way_to_deploy_it() {
    let (rung, mut app, repository) = pushed("branches");
    repository.git(&["checkout", "--quiet", "-b", "topic"]).succeeds();
    next(&mut app, &repository, "2");
    let said = repository.push(&rung, "branches", &["topic"]).ends_with(1);
    said.mentions("topic is not deployed").mentions("git push rung topic:main");
    repository.push(&rung, "branches", &["main", "topic"]).ends_with(1).mentions("not deployed");
    repository.push(&rung, "branches", &[":main"]).ends_with(1).mentions("rung destroy");
    assert!(rung.page("branches", "/").contains("version 1 "));
    repository.push(&rung, "branches", &["topic:main"]).succeeds();
    assert!(rung.page("branches", "/").contains("version 2 "));

    // A tag comes along, and a tag alone deploys nothing.
    repository.git(&["tag", "-a", "v1", "-m", "one"]).succeeds();
    repository.push(&rung, "branches", &["v1"]).succeeds().mentions("nothing is deployed");
    app.sections.push("[git]\nbranch = \"$(live); rm -rf ~\"".into());
    next(&mut app, &repository, "3");
    repository.push(&rung, "branches", &["topic:main"]).ends_with(1).mentions("not the name of a branch");
    app.sections = vec!["[git]\nbranch = \"$(live);`x`\"".into()];
    next(&mut app, &repository, "4");
    repository.push(&rung, "branches", &["topic:main"]).ends_with(1).mentions("main is not deployed");
    repository.push(&rung, "branches", &["topic:refs/heads/$(live);`x`"]).succeeds();
    assert!(rung.page("branches", "/").contains("version 4 "));
}

#[test]
fn history_is_rewritten_only_by_force_and_the_push_says_so() {
    let (rung, mut app, repository) = pushed("rewritten");
    next(&mut app, &repository, "2");
    repository.push(&rung, "rewritten", &["main"]).succeeds();
    repository.git(&["reset", "--quiet", "--hard", "HEAD~1"]).succeeds();
    next(&mut app, &repository, "3");
    repository.push(&rung, "rewritten", &["main"]).ends_with(1).mentions("[rejected]");
    assert!(rung.page("rewritten", "/").contains("version 2 "));
    repository.push(&rung, "rewritten", &["--force", "main"]).succeeds().mentions("forced: 1 of the commits");
    assert!(rung.page("rewritten", "/").contains("version 3 "));

    // A history that has nothing to do with the first.
    repository.git(&["checkout", "--quiet", "--orphan", "anew"]).succeeds();
    next(&mut app, &repository, "4");
    repository.push(&rung, "rewritten", &["anew:main"]).ends_with(1).mentions("[rejected]");
    repository.push(&rung, "rewritten", &["+anew:main"]).succeeds().mentions("forced: 2 of the commits");
    assert!(rung.page("rewritten", "/").contains("version 4 "));

    // A clone as CI makes it, without its history.
    let clones = tempfile::tempdir().expect("a temporary directory");
    let from = format!("file://{}", repository.directory().display());
    let clone = clones.path().join("clone");
    next(&mut app, &repository, "5");
    repository.git(&["clone", "--quiet", "--depth=1", &from, clone.to_str().expect("UTF-8")]).succeeds();
    let fresh = Rung::start();
    let shallow = Repository::opened(&clone);
    shallow.push(&fresh, "rewritten", &["HEAD:main"]).succeeds();
    assert!(fresh.page("rewritten", "/").contains("version 5 "));
    shallow.push(&rung, "rewritten", &["--force", "HEAD:main"]).succeeds();
    assert!(rung.page("rewritten", "/").contains("version 5 "));
}

/// A push of one change that is refused; the branch must not move.
fn refused(rung: &Rung, repository: &Repository, app: &str, change: impl FnOnce()) -> Said {
    let before = repository.id("HEAD");
    change();
    repository.commit("what can't be deployed");
    let said = repository.push(rung, app, &["main"]).ends_with(1);
    assert_eq!(remote_head(rung, repository, app), before, "the branch has moved; {}", said.everything());
    repository.git(&["reset", "--quiet", "--hard", "HEAD~1"]).succeeds();
    repository.git(&["clean", "--quiet", "-ffdx"]).succeeds();
    said
}

#[test]
fn what_git_can_hold_and_rung_can_t_run_is_refused_by_name() {
    let (rung, _app, repository) = pushed("hostile");
    let inside = |name: &str| repository.directory().join(name);
    let said = refused(&rung, &repository, "hostile", || {
        repository.write("vendor/lib/code", "of others");
        // To the repository around it, a repository is a submodule.
        Repository::of(&inside("vendor/lib"));
    });
    said.mentions("vendor/lib: a submodule").mentions("git subtree");

    let said = refused(&rung, &repository, "hostile", || {
        repository.write("dump.sql", vec![0; 100_000_001]);
    });
    said.mentions("dump.sql (100 MB): larger than 100 MB");

    let said = refused(&rung, &repository, "hostile", || {
        std::fs::remove_file(inside("rung.toml")).expect("the app file");
        symlink("/etc/shadow", inside("rung.toml")).expect("a link");
    });
    assert!(!said.everything().contains("root:"), "a file of the server was shown; {}", said.everything());
    said.mentions("rung.toml: a link");

    let said = refused(&rung, &repository, "hostile", || {
        symlink("../../../../etc", inside("conf")).expect("a link");
    });
    said.mentions("conf");

    // A tree that would write into git's own directory wherever it is checked out; no git makes one by itself.
    let (file, tree) = (repository.id("HEAD:rung.toml"), repository.id("HEAD^{tree}"));
    let listing = format!("040000 tree {tree}\t.git\n100644 blob {file}\trung.toml\n");
    let made = repository.git_reading(&["mktree"], &listing).succeeds().out;
    let commit = repository.git(&["commit-tree", made.trim(), "-p", "HEAD", "-m", "a trap"]).succeeds().out;
    let said = repository.push(&rung, "hostile", &[&format!("{}:refs/heads/main", commit.trim())]);
    said.ends_with(1).mentions("fsck error");
    assert_eq!(remote_head(&rung, &repository, "hostile"), repository.id("HEAD"), "the branch has moved");
    assert!(rung.page("hostile", "/").contains("version 1 "));
}

#[test]
fn what_is_committed_is_deployed_whatever_its_name_and_rungignore_has_the_last_word() {
    let (rung, mut app, repository) = pushed("named");
    let odd = "it's; $(touch pwned) `id` \"x\" & | > *\n?.txt";
    repository.write(odd, "odd");
    repository.write("-rf", "a file like an option");
    repository.write(".gitignore", "dist/\n");
    repository.write("dist/kept.txt", "committed although it is ignored");
    repository.write(".rungignore", "docs/\n");
    repository.write("docs/secret.txt", "not for the server");
    app.sections
        .push("[build]\ncommand = \"ls -a1 . dist > listing; ls -d docs >> listing 2>&1 || true\"".into());
    next(&mut app, &repository, "2");
    repository.push(&rung, "named", &["main"]).succeeds();
    assert!(rung.page("named", "/").contains("version 2 "));
    let listing = rung.cli(&["run", "--app", "named", "cat", "listing"]).succeeds().out;
    assert!(listing.contains("$(touch pwned)") && listing.contains("-rf"), "{listing}");
    assert!(listing.contains("kept.txt"), "what was committed is there: {listing}");
    assert!(!listing.contains("secret.txt") && !listing.contains("\npwned\n"), "{listing}");
}

#[test]
fn of_two_pushes_at_once_one_deploys_and_the_other_is_told() {
    let (rung, mut app, repository) = pushed("rivals");
    let copies = tempfile::tempdir().expect("a temporary directory");
    let other = copies.path().join("other");
    repository.git(&["clone", "--quiet", ".", other.to_str().expect("UTF-8")]).succeeds();
    let other = Repository::opened(&other);
    other.write("version", "other");
    other.commit("the other version");
    app.set("BE_SLOW_TO_START", "14000");
    app.web().lines.push("health = { path = \"/up\", grace = \"40s\" }".into());
    app.web().lines.remove(0);
    next(&mut app, &repository, "2");
    let first = repository.pushing(&rung, "rivals", &["main"]);
    eventually("the first push deploys", || match rung.deployments("rivals").len() {
        2 => Ok(()),
        count => Err(format!("{count} deployments")),
    });
    other.push(&rung, "rivals", &["main"]).ends_with(1).mentions("another push to rivals is going on");
    let first = first.wait_with_output().expect("waiting for the first push");
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert!(rung.page("rivals", "/").contains("version 2 "));
    other.push(&rung, "rivals", &["main"]).ends_with(1).mentions("rejected");
}

/// Waits until what was pushed as the second deployment is being rolled out.
fn wait_until_it_rolls(rung: &Rung, app: &str) {
    eventually("the deployment rolls", || {
        let last = rung.last_deployment(app);
        if last.number.0 == 2 && last.phase == Phase::Rolling { Ok(()) } else { Err(format!("{last:?}")) }
    });
}

#[test]
fn a_push_whose_person_has_gone_is_deployed_and_moves_the_branch_in_the_end() {
    let (rung, mut app, repository) = pushed("gone");
    app.set("BE_SLOW_TO_START", "3000");
    next(&mut app, &repository, "2");
    let mut push = repository.pushing(&rung, "gone", &["main"]);
    wait_until_it_rolls(&rung, "gone");
    // As a terminal does that is closed: without a word.
    push.kill().and_then(|()| push.wait()).expect("ending git push");
    eventually("the branch is where it was pushed to", || {
        let (there, pushed) = (remote_head(&rung, &repository, "gone"), repository.id("HEAD"));
        if there == pushed { Ok(()) } else { Err(format!("{there} instead of {pushed}")) }
    });
    let last = rung.last_deployment("gone");
    assert_eq!(last.phase, Phase::Succeeded, "the branch moved before the deployment had ended");
    assert!(rung.page("gone", "/").contains("version 2 "));
    repository.push(&rung, "gone", &["main"]).succeeds().mentions("Everything up-to-date");
}

#[test]
fn a_push_that_a_killed_rung_cut_off_is_made_again() {
    let (mut rung, mut app, repository) = pushed("cut-off");
    app.set("BE_SLOW_TO_START", "3000");
    next(&mut app, &repository, "2");
    let before = remote_head(&rung, &repository, "cut-off");
    let push = repository.pushing(&rung, "cut-off", &["main"]);
    wait_until_it_rolls(&rung, "cut-off");
    rung.kill_9();
    let push = push.wait_with_output().expect("waiting for the push");
    assert!(!push.status.success(), "it said that all is well: {}", String::from_utf8_lossy(&push.stderr));
    rung.up(None, &[]);
    assert_eq!(remote_head(&rung, &repository, "cut-off"), before, "nobody has moved the branch");
    eventually("the deployment has ended", || {
        let last = rung.last_deployment("cut-off");
        if last.has_ended() { Ok(()) } else { Err(format!("{:?}", last.phase)) }
    });
    repository.push(&rung, "cut-off", &["main"]).succeeds();
    assert_eq!(remote_head(&rung, &repository, "cut-off"), repository.id("HEAD"));
    assert!(rung.page("cut-off", "/").contains("version 2 "));
}

#[test]
fn who_has_no_token_pushes_nothing_and_destroy_forgets_what_was_pushed() {
    let (rung, _app, repository) = pushed("private");
    let address = rung.api_address();
    for credentials in ["", "ada:wrong@"] {
        let remote = format!("http://{credentials}{address}/git/private");
        let said = repository.git(&["push", &remote, "main"]).ends_with(128);
        assert!(!said.everything().contains("up-to-date"), "{}", said.everything());
    }
    let remote = format!("http://{address}/git/private/objects/info/packs");
    assert!(repository.git(&["ls-remote", &remote]).code != Some(0), "a file of the repository was served");
    assert!(!remote_head(&rung, &repository, "private").is_empty());
    rung.cli(&["destroy", "--app", "private", "-y"]).succeeds();
    assert!(!rung.data().join("git/repositories/private.git").exists(), "what was pushed is still there");
    repository.push(&rung, "private", &["main"]).succeeds().mentions("is live");
}

#[test]
fn an_environment_is_pushed_to_by_its_name() {
    let rung = Rung::start();
    let app = TestApp::new("abroad", 1);
    let repository = Repository::of(app.directory());
    repository.write("rung.staging.toml", "[env]\nCOLOUR = \"green\"\n");
    repository.commit("what differs in staging");
    repository.push(&rung, "abroad@staging", &["main"]).succeeds().mentions("deploying abroad@staging");
    assert!(rung.page("abroad-staging", "/").contains("version 1 "));
    assert!(rung.try_app("abroad").is_err(), "production was deployed, too");
}

#[test]
fn a_procfile_with_an_app_json_is_deployed_and_what_is_not_honoured_is_named() {
    let rung = Rung::start();
    let counter = example("counter");
    let deploy = || rung.cli(&["deploy", counter.path().to_str().expect("UTF-8"), "--app", "counter"]);
    deploy().ends_with(1).mentions("COUNTER_SALT");
    rung.cli(&["secret", "generate", "COUNTER_SALT", "--app", "counter"]).succeeds();
    let said = deploy().succeeds().mentions("app.json:11: buildpacks: nothing is detected");
    said.mentions("app.json:6: env.COUNTER_SALT");
    rung.wait_until_settled("counter", "web", 2);
    assert!(rung.page("counter", "/").contains("You are visitor "));
}

#[test]
fn a_compose_file_becomes_an_app_file_and_every_other_field_is_named() {
    let rung = Rung::start();
    let greeter = example("compose");
    let file = greeter.path().join("compose.yaml");
    let import = |more: &[&str]| rung.cli(&[&["import", file.to_str().expect("UTF-8")], more].concat());
    let said = import(&[]).mentions("compose.yaml:11: services.web.depends_on");
    said.mentions("services.cache: it runs another image (redis:7)")
        .mentions("rung secret set SESSION_SECRET");
    let written = std::fs::read_to_string(greeter.path().join("rung.toml")).expect("an app file");
    assert!(written.contains("app = \"greeter\"") && written.contains("[services.worker]"), "{written}");
    assert!(!written.contains("not-for-production"), "a secret is in the app file: {written}");
    std::fs::write(greeter.path().join("rung.toml"), "mine").expect("an app file");
    import(&[]).ends_with(1).mentions("is there already");
    let kept = std::fs::read_to_string(greeter.path().join("rung.toml")).expect("an app file");
    assert_eq!(kept, "mine", "an app file was overwritten");
    import(&["--service", "nobody", "--print"]).ends_with(1).mentions("the file has web, worker, cache");
}
