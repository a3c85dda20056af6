//! A platform of a test's own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use rung_api::wire::{AppStatus, InstanceStatus};
use rung_model::deployment::Deployment;
use rung_model::observed::InstanceState;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::binary::rung_binary;
use crate::ending;
use crate::http::{self, Answer, Connection};
use crate::process::{self, Life};
use crate::said::Said;
use crate::wait::eventually;

/// How a platform is started.
#[derive(Debug, Default)]
pub struct Start {
    /// What `rung up` gets for a directory.
    pub directory: Option<PathBuf>,
    pub options: Vec<String>,
    /// Another binary than the one that was built.
    pub binary: Option<PathBuf>,
    /// Another data directory than one of its own in the place for temporary files.
    pub data: Option<PathBuf>,
    /// The user that it runs as; needs root.
    pub user: Option<u32>,
    /// More variables of its environment.
    pub environment: Vec<(String, String)>,
}

/// A running `rung up`, and everything that belongs to it. Dropping it ends all of it.
#[derive(Debug)]
pub struct Rung {
    own: Option<TempDir>,
    data: PathBuf,
    binary: PathBuf,
    user: Option<u32>,
    environment: Vec<(String, String)>,
    child: Option<Child>,
    /// Whatever it said, line by line, over all its starts.
    said: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

/// What `rung up` leaves for the CLI.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Access {
    pub api: String,
    pub token: String,
    pub http: SocketAddr,
    pub pid: u32,
}

impl Rung {
    /// A platform without an app.
    pub fn start() -> Self {
        Self::start_with(Start::default())
    }

    /// `rung up DIRECTORY`.
    pub fn start_with(start: Start) -> Self {
        let own = start
            .data
            .is_none()
            .then(|| tempfile::Builder::new().prefix("rung-e2e-").tempdir().expect("a temporary directory"));
        let data = start.data.unwrap_or_else(|| own.as_ref().expect("made above").path().join("data"));
        let binary = start.binary.unwrap_or_else(|| rung_binary().to_owned());
        if let (Some(user), Some(own)) = (start.user, &own) {
            std::os::unix::fs::chown(own.path(), Some(user), Some(user))
                .expect("root gives a directory away");
        }
        let (user, environment) = (start.user, start.environment);
        let (said, readers) = Default::default();
        let mut rung = Self { own, data, binary, user, environment, child: None, said, readers };
        rung.up(start.directory.as_deref(), &start.options);
        rung
    }

