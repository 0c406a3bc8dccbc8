//! The server that tests run on: the one that the environment names, or the shared ephemeral one.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use pool_postgres::PostgresConfig;
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::{Ephemeral, KeptMark, ServerError, config_of};
use crate::test_env;

/// A hold on a test server. An ephemeral one lives at least as long as anybody holds it, in any process.
#[derive(Debug)]
pub struct TestServer {
    config: PostgresConfig,
    system_database: String,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Environment { variable: &'static str },
    Ephemeral(Box<Ephemeral>),
}

impl TestServer {
    /// The server that `TEST_DB_*`, `DATABASE_URL` or `PGHOST` name, or else the shared ephemeral one,
    /// started if need be. Blocks: up to a few seconds when one is started.
    ///
    /// # Errors
    /// [`ServerError`], which says what to install or to set.
    pub fn obtain() -> Result<Self, ServerError> {
        match test_env::named() {
            Some(variable) => Self::of_environment(variable),
            None => Self::ephemeral(),
        }
    }

    fn of_environment(variable: &'static str) -> Result<Self, ServerError> {
        let config = test_env::from_env()?;
        let system_database = config.get_system_database()?.as_str().to_owned();
        Ok(Self { config, system_database, origin: Origin::Environment { variable } })
    }

    fn ephemeral() -> Result<Self, ServerError> {
        Ok(Self::of_ephemeral(Ephemeral::join_or_start()?))
    }

    /// The server that the environment names, or else the shared ephemeral one if it runs now; starts none.
    ///
    /// # Errors
    /// [`ServerError`], which says what to do.
    pub fn running() -> Result<Option<Self>, ServerError> {
        match test_env::named() {
            Some(variable) => Self::of_environment(variable).map(Some),
            None => Ok(Ephemeral::join_running()?.map(Self::of_ephemeral)),
        }
    }

    fn of_ephemeral(server: Ephemeral) -> Self {
        let config = config_of(server.address());
        let system_database = server.address().database().to_owned();
        Self { config, system_database, origin: Origin::Ephemeral(Box::new(server)) }
    }

    /// The command that connects to an ephemeral server, its password included: it is random, and goes with it.
    pub fn psql(&self) -> Option<String> {
        let Origin::Ephemeral(server) = &self.origin else { return None };
        let address = server.address();
        let (host, port, user) = (address.host(), address.port(), address.user());
        let (password, database) = (address.password(), address.database());
        Some(format!("PGPASSWORD={password} psql -h {host} -p {port} -U {user} {database}"))
    }

    /// Says that this process keeps the server, which must be an ephemeral one; it does as long as it holds both.
    ///
    /// # Errors
    /// [`ServerError`] when it is not ephemeral, or its directory cannot be written.
    pub fn mark_kept(&self) -> Result<KeptMark, ServerError> {
        match &self.origin {
            Origin::Ephemeral(server) => Ok(server.mark_kept()?),
            Origin::Environment { variable } => {
                Err(io::Error::other(format!("the server that {variable} names is not ours to keep")).into())
            }
        }
    }

    /// Where an ephemeral server keeps its logs and data.
    pub fn directory(&self) -> Option<PathBuf> {
        let Origin::Ephemeral(server) = &self.origin else { return None };
        Some(server.directory())
    }

    /// How to reach it.
    pub fn config(&self) -> &PostgresConfig {
        &self.config
    }

    /// The database to connect to when none in particular is meant.
    pub fn system_database(&self) -> &str {
        &self.system_database
    }

    /// Whether it was started for tests, and will be taken away.
    pub fn is_ephemeral(&self) -> bool {
        matches!(self.origin, Origin::Ephemeral(_))
    }

    /// The file that is locked by the one on this machine who may look for room on this server. It lies
    /// with the server if that is ephemeral, and goes with it.
    pub(crate) fn gate(&self) -> io::Result<File> {
        let path = match &self.origin {
            Origin::Ephemeral(server) => server.directory().join("gate"),
            Origin::Environment { .. } => {
                let user = nix::unistd::Uid::effective();
                let place = self.config.address("");
                let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
                let name: String = place.chars().map(plain).collect();
                std::env::temp_dir().join(format!("pool-testkit-{user}-{name}.gate"))
            }
        };
        File::options().create(true).append(true).open(path)
    }

    /// What it is and where, for people. Asks a server named by the environment for its version.
    pub fn describe(&self) -> String {
        let place = format!("{}:{}", self.config.host(), self.config.get_port());
        match &self.origin {
            Origin::Ephemeral(server) => format!("ephemeral PostgreSQL {} at {place}", server.version()),
            Origin::Environment { variable } => {
                let version = self.version().unwrap_or_else(|why| format!("(no answer: {why})"));
                format!("PostgreSQL {version} at {place} (from {variable})")
            }
        }
    }

    fn version(&self) -> Result<String, ServerError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let options = self.config.connect_options(&self.system_database);
        runtime.block_on(async {
            let mut conn = PgConnection::connect_with(&options).await?;
            let version = sqlx::query_scalar("select current_setting('server_version')").fetch_one(&mut conn);
            let version = version.await?;
            conn.close().await?;
            Ok(version)
        })
    }

    /// Lets go at once: an ephemeral server that nobody else uses is gone when this returns.
    ///
    /// # Errors
    /// [`ServerError`] when it does not go.
    pub fn release_now(self) -> Result<(), ServerError> {
        match self.origin {
            Origin::Ephemeral(server) => Ok(server.release_now()?),
            Origin::Environment { .. } => Ok(()),
        }
    }
}
