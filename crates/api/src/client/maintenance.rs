//! A page instead of an app.

use hyper::Method;
use rung_model::AppName;

use super::{Client, ClientError, fill};
use crate::paths;
use crate::wire::{AppStatus, MaintenanceRequest};

impl Client {
    pub async fn maintenance(
        &self,
        app: &AppName,
        request: &MaintenanceRequest,
    ) -> Result<AppStatus, ClientError> {
        self.call(Method::PUT, &fill(paths::MAINTENANCE, &[app]), request).await
    }
}
