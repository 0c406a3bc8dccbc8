//! Several named pools in one test, each isolated from the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::error::TestError;
use crate::test_pool::{PoolMetrics, TestPool};

/// Named test pools: made when first asked for, cleaned up together.
#[derive(Debug, Default)]
pub struct TestPools {
    pools: Mutex<BTreeMap<String, Arc<TestPool>>>,
}

impl TestPools {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The pool of this name, made if there is none. Callers that ask for the same name at the same time
    /// get the same pool.
    ///
    /// # Errors
    /// As [`TestPool::new`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn get_or_create(&self, name: &str) -> Result<Arc<TestPool>, TestError> {
        let mut pools = self.pools.lock().await;
        if let Some(pool) = pools.get(name) {
            return Ok(Arc::clone(pool));
        }
        let pool = Arc::new(TestPool::new().await?);
        pools.insert(name.to_owned(), Arc::clone(&pool));
        Ok(pool)
    }

    /// How many there are.
    pub async fn count(&self) -> usize {
        self.pools.lock().await.len()
    }

    /// What each has used so far, by name.
    ///
    /// # Errors
    /// As [`TestPool::metrics`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn metrics(&self) -> Result<BTreeMap<String, PoolMetrics>, TestError> {
        let mut metrics = BTreeMap::new();
        for (name, pool) in &*self.pools.lock().await {
            metrics.insert(name.clone(), pool.metrics().await?);
        }
        Ok(metrics)
    }

    /// Cleans all of them up and forgets them; every one is tried, also after a failure.
    ///
    /// # Errors
    /// The first failure.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest to `Drop`.
    pub async fn cleanup_all(&self) -> Result<(), TestError> {
        let mut outcome = Ok(());
        for pool in std::mem::take(&mut *self.pools.lock().await).into_values() {
            outcome = outcome.and(pool.cleanup().await);
        }
        outcome
    }
}
