//! What the cases need of every adapter: a world of its own, a manager over it, and verbs that hold each answer against an
//! independent witness.

use std::future::Future;
use std::sync::Arc;

use futures_util::future::try_join_all;
use pool_core::{AcquireError, CatalogKind, DatabaseName, Driver, DriverErrorKind, Limits, WorkspaceId};
use pool_manager::{Lease, PoolManager, Settings};
use pool_testkit::conformance::{Adapter, Cannot, ConnectionOf};
use pool_testkit::eventually;
use pool_testkit::run::{Record, current_test};
use tokio::time::Instant;

pub use crate::support::{Failed, Outcome, SOON};

/// What workspaces may have in all, and each of them, unless a case says otherwise.
pub const BUDGET: u32 = 15;
pub const CEILING: u32 = 10;
/// What the system database may have, where there is one, beside the driver's own.
const SYSTEM: u32 = 3;

/// An adapter under the suites: beside what conformance needs, what can happen to a database behind the pool's back.
pub trait Suite: Adapter {
    /// Whether the cases run in virtual time.
    const IS_VIRTUAL: bool = false;

    /// Makes a world cost what worlds cost. The default is for those that do so by themselves.
    fn cost(&self) {}

    /// Deletes `database` behind the pool's back.
    fn delete(&self, database: &DatabaseName) -> impl Future<Output = Outcome> + Send;

    /// Has each new session with `database` fail from now on, or succeed again.
    fn refuse(&self, database: &DatabaseName, refuses: bool) -> impl Future<Output = Outcome> + Send;
}

/// A lease of an adapter.
pub type LeaseOf<A> = Lease<<A as Adapter>::Driver>;

/// Runs a case in the adapter's kind of time.
pub fn run<A: Suite>(body: impl Future<Output = Outcome>) -> Outcome {
    if !A::IS_VIRTUAL {
        return crate::support::on_runtime(body);
    }
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?.block_on(body)
}

/// A world, and a manager over it. Cloning gives another handle on both.
pub struct Rig<A: Suite> {
    pub world: Arc<A>,
    pub pools: PoolManager<A::Driver>,
    began: Instant,
}

impl<A: Suite> Clone for Rig<A> {
    fn clone(&self) -> Self {
        Self { world: Arc::clone(&self.world), pools: self.pools.clone(), began: self.began }
    }
}

impl<A: Suite> Rig<A> {
    /// With the budget and the ceiling that most cases have.
    pub async fn new() -> Outcome<Self> {
        Self::sized(BUDGET, CEILING, |_| ()).await
    }

    /// With `budget` connections for all workspaces and `ceiling` for each.
    pub async fn sized(budget: u32, ceiling: u32, adjust: impl FnOnce(&mut Settings)) -> Outcome<Self> {
        let world = A::set_up().await?;
        world.cost();
        Self::over(Arc::new(world), budget, ceiling, adjust).await
    }

    /// Another manager over the same world.
    pub async fn another(&self, budget: u32) -> Outcome<Self> {
        Self::over(Arc::clone(&self.world), budget, budget, |_| ()).await
    }

    async fn over(
        world: Arc<A>,
        budget: u32,
        ceiling: u32,
        adjust: impl FnOnce(&mut Settings),
    ) -> Outcome<Self> {
        let driver = world.driver().await?;
        let own = driver.control_connections() + driver.control_reserve();
        let catalog = world.catalog();
        let limits = match catalog.system() {
            Some(_) => Limits::new(budget + own + SYSTEM).system(own + SYSTEM),
            None => Limits::new(budget + own),
        };
        let mut settings = Settings::new(limits.per_workspace(ceiling));
        settings.acquire_timeout = SOON;
        adjust(&mut settings);
        let pools = PoolManager::start(driver, catalog, settings)?;
        Ok(Self { world, pools, began: Instant::now() })
    }

    /// Whether there is a system database.
    pub fn has_system(&self) -> bool {
        matches!(self.world.catalog(), CatalogKind::OverSystem { .. })
    }

    pub fn database(&self, id: &WorkspaceId) -> DatabaseName {
        self.world.catalog().database(id)
    }

    /// As many workspaces, made now.
    pub async fn workspaces(&self, count: usize) -> Outcome<Vec<WorkspaceId>> {
        let mut ids = Vec::new();
        for number in 0..count {
            let id = WorkspaceId::new(format!("ws_{number:04}"))?;
            self.pools.ensure_workspace(&id).await?;
            ids.push(id);
        }
        Ok(ids)
    }

    /// One lease for each of `ids`, all held at once.
    pub async fn hold(&self, ids: &[WorkspaceId]) -> Outcome<Vec<LeaseOf<A>>> {
        Ok(try_join_all(ids.iter().map(|id| self.pools.acquire(id))).await?)
    }

