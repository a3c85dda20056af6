//! Which symbolic links stay inside their tree.

/// Whether a link at `path` (relative, of real directories) with this target stays inside the tree.
///
/// Only targets of the form `../../a/b` are taken: relative, all their `..` at the front, no more of them than the
/// link is deep. The front part then walks real directories; every link that `a/b` goes through obeys the same rule,
/// so by induction no chain of links leaves. `a/../b` could: `a` may be a link to somewhere higher up.
pub fn stays_inside(path: &[u8], target: &[u8]) -> bool {
    if target.is_empty() || target.starts_with(b"/") || target.contains(&0) {
        return false;
    }
    let depth = path.iter().filter(|&&b| b == b'/').count();
    let mut ups = 0;
    let mut went_down = false;
    for part in target.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if went_down => return false,
            b".." => ups += 1,
            _ => went_down = true,
        }
    }
    ups <= depth
}

#[cfg(test)]
mod tests {
    use super::stays_inside;

    #[test]
    fn links_stay_inside_when_they_climb_no_higher_than_the_root() {
        for (path, target) in [
            ("a", "b"),
            ("a", "./b/c"),
            ("a/b", "../c"),
            ("a/b/c", "../../d"),
            ("node_modules/.bin/tool", "../tool/cli.js"),
        ] {
            assert!(stays_inside(path.as_bytes(), target.as_bytes()), "{path} -> {target} was refused");
        }
    }

    #[test]
    fn links_that_climb_out_or_could_by_way_of_another_link_are_refused() {
        for (path, target) in [
            ("a", ".."),
            ("a", "../b"),
            ("a/b", "../../c"),
            ("a", "/etc/passwd"),
            ("a", "b/../../c"),
            ("a", "p/q/up/../x"),
        ] {
            assert!(!stays_inside(path.as_bytes(), target.as_bytes()), "{path} -> {target} was taken");
        }
    }
}
