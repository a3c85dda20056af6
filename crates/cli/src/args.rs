//! The whole tree of commands, as clap reads it and as `docs/cli.md` shows it.

mod access;
mod audit;
mod certificate;
mod label;
mod maintenance;
mod secret;
mod top;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use access::{LoginArgs, TokenCommand, TokenCreateArgs};
pub use audit::{AuditArgs, AuditCommand, Seen};
pub use certificate::{CertificateCommand, CertificateEnableArgs};
use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
pub use label::LabelWord;
pub use maintenance::MaintenanceArgs;
use rung_api::join::JoinToken;
use rung_model::{
    AppName, DeploymentNumber, EnvironmentName, InstanceId, JobName, Label, NodeId, NodeRole, ReleaseCommand,
    ReleaseNumber, RunId, ServiceName,
};
use rung_trust::Fingerprint;
pub use secret::{AlphabetChoice, SecretCommand, SecretGenerateArgs, is_refused};
pub use top::TopArgs;

/// Runs a web application: supervised, balanced, and deployed without losing a request
#[derive(Debug, Parser)]
#[command(name = "rung", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 rolled back, 4 somebody else is deploying.")]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the process's arguments; on wrong usage prints what is wrong and exits with 2.
    pub fn from_process() -> Self {
        Self::parse_from(spelled(std::env::args_os().collect())).settled()
    }

    /// Reads words that are to be said later.
    ///
    /// # Errors
    /// What is wrong with them, in a line.
    pub fn from_words<'w>(words: impl IntoIterator<Item = &'w str>) -> Result<Self, String> {
        let words = std::iter::once("rung").chain(words);
        Self::try_parse_from(words).map(Self::settled).map_err(|error| {
            let said = error.to_string();
            said.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        })
    }

    /// `--api` means where the server is, and to `rung up` where it shall be.
    #[must_use]
    pub fn settled(mut self) -> Self {
        if let Command::Up(up) = &mut self.command {
            up.api = self.global.api.clone();
        }
        self
    }
}

/// `rung help deploy` is `rung deploy --help`, and `rung` alone asks for help, too.
fn spelled(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let asks = arguments.get(1).is_some_and(|first| first == "help");
    if asks {
        arguments.remove(1);
    }
    if asks || arguments.len() == 1 {
        arguments.push("--help".into());
    }
    arguments
}

/// What every command understands.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "For every command")]
pub struct Global {
    /// The data directory [default: /var/lib/rung for root, else ~/.local/share/rung]
    #[arg(long, global = true, value_name = "DIR", env = "RUNG_DATA", hide_env_values = true, value_hint = ValueHint::DirPath)]
    pub data: Option<PathBuf>,
    /// The app [default: what rung.toml in this directory says, else the only one on the server]
    #[arg(long, global = true, value_name = "NAME")]
    pub app: Option<AppName>,
    /// The app's environment, like staging [default: production]
    #[arg(long = "env", global = true, value_name = "NAME", env = "RUNG_ENV", hide_env_values = true)]
    pub environment: Option<EnvironmentName>,
    /// Print what was read as JSON (streams as one object a line)
    #[arg(long, global = true)]
    pub json: bool,
    /// Ask nothing
    #[arg(short = 'y', long, global = true)]
    pub yes: bool,
    /// Where the server is, like http://127.0.0.1:7864 [env: RUNG_API]; of `up`: the address to listen on
    // Not clap's `env`: RUNG_API is never an address to listen on.
    #[arg(long, global = true, value_name = "ADDR")]
    pub api: Option<String>,
    /// The token for it [default: what `rung up` left in its data directory]
    #[arg(long, global = true, value_name = "TOKEN", env = "RUNG_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The fingerprint of the authority that vouches for it, where it is https://: sha256:…
    #[arg(long, global = true, value_name = "SHA256", env = "RUNG_CA", hide_env_values = true)]
    pub ca: Option<Fingerprint>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the platform on this machine, and deploy a directory to it
    Up(UpArgs),
    /// Make this machine a node of a cluster, as what its token says; alone: start it again
    Join(JoinArgs),
    #[command(flatten)]
    Verb(Verb),
    /// Let a new binary take over the running platform; every instance goes on
    Upgrade(UpgradeArgs),
    /// Run the platform as a service of the machine
    #[command(subcommand)]
    Service(ServiceCommand),
    #[command(hide = true, disable_help_flag = true)]
    GitGate(RoleArgs),
    #[command(hide = true, disable_help_flag = true)]
    Ingress(RoleArgs),
    #[command(hide = true, disable_help_flag = true)]
    Shim(RoleArgs),
}

