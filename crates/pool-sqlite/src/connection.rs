//! One session: sqlx's connection, and what is known of it. Statements that go through it as an executor are seen, so that a
//! connection that saw only plain ones is known to be clean.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::TryStreamExt;
use pool_core::Condition;
use sqlx::sqlite::{SqliteConnection, SqliteQueryResult, SqliteRow, SqliteStatement, SqliteTypeInfo};
use sqlx::{Connection as _, Describe, Either, Error, Execute, Executor, SqlStr, Sqlite};

use crate::statement::{OwnedQuery, is_plain};

/// What a lease and a transaction deref to. `&mut session` is a sqlx `Executor` whose statements are seen; it derefs to sqlx's own
/// [`SqliteConnection`], after which the connection is made clean when it comes back.
///
/// Its size is not known, so two leases cannot exchange their sessions:
///
/// ```compile_fail
/// fn swap(a: &mut pool_sqlite::SqliteLease, b: &mut pool_sqlite::SqliteLease) {
///     std::mem::swap(&mut **a, &mut **b);
/// }
/// ```
#[derive(Debug)]
pub struct SqliteSession<Tail: ?Sized = [()]> {
    conn: SqliteConnection,
    place: Place,
    /// Has the statement that runs end.
    interrupt: Arc<AtomicBool>,
    state: State,
    schemas: Schemas,
    /// Nothing, of a known size or of none.
    _tail: Tail,
}

/// A live connection of the driver; a lease shows it as a [`SqliteSession`].
pub type SqliteConn = SqliteSession<[(); 0]>;

/// Where a session is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The file of the database, in its generation.
    pub(crate) file: PathBuf,
    /// The pointer that led there, and what it said.
    pub(crate) pointer: PathBuf,
    pub(crate) pointer_said: String,
    /// The file as `SQLite` itself names it.
    pub(crate) opened: String,
}

impl Place {
    /// Whether the pointer still leads there: a database that was dropped lives on for those who have it open.
    fn is_current(&self) -> bool {
        std::fs::read_to_string(&self.pointer).is_ok_and(|says| says == self.pointer_said)
    }
}

/// What is known of changes of schemas. sqlx's statements know their columns from when they were prepared: a `select *` that meets one
/// more ends the thread of its connection.
#[derive(Clone, Debug)]
pub(crate) struct Schemas {
    /// Moves on when a schema of this pool's databases has changed.
    epoch: Arc<AtomicU64>,
    /// What that was when this session began to keep statements.
    prepared_since: u64,
    /// What `SQLite` calls the version of the schema, when it was last asked.
    version: i64,
}

impl Schemas {
    /// For a new session. `epoch` was read before the session saw `version`.
    pub(crate) fn new(epoch: Arc<AtomicU64>, prepared_since: u64, version: i64) -> Self {
        Self { epoch, prepared_since, version }
    }
}

/// What has gone over a connection since it was last known to be clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Clean,
    /// A statement was sent, and its end has not been seen; or something may have been left behind.
    Suspect,
    /// The thread behind the connection has ended.
    Lost,
}

impl SqliteConn {
    pub(crate) fn new(conn: SqliteConnection, place: Place, schemas: Schemas) -> Self {
        let interrupt = Arc::new(AtomicBool::new(false));
        Self { conn, place, interrupt, state: State::Clean, schemas, _tail: [] }
    }

    pub(crate) fn into_own(self) -> SqliteConnection {
        self.conn
    }
}

