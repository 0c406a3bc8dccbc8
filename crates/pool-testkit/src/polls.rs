//! Cancellation at one await point.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

/// Polls `future` at most `polls` times, each time when it was woken, and drops it: cancellation at one await point. Returns
/// whether it came to its end. A sweep asks with 0, 1, 2 and so on, until it does.
pub async fn poll_at_most<F: Future>(polls: usize, future: F) -> bool {
    output_within(polls, Dropped::Woken, future).await.is_some()
}

/// When a future is dropped after its last poll.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dropped {
    /// When it was woken: what it waited for is there.
    Woken,
    /// At once: what it waited for is under way.
    AtOnce,
}

/// The same, with the output of a future that came to its end.
pub(crate) async fn output_within<F: Future>(polls: usize, dropped: Dropped, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polled = 0;
    poll_fn(|context| {
        if polled == polls {
            return Poll::Ready(None);
        }
        polled += 1;
        match (future.as_mut().poll(context), dropped) {
            (Poll::Ready(output), _) => Poll::Ready(Some(output)),
            (Poll::Pending, Dropped::AtOnce) if polled == polls => Poll::Ready(None),
            (Poll::Pending, _) => Poll::Pending,
        }
    })
    .await
}
