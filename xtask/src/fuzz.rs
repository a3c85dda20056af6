//! The fuzz targets of `fuzz/`, for minutes: bytes that find new ways through the parsers of the ingress, until one of the
//! promises that they are checked against is broken.
//!
//! Counters in every branch come from a pass of the usual compiler; an address sanitizer, which would want a nightly one on
//! some machines, is left out, for the code under test is free of `unsafe`. What was found on the way is kept in
//! `fuzz/corpus/` for the next time, what broke a promise in `fuzz/artifacts/`.

use std::path::Path;

use anyhow::Context;

use crate::process;

const TARGETS: [&str; 3] = ["request_head", "answer_head", "chunked_body"];

/// For each target.
const SECONDS: u32 = 120;

/// A head may have 32 KiB; what is particular about heads shows in short ones sooner.
const INPUT_MAX_BYTES: u32 = 2048;

/// Runs every target, and names those that found something.
pub fn run() -> anyhow::Result<()> {
    let mut troubles = Vec::new();
    for target in TARGETS {
        if let Err(error) = run_target(target) {
            troubles.push(format!("{error:#}"));
        }
    }
    anyhow::ensure!(troubles.is_empty(), "{}", troubles.join("; "));
    Ok(())
}

fn run_target(target: &str) -> anyhow::Result<()> {
    let [corpus, seeds] = ["corpus", "seeds"].map(|kind| Path::new("fuzz").join(kind).join(target));
    std::fs::create_dir_all(&corpus).with_context(|| format!("making the directory {}", corpus.display()))?;
    let mut command = process::cargo(&["fuzz", "run", "--sanitizer", "none", target]);
    command.arg(&corpus).arg(&seeds).arg("--");
    command.arg(format!("-max_total_time={SECONDS}")).arg(format!("-max_len={INPUT_MAX_BYTES}"));
    // A counter for each new input would be a thousand lines.
    command.args(["-dict=fuzz/http.dict", "-timeout=10", "-print_final_stats=1", "-verbosity=0"]);
    let found =
        || format!("{target}: what it was given is printed above, and kept in fuzz/artifacts/{target}");
    process::run(&mut command).with_context(found)
}
