//! Calls from inside the cluster: which service an address stands for, and who calls it.
//!
//! Every service has an address in 127.64.0.0/10, and every machine takes all of these for its own. So one listening
//! socket on the loopback device hears the calls of this machine's instances to all services, and the address by which a
//! connection came in says which is meant. Who made it is known by the user of its other end, looked up once.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rung_model::{AppName, Inside, ServiceName, Users};
use tokio::net::TcpStream;

use crate::sock_diag;
use crate::table::Service;
use crate::tally::Tallied;

/// What is known of a connection when it is made.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) address: Ipv4Addr,
    pub(crate) caller: Caller,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Apps are not told apart on this machine.
    Anybody,
    /// The machine's owner.
    Root,
    App(AppName),
    /// A user that is no app's: a person of this machine, or a build.
    User(u32),
    /// It was gone before it could be asked for.
    Gone,
}

/// A service as it is called.
#[derive(Debug)]
pub(crate) struct Callee {
    pub(crate) app: AppName,
    pub(crate) name: ServiceName,
    pub(crate) callers: Vec<AppName>,
    /// `None`: it is declared, and nothing of it has run yet.
    pub(crate) service: Option<Arc<Service>>,
    pub(crate) tallied: Arc<Tallied>,
}

impl Callee {
    pub(crate) fn admits(&self, caller: &Caller) -> bool {
        match caller {
            Caller::Anybody | Caller::Root => true,
            Caller::App(app) => *app == self.app || self.callers.contains(app),
            Caller::User(_) | Caller::Gone => false,
        }
    }

    /// For whoever wonders: who was taken for whom, and where it is changed.
    pub(crate) fn refusal(&self, caller: &Caller) -> String {
        let (app, service) = (&self.app, &self.name);
        match caller {
            Caller::App(caller) if caller.environment() == app.environment() => format!(
                "{service} of {app} does not allow {caller}; allow = [\"{}\"] below [services.{service}] does",
                caller.base()
            ),
            Caller::App(caller) => format!("{service} of {app} is in another environment than {caller}"),
            Caller::User(user) => format!("user {user} is no app's, and {service} of {app} is for apps"),
            Caller::Gone | Caller::Anybody | Caller::Root => {
                format!("whoever called {service} of {app} could not be told")
            }
        }
    }
}

/// Tells who calls.
#[derive(Debug)]
pub(crate) struct Callers {
    /// `None`: all apps run as one user.
    users: Option<PathBuf>,
    known: Mutex<Users>,
}

impl Callers {
    pub(crate) fn new(users: Option<PathBuf>) -> Self {
        Self { users, known: Mutex::default() }
    }

    /// `None`: what was called is no service's address.
    pub(crate) fn identify(&self, stream: &TcpStream, from: SocketAddr) -> Option<Call> {
        let Ok(SocketAddr::V4(to)) = stream.local_addr() else { return None };
        let SocketAddr::V4(from) = from else { return None };
        let caller = || match &self.users {
            None => Caller::Anybody,
            Some(path) => self.caller(path, from, to),
        };
        Inside::covers(*to.ip()).then(|| Call { address: *to.ip(), caller: caller() })
    }

    fn caller(&self, path: &Path, from: SocketAddrV4, to: SocketAddrV4) -> Caller {
        match sock_diag::user_of(from, to) {
            None => Caller::Gone,
            Some(0) => Caller::Root,
            Some(user) => self.app_of(path, user).map_or(Caller::User(user), Caller::App),
        }
    }

    /// The file is read again for a user who is not known: the agent writes it before it starts an app's first process.
    fn app_of(&self, path: &Path, user: u32) -> Option<AppName> {
        let mut known = self.known.lock().expect("nothing panics while it is held");
        if let Some(app) = known.0.get(&user) {
            return Some(app.clone());
        }
        let read = std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        *known = read.unwrap_or_default();
        known.0.get(&user).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> AppName {
        AppName::new(name).unwrap()
    }

    fn ledger_allows(callers: &[&str]) -> Callee {
        let subject = rung_model::tally::Subject::Route { app: app("billing"), route: "ledger".into() };
        Callee {
            app: app("billing"),
            name: ServiceName::new("ledger").unwrap(),
            callers: callers.iter().map(|name| app(name)).collect(),
            service: None,
            tallied: Arc::new(Tallied::new(subject, 1)),
        }
    }

    #[test]
    fn a_service_is_for_its_own_app_and_for_those_that_it_allows() {
        let ledger = ledger_allows(&["reports"]);
        for (caller, admitted) in [
            (Caller::App(app("billing")), true),
            (Caller::App(app("reports")), true),
            (Caller::App(app("reports@staging")), false),
            (Caller::App(app("shop")), false),
            (Caller::User(1000), false),
            (Caller::Gone, false),
            (Caller::Root, true),
            (Caller::Anybody, true),
        ] {
            assert_eq!(ledger.admits(&caller), admitted, "{caller:?}");
        }
        let said = ledger.refusal(&Caller::App(app("shop")));
        assert!(said.contains("allow = [\"shop\"] below [services.ledger]"), "{said}");
    }

    #[test]
    fn an_app_that_was_just_given_a_user_is_known_at_its_first_call() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.json");
        let callers = Callers::new(Some(path.clone()));
        assert_eq!(callers.app_of(&path, 20001), None, "nobody has a user yet");
        std::fs::write(&path, r#"{"20001":"shop"}"#).unwrap();
        assert_eq!(callers.app_of(&path, 20001), Some(app("shop")));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(callers.app_of(&path, 20001), Some(app("shop")), "users keep their numbers");
        assert_eq!(callers.app_of(Path::new("/nowhere"), 7), None);
    }

    #[tokio::test]
    async fn only_addresses_of_services_are_calls() {
        let listener = tokio::net::TcpListener::bind("127.64.3.7:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = TcpStream::connect(("127.64.3.7", port)).await.unwrap();
        let (stream, from) = listener.accept().await.unwrap();
        let call = Callers::new(None).identify(&stream, from).expect("the address is a service's");
        assert_eq!((call.address, call.caller), (Ipv4Addr::new(127, 64, 3, 7), Caller::Anybody));
        let own = nix::unistd::geteuid().as_raw();
        let told = Callers::new(Some("/nowhere".into())).identify(&stream, from).unwrap().caller;
        let expected = if own == 0 { Caller::Root } else { Caller::User(own) };
        assert_eq!(told, expected, "the kernel did not say who called");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, from) = listener.accept().await.unwrap();
        assert!(Callers::new(None).identify(&stream, from).is_none(), "127.0.0.1 is nobody's");
    }
}
