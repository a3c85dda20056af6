//! `rung top`: two readings and what lies between them, again and again.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use rung_api::wire::TrafficReport;
use rung_model::AppName;
use serde_json::json;

use super::Session;
use crate::args::TopArgs;
use crate::edge::Exit;
use crate::follow::may_pass;
use crate::rates::{Rates, between};
use crate::render::top::{Apps, lines, render};

/// A server that is upgraded or restarted is back sooner.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts to reach it.
const RETRY: Duration = Duration::from_millis(500);
/// Lines of a frame that are no rows: headings, what is left out, the line below.
const FRAME: usize = 9;

pub async fn top(session: &mut Session<'_>, args: &TopArgs) -> anyhow::Result<Exit> {
    let app = crate::app::named(session.global)?;
    let mut earlier = (read(session, app.as_ref(), Duration::ZERO).await?, Instant::now());
    session.screen.moving(&format!("counting requests for {} s", args.interval.as_secs_f64()));
    loop {
        tokio::time::sleep(args.interval).await;
        let later = (read(session, app.as_ref(), PATIENCE).await?, Instant::now());
        let rates = between(&earlier.0, &later.0, later.1 - earlier.1);
        session.screen.still();
        let apps = if app.is_some() { Apps::One } else { Apps::All };
        show(session, &rates, apps, args)?;
        if args.once {
            return Ok(Exit::Done);
        }
        earlier = later;
    }
}

/// Asks the server, with patience for one that is being restarted.
async fn read(
    session: &Session<'_>,
    app: Option<&AppName>,
    patience: Duration,
) -> anyhow::Result<TrafficReport> {
    let since = Instant::now();
    loop {
        match session.client.traffic(app).await {
            Err(error) if may_pass(&error) && since.elapsed() < patience => tokio::time::sleep(RETRY).await,
            answer => return answer.context("asking what the ingresses have counted"),
        }
    }
}

fn show(session: &mut Session<'_>, rates: &Rates, apps: Apps, args: &TopArgs) -> anyhow::Result<()> {
    let screen = &mut session.screen;
    if screen.is_json() {
        let mut frame = serde_json::to_value(rates)?;
        frame["at"] = json!(screen.clock().now);
        return if args.once {
            screen.show(&frame, |_, _, _| String::new())
        } else {
            screen.show_one(&frame, |_, _, _| String::new())
        };
    }
    if args.once {
        let text = render(rates, apps, usize::MAX, screen.paint);
        return screen.line(&text);
    }
    if let Some(height) = screen.height() {
        let text = render(rates, apps, height.saturating_sub(FRAME).max(2), screen.paint);
        let over = format!("over {:.1} s; Ctrl-C ends", rates.interval_ms as f64 / 1000.0);
        let over = screen.paint.dim(&over);
        return screen.redraw(&format!("{text}\n\n{over}"));
    }
    let lines = lines(rates, screen.paint, &screen.clock());
    lines.iter().try_for_each(|line| screen.line(line))
}
