//! A manager on a server in memory: where the server meets the driver and the catalog that are made for it.

use std::sync::Arc;

use pool_core::{CatalogKind, DatabaseName, Limits, PrefixNaming};
use pool_manager::{PoolManager, Settings};

use super::{FakeCatalog, FakeDriver, FakeServer};
use crate::error::TestError;

impl FakeServer {
    /// A manager on this server, with settings as `adjust` makes them. Databases are named `fake_ws_…`.
    ///
    /// # Errors
    /// [`TestError::Build`] when the limits cannot hold, or outside a runtime.
    pub fn manager(
        &self,
        limits: Limits,
        adjust: impl FnOnce(&mut Settings),
    ) -> Result<PoolManager<FakeDriver>, TestError> {
        let build = |error| TestError::Build(pool_postgres::BuildError::Config(error));
        let naming = Arc::new(PrefixNaming::new("fake").map_err(|error| build(error.into()))?);
        let system = DatabaseName::new("postgres").map_err(|error| build(error.into()))?;
        let mut settings = Settings::new(limits);
        adjust(&mut settings);
        let catalog = Arc::new(FakeCatalog::new(self.clone(), naming));
        let catalog = CatalogKind::OverSystem { system, catalog };
        PoolManager::start(FakeDriver::new(self.clone()), catalog, settings)
            .map_err(|error| TestError::Build(pool_postgres::BuildError::Start(error)))
    }
}
