//! `rung logs` and `rung events`.

use std::time::Duration;

use anyhow::Context as _;
use jiff::civil;
use jiff::{Timestamp, Zoned};
use rung_api::client::EventStream;
use rung_api::wire::{LogLine, LogQuery};
use rung_api::{Client, ClientError};
use rung_model::appfile::values;
use rung_model::{AppName, RunId};

use super::Session;
use crate::args::{EventsArgs, LogsArgs};
use crate::edge::{Exit, Hinted};
use crate::follow::may_pass;
use crate::note;
use crate::render::stream::{event, log_line};
use crate::render::time::Clock;

/// What fits a few screens; more is asked for with `--tail` or `--since`.
const TAIL: usize = 100;
/// One break is a restart; so many without a line between are worth a word.
const BREAKS_TOLD: u32 = 4;
/// Between two attempts to go on with a stream that broke.
const RETRY: Duration = Duration::from_millis(500);

pub async fn logs(session: &mut Session<'_>, args: LogsArgs) -> anyhow::Result<Exit> {
    let since = args.since.as_deref().map(|text| moment(text, &session.screen.clock())).transpose()?;
    let mut app = session.app().await?;
    let run = match args.build {
        Some(release) => {
            let build = super::releases::build_of(session, &app, release).await?;
            // What was promoted was built for another environment.
            app = app_of(&build).unwrap_or(app);
            Some(build)
        }
        None => args.run,
    };
    let everything = since.is_some() || run.is_some();
    let mut query = LogQuery {
        app: None,
        service: args.service,
        instance: args.instance,
        run,
        since,
        tail: args.tail.or((!everything).then_some(TAIL)),
        follow: args.follow,
    };
    let context = || format!("reading the logs of {app}");
    let mut stream = session.client.logs(&app, &query).await.with_context(context)?;
    let (mut last, mut resumed_after) = (None, None);
    let mut outage = Outage::default();
    loop {
        match stream.next().await {
            Some(Ok(line)) => {
                outage = Outage::default();
                // After a break the lines of the last moment come again.
                if resumed_after.is_none_or(|after| line.at > after) {
                    last = last.max(Some(line.at));
                    session.screen.show_one(&line, log_line)?;
                }
            }
            None if !args.follow => {
                if last.is_none() {
                    // Not on the standard output: that is the log.
                    note!("{}", nothing(&app, &query));
                }
                return Ok(Exit::Done);
            }
            Some(Err(error)) if !(args.follow && may_pass(&error)) => {
                return Err(error).with_context(context);
            }
            broken => {
                if let Some(Err(error)) = broken {
                    outage.tell(&error);
                }
                resumed_after = last;
                query.since = last.or(query.since);
                query.tail = None;
                stream = reopened(&session.client, &app, &query, &mut outage).await.with_context(context)?;
            }
        }
    }
}

/// The app that a run's id begins with.
fn app_of(run: &RunId) -> Option<AppName> {
    AppName::new(run.as_str().split('.').next()?).ok()
}

/// An empty answer is said to be one: silence could be anything.
fn nothing(app: &AppName, query: &LogQuery) -> String {
    let of = match (&query.run, &query.instance, &query.service) {
        (Some(run), _, _) => format!("run {run}"),
        (None, Some(instance), _) => format!("instance {instance}"),
        (None, None, Some(service)) => format!("{app}'s service {service}"),
        (None, None, None) => app.to_string(),
    };
    match query.since {
        _ if query.tail == Some(0) => format!("no line of {of} was asked for"),
        Some(_) => format!("{of} has logged nothing since then"),
        None => format!("{of} has logged nothing yet"),
    }
}

/// While a stream that is followed can't be had: told once, when it lasts.
#[derive(Debug, Default)]
struct Outage {
    breaks: u32,
}

impl Outage {
    fn tell(&mut self, error: &ClientError) {
        self.breaks += 1;
        if self.breaks == BREAKS_TOLD {
            note!("the logs can't be followed at the moment, trying on: {error}");
        }
    }
}

/// Goes on with a stream that broke, once the server is back.
async fn reopened(
    client: &Client,
    app: &AppName,
    query: &LogQuery,
    outage: &mut Outage,
) -> Result<EventStream<LogLine>, ClientError> {
    loop {
        tokio::time::sleep(RETRY).await;
        match client.logs(app, query).await {
            Err(error) if may_pass(&error) => outage.tell(&error),
            opened => return opened,
        }
    }
}