    /// Starts it again on the same data, and waits until it serves its API.
    pub fn up(&mut self, directory: Option<&Path>, options: &[String]) {
        assert!(self.child.is_none(), "it runs already");
        let mut command = self.up_command(directory, options);
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("starting {}: {error}", self.binary.display()));
        self.readers.push(keep_lines(child.stdout.take().expect("it is piped"), self.said.clone()));
        self.readers.push(keep_lines(child.stderr.take().expect("it is piped"), self.said.clone()));
        let pid = child.id();
        self.child = Some(child);
        eventually("`rung up` serves its API", || {
            if let Some(status) = self.ended() {
                panic!("`rung up` ended with {status} instead of serving:\n{}", self.output());
            }
            let access = self.try_access()?;
            if access.pid != pid {
                return Err(format!("rung.json is of process {}", access.pid));
            }
            self.api_get("/v1/health").map(|_| ())
        });
    }

    /// `rung up` on this data, not yet started, with its output piped.
    pub fn up_command(&self, directory: Option<&Path>, options: &[String]) -> Command {
        let mut command = self.command();
        command.arg("up").args(directory).arg("--data").arg(&self.data);
        command.args(["--http", "127.0.0.1:0", "--api", "127.0.0.1:0"]).args(options);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        // A group of its own: a Ctrl-C that a person gives to the tests is not for it, and teardown sees to it.
        if let Some(user) = self.user {
            command
                .uid(user)
                .gid(user)
                .env("HOME", self.data.parent().expect("the data directory has a parent"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        ask_to_end_with_the_test(&mut command);
        command
    }

    /// `rung up` that is to refuse, to its end.
    #[track_caller]
    pub fn up_in_vain(&self, options: &[String]) -> Said {
        ending::run("rung up".to_owned(), self.up_command(None, options))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .env_remove("RUNG_API")
            .env_remove("RUNG_TOKEN")
            .env_remove("RUNG_ENV")
            .env("RUNG_DATA", &self.data);
        command.current_dir(self.data.parent().expect("the data directory has a parent"));
        command
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Runs a command of the CLI to its end.
    ///
    /// # Panics
    /// When it does not end in time, with what it has said until then.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> Said {
        ending::run(words(arguments), self.cli_command(arguments))
    }

    /// A command that gets this on its standard input, and its end.
    ///
    /// # Panics
    /// As [`Self::cli`] does.
    #[track_caller]
    pub fn cli_with_input(&self, arguments: &[&str], input: &[u8]) -> Said {
        ending::run_with_input(words(arguments), self.cli_command(arguments), input)
    }

    /// Values of secrets come by standard input or from a file only.
    #[track_caller]
    pub fn set_secret(&self, app: &str, name: &str, value: &str) -> Said {
        self.cli_with_input(&["secret", "set", name, "--app", app], value.as_bytes()).succeeds()
    }

    /// A command of the CLI, not yet started.
    pub fn cli_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// A deploy that goes on; what it says is not read.
    pub fn begin_deploy(&self, directory: &Path) -> Child {
        let directory = directory.to_str().expect("temporary directories have names in UTF-8");
        let mut deploy = self.cli_command(&["deploy", directory]);
        deploy.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starting rung deploy")
    }

    pub fn deploy(&self, directory: &Path) -> Said {
        self.cli(&["deploy", directory.to_str().expect("temporary directories have names in UTF-8")])
    }

    fn try_access(&self) -> Result<Access, String> {
        let text = std::fs::read(self.data.join("rung.json"))
            .map_err(|error| format!("reading rung.json: {error}"))?;
        serde_json::from_slice(&text).map_err(|error| format!("understanding rung.json: {error}"))
    }

    /// # Panics
    /// When there is no readable `rung.json`.
    pub fn access(&self) -> Access {
        self.try_access().expect("a platform that was started has left its rung.json")
    }

    /// Where apps are served.
    pub fn http(&self) -> SocketAddr {
        self.access().http
    }

    pub fn api_address(&self) -> SocketAddr {
        let api = self.access().api;
        api.trim_start_matches("http://").parse().expect("the API's address is one")
    }

    /// Asks the API as the CLI would; `Err` is what it said instead of 200.
    pub fn api_get(&self, path: &str) -> Result<Vec<u8>, String> {
        let access = self.try_access()?;
        let address = access
            .api
            .trim_start_matches("http://")
            .parse()
            .map_err(|error| format!("{}: {error}", access.api))?;
        let mut connection = Connection::open(address).map_err(|failure| format!("{failure:?}"))?;
        let bearer = format!("Bearer {}", access.token);
        let answer = connection.ask("GET", "rung", path, &[("Authorization", &bearer)], b"");
        match answer {
            Ok(answer) if answer.status == 200 => Ok(answer.body),
            Ok(answer) => Err(format!("{path}: {}: {}", answer.status, answer.text())),
            Err(failure) => Err(format!("{path}: {failure:?}")),
        }
    }

    fn api_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        serde_json::from_slice(&self.api_get(path)?).map_err(|error| format!("{path}: {error}"))
    }

    pub fn try_app(&self, app: &str) -> Result<AppStatus, String> {
        self.api_json(&format!("/v1/apps/{app}/status"))
    }

    pub fn deployments(&self, app: &str) -> Vec<Deployment> {
        self.api_json(&format!("/v1/apps/{app}/deployments")).unwrap_or_else(|instead| panic!("{instead}"))
    }

    /// # Panics
    /// When the app was never deployed.
    pub fn last_deployment(&self, app: &str) -> Deployment {
        let all = self.deployments(app);
        all.into_iter().max_by_key(|deployment| deployment.number).expect("the app was deployed")
    }

    /// # Panics
    /// When the API does not answer.
    pub fn app(&self, app: &str) -> AppStatus {
        self.try_app(app).unwrap_or_else(|instead| panic!("no status of {app}: {instead}"))
    }

    /// Every instance of an app, as the API shows it.
    pub fn instances(&self, app: &str) -> Vec<InstanceStatus> {
        self.app(app).services.into_iter().flat_map(|service| service.instances).collect()
    }

    /// Waits until exactly so many instances of a service are there, all healthy (and routed when it has a port).
    pub fn wait_until_settled(&self, app: &str, service: &str, count: usize) -> Vec<InstanceStatus> {
        eventually(&format!("{count} instances of {app}/{service} are healthy, and no other is left"), || {
            let status = self.try_app(app)?;
            let Some(service) = status.services.iter().find(|s| s.name.as_str() == service) else {
                return Err(format!("there is no such service: {status:?}"));
            };
            let fine = |i: &InstanceStatus| {
                i.state == InstanceState::Healthy && i.pid.is_some() && (i.routed || !service.port)
            };
            if service.instances.len() == count && service.instances.iter().all(fine) {
                Ok(service.instances.clone())
            } else {
                Err(format!("{:?}; {:?}", service.instances, status.problems))
            }
        })
    }

    /// The lives of an app's instances, by id.
    pub fn lives(&self, app: &str) -> BTreeMap<String, Life> {
        self.instances(app)
            .into_iter()
            .filter_map(|instance| Some((instance.id.to_string(), process::life(instance.pid?)?)))
            .collect()
    }

    /// Asks the app as a browser would.
    pub fn get(&self, app: &str, path: &str) -> Result<Answer, http::Failure> {
        http::get(self.http(), &format!("{app}.localhost"), path)
    }

    /// The text that the app answers with, once it answers with 200.
    pub fn page(&self, app: &str, path: &str) -> String {
        eventually(&format!("{app}{path} is served"), || match self.get(app, path) {
            Ok(answer) if answer.status == 200 => Ok(answer.text()),
            Ok(answer) => Err(format!("{}: {}", answer.status, answer.text())),
            Err(failure) => Err(format!("{failure:?}")),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// The ingress's process.
    pub fn ingress(&self) -> Life {
        let is_ingress = |life: &Life| process::describe(life.pid).contains(" ingress");
        eventually("the ingress runs", || {
            process::children(self.pid())
                .into_iter()
                .find(is_ingress)
                .ok_or_else(|| "no child of that name".to_owned())
        })
    }

    /// Everything that it said since its first start.
    pub fn output(&self) -> String {
        self.said.lock().expect("no reader panics while it holds this").join("\n")
    }

    /// Waits until it said this.
    pub fn wait_until_said(&self, text: &str) {
        eventually(&format!("`rung up` says {text:?}"), || {
            let output = self.output();
            if output.contains(text) { Ok(()) } else { Err(output) }
        });
    }

    /// `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().expect("asking for a child's status")
    }

    /// Ctrl-C, and waits for its end.
    pub fn interrupt(&mut self) -> ExitStatus {
        process::signal(self.pid(), libc::SIGINT);
        self.wait_for_end()
    }

    /// `kill -9` of the one process, and waits for its end.
    pub fn kill_9(&mut self) -> ExitStatus {
        process::kill_9(self.pid());
        self.wait_for_end()
    }

    pub fn wait_for_end(&mut self) -> ExitStatus {
        let status = eventually("`rung up` ends", || self.ended().ok_or_else(|| "it still runs".to_owned()));
        self.child = None;
        status
    }

    /// Every process that belongs to it.
    pub fn processes(&self) -> Vec<Life> {
        process::concerned_with(&self.data)
    }

    /// Waits until nothing of it is left.
    pub fn wait_until_nothing_is_left(&self) {
        eventually("no process of the platform is left", || {
            let left: Vec<_> = self.processes().iter().map(|life| process::describe(life.pid)).collect();
            if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
        });
    }

    /// Asks it to end, and ends what does not: bounded, and also while a failed test unwinds.
    fn tear_down(&mut self) {
        let deadline = Instant::now() + TEARDOWN;
        if let Some(child) = &mut self.child {
            process::signal(child.id(), libc::SIGTERM);
            while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(LOOK_EVERY); // tidy: teardown must not panic, so it can't use eventually
            }
            // An error means that it is gone.
            let _ = child.kill();
            let _ = child.wait();
        }
        // Shims outlive the agent by design: what is left after a failed story is ended by its pid. What one of them
        // started since is found by the next look.
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() >= deadline + TEARDOWN {
                break;
            }
            left.iter().for_each(|life| process::kill_9(life.pid));
            std::thread::sleep(LOOK_EVERY); // tidy: teardown must not panic, so it can't use eventually
        }
        for reader in self.readers.drain(..) {
            // Whoever held the pipe is gone; a reader that panicked has nothing more to say.
            let _ = reader.join();
        }
    }
}

/// Longer than the graceful end of every story's application.
pub(crate) const TEARDOWN: std::time::Duration = std::time::Duration::from_secs(15);
pub(crate) const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(10);

impl Drop for Rung {
    fn drop(&mut self) {
        self.tear_down();
        if std::thread::panicking() {
            eprintln!("--- what `rung up` said\n{}\n---", self.output());
            if std::env::var_os("RUNG_TEST_KEEP").is_some()
                && let Some(own) = self.own.take()
            {
                eprintln!("its data is kept in {}", own.keep().display());
            }
        }
    }
}

fn words(arguments: &[&str]) -> String {
    format!("rung {}", arguments.join(" "))
}

/// A test that is killed has no teardown: the kernel sends its platform a SIGTERM then.
pub(crate) fn ask_to_end_with_the_test(command: &mut Command) {
    #[allow(unsafe_code)]
    // SAFETY: between fork and exec there is one system call, which takes integers and allocates nothing.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

pub(crate) fn keep_lines(
    pipe: impl std::io::Read + Send + 'static,
    said: Arc<Mutex<Vec<String>>>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            said.lock()
                .expect("no reader panics while it holds this")
                .push(String::from_utf8_lossy(&line).into_owned());
        }
    })
}
