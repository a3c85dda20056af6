//! Following a deployment: its phases as they end, the lines of its builds, and what it came to.

use crate::note;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rung_api::client::EventStream;
use rung_api::wire::{LogLine, LogQuery, Started};
use rung_api::{Client, ClientError, Code};
use rung_model::{AppName, Deployment, DeploymentNumber, Outcome, Phase, RunId, ServiceName};

use crate::edge::Exit;
use crate::render::progress::{self, PhaseLine};
use crate::render::stream::run_line;
use crate::screen::Screen;

/// What Ctrl-C does while a deployment is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInterrupt {
    /// Stop following; the deployment goes on, and the person is told so.
    Detach,
    /// Nothing here: the caller runs the platform and stops it.
    LeaveToCaller,
}

/// How long one long poll waits. Shorter than what proxies between cut off.
const POLL: Duration = Duration::from_secs(20);
/// A server that is upgraded or restarted is back within this, and the deployment goes on.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts to reach it.
const RETRY: Duration = Duration::from_millis(250);
/// An upgrade is over sooner; beyond it the person wants to know what is waited for.
const SILENCE_SAID_AFTER: Duration = Duration::from_secs(2);
/// The line that moves shows tenths of a second.
const TICK: Duration = Duration::from_millis(100);
/// How often it is asked whether instances wait for room: a deployment that goes well is over before.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(3);
/// How long the last lines of a build may take to arrive after its end was seen.
const LAST_LINES: Duration = Duration::from_millis(300);

/// One deployment that is followed.
#[derive(Debug)]
pub struct Follow<'a> {
    pub client: &'a Client,
    pub app: &'a AppName,
    pub on_interrupt: OnInterrupt,
    /// Whether to follow to the end, or only say that it goes on.
    pub wait: bool,
}

impl Follow<'_> {
    /// Shows what became of a request that starts a deployment.
    ///
    /// # Errors
    /// The server can't be reached any more, or the output was closed.
    pub async fn settle(
        &self,
        started: Started,
        since: Instant,
        screen: &mut Screen,
    ) -> anyhow::Result<Exit> {
        match started {
            Started::Deployment { number, remarks, .. } => {
                for remark in remarks {
                    screen.say(&format!("  {}", crate::render::harmless(&remark)))?;
                }
                if self.wait {
                    return self.to_its_end(number, since, screen).await;
                }
                if screen.is_json() {
                    let deployment = self.client.deployment(self.app, number, 0, Duration::ZERO).await?;
                    screen.show(&deployment, |_, _, _| String::new())?;
                }
                screen
                    .say(&format!("deployment {number} of {} goes on; `rung status` shows it", self.app))?;
            }
            Started::Unchanged { release } => {
                if screen.is_json() {
                    screen.show(&started, |_, _, _| String::new())?;
                }
                let took = crate::render::time::span(since.elapsed());
                screen
                    .say(&format!("{} {release} is live already: nothing has changed ({took})", self.app))?;
            }
            Started::Kept => {
                if screen.is_json() {
                    screen.show(&started, |_, _, _| String::new())?;
                }
                screen.say(&format!(
                    "kept for the first deployment: nothing of {} is deployed yet",
                    self.app
                ))?;
            }
        }
        Ok(Exit::Done)
    }

    /// Follows a deployment to its end and says what it came to.
    ///
    /// # Errors
    /// The server can't be reached any more, or the output was closed.
    pub async fn to_its_end(
        &self,
        number: DeploymentNumber,
        since: Instant,
        screen: &mut Screen,
    ) -> anyhow::Result<Exit> {
        let followed = self.watch(number, screen).await;
        screen.still();
        let Some(deployment) = followed? else {
            screen.say(&format!(
                "\nno longer following: deployment {number} of {} goes on; `rung status` shows it, `rung cancel` stops it",
                self.app
            ))?;
            return Ok(Exit::Interrupted);
        };
        if screen.is_json() {
            screen.show(&deployment, |_, _, _| String::new())?;
        } else {
            let status = self.client.app(self.app).await.ok();
            screen.say(&progress::ending(&deployment, status.as_ref(), since.elapsed(), screen.paint))?;
        }
        Ok(match deployment.outcome() {
            Some(Outcome::Succeeded) => Exit::Done,
            Some(Outcome::RolledBack) => Exit::RolledBack,
            Some(Outcome::Failed) | None => Exit::Failed,
        })
    }

    /// The deployment once it has ended; `None` when the person stopped following.
    async fn watch(
        &self,
        number: DeploymentNumber,
        screen: &mut Screen,
    ) -> anyhow::Result<Option<Deployment>> {
        let mut shown = Shown::default();
        let mut log = RunLog::default();
        let mut seen = 0;
        let mut room = Room::default();
        let mut look = tokio::time::interval_at(tokio::time::Instant::now() + LOOK_FOR_ROOM, LOOK_FOR_ROOM);
        let mut tick = tokio::time::interval(TICK);
        let interrupt = self.interrupted();
        tokio::pin!(interrupt);
        loop {
            let poll = self.poll(number, seen);
            tokio::pin!(poll);
            let deployment = loop {
                tokio::select! {
                    deployment = &mut poll => break deployment?,
                    line = log.next() => screen.say(&run_line(&line, screen.paint))?,
                    _ = look.tick() => room.look(self, screen).await?,
                    _ = tick.tick(), if screen.is_terminal() => shown.tick(screen),
                    () = &mut interrupt => return Ok(None),
                }
            };
            seen = deployment.timeline.len();
            if log.run != deployment.run || log.is_broken {
                log.drain(screen).await?;
                log.open(self.client, &deployment).await;
            }
            if deployment.has_ended() {
                log.drain(screen).await?;
            }
            shown.update(&deployment, screen)?;
            if deployment.has_ended() {
                return Ok(Some(deployment));
            }
        }
    }

    async fn interrupted(&self) {
        match self.on_interrupt {
            // Without a handler the signal ends the process, which detaches, too.
            OnInterrupt::Detach if tokio::signal::ctrl_c().await.is_ok() => {}
            _ => std::future::pending().await,
        }
    }

    /// One long poll, with patience for a server that is being restarted.
    async fn poll(&self, number: DeploymentNumber, seen: usize) -> Result<Deployment, ClientError> {
        let first = Instant::now();
        let mut silent_since: Option<Instant> = None;
        let mut said = false;
        loop {
            match self.client.deployment(self.app, number, seen, POLL).await {
                Err(error) if may_pass(&error) && first.elapsed() < PATIENCE + POLL => {
                    let silent = silent_since.get_or_insert_with(Instant::now).elapsed();
                    if silent >= SILENCE_SAID_AFTER && !std::mem::replace(&mut said, true) {
                        note!(
                            "the server does not answer; asking it again for a minute (the deployment goes on)"
                        );
                    }
                    tokio::time::sleep(RETRY).await;
                }
                answer => return answer,
            }
        }
    }
}

