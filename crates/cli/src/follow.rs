//! Following a deployment: its phases as they end, the lines of its builds, and what it came to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rung_api::wire::{AppStatus, LogLine, Started};
use rung_api::{Client, ClientError, Code};
use rung_model::{AppName, Deployment, DeploymentNumber, Outcome, Phase, RunId, ServiceName};

use crate::edge::Exit;
use crate::note;
use crate::render::progress::{self, PhaseLine};
use crate::render::stream::run_line;
use crate::run_log::RunLog;
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
        let mut logs = RunLogs::default();
        let mut seen = 0;
        let mut room = Room::default();
        let looked = self.look_for_room();
        tokio::pin!(looked);
        let mut tick = tokio::time::interval(TICK);
        let interrupt = self.interrupted();
        tokio::pin!(interrupt);
        loop {
            let poll = self.poll(number, seen);
            tokio::pin!(poll);
            let deployment = loop {
                tokio::select! {
                    deployment = &mut poll => break deployment?,
                    line = logs.next() => show_line(&line, screen)?,
                    status = &mut looked => {
                        room.tell(status, screen)?;
                        looked.set(self.look_for_room());
                    }
                    _ = tick.tick(), if screen.is_terminal() => shown.tick(screen),
                    () = &mut interrupt => return Ok(None),
                }
            };
            seen = deployment.timeline.len();
            tokio::select! {
                updated = logs.update(self.client, &deployment, screen) => updated?,
                () = &mut interrupt => return Ok(None),
            }
            shown.update(&deployment, screen)?;
            if deployment.has_ended() {
                return Ok(Some(deployment));
            }
        }
    }

    /// After a while, what the app's status is then. A server that does not answer is the poll's to tell.
    async fn look_for_room(&self) -> Option<AppStatus> {
        tokio::time::sleep(LOOK_FOR_ROOM).await;
        self.client.app(self.app).await.ok()
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
    /// Says what is new.
    fn tell(&mut self, status: Option<AppStatus>, screen: &mut Screen) -> anyhow::Result<()> {
        for service in status.into_iter().flat_map(|status| status.services) {
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

/// The output of a deployment's runs.
#[derive(Debug, Default)]
struct RunLogs {
    /// Runs whose output was shown to its end.
    done: BTreeSet<RunId>,
    current: Option<RunLog>,
}

impl RunLogs {
    /// Shows what is left of the runs that have ended, also of those that nobody saw begin, and goes on with the
    /// present one.
    async fn update(
        &mut self,
        client: &Client,
        deployment: &Deployment,
        screen: &mut Screen,
    ) -> anyhow::Result<()> {
        let present = deployment.run.as_ref().filter(|_| !deployment.has_ended());
        for run in deployment.runs.iter().filter(|run| Some(*run) != present) {
            if self.done.insert(run.clone()) {
                let log = self.log(client, deployment, run);
                log.rest(|line| show_line(line, screen)).await?;
            }
        }
        if let Some(run) = present {
            self.current = Some(self.log(client, deployment, run));
        }
        Ok(())
    }

    fn log(&mut self, client: &Client, deployment: &Deployment, run: &RunId) -> RunLog {
        let followed = self.current.take_if(|log| log.run() == run);
        followed.unwrap_or_else(|| RunLog::new(client, &deployment.app, run))
    }

    /// The next line; waits for ever when no run goes on.
    async fn next(&mut self) -> LogLine {
        match &mut self.current {
            Some(log) => log.next().await,
            None => std::future::pending().await,
        }
    }
}

/// That a run has begun is no news: its phase is on the screen.
fn show_line(line: &LogLine, screen: &mut Screen) -> anyhow::Result<()> {
    if line.says_started() { Ok(()) } else { screen.say(&run_line(line, screen.paint)) }
}
