//! The machine that was measured on.

use std::fs::read_to_string;

pub fn describe() -> String {
    let field = |file: &str, name: &str| {
        let text = read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once([':', '='])
            .map_or(String::new(), |(_, value)| value.trim().trim_matches('"').to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory: u64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{cores} cores ({}), {:.0} GB of memory, {}, Linux {}",
        field("/proc/cpuinfo", "model name"),
        memory as f64 / 1e6,
        field("/etc/os-release", "PRETTY_NAME"),
        // What follows the version is the maker's own name for its build.
        kernel.trim().split('-').next().unwrap_or_default()
    )
}
