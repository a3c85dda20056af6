//! A whole machine for the long tests: Debian with systemd and cgroup v2 under QEMU, so that `rung service install`, a
//! reboot, and limits by cgroup v2 are tried for real. Emulated, since KVM is not to be had everywhere, so it
//! takes minutes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::process;

/// An emulated machine is some thirty times slower than a real one.
const PATIENCE: Duration = Duration::from_secs(25 * 60);

/// What the guest needs: an init, a kernel, the example's Python, and a client.
const PACKAGES: &str = "systemd-sysv,linux-image-cloud-amd64,initramfs-tools,python3,curl,procps,libgcc-s1";

const DISK: &str = "3G";

pub fn run() -> anyhow::Result<()> {
    let home = tempfile::tempdir().context("making a directory for the machine")?;
    let root = home.path().join("root");
    furnish(&root)?;
    let disk = home.path().join("disk");
    process::run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).args([&root, &disk]).arg(DISK))?;
    let boot = root.join("boot");
    watch(&mut machine(&disk, &file_of(&boot, "vmlinuz")?, &file_of(&boot, "initrd")?))
}

/// A Debian with this build of rung, the example, and the story that runs at each boot.
fn furnish(root: &Path) -> anyhow::Result<()> {
    let mut debian = Command::new("mmdebstrap");
    debian.args(["--quiet", "--variant=minbase", "--mode=root", "--include"]).arg(PACKAGES);
    process::run(debian.arg("bookworm").arg(root))?;
    let copy = |from: &Path, to: &str| -> anyhow::Result<()> {
        let to = root.join(to);
        process::run(Command::new("cp").arg("-r").args([from, to.as_path()]))
    };
    copy(&rung()?, "usr/local/bin/rung")?;
    copy(Path::new("examples/guestbook"), "opt/guestbook")?;
    copy(Path::new("tests/machine/glutton"), "opt/glutton")?;
    copy(Path::new("tests/machine/story.sh"), "opt/story.sh")?;
    copy(Path::new("tests/machine/story.service"), "etc/systemd/system/story.service")?;
    let wants = root.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    std::os::unix::fs::symlink("../story.service", wants.join("story.service"))?;
    fs::write(root.join("etc/fstab"), "/dev/vda / ext4 defaults 0 1\n")?;
    fs::write(root.join("etc/hostname"), "machine\n").context("naming the machine")
}

fn rung() -> anyhow::Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let rung = target.join("debug/rung");
    anyhow::ensure!(rung.exists(), "{} is missing: build it first", rung.display());
    Ok(rung)
}

fn file_of(boot: &Path, kind: &str) -> anyhow::Result<PathBuf> {
    for entry in fs::read_dir(boot).context("looking for the machine's kernel")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(kind) {
            return Ok(entry.path());
        }
    }
    bail!("the machine's Debian has no {kind}")
}

fn machine(disk: &Path, kernel: &Path, initrd: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "1500"]);
    qemu.args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none"]);
    qemu.arg("-drive").arg(format!("file={},if=virtio,format=raw,cache=unsafe", disk.display()));
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    qemu.args(["-append", "root=/dev/vda rw console=ttyS0 quiet systemd.unified_cgroup_hierarchy=1 systemd.mask=serial-getty@ttyS0.service"]);
    qemu.stdin(Stdio::null());
    qemu
}

/// Passes on what the machine says, until it says how the story ended. However that is, no machine is left.
fn watch(qemu: &mut Command) -> anyhow::Result<()> {
    println!("$ {}", process::spell(qemu));
    let mut child = qemu.stdout(Stdio::piped()).spawn().context("starting the machine")?;
    let console = BufReader::new(child.stdout.take().expect("it was piped"));
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in console.split(b'\n').map_while(Result::ok) {
            if send.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let until = Instant::now() + PATIENCE;
    let outcome = loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("  {line}");
                match line.split_once("story: ended: ") {
                    Some((_, "passed")) => break Ok(()),
                    Some(_) => break Err(anyhow::anyhow!("the story failed in the machine")),
                    None => {}
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => break Err(anyhow::anyhow!("the machine came to no end")),
            Err(mpsc::RecvTimeoutError::Disconnected) => break Err(anyhow::anyhow!("the machine went away")),
        }
    };
    drop(child.kill());
    child.wait().context("waiting for the machine's end")?;
    outcome
}
