//! The keeper of one test pool: a thread with a runtime and a connection of its own, so that it can count,
//! end and drop whatever the pool has left on the server even when the test's own runtime is blocked,
//! panicking or gone. While it lives it holds, as advisory locks of its session, the pool's share of the
//! server's connections and the sign that the pool is alive; both vanish with its process.

use std::sync::mpsc as blocking;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::future::BoxFuture;
use pool_postgres::PostgresConfig;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error, Row};
use tokio::sync::{mpsc, oneshot};

use crate::error::{Session, TestError};
use crate::naming::{PoolName, RunId};
use crate::run::{ALIVE_CLASS, drop_database, reap_databases};
use crate::server::{ServerError, TestServer};

/// The class of the advisory locks that stand for the connections which tests may use, one each. That of
/// living pools is [`ALIVE_CLASS`].
const SHARE_CLASS: i32 = 0x706f_6f6c;
/// Left free on the server, for those who look from outside.
const HEADROOM: i64 = 7;
/// How long to wait between two looks for room. The one who looks is alone on this machine.
const ROOM_PAUSE: Duration = Duration::from_millis(20);
/// How long to wait for room in all.
const ROOM_LIMIT: Duration = Duration::from_mins(3);

/// Work for the keeper's connection.
type Task = Box<dyn for<'a> FnOnce(&'a mut Admin) -> BoxFuture<'a, ()> + Send>;

/// What a keeper tells once it is ready.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    pub(crate) config: PostgresConfig,
    pub(crate) system_database: String,
}

#[derive(Debug)]
pub(crate) struct Keeper {
    tasks: Option<mpsc::UnboundedSender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Finds the server, waits until it has room for `connections` more, and keeps that room; none where
    /// somebody else keeps it.
    pub(crate) async fn start(name: PoolName, connections: u32) -> Result<(Self, Ready), TestError> {
        let (tasks, todo) = mpsc::unbounded_channel();
        let (ready, is_ready) = oneshot::channel();
        let thread = thread::Builder::new()
            .name(format!("keeper of {name}"))
            .spawn(move || keep(name, connections, todo, ready))
            .map_err(ServerError::from)?;
        let keeper = Self { tasks: Some(tasks), thread: Some(thread) };
        let ready = is_ready.await.map_err(|_| TestError::KeeperGone)??;
        Ok((keeper, ready))
    }

    /// Runs `task` on the keeper's connection.
    pub(crate) async fn run<R: Send + 'static>(
        &self,
        doing: &'static str,
        task: impl for<'a> FnOnce(&'a mut Admin) -> BoxFuture<'a, Result<R, Error>> + Send + 'static,
    ) -> Result<R, TestError> {
        let (answer, answered) = oneshot::channel();
        let task: Task = Box::new(move |admin| {
            Box::pin(async move {
                // Nobody listens any more if the asker was cancelled.
                let _ = answer.send(task(admin).await);
            })
        });
        let tasks = self.tasks.as_ref().ok_or(TestError::KeeperGone)?;
        tasks.send(task).map_err(|_| TestError::KeeperGone)?;
        let outcome = answered.await.map_err(|_| TestError::KeeperGone)?;
        outcome.map_err(|source| TestError::Keeper { doing, source })
    }

    /// The same from a place that cannot await, such as a `Drop`: blocks until it is done.
    pub(crate) fn run_blocking<R: Send + 'static>(
        &self,
        task: impl for<'a> FnOnce(&'a mut Admin) -> BoxFuture<'a, Result<R, Error>> + Send + 'static,
    ) -> Option<Result<R, Error>> {
        let (answer, answered) = blocking::channel();
        let task: Task = Box::new(move |admin| {
            Box::pin(async move {
                let _ = answer.send(task(admin).await);
            })
        });
        self.tasks.as_ref()?.send(task).ok()?;
        answered.recv().ok()
    }
}

impl Drop for Keeper {
    /// Blocks until the keeper's session has ended, so that the room it kept is free.
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the keeper of a test pool panicked");
        }
    }
}

/// The keeper's view of the server: what is this pool's, and nothing else.
pub(crate) struct Admin {
    conn: PgConnection,
    tag: String,
    prefix: String,
}

fn keep(
    name: PoolName,
    connections: u32,
    mut todo: mpsc::UnboundedReceiver<Task>,
    ready: oneshot::Sender<Result<Ready, TestError>>,
) {
    let begin = || -> Result<_, TestError> {
        let server = TestServer::obtain()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ServerError::from)?;
        let admin = runtime.block_on(Admin::start(&server, &name, connections))?;
        Ok((server, runtime, admin))
    };
    match begin() {
        Ok((server, runtime, mut admin)) => {
            let config = server.config().clone();
            let system_database = server.system_database().to_owned();
            let _ = ready.send(Ok(Ready { config, system_database }));
            runtime.block_on(async {
                while let Some(task) = todo.recv().await {
                    task(&mut admin).await;
                }
                let _ = admin.conn.close().await;
            });
        }
        Err(error) => drop(ready.send(Err(error))),
    }
}

