//! How long to wait before the next start.

use std::time::Duration;

use rung_model::InstanceId;

/// So many exits without a healthy minute between are a crash loop.
pub const CRASH_LOOP: u32 = 5;
/// A life that was healthy for so long counts as a success; what comes after begins anew.
pub const HEALTHY_MINUTE: Duration = Duration::from_secs(60);

const FIRST: Duration = Duration::from_millis(100);
/// The slowest pace. Somebody who has mended the cause (a database that is back) waits half of it on average.
const SLOWEST: Duration = Duration::from_secs(30);

/// The pause after so many failures in a row. The first restart is at once: most crashes are alone.
pub fn pause(id: &InstanceId, failures: u32) -> Duration {
    let pause = match failures {
        0 | 1 => return Duration::ZERO,
        n if n >= CRASH_LOOP => SLOWEST,
        n => FIRST.saturating_mul(1 << (n - 2)).min(SLOWEST),
    };
    // Up to a fifth more, so that a hundred instances that fell together do not rise together. The spread comes from
    // the name: the same every time, which a simulation can replay.
    pause + pause.mul_f64(0.2 * spread(id.as_str(), failures))
}

/// FNV-1a, brought to the range from 0 to 1.
fn spread(name: &str, salt: u32) -> f64 {
    let hash = name
        .bytes()
        .chain(salt.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    f64::from((hash >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_a_crash_loop_goes_at_the_slowest_pace() {
        let id = InstanceId::new("shop-web-a1").unwrap();
        let pauses: Vec<u64> = (1..=6).map(|n| pause(&id, n).as_millis() as u64).collect();
        assert_eq!(pauses[0], 0);
        assert!((100..=120).contains(&pauses[1]), "{pauses:?}");
        assert!((200..=240).contains(&pauses[2]), "{pauses:?}");
        assert!((30_000..=36_000).contains(&pauses[4]), "{pauses:?}");
        let other = InstanceId::new("shop-web-a2").unwrap();
        assert_ne!(pause(&other, 5), pause(&id, 5), "two instances start again at the same moment");
    }
}
