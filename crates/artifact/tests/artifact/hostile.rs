//! Archives that somebody made to do harm. Each is refused, by `unpack` and `check` alike, and leaves nothing.

use std::fs;
use std::io::{self, Read};

use rung_artifact::{Limits, UnpackError, check, unpack};
use tar::{EntryType, Header};
use tempfile::TempDir;

/// An archive of whatever entries one likes; the tar crate's builder is too well-behaved.
#[derive(Default)]
struct Forged(Vec<u8>);

impl Forged {
    fn entry(self, kind: EntryType, path: &str, target: &str, content: &[u8]) -> Self {
        self.with(kind, path, target, 0o755, content.len() as u64, content)
    }

    fn file(self, path: &str) -> Self {
        self.entry(EntryType::Regular, path, "", b"x")
    }

    fn link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, b"")
    }

    fn with(
        mut self,
        kind: EntryType,
        path: &str,
        target: &str,
        mode: u32,
        size: u64,
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_gnu();
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..path.len()].copy_from_slice(path.as_bytes());
        gnu.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn refused(archive: &[u8], limits: Limits) -> UnpackError {
    refused_reader(|| archive, limits)
}

fn refused_reader<R: Read>(reader: impl Fn() -> R, limits: Limits) -> UnpackError {
    let home = TempDir::new().unwrap();
    fs::create_dir(home.path().join("in")).unwrap();
    let error = unpack(reader(), &home.path().join("in/tree"), limits).expect_err("it was unpacked");
    let left: Vec<_> = fs::read_dir(home.path().join("in")).unwrap().collect();
    assert!(left.is_empty(), "it left {left:?} behind");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "it wrote outside of its directory");
    let checked = check(reader(), limits).expect_err("it passed the check");
    assert_eq!(checked.to_string(), error.to_string(), "check and unpack disagree");
    error
}

fn assert_refused(forged: Forged, words: &str) {
    let error = refused(&forged.end(), Limits::source()).to_string();
    assert!(error.contains(words), "{error:?} does not say {words:?}");
}

#[test]
fn dot_dot() {
    for path in ["../evil", "a/../../evil", "a/..", ".."] {
        assert_refused(Forged::default().file(path), "contains ..");
    }
}

#[test]
fn absolute_paths() {
    assert_refused(Forged::default().file("/tmp/evil"), "is absolute");
}

#[test]
fn links_out_of_the_tree() {
    for target in ["/etc/passwd", "../x", "a/../../x"] {
        assert_refused(Forged::default().link("link", target), "outside the tree");
    }
    assert_refused(Forged::default().link("link", ""), "links to nothing");
}

#[test]
fn links_that_leave_by_way_of_another_link() {
    // deep/up is the root; deep/up/.. would be above it.
    let forged = Forged::default().link("p/q/up", "../..").link("out", "p/q/up/../x");
    assert_refused(forged, "outside the tree");
}

#[test]
fn writing_through_a_link_that_was_unpacked_before() {
    let forged = || Forged::default().link("door", "/tmp").file("door/evil");
    let error = refused(&forged().end(), Limits::tree()).to_string();
    assert!(error.contains("goes through something that is not a directory"), "{error}");
    assert_refused(Forged::default().file("a").file("a/b"), "goes through something");
}

#[test]
fn replacing_a_link_that_was_unpacked_before() {
    assert_refused(Forged::default().link("a", "b").file("a"), "occurs twice");
    assert_refused(Forged::default().file("a").file("./a"), "occurs twice");
    assert_refused(Forged::default().file("a/b").file("a"), "occurs twice");
    let twice = Forged::default().entry(EntryType::Directory, "a", "", b"").entry(
        EntryType::Directory,
        "a/",
        "",
        b"",
    );
    assert_refused(twice, "occurs twice");
}

#[test]
fn hard_links() {
    for target in ["/etc/shadow", "../x", "inside"] {
        assert_refused(
            Forged::default().file("inside").entry(EntryType::Link, "hard", target, b""),
            "a hard link",
        );
    }
}

#[test]
fn devices_pipes_and_other_kinds() {
    for (kind, words) in [
        (EntryType::Char, "a device"),
        (EntryType::Block, "a device"),
        (EntryType::Fifo, "a named pipe"),
        (EntryType::GNUSparse, "a sparse file"),
        (EntryType::XHeader, "a pax header"),
        (EntryType::XGlobalHeader, "a pax header"),
        (EntryType::Continuous, "of an unknown kind"),
    ] {
        assert_refused(Forged::default().entry(kind, "thing", "", b""), words);
    }
}

