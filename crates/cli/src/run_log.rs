//! The log of one run: its lines as they come, and to the last one when it has ended.

use std::time::Duration;

use jiff::Timestamp;
use rung_api::client::EventStream;
use rung_api::wire::{LogLine, LogQuery};
use rung_api::{Client, ClientError};
use rung_model::{AppName, RunId};

use crate::note;

/// Between two attempts to take up a log that broke off.
const RETRY: Duration = Duration::from_millis(250);
/// How long the next line of a log that is there may take.
const LINE_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct RunLog {
    client: Client,
    app: AppName,
    run: RunId,
    stream: Option<EventStream<LogLine>>,
    /// The moment of the last line that was given, and how many of that moment were.
    given: Option<(Timestamp, usize)>,
    /// So many lines of that moment come again, for a log is taken up by time.
    again: usize,
}

impl RunLog {
    pub fn new(client: &Client, app: &AppName, run: &RunId) -> Self {
        let (client, app, run) = (client.clone(), app.clone(), run.clone());
        Self { client, app, run, stream: None, given: None, again: 0 }
    }

    pub fn run(&self) -> &RunId {
        &self.run
    }

    /// The next line; waits for ever when none comes, also for a log that can't be read yet.
    pub async fn next(&mut self) -> LogLine {
        loop {
            if self.stream.is_none() {
                self.stream = self.ask(true).await.ok();
            }
            let next = match &mut self.stream {
                Some(stream) => stream.next().await,
                None => None,
            };
            match next {
                Some(Ok(line)) if self.is_new(&line) => return line,
                Some(Ok(_)) => {}
                Some(Err(_)) | None => {
                    self.stream = None;
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Shows the lines that [`RunLog::next`] has not given, of a run that has ended.
    ///
    /// # Errors
    /// Those of `show`. A log that can't be read is told.
    pub async fn rest(mut self, mut show: impl FnMut(&LogLine) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let why = match self.ask(false).await {
            Ok(mut rest) => loop {
                match tokio::time::timeout(LINE_WITHIN, rest.next()).await {
                    Ok(Some(Ok(line))) if self.is_new(&line) => show(&line)?,
                    Ok(Some(Ok(_))) => {}
                    Ok(None) => return Ok(()),
                    Ok(Some(Err(error))) => break error.to_string(),
                    Err(_) => break "the server sends no more of it".to_owned(),
                }
            },
            Err(error) => error.to_string(),
        };
        note!(
            "not all of the output of {} is here: {why}; `rung logs --run {}` shows it",
            self.run,
            self.run
        );
        Ok(())
    }

    async fn ask(&mut self, follow: bool) -> Result<EventStream<LogLine>, ClientError> {
        let (since, again) = self.given.unzip();
        self.again = again.unwrap_or_default();
        let query = LogQuery { run: Some(self.run.clone()), since, follow, ..LogQuery::default() };
        self.client.logs(&self.app, &query).await
    }

    /// Whether it was not given before.
    fn is_new(&mut self, line: &LogLine) -> bool {
        match &mut self.given {
            Some((at, _)) if *at == line.at && self.again > 0 => {
                self.again -= 1;
                return false;
            }
            Some((at, count)) if *at == line.at => *count += 1,
            given => *given = Some((line.at, 1)),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use rung_api::wire::Stream;

    use super::*;

    fn line(second: i64, text: &str) -> LogLine {
        LogLine {
            at: Timestamp::from_second(second).expect("a moment"),
            source: "shop.d1-build".to_owned(),
            service: None,
            stream: Stream::Stdout,
            text: text.to_owned(),
            partial: false,
        }
    }

    #[test]
    fn lines_that_come_again_after_a_break_are_given_once_and_those_of_the_same_moment_are_not_lost() {
        let client = Client::new("http://127.0.0.1:1".parse().expect("an address"), None);
        let (app, run) =
            (AppName::new("shop").expect("a name"), RunId::new("shop.d1-build").expect("a name"));
        let mut log = RunLog::new(&client, &app, &run);
        assert!([line(1, "one"), line(2, "two"), line(2, "three")].iter().all(|line| log.is_new(line)));
        // The log is taken up from the second on.
        for _ in 0..2 {
            log.again = log.given.expect("lines were given").1;
            let taken_up = [line(2, "two"), line(2, "three")].map(|line| log.is_new(&line));
            assert_eq!(taken_up, [false; 2], "given twice");
        }
        assert!(log.is_new(&line(2, "four")), "a line of the moment of the break was lost");
        assert!(log.is_new(&line(3, "five")));
    }
}