#[derive(Debug, Clone, Default, Args)]
pub struct UpArgs {
    /// The app's directory; without it, what ran before runs again
    #[arg(value_hint = ValueHint::DirPath)]
    pub directory: Option<PathBuf>,
    /// Where apps are served [default: 127.0.0.1:8080, or the next free port]
    #[arg(long, value_name = "ADDR")]
    pub http: Option<String>,
    /// Serve apps over TLS too [without ADDR: 127.0.0.1:8443, or the next free port]
    #[arg(long, value_name = "ADDR", num_args = 0..=1)]
    pub https: Option<Option<String>>,
    /// The address by which other machines reach this one, when --api is for others too [default: its own, or the first
    /// of its network]
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// The global `--api`: where the API is served; `None`: 127.0.0.1:7864, or the next free port.
    #[arg(skip)]
    pub api: Option<String>,
    /// An address of one of this machine's networks that moves between the machines whose ingress answers (keepalived)
    #[arg(long, value_name = "IP")]
    pub floating: Option<IpAddr>,
    /// A setting of the ingress, like hsts-s=31536000 or proxy-protocol-from=10.0.0.0/8; may be said several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = ingress_setting)]
    pub ingress: Vec<IngressSetting>,
    /// What services may ask for, like disk=ssd or zone=a; as often as needed
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<Label>,
    /// Where artifacts are kept: disk, or a bucket like s3://team/rung?endpoint=https://s3.example.com [default: where they
    /// were; at first on this disk]
    #[arg(long, value_name = "PLACE")]
    pub artifacts: Option<String>,
    /// Leave the instances running when it is stopped
    #[arg(long)]
    pub keep: bool,
}

impl UpArgs {
    pub const HTTP: &str = "127.0.0.1:8080";
    pub const HTTPS: &str = "127.0.0.1:8443";
    /// RUNG on a keypad.
    pub const API: &str = "127.0.0.1:7864";
}

#[derive(Debug, Clone, Args)]
pub struct JoinArgs {
    /// A server, like 10.0.0.1:7864
    #[arg(value_name = "SERVER", requires = "join_token")]
    pub server: Option<String>,
    /// What `rung node token` printed there
    // Not `token`, which is the person's of every command.
    #[arg(id = "join_token", value_name = "TOKEN")]
    pub token: Option<JoinToken>,
    /// This node's name [default: the machine's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<NodeId>,
    /// The address by which other nodes reach this one [default: the one from which it reaches the server]
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// The address to listen on for other nodes [default: all of them]
    #[arg(long, value_name = "IP")]
    pub listen: Option<IpAddr>,
    /// Of a server or an ingress: where apps are served [default: 0.0.0.0:8080, or the next free port]
    #[arg(long, value_name = "ADDR")]
    pub http: Option<String>,
    /// Of a server or an ingress: serve apps over TLS too
    #[arg(long, value_name = "ADDR", num_args = 0..=1)]
    pub https: Option<Option<String>>,
    /// Of a server or an ingress: an address of one of this machine's networks that moves between the machines whose ingress answers (keepalived)
    #[arg(long, value_name = "IP")]
    pub floating: Option<IpAddr>,
    /// Of a server or an ingress: one of its settings, like hsts-s=31536000; may be said several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = ingress_setting)]
    pub ingress: Vec<IngressSetting>,
    /// What services may ask for, like disk=ssd or zone=a; as often as needed
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<Label>,
    /// Of a server: where artifacts are kept, as for `rung up` [default: where they were; at first on its disk]
    #[arg(long, value_name = "PLACE")]
    pub artifacts: Option<String>,
    /// Leave the instances running when it is stopped
    #[arg(long)]
    pub keep: bool,
}

