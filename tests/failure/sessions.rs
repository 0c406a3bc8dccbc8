//! Sessions that the server ends: whom it concerns, by what they were doing.

use std::time::Duration;

use pool_postgres::WorkspaceId;
use pool_testkit::{TestPool, eventually};
use tokio::time::sleep;

use crate::support::mishap::is_lost;
use crate::support::{
    Outcome, SOON, backend_pid, controls, error_of, give_up_at_work, hold, hold_system, pids, settled,
    terminate,
};

/// Longer than a connection may be idle without being checked.
const CHECKED_AFTER: Duration = Duration::from_millis(600);

/// There are five workspaces.
pub async fn ended_after_a_while_at_rest_nobody_notices(pool: &TestPool, ids: &[WorkspaceId]) -> Outcome {
    let old = pids(&hold(pool, ids).await?);
    terminate(pool, &old).await?;
    sleep(CHECKED_AFTER).await;
    let mut fresh = Vec::new();
    for id in ids {
        fresh.push(backend_pid(&pool.workspace(id)).await?);
    }
    assert!(fresh.iter().all(|pid| !old.contains(pid)), "{old:?} are gone, {fresh:?} serve");
    assert_eq!(pool.stats().workspaces.opened, 10, "each was replaced once");
    Ok(())
}

/// At most the first caller meets one, and the others are checked.
pub async fn ended_after_their_last_use_one_caller_may_notice(
    pool: &TestPool,
    ids: &[WorkspaceId],
) -> Outcome {
    let fresh = pids(&hold(pool, ids).await?);
    terminate(pool, &fresh).await?;
    let first = backend_pid(&pool.workspace(&ids[0])).await;
    assert!(first.as_ref().err().is_none_or(is_lost), "{first:?}");
    for id in ids {
        let pid = backend_pid(&pool.workspace(id)).await?;
        assert!(!fresh.contains(&pid), "{id}");
    }
    Ok(())
}

/// At rest, at work and in a transaction; returns who they were.
pub async fn ended_in_use_their_holders_are_told(pool: &TestPool, ids: &[WorkspaceId]) -> Outcome<Vec<i32>> {
    let mut leases = hold(pool, &ids[..2]).await?;
    let mut tx = pool.workspace(&ids[2]).begin().await?;
    let mut held = pids(&leases);
    held.push(sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut tx).await?);
    let mut at_work = leases.pop().ok_or("two were asked for")?;
    let work = tokio::spawn(async move { sqlx::query("select pg_sleep(60)").execute(&mut at_work).await });
    let sleeping = || async {
        let sessions = pool.sessions().await.unwrap_or_default();
        sessions.iter().any(|session| session.last_query.contains("pg_sleep"))
    };
    eventually("a query being at work", SOON, sleeping).await?;
    terminate(pool, &held).await?;
    let told = [
        error_of(sqlx::query("select 1").execute(&mut leases[0]).await),
        error_of(work.await?),
        error_of(tx.commit().await),
    ];
    assert!(told.iter().all(is_lost), "{told:?}");
    Ok(held)
}

/// Every session that a workspace may have, at once.
pub async fn all_ended_in_use_their_holders_are_told(pool: &TestPool, id: &WorkspaceId) -> Outcome {
    let leases = hold(pool, &vec![id.clone(); 10]).await?;
    terminate(pool, &pids(&leases)).await?;
    for mut lease in leases {
        let error = error_of(sqlx::query("select 1").execute(&mut lease).await);
        assert!(is_lost(&error), "{error}");
    }
    Ok(())
}

/// The system pool's, those of workspaces and the driver's own; returns who the system pool's were.
pub async fn all_of_the_pools_own_are_ended(pool: &TestPool, id: &WorkspaceId) -> Outcome<Vec<i32>> {
    let leases = hold_system(pool).await?;
    let system = pids(&leases);
    backend_pid(&pool.workspace(id)).await?;
    assert!(pool.terminate_all_connections().await? >= 5, "three, one, and the driver's own");
    for mut lease in leases {
        let error = error_of(sqlx::query("select 1").execute(&mut lease).await);
        assert!(is_lost(&error), "{error}");
    }
    Ok(system)
}

/// It is lost while a query runs, and made anew for the next question (what is idle is asked about once a second). The cancel is
/// confirmed over the new one, so the session is kept. Law L4 has the test of one that is not.
pub async fn the_drivers_own_is_made_anew(pool: &TestPool, id: &WorkspaceId) -> Outcome {
    let mut lease = pool.acquire(id).await?;
    let pid = lease.backend_pid();
    give_up_at_work(pool, &mut lease).await?;
    let lost = controls(pool).await?;
    assert_eq!(lost.len(), 1, "the driver has one connection of its own");
    terminate(pool, &lost).await?;
    let is_anew = || async { controls(pool).await.is_ok_and(|new| new.len() == 1 && new != lost) };
    eventually("a new connection of the driver's own", SOON, is_anew).await?;
    drop(lease);
    settled(pool).await?;
    assert_eq!(backend_pid(&pool.workspace(id)).await?, pid, "the session is kept, and not hit again");
    Ok(())
}
