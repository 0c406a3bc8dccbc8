//! The adapter in memory: the fakes, as the suite sees them.

use std::sync::Arc;

use pool_core::{CatalogKind, DatabaseName, DatabaseNaming, PrefixNaming};

use super::{Adapter, Cannot};
use crate::fakes::{FakeCatalog, FakeConn, FakeDriver, FakeServer};

/// A server in memory as a world of the suite.
pub struct MemoryAdapter {
    server: FakeServer,
    naming: Arc<dyn DatabaseNaming>,
    system: DatabaseName,
}

impl MemoryAdapter {
    /// The server, for faults and for what things cost.
    pub fn server(&self) -> &FakeServer {
        &self.server
    }
}

impl Adapter for MemoryAdapter {
    type Driver = FakeDriver;

    async fn set_up() -> Result<Self, String> {
        let naming = PrefixNaming::new("fake").map_err(|error| error.to_string())?;
        let system = DatabaseName::new("postgres").map_err(|error| error.to_string())?;
        Ok(Self { server: FakeServer::new(), naming: Arc::new(naming), system })
    }

    async fn tear_down(self) {}

    async fn driver(&self) -> Result<FakeDriver, String> {
        Ok(self.server.driver())
    }

    fn catalog(&self) -> CatalogKind<FakeConn> {
        let catalog = FakeCatalog::new(self.server.clone(), Arc::clone(&self.naming));
        CatalogKind::OverSystem { system: self.system.clone(), catalog: Arc::new(catalog) }
    }

    async fn write(&self, conn: &mut FakeConn, value: i64) -> Result<(), String> {
        conn.write(value).await.map_err(|error| error.to_string())
    }

    async fn read(&self, conn: &mut FakeConn) -> Result<Option<i64>, String> {
        conn.read().await.map_err(|error| error.to_string())
    }

    async fn echo(&self, conn: &mut FakeConn, number: i64) -> Result<i64, String> {
        conn.echo(number).await.map_err(|error| error.to_string())
    }

    async fn sessions(&self) -> Result<usize, Cannot> {
        Ok(self.server.sessions())
    }

    async fn end_session(&self, conn: &mut FakeConn) -> Result<(), Cannot> {
        self.server.end_session(conn.session());
        Ok(())
    }

    fn ways(&self) -> &'static [&'static str] {
        &["a changed setting", "an answer that was not read"]
    }

    async fn leave(&self, conn: &mut FakeConn, way: &'static str) -> Result<(), String> {
        if way == "a changed setting" {
            conn.make_dirty();
        } else {
            conn.ask_and_leave(7);
        }
        Ok(())
    }

    async fn is_left(&self, conn: &mut FakeConn, _: &'static str) -> Result<bool, String> {
        Ok(conn.is_dirty() || conn.ask(11) != 11)
    }

    fn tells_departed(&self) -> Result<(), Cannot> {
        Ok(())
    }

    async fn refuse_to_terminate(&self) -> Result<(), Cannot> {
        self.server.refuse_to_terminate(true);
        Ok(())
    }

    async fn refused_driver(&self, _: &'static str) -> Result<FakeDriver, Cannot> {
        self.server.refuse_logins(true);
        Ok(self.server.driver())
    }
}
