//! For people: a word to the deployment that goes on.

use hyper::Method;
use rung_model::{AppName, DeploymentNumber};

use super::{Client, fill};
use crate::client::ClientError;
use crate::paths;

impl Client {
    pub async fn cancel(&self, app: &AppName, number: DeploymentNumber, by: &str) -> Result<(), ClientError> {
        self.call(Method::POST, &fill(paths::DEPLOYMENT_CANCEL, &[app, &number.0]), &by).await
    }

    /// Lets a deployment that holds a step, or waits, go on.
    pub async fn continue_deployment(
        &self,
        app: &AppName,
        number: DeploymentNumber,
        by: &str,
    ) -> Result<(), ClientError> {
        self.call(Method::POST, &fill(paths::DEPLOYMENT_CONTINUE, &[app, &number.0]), &by).await
    }
}
