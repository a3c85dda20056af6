//! The system call filter of what an instance runs: what only the machine's owner has a use for is refused.
//!
//! It refuses rather than allows by name (`docs/decisions/0024-a-filter-that-refuses.md`), so that applications that
//! nobody here has heard of run. It stays over every `exec`, and nothing can take it off again.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// Doors into the kernel that have been broken before, and that an application without rights has no use for.
const REFUSED: &[libc::c_long] = &[
    // Programs and observers inside the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    // Its own way around every other filter; what asks for it goes on without, as in other containers.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Keys are shared by all that have one user, over namespaces.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Other worlds than the one it was given.
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // The machine itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_open_by_handle_at,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
];

/// The filters of this machine, in the order in which they are put on; `None` where this build knows none.
pub fn filters() -> Option<[BpfProgram; 2]> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).ok()?;
    let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let mut rules: BTreeMap<_, _> = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    for call in [libc::SYS_unshare, libc::SYS_clone] {
        rules.insert(call, vec![new_user_namespace()]);
    }
    // Its flags are in memory, where no filter looks. Who hears that it does not exist takes `clone`.
    let absent = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let hidden = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Some([compile(hidden, absent, arch), compile(rules, refused, arch)])
}

/// A user who is root in a namespace of their own reaches code of the kernel that no other user does.
fn new_user_namespace() -> SeccompRule {
    let flag = u64::try_from(libc::CLONE_NEWUSER).expect("a flag is no negative number");
    let asked = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag);
    SeccompRule::new(vec![asked.expect("a call has a first argument")]).expect("there is a condition")
}

fn compile(
    rules: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    action: SeccompAction,
    arch: TargetArch,
) -> BpfProgram {
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch)
        .expect("what is refused is not what is allowed");
    BpfProgram::try_from(filter).expect("the list is shorter than a filter may be")
}

/// Whether instances here run with the filter.
pub fn is_possible() -> bool {
    std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() && filters().is_some()
}

/// Puts the filter on this process and all that it becomes or starts.
pub fn put_on() -> io::Result<()> {
    if !is_possible() {
        return Ok(());
    }
    for filter in filters().into_iter().flatten() {
        seccompiler::apply_filter(&filter)
            .map_err(|error| io::Error::other(format!("putting on the system call filter: {error}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_there_where_rung_is_built_for() {
        let filters = filters().expect("this architecture has none");
        assert!(filters.iter().all(|filter| !filter.is_empty()));
    }
}
