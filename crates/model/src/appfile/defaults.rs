//! Every default and every bound of the app file, once, each with its reason.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Enough for a dependency install and an asset build on a small machine; a build that hangs is noticed the same hour.
pub const BUILD_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Migrations of a first app take seconds; ten minutes leave room for a big table.
pub const RELEASE_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Several rounds of start, grace and drain with the defaults below fit; a deployment that is stuck reverts before
/// the person has gone for a coffee.
pub const DEADLINE: Duration = Duration::from_secs(5 * 60);

/// One instance each: a first app often owns its state, and more is one `rung scale` away.
pub const INSTANCES: u32 = 1;

/// A failure is seen within a few seconds and the checks cost nothing worth measuring.
pub const HEALTH_INTERVAL: Duration = Duration::from_secs(2);

/// An instance that needs two seconds for its own health page would not serve people either.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// Interpreted applications with many imports are up within ten seconds on a small machine; twice that.
pub const HEALTH_GRACE: Duration = Duration::from_secs(20);

/// One lost check is noise, two in a row are a fact.
pub const UNHEALTHY_AFTER: u32 = 2;

/// About ten seconds with the interval above: time for a garbage collection or a slow query to pass before the
/// instance loses what it holds in memory.
pub const RESTART_AFTER: u32 = 5;

/// Longer than nearly every request of a web application; uploads that take longer say so in the file.
pub const DRAIN: Duration = Duration::from_secs(30);

/// What Docker and Heroku users expect between SIGTERM and SIGKILL.
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// What nginx gives by default; slower answers should be jobs.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

/// About 64 MB of waiting connections at the worst: bounded, and far above what a single process serves at once.
pub const HOLD_REQUESTS: u32 = 1000;

/// Browsers and load testers wait this long without complaint.
pub const HOLD_TIME: Duration = Duration::from_secs(30);

/// An agent has 10,000 ports, and a handoff has both generations of a service running.
pub const INSTANCES_MAX: u32 = 1000;

/// More names than this are a platform of its own; the route document stays small.
pub const DOMAINS_MAX: usize = 100;

/// Every request walks the rules.
pub const ROUTES_MAX: usize = 100;

/// More kinds of processes than this is a mistake of a generator.
pub const SERVICES_MAX: usize = 100;

/// Each job has a record in the store and is looked at in every plan.
pub const JOBS_MAX: usize = 1000;

/// A night's job that starts in the morning is late and better than none; the day after, there is the next.
pub const JOB_START_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// What hangs is noticed before the next day's run of a daily job.
pub const JOB_TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// Short enough for a passing fault; it is doubled before each further try.
pub const JOB_RETRY_AFTER: Duration = Duration::from_secs(10);

/// With doubling pauses the tenth try is hours after the first.
pub const JOB_RETRIES_BOUNDS: RangeInclusive<i64> = 0..=10;

/// App files are written by people; the store keeps one with every release.
pub const FILE_BYTES_MAX: usize = 256 * 1024;

/// Linux gives a process 128 KiB for one variable; the rest is room for its name.
pub const ENV_VALUE_MAX: usize = 120 * 1024;

/// How many errors are shown; the first ones usually explain the others.
pub const ERRORS_MAX: usize = 50;

/// Checks more often than this load the machine more than they tell.
pub const INTERVAL_BOUNDS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// A loopback round trip takes less; an hour is longer than any check.
pub const CHECK_TIMEOUT_BOUNDS: RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(3600);

/// Zero is meaningful (do not wait at all); a day covers the longest start and the longest download.
pub const WAIT_BOUNDS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(24 * 3600);

/// Work that takes less than a second cannot be cut off usefully; a day covers the longest migration.
pub const WORK_BOUNDS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// Less than 4 MB does not hold a shell; 16 TB is more than any machine has.
pub const MEMORY_BOUNDS: RangeInclusive<u64> = 4_000_000..=16_000_000_000_000;

/// A volume is at least a file; a petabyte is more than a node has.
pub const VOLUME_BOUNDS: RangeInclusive<u64> = 1_000_000..=1_000_000_000_000_000;

