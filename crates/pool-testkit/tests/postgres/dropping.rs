//! Databases are dropped by a role that may create databases and nothing else, whoever is connected to them.

use std::time::{Duration, Instant};

use pool_postgres::{CatalogError, DatabaseNaming, Limits, PgPools, WorkspaceId};
use pool_testkit::faults::DedicatedServer;
use pool_testkit::server::config_of;
use pool_testkit::{eventually, execute_outside};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use tokio::time::sleep;

use crate::support::{SOON, id};

/// A server of its own, and a pool on it whose role has no rights over anybody else.
struct World {
    pools: PgPools,
    server: DedicatedServer,
}

impl World {
    async fn new() -> Self {
        let server = DedicatedServer::start().await.unwrap();
        let role = "create role maker login createdb password 'maker'";
        execute_outside(&config_of(server.address()), "postgres", role).await.unwrap();
        let pools = PgPools::builder(config_of(server.address()).user("maker").password("maker"))
            .limits(Limits::new(10).system(4).per_workspace(3))
            .build()
            .await
            .unwrap();
        Self { pools, server }
    }

    fn database(&self, workspace: &WorkspaceId) -> String {
        self.pools.config().naming().unwrap().database(workspace).as_str().to_owned()
    }

    /// A session of the pool's role that is none of the pool's.
    async fn maker(&self, database: &str) -> PgConnection {
        let config =
            config_of(self.server.address()).user("maker").password("maker").application_name("outsider");
        PgConnection::connect_with(&config.connect_options(database)).await.unwrap()
    }

    async fn superuser(&self, database: &str) -> PgConnection {
        PgConnection::connect_with(&config_of(self.server.address()).connect_options(database)).await.unwrap()
    }
}

async fn workers(observer: &mut PgConnection, database: &str) -> i64 {
    let count =
        "select count(*) from pg_stat_activity where datname = $1 and backend_type = 'autovacuum worker'";
    sqlx::query_scalar(count).bind(database).fetch_one(observer).await.unwrap()
}

#[tokio::test]
async fn an_autovacuum_worker_does_not_keep_a_database_from_being_dropped() {
    let world = World::new().await;
    let a = id("a");
    world.pools.ensure_workspace(&a).await.unwrap();
    let database = world.database(&a);
    let rubbish = "create table rubbish as select n from generate_series(1, 20000) n; delete from rubbish";
    let mut litterer = world.maker(&database).await;
    sqlx::raw_sql(rubbish).execute(&mut litterer).await.unwrap();
    litterer.close().await.unwrap(); // its statistics are told when it ends, or some time later
    let mut observer = world.superuser("postgres").await;
    for setting in [
        "autovacuum = on",
        "autovacuum_naptime = 1",
        "autovacuum_vacuum_cost_limit = 1",
        "autovacuum_vacuum_cost_delay = 100",
    ] {
        let set = AssertSqlSafe(format!("alter system set {setting}"));
        sqlx::raw_sql(set).execute(&mut observer).await.unwrap();
    }
    sqlx::raw_sql("select pg_reload_conf()").execute(&mut observer).await.unwrap();
    let mut held = world.pools.acquire(&a).await.unwrap();
    sqlx::query("select 1").execute(&mut held).await.unwrap();
    let mut outside = world.maker(&database).await;
    let begun = Instant::now();
    while workers(&mut observer, &database).await == 0 {
        assert!(begun.elapsed() < SOON, "no autovacuum worker has come");
        sleep(Duration::from_millis(5)).await;
    }

    drop(held);
    assert!(world.pools.drop_workspace(&a).await.unwrap());
    assert!(!world.pools.workspace_exists(&a).await.unwrap());
    assert!(outside.ping().await.is_err(), "the role's own sessions are ended");
    world.pools.close().await.unwrap();
}

#[tokio::test]
async fn somebody_elses_session_keeps_its_database_and_the_caller_is_told() {
    let world = World::new().await;
    let a = id("a");
    world.pools.ensure_workspace(&a).await.unwrap();
    let mut stranger = world.superuser(&world.database(&a)).await;

    let refused = world.pools.drop_workspace(&a).await.unwrap_err();
    let CatalogError::Driver { source, .. } = &refused else { panic!("{refused}") };
    let told = source.to_string();
    assert!(told.contains("is being accessed by other users"), "{told}");
    stranger.ping().await.unwrap();
    stranger.close().await.unwrap();
    eventually("it being dropped", SOON, || async { world.pools.drop_workspace(&a).await.is_ok() })
        .await
        .unwrap();
    assert!(!world.pools.workspace_exists(&a).await.unwrap());
    world.pools.close().await.unwrap();
}

#[tokio::test]
async fn sessions_in_a_database_of_somebody_else_are_not_ended() {
    let world = World::new().await;
    let database = world.database(&id("a"));
    let make = format!("create database \"{database}\"");
    execute_outside(&config_of(world.server.address()), "postgres", &make).await.unwrap();
    let mut inside = world.maker(&database).await;

    let refused = world.pools.drop_workspace(&id("a")).await.unwrap_err();
    assert!(matches!(refused, CatalogError::Driver { .. }), "{refused}");
    inside.ping().await.unwrap();
    world.pools.close().await.unwrap();
}