pub async fn events(session: &mut Session<'_>, args: &EventsArgs) -> anyhow::Result<Exit> {
    let app = match (crate::app::said(session.global)?, &session.global.environment) {
        (None, Some(_)) => Some(session.app().await?),
        (said, _) => said,
    };
    let mut last = 0;
    loop {
        let mut stream = match session.client.events(app.as_ref(), args.follow).await {
            Ok(stream) => stream,
            Err(error) if last > 0 && may_pass(&error) => {
                tokio::time::sleep(RETRY).await;
                continue;
            }
            Err(error) => return Err(error).context("reading the events"),
        };
        let mut all = Vec::new();
        while let Some(record) = stream.next().await {
            match record {
                Ok(record) if record.sequence <= last => {}
                Ok(record) => {
                    last = record.sequence;
                    match args.follow {
                        true => session.screen.show_one(&record, event)?,
                        false => all.push(record),
                    }
                }
                Err(error) if args.follow && may_pass(&error) => break,
                Err(error) => return Err(error).context("reading the events"),
            }
        }
        // What other servers have told came a little later, or much later after they were away.
        all.sort_by_key(|record| record.at);
        for record in &all {
            session.screen.show_one(record, event)?;
        }
        if !args.follow {
            // Of one that is gone there are events; of one that never was there are none.
            if let Some(app) = app.as_ref().filter(|_| last == 0) {
                let asked = session.client.app(app).await;
                asked.with_context(|| format!("looking for events of {app}"))?;
            }
            return Ok(Exit::Done);
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Reads `10m` (ago), `14:00` (the last time it was), `2026-03-01 14:00`, or a time with its zone.
fn moment(text: &str, clock: &Clock) -> anyhow::Result<Timestamp> {
    let wrong = || {
        Hinted::usage(format!("{text:?} is not a time"), "write it like 10m, 14:00 or \"2026-03-01 14:00\"")
    };
    if let Ok(ago) = values::duration(text) {
        return clock.now.checked_sub(ago).map_err(|_| wrong().into());
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let now = clock.now.to_zoned(clock.zone.clone());
    let zoned = |at: civil::DateTime| -> Result<Zoned, Hinted> {
        at.to_zoned(clock.zone.clone()).map_err(|_| wrong())
    };
    // A time alone: jiff would take one out of a longer text, too.
    if let (false, Ok(time)) = (text.contains('-'), text.parse::<civil::Time>()) {
        let today = zoned(now.date().to_datetime(time))?;
        let past = if today.timestamp() > clock.now {
            zoned(now.date().yesterday().map_err(|_| wrong())?.to_datetime(time))?
        } else {
            today
        };
        return Ok(past.timestamp());
    }
    let at = text.parse::<civil::DateTime>().map_err(|_| wrong())?;
    Ok(zoned(at)?.timestamp())
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    #[test]
    fn an_empty_answer_is_said_to_be_one() {
        let shop = AppName::new("shop").unwrap();
        let query = LogQuery { run: Some("shop-run-1".parse().unwrap()), ..LogQuery::default() };
        assert_eq!(nothing(&shop, &query), "run shop-run-1 has logged nothing yet");
        let query = LogQuery { since: Some(Timestamp::UNIX_EPOCH), ..LogQuery::default() };
        assert_eq!(nothing(&shop, &query), "shop has logged nothing since then");
    }

    #[test]
    fn times_are_read_as_people_say_them() {
        let clock = Clock {
            now: "2026-03-04T10:00:00Z".parse().unwrap(),
            zone: TimeZone::fixed(jiff::tz::offset(1)),
        };
        let at = |text: &str| moment(text, &clock).unwrap_or_else(|e| panic!("{text}: {e}")).to_string();
        assert_eq!(at("10m"), "2026-03-04T09:50:00Z");
        assert_eq!(at("09:30"), "2026-03-04T08:30:00Z");
        assert_eq!(at("14:00"), "2026-03-03T13:00:00Z", "14:00 has not been today");
        assert_eq!(at("2026-03-01 14:00"), "2026-03-01T13:00:00Z");
        assert_eq!(at("2026-03-01T14:00:00Z"), "2026-03-01T14:00:00Z");
        assert!(moment("yesterday", &clock).is_err());
    }
}
