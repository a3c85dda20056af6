//! The data plane: takes requests of HTTP/1.1 and HTTP/2, plain or over TLS, and gives each to a healthy instance.
//!
//! How it works: [`run_process`] is the body of `rung ingress`. Its threads ([`worker`]) each have a runtime, a copy of
//! the listening socket and pools of their own; a connection ([`forward`]) reads strict heads ([`head`]), an
//! [`exchange`] chooses an instance from the [`table`] by load ([`balance`]), sends, receives and retries where that is
//! safe. The main thread follows the server ([`view`] decides, [`follow`] acts) and hands whole tables to the threads.
//! [`Supervisor`] lives in `rung up`: it owns the listening socket and keeps one such process running.
//!
//! What a route asks for beside its path is its [`policy`]: the [`gate`] keeps it before an instance is chosen, and the
//! [`dress`] is what the answer gets of it. A route without one pays a look at an `Option`.
//!
//! Where a route asks for it, [`coding`] says which answers are compressed, and [`squeeze`] does it while they pass.
//!
//! A client that leaves is noticed while it waits ([`hold`]) and while it is answered ([`watch`]): nobody works for it on.
//!
//! How much an instance can bear, where a route asks for a bound, is learned from its answers ([`overload`]).
//!
//! While two releases serve side by side, [`split`] says who gets which, and [`traffic`] counts what becomes of it.
//! What becomes of every request is counted by route and instance in the [`tally`].
//!
//! Over TLS a connection begins with a [`handshake`] that shows one of the [`certificates`]; everything above is generic
//! over the [`stream`]. A load balancer in front may say who the client is ([`proxy_protocol`]). A stream of [`http2`] is served as the HTTP/1.1 request that it stands for.
//!
//! Instances on other machines are reached through the proxy of their node ([`upstream`]), which is this process in
//! another role there ([`peer`]); [`cluster`] says who is who.
//!
//! Instances of this machine call services of the cluster by addresses that the services have inside; [`callers`] says who
//! calls, and whom; those in containers come in by [`doors`]. Everything behind that is the way of visitors' requests. Who asks for such an address by DNS is answered by
//! [`names`].
//!
//! What it deliberately does not do: it knows nothing of the store and decides nothing about what is routed; it does not
//! check the health of instances beyond what requests show; it orders no certificates (it shows what the server ordered,
//! [`managed`]), and caches nothing.

// They panic when nobody reads, or a disk is full.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod access_log;
mod balance;
mod body;
mod buffer;
mod callers;
mod certificates;
mod clock;
mod cluster;
mod coding;
mod config;
mod control;
mod development;
mod documents;
mod doors;
mod dress;
mod edit;
mod error_page;
mod exchange;
mod fetch;
mod fields;
mod follow;
mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gate;
mod handshake;
mod head;
mod hold;
mod http2;
mod jwks;
mod jwt;
mod limiter;
mod listeners;
mod managed;
mod names;
mod overload;
mod peer;
mod policy;
mod pool;
mod proxy_protocol;
mod ran_over;
mod receive;
mod redirect;
mod relay;
mod response;
mod routing;
mod run;
mod share;
mod slots;
mod sock_diag;
mod sockets;
mod split;
mod squeeze;
mod stream;
mod supervisor;
mod table;
mod tally;
mod timer;
mod trace;
mod traffic;
mod tunnel;
mod upstream;
pub mod view;
mod watch;
mod worker;

pub use cluster::ClusterError;
pub use config::{AccessLogSetting, Config, ConfigError, Limits, LogFormat, TrustedProxies, check_settings};
pub use control::{Control, Status};
pub use development::AuthorityError;
pub use run::{RunError, run_process};
pub use supervisor::{
    ClusterSetting, Listen, ServicesSetting, Supervisor, SupervisorConfig, SupervisorError,
};