impl JoinArgs {
    /// As they are said when the machine starts again: what belongs to joining is left out.
    pub fn again(&self) -> Vec<String> {
        let mut said = Vec::new();
        let mut say = |option: &str, value: Option<String>| {
            said.extend(value.into_iter().flat_map(|value| [option.to_owned(), value]));
        };
        say("--address", self.address.map(|address| address.to_string()));
        say("--listen", self.listen.map(|address| address.to_string()));
        say("--http", self.http.clone());
        say("--https", self.https.clone().flatten());
        say("--floating", self.floating.map(|address| address.to_string()));
        say("--artifacts", self.artifacts.clone());
        self.ingress.iter().for_each(|setting| say("--ingress", Some(setting.to_string())));
        self.labels.iter().for_each(|label| say("--label", Some(label.to_string())));
        let flags = [("--https", self.https == Some(None)), ("--keep", self.keep)];
        said.extend(flags.into_iter().filter(|(_, is_said)| *is_said).map(|(flag, _)| flag.to_owned()));
        said
    }
}

/// An argument of `rung ingress`, as `name=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressSetting {
    pub name: String,
    pub value: String,
}

impl std::fmt::Display for IngressSetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

impl IngressSetting {
    /// As the process takes it.
    pub fn arguments(settings: &[Self]) -> Vec<String> {
        settings.iter().flat_map(|setting| [format!("--{}", setting.name), setting.value.clone()]).collect()
    }
}

fn ingress_setting(said: &str) -> Result<IngressSetting, String> {
    let way = "write it like hsts-s=31536000; docs/ingress.md lists them";
    let (name, value) = said.split_once('=').ok_or(way)?;
    let name = name.trim_start_matches("--");
    if name.is_empty() || value.is_empty() {
        return Err(way.to_owned());
    }
    Ok(IngressSetting { name: name.to_owned(), value: value.to_owned() })
}

impl JoinArgs {
    pub const HTTP: &str = "0.0.0.0:8080";

    pub fn listen(&self) -> IpAddr {
        self.listen.unwrap_or(IpAddr::from([0, 0, 0, 0]))
    }
}

#[derive(Debug, Clone, Subcommand)]
pub enum NodeCommand {
    /// Print the command by which a machine joins; it works once, for 15 minutes
    Token {
        /// What the machine shall be: worker, ingress, server
        #[arg(long, default_value = "worker")]
        role: NodeRole,
    },
    /// List nodes, and how they are
    List,
    /// Say what a node is, so that services can ask for it; `disk=` takes a label away
    Label {
        node: NodeId,
        /// disk=ssd, zone=a
        #[arg(value_name = "NAME=VALUE", required = true)]
        labels: Vec<LabelWord>,
    },
    /// Move everything off a node without losing a request, and wait until it runs nothing
    Drain {
        node: NodeId,
        /// End what can't be moved after this time, like 10m
        #[arg(long, value_name = "TIME", value_parser = time)]
        deadline: Option<Duration>,
        /// Do not wait until it is done
        #[arg(long)]
        no_wait: bool,
        /// Let it take instances again
        #[arg(long, conflicts_with_all = ["deadline", "no_wait"])]
        undo: bool,
    },
    /// Take a node out: nobody of the cluster speaks with it any more
    Remove {
        node: NodeId,
        /// Even while it runs instances; they are started elsewhere
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Clone, Args)]
pub struct UpgradeArgs {
    /// The binary that takes over [default: the one that runs this command]
    #[arg(value_hint = ValueHint::FilePath)]
    pub binary: Option<PathBuf>,
}

#[derive(Debug, Clone, Subcommand)]
pub enum ServiceCommand {
    /// Write a systemd unit, enable it and start it
    Install(ServiceInstallArgs),
}

#[derive(Debug, Clone, Args)]
pub struct ServiceInstallArgs {
    /// Where apps are served [default: 0.0.0.0:80; a worker serves none]
    #[arg(long, value_name = "ADDR")]
    pub http: Option<String>,
    /// Only print the unit
    #[arg(long)]
    pub print: bool,
    /// What else is said at the start, as `rung up` takes it (on a machine that has joined: `rung join`), after `--`: like -- --keep --https 0.0.0.0:443
    #[arg(last = true, value_name = "OPTIONS")]
    pub more: Vec<String>,
}

/// Arguments of a role that the platform starts itself.
#[derive(Debug, Clone, Args)]
pub struct RoleArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