/// Thousandths of a core. The kernel's scheduler gives no finer shares than a hundredth.
pub const CPU_BOUNDS: RangeInclusive<u32> = 10..=1_024_000;

/// Of `unhealthy_after` and `restart_after`.
pub const THRESHOLD_BOUNDS: RangeInclusive<i64> = 1..=1000;

/// Of `hold.max_requests`; zero holds none.
pub const HOLD_BOUNDS: RangeInclusive<i64> = 0..=100_000;

/// A person who went home comes back within a day; after that nobody is waited for any more.
pub const WAIT_AT_MOST: Duration = Duration::from_secs(24 * 3600);

/// Long enough to see in the graphs that something is wrong, and short enough that the memory comes back soon.
pub const KEEP_BLUEGREEN: Duration = Duration::from_secs(10 * 60);

/// What ends for want of something that it needs ends within its first seconds; what ends later has another reason more often
/// than its release.
pub const SETTLE: Duration = Duration::from_secs(10);

/// Of `settle`: what is seen later is for `watch`, or for a person.
pub const SETTLE_BOUNDS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

/// Of `watch`, `keep` and `wait_at_most`: a week is longer than a release should be in doubt.
pub const ROLLOUT_WAIT_BOUNDS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(7 * 24 * 3600);

/// Of a step's time: within less than a second nothing is seen.
pub const STEP_BOUNDS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);

/// More steps than this tell nothing more.
pub const STEPS_MAX: usize = 20;

/// Of `batch`; a service has at most a thousand instances.
pub const BATCH_BOUNDS: RangeInclusive<i64> = 1..=1000;

/// Nobody should be taken back for the errors of three requests, however convincing they are. With ten, a release that
/// fails every fifth request is found out within ten seconds at 50 requests a second and a share of 5 %.
pub const ABORT_REQUESTS: u64 = 10;

/// Of `abort_if.requests`.
pub const ABORT_REQUESTS_BOUNDS: RangeInclusive<i64> = 1..=1_000_000;

/// The method stays what it was, and browsers remember it.
pub const REDIRECT_STATUS: u16 = 308;

/// A route that takes no body at all is asked for by `methods`; more than a terabyte is nobody's request.
pub const MAX_BODY_BOUNDS: RangeInclusive<u64> = 1..=1_000_000_000_000;

/// Below, no browser could come; above, the ingress refuses it anyway.
pub const MAX_HEAD_BOUNDS: RangeInclusive<u64> = 1_000..=32_768;

/// As HTTP/2 and most servers would take them.
pub const HEADER_NAME_MAX: usize = 100;
pub const HEADER_VALUE_MAX: usize = 4096;

/// They are looked at one after the other.
pub const NETWORKS_MAX: usize = 200;

/// What browsers show when they ask for a password.
pub const REALM: &str = "restricted";

/// A preflight answered once holds for a page's visit; Firefox takes a day at most.
pub const CORS_AGE: Duration = Duration::from_secs(10 * 60);
pub const CORS_AGE_BOUNDS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(24 * 3600);
pub const CORS_METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

/// A page loads with a handful of requests at once.
pub const BURST_MIN: u32 = 10;
pub const BURST_BOUNDS: RangeInclusive<i64> = 1..=1_000_000;

/// All of them travel with each change of the routes.
pub const PAGE_MAX: usize = 64 * 1024;

/// Of `overload`: what an instance learns to bear is the bound, and not this number.
pub const OVERLOAD_MAX: u32 = 10_000;
pub const OVERLOAD_MAX_BOUNDS: RangeInclusive<i64> = 1..=100_000;
/// A burst; longer queues only make everybody wait.
pub const OVERLOAD_QUEUE: u32 = 100;
pub const OVERLOAD_QUEUE_BOUNDS: RangeInclusive<i64> = 0..=100_000;
/// Who waits longer for a page goes away.
pub const OVERLOAD_WAIT: Duration = Duration::from_secs(1);
