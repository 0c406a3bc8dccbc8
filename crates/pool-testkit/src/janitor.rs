//! The janitor of one test pool: a thread with a runtime and a connection of its own, so that it can count,
//! end and drop whatever the pool has left on the server even when the test's own runtime is blocked,
//! panicking or gone. While it lives it holds, as advisory locks of its session, the pool's share of the
//! server's connections and the sign that the pool is alive; both vanish with its process.

use std::sync::mpsc as blocking;
use std::thread;
use std::thread::JoinHandle;
use std::time::Instant;

use futures_util::future::BoxFuture;
use pool_postgres::PostgresConfig;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error, Row};
use tokio::sync::{mpsc, oneshot};

use crate::error::{Session, TestError};
use crate::naming::PoolName;
use crate::room::{ROOM_LIMIT, pass_gate, wait_for_room};
use crate::run::{ALIVE_CLASS, drop_database, reap_databases};
use crate::server::{ServerError, TestServer};
use crate::templates::{self, Schema};

/// Work for the janitor's connection.
type Task = Box<dyn for<'a> FnOnce(&'a mut Admin) -> BoxFuture<'a, ()> + Send>;

/// What a janitor tells once it is ready.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    pub(crate) config: PostgresConfig,
    pub(crate) system_database: String,
}

#[derive(Debug)]
pub(crate) struct Janitor {
    tasks: Option<mpsc::UnboundedSender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl Janitor {
    /// Finds the server, waits until it has room for `connections` more, and keeps that room; none where
    /// somebody else keeps it.
    pub(crate) async fn start(name: PoolName, connections: u32) -> Result<(Self, Ready), TestError> {
        let (tasks, todo) = mpsc::unbounded_channel();
        let (ready, is_ready) = oneshot::channel();
        let thread = thread::Builder::new()
            .name(format!("janitor of {name}"))
            .spawn(move || keep(name, connections, todo, ready))
            .map_err(ServerError::from)?;
        let janitor = Self { tasks: Some(tasks), thread: Some(thread) };
        let ready = is_ready.await.map_err(|_| TestError::JanitorGone)??;
        Ok((janitor, ready))
    }

    /// Runs `task` on the janitor's connection.
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
        let tasks = self.tasks.as_ref().ok_or(TestError::JanitorGone)?;
        tasks.send(task).map_err(|_| TestError::JanitorGone)?;
        let outcome = answered.await.map_err(|_| TestError::JanitorGone)?;
        outcome.map_err(|source| TestError::Janitor { doing, source })
    }

    /// What hands work to this janitor without keeping it.
    pub(crate) fn handle(&self) -> JanitorHandle {
        JanitorHandle(self.tasks.as_ref().map(mpsc::UnboundedSender::downgrade))
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

/// Hands work to a janitor that may be gone.
#[derive(Clone, Debug)]
pub(crate) struct JanitorHandle(Option<mpsc::WeakUnboundedSender<Task>>);

impl JanitorHandle {
    /// Has `task` done some time, without waiting for it; not at all when the janitor is gone.
    pub(crate) fn hand(
        &self,
        task: impl for<'a> FnOnce(&'a mut Admin) -> BoxFuture<'a, Result<(), Error>> + Send + 'static,
    ) {
        let task: Task = Box::new(move |admin| {
            Box::pin(async move {
                if let Err(error) = task(admin).await {
                    tracing::warn!(%error, "the janitor of a test pool could not do its work");
                }
            })
        });
        if let Some(tasks) = self.0.as_ref().and_then(mpsc::WeakUnboundedSender::upgrade) {
            let _ = tasks.send(task);
        }
    }
}

impl Drop for Janitor {
    /// Blocks until the janitor's session has ended, so that the room it kept is free.
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the janitor of a test pool panicked");
        }
    }
}

/// The janitor's view of the server: what is this pool's, and nothing else.
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
        let is_dropped = || ready.is_closed();
        let admin = runtime.block_on(Admin::start(&server, &name, connections, is_dropped))?;
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
                // What is stocked on a server that is taken away goes with it.
                if !server.is_ephemeral()
                    && let Err(error) = templates::leave(&mut admin.conn).await
                {
                    tracing::error!(%error, "stocked databases could not be removed");
                }
                let _ = admin.conn.close().await;
            });
        }
        Err(error) => drop(ready.send(Err(error))),
    }
}

impl Admin {
    async fn start(
        server: &TestServer,
        name: &PoolName,
        connections: u32,
        is_dropped: impl Fn() -> bool,
    ) -> Result<Self, TestError> {
        let config = server.config().clone().application_name(&name.janitor_tag());
        let options = config.connect_options(server.system_database());
        let began = Instant::now();
        let gives_up = || is_dropped() || began.elapsed() > ROOM_LIMIT;
        // One asker at a time on this machine, so that those who wait for room do not take it up. Whoever
        // needs none passes by: it may be what the asker is waiting for.
        let gate = if connections > 0 { Some(pass_gate(server, connections, gives_up).await?) } else { None };
        let failed = |doing| move |source| TestError::Janitor { doing, source };
        let mut conn = PgConnection::connect_with(&options).await.map_err(failed("connecting"))?;
        templates::arrive(&mut conn).await.map_err(failed("registering"))?;
        reap_databases(&mut conn).await.map_err(failed("removing what dead runs have left"))?;
        if connections > 0 {
            wait_for_room(&mut conn, connections, gives_up).await?;
        }
        drop(gate);
        sqlx::query("select pg_advisory_lock($1, $2)")
            .bind(ALIVE_CLASS)
            .bind(name.serial)
            .execute(&mut conn)
            .await
            .map_err(failed("marking the pool alive"))?;
        Ok(Self { conn, tag: name.tag(), prefix: format!("{}_", name.prefix()) })
    }

    /// The sessions of this pool on the server, all of which were there at one moment: the server walks
    /// through its list without a lock, so one that came while it walked may follow one that has left.
    pub(crate) async fn sessions(&mut self) -> Result<Vec<Session>, Error> {
        let rows = sqlx::query(
            "select pid, coalesce(datname, '')::text, coalesce(state, ''), coalesce(query, ''), application_name \
             from pg_stat_activity where starts_with(application_name, $1) and backend_start <= now() order by pid",
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

    /// Ends the sessions of this pool, whatever they do, and waits until they are gone. Returns how many
    /// there were.
    pub(crate) async fn terminate(&mut self) -> Result<u32, Error> {
        let pids = sqlx::query_scalar::<_, bool>(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where starts_with(application_name, $1)",
        );
        let ended = pids.bind(&self.tag).fetch_all(&mut self.conn).await?;
        Ok(u32::try_from(ended.len()).unwrap_or(u32::MAX))
    }

    /// Builds the template of a schema if there is none.
    pub(crate) async fn build(&mut self, config: &PostgresConfig, schema: &Schema) -> Result<(), Error> {
        templates::build(&mut self.conn, config, schema).await
    }

    /// Has copies of a schema at hand.
    pub(crate) async fn refill(&mut self, schema: &Schema) -> Result<(), Error> {
        templates::refill(&mut self.conn, schema).await
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