/// What a person asks of a running platform.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Build, release and roll out what is in a directory
    Deploy(DeployArgs),
    /// Show the app: release, address, services, and what is wrong; or what became of a commit
    Status(StatusArgs),
    /// List instances, and runs that go on
    Ps,
    /// Show requests a second, errors and latency by route and by instance, live
    Top(TopArgs),
    /// Show the output of instances
    Logs(LogsArgs),
    /// Change how many instances run
    Scale(ScaleArgs),
    /// Replace every instance with a fresh one, without losing a request
    Restart(WaitArgs),
    /// Answer every request with a maintenance page, or with the app again
    Maintenance(MaintenanceArgs),
    /// List releases, or show one: where it comes from, what brought it, and its build's and release command's logs
    Releases(ReleasesArgs),
    /// Show what one release has otherwise than another: files, app file, config, secrets by version
    Diff(DiffArgs),
    /// Deploy the very same artifact that another environment runs, with this environment's settings
    Promote(PromoteArgs),
    /// Tell afterwards how a deployment went: phases, instances, traffic, decisions
    Explain(ExplainArgs),
    /// Go back to an earlier release
    Rollback(RollbackArgs),
    /// Let a canary take its next step now
    Continue(WaitArgs),
    /// Stop the deployment that is going on, and revert it
    #[command(visible_alias = "abort")]
    Cancel(WaitArgs),
    /// Show and change the app's environment
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Set secrets; their values are never shown
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Run a command in a new instance, with a terminal when there is one
    Run(RunArgs),
    /// Run jobs, and show what came of them
    #[command(subcommand)]
    Job(JobCommand),
    /// Make a rung.toml of a Compose file, and name what can't be honoured
    Import(ImportArgs),
    /// Deploy with `git push`
    #[command(subcommand)]
    Git(GitCommand),
    /// Add machines to the cluster, empty them, take them out
    #[command(subcommand)]
    Node(NodeCommand),
    /// Show what happened
    Events(EventsArgs),
    /// Print the app's address, and open it where there is a desktop
    Open,
    /// Stop the app and forget it
    Destroy(DestroyArgs),
    /// Have certificates ordered for the apps' domains, list and renew them
    #[command(subcommand)]
    Certificate(CertificateCommand),
    /// Make tokens for people and for CI, list and revoke them
    #[command(subcommand)]
    Token(TokenCommand),
    /// Keep a token for a server, so that commands go there
    Login(LoginArgs),
    /// Forget the token that `rung login` has kept
    Logout,
    /// Show who the server takes you for, and what you may
    Whoami,
    /// Show who changed what, from where, and what came of it
    Audit(AuditArgs),
    /// Show where the state is kept: its servers, who leads, and what to do
    Cluster {
        #[command(subcommand)]
        command: Option<ClusterCommand>,
    },
    /// Check the platform, and say what this machine does not guarantee
    Doctor,
    /// Print the completion script of a shell
    Completion { shell: Shell },
}

#[derive(Debug, Clone, Subcommand)]
pub enum ClusterCommand {
    /// Move the state to etcd, so that other servers can join; applications go on
    Init(ClusterInitArgs),
    /// Move the state back to this one machine; applications go on
    Dissolve,
    /// Take a snapshot of the state now; one is taken every hour anyway
    Snapshot,
    /// Put a snapshot in charge when most servers are lost; rung must not run on this machine
    Restore(ClusterRestoreArgs),
    /// Show what would be done after a restore, and let it be done
    Approve(ClusterApproveArgs),
}

#[derive(Debug, Clone, Default, Args)]
pub struct ClusterInitArgs {
    /// Where other servers will reach this machine [default: where its API is reached]
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
}

#[derive(Debug, Clone, Args)]
pub struct ClusterRestoreArgs {
    /// A file of the data directory's `snapshots` or `backups`
    #[arg(value_hint = ValueHint::FilePath)]
    pub snapshot: PathBuf,
}

#[derive(Debug, Clone, Default, Args)]
pub struct ClusterApproveArgs {
    /// Take nodes that have not reported for lost
    #[arg(long)]
    pub without_silent: bool,
}

