//! One share of the budget: one registry behind one lock with one door, and what ends its sessions from outside.
//! A transition runs inside; nothing is awaited, woken, performed or dropped there. The caller performs the effects.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use pool_core::{ConnectionId, Driver, Registry};
use tokio::runtime;
use tokio::sync::watch;

/// A section that holds the lock longer than this delays everybody, and is reported in debug builds.
const SECTION_MAX: Duration = Duration::from_millis(1);

/// The workspaces' share, or the system's.
pub(crate) struct Share<D: Driver> {
    /// The moment at which the registry wants to be called.
    promised: watch::Sender<Option<Instant>>,
    registry: Mutex<Registry<D::Connection>>,
    sessions: DashMap<ConnectionId, Session<D::Handle>>,
}

/// A live session, from outside.
struct Session<H> {
    /// What ends it, for closes that have to cut.
    handle: H,
    /// On which it was opened, and with which it is of no use any more.
    runtime: runtime::Id,
}

impl<D: Driver> Share<D> {
    pub(crate) fn new(registry: Registry<D::Connection>) -> Self {
        Self { promised: watch::Sender::new(None), registry: Mutex::new(registry), sessions: DashMap::new() }
    }

    /// Runs the section `name` of code on the registry, under the lock.
    pub(crate) fn with<R>(
        &self,
        name: &'static str,
        section: impl FnOnce(&mut Registry<D::Connection>, Instant) -> R,
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

    /// Remembers a session that has just been opened, on `runtime`.
    pub(crate) fn remember(&self, id: ConnectionId, handle: D::Handle, runtime: runtime::Id) {
        self.sessions.insert(id, Session { handle, runtime });
    }

    pub(crate) fn forget(&self, id: ConnectionId) {
        self.sessions.remove(&id);
    }

    /// Those of all connections.
    pub(crate) fn handles(&self) -> Vec<D::Handle> {
        self.sessions.iter().map(|entry| entry.handle.clone()).collect()
    }

    pub(crate) fn handle(&self, id: ConnectionId) -> Option<D::Handle> {
        self.sessions.get(&id).map(|entry| entry.handle.clone())
    }

    /// The connections that were opened on `runtime`.
    pub(crate) fn opened_on(&self, runtime: runtime::Id) -> Vec<ConnectionId> {
        let its = self.sessions.iter().filter(|entry| entry.runtime == runtime);
        its.map(|entry| *entry.key()).collect()
    }
}

/// The moment at which the next transition happens; tests pause this clock.
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
