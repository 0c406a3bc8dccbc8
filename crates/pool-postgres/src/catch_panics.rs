//! sqlx trusts the server to keep to the protocol: a message that is shorter than its kind must be makes
//! its decoder panic. Whoever speaks with a server does it in here, so that a malicious or broken one costs
//! a connection, and not the caller's task or the control task. (Nothing can be caught in a program that is
//! built to abort on a panic.)

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use sqlx::Error;

/// What a decoder's panic becomes.
const UNREADABLE: &str = "the server sent a message that cannot be read";

/// Does `work`, and makes an error of a panic in it. The connection that it used must not be used again before
/// it has been made clean: what was left on the wire is unknown.
pub(crate) async fn catch_panics<T, E: From<Error>>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let outcome = AssertUnwindSafe(work).catch_unwind().await;
    outcome.unwrap_or_else(|_| Err(Error::Protocol(UNREADABLE.into()).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_and_an_outcome_stays_what_it_is() {
        let broken = catch_panics(async { if true { panic!("advance past the end") } else { Ok(()) } }).await;
        assert!(matches!(broken, Err(Error::Protocol(why)) if why == UNREADABLE));
        assert_eq!(catch_panics(async { Ok::<_, Error>(7) }).await.unwrap(), 7);
    }
}
