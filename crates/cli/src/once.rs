//! `name=value` as often as needed, each name once: of two values one would win unseen.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::edge::Hinted;

/// What was said of each name.
///
/// # Errors
/// A name was said twice.
pub(crate) fn once<N: Ord + Display, V>(said: Vec<(N, V)>, what: &str) -> Result<BTreeMap<N, V>, Hinted> {
    let mut once = BTreeMap::new();
    for (name, value) in said {
        if once.contains_key(&name) {
            let message = format!("{what} {name} is there twice");
            return Err(Hinted::usage(message, "say it once; nothing was changed"));
        }
        once.insert(name, value);
    }
    Ok(once)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_two_things_of_one_name_is_asked_which() {
        assert_eq!(once(vec![("a", 1), ("b", 2)], "service").unwrap().len(), 2);
        let refused = once(vec![("a", 1), ("b", 2), ("a", 3)], "service").unwrap_err().to_string();
        assert_eq!(refused, "service a is there twice");
    }
}
