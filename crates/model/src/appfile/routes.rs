//! Which service gets which requests.

use super::{AppFile, Route};
use crate::ids::ServiceName;

impl AppFile {
    /// Services that listen, in the order of their names.
    pub fn services_with_port(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.iter().filter(|(_, service)| service.port).map(|(name, _)| name)
    }

    /// The service that gets requests when no route is written: `web` when it has a port, else the only one that has.
    pub fn main_service(&self) -> Option<&ServiceName> {
        let mut with_port = self.services_with_port();
        let web = self.services_with_port().find(|name| name.as_str() == "web");
        web.or_else(|| with_port.next().filter(|_| with_port.next().is_none()))
    }

    /// The routes as they hold: those that the file writes, else everything to the main service. None in an app of
    /// workers only.
    pub fn effective_routes(&self) -> Vec<Route> {
        if !self.routes.is_empty() {
            return self.routes.clone();
        }
        let everything = |service: &ServiceName| Route { path: "/*".to_owned(), service: service.clone() };
        self.main_service().map(everything).into_iter().collect()
    }
}
