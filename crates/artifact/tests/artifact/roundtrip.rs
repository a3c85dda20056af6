//! Whatever the tree: it arrives as it left, and everybody computes the same digest.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use proptest::prelude::*;
use rung_artifact::{Limits, check, digest_source, digest_tree, pack_source, pack_tree, unpack_verified};
use tempfile::TempDir;

#[derive(Debug, Clone)]
enum Thing {
    File { executable: bool, content: Vec<u8> },
    Directory,
    Link(String),
}

fn thing() -> impl Strategy<Value = Thing> {
    prop_oneof![
        4 => (any::<bool>(), prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..1500),
            // Beyond one chunk, and around its border.
            (65_530usize..65_540).prop_map(|n| vec![7; n]),
        ]).prop_map(|(executable, content)| Thing::File { executable, content }),
        1 => Just(Thing::Directory),
        1 => "[a-c]{1,3}".prop_map(Thing::Link),
    ]
}

/// Few names, so that they meet; odd ones, so that orders differ (`a`, `a-`, `a/`, `a.`).
fn name() -> impl Strategy<Value = String> {
    prop_oneof![8 => "[ab][-. ]?[ab]?", 1 => "[a-z]{60,120}", 1 => "[ä-ü]{1,3}"]
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(name(), 1..4).prop_map(|parts| parts.join("/"))
}

fn make(dir: &Path, things: &BTreeMap<String, Thing>) {
    for (relative, thing) in things {
        let path = dir.join(relative);
        // A thing whose place is taken by another is left out.
        if fs::create_dir_all(path.parent().unwrap()).is_err() || path.symlink_metadata().is_ok() {
            continue;
        }
        match thing {
            Thing::Directory => fs::create_dir(&path).unwrap(),
            Thing::Link(target) => symlink(target, &path).unwrap(),
            Thing::File { executable, content } => {
                fs::write(&path, content).unwrap();
                let mode = if *executable { 0o755 } else { 0o644 };
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn a_tree_arrives_as_it_left(things in proptest::collection::btree_map(path(), thing(), 0..20)) {
        let source = TempDir::new().unwrap();
        make(source.path(), &things);
        let mut archive = Vec::new();
        let packed = pack_source(source.path(), &mut archive).unwrap();
        let mut as_tree = Vec::new();
        prop_assert_eq!(&pack_tree(source.path(), &mut as_tree).unwrap(), &packed);
        prop_assert!(as_tree == archive, "a source without ignore files packs differently as a tree");
        prop_assert_eq!(&digest_source(source.path()).unwrap(), &packed);
        prop_assert_eq!(&digest_tree(source.path()).unwrap(), &packed);
        prop_assert_eq!(&check(&archive[..], Limits::source()).unwrap(), &packed);

        let home = TempDir::new().unwrap();
        let into = home.path().join("tree");
        prop_assert_eq!(&unpack_verified(&archive[..], &into, &packed.digest, Limits::source()).unwrap(), &packed);
        let mut again = Vec::new();
        prop_assert_eq!(&pack_tree(&into, &mut again).unwrap(), &packed);
        prop_assert!(again == archive, "what arrived packs to other bytes: a time, mode or name was lost");
    }

    #[test]
    fn a_flipped_bit_never_passes_for_the_same_tree(
        bit in any::<proptest::sample::Index>(),
    ) {
        let source = TempDir::new().unwrap();
        fs::create_dir(source.path().join("d")).unwrap();
        fs::write(source.path().join("d/file"), "content").unwrap();
        let mut archive = Vec::new();
        let packed = pack_tree(source.path(), &mut archive).unwrap();
        // Content only: what tar headers say of owners is not covered, and their checksum guards the rest.
        let at = archive.windows(7).position(|w| w == b"content").unwrap() * 8 + bit.index(7 * 8);
        archive[at / 8] ^= 1 << (at % 8);
        prop_assert_ne!(check(&archive[..], Limits::source()).unwrap().digest, packed.digest);
    }
}
