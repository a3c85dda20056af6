//! Who asks: the name that releases, deployments and errors show.

use nix::unistd::{User, geteuid};

/// `ada@laptop`.
pub fn name() -> String {
    let user =
        ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()));
    let user = user.or_else(|| Some(User::from_uid(geteuid()).ok()??.name));
    let user = user.unwrap_or_else(|| format!("uid {}", geteuid()));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => user,
        host => format!("{user}@{host}"),
    }
}
