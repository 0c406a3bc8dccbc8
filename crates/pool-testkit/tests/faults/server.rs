//! The whole server stops, crashes, freezes or recovers.

use std::time::{Duration, Instant};

use pool_postgres::{DriverErrorKind, PgLease};
use pool_testkit::faults::Stop;
use sqlx::Executor;

use crate::support::{
    Failure, HASTY, Observed, Others, Outcome, PATIENT, World, is_loss, open_failure, told, told_by_statement,
};

/// What the holder of a lease and the next caller see while there is no server.
async fn seen_without_a_server(world: &World, mut lease: PgLease) -> Result<String, Failure> {
    let in_use = lease.execute("select 1").await.unwrap_err();
    assert!(is_loss(&in_use), "{in_use}");
    drop(lease);
    let refusal = world.refusal().await;
    assert_eq!(open_failure(&refusal).0, DriverErrorKind::Unreachable, "{refusal}");
    Ok(format!("{}; {}", told_by_statement(&in_use), told(&refusal)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o3_a_server_restarted_fast_is_told_and_served_again() -> Outcome {
    let mut world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    let lease = world.lease().await?;

    world.server.stop(Stop::Fast).await?;
    let seen = seen_without_a_server(&world, lease).await?;
    world.server.start_again().await?;
    let recovery = world.back_after(Instant::now()).await?;
    let observed = Observed { fault: "server restarted (fast)", law: "O3", seen, recovery };
    world.finish(bystander, Others::Hit, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o3_a_server_restarted_at_once_is_told_and_served_again() -> Outcome {
    let mut world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    let lease = world.lease().await?;

    world.server.stop(Stop::Immediate).await?;
    let seen = seen_without_a_server(&world, lease).await?;
    world.server.start_again().await?;
    let recovery = world.back_after(Instant::now()).await?;
    let observed = Observed { fault: "server restarted (immediate)", law: "O3", seen, recovery };
    world.finish(bystander, Others::Hit, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o3_a_server_that_was_killed_is_told_and_served_again_when_it_has_recovered() -> Outcome {
    let mut world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    let lease = world.lease().await?;

    world.server.kill().await?;
    let seen = seen_without_a_server(&world, lease).await?;
    world.server.start_again().await?;
    let recovery = world.back_after(Instant::now()).await?;
    let observed = Observed { fault: "server killed (SIGKILL), recovered", law: "O3", seen, recovery };
    world.finish(bystander, Others::Hit, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_a_server_that_freezes_is_told_and_what_was_asked_of_it_stays_counted() -> Outcome {
    let world = World::direct(HASTY).await?;
    let bystander = world.watch();
    drop(world.lease().await?);

    world.server.freeze()?;
    let refusal = world.refusal().await;
    let connections = world.pools.stats().workspaces.connections;
    assert!(connections.opening + connections.closing > 0, "the server may count them yet: {connections:?}");
    world.server.thaw()?;
    let recovery = world.back_after(Instant::now()).await?;
    assert_eq!(open_failure(&refusal).0, DriverErrorKind::TimedOut, "{refusal}");
    let seen = told(&refusal);
    let observed = Observed { fault: "server frozen (SIGSTOP), thawed", law: "B1", seen, recovery };
    world.finish(bystander, Others::Hit, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o3_a_server_in_recovery_is_told_and_served_when_it_is_ready() -> Outcome {
    let mut world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    drop(world.lease().await?);

    world.server.stop(Stop::Fast).await?;
    world.server.start_in_recovery().await?;
    let refusal = world.refusal().await;
    let (kind, state) = open_failure(&refusal);
    assert_eq!((kind, state.as_deref()), (DriverErrorKind::ServerNotReady, Some("57P03")), "{refusal}");
    world.server.end_recovery().await?;
    let recovery = world.back_after(Instant::now()).await?;
    let seen = told(&refusal);
    let observed = Observed { fault: "server in recovery", law: "O3", seen, recovery };
    world.finish(bystander, Others::Hit, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o3_a_server_that_became_a_standby_serves_nobody_who_wants_to_write() -> Outcome {
    let mut world = World::read_write().await?;
    let bystander = world.watch();
    let lease = world.lease().await?;
    drop(lease);

    world.server.stop(Stop::Fast).await?;
    world.server.start_as_standby().await?;
    let mut refusal = world.refusal().await;
    // The first may be told of the stop.
    while open_failure(&refusal).0 != DriverErrorKind::ServerNotReady
        || !refusal.to_string().contains("standby")
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
        refusal = world.refusal().await;
    }
    world.server.end_recovery().await?;
    let recovery = world.back_after(Instant::now()).await?;
    let fault = "role changed to standby, and back (`TargetRole::ReadWrite`)";
    let observed = Observed { fault, law: "O3", seen: told(&refusal), recovery };
    world.finish(bystander, Others::Hit, observed).await
}
