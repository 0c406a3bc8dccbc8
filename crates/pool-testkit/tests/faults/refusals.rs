//! The server answers, and refuses.

use std::time::{Duration, Instant};

use pool_postgres::{DriverErrorKind, PgLease, WorkspaceId};
use pool_testkit::eventually;
use sqlx::{Connection, Executor, PgConnection};

use crate::support::{
    Failure, Observed, Others, Outcome, PATIENT, SOON, World, is_loss, open_failure, state_of, told,
    told_by_statement,
};

/// Takes all connections that the server has left for ordinary users.
async fn take_all_connections(world: &World) -> Result<Vec<PgConnection>, Failure> {
    let options = world.outsider().connect_options("postgres");
    let mut taken = Vec::new();
    loop {
        match PgConnection::connect_with(&options).await {
            Ok(conn) => taken.push(conn),
            Err(error) if state_of(&error).as_deref() == Some("53300") => return Ok(taken),
            Err(error) => return Err(error.into()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o3_a_server_that_is_full_is_told_and_asked_again() -> Outcome {
    let world = World::direct(PATIENT).await?;
    let bystander = world.watch();

    let taken = take_all_connections(&world).await?;
    let refusal = world.refusal().await;
    let (kind, state) = open_failure(&refusal);
    assert_eq!((kind, state.as_deref()), (DriverErrorKind::ServerFull, Some("53300")), "{refusal}");
    for conn in taken {
        conn.close().await?;
    }
    let recovery = world.back_after(Instant::now()).await?;
    let seen = told(&refusal);
    let observed = Observed { fault: "`max_connections` taken by others", law: "O3", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o3_a_password_that_is_refused_is_told() -> Outcome {
    let world = World::direct(PATIENT).await?;
    let bystander = world.watch();

    world.change_password(false).await?;
    let refusal = world.refusal().await;
    let (kind, state) = open_failure(&refusal);
    assert_eq!((kind, state.as_deref()), (DriverErrorKind::Refused, Some("28P01")), "{refusal}");
    assert!(!format!("{refusal} {refusal:?}").contains("app's own"), "no password is shown");
    world.change_password(true).await?;
    let recovery = world.back_after(Instant::now()).await?;
    let seen = told(&refusal);
    let observed = Observed { fault: "authentication refused", law: "O3", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o4_a_missing_database_is_told_and_served_as_soon_as_it_is_there() -> Outcome {
    let mut world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    world.hit = WorkspaceId::new("nowhere")?;

    let refusal = world.refusal().await;
    let (kind, state) = open_failure(&refusal);
    assert_eq!((kind, state.as_deref()), (DriverErrorKind::DatabaseMissing, Some("3D000")), "{refusal}");
    world.pools.ensure_workspace(&world.hit).await?;
    let recovery = world.back_at_once(Instant::now()).await?;
    let seen = told(&refusal);
    let observed = Observed { fault: "database missing, then created", law: "O4", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o4_a_database_dropped_under_a_lease_is_told_and_can_be_created_again() -> Outcome {
    let world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    let mut lease = world.lease().await?;

    world.order(&format!("drop database \"{}\" with (force)", world.database()?)).await?;
    let error = lease.execute("select 1").await.unwrap_err();
    assert!(is_loss(&error), "{error}");
    drop(lease);
    let refusal = world.refusal().await;
    let (kind, state) = open_failure(&refusal);
    assert_eq!((kind, state.as_deref()), (DriverErrorKind::DatabaseMissing, Some("3D000")), "{refusal}");
    world.pools.ensure_workspace(&world.hit).await?;
    let recovery = world.back_at_once(Instant::now()).await?;
    let seen = format!("{}; {}", told_by_statement(&error), told(&refusal));
    let observed =
        Observed { fault: "database dropped under a lease, then created", law: "O4", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o3_a_renamed_database_is_told_and_served_when_it_has_its_name_back() -> Outcome {
    let world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    let mut lease = world.lease().await?;
    let name = world.database()?;

    world.terminate(lease.backend_pid()).await?;
    world.order(&format!("alter database \"{name}\" rename to elsewhere")).await?;
    let error = lease.execute("select 1").await.unwrap_err();
    assert!(is_loss(&error), "{error}");
    drop(lease);
    let refusal = world.refusal().await;
    let (kind, state) = open_failure(&refusal);
    assert_eq!((kind, state.as_deref()), (DriverErrorKind::DatabaseMissing, Some("3D000")), "{refusal}");
    let back = format!("alter database elsewhere rename to \"{name}\"");
    eventually("the database having its name back", SOON, || async { world.order(&back).await.is_ok() })
        .await?;
    let recovery = world.back_after(Instant::now()).await?;
    let seen = format!("{}; {}", told_by_statement(&error), told(&refusal));
    let observed = Observed { fault: "database renamed under a lease, and back", law: "O3", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}

/// Gives `lease` back, and has a caller served by that very connection; how long after `since`.
async fn back_on_the_same_connection(
    world: &World,
    lease: PgLease,
    since: Instant,
) -> Result<Duration, Failure> {
    let (pid, before) = (lease.backend_pid(), world.pools.stats().workspaces);
    drop(lease);
    world.given_back().await?;
    let recovery = world.back_at_once(since).await?;
    assert_eq!(world.lease().await?.backend_pid(), pid, "it is the same connection");
    let after = world.pools.stats().workspaces;
    assert_eq!((after.opened, after.open_failures), (before.opened, before.open_failures));
    Ok(recovery)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l1_a_full_disk_is_told_untouched_and_the_connection_stays() -> Outcome {
    let world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    let mut lease = world.lease().await?;

    let full = "do $$ begin raise exception 'no space left' using errcode = '53100'; end $$";
    let error = lease.execute(full).await.unwrap_err();
    assert_eq!(state_of(&error).as_deref(), Some("53100"), "{error}");
    let since = Instant::now();
    lease.execute("select 1").await?;
    let recovery = back_on_the_same_connection(&world, lease, since).await?;
    let seen = format!("{}; the connection stays", told_by_statement(&error));
    let observed = Observed { fault: "disk full (raised in PL/pgSQL)", law: "L1", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l1_a_read_only_transaction_is_told_untouched_and_the_connection_stays() -> Outcome {
    let world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    let mut lease = world.lease().await?;

    lease.execute("create table note (id int)").await?;
    lease.execute("set default_transaction_read_only = on").await?;
    let error = lease.execute("insert into note values (1)").await.unwrap_err();
    assert_eq!(state_of(&error).as_deref(), Some("25006"), "{error}");
    lease.execute("set default_transaction_read_only = off").await?;
    let since = Instant::now();
    lease.execute("insert into note values (2)").await?;
    let recovery = back_on_the_same_connection(&world, lease, since).await?;
    let seen = format!("{}; the connection stays", told_by_statement(&error));
    let observed = Observed { fault: "read-only transaction", law: "L1", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}