#[test]
fn setuid_and_setgid() {
    for mode in [0o4755, 0o2755, 0o6755] {
        assert_refused(
            Forged::default().with(EntryType::Regular, "su", "", mode, 1, b"x"),
            "is setuid or setgid",
        );
    }
}

#[test]
fn a_bomb_of_bytes_is_refused_by_its_claim_before_any_is_written() {
    let limits = Limits { bytes: 1000, ..Limits::source() };
    let claim = Forged::default().with(EntryType::Regular, "bomb", "", 0o644, 1 << 50, b"");
    assert!(matches!(refused(&claim.end(), limits), UnpackError::TooLarge { limit: 1000 }));
    let many =
        (0..20).fold(Forged::default(), |f, n| f.entry(EntryType::Regular, &format!("f{n}"), "", &[0; 100]));
    assert!(matches!(refused(&many.end(), limits), UnpackError::TooLarge { limit: 1000 }));
}

#[test]
fn a_bomb_of_entries() {
    let limits = Limits { entries: 10, ..Limits::source() };
    let files = (0..11).fold(Forged::default(), |f, n| f.file(&format!("f{n}")));
    assert!(matches!(refused(&files.end(), limits), UnpackError::TooManyEntries { limit: 10 }));
    // One entry that makes many directories.
    let deep = Forged::default().file(&"d/".repeat(40));
    assert!(matches!(refused(&deep.end(), limits), UnpackError::TooManyEntries { limit: 10 }));
}

#[test]
fn a_bomb_of_names() {
    let name = vec![b'n'; 1 << 20];
    let long = Forged::default().entry(EntryType::GNULongName, "long", "", &name).file("f");
    assert_refused(long, "longer than 4096 bytes");
    let two = Forged::default()
        .entry(EntryType::GNULongName, "long", "", b"one\0")
        .entry(EntryType::GNULongName, "long", "", b"two\0")
        .file("f");
    assert_refused(two, "two long names");
    assert_refused(
        Forged::default().entry(EntryType::GNULongName, "long", "", b"one\0"),
        "belongs to no entry",
    );
}

#[test]
fn a_long_name_hides_nothing() {
    let dots = Forged::default().entry(EntryType::GNULongName, "long", "", b"../evil\0").file("good");
    assert_refused(dots, "contains ..");
    let zero = Forged::default().entry(EntryType::GNULongName, "long", "", b"good\0/../evil\0").file("good");
    assert_refused(zero, "zero byte");
    let link = Forged::default().entry(EntryType::GNULongLink, "long", "", b"../out\0").link("l", "inside");
    assert_refused(link, "outside the tree");
}

#[test]
fn an_archive_cut_anywhere_is_refused() {
    let whole = Forged::default().entry(EntryType::Directory, "d", "", b"").file("d/f").link("l", "d").end();
    for cut in 0..whole.len() - 512 {
        let error = check(&whole[..cut], Limits::source()).expect_err("a cut archive was taken for whole");
        assert!(matches!(error, UnpackError::Truncated), "cut at {cut}: {error:?}");
    }
}

#[test]
fn cargo_behind_the_end_is_refused() {
    let mut archive = Forged::default().file("f").end();
    archive.extend_from_slice(b"cargo");
    assert!(refused(&archive, Limits::source()).to_string().contains("something follows its end"));
    let endless = || Forged::default().file("f").end();
    let error = refused_reader(|| io::Cursor::new(endless()).chain(io::repeat(0)), Limits::source());
    assert!(error.to_string().contains("something follows its end"), "{error}");
}

#[test]
fn noise_is_refused() {
    let mut random = Forged::default().file("f").end();
    random[3] ^= 1;
    assert!(refused(&random, Limits::source()).to_string().contains("checksum"));
    assert!(matches!(refused(b"", Limits::source()), UnpackError::Truncated));
    assert!(matches!(refused(b"hello", Limits::source()), UnpackError::Truncated));
    let gzip = [0x1f, 0x8b, 8].into_iter().chain([7; 1000]).collect::<Vec<u8>>();
    assert!(refused(&gzip, Limits::source()).to_string().contains("pack it with `rung deploy`"));
}

#[test]
fn a_reader_that_fails_is_not_taken_for_an_end() {
    struct Fails;
    impl Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("connection reset"))
        }
    }
    let start = Forged::default().file("f").0;
    let error = refused_reader(|| io::Cursor::new(start.clone()).chain(Fails), Limits::source());
    assert!(matches!(error, UnpackError::Read { .. }), "{error:?}");
}
