//! This machine's name in the cluster: its host name made a slug, kept so that a renamed host stays the same node.

use std::path::Path;

use anyhow::Context;
use rung_model::NodeId;

pub fn ensure(path: &Path) -> anyhow::Result<NodeId> {
    match std::fs::read_to_string(path) {
        Ok(text) => NodeId::new(text.trim()).with_context(|| {
            format!("{} does not hold a node's name; remove it to choose anew", path.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let name = of_this_host();
            rung_api::seal::write_private(path, name.as_str().as_bytes())
                .with_context(|| format!("writing {}", path.display()))?;
            Ok(name)
        }
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

pub fn of_this_host() -> NodeId {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    slug(&host.unwrap_or_default())
}

/// The first label of a host name, without what node names don't allow; `node` when nothing is left.
fn slug(host: &str) -> NodeId {
    let label = host.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let kept: String =
        label.chars().filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-').collect();
    let kept = kept.trim_start_matches(|c: char| !c.is_ascii_lowercase());
    let kept = kept.get(..kept.len().min(40)).unwrap_or_default().trim_end_matches('-');
    NodeId::new(kept).unwrap_or_else(|_| NodeId::new("node").expect("`node` is a name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_name_becomes_a_node_name() {
        let named = |host: &str| slug(host).to_string();
        assert_eq!(named("Web-1.example.com"), "web-1");
        assert_eq!(named("10-0-0-7"), "node");
        assert_eq!(named("9lives_box-"), "livesbox");
        assert_eq!(named(""), "node");
    }

    #[test]
    fn a_name_once_chosen_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node-name");
        std::fs::write(&path, "first\n").unwrap();
        assert_eq!(ensure(&path).unwrap().to_string(), "first");
    }
}
