//! What a user deploys, and what becomes of it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rung_artifact::{
    Limits, PackError, Packed, UnpackError, check, digest_source, digest_tree, pack_source, pack_tree,
    remove_tree, remove_unfinished, unpack, unpack_verified,
};
use tempfile::TempDir;

fn tree(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (path, content) in files {
        write(dir.path(), path, content);
    }
    dir
}

fn write(dir: &Path, path: &str, content: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn packed_source(dir: &Path) -> (Vec<u8>, Packed) {
    let mut archive = Vec::new();
    let packed = pack_source(dir, &mut archive).unwrap();
    (archive, packed)
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_ignore_files_name_stays_at_home_and_the_rest_arrives() {
    let app = tree(&[
        ("app.py", "print()"),
        (".env.example", "A=1"),
        (".git/config", "secret"),
        ("vendor/lib/.git", "gitdir: elsewhere"),
        ("vendor/lib/lib.py", "1"),
        (".gitignore", "*.log\ndist/\n"),
        ("debug.log", "x"),
        ("dist/app.js", "built"),
        (".rungignore", "!dist/\n/docs\n"),
        ("docs/long.md", "x"),
    ]);
    let (archive, packed) = packed_source(app.path());
    let home = TempDir::new().unwrap();
    let into = home.path().join("tree");
    unpack(&archive[..], &into, Limits::source()).unwrap();

    for here in ["app.py", ".env.example", "vendor/lib/lib.py", "dist/app.js"] {
        assert!(into.join(here).exists(), "{here} did not arrive");
    }
    for gone in [".git", "vendor/lib/.git", "debug.log", "docs"] {
        assert!(!into.join(gone).exists(), "{gone} was deployed although it is ignored");
    }
    assert_eq!(packed.files, 6, "app.py, .env.example, both ignore files, lib.py and app.js");
    assert_eq!(digest_source(app.path()).unwrap(), packed, "the digest without an archive is another");
    assert_eq!(digest_tree(&into).unwrap(), packed, "what arrived has another digest");
}

#[test]
fn an_app_in_a_corner_of_a_repository_obeys_the_whole_repositorys_ignore_file() {
    let repository = tree(&[(".git/HEAD", ""), (".gitignore", "node_modules\n"), ("apps/shop/app.js", "1")]);
    write(repository.path(), "apps/shop/node_modules/x/index.js", "1");
    let (_, packed) = packed_source(&repository.path().join("apps/shop"));
    assert_eq!(packed.files, 1, "node_modules was deployed although the repository ignores it");
}

#[test]
fn a_chmod_changes_the_digest_while_a_touch_and_an_umask_do_not() {
    let app = tree(&[("bin/server", "#!/bin/sh"), ("data.txt", "1")]);
    let server = app.path().join("bin/server");
    chmod(&server, 0o644);
    let before = digest_source(app.path()).unwrap();

    let later = SystemTime::now() + Duration::from_secs(100);
    fs::File::options().write(true).open(&server).unwrap().set_modified(later).unwrap();
    assert_eq!(digest_source(app.path()).unwrap(), before, "a touch made a new artifact");

    chmod(&server, 0o664);
    chmod(&app.path().join("bin"), 0o775);
    assert_eq!(digest_source(app.path()).unwrap(), before, "another umask made a new artifact");

    chmod(&server, 0o755);
    assert_ne!(digest_source(app.path()).unwrap().digest, before.digest, "chmod +x went unnoticed");
}

#[test]
fn every_other_change_makes_another_digest() {
    let base = || tree(&[("a/x", "1"), ("b", "2")]);
    let plain = digest_tree(base().path()).unwrap().digest;
    type Change = (&'static str, fn(&Path));
    let changes: [Change; 6] = [
        ("content", |dir| write(dir, "b", "3")),
        ("a new empty directory", |dir| fs::create_dir(dir.join("c")).unwrap()),
        ("a renamed file", |dir| fs::rename(dir.join("b"), dir.join("c")).unwrap()),
        ("a moved file", |dir| fs::rename(dir.join("b"), dir.join("a/b")).unwrap()),
        ("a link instead of a file", |dir| {
            fs::remove_file(dir.join("b")).unwrap();
            symlink("2", dir.join("b")).unwrap();
        }),
        ("a removed file", |dir| fs::remove_file(dir.join("b")).unwrap()),
    ];
    for (what, change) in changes {
        let dir = base();
        change(dir.path());
        assert_ne!(digest_tree(dir.path()).unwrap().digest, plain, "{what} went unnoticed");
    }
}

#[test]
fn times_modes_and_links_come_back() {
    let app = tree(&[("bin/server", "#!/bin/sh"), ("data.txt", "1")]);
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    chmod(&app.path().join("bin/server"), 0o700);
    chmod(&app.path().join("data.txt"), 0o600);
    symlink("../data.txt", app.path().join("bin/data")).unwrap();
    for path in ["bin/server", "bin"] {
        fs::File::open(app.path().join(path)).unwrap().set_modified(then).unwrap();
    }
    let (archive, _) = packed_source(app.path());
    let home = TempDir::new().unwrap();
    let into = home.path().join("tree");
    unpack(&archive[..], &into, Limits::source()).unwrap();

    let mode = |path: &str| into.join(path).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("bin/server"), 0o755, "executables can be run by whoever the instance is");
    assert_eq!(mode("data.txt"), 0o644, "files can be read by whoever the instance is");
    assert_eq!(mode(""), 0o755);
    assert_eq!(fs::read_link(into.join("bin/data")).unwrap(), Path::new("../data.txt"));
    for path in ["bin/server", "bin"] {
        assert_eq!(into.join(path).metadata().unwrap().modified().unwrap(), then, "{path} has another time");
    }
}

#[test]
fn long_names_and_names_that_are_not_text_survive() {
    use std::os::unix::ffi::OsStrExt as _;
    let app = TempDir::new().unwrap();
    let deep = "directory-with-a-long-name/".repeat(12);
    write(app.path(), &format!("{deep}{}", "f".repeat(200)), "deep");
    write(app.path(), &"n".repeat(100), "exactly the field's size");
    write(app.path(), &"m".repeat(101), "one more");
    symlink("x".repeat(150), app.path().join("link")).unwrap();
    fs::write(app.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), "bytes").unwrap();

    let (archive, packed) = packed_source(app.path());
    let home = TempDir::new().unwrap();
    let into = home.path().join("tree");
    assert_eq!(unpack(&archive[..], &into, Limits::source()).unwrap(), packed);
    assert_eq!(digest_tree(&into).unwrap(), packed);
}

#[test]
fn an_ordinary_tar_reads_what_we_write() {
    let app = tree(&[("a/b.txt", "hello")]);
    write(app.path(), &"n".repeat(140), "long");
    let (archive, _) = packed_source(app.path());
    let names: Vec<_> = tar::Archive::new(&archive[..])
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, ["a", "a/b.txt", &"n".repeat(140)]);
}

