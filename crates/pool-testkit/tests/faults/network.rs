//! The network between the pool and its server fails, for the sessions of one database or for all.

use std::time::{Duration, Instant};

use pool_postgres::DriverErrorKind;
use pool_testkit::faults::Link;
use sqlx::Executor;
use tokio::time::sleep;

use crate::support::{
    HASTY, Observed, Others, Outcome, PATIENT, World, is_loss, open_failure, told, told_by_statement,
};

/// How long a caller waits for a statement that nobody will answer.
const PATIENCE: Duration = Duration::from_millis(100);
const SLOW: Duration = Duration::from_millis(20);
const DARK: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l3_a_reset_is_told_to_the_holder_and_idle_connections_are_replaced_unseen() -> Outcome {
    let world = World::proxied(PATIENT).await?;
    let bystander = world.watch();
    let (mut lease, idle) = (world.lease().await?, world.lease().await?);
    drop(idle);

    world.proxy().reset(&world.database()?);
    let since = Instant::now();
    let error = lease.execute("select pg_sleep(60)").await.unwrap_err();
    assert!(is_loss(&error), "{error}");
    drop(lease);
    let recovery = world.back_at_once(since).await?;
    let seen = format!("{}; of idle connections nothing", told_by_statement(&error));
    let observed = Observed { fault: "TCP reset", law: "L3", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o1_a_link_that_goes_dark_delays_no_other() -> Outcome {
    let world = World::proxied(HASTY).await?;
    let bystander = world.watch();
    drop(world.lease().await?);

    world.proxy().set(&world.database()?, Link::Dark);
    let refusal = world.refusal().await;
    assert_eq!(open_failure(&refusal).0, DriverErrorKind::TimedOut, "{refusal}");
    world.proxy().set(&world.database()?, Link::Up);
    let recovery = world.back_after(Instant::now()).await?;
    let seen = told(&refusal);
    let observed = Observed { fault: "black hole", law: "O1", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l3_half_open_connections_are_found_and_replaced() -> Outcome {
    let world = World::proxied(HASTY).await?;
    let bystander = world.watch();
    let (mut lease, idle) = (world.lease().await?, world.lease().await?);
    drop(idle);

    world.proxy().half_open(&world.database()?);
    let since = Instant::now();
    let unanswered = tokio::time::timeout(PATIENCE, lease.execute("select 1")).await;
    assert!(unanswered.is_err(), "{unanswered:?}");
    drop(lease);
    let recovery = world.back_at_once(since).await?;
    let seen = "statement: no answer until its holder gives up; of idle connections nothing".into();
    let observed = Observed { fault: "half-open connections", law: "L3", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o1_a_slow_link_is_served_slowly_and_delays_no_other() -> Outcome {
    let world = World::proxied(PATIENT).await?;
    let bystander = world.watch();

    world.proxy().set(&world.database()?, Link::Slow(SLOW));
    let since = Instant::now();
    let recovery = world.back_at_once(since).await?;
    assert!(recovery >= 2 * SLOW, "it was slow: {recovery:?}");
    world.back_at_once(since).await?;
    let observed = Observed {
        fault: "slow link (20 ms a message)",
        law: "O1",
        seen: "nothing, but that it is slow".into(),
        recovery,
    };
    world.finish(bystander, Others::Spared, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o3_refused_connects_are_told_and_leave_warm_connections_alone() -> Outcome {
    let world = World::proxied(PATIENT).await?;
    let bystander = world.watch();

    world.proxy().refuse().await?;
    let refusal = world.refusal().await;
    assert_eq!(open_failure(&refusal).0, DriverErrorKind::Unreachable, "{refusal}");
    world.proxy().listen().await?;
    let recovery = world.back_after(Instant::now()).await?;
    let seen = told(&refusal);
    let observed = Observed { fault: "connects refused (nobody listens)", law: "O3", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o1_a_connect_that_hangs_is_told_and_serves_when_it_comes_through() -> Outcome {
    let world = World::proxied(HASTY).await?;
    let bystander = world.watch();

    world.proxy().set(&world.database()?, Link::ConnectsHang);
    let refusal = world.refusal().await;
    assert_eq!(open_failure(&refusal).0, DriverErrorKind::TimedOut, "{refusal}");
    world.proxy().set(&world.database()?, Link::Up);
    let recovery = world.back_after(Instant::now()).await?;
    let seen = told(&refusal);
    let observed = Observed { fault: "connect hangs, then comes through", law: "O1", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o1_a_connect_that_is_lost_delays_no_other_and_is_abandoned_in_the_end() -> Outcome {
    let world = World::proxied(HASTY / 2).await?;
    let bystander = world.watch();

    world.proxy().set(&world.database()?, Link::ConnectsLost);
    let refusal = world.refusal().await;
    assert_eq!(open_failure(&refusal).0, DriverErrorKind::TimedOut, "{refusal}");
    world.proxy().set(&world.database()?, Link::Up);
    let recovery = world.back_after(Instant::now()).await?;
    let seen = told(&refusal);
    let observed = Observed { fault: "connect hangs, and is lost", law: "O1", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o7_a_server_that_was_dark_serves_a_warm_workspace_soon_after_its_return() -> Outcome {
    let world = World::proxied_by_default().await?;
    world.back_at_once(Instant::now()).await?;
    goes_dark(world, "server dark for 12 s, warm").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o7_a_server_that_was_dark_serves_a_cold_workspace_soon_after_its_return() -> Outcome {
    let world = World::proxied_by_default().await?;
    world.pools.close_workspace(&world.hit).await?;
    goes_dark(world, "server dark for 12 s, cold").await
}

/// Every session that exists, and every one that is begun in the dark, is lost for good; callers ask again and again.
async fn goes_dark(world: World, fault: &'static str) -> Outcome {
    let bystander = world.watch();
    world.proxy().set_everywhere(Some(Link::Lost));
    let dark = Instant::now();
    let mut seen = String::new();
    while dark.elapsed() < DARK {
        seen = told(&world.refusal().await);
        sleep(Duration::from_millis(100)).await;
    }
    world.proxy().set_everywhere(None);
    let recovery = world.back_after(Instant::now()).await?;
    assert!(recovery < DARK / 2, "{recovery:?}");
    world.finish(bystander, Others::Hit, Observed { fault, law: "O7", seen, recovery }).await
}
