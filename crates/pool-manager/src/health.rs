//! What has been seen of the server as a whole, by whoever opens, checks and waits.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use pool_core::DriverErrorKind;
use tokio::sync::{Notify, watch};

use crate::share;

/// What is known of the server, and who wants to know more.
#[derive(Default)]
pub(crate) struct ServerHealth {
    suspicion: Notify,
    refusal: Notify,
    success: Notify,
    succeeded_at: Mutex<Option<Instant>>,
    /// How often the server has answered again after it had been lost.
    returns: watch::Sender<u64>,
}

impl ServerHealth {
    /// Something has been seen that may be the fault of the server.
    pub(crate) fn suspect(&self) {
        self.suspicion.notify_one();
    }

    /// An open has failed in this way.
    pub(crate) fn failed(&self, kind: DriverErrorKind) {
        if kind == DriverErrorKind::Refused {
            self.refusal.notify_one();
        } else if kind.may_concern_all() {
            self.suspect();
        }
    }

    /// The server has opened a session, or answered on one.
    pub(crate) fn succeeded(&self) {
        *self.succeeded_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(share::now());
        self.success.notify_waiters();
    }

    /// A server that did something meanwhile is not lost, whatever the pool's own connection says: that may be the one that
    /// is.
    pub(crate) fn has_succeeded_since(&self, moment: Instant) -> bool {
        let at = *self.succeeded_at.lock().unwrap_or_else(PoisonError::into_inner);
        at.is_some_and(|at| at >= moment)
    }

    /// Returns when something has been seen that may be the fault of the server.
    pub(crate) async fn is_suspected(&self) {
        self.suspicion.notified().await;
    }

    /// Returns when the server has refused an open.
    pub(crate) async fn has_refused(&self) {
        self.refusal.notified().await;
    }

    /// Returns at the next success.
    pub(crate) async fn success(&self) {
        self.success.notified().await;
    }

    /// The server answers again.
    pub(crate) fn returned(&self) {
        self.returns.send_modify(|returns| *returns += 1);
    }

    /// Changes each time that the server answers again.
    pub(crate) fn returns(&self) -> watch::Receiver<u64> {
        self.returns.subscribe()
    }
}
