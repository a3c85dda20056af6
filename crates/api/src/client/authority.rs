//! The certificate behind the fingerprint, for tools that take nothing else.

use rung_trust::Fingerprint;

use super::lines::Way;
use super::{Address, Client, ClientError};

impl Client {
    /// The certificate of the authority with this fingerprint, DER, as the server shows it in its handshake. `None`
    /// without TLS.
    ///
    /// # Errors
    /// The server can't be reached, or another authority vouches for it.
    pub async fn authority(&self, known: Fingerprint) -> Result<Option<Vec<u8>>, ClientError> {
        let address = self.address();
        let Address::Tls(authority) = &address else { return Ok(None) };
        let stream = self.connect_tls(&address, authority, Way::Alone).await?;
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().unwrap_or_default();
        let found = shown.iter().find(|certificate| Fingerprint::of(certificate) == known);
        Ok(found.map(|certificate| certificate.to_vec()))
    }
}