#[derive(Debug, Clone, Default, Args)]
pub struct WaitArgs {
    /// Do not wait until it is done
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Clone, Args)]
pub struct DeployArgs {
    /// The app's directory; or a release that was made with --build-only, like v8
    #[arg(default_value = ".", value_name = "DIRECTORY|RELEASE", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// Say in a few words what is new; `rung releases` shows it
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Deploy the app file alone: what runs now goes on with it, and nothing is built
    #[arg(long, conflicts_with = "build_only")]
    pub config_only: bool,
    /// Leave the release command out
    #[arg(long)]
    pub skip_release: bool,
    /// Build and test, make a release, and leave what runs alone; `rung deploy v8` rolls it out
    #[arg(long, conflicts_with = "skip_release")]
    pub build_only: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

impl DeployArgs {
    /// The release that is meant instead of a directory.
    pub fn release(&self) -> Option<ReleaseNumber> {
        let text = self.directory.to_str().filter(|text| text.starts_with('v'))?;
        text.parse().ok().filter(|_| !self.directory.is_dir())
    }

    pub fn release_command(&self) -> ReleaseCommand {
        if self.skip_release { ReleaseCommand::Skip } else { ReleaseCommand::Once }
    }
}

#[derive(Debug, Clone, Default, Args)]
pub struct StatusArgs {
    /// What became of this commit: waits for its deployment's end and exits as `rung deploy` would
    #[arg(long, value_name = "SHA")]
    pub commit: Option<String>,
    /// With --commit: do not wait; exits with 4 while the deployment goes on
    #[arg(long, requires = "commit")]
    pub no_wait: bool,
}

#[derive(Debug, Clone, Args)]
pub struct ReleasesArgs {
    /// Only this one, in detail, like v7
    pub release: Option<ReleaseNumber>,
}

#[derive(Debug, Clone, Args)]
pub struct DiffArgs {
    /// The release to compare with, like v6 [default: the one before the other]
    pub from: Option<ReleaseNumber>,
    /// The release that is looked at, like v7 [default: the current]
    pub to: Option<ReleaseNumber>,
}

#[derive(Debug, Clone, Args)]
pub struct PromoteArgs {
    /// The environment whose artifact is taken
    #[arg(long, value_name = "ENVIRONMENT")]
    pub from: EnvironmentName,
    /// The release there, like v12 [default: the one that serves]
    pub release: Option<ReleaseNumber>,
    /// Say in a few words what is new [default: the promoted release's note]
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Leave the release command out
    #[arg(long)]
    pub skip_release: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// The deployment, like d7 [default: the newest]
    pub deployment: Option<DeploymentNumber>,
}

#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Only of this service
    #[arg(short, long, value_name = "NAME")]
    pub service: Option<ServiceName>,
    /// Only of this instance
    #[arg(short, long, value_name = "ID")]
    pub instance: Option<InstanceId>,
    /// Of this build, release command, job's run or one-off command
    #[arg(long, value_name = "ID", conflicts_with_all = ["service", "instance"])]
    pub run: Option<RunId>,
    /// Of the build and the test of this release
    #[arg(long, value_name = "RELEASE", conflicts_with_all = ["service", "instance", "run"])]
    pub build: Option<ReleaseNumber>,
    /// Only from then on: 10m, 14:00, "2026-03-01 14:00"
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only the newest so many lines [default: 100, or all with --since, --run or --build]
    #[arg(short = 'n', long, value_name = "LINES")]
    pub tail: Option<usize>,
}

#[derive(Debug, Clone, Args)]
pub struct ScaleArgs {
    /// How many instances of which services: web=3 worker=1
    #[arg(required = true, value_name = "SERVICE=COUNT", value_parser = scale_of)]
    pub counts: Vec<(ServiceName, u32)>,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Clone, Args)]
pub struct RollbackArgs {
    /// The release, like v6 [default: the one before the current]
    pub release: Option<ReleaseNumber>,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Set variables, and deploy the change
    Set {
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = assignment)]
        values: Vec<(String, String)>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Show variables
    Get {
        /// Only the value of this one
        name: Option<String>,
    },
    /// Take variables away, and deploy the change
    Unset {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// No terminal, even where there is one
    #[arg(long)]
    pub no_tty: bool,
    /// List what runs now: commands, builds, release commands and jobs
    #[arg(long, conflicts_with = "command")]
    pub list: bool,
    /// End a run, by its id
    #[arg(long, value_name = "ID", conflicts_with_all = ["command", "list"])]
    pub cancel: Option<RunId>,
    /// The command with its arguments
    #[arg(required_unless_present_any = ["list", "cancel"], trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<String>,
}

