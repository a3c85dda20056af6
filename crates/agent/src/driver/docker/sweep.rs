//! Containers that nobody has a record of, and volumes' first owners.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use http_body_util::BodyExt;
use hyper::Method;

use super::spec::NODE_LABEL;
use super::{ContainerSpec, Containers, read_record};
use crate::engine::{EngineError, Listed, Query};

/// `/etc/passwd` of an image is a few lines.
const PASSWD_MAX: u64 = 1 << 20;
const TAR_BLOCK: usize = 512;

impl Containers {
    /// Removes this node's containers that no life's directory below `homes` knows: nobody would ever stop them. A
    /// record is written before its container is made, so what is listed first and not known then is known to nobody.
    ///
    /// # Errors
    /// The engine did not answer; how many were removed until then is not said.
    pub async fn sweep(&self, homes: &[&Path]) -> Result<usize, EngineError> {
        let filters = serde_json::json!({ "label": [format!("{NODE_LABEL}={}", self.tag)] }).to_string();
        let path = Query::default().with("all", "1").with("filters", &filters).on("/containers/json");
        let listed: Vec<Listed> = self.engine.get(&path).await?;
        if listed.is_empty() {
            return Ok(0);
        }
        let known = known_names(homes);
        let mut removed = 0;
        for container in listed {
            let mut names = container.names.iter().map(|name| name.trim_start_matches('/'));
            if names.any(|name| known.contains(name)) {
                continue;
            }
            tracing::warn!(names = ?container.names, "removed a container that nobody knows");
            self.remove(&container.id).await?;
            removed += 1;
        }
        Ok(removed)
    }

    /// A volume that was just made belongs to the user that the image runs as. One that was there keeps its owner.
    pub(super) async fn give_volumes(&self, spec: &ContainerSpec, container: &str) {
        if spec.fresh.is_empty() {
            return;
        }
        let owner = self.user_of(&spec.config.user, container).await;
        for volume in &spec.fresh {
            let given = match owner {
                Some((uid, gid)) => std::os::unix::fs::chown(volume, Some(uid), Some(gid)),
                None => Err(std::io::Error::from(std::io::ErrorKind::NotFound)),
            };
            if given.is_err() {
                // Nobody else gets there: the directories above are the agent's alone.
                let _ = std::fs::set_permissions(volume, std::fs::Permissions::from_mode(0o777));
            }
        }
    }

    /// `1000`, `1000:1000`, `app`, `app:staff`, or nothing for root. A group by its name is taken for the user's own.
    async fn user_of(&self, user: &str, container: &str) -> Option<(u32, u32)> {
        let (user, group) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
        let named_group: Option<u32> = group.and_then(|group| group.parse().ok());
        if user.is_empty() {
            return Some((0, named_group.unwrap_or(0)));
        }
        let passwd = self.passwd_of(container).await.unwrap_or_default();
        let found = find_user(&passwd, user);
        match (user.parse::<u32>(), found) {
            (Ok(uid), found) => Some((uid, named_group.unwrap_or_else(|| found.map_or(0, |(_, gid)| gid)))),
            (Err(_), Some((uid, gid))) => Some((uid, named_group.unwrap_or(gid))),
            (Err(_), None) => None,
        }
    }

    async fn passwd_of(&self, container: &str) -> Option<String> {
        let path = format!("/containers/{container}/archive");
        let path = Query::default().with("path", "/etc/passwd").on(&path);
        let body = self.engine.stream(Method::GET, &path).await.ok()?;
        first_member(&body.collect().await.ok()?.to_bytes())
    }
}

/// The content of an archive's first member.
fn first_member(archive: &[u8]) -> Option<String> {
    let header = archive.get(..TAR_BLOCK)?;
    // The size in octal digits.
    let size = std::str::from_utf8(&header[124..135]).ok()?.trim_matches(['\0', ' ']);
    let size = u64::from_str_radix(size, 8).ok()?.min(PASSWD_MAX);
    let mut text = String::new();
    archive.get(TAR_BLOCK..)?.take(size).read_to_string(&mut text).ok()?;
    Some(text)
}

fn find_user(passwd: &str, user: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        (fields[0] == user || fields[2] == user).then_some((uid, gid))
    })
}

fn known_names(homes: &[&Path]) -> BTreeSet<String> {
    let children = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    let lives =
        homes.iter().flat_map(|home| children(home)).flat_map(|life| children(&life).collect::<Vec<_>>());
    lives.filter_map(|life| read_record(&life)).map(|record| record.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_users_are_found_by_name_and_number() {
        let passwd = "root:x:0:0::/:/bin/sh\napp:x:1234:1235::/:/bin/sh\n";
        assert_eq!(find_user(passwd, "app"), Some((1234, 1235)));
        assert_eq!(find_user(passwd, "1234"), Some((1234, 1235)));
        assert_eq!(find_user(passwd, "nobody"), None);
        let mut archive = vec![0; TAR_BLOCK];
        archive[124..135].copy_from_slice(b"00000000003");
        archive.extend(b"abc\0\0\0");
        assert_eq!(first_member(&archive).as_deref(), Some("abc"));
    }
}