/// Why instances wait to be placed, as it was said last.
#[derive(Debug, Default)]
struct Room(BTreeMap<ServiceName, String>);

impl Room {
    /// Says what is new. A server that does not answer is the poll's to tell.
    async fn look(&mut self, follow: &Follow<'_>, screen: &mut Screen) -> anyhow::Result<()> {
        let Ok(status) = follow.client.app(follow.app).await else { return Ok(()) };
        for service in status.services {
            let Some(why) = service.unplaced else { continue };
            if self.0.get(&service.name) != Some(&why) {
                screen.say(&format!("  {} waits: {}", service.name, crate::render::harmless(&why)))?;
                self.0.insert(service.name, why);
            }
        }
        Ok(())
    }
}

/// Whether the server is likely to answer later.
pub fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { .. } | ClientError::Broken { .. } | ClientError::BrokenOff { .. } => true,
        ClientError::Api(body) => body.code == Code::Unavailable,
        ClientError::NotUnderstood { .. } | ClientError::Untrusted { .. } | ClientError::NoTrust { .. } => {
            false
        }
    }
}

/// What was already shown of a deployment.
#[derive(Debug, Default)]
struct Shown {
    ended: BTreeSet<Phase>,
    current: Option<PhaseLine>,
}

impl Shown {
    fn update(&mut self, deployment: &Deployment, screen: &mut Screen) -> anyhow::Result<()> {
        self.current = None;
        for line in progress::phases(deployment) {
            match line.ended {
                Some(ended) if self.ended.insert(line.phase) => {
                    screen.say(&progress::phase_line(&line, ended, screen.paint))?;
                }
                Some(_) => {}
                None => self.current = Some(line),
            }
        }
        self.tick(screen);
        Ok(())
    }

    fn tick(&self, screen: &mut Screen) {
        match &self.current {
            Some(line) => screen.moving(&progress::moving_line(line, Timestamp::now())),
            None => screen.still(),
        }
    }
}

/// The output of the run that a deployment waits for.
#[derive(Debug, Default)]
struct RunLog {
    run: Option<RunId>,
    stream: Option<EventStream<LogLine>>,
    /// It stopped in the middle, and is taken up again with the next change of the deployment.
    is_broken: bool,
    last: Option<Timestamp>,
    /// What was shown before a break; the lines of its last moment come again.
    resumed_after: Option<Timestamp>,
}

impl RunLog {
    async fn open(&mut self, client: &Client, deployment: &Deployment) {
        if self.run != deployment.run {
            self.last = None;
        }
        (self.is_broken, self.resumed_after) = (false, self.last);
        let Some(run) = deployment.run.clone().filter(|_| !deployment.has_ended()) else {
            self.run.clone_from(&deployment.run);
            return;
        };
        let query =
            LogQuery { run: Some(run.clone()), since: self.last, follow: true, ..LogQuery::default() };
        // A log that can't be read yet is asked for again with the next change; the deployment matters more.
        if let Ok(stream) = client.logs(&deployment.app, &query).await {
            self.run = Some(run);
            self.stream = Some(stream);
        }
    }

    /// The next line; waits for ever when there is no log.
    async fn next(&mut self) -> LogLine {
        while let Some(stream) = &mut self.stream {
            match stream.next().await {
                Some(Ok(line)) => {
                    if self.is_news(&line) {
                        return line;
                    }
                }
                ended => {
                    self.is_broken = ended.is_some();
                    self.stream = None;
                }
            }
        }
        std::future::pending().await
    }

    /// What was shown before a break is none, nor that the run has begun: its phase is on the screen.
    fn is_news(&mut self, line: &LogLine) -> bool {
        let is_new = self.resumed_after.is_none_or(|after| line.at > after);
        self.last = self.last.max(Some(line.at));
        is_new && !line.says_started()
    }

    /// Shows what is left of a run that has ended.
    async fn drain(&mut self, screen: &mut Screen) -> anyhow::Result<()> {
        let Some(mut stream) = self.stream.take() else { return Ok(()) };
        let end = tokio::time::Instant::now() + LAST_LINES;
        while let Ok(Some(Ok(line))) = tokio::time::timeout_at(end, stream.next()).await {
            if self.is_news(&line) {
                screen.say(&run_line(&line, screen.paint))?;
            }
        }
        Ok(())
    }
}
