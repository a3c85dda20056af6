//! Podman's API service with a store and a network of the test's own.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::eventually;

/// A running `podman system service`. Dropping it removes its containers and ends it.
#[derive(Debug)]
pub struct Podman {
    directory: TempDir,
    service: Option<Child>,
}

impl Podman {
    pub fn start() -> Self {
        let directory =
            tempfile::Builder::new().prefix("rung-podman-").tempdir().expect("a temporary directory");
        let mut podman = Self { directory, service: None };
        podman.configure();
        podman.up();
        podman
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Two engines with one network would give one address twice. Limits as Podman sets them are more than some machines
    /// allow; crun does not bear every mix of cgroups.
    fn configure(&self) {
        let pid = std::process::id();
        let settings = format!(
            "[containers]\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\n\
             [network]\nnetwork_config_dir = \"{}\"\ndefault_network = \"rungtest{pid}\"\ndefault_subnet = \"10.{}.{}.0/24\"\n",
            self.at("networks").display(),
            pid / 250 % 30 + 221,
            pid % 250,
        );
        fs::write(self.at("containers.conf"), settings).expect("podman's settings");
    }

    fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", self.at("containers.conf")).stdin(Stdio::null());
        command.arg("--root").arg(self.at("root")).arg("--runroot").arg(self.at("run"));
        command.arg("--tmpdir").arg(self.at("tmp"));
        command
    }

    /// Starts the service, again after [`Podman::kill_9`].
    pub fn up(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.at("log")).expect("podman's log");
        let mut command = self.command();
        command.args(["system", "service", "--time=0"]).arg(self.host());
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        // A Ctrl-C that a person gives to the tests is not for it.
        command.process_group(0);
        self.service = Some(command.spawn().expect("podman is installed"));
        eventually("podman answers", || {
            std::os::unix::net::UnixStream::connect(self.at("sock")).map(drop).map_err(|error| {
                format!("{error}: {}", fs::read_to_string(self.at("log")).unwrap_or_default())
            })
        });
    }

    /// Kills the service; its containers run on, each under a monitor of its own.
    pub fn kill_9(&mut self) {
        let mut service = self.service.take().expect("it runs");
        service.kill().and_then(|()| service.wait()).expect("killing podman's service");
    }

    /// As `DOCKER_HOST` has it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.at("sock").display())
    }

    /// # Panics
    /// When the command fails, with what it said.
    pub fn podman(&self, arguments: &[&str]) -> String {
        let output = self.command().args(arguments).output().expect("podman starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "podman {}: {said}", arguments.join(" "));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// An image of busybox.
    pub fn import(&self, name: &str, tools: &[&str]) {
        let tree = self.at("tree");
        let _ = fs::remove_dir_all(&tree);
        for directory in ["bin", "etc", "tmp"] {
            fs::create_dir_all(tree.join(directory)).expect("a directory of the image");
        }
        fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox-static is installed");
        for tool in tools {
            std::os::unix::fs::symlink("busybox", tree.join("bin").join(tool)).expect("a link");
        }
        let archive = self.at("tree.tar");
        let packed = Command::new("tar")
            .args(["--owner=0", "--group=0", "-C"])
            .arg(&tree)
            .arg("-cf")
            .arg(&archive)
            .arg(".")
            .status();
        assert!(packed.is_ok_and(|status| status.success()), "packing the image");
        self.podman(&["import", archive.to_str().expect("UTF-8"), name]);
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.command().args(["rm", "--all", "--force", "--time", "0"]).output();
        if let Some(mut service) = self.service.take() {
            let _ = service.kill().and_then(|()| service.wait());
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.at("log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("--- what podman said last\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        // Mounts that a container left would keep the directory.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for at in own.filter(|at| Path::new(at).starts_with(self.directory.path())) {
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
    }
}
