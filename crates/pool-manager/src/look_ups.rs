//! Before a connection of one workspace is closed for another, the registry asks whether that one exists at all. One task
//! answers: from the facts where they suffice, and otherwise by one question to the catalog for all that have asked
//! meanwhile. So a storm of callers for databases that do not exist costs nobody a warm connection (law O4).

use std::sync::{Arc, Weak};

use pool_core::{Driver, DriverError, DriverErrorKind, Phase, Target, WorkspaceId};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::engine::Fact;
use crate::manager::{Inner, PoolManager};

/// How many workspaces one question is about, at most.
const BATCH_MAX: usize = 500;

/// Answers look-ups until the manager is gone.
pub(crate) async fn answer<D: Driver>(manager: Weak<Inner<D>>, mut asked: mpsc::UnboundedReceiver<Target>) {
    let mut batch = Vec::new();
    while asked.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let Some(inner) = manager.upgrade() else { return };
        let manager = PoolManager { inner };
        let unknown = manager.answer_from_facts(batch.drain(..)).await;
        if !unknown.is_empty() {
            manager.answer_from_catalog(&unknown).await;
        }
    }
}

impl<D: Driver> PoolManager<D> {
    /// Answers for those that are known to exist, and returns the others.
    async fn answer_from_facts(&self, asked: impl Iterator<Item = Target>) -> Vec<WorkspaceId> {
        let mut unknown = Vec::new();
        for target in asked {
            match target {
                Target::Workspace(id) if self.inner.engine.facts.get(&id).await.is_none() => unknown.push(id),
                known => self.looked_up(&known, None),
            }
        }
        unknown
    }

    /// A catalog that cannot be asked answers nothing: the opens show the truth, as if nobody had asked.
    async fn answer_from_catalog(&self, unknown: &[WorkspaceId]) {
        let limit = self.inner.engine.settings.check_timeout;
        let exist = match timeout(limit, self.which_exist(unknown)).await {
            Ok(Ok(exist)) if exist.len() == unknown.len() => exist,
            other => {
                let cause =
                    other.map(|answer| answer.map(|exist| exist.len()).map_err(|error| error.to_string()));
                tracing::debug!(
                    ?cause,
                    asked = unknown.len(),
                    "the catalog did not say which databases exist"
                );
                vec![true; unknown.len()]
            }
        };
        for (id, exists) in unknown.iter().zip(exist) {
            let target = Target::from(id);
            if exists {
                self.looked_up(&target, None);
            } else {
                let address = self.inner.engine.driver.address(&self.inner.engine.endpoint(&target));
                let missing = DriverError::new(Phase::Catalog, DriverErrorKind::DatabaseMissing, address);
                self.looked_up(&target, Some(Arc::new(missing)));
            }
        }
    }

    async fn which_exist(&self, unknown: &[WorkspaceId]) -> Result<Vec<bool>, LookUpError> {
        let mut system = self.acquire_target(&Target::Catalog).await?;
        let exist = self.inner.catalog.which_exist(&mut system, unknown).await?;
        for (id, _) in unknown.iter().zip(&exist).filter(|(_, exists)| **exists) {
            self.inner.engine.facts.insert(id.clone(), Fact::Seen).await;
        }
        Ok(exist)
    }

    fn looked_up(&self, target: &Target, missing: Option<Arc<DriverError>>) {
        self.inner.engine.step(target, "looked up", |registry, now| registry.looked_up(target, missing, now));
    }
}

#[derive(Debug, thiserror::Error)]
enum LookUpError {
    #[error(transparent)]
    Acquire(#[from] pool_core::AcquireError),
    #[error(transparent)]
    Driver(#[from] DriverError),
}
