//! An issuer's keys, fetched from where it publishes them, kept, and fetched anew: now and then, and when a token names
//! a key that is not known. When the issuer does not answer, what is held goes on being believed.

use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::fetch::fetch;
use crate::jwt::KeySet;

/// Issuers publish a key well before they sign with it.
const EVERY: Duration = Duration::from_secs(600);
/// Tokens with invented keys must not make this process ask without end.
const PAUSE: Duration = Duration::from_secs(2);
/// While nothing is held: the issuer may be one of the apps here, and starting.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// See the module's text. Shared by all threads and tables.
#[derive(Debug)]
pub(crate) struct Jwks {
    address: String,
    keys: RwLock<Option<Arc<KeySet>>>,
    wanted: Arc<Notify>,
}

impl Jwks {
    /// Keys that are fetched for as long as somebody holds them.
    pub(crate) fn follow(address: String) -> Arc<Self> {
        let jwks = Arc::new(Self { address, keys: RwLock::new(None), wanted: Arc::default() });
        // Tables are built where a runtime is; elsewhere nobody asks for keys.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(keep(Arc::downgrade(&jwks)));
        }
        jwks
    }

    /// `None`: they were never fetched.
    pub(crate) fn keys(&self) -> Option<Arc<KeySet>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Somebody came with a key that is not among them.
    pub(crate) fn ask_anew(&self) {
        self.wanted.notify_one();
    }

    async fn refresh(&self) -> Result<(), String> {
        let body = fetch(&self.address).await?;
        let keys = KeySet::parse(&body).ok_or("what is there is not a set of keys that can be used")?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keys));
        Ok(())
    }
}

async fn keep(jwks: Weak<Jwks>) {
    let mut retry = RETRY_FIRST;
    let mut is_failing = false;
    loop {
        // Whoever used them is gone when this fails.
        let Some(held) = jwks.upgrade() else { return };
        let fetched = held.refresh().await;
        let is_empty = held.keys().is_none();
        match &fetched {
            Ok(()) => {
                if std::mem::take(&mut is_failing) {
                    tracing::info!(address = held.address, "the issuer's keys are there again");
                }
                retry = RETRY_FIRST;
            }
            Err(why) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(
                        address = held.address,
                        why,
                        "fetching an issuer's keys failed; trying again"
                    );
                }
            }
        }
        let pause = match (&fetched, is_empty) {
            (Ok(()), _) => EVERY,
            (Err(_), true) => {
                let pause = retry;
                retry = (retry * 2).min(RETRY_MAX);
                pause
            }
            (Err(_), false) => RETRY_MAX,
        };
        let wanted = held.wanted.clone();
        // Not held meanwhile, so that with its last user it ends.
        drop(held);
        let (soonest, latest) = (Instant::now() + PAUSE.min(pause), Instant::now() + pause);
        tokio::select! {
            () = tokio::time::sleep_until(latest) => {}
            () = wanted.notified() => tokio::time::sleep_until(soonest).await,
        }
    }
}
