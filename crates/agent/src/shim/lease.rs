//! The shim's side of a lease: an alarm by a clock that counts while the machine sleeps, too.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

use crate::shim::protocol::Lease;

/// Time since the machine was started, sleep included.
pub fn boot_now() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    Duration::from(now.expect("this clock is always there"))
}

#[derive(Debug)]
pub struct Alarm {
    timer: TimerFd,
    until: Option<Duration>,
    grace: Duration,
}

impl Alarm {
    pub fn new(lease: Option<Lease>) -> std::io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        let mut alarm = Self { timer, until: None, grace: Duration::ZERO };
        if let Some(lease) = lease {
            alarm.set(lease)?;
        }
        Ok(alarm)
    }

    /// Sets it anew. One that is said later may have been asked for earlier: the later end counts.
    pub fn set(&mut self, lease: Lease) -> std::io::Result<()> {
        let until = lease.until_boot_ms.map(Duration::from_millis);
        if until.is_some() && until <= self.until {
            return Ok(());
        }
        (self.until, self.grace) = (until, Duration::from_millis(lease.grace_ms));
        match until {
            // A time of zero would switch it off.
            Some(until) => {
                let at = TimeSpec::from_duration(until.max(Duration::from_millis(1)));
                self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            }
            None => self.timer.unset()?,
        }
        Ok(())
    }

    /// Readable when the lease is over.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// The grace period of what shall be stopped, if the lease is over; once.
    pub fn is_over(&mut self) -> Option<Duration> {
        self.until.filter(|until| boot_now() >= *until)?;
        self.until = None;
        let _ = self.timer.unset();
        Some(self.grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(until: Duration) -> Lease {
        Lease { until_boot_ms: Some(until.as_millis() as u64), grace_ms: 7 }
    }

    #[test]
    fn a_lease_that_was_asked_for_earlier_shortens_nothing() {
        let now = boot_now();
        let mut alarm = Alarm::new(Some(lease(now + Duration::from_secs(60)))).unwrap();
        alarm.set(lease(now.saturating_sub(Duration::from_secs(1)))).unwrap();
        assert_eq!(alarm.is_over(), None, "an old answer ended it");
    }

    #[test]
    fn it_is_over_once_and_never_without_an_end() {
        let mut alarm = Alarm::new(Some(lease(boot_now()))).unwrap();
        assert_eq!(alarm.is_over(), Some(Duration::from_millis(7)));
        assert_eq!(alarm.is_over(), None, "it was said twice");
        let mut alarm = Alarm::new(Some(lease(boot_now() + Duration::from_secs(60)))).unwrap();
        alarm.set(Lease { until_boot_ms: None, grace_ms: 0 }).unwrap();
        assert_eq!(alarm.is_over(), None);
    }
}
