//! A workspace whose server says nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_core::{Condition, Driver, DriverError, Endpoint, PrefixNaming};
use pool_manager::{PoolManager, Settings};
use pool_postgres::{
    AcquireError, DatabaseName, DriverErrorKind, Limits, PgCatalog, PgConn, PgDriver, PgHandle,
    PostgresConfig, Template, WorkspaceId,
};
use pool_testkit::{TestPool, eventually};
use sqlx::Connection;
use tokio::net::TcpListener;

use crate::support::{SOON, id};

/// A driver that sends one workspace to a listener that accepts and says nothing.
struct Detour {
    real: PgDriver,
    hangs: DatabaseName,
    silence: PostgresConfig,
}

impl Driver for Detour {
    type Connection = PgConn;
    type Handle = PgHandle;

    async fn connect(&self, endpoint: &Endpoint) -> Result<PgConn, DriverError> {
        if endpoint.database != self.hangs {
            return self.real.connect(endpoint).await;
        }
        let options = self.silence.connect_options(endpoint.database.as_str());
        let never = sqlx::PgConnection::connect_with(&options).await;
        panic!("the silent listener answered: {never:?}")
    }
    async fn check(&self, conn: &mut PgConn) -> Result<(), DriverError> {
        self.real.check(conn).await
    }
    fn inspect(&self, conn: &mut PgConn) -> Condition {
        self.real.inspect(conn)
    }
    async fn recycle(&self, conn: &mut PgConn) -> Result<(), DriverError> {
        self.real.recycle(conn).await
    }
    async fn close(&self, conn: PgConn) {
        self.real.close(conn).await;
    }
    fn address(&self, endpoint: &Endpoint) -> String {
        self.real.address(endpoint)
    }
    fn handle(&self, conn: &PgConn) -> Option<PgHandle> {
        self.real.handle(conn)
    }
    async fn terminate(&self, handles: Vec<PgHandle>) -> Result<(), DriverError> {
        self.real.terminate(handles).await
    }
    async fn departed(&self, handles: Vec<PgHandle>) -> Result<Vec<usize>, DriverError> {
        self.real.departed(handles).await
    }
    fn control_connections(&self) -> u32 {
        self.real.control_connections()
    }

    fn control_reserve(&self) -> u32 {
        self.real.control_reserve()
    }
    async fn shutdown(&self) {
        self.real.shutdown().await;
    }
}

/// The median time of 50 rounds over all of `ids`, each on a warm connection.
async fn median_latency(manager: &PoolManager<Detour>, ids: &[WorkspaceId]) -> Duration {
    let mut times = Vec::new();
    for round in 0..50 {
        let began = Instant::now();
        let lease = manager.acquire(&ids[round % ids.len()]).await.unwrap();
        drop(lease);
        times.push(began.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o1_a_workspace_whose_connect_hangs_delays_no_other() {
    let pool = TestPool::builder().limits(Limits::new(6).system(5)).build().await.unwrap();
    let ids = pool.create_test_workspaces(3).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silence = PostgresConfig::new("127.0.0.1").port(listener.local_addr().unwrap().port());
    let accepted = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await.unwrap());
        }
    });

    let naming = Arc::new(PrefixNaming::new(pool.prefix()).unwrap());
    let config = pool.config().clone();
    let system = config.get_system_database().unwrap();
    let real = PgDriver::start(config.clone(), system.as_str(), SOON).await.unwrap();
    let hung = id("hung");
    let hangs = pool_core::DatabaseNaming::database(naming.as_ref(), &hung);
    let mut settings = Settings::new(Limits::new(7).system(3).per_workspace(4));
    settings.acquire_timeout = Duration::from_secs(3);
    settings.connect_timeout = Duration::from_secs(2);
    let catalog = Arc::new(PgCatalog::new(config, naming, Arc::new(Template::default())));
    let catalog = pool_core::CatalogKind::OverSystem { system, catalog };
    let manager = PoolManager::start(Detour { real, hangs, silence }, catalog, settings).unwrap();

    median_latency(&manager, &ids).await;
    let before = median_latency(&manager, &ids).await;
    let waiting = tokio::spawn({
        let (manager, hung) = (manager.clone(), hung.clone());
        async move { manager.acquire(&hung).await.map(drop) }
    });
    eventually("the hung open being under way", SOON, || async {
        manager.stats().workspaces.connections.opening == 1
    })
    .await
    .unwrap();
    let meanwhile = median_latency(&manager, &ids).await;
    println!("median acquire and release: {before:?} before, {meanwhile:?} while one workspace hangs");
    assert!(meanwhile < before * 10 + Duration::from_millis(1), "{before:?} became {meanwhile:?}");
    assert!(!waiting.is_finished(), "the hung one is still waiting");

    let error = waiting.await.unwrap().unwrap_err();
    let AcquireError::OpenFailed { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind, DriverErrorKind::TimedOut, "{error}");
    accepted.abort();
    manager.close().await.unwrap();
    pool.cleanup().await.unwrap();
}
