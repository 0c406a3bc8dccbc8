//! Room on the server: how its connections are shared among the test pools of all processes. Each connection that
//! tests may use is an advisory lock, which vanishes with the session that holds it.

use std::fs::{File, TryLockError};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Error, Row};

use crate::error::TestError;
use crate::server::{ServerError, TestServer};

/// The class of the advisory locks that stand for the connections which tests may use, one each. That of
/// living pools is [`ALIVE_CLASS`](crate::run::ALIVE_CLASS).
const SHARE_CLASS: i32 = 0x706f_6f6c;
/// Left free on the server, for those who look from outside.
const HEADROOM: i64 = 7;
/// How long to wait between two looks for room. The one who looks is alone on this machine.
const ROOM_PAUSE: Duration = Duration::from_millis(20);
/// How long to wait for room in all.
pub(crate) const ROOM_LIMIT: Duration = Duration::from_secs(100);

/// Waits for its turn to look for room.
pub(crate) async fn pass_gate(
    server: &TestServer,
    wanted: u32,
    gives_up: impl Fn() -> bool,
) -> Result<File, TestError> {
    let gate = server.gate().map_err(ServerError::from)?;
    while !gives_up() {
        match gate.try_lock() {
            Ok(()) => return Ok(gate),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(ROOM_PAUSE).await,
            Err(TryLockError::Error(error)) => return Err(ServerError::from(error).into()),
        }
    }
    Err(TestError::NoRoom { wanted, after: ROOM_LIMIT })
}

/// Takes `wanted` of the locks that stand for the connections which tests may use, all or none at a time:
/// whoever sat on half of what it needs could wait for another who does the same.
pub(crate) async fn wait_for_room(
    conn: &mut PgConnection,
    wanted: u32,
    gives_up: impl Fn() -> bool,
) -> Result<(), TestError> {
    let failed = |source| TestError::Janitor { doing: "waiting for room on the server", source };
    let wanted_too = i64::from(wanted);
    while !gives_up() {
        let Room { capacity, others, held } = room(conn).await.map_err(failed)?;
        if wanted_too > capacity {
            return Err(TestError::TooLarge { wanted, capacity: u32::try_from(capacity).unwrap_or(0) });
        }
        if wanted_too <= capacity - others - held {
            take(conn, wanted_too).await.map_err(failed)?;
            let now = room(conn).await.map_err(failed)?;
            if now.held + now.others <= now.capacity {
                return Ok(());
            }
            give_back(conn).await.map_err(failed)?;
        }
        tokio::time::sleep(ROOM_PAUSE).await;
    }
    Err(TestError::NoRoom { wanted, after: ROOM_LIMIT })
}

async fn take(conn: &mut PgConnection, wanted: i64) -> Result<(), Error> {
    sqlx::query(
        "select from generate_series(1, 1000000) as slot where pg_try_advisory_lock($1, slot) limit $2",
    )
    .bind(SHARE_CLASS)
    .bind(wanted)
    .execute(conn)
    .await
    .map(drop)
}

async fn give_back(conn: &mut PgConnection) -> Result<(), Error> {
    sqlx::query(
        "select pg_advisory_unlock($1, objid::bigint::int) from pg_locks \
         where pid = pg_backend_pid() and locktype = 'advisory' and classid::bigint = $1::bigint",
    )
    .bind(SHARE_CLASS)
    .execute(conn)
    .await
    .map(drop)
}

/// How the server's connections are shared, over all its databases.
struct Room {
    /// What tests may use together.
    capacity: i64,
    /// Sessions that are nobody's test.
    others: i64,
    /// What test pools hold, used or not.
    held: i64,
}

async fn room(conn: &mut PgConnection) -> Result<Room, Error> {
    let row = sqlx::query(
        "select current_setting('max_connections')::bigint \
              - current_setting('superuser_reserved_connections')::bigint \
              - coalesce(current_setting('reserved_connections', true), '0')::bigint, \
         (select count(*) from pg_stat_activity where datid is not null and application_name !~ '^p[tk]:'), \
         (select count(*) from pg_locks where locktype = 'advisory' and classid::bigint = $1::bigint and granted)",
    )
    .bind(SHARE_CLASS)
    .fetch_one(conn)
    .await?;
    Ok(Room {
        capacity: row.try_get::<i64, _>(0)? - HEADROOM,
        others: row.try_get(1)?,
        held: row.try_get(2)?,
    })
}

/// The most connections that tests may use together, when nobody else uses any.
pub(crate) async fn budget(conn: &mut PgConnection) -> Result<u32, Error> {
    let Room { capacity, .. } = room(conn).await?;
    Ok(u32::try_from(capacity).unwrap_or(0))
}
