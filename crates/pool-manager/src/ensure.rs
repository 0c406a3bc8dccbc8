//! Databases that come and go: `ensure` once however many callers, `drop` after a close, and the facts
//! that make the second `ensure` free. Facts may be forgotten at any time; they are never the truth.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use pool_core::{CatalogError, Driver, Target, WorkspaceId};
use tokio::sync::{Mutex, Semaphore};

use crate::closing::Closing;
use crate::manager::PoolManager;

/// Statements that create or drop databases, at a time: more of them are slower together (measured with
/// `PostgreSQL`: 66 to 122 a second at 4, 12 a second at 16).
const SIMULTANEOUS_CHANGES: usize = 4;
const STRIPES: usize = 64;

/// Serialises what is done to one workspace's database.
pub(crate) struct Changes {
    stripes: Vec<Mutex<()>>,
    hasher: RandomState,
    at_a_time: Semaphore,
}

impl Changes {
    pub(crate) fn new() -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            hasher: RandomState::new(),
            at_a_time: Semaphore::new(SIMULTANEOUS_CHANGES),
        }
    }

    fn stripe(&self, workspace: &WorkspaceId) -> &Mutex<()> {
        let at = self.hasher.hash_one(workspace) % STRIPES as u64;
        &self.stripes[usize::try_from(at).unwrap_or_default()]
    }
}

impl<D: Driver> PoolManager<D> {
    /// Creates the database of `workspace` unless it exists: once, however many callers, here or in
    /// other processes. Free when it was ensured before.
    ///
    /// # Errors
    /// [`CatalogError`] when no system connection can be had, or when the statement fails.
    ///
    /// # Cancel safety
    /// Dropping the future lets go of the system connection, on which a statement may be cancelled; the
    /// next caller starts afresh.
    pub async fn ensure_workspace(&self, workspace: &WorkspaceId) -> Result<(), CatalogError> {
        let facts = &self.inner.engine.facts;
        if facts.get(workspace).await.is_some() {
            return Ok(());
        }
        let _alone = self.inner.changes.stripe(workspace).lock().await;
        if facts.get(workspace).await.is_some() {
            return Ok(());
        }
        self.ask(Question::Ensure, workspace).await?;
        facts.insert(workspace.clone(), ()).await;
        let target = Target::from(workspace);
        self.inner.engine.step((&target).into(), |registry, now| registry.forgive(&target, now));
        Ok(())
    }

    /// Closes the workspace's connections and drops its database. Returns whether there was one.
    ///
    /// # Errors
    /// [`CatalogError`] when no system connection can be had, or when the statement fails. Leases held
    /// past the close timeout are cut, and that is not an error.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the database dropped or not; the workspace takes work again.
    pub async fn drop_workspace(&self, workspace: &WorkspaceId) -> Result<bool, CatalogError> {
        let _alone = self.inner.changes.stripe(workspace).lock().await;
        let target = Target::from(workspace);
        let closing = Closing::begin(&self.inner.engine, target.clone());
        if let Err(error) = closing.finish().await {
            tracing::debug!(%workspace, %error, "the database is dropped all the same");
        }
        self.inner.engine.facts.invalidate(workspace).await;
        self.ask(Question::Drop, workspace).await
    }

    /// Whether the workspace has a database, as the server says now.
    ///
    /// # Errors
    /// [`CatalogError`], as for `ensure_workspace`.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn workspace_exists(&self, workspace: &WorkspaceId) -> Result<bool, CatalogError> {
        self.ask(Question::Exists, workspace).await
    }

    /// The workspaces that have a database, as the server says now, in no particular order.
    ///
    /// # Errors
    /// [`CatalogError`], as for `ensure_workspace`.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn list_workspaces(&self) -> Result<Vec<WorkspaceId>, CatalogError> {
        let mut system = self.system().acquire().await?;
        let listed = self.inner.catalog.list(&mut system).await;
        listed.map_err(|source| CatalogError::Driver { target: Target::System, source: Arc::new(source) })
    }

    async fn ask(&self, question: Question, workspace: &WorkspaceId) -> Result<bool, CatalogError> {
        let _turn = match question {
            Question::Exists => None,
            Question::Ensure | Question::Drop => self.inner.changes.at_a_time.acquire().await.ok(),
        };
        let mut system = self.system().acquire().await?;
        let catalog = self.inner.catalog.as_ref();
        let answer = match question {
            Question::Ensure => catalog.ensure(&mut system, workspace).await,
            Question::Drop => catalog.drop(&mut system, workspace).await,
            Question::Exists => catalog.exists(&mut system, workspace).await,
        };
        answer.map_err(|source| CatalogError::Driver { target: workspace.into(), source: Arc::new(source) })
    }
}

/// What the catalog is asked about one workspace.
#[derive(Clone, Copy)]
enum Question {
    Ensure,
    Drop,
    Exists,
}
