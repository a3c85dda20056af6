//! What a deploy of 5 MB may cost here, in time of the processor: how long it takes depends on what else runs, and is
//! measured by `cargo xtask bench`. Generous, because tests run unoptimised.

use std::fs;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use rung_artifact::{Limits, check, digest_source, pack_source, unpack};
use tempfile::TempDir;

/// Of this process so far.
fn processor_time() -> Duration {
    let used = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("the kernel counts it");
    used.into()
}

#[test]
fn five_megabytes_in_two_hundred_files_cost_milliseconds() {
    let app = TempDir::new().unwrap();
    for n in 0..200u32 {
        let dir = app.path().join(format!("d{}", n % 20));
        fs::create_dir_all(&dir).unwrap();
        let content: Vec<u8> = (0..25_000u32).map(|i| (i.wrapping_mul(n + 1) >> 3) as u8).collect();
        fs::write(dir.join(format!("f{n}")), content).unwrap();
    }
    let home = TempDir::new().unwrap();
    let mut archive = Vec::new();
    let best = |mut act: Box<dyn FnMut() + '_>| {
        (0..3)
            .map(|_| {
                let before = processor_time();
                act();
                processor_time() - before
            })
            .min()
            .unwrap()
    };
    let digest = best(Box::new(|| drop(digest_source(app.path()).unwrap())));
    let pack = best(Box::new(|| {
        archive.clear();
        pack_source(app.path(), &mut archive).unwrap();
    }));
    let checked = best(Box::new(|| drop(check(&archive[..], Limits::source()).unwrap())));
    let mut count = 0;
    let unpacked = best(Box::new(|| {
        count += 1;
        unpack(&archive[..], &home.path().join(format!("t{count}")), Limits::source()).unwrap();
    }));
    println!("digest {digest:?}, pack {pack:?}, check {checked:?}, unpack {unpacked:?}");
    for (act, took) in [("digest", digest), ("pack", pack), ("check", checked), ("unpack", unpacked)] {
        assert!(took < Duration::from_millis(500), "to {act} 5 MB took {took:?}");
    }
}
