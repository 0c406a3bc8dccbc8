//! Databases that come and go: `ensure` once however many callers, `drop` after a close, and the facts
//! that make the second `ensure` free. Facts may be forgotten at any time; they are never the truth.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use pool_core::{CatalogError, CatalogKind, Driver, Target, WorkspaceId};
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore, watch};
use tokio::time::timeout;

use crate::catalog::{self, About, List, Unanswered, Verb};
use crate::closing::CloseGuard;
use crate::engine::{Engine, Fact};

/// Statements that create or drop databases, at a time: more of them are slower together (measured with
/// `PostgreSQL`: 66 to 122 a second at 4, 12 a second at 16).
const SIMULTANEOUS_CHANGES: usize = 4;
/// A change that takes longer hangs rather than works, on a lock or on a template that is in use, and gives its turn up.
const SLOW_CHANGE: Duration = Duration::from_secs(2);

/// The databases of all workspaces, as the catalog has them.
pub(crate) struct Databases<D: Driver> {
    engine: Arc<Engine<D>>,
    locks: WorkspaceLocks,
    at_a_time: Semaphore,
    room: Room,
}

/// Serialises what is done to one workspace's database, and only to that one.
#[derive(Default)]
struct WorkspaceLocks {
    by_workspace: DashMap<WorkspaceId, Arc<Mutex<LastFailure>>>,
}

/// What changes leave of the system share: one connection for all else, where there is more than one.
struct Room {
    changes: watch::Sender<u32>,
}

/// A change that is under way.
struct InRoom<'a>(&'a Room);

/// The last change that failed, for those who were waiting behind it.
type LastFailure = Option<(Instant, CatalogError)>;

/// The right to change one workspace's database.
struct WorkspaceLock<'a> {
    locks: &'a WorkspaceLocks,
    workspace: &'a WorkspaceId,
    state: Option<OwnedMutexGuard<LastFailure>>,
}

impl WorkspaceLocks {
    async fn lock<'a>(&'a self, workspace: &'a WorkspaceId) -> WorkspaceLock<'a> {
        let mutex = Arc::clone(&self.by_workspace.entry(workspace.clone()).or_default());
        let mut lock = WorkspaceLock { locks: self, workspace, state: None };
        lock.state = Some(mutex.lock_owned().await);
        lock
    }
}

impl WorkspaceLock<'_> {
    /// The failure of a change that began after `moment`, which so speaks for whoever came then.
    fn failure_since(&self, moment: Instant) -> Option<CatalogError> {
        let (began, error) = self.state.as_ref()?.as_ref()?;
        (*began >= moment).then(|| error.clone())
    }

    fn failed(&mut self, began: Instant, error: &CatalogError) {
        if let Some(state) = self.state.as_mut() {
            **state = Some((began, error.clone()));
        }
    }
}

impl Drop for WorkspaceLock<'_> {
    /// Forgets the lock when nobody else waits for it.
    fn drop(&mut self) {
        self.state = None;
        self.locks.by_workspace.remove_if(self.workspace, |_, lock| Arc::strong_count(lock) == 1);
    }
}

impl Room {
    /// Waits until there is place for another change.
    async fn enter<D: Driver>(&self, engine: &Engine<D>) -> InRoom<'_> {
        let mut changes = self.changes.subscribe();
        loop {
            let mut ceilings_changed = pin!(engine.ceilings_changed.notified());
            ceilings_changed.as_mut().enable();
            changes.mark_unchanged();
            let most = engine.ceilings().system_leases().saturating_sub(1).max(1);
            let has_entered = self.changes.send_if_modified(|changes| {
                let has_place = *changes < most;
                *changes += u32::from(has_place);
                has_place
            });
            if has_entered {
                return InRoom(self);
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = ceilings_changed => {}
            }
        }
    }
}

impl Drop for InRoom<'_> {
    fn drop(&mut self) {
        self.0.changes.send_modify(|changes| *changes -= 1);
    }
}

