//! Names that no database has, or could have.

use std::time::Instant;

use futures_util::future::join_all;
use pool_postgres::{BuildError, DatabaseName, DriverErrorKind, Limits, PgPools, PrefixNaming, WorkspaceId};
use pool_testkit::TestPool;

use crate::support::mishap::is_missing;
use crate::support::{Outcome, assert_is_missing, error_of};

/// Everybody is told, and the server is asked once a pause.
pub async fn a_storm_for_one_without_a_database_is_told(pool: &TestPool, missing: &WorkspaceId) -> Outcome {
    const CALLERS: u32 = 50;
    let began = Instant::now();
    let callers = (0..CALLERS).map(|_| pool.acquire(missing));
    for refused in join_all(callers).await {
        let error = error_of(refused);
        assert!(is_missing(&error), "{error}");
    }
    let pauses = u64::try_from(began.elapsed().as_millis() / 50)?;
    let failures = pool.stats().workspaces.open_failures;
    assert!((1..=1 + pauses).contains(&failures), "{failures} opens in {:?}", began.elapsed());
    assert_is_missing(pool, missing).await?;
    let stats = pool.stats().workspaces;
    assert_eq!((stats.opened, stats.connections.total(), stats.waiting), (0, 0, 0), "{stats:?}");
    Ok(())
}

pub async fn a_system_database_must_exist(pool: &TestPool) -> Outcome {
    let nowhere = pool.config().clone().system_database("no_such_database");
    let error = error_of(PgPools::builder(nowhere).limits(Limits::new(10)).build().await);
    let BuildError::Connect(cause) = &error else { panic!("{error}") };
    assert_eq!(cause.kind, DriverErrorKind::DatabaseMissing);
    assert!(error.to_string().contains("no_such_database"), "{error}");
    Ok(())
}

/// Of the system database, and prefixes of those of workspaces.
pub async fn impossible_names_are_refused(pool: &TestPool) -> Outcome {
    for impossible in ["", "a\0b", &"x".repeat(64)] {
        assert!(DatabaseName::new(impossible).is_err(), "{impossible:?}");
        let config = pool.config().clone().system_database(impossible);
        let error = error_of(PgPools::builder(config).limits(Limits::new(10)).build().await);
        assert!(matches!(error, BuildError::Config(_)), "{impossible:?}: {error}");
    }
    for impossible in ["", "Shop", "a-b", "a\"; drop database postgres; --", &"x".repeat(21)] {
        assert!(PrefixNaming::new(impossible).is_err(), "{impossible:?}");
        let config = pool.config().clone().prefix(impossible);
        let error = error_of(PgPools::builder(config).limits(Limits::new(10)).build().await);
        assert!(matches!(error, BuildError::Config(_)), "{impossible:?}: {error}");
    }
    Ok(())
}