impl<Tail: ?Sized> SqliteSession<Tail> {
    /// The file of the database.
    pub fn file(&self) -> &Path {
        &self.place.file
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Whether the database is still the one of its workspace. Reads a small file.
    pub(crate) fn is_current(&self) -> bool {
        self.place.is_current()
    }

    /// Whether a schema has changed since this session began to keep statements.
    pub(crate) fn has_old_statements(&self) -> bool {
        self.schemas.epoch.load(Ordering::Acquire) != self.schemas.prepared_since
    }

    /// Throws the statements away that were prepared before a schema changed.
    pub(crate) async fn renew_statements(&mut self) -> Result<(), Error> {
        let epoch = self.schemas.epoch.load(Ordering::Acquire);
        if epoch != self.schemas.prepared_since {
            self.conn.clear_cached_statements().await?;
            // `SQLite` prepares from the schema that it remembers, and sees when it runs a statement whether that is the present one.
            sqlx::query("select count(*) from sqlite_schema")
                .persistent(false)
                .execute(&mut self.conn)
                .await?;
            self.schemas.prepared_since = epoch;
        }
        Ok(())
    }

    /// Has every warm connection prepare its statements anew before its next use.
    pub(crate) fn schema_changed(&self) {
        self.schemas.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// The same if the version of the schema is another one than before.
    pub(crate) fn schema_is(&mut self, version: i64) {
        if self.schemas.version != version {
            self.schemas.version = version;
            self.schema_changed();
        }
    }

    pub(crate) fn condition(&self) -> Condition {
        match self.state {
            State::Clean => Condition::Clean,
            State::Suspect => Condition::Suspect,
            State::Lost => Condition::Broken,
        }
    }

    pub(crate) fn is_suspect(&mut self) {
        self.state = self.state.max(State::Suspect);
    }

    pub(crate) fn is_clean(&mut self) {
        self.state = self.state.min(State::Clean);
    }

    /// sqlx's connection, for what the driver itself does.
    pub(crate) fn own(&mut self) -> &mut SqliteConnection {
        &mut self.conn
    }

    /// Has statements end as long as this asks for it, and when nobody is left who could.
    pub(crate) fn progress(&self) -> impl FnMut() -> bool + Send + 'static {
        let interrupt = Arc::downgrade(&self.interrupt);
        move || interrupt.upgrade().is_some_and(|is_to_end| !is_to_end.load(Ordering::Relaxed))
    }

    /// Has statements end until the guard is dropped.
    pub(crate) fn interrupt(&self) -> Interrupt {
        self.interrupt.store(true, Ordering::Relaxed);
        Interrupt(Arc::clone(&self.interrupt))
    }

    /// The connection for one statement, and what is to be told of the statement's end. Until then the connection is suspect.
    fn begin_statement(&mut self, sql: &str) -> (&mut SqliteConnection, StatementGuard<'_>) {
        let before = self.state;
        self.state = self.state.max(State::Suspect);
        let after = if is_plain(sql) { before } else { self.state };
        (&mut self.conn, StatementGuard { state: &mut self.state, after })
    }
}

/// Has statements of a connection end while it lives.
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A statement whose end has not been seen.
struct StatementGuard<'a> {
    state: &'a mut State,
    /// What the connection is when it has ended.
    after: State,
}

impl StatementGuard<'_> {
    fn ended<T>(self, outcome: Result<T, Error>) -> Result<T, Error> {
        *self.state = match &outcome {
            Err(error) if is_loss(error) => State::Lost,
            _ => self.after,
        };
        outcome
    }
}

/// Whether an error says that the thread behind the connection has ended.
pub(crate) fn is_loss(error: &Error) -> bool {
    matches!(error, Error::WorkerCrashed)
}

impl Deref for SqliteSession {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.conn
    }
}

impl DerefMut for SqliteSession {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.is_suspect();
        &mut self.conn
    }
}

/// What a query that ends with rows or counts gives, step by step.
pub(crate) type Step = Either<SqliteQueryResult, SqliteRow>;

impl<'c> Executor<'c> for &'c mut SqliteSession {
    type Database = Sqlite;

    fn fetch_many<'e, 'q, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'c: 'e,
        E: Execute<'q, Sqlite>,
        'q: 'e,
        E: 'q,
    {
        let query = OwnedQuery::new(query);
        let (conn, statement) = self.begin_statement(query.text());
        Box::pin(async_stream::try_stream! {
            let mut steps = conn.fetch_many(query);
            loop {
                match steps.try_next().await {
                    Ok(Some(step)) => yield step,
                    last => {
                        statement.ended(last)?;
                        break;
                    }
                }
            }
        })
    }

    fn fetch_optional<'e, 'q, E>(self, query: E) -> BoxFuture<'e, Result<Option<SqliteRow>, Error>>
    where
        'c: 'e,
        E: Execute<'q, Sqlite>,
        'q: 'e,
        E: 'q,
    {
        let query = OwnedQuery::new(query);
        let (conn, statement) = self.begin_statement(query.text());
        Box::pin(async move { statement.ended(conn.fetch_optional(query).await) })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [SqliteTypeInfo],
    ) -> BoxFuture<'e, Result<SqliteStatement, Error>>
    where
        'c: 'e,
    {
        let (conn, statement) = self.begin_statement(sql.as_str());
        Box::pin(async move { statement.ended(conn.prepare_with(sql, parameters).await) })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Sqlite>, Error>>
    where
        'c: 'e,
    {
        let (conn, statement) = self.begin_statement(sql.as_str());
        Box::pin(async move { statement.ended(conn.describe(sql).await) })
    }
}
