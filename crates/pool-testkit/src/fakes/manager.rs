//! A manager on a server in memory: where the server meets the driver and the catalog that are made for it.

use std::error::Error;
use std::sync::Arc;

use pool_core::{CatalogKind, DatabaseName, Limits, PrefixNaming};
use pool_manager::{PoolManager, Settings};

use super::{FakeCatalog, FakeDriver, FakeServer};

impl FakeServer {
    /// A driver for this server.
    pub fn driver(&self) -> FakeDriver {
        FakeDriver::new(self.clone())
    }

    /// A manager on this server, with settings as `adjust` makes them. Databases are named `fake_ws_…`.
    ///
    /// # Errors
    /// When the limits cannot hold, or outside a runtime.
    pub fn manager(
        &self,
        limits: Limits,
        adjust: impl FnOnce(&mut Settings),
    ) -> Result<PoolManager<FakeDriver>, Box<dyn Error + Send + Sync>> {
        let naming = Arc::new(PrefixNaming::new("fake")?);
        let system = DatabaseName::new("postgres")?;
        let mut settings = Settings::new(limits);
        adjust(&mut settings);
        let catalog =
            CatalogKind::OverSystem { system, catalog: Arc::new(FakeCatalog::new(self.clone(), naming)) };
        Ok(PoolManager::start(self.driver(), catalog, settings)?)
    }
}