    /// Asks a question on a connection; its answer is its own.
    pub async fn ask(&self, conn: &mut ConnectionOf<A>) -> Outcome {
        let nonce = fastrand::i64(..);
        let answer = self.world.echo(conn, nonce).await?;
        if answer == nonce { Ok(()) } else { Err(format!("{nonce} was answered by {answer}").into()) }
    }

    /// A caller of `id` is served, and answered.
    pub async fn serves(&self, id: &WorkspaceId) -> Outcome {
        self.ask(&mut *self.pools.acquire(id).await?).await
    }

    /// Writes into the database of `id`.
    pub async fn write(&self, id: &WorkspaceId, value: i64) -> Outcome {
        Ok(self.world.write(&mut *self.pools.acquire(id).await?, value).await?)
    }

    /// What was written last into the database of `id`.
    pub async fn read(&self, id: &WorkspaceId) -> Outcome<Option<i64>> {
        Ok(self.world.read(&mut *self.pools.acquire(id).await?).await?)
    }

    /// The sessions as a witness counts them; none where nobody but the driver can.
    pub async fn sessions(&self) -> Option<usize> {
        match self.world.sessions().await {
            Ok(counted) => Some(counted),
            Err(Cannot(why)) => {
                println!("no witness: {why}");
                None
            }
        }
    }

    /// Returns when a witness counts that many sessions.
    pub async fn witness_counts(&self, expected: u32) -> Outcome {
        let agrees = || async { self.sessions().await.is_none_or(|counted| counted == expected as usize) };
        let seen = eventually(&format!("a witness counting {expected}"), SOON, agrees).await;
        match seen {
            Ok(()) => Ok(()),
            Err(error) => Err(format!("{error}; it counts {:?}", self.sessions().await).into()),
        }
    }

    /// Returns when nothing is in use, on its way or waited for, and a witness counts what the pool counts.
    pub async fn settled(&self) -> Outcome {
        let quiet = || async {
            let stats = self.pools.stats();
            let busy = stats.connections();
            busy.in_use + busy.opening + busy.closing + stats.workspaces.waiting + stats.system.waiting == 0
        };
        eventually("quiet", SOON, quiet).await?;
        let stats = self.pools.stats();
        self.witness_counts(stats.connections().total() + stats.control).await
    }

    /// Waits until that many callers stand in the queues of the workspaces.
    pub async fn queue_is(&self, callers: usize) -> Outcome {
        let queued = || async { self.pools.stats().workspaces.waiting as usize == callers };
        Ok(eventually(&format!("a queue of {callers}"), SOON, queued).await?)
    }

    /// Closes the pool: a witness counts nothing of it any more, and its own sums agree.
    pub async fn close(&self) -> Outcome {
        self.pools.close().await?;
        let stats = self.pools.stats();
        for share in [stats.workspaces, stats.system] {
            assert_eq!((share.connections.total(), share.waiting, share.targets), (0, 0, 0), "{share:?}");
            assert_eq!((share.opened, share.miscounts), (share.closed, 0), "{share:?}");
            assert!(share.peak <= share.limit, "{share:?}");
        }
        Ok(())
    }

    /// Ends a case: nothing is left of its pools and its world.
    pub async fn end(self) -> Outcome {
        self.close().await?;
        self.witness_counts(0).await?;
        self.leave_record();
        let world = Arc::into_inner(self.world).ok_or("a task still has the world")?;
        world.tear_down().await;
        Ok(())
    }

    fn leave_record(&self) {
        let (suite, case) = current_test();
        let stats = self.pools.stats();
        let (workspaces, system) = (stats.workspaces, stats.system);
        Record {
            suite,
            case,
            opened: workspaces.opened + system.opened,
            closed: workspaces.closed + system.closed,
            peak: workspaces.peak + system.peak,
            leaked: 0,
            duration_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
        .leave();
    }
}

/// What all `tasks` gave; the first failure ends the others.
pub async fn all_at_once<R, F>(tasks: usize, task: impl Fn(usize) -> F) -> Outcome<Vec<R>>
where
    F: Future<Output = Outcome<R>> + Send + 'static,
    R: Send + 'static,
{
    let running = (0..tasks).map(task).collect();
    crate::support::finish(running).await
}

/// Asks on behalf of `rig` again and again until a caller of `id` is served.
pub async fn until_served<A: Suite>(rig: &Rig<A>, id: &WorkspaceId, what: &str) -> Outcome {
    let served = || async { rig.serves(id).await.is_ok() };
    Ok(eventually(what, SOON, served).await?)
}

/// Whether an acquire failed since the database does not exist.
pub fn is_missing(error: &AcquireError) -> bool {
    matches!(error, AcquireError::OpenFailed { source, .. } if source.kind == DriverErrorKind::DatabaseMissing)
}
