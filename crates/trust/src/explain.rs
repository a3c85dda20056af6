//! What went wrong in a handshake, in the words of people.

use std::error::Error as StdError;

use rustls::{AlertDescription, CertificateError, Error};

use crate::fingerprint::Fingerprint;

/// What a person can do something about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Explained {
    #[error("what answers there is not the cluster with the authority {expected}")]
    OtherCluster { expected: Fingerprint },
    #[error("what answers there has no certificate of this cluster")]
    UnknownAuthority,
    #[error("what answers there is not the node or server that was asked for")]
    OtherNode,
    #[error(
        "a certificate is not valid at the time that this machine's clock shows; is the clock wrong here, or there?"
    )]
    Clock,
    #[error("this machine's certificate was refused: it is of another cluster, or has ended")]
    Refused,
    #[error("what answers there speaks no TLS as Rung does")]
    NoTls,
}

/// Looks for a failed handshake among an error's sources.
pub fn explain(error: &(dyn StdError + 'static)) -> Option<Explained> {
    let mut next = Some(error);
    while let Some(error) = next {
        let tls = error.downcast_ref::<Error>().or_else(|| {
            let io = error.downcast_ref::<std::io::Error>()?;
            io.get_ref()?.downcast_ref::<Error>()
        });
        if let Some(tls) = tls {
            return words(tls);
        }
        next = error.source();
    }
    None
}

fn words(error: &Error) -> Option<Explained> {
    Some(match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => {
            return other.0.downcast_ref::<Explained>().cloned();
        }
        Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => Explained::Clock,
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Explained::OtherNode,
        Error::InvalidCertificate(_) => Explained::UnknownAuthority,
        Error::AlertReceived(AlertDescription::CertificateExpired) => Explained::Clock,
        Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied,
        ) => Explained::Refused,
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => Explained::NoTls,
        _ => return None,
    })
}
