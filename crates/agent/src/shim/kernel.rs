//! The few calls that neither std nor nix offers, or that must be unsafe. Each says why it is sound.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::{ForkResult, Pid};

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks. Only shims call this: they have one thread, so the child may do everything that the parent may.
#[allow(unsafe_code)]
pub fn fork() -> nix::Result<ForkResult> {
    // SAFETY: the process has a single thread (a shim starts no other), so no lock can be held by a thread that
    // does not exist in the child.
    unsafe { nix::unistd::fork() }
}

/// A handle on a process that its pid's reuse can't turn to another one.
#[allow(unsafe_code)]
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers, and answers with a descriptor that nobody else owns.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

#[allow(unsafe_code)]
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    // SAFETY: a descriptor, an integer, a null pointer (no siginfo) and flags of 0; no memory is handed over.
    unsafe {
        check(libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as i32,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        ))?;
    }
    Ok(())
}

/// Marks every descriptor from `first` on to be closed by the next exec.
#[allow(unsafe_code)]
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: only flags of descriptors change; nothing is closed under an owner.
    unsafe {
        check(libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC))?;
    }
    Ok(())
}

/// Closes every descriptor from `first` on. Called once, in a fresh process that owns none of them.
#[allow(unsafe_code)]
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: called at the shim's start, before it has opened anything: all that is there was inherited by
    // accident and has no owner in this program.
    unsafe {
        check(libc::syscall(libc::SYS_close_range, first, u32::MAX, 0))?;
    }
    Ok(())
}

/// Sets attributes (`libc::MOUNT_ATTR_*`) of a mount and all mounts below it.
#[allow(unsafe_code)]
pub fn mount_attributes(path: &Path, set: u64) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path ends with a zero byte and the struct has the size that is passed; both live until the end
    // of the call, which only reads them.
    unsafe {
        check(libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        ))?;
    }
    Ok(())
}

/// Gives up every capability for good, those that a later exec could bring included.
#[allow(unsafe_code)]
pub fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: integers only.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if dropped < 0 {
            let error = io::Error::last_os_error();
            // The first number that this kernel has no capability for.
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Makes the terminal the controlling one of this session.
#[allow(unsafe_code)]
pub fn take_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes an integer, not a pointer.
    unsafe {
        check(libc::c_long::from(libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0)))?;
    }
    Ok(())
}

/// Hands a descriptor to the process at the other end of the socket, with one byte that carries it.
pub fn send_descriptor(socket: &UnixStream, fd: &impl AsFd) -> io::Result<()> {
    let fds = [fd.as_fd().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

#[allow(unsafe_code)]
pub fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel has just made this descriptor for this process; there is room for one only, and
            // nobody else owns it.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(io::Error::other("no descriptor came"))
}

#[allow(unsafe_code)]
pub fn resize_terminal(terminal: &impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives until the end of the call.
    unsafe {
        check(libc::c_long::from(libc::ioctl(
            terminal.as_fd().as_raw_fd(),
            libc::TIOCSWINSZ,
            &raw const size,
        )))?;
    }
    Ok(())
}

/// Every signal as a fresh process has it: Rust ignores SIGPIPE, which commands do not expect.
#[allow(unsafe_code)]
pub fn default_signals() {
    use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, signal, sigprocmask};
    for number in Signal::iterator() {
        // SAFETY: sets default dispositions, no handler of this program.
        let _ = unsafe { signal(number, SigHandler::SigDfl) };
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Ends this process at once, without running what the parent registered for its own end.
#[allow(unsafe_code)]
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns and touches no memory.
    unsafe { libc::_exit(code) }
}