#[test]
fn a_links_own_time_does_not_change_the_archive() {
    let linked = |seconds| {
        let app = tree(&[("a", "1")]);
        symlink("a", app.path().join("link")).unwrap();
        let status = std::process::Command::new("touch")
            .args(["--no-dereference", "--date", seconds])
            .arg(app.path().join("link"))
            .status();
        assert!(status.unwrap().success(), "touch failed");
        for path in ["a", ""] {
            fs::File::open(app.path().join(path)).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        packed_source(app.path()).0
    };
    assert!(
        linked("@1000") == linked("@2000"),
        "an unpacked link, which has a time of its own, packs differently"
    );
}

#[test]
fn the_same_tree_packs_to_the_same_bytes() {
    let app = tree(&[("b", "1"), ("a/z", "2"), ("a-b", "3"), ("a.c", "4")]);
    assert_eq!(packed_source(app.path()).0, packed_source(app.path()).0);
}

#[test]
fn a_socket_or_a_pipe_is_refused_by_name_and_with_the_way_out() {
    let app = tree(&[("app.py", "1")]);
    let socket = app.path().join("server.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let error = pack_source(app.path(), Vec::new()).unwrap_err();
    assert!(matches!(&error, PackError::Special { kind: "socket", .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("server.sock") && text.contains(".rungignore"), "{text}");

    write(app.path(), ".rungignore", "*.sock\n");
    assert_eq!(packed_source(app.path()).1.files, 2, "the way out did not lead out");
}

#[test]
fn everything_that_can_not_be_packed_is_told_at_once() {
    let app = tree(&[("app.py", "1"), ("bin/tool", "2")]);
    let _listener = UnixListener::bind(app.path().join("server.sock")).unwrap();
    symlink("/usr/bin/python3", app.path().join("python")).unwrap();
    fs::set_permissions(app.path().join("bin/tool"), std::os::unix::fs::PermissionsExt::from_mode(0o4755))
        .unwrap();
    let error = digest_source(app.path()).unwrap_err();
    assert!(matches!(&error, PackError::Several { problems } if problems.len() == 3), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("3 things"), "{text}");
    assert!(["server.sock", "/python links", "bin/tool"].iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn links_out_of_a_source_are_refused_but_a_built_tree_may_have_them() {
    let app = tree(&[("a/app.py", "1")]);
    symlink("/usr/bin/python3", app.path().join("python")).unwrap();
    let error = pack_source(app.path(), Vec::new()).unwrap_err().to_string();
    assert!(error.contains("/usr/bin/python3") && error.contains(".rungignore"), "{error}");

    let mut archive = Vec::new();
    let packed = pack_tree(app.path(), &mut archive).unwrap();
    let home = TempDir::new().unwrap();
    assert_eq!(unpack(&archive[..], &home.path().join("tree"), Limits::tree()).unwrap(), packed);
    let refused = unpack(&archive[..], &home.path().join("other"), Limits::source()).unwrap_err();
    assert!(matches!(refused, UnpackError::LinkEscapes { .. }), "{refused:?}");
}

#[test]
fn setuid_files_are_refused_with_the_way_out() {
    let app = tree(&[("tool", "1")]);
    chmod(&app.path().join("tool"), 0o4755);
    let error = pack_source(app.path(), Vec::new()).unwrap_err().to_string();
    assert!(error.contains("tool") && error.contains("chmod ug-s"), "{error}");
}

#[test]
fn a_file_or_nothing_instead_of_a_directory_is_named() {
    let app = tree(&[("file", "1")]);
    let error = pack_source(&app.path().join("file"), Vec::new()).unwrap_err().to_string();
    assert!(error.contains("is not a directory"), "{error}");
    let error = pack_source(&app.path().join("missing"), Vec::new()).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
}

#[test]
fn a_directory_reached_through_a_link_is_packed_like_any_other() {
    let app = tree(&[("app.py", "1")]);
    let home = TempDir::new().unwrap();
    let link = home.path().join("current");
    symlink(app.path(), &link).unwrap();
    assert_eq!(digest_source(&link).unwrap(), digest_source(app.path()).unwrap());
}

#[test]
fn an_archive_with_another_digest_leaves_nothing_behind() {
    let (archive, _) = packed_source(tree(&[("a", "1")]).path());
    let (_, other) = packed_source(tree(&[("a", "2")]).path());
    let home = TempDir::new().unwrap();
    let error = unpack_verified(&archive[..], &home.path().join("tree"), &other.digest, Limits::source())
        .unwrap_err();
    assert!(matches!(error, UnpackError::Mismatch { .. }), "{error:?}");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "something was left behind");
}

#[test]
fn what_exists_is_not_unpacked_over() {
    let (archive, packed) = packed_source(tree(&[("a", "1")]).path());
    let home = tree(&[("tree/precious", "1")]);
    let into = home.path().join("tree");
    let error = unpack(&archive[..], &into, Limits::source()).unwrap_err();
    assert!(matches!(error, UnpackError::Exists { .. }), "{error:?}");
    assert!(into.join("precious").exists());

    fs::remove_file(into.join("precious")).unwrap();
    let found = unpack_verified(&archive[..], &into, &packed.digest, Limits::source()).unwrap();
    assert_eq!(found, packed, "an empty directory is no obstacle");
}

#[test]
fn checking_on_the_way_in_gives_the_same_digest_as_unpacking() {
    let (archive, packed) = packed_source(tree(&[("a/b", "1"), ("c", "2")]).path());
    assert_eq!(check(&archive[..], Limits::source()).unwrap(), packed);
}

#[test]
fn read_only_trees_and_unfinished_ones_can_be_removed() {
    let home =
        tree(&[("tree/cache/module/file", "1"), (".rung-unfinished-1-2-3/half", "1"), ("kept/file", "1")]);
    chmod(&home.path().join("tree/cache/module"), 0o555);
    chmod(&home.path().join("tree/cache"), 0o500);
    remove_tree(&home.path().join("tree")).unwrap();
    remove_tree(&home.path().join("tree")).expect("that it is gone already is fine");
    remove_unfinished(home.path()).unwrap();
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["kept"]);
}

#[test]
fn a_tree_that_nobody_takes_is_refused_before_it_is_read_and_its_largest_part_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("app.py"), "print()").unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    // It takes no room on the disk, and reading it would take seconds.
    fs::File::create(dir.path().join("data/dump")).unwrap().set_len(20_000_000_000).unwrap();
    let error = digest_source(dir.path()).unwrap_err();
    assert!(matches!(&error, PackError::TooLarge { limit: 8_589_934_592, .. }), "{error:?}");
    let told = error.to_string();
    assert!(
        told.contains("holds 20.0 GB, and 8.6 GB is the most") && told.contains("data alone has 20.0 GB"),
        "{told}"
    );
    fs::write(dir.path().join(".rungignore"), "data\n").unwrap();
    digest_source(dir.path()).expect("what is named in .rungignore does not count");
}