#[derive(Debug, Clone, Subcommand)]
pub enum JobCommand {
    /// List jobs: when each is due next, and what came of it last
    List,
    /// Run a job now, show its output and exit as it does
    Run {
        job: JobName,
        /// A variable of this run, which wins over the release's
        #[arg(short = 'e', long = "set", value_name = "NAME=VALUE", value_parser = assignment)]
        env: Vec<(String, String)>,
        /// Do not wait until it is done
        #[arg(long)]
        no_wait: bool,
        /// Words after the job's command, each kept whole
        #[arg(last = true, value_name = "ARGUMENTS")]
        arguments: Vec<String>,
    },
    /// Show the runs of a job, and the times at which none ran
    History { job: JobName },
    /// Dispatch nothing by the job's schedule until it is resumed; `rung job run` still works
    Pause { job: JobName },
    /// Go by the schedule again; what was due meanwhile is recorded, and not made up for
    Resume { job: JobName },
    /// Let a job run another release than the one that serves
    Pin {
        job: JobName,
        /// The release, like v6
        #[arg(required_unless_present = "none")]
        release: Option<ReleaseNumber>,
        /// The one that serves again
        #[arg(long, conflicts_with = "release")]
        none: bool,
    },
    /// End a run
    Cancel {
        /// Its id, as `rung job history` shows it
        run: RunId,
    },
}

#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// The Compose file [default: compose.yaml, compose.yml or docker-compose.yml in this directory]
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Only these services [default: all that run the app's own image]
    #[arg(long = "service", value_name = "NAME")]
    pub services: Vec<String>,
    /// Where to write it [default: rung.toml beside the Compose file]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Write it to standard output, and nothing to disk
    #[arg(long, conflicts_with = "output")]
    pub print: bool,
    /// Replace what is there
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Clone, Subcommand)]
pub enum GitCommand {
    /// Add a remote to the repository in this directory, so that `git push rung main` deploys
    Remote {
        /// How the remote is called
        #[arg(default_value = "rung")]
        name: String,
    },
    /// Answer git, which asks for the token; `rung git remote` tells git to
    #[command(hide = true)]
    Credential {
        /// What git asks for: get, store or erase
        operation: String,
    },
}

#[derive(Debug, Clone, Args)]
pub struct EventsArgs {
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
}

#[derive(Debug, Clone, Args)]
pub struct DestroyArgs {
    /// Its volumes, too: what is in them is lost
    #[arg(long)]
    pub volumes: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

fn scale_of(text: &str) -> Result<(ServiceName, u32), String> {
    let (service, count) = text.split_once('=').ok_or("write it like web=3")?;
    let service = ServiceName::new(service).map_err(|error| error.to_string())?;
    let count = count.parse().map_err(|_| format!("{count:?} is not a number of instances"))?;
    Ok((service, count))
}

fn time(text: &str) -> Result<Duration, String> {
    rung_model::appfile::values::duration(text).map_err(|error| error.to_string())
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it like NAME=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Cli {
        Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}")).settled()
    }

    #[test]
    fn what_stands_behind_a_command_to_run_belongs_to_it() {
        let cli = parsed("rung run --no-tty python3 -c x --json -y");
        let Command::Verb(Verb::Run(run)) = cli.command else { panic!("it is another verb") };
        assert_eq!(run.command, ["python3", "-c", "x", "--json", "-y"]);
        assert!(run.no_tty && !cli.global.json && !cli.global.yes);
    }

    #[test]
    fn help_is_a_word_too_and_no_word_at_all_asks_for_it() {
        let spelled = |line: &str| spelled(line.split(' ').map(OsString::from).collect());
        assert_eq!(spelled("rung help"), ["rung", "--help"]);
        assert_eq!(spelled("rung help config set"), ["rung", "config", "set", "--help"]);
        assert_eq!(spelled("rung"), ["rung", "--help"]);
        assert_eq!(spelled("rung run help"), ["rung", "run", "help"]);
    }

