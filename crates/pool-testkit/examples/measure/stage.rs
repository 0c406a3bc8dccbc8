//! The server that is measured on, its databases, and pools and bare connections to them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use pool_postgres::{DatabaseNaming, Limits, Observer, PgPools, PgPoolsBuilder, PostgresConfig, WorkspaceId};
use pool_testkit::server::{DedicatedServer, config_of};
use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Connection};
use tokio::sync::Mutex;

use crate::Fault;
use crate::progress::Progress;
use crate::watch::Watch;

/// The largest pools that are measured at the same time, their peers, bare connections and samplers.
const CONNECTIONS_MAX: &str = "360";
/// Databases created at a time: more are slower.
const CREATED_AT_A_TIME: usize = 4;

/// Long enough that a slow machine does not make errors of what is merely late.
const ACQUIRE_TIMEOUT: Duration = Duration::from_mins(1);

/// A server of the run's own with a database for each workspace.
pub struct Stage {
    server: DedicatedServer,
    ids: Arc<Vec<WorkspaceId>>,
}

/// Bare connections, one for each task that uses them.
pub type Bare = Vec<Arc<Mutex<PgConnection>>>;

impl Stage {
    /// Starts the server and creates `count` workspaces, each connected to once, since the first session of a
    /// database costs more than the others.
    pub async fn set(count: usize, progress: &mut Progress) -> Result<Self, Fault> {
        progress.tell("a server is started");
        let settings = [("max_connections", CONNECTIONS_MAX), ("shared_buffers", "128MB")];
        let server = DedicatedServer::start_with(&settings).await?;
        let ids: Result<Vec<_>, _> = (0..count).map(|nth| WorkspaceId::new(format!("ws_{nth:04}"))).collect();
        let stage = Self { server, ids: Arc::new(ids?) };
        let pools = stage.pools("preparation", Limits::new(15).system(5)).await?;
        let mut created = stream::iter(stage.ids.iter())
            .map(|id| async {
                pools.ensure_workspace(id).await?;
                sqlx::query("select 1").execute(&pools.workspace(id)).await?;
                Ok::<_, Fault>(())
            })
            .buffer_unordered(CREATED_AT_A_TIME);
        let mut done = 0;
        while created.try_next().await?.is_some() {
            done += 1;
            if done % 20 == 0 {
                progress.tell(&format!("{done} of {count} databases are made"));
            }
        }
        drop(created);
        pools.close().await?;
        Ok(stage)
    }

    /// The first `count` workspaces.
    pub fn workspaces(&self, count: usize) -> Arc<Vec<WorkspaceId>> {
        Arc::new(self.ids.iter().take(count).cloned().collect())
    }

    /// A pool whose sessions are called `name` on the server.
    pub async fn pools(&self, name: &str, limits: Limits) -> Result<PgPools, Fault> {
        Ok(self.builder(name, limits).build().await?)
    }

    /// The same, with somebody who counts what it does with its connections.
    pub async fn watched(&self, name: &str, limits: Limits) -> Result<(PgPools, Arc<Watch>), Fault> {
        let watch = Arc::new(Watch::default());
        let observer: Arc<dyn Observer> = watch.clone();
        Ok((self.builder(name, limits).observer(observer).build().await?, watch))
    }

    fn builder(&self, name: &str, limits: Limits) -> PgPoolsBuilder {
        let config = config_of(self.server.address()).application_name(name);
        PgPools::builder(config).limits(limits).acquire_timeout(ACQUIRE_TIMEOUT)
    }

    /// How a session with a workspace's database is opened without a pool.
    pub fn config(&self) -> PostgresConfig {
        config_of(self.server.address()).application_name("bare")
    }

    /// The name of a workspace's database.
    pub fn database(&self, id: &WorkspaceId) -> Result<String, Fault> {
        Ok(self.config().naming()?.database(id).as_str().to_owned())
    }

    /// `count` connections to one database each.
    pub async fn bare(&self, count: usize) -> Result<Bare, Fault> {
        let mut connections = Vec::new();
        for id in self.ids.iter().cycle().take(count) {
            let connection = self.config().connect_options(&self.database(id)?).connect().await?;
            connections.push(Arc::new(Mutex::new(connection)));
        }
        Ok(connections)
    }

    /// A superuser's session that belongs to no workspace.
    pub async fn superuser(&self) -> Result<PgConnection, Fault> {
        Ok(config_of(self.server.address())
            .application_name("superuser")
            .connect_options("postgres")
            .connect()
            .await?)
    }
}

/// Closes connections that nobody uses any more.
pub async fn close(connections: Bare) -> Result<(), Fault> {
    for connection in connections {
        if let Some(connection) = Arc::into_inner(connection) {
            connection.into_inner().close().await?;
        }
    }
    Ok(())
}
