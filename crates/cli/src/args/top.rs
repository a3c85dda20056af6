//! What passes through the ingresses.

use std::time::Duration;

use clap::Args;

#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    /// Show one interval and end
    #[arg(long)]
    pub once: bool,
    /// How long the requests are counted that are shown together, from 1s on
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    pub interval: Duration,
}

/// Ingresses tell what they have counted once a second.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = super::time(text)?;
    let fits = (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&interval);
    if fits { Ok(interval) } else { Err("an interval is 1s at least, and 1h at most".to_owned()) }
}
