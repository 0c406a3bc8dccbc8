//! Cancellation at one await point.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

/// Polls `future` at most `polls` times, each time when it was woken, and drops it: cancellation at one await point. Returns
/// whether it came to its end. A sweep asks with 0, 1, 2 and so on, until it does.
pub async fn poll_at_most<F: Future>(polls: usize, future: F) -> bool {
    output_within(polls, future).await.is_some()
}

/// The same, with the output of a future that came to its end.
pub(crate) async fn output_within<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polled = 0;
    poll_fn(|context| {
        if polled == polls {
            return Poll::Ready(None);
        }
        polled += 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}
