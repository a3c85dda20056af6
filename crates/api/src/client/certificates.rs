//! Certificates that the platform orders: for people, and for the ingresses that show them.

use std::time::Duration;

use hyper::Method;

use super::{Client, ClientError, fill, with_wait};
use crate::paths;
use crate::wire::certificates::{
    AccountRequest, CertificateNews, CertificatePair, CertificatePoll, CertificateReport,
};

/// For people.
impl Client {
    pub async fn certificates(&self) -> Result<CertificateReport, ClientError> {
        self.get(paths::CERTIFICATES).await
    }

    pub async fn set_certificate_account(&self, request: &AccountRequest) -> Result<(), ClientError> {
        self.call(Method::PUT, paths::CERTIFICATE_ACCOUNT, request).await
    }

    pub async fn forget_certificate_account(&self) -> Result<(), ClientError> {
        self.call(Method::DELETE, paths::CERTIFICATE_ACCOUNT, &()).await
    }

    /// Orders a certificate now, whatever is held and however often it has failed.
    pub async fn renew_domain(&self, domain: &str) -> Result<(), ClientError> {
        self.call(Method::POST, &fill(paths::CERTIFICATE_RENEW, &[&domain]), &()).await
    }
}

/// For ingresses.
impl Client {
    /// What it shall hold, once that is not what `poll.after` names, at the latest after `wait`.
    pub async fn poll_certificates(
        &self,
        proxy: &str,
        poll: &CertificatePoll,
        wait: Duration,
    ) -> Result<CertificateNews, ClientError> {
        self.call(Method::POST, &with_wait(fill(paths::PROXY_CERTIFICATES, &[&proxy]), wait), poll).await
    }

    pub async fn certificate(&self, proxy: &str, host: &str) -> Result<CertificatePair, ClientError> {
        self.get(&fill(paths::PROXY_CERTIFICATE, &[&proxy, &host])).await
    }
}