impl Admin {
    async fn start(server: &TestServer, name: &PoolName, connections: u32) -> Result<Self, TestError> {
        let config = server.config().clone().application_name(&name.keeper_tag());
        let options = config.connect_options(server.system_database());
        // One asker at a time on this machine, so that those who wait for room do not take it up. Who asks for
        // none, since somebody keeps it already, must not wait for those who do: they may wait for that room.
        let asks = connections > 0;
        let gate = asks.then(|| server.gate()).transpose().map_err(ServerError::from)?;
        let failed = |doing| move |source| TestError::Keeper { doing, source };
        let mut conn = PgConnection::connect_with(&options).await.map_err(failed("connecting"))?;
        // What pools of a run under supervision leave is its supervisor's to name, and then to drop.
        let spared = RunId::supervised();
        reap_databases(&mut conn, spared.as_ref())
            .await
            .map_err(failed("removing what dead runs have left"))?;
        wait_for_room(&mut conn, connections).await?;
        drop(gate);
        sqlx::query("select pg_advisory_lock($1, $2)")
            .bind(ALIVE_CLASS)
            .bind(name.serial)
            .execute(&mut conn)
            .await
            .map_err(failed("marking the pool alive"))?;
        Ok(Self { conn, tag: name.tag(), prefix: format!("{}_ws_", name.prefix()) })
    }

    /// The sessions of this pool on the server.
    pub(crate) async fn sessions(&mut self) -> Result<Vec<Session>, Error> {
        let rows = sqlx::query(
            "select pid, coalesce(datname, '')::text, coalesce(state, ''), coalesce(query, ''), application_name \
             from pg_stat_activity where application_name = $1 order by pid",
        )
        .bind(&self.tag)
        .fetch_all(&mut self.conn)
        .await?;
        rows.iter()
            .map(|row| {
                let (pid, database, state) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                let (last_query, application_name) = (row.try_get(3)?, row.try_get(4)?);
                Ok(Session { pid, database, state, last_query, application_name })
            })
            .collect()
    }

    /// Ends the sessions of this pool, whatever they do. Returns how many there were.
    pub(crate) async fn terminate(&mut self) -> Result<u32, Error> {
        let pids = sqlx::query_scalar::<_, bool>(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1",
        );
        let ended = pids.bind(&self.tag).fetch_all(&mut self.conn).await?;
        Ok(u32::try_from(ended.len()).unwrap_or(u32::MAX))
    }

    /// The databases of this pool.
    pub(crate) async fn databases(&mut self) -> Result<Vec<String>, Error> {
        sqlx::query_scalar("select datname::text from pg_database where starts_with(datname, $1)")
            .bind(&self.prefix)
            .fetch_all(&mut self.conn)
            .await
    }

    /// Drops the databases of this pool. Returns how many there were.
    pub(crate) async fn drop_databases(&mut self) -> Result<usize, Error> {
        let databases = self.databases().await?;
        for database in &databases {
            drop_database(&mut self.conn, database).await?;
        }
        Ok(databases.len())
    }
}

/// Takes `wanted` of the locks that stand for the connections which tests may use, all or none at a time.
async fn wait_for_room(conn: &mut PgConnection, wanted: u32) -> Result<(), TestError> {
    if wanted == 0 {
        return Ok(());
    }
    let failed = |source| TestError::Keeper { doing: "waiting for room on the server", source };
    let began = std::time::Instant::now();
    while began.elapsed() < ROOM_LIMIT {
        let (capacity, others) = capacity(conn).await.map_err(failed)?;
        if i64::from(wanted) > capacity {
            let capacity = u32::try_from(capacity).unwrap_or(0);
            return Err(TestError::TooLarge { wanted, capacity });
        }
        let room = capacity - others;
        let got: i64 = sqlx::query_scalar(
            "select count(*) from (select from generate_series(1, $1::int) as slot \
             where pg_try_advisory_lock($2, slot) limit $3) as got",
        )
        .bind(i32::try_from(room).unwrap_or(0))
        .bind(SHARE_CLASS)
        .bind(i64::from(wanted))
        .fetch_one(&mut *conn)
        .await
        .map_err(failed)?;
        if got >= i64::from(wanted) {
            return Ok(());
        }
        // All or none: whoever sits on half of what it needs could wait for another who does the same.
        sqlx::raw_sql("select pg_advisory_unlock_all()").execute(&mut *conn).await.map_err(failed)?;
        tokio::time::sleep(ROOM_PAUSE).await;
    }
    Err(TestError::NoRoom { wanted, after: ROOM_LIMIT })
}

/// How many connections tests may use together, and how many sessions of others there are.
async fn capacity(conn: &mut PgConnection) -> Result<(i64, i64), Error> {
    let row = sqlx::query(
        "select current_setting('max_connections')::bigint \
              - current_setting('superuser_reserved_connections')::bigint \
              - coalesce(current_setting('reserved_connections', true), '0')::bigint, \
         (select count(*) from pg_stat_activity where backend_type = 'client backend' \
              and application_name !~ '^p[tk]:')",
    )
    .fetch_one(conn)
    .await?;
    Ok((row.try_get::<i64, _>(0)? - HEADROOM, row.try_get(1)?))
}

/// The most connections that tests may use together, when nobody else uses any.
pub(crate) async fn budget(conn: &mut PgConnection) -> Result<u32, Error> {
    let (capacity, _) = capacity(conn).await?;
    Ok(u32::try_from(capacity).unwrap_or(0))
}
