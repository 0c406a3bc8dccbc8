//! A budget that is what the server has, on servers that nobody else uses.

use pool_postgres::{Limits, PgPools};
use pool_testkit::eventually;
use pool_testkit::faults::{DedicatedServer, Stop};
use pool_testkit::server::config_of;
use sqlx::{Connection, PgConnection};

use crate::support::{SOON, id};

#[tokio::test]
async fn b1_a_budget_of_the_server_is_asked_for_at_build_and_after_a_restart() {
    let mut server = DedicatedServer::start().await.unwrap();
    let config = config_of(server.address());
    // Of 30 connections 3 are reserved; somebody else has one of the others, whom the pool's role may not look at.
    let mut other = PgConnection::connect_with(&config.connect_options("postgres")).await.unwrap();
    let role = "create role app login createdb password 'app'";
    sqlx::raw_sql(role).execute(&mut other).await.unwrap();
    let pools = PgPools::builder(config.user("app").password("app"))
        .limits(Limits::of_server(5))
        .build()
        .await
        .unwrap();
    let budget = || pools.stats().limit();
    assert_eq!(budget(), 30 - 3 - 1 - 5);
    let id = id("a");
    pools.ensure_workspace(&id).await.unwrap();
    let mut lease = pools.acquire(&id).await.unwrap();

    // The other one does not come back after the restart.
    drop(other);
    server.stop(Stop::Fast).await.unwrap();
    sqlx::query("select 1").execute(&mut lease).await.unwrap_err();
    drop(lease);
    pools.acquire(&id).await.unwrap_err();
    server.start_again().await.unwrap();
    let is_asked = || async { budget() == 30 - 3 - 5 };
    eventually("the budget being asked for again", SOON, is_asked).await.unwrap();
    drop(pools.acquire(&id).await.unwrap());
    pools.close().await.unwrap();
}

#[tokio::test]
async fn b1_a_server_with_nothing_to_spare_is_told_at_build() {
    let server = DedicatedServer::start().await.unwrap();
    let refused = PgPools::builder(config_of(server.address())).limits(Limits::of_server(27)).build().await;
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("nothing to spare") && error.contains("27"), "{error}");
}
