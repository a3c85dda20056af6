//! What ingresses count: their reports, and what people and servers ask of it.

use hyper::Method;
use rung_model::AppName;

use super::{Client, ClientError, encode_query, fill};
use crate::paths;
use crate::wire::{IngressTraffic, TallyHeard, TallyReport, TrafficReport};

impl Client {
    /// For proxies: reports totals by route and instance.
    pub async fn report_tally(&self, proxy: &str, report: &TallyReport) -> Result<TallyHeard, ClientError> {
        self.call(Method::POST, &fill(paths::PROXY_TALLY, &[&proxy]), report).await
    }

    /// For servers: what the proxies of another one have told it.
    pub async fn tallies(&self) -> Result<Vec<IngressTraffic>, ClientError> {
        self.get(paths::TALLIES).await
    }

    /// For people: the totals of every ingress; of all apps without one.
    pub async fn traffic(&self, app: Option<&AppName>) -> Result<TrafficReport, ClientError> {
        let path = match app {
            None => paths::TRAFFIC.to_owned(),
            Some(app) => format!("{}?app={}", paths::TRAFFIC, encode_query(app.as_str())),
        };
        self.get(&path).await
    }
}
