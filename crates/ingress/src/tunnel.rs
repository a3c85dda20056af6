//! Upgraded connections: bytes both ways until one side has enough.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::stream::ClientStream;
use crate::timer::Timer;
use crate::upstream::Upstream;
use crate::worker::Worker;

/// A WebSocket may be silent for hours; the kernel finds out whether the other side is still there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// What was read before the copying began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun<'a> {
    /// The head of the answer that switches protocols.
    pub(crate) answer: &'a [u8],
    pub(crate) from_instance: &'a [u8],
    /// Of a client that did not wait for the answer.
    pub(crate) from_client: &'a [u8],
}

/// Sends what has begun, then copies. Returns the bytes that went to the client.
///
/// When the ingress drains, a tunnel has the grace of upgraded connections to end, then it is closed.
pub(crate) async fn tunnel<S: ClientStream>(
    worker: &Worker,
    client: &mut S,
    mut instance: Upstream,
    timer: &Timer,
    begun: Begun<'_>,
) -> u64 {
    timer.arm(worker.limits().stall);
    let begin = async {
        client.write_all(begun.answer).await?;
        client.write_all(begun.from_instance).await?;
        client.flush().await?;
        instance.write_all(begun.from_client).await?;
        instance.flush().await
    };
    if !matches!(timer.limit(begin).await, Ok(Ok(()))) {
        return 0;
    }
    timer.disarm();
    let look_after = |stream: &TcpStream| {
        // Without it a vanished peer is noticed at the next byte only.
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE_AFTER);
        let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive);
    };
    client.with_socket(look_after);
    instance.socket(look_after);
    let mut copy = pin!(tokio::io::copy_bidirectional(client, &mut instance));
    let mut in_grace = false;
    let copied = poll_fn(|cx| {
        if let Poll::Ready(result) = copy.as_mut().poll(cx) {
            return Poll::Ready(result.ok());
        }
        if worker.is_draining() && !in_grace {
            in_grace = true;
            timer.arm(worker.limits().upgrade_grace);
        }
        if timer.poll_expired(cx) { Poll::Ready(None) } else { Poll::Pending }
    })
    .await;
    copied.map_or(0, |(_, to_client)| to_client)
}
