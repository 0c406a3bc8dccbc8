//! One share of the budget: one registry behind one lock with one door. A transition runs inside; nothing is awaited, woken,
//! performed or dropped there. The caller performs the effects.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pool_core::{CallSite, ConnectionId, Driver, Registry};
use tokio::runtime;
use tokio::sync::watch;

/// A section that holds the lock longer than this delays everybody, and is reported in debug builds.
const SECTION_MAX: Duration = Duration::from_millis(1);

/// The workspaces' share, or the system's.
pub(crate) struct Share<D: Driver> {
    /// The moment at which the registry wants to be called.
    promised: watch::Sender<Option<Instant>>,
    registry: Mutex<ShareRegistry<D>>,
}

/// The registry of a share.
pub(crate) type ShareRegistry<D> = Registry<<D as Driver>::Connection, Session<<D as Driver>::Handle>>;

/// A live session, from outside.
pub(crate) struct Session<H> {
    /// What ends it, for closes that have to cut; none if nothing can.
    pub(crate) handle: Option<H>,
    /// On which it was opened, and with which it is of no use any more.
    pub(crate) runtime: runtime::Id,
    /// Where the holder asked for it; none while nobody holds it.
    pub(crate) holder: Option<CallSite>,
}

/// From now on the connection is held by a caller that asked at `at`, or by nobody.
pub(crate) fn note_holder<D: Driver>(
    registry: &mut ShareRegistry<D>,
    connection: ConnectionId,
    at: Option<CallSite>,
) {
    if let Some(session) = registry.session_mut(connection) {
        session.holder = at;
    }
}

impl<D: Driver> Share<D> {
    pub(crate) fn new(registry: ShareRegistry<D>) -> Self {
        Self { promised: watch::Sender::new(None), registry: Mutex::new(registry) }
    }

    /// Runs the section `name` of code on the registry, under the lock. Its moment is read before the lock is taken, so it may lie
    /// before that of the section that ran last.
    pub(crate) fn with<R>(
        &self,
        name: &'static str,
        section: impl FnOnce(&mut ShareRegistry<D>, Instant) -> R,
    ) -> R {
        let now = now();
        // Only an eviction policy is plugged-in code in here; one that panics leaves a state that is not
        // whole, and everything after it may be wrong but not unsound.
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let _watch = cfg!(debug_assertions).then(|| Watch { name, began: Instant::now() });
        section(&mut registry, now)
    }

    /// Has `due` called at a moment, or at an earlier one that was asked for: promises come from outside the lock, in any
    /// order, and a call that comes early does no harm.
    pub(crate) fn promise(&self, at: Instant) {
        self.promised.send_if_modified(|promised| {
            let is_next = promised.is_none_or(|before| at < before);
            *promised = promised.filter(|_| !is_next).or(Some(at));
            is_next
        });
    }

    /// The moment `at` has come; another one may have been asked for meanwhile.
    pub(crate) fn forget_promise(&self, at: Option<Instant>) {
        self.promised.send_if_modified(|promised| {
            let is_it = *promised == at;
            *promised = promised.filter(|_| !is_it);
            is_it
        });
    }

    pub(crate) fn promised(&self) -> watch::Receiver<Option<Instant>> {
        self.promised.subscribe()
    }
}

/// What ends the sessions of `ids`, but for those that are being closed, or that nothing can end.
pub(crate) fn handles_of<D: Driver>(
    registry: &ShareRegistry<D>,
    ids: Vec<ConnectionId>,
) -> Vec<(ConnectionId, D::Handle)> {
    ids.into_iter().filter_map(|id| Some((id, registry.session(id)?.handle.clone()?))).collect()
}

/// The shell's clock; tests pause it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Times one section.
struct Watch {
    name: &'static str,
    began: Instant,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        if took > SECTION_MAX {
            tracing::debug!(section = self.name, ?took, "the lock of a share was held for long");
        }
    }
}
