//! The adapter keeps the contract: one line makes a test of each clause.

use std::sync::Arc;

use own_adapter::{LogCatalog, LogDriver, LogSession};
use pool_core::{CatalogKind, PrefixNaming};
use pool_testkit::conformance::{Adapter, Cannot};
use tempfile::TempDir;

pool_testkit::conformance!(Logs);

/// A directory as a world of the suite.
struct Logs {
    root: TempDir,
    naming: Arc<PrefixNaming>,
}

impl Adapter for Logs {
    type Driver = LogDriver;

    async fn set_up() -> Result<Self, String> {
        let root = TempDir::new().map_err(|error| error.to_string())?;
        let naming = PrefixNaming::new("log").map_err(|error| error.to_string())?;
        Ok(Self { root, naming: Arc::new(naming) })
    }

    async fn tear_down(self) {}

    async fn driver(&self) -> Result<LogDriver, String> {
        Ok(LogDriver::new(self.root.path()))
    }

    fn catalog(&self) -> CatalogKind<LogSession> {
        CatalogKind::Alone(Arc::new(LogCatalog::new(self.root.path(), self.naming.clone())))
    }

    async fn write(&self, conn: &mut LogSession, value: i64) -> Result<(), String> {
        conn.append(value).await.map_err(|error| error.to_string())
    }

    async fn read(&self, conn: &mut LogSession) -> Result<Option<i64>, String> {
        conn.last().await.map_err(|error| error.to_string())
    }

    async fn echo(&self, conn: &mut LogSession, number: i64) -> Result<i64, String> {
        self.write(conn, number).await?;
        self.read(conn).await.map(Option::unwrap_or_default)
    }

    /// The operating system knows which files are open.
    async fn sessions(&self) -> Result<usize, Cannot> {
        let open =
            std::fs::read_dir("/proc/self/fd").map_err(|_| Cannot("there is no /proc/self/fd here"))?;
        let files = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        let is_log = |path: &std::path::PathBuf| {
            path.starts_with(self.root.path()) && path.to_string_lossy().contains("/numbers")
        };
        Ok(files.filter(is_log).count())
    }

    fn ways(&self) -> &'static [&'static str] {
        &["a lock"]
    }

    async fn leave(&self, conn: &mut LogSession, _: &'static str) -> Result<(), String> {
        conn.lock().map_err(|error| error.to_string())
    }

    async fn is_left(&self, conn: &mut LogSession, _: &'static str) -> Result<bool, String> {
        Ok(conn.has_lock())
    }
}