impl<D: Driver> Databases<D> {
    pub(crate) fn new(engine: Arc<Engine<D>>) -> Self {
        let at_a_time = Semaphore::new(SIMULTANEOUS_CHANGES);
        let room = Room { changes: watch::Sender::new(0) };
        Self { engine, locks: WorkspaceLocks::default(), at_a_time, room }
    }

    /// Creates the database of `workspace` unless it exists: once, however many callers, here or in
    /// other processes. Free when it was ensured before.
    pub(crate) async fn ensure_workspace(&self, workspace: &WorkspaceId) -> Result<(), CatalogError> {
        let facts = &self.engine.facts;
        if facts.get(workspace).await == Some(Fact::Ensured) {
            return Ok(());
        }
        let came = Engine::<D>::now();
        let mut lock = self.locks.lock(workspace).await;
        if facts.get(workspace).await == Some(Fact::Ensured) {
            return Ok(());
        }
        if let Some(error) = lock.failure_since(came) {
            return Err(error);
        }
        let began = Engine::<D>::now();
        if let Err(error) = self.ask(Verb::Ensure, workspace).await {
            lock.failed(began, &error);
            return Err(error);
        }
        facts.insert(workspace.clone(), Fact::Ensured).await;
        let target = Target::from(workspace);
        self.engine.step(&target, "clear failure", |registry, now| registry.clear_failure(&target, now));
        Ok(())
    }

    /// Closes the workspace's connections and drops its database. Returns whether there was one.
    pub(crate) async fn drop_workspace(&self, workspace: &WorkspaceId) -> Result<bool, CatalogError> {
        let _lock = self.locks.lock(workspace).await;
        let target = Target::from(workspace);
        let closing = CloseGuard::begin(&self.engine, target.clone());
        if let Err(error) = closing.finish().await {
            tracing::debug!(%workspace, %error, "the database is dropped all the same");
        }
        self.engine.facts.invalidate(workspace).await;
        self.ask(Verb::Drop, workspace).await
    }

    /// Whether the workspace has a database, as the server says now.
    pub(crate) async fn workspace_exists(&self, workspace: &WorkspaceId) -> Result<bool, CatalogError> {
        self.ask(Verb::Exists, workspace).await
    }

    /// The workspaces that have a database, as the server says now, in no particular order.
    pub(crate) async fn list_workspaces(&self) -> Result<Vec<WorkspaceId>, CatalogError> {
        let limit = self.engine.settings.change_timeout;
        let late = |_| CatalogError::TimedOut { target: Target::Catalog, after: limit };
        let listed = timeout(limit, catalog::ask(&self.engine, List)).await.map_err(late)?;
        listed.map_err(|why| told(why, Target::Catalog))
    }

    async fn ask(&self, verb: Verb, workspace: &WorkspaceId) -> Result<bool, CatalogError> {
        let limit = self.engine.settings.change_timeout;
        let late = |_| CatalogError::TimedOut { target: workspace.into(), after: limit };
        timeout(limit, self.ask_without_limit(verb, workspace)).await.map_err(late)?
    }

    async fn ask_without_limit(&self, verb: Verb, workspace: &WorkspaceId) -> Result<bool, CatalogError> {
        if verb == Verb::Exists {
            return self.ask_now(verb, workspace).await;
        }
        let turn = self.at_a_time.acquire().await.ok();
        // Where nothing is lent, there is no share to leave room in.
        let _room = match self.engine.catalog {
            CatalogKind::OverSystem { .. } => Some(self.room.enter(&self.engine).await),
            CatalogKind::Alone(_) => None,
        };
        let mut change = pin!(self.ask_now(verb, workspace));
        if let Ok(answer) = timeout(SLOW_CHANGE, &mut change).await {
            return answer;
        }
        drop(turn);
        change.await
    }

    async fn ask_now(&self, verb: Verb, workspace: &WorkspaceId) -> Result<bool, CatalogError> {
        let answer = catalog::ask(&self.engine, About(verb, workspace)).await;
        answer.map_err(|why| told(why, workspace.into()))
    }
}

fn told(why: Unanswered, target: Target) -> CatalogError {
    match why {
        Unanswered::Acquire(error) => error.into(),
        Unanswered::Driver(source) => CatalogError::Driver { target, source: Arc::new(source) },
    }
}