    #[test]
    fn runs_are_listed_and_ended_by_the_command_that_starts_them() {
        let run = |line: &str| match parsed(line).command {
            Command::Verb(Verb::Run(run)) => run,
            other => panic!("{other:?}"),
        };
        assert!(run("rung run --list").list);
        assert_eq!(run("rung run --cancel shop.run-n1").cancel.unwrap().as_str(), "shop.run-n1");
        assert_eq!(run("rung run ls --list").command, ["ls", "--list"]);
        for wrong in ["rung run", "rung run --list ls", "rung run --list --cancel x"] {
            assert!(Cli::try_parse_from(wrong.split(' ')).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_stands_behind_two_dashes_belongs_to_the_job() {
        let cli = parsed("rung job run report -e DAY=mon -e X=a=b --no-wait -- --since 2d --no-wait");
        let Command::Verb(Verb::Job(JobCommand::Run { job, env, no_wait, arguments })) = cli.command else {
            panic!("it is another verb")
        };
        assert_eq!((job.as_str(), no_wait), ("report", true));
        assert_eq!(env, [("DAY".to_owned(), "mon".to_owned()), ("X".to_owned(), "a=b".to_owned())]);
        assert_eq!(arguments, ["--since", "2d", "--no-wait"]);
        assert!(Cli::try_parse_from(["rung", "job", "pin", "report"]).is_err(), "it says neither");
        assert!(Cli::try_parse_from(["rung", "job", "pin", "report", "v7", "--none"]).is_err());
    }

    #[test]
    fn a_release_is_deployed_by_its_number_and_a_directory_by_its_path() {
        let deploy = |line: &str| match parsed(line).command {
            Command::Verb(Verb::Deploy(args)) => args,
            other => panic!("{other:?}"),
        };
        assert_eq!(deploy("rung deploy v8").release(), Some(ReleaseNumber(8)));
        assert_eq!(deploy("rung deploy 8").release(), None, "that is a directory's name");
        assert_eq!(deploy("rung deploy ./v8").release(), None);
        assert_eq!(deploy("rung deploy").release(), None);
        for wrong in ["rung deploy --build-only --config-only", "rung status --no-wait", "rung promote"] {
            assert!(Cli::try_parse_from(wrong.split(' ')).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_api_of_up_is_where_it_listens() {
        let cli = parsed("rung up examples/guestbook --api 127.0.0.1:0 --http 127.0.0.1:0 --keep --data d");
        let Command::Up(up) = cli.command else { panic!("it is another command") };
        assert_eq!(up.api.as_deref(), Some("127.0.0.1:0"));
        assert_eq!(cli.global.data, Some(PathBuf::from("d")));
        let Command::Up(up) = parsed("rung up").command else { panic!("it is another command") };
        assert_eq!((up.api, up.http, up.directory), (None, None, None), "nothing was given explicitly");
    }

    #[test]
    fn a_machine_joins_with_a_token_of_its_own_kind() {
        let token = format!("worker.{0}.{0}{0}.{0}{0}{0}{0}", "00112233445566ff");
        let Command::Join(join) = parsed(&format!("rung join 10.0.0.1:7864 {token} --name web-2")).command
        else {
            panic!("it is another command")
        };
        assert_eq!(join.server.as_deref(), Some("10.0.0.1:7864"));
        assert_eq!(join.token.map(|token| token.to_string()), Some(token));
        assert!(matches!(parsed("rung join").command, Command::Join(_)), "alone it starts again");
        assert!(Cli::try_parse_from(["rung", "join", "10.0.0.1:7864"]).is_err(), "there is no token");
    }

    #[test]
    fn values_with_equals_signs_stay_whole_and_secrets_stay_hidden() {
        let cli = parsed("rung config set URL=postgres://a?b=c");
        let Command::Verb(Verb::Config(ConfigCommand::Set { values, .. })) = &cli.command else {
            panic!("it is another verb")
        };
        assert_eq!(values, &[("URL".to_owned(), "postgres://a?b=c".to_owned())]);
        let cli = parsed("rung secret set API_KEY=hunter2 OTHER");
        assert!(!format!("{cli:?}").contains("hunter2"), "a secret's value is in debug output");
        let error = Cli::try_parse_from(["rung", "secret", "set", "API-KEY"]).unwrap_err().to_string();
        assert!(error.contains("API-KEY"), "{error}");
    }

    #[test]
    fn wrong_usage_is_told_with_the_way_out() {
        let wrong = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap_err();
        assert!(wrong("rung scale web").to_string().contains("write it like web=3"));
        assert!(wrong("rung scale web=many").to_string().contains("not a number of instances"));
        assert!(wrong("rung rollback six").to_string().contains("write it like v7"));
        assert_eq!(wrong("rung deploi").exit_code(), 2);
    }
}
