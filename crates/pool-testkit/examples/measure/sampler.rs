//! How many sessions a pool has with workspaces' databases, as the server counts them.

use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::Fault;

const EVERY: Duration = Duration::from_millis(5);
const SESSIONS: &str = "select count(*) from pg_stat_activity \
    where starts_with(application_name, $1) and backend_type = 'client backend' and datname <> 'postgres'";

/// Looks every 5 ms, in a task of its own.
pub struct Sampler {
    end: oneshot::Sender<()>,
    task: JoinHandle<Result<(i64, u64), sqlx::Error>>,
}

impl Sampler {
    /// Begins to look for sessions that are called `name`.
    pub fn start(connection: PgConnection, name: &str) -> Self {
        let (end, ended) = oneshot::channel();
        Self { end, task: tokio::spawn(look(connection, name.to_owned(), ended)) }
    }

    /// The most sessions that were seen, and how often it was looked.
    pub async fn end(self) -> Result<(i64, u64), Fault> {
        let _ = self.end.send(());
        Ok(self.task.await??)
    }
}

async fn look(
    mut connection: PgConnection,
    name: String,
    mut ended: oneshot::Receiver<()>,
) -> Result<(i64, u64), sqlx::Error> {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut most, mut looked) = (0, 0);
    loop {
        tokio::select! {
            _ = &mut ended => break,
            _ = ticks.tick() => {}
        }
        let sessions: i64 = sqlx::query_scalar(SESSIONS).bind(&name).fetch_one(&mut connection).await?;
        most = most.max(sessions);
        looked += 1;
    }
    connection.close().await?;
    Ok((most, looked))
}
