//! Several named pools in one test, each isolated from the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::error::TestError;
use crate::janitor::Janitor;
use crate::naming::{PoolName, RunId};
use crate::test_pool::{BESIDE_THE_POOL, LIMITS_DEFAULT, PoolMetrics, TestPool};

/// Named test pools: made when first asked for, cleaned up together. Room for all of them is kept at once,
/// so that two tests never wait for each other with half of what they need.
#[derive(Debug)]
pub struct TestPools {
    room_for: u32,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    room: Option<Arc<Janitor>>,
    pools: BTreeMap<String, Arc<TestPool>>,
}

impl Default for TestPools {
    fn default() -> Self {
        Self::new()
    }
}

impl TestPools {
    /// None yet, with room for two.
    pub fn new() -> Self {
        Self::with_room_for(2)
    }

    /// None yet, with room for `pools` of the default ceiling.
    pub fn with_room_for(pools: u32) -> Self {
        Self { room_for: pools, inner: Mutex::default() }
    }

    /// The pool of this name, made if there is none. Callers that ask for the same name at the same time
    /// get the same pool.
    ///
    /// # Errors
    /// [`TestError::NotReserved`] when there is room for no more, and as [`TestPool::new`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn get_or_create(&self, name: &str) -> Result<Arc<TestPool>, TestError> {
        let mut inner = self.inner.lock().await;
        if let Some(pool) = inner.pools.get(name) {
            return Ok(Arc::clone(pool));
        }
        if inner.pools.len() >= self.room_for as usize {
            return Err(TestError::NotReserved { room: self.room_for });
        }
        let room = self.room(&mut inner).await?;
        let pool = Arc::new(TestPool::builder().in_room(room).build().await?);
        inner.pools.insert(name.to_owned(), Arc::clone(&pool));
        Ok(pool)
    }

    async fn room(&self, inner: &mut Inner) -> Result<Arc<Janitor>, TestError> {
        if let Some(room) = &inner.room {
            return Ok(Arc::clone(room));
        }
        let connections = (LIMITS_DEFAULT.total() + BESIDE_THE_POOL) * self.room_for + 1;
        let (janitor, _) = Janitor::start(PoolName::fresh(RunId::of_process()), connections).await?;
        Ok(Arc::clone(inner.room.insert(Arc::new(janitor))))
    }

    /// How many there are.
    pub async fn count(&self) -> usize {
        self.inner.lock().await.pools.len()
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
        for (name, pool) in &self.inner.lock().await.pools {
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
        let Inner { pools, room: _room } = std::mem::take(&mut *self.inner.lock().await);
        for pool in pools.into_values() {
            outcome = outcome.and(pool.cleanup().await);
        }
        outcome
    }
}
