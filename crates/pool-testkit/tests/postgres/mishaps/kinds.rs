//! What callers do with a connection, by what sqlx offers: each kind is one short script for all routes.

use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgAdvisoryLock, PgArguments, PgConnection, PgTypeInfo};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, Error, Executor, Postgres, Row, SqlSafeStr, SqlStr, Statement};

use super::access::{Access, Route, Step};
use super::ways::{Fault, Pace, ROWS};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The connection is had and given back; in a transaction, BEGIN and its end.
    Nothing,
    Stream,
    StreamSimple,
    /// A few rows are read, and the holder asks something else.
    StreamLeft,
    StreamSimpleLeft,
    FetchOne,
    FetchOptionalSimple,
    Execute,
    ExecuteSimple,
    Prepare,
    Describe,
    /// Statements never seen before: the cache of the connection fills, and has to close others.
    ManyStatements,
    /// Several statements in one message; what is wrong is in the middle.
    Batch,
    BatchLeft,
    /// `begin` as a statement, and no end of it.
    RawBegin,
    /// The same, with the end as a statement.
    RawBeginCommit,
    NestedCommit,
    NestedRollback,
    NestedDrop,
    CopyInFinish,
    CopyInAbort,
    CopyInLeft,
    CopyInOfBadData,
    CopyInOfNoCopy,
    /// Rows that the socket takes in many pieces.
    CopyInOfMuch,
    /// As a statement: sqlx does not expect what comes, and the server waits for rows.
    CopyInAsStatement,
    CopyInInBatch,
    CopyOut,
    CopyOutLeft,
    CopyOutOfNoCopy,
    CopyOutAsStatement,
    /// A question that the socket takes in many pieces.
    LongQuestion,
    /// sqlx asks for the type first, with questions of its own.
    CustomType,
    AdvisoryLock,
    ClearStatements,
    Ping,
    Listen,
    ListenAndUnlisten,
    SetRole,
    SetTimeout,
    SetReadOnly,
    /// A schema of the holder's own stands before `pg_catalog`, and the transaction is left open.
    CapturedFunctions,
    CapturedOperators,
    /// The holder's own statements stand under the names of those that sqlx has prepared, and of the next one.
    Impostors,
}

pub const KINDS: [Kind; 44] = [
    Kind::Nothing,
    Kind::Stream,
    Kind::StreamSimple,
    Kind::StreamLeft,
    Kind::StreamSimpleLeft,
    Kind::FetchOne,
    Kind::FetchOptionalSimple,
    Kind::Execute,
    Kind::ExecuteSimple,
    Kind::Prepare,
    Kind::Describe,
    Kind::ManyStatements,
    Kind::Batch,
    Kind::BatchLeft,
    Kind::RawBegin,
    Kind::RawBeginCommit,
    Kind::NestedCommit,
    Kind::NestedRollback,
    Kind::NestedDrop,
    Kind::CopyInFinish,
    Kind::CopyInAbort,
    Kind::CopyInLeft,
    Kind::CopyInOfBadData,
    Kind::CopyInOfNoCopy,
    Kind::CopyInOfMuch,
    Kind::CopyInAsStatement,
    Kind::CopyInInBatch,
    Kind::CopyOut,
    Kind::CopyOutLeft,
    Kind::CopyOutOfNoCopy,
    Kind::CopyOutAsStatement,
    Kind::LongQuestion,
    Kind::CustomType,
    Kind::AdvisoryLock,
    Kind::ClearStatements,
    Kind::Ping,
    Kind::Listen,
    Kind::ListenAndUnlisten,
    Kind::SetRole,
    Kind::SetTimeout,
    Kind::SetReadOnly,
    Kind::CapturedFunctions,
    Kind::CapturedOperators,
    Kind::Impostors,
];

impl Kind {
    /// Whether it can happen over this route.
    pub fn goes_over(self, route: Route) -> bool {
        !(route == Route::Handle && self.needs_a_connection())
    }

    fn needs_a_connection(self) -> bool {
        use Kind::{
            AdvisoryLock, ClearStatements, CopyInAbort, CopyInFinish, CopyInLeft, CopyInOfBadData,
            CopyInOfMuch, CopyInOfNoCopy, CopyOut, CopyOutLeft, CopyOutOfNoCopy, NestedCommit, NestedDrop,
            NestedRollback, Ping,
        };
        matches!(
            self,
            NestedCommit
                | NestedRollback
                | NestedDrop
                | CopyInFinish
                | CopyInAbort
                | CopyInLeft
                | CopyInOfBadData
                | CopyInOfNoCopy
                | CopyInOfMuch
                | CopyOut
                | CopyOutLeft
                | CopyOutOfNoCopy
                | AdvisoryLock
                | ClearStatements
                | Ping
        )
    }

    /// Whether its statements can have faults put into them.
    pub fn takes_faults(self) -> bool {
        use Kind::{
            Batch, BatchLeft, CopyOut, CopyOutLeft, Execute, ExecuteSimple, FetchOne, FetchOptionalSimple,
            NestedCommit, NestedDrop, Prepare, RawBegin, Stream, StreamLeft, StreamSimple,
        };
        matches!(
            self,
            Stream
                | StreamSimple
                | StreamLeft
                | FetchOne
                | FetchOptionalSimple
                | Execute
                | ExecuteSimple
                | Prepare
                | Batch
                | BatchLeft
                | RawBegin
                | NestedCommit
                | NestedDrop
                | CopyOut
                | CopyOutLeft
        )
    }

    /// Whether it takes a second until the connection is given up, over raw access or when it is dropped: the server waits
    /// for rows, and takes no cancel.
    pub fn is_tedious(self) -> bool {
        matches!(self, Self::CopyInAsStatement | Self::CopyInInBatch)
    }

    /// Whether it ends with an error though nothing was put into it.
    pub fn fails_by_itself(self, route: Route) -> bool {
        use Kind::{
            CopyInAbort, CopyInAsStatement, CopyInInBatch, CopyInLeft, CopyInOfBadData, CopyInOfMuch,
            CopyInOfNoCopy, CopyOutAsStatement, CopyOutLeft, CopyOutOfNoCopy, Listen, ListenAndUnlisten,
        };
        let fails_its_transaction = matches!(self, CopyInAbort | CopyInLeft | CopyInOfMuch | CopyOutLeft);
        let is_not_expected = matches!(self, CopyInAsStatement | CopyInInBatch | CopyOutAsStatement);
        matches!(self, CopyInOfBadData | CopyInOfNoCopy | CopyOutOfNoCopy | Listen | ListenAndUnlisten)
            || is_not_expected
            || (fails_its_transaction && route.is_in_transaction())
    }

    /// Whether it reads all that it asks for, and so meets every fault.
    pub fn reads_to_the_end(self) -> bool {
        use Kind::{
            Batch, CopyOut, Execute, ExecuteSimple, FetchOne, FetchOptionalSimple, Prepare, RawBegin, Stream,
            StreamSimple,
        };
        matches!(
            self,
            Stream
                | StreamSimple
                | FetchOne
                | FetchOptionalSimple
                | Execute
                | ExecuteSimple
                | Prepare
                | Batch
                | RawBegin
                | CopyOut
        )
    }

    pub async fn happen(self, mut on: Access<'_>, fault: Fault, pace: &Pace<'_>) -> Result<(), Error> {
        if fault == Fault::Timeout {
            on.again().execute("set statement_timeout = 10").await?;
        }
        pace.step().await;
        let outcome = self.script(on, fault, pace).await;
        pace.step().await;
        outcome
    }

    async fn script(self, mut on: Access<'_>, fault: Fault, pace: &Pace<'_>) -> Result<(), Error> {
        match self {
            Self::Nothing => Ok(()),
            Self::Stream => read(on.fetch_many(bound(fault)), usize::MAX, pace).await,
            Self::StreamSimple => read(on.fetch_many(simple(fault.literal())), usize::MAX, pace).await,
            Self::StreamLeft => {
                read(on.again().fetch_many(bound(fault)), 3, pace).await?;
                ask(on, pace).await
            }
            Self::StreamSimpleLeft => {
                read(on.again().fetch_many(simple(fault.literal())), 3, pace).await?;
                ask(on, pace).await
            }
            Self::FetchOne => on.fetch_one(bound(fault)).await.map(drop),
            Self::FetchOptionalSimple => on.fetch_optional(simple(fault.literal())).await.map(drop),
            Self::Execute => on.execute(bound(fault)).await.map(drop),
            Self::ExecuteSimple => on.execute(simple(fault.literal())).await.map(drop),
            Self::Prepare => {
                let statement = on.again().prepare(text(fault.query("$1"))).await?;
                pace.step().await;
                on.execute(statement.query().bind(ROWS)).await.map(drop)
            }
            Self::Describe => on.describe(text(fault.query("$1"))).await.map(drop),
            Self::ManyStatements => many_statements(on, pace).await,
            Self::Batch => read(on.fetch_many(simple(batch(fault))), usize::MAX, pace).await,
            Self::BatchLeft => read(on.fetch_many(simple(batch(fault))), 2, pace).await,
            Self::RawBegin => {
                on.again().execute(simple("begin".into())).await?;
                pace.step().await;
                on.execute(bound(fault)).await.map(drop)
            }
            Self::RawBeginCommit => {
                for step in ["begin", "select 1", "commit"] {
                    on.again().execute(step).await?;
                    pace.step().await;
                }
                Ok(())
            }
            Self::NestedCommit | Self::NestedRollback | Self::NestedDrop => {
                self.nested(on.raw()?, fault, pace).await
            }
            Self::CopyInFinish
            | Self::CopyInAbort
            | Self::CopyInLeft
            | Self::CopyInOfBadData
            | Self::CopyInOfMuch
            | Self::CopyInOfNoCopy => self.copy_in(on.raw()?, pace).await,
            Self::CopyInAsStatement => on.execute(COPY_IN).await.map(drop),
            Self::CopyInInBatch => {
                on.execute(simple(format!("select 1; {COPY_IN}; select 2"))).await.map(drop)
            }
            Self::CopyOutAsStatement => on.execute(simple(fault.copy_out())).await.map(drop),
            Self::LongQuestion => {
                let long = "x".repeat(LONG);
                on.execute(sqlx::query("select length($1)").bind(long)).await.map(drop)
            }
            Self::CustomType => {
                let mood = [PgTypeInfo::with_name("public.mood")];
                on.prepare_with(text("select $1, 'glad'::public.mood".into()), &mood).await.map(drop)
            }
            Self::CopyOut => copy_out(on.raw()?, &fault.copy_out(), usize::MAX, pace).await,
            Self::CopyOutLeft => copy_out(on.raw()?, &fault.copy_out(), 2, pace).await,
            Self::CopyOutOfNoCopy => copy_out(on.raw()?, "select 1", 2, pace).await,
            Self::AdvisoryLock => {
                let lock = PgAdvisoryLock::new("l4");
                let mut guard = lock.acquire(on.raw()?).await?;
                pace.step().await;
                AsMut::<PgConnection>::as_mut(&mut guard).execute(bound(fault)).await.map(drop)
            }
            Self::ClearStatements => {
                on.again().execute(bound(fault)).await?;
                on.raw()?.clear_cached_statements().await
            }
            Self::Ping => on.raw()?.ping().await,
            Self::Listen | Self::ListenAndUnlisten => self.listen(on, pace).await,
            _ => on.execute(simple(self.settings().to_owned())).await.map(drop),
        }
    }

    fn settings(self) -> &'static str {
        match self {
            Self::SetRole => "set role pg_monitor",
            Self::SetTimeout => "set statement_timeout = 1",
            Self::SetReadOnly => "set default_transaction_read_only = on",
            Self::CapturedFunctions => "set search_path = captured_functions, pg_catalog; begin; select 1",
            Self::Impostors => IMPOSTORS,
            Self::CapturedOperators => "set search_path = captured_operators, pg_catalog; begin; select 1",
            _ => "",
        }
    }

    async fn nested(self, conn: &mut PgConnection, fault: Fault, pace: &Pace<'_>) -> Result<(), Error> {
        let mut outer = conn.begin().await?;
        pace.step().await;
        let mut inner = outer.begin().await?;
        read((&mut *inner).fetch_many(bound(fault)), 3, pace).await?;
        match self {
            Self::NestedCommit => inner.commit().await?,
            Self::NestedRollback => inner.rollback().await?,
            _ => drop(inner),
        }
        pace.step().await;
        match self {
            Self::NestedCommit => outer.commit().await,
            Self::NestedRollback => outer.rollback().await,
            _ => Ok(()),
        }
    }

    async fn copy_in(self, conn: &mut PgConnection, pace: &Pace<'_>) -> Result<(), Error> {
        let statement = match self {
            Self::CopyInOfNoCopy => "select 1",
            _ => COPY_IN,
        };
        let mut copy = conn.copy_in_raw(statement).await?;
        let (rows, width) = if self == Self::CopyInOfMuch { (1, LONG) } else { (3, 20_000) };
        for row in 0..rows {
            pace.step().await;
            copy.send(format!("{row}\t{}\n", "x".repeat(width)).as_bytes()).await?;
        }
        pace.step().await;
        match self {
            Self::CopyInFinish => copy.finish().await.map(drop),
            Self::CopyInAbort => copy.abort("on purpose").await,
            Self::CopyInOfBadData => {
                copy.send("no number\n".as_bytes()).await?;
                copy.finish().await.map(drop)
            }
            _ => Ok(()),
        }
    }

    async fn listen(self, mut on: Access<'_>, pace: &Pace<'_>) -> Result<(), Error> {
        on.again().execute(simple("listen l4".into())).await?;
        for _ in 0..2 {
            pace.notify().await;
            pace.step().await;
            read(on.again().fetch_many(bound(Fault::Nothing)), usize::MAX, pace).await?;
        }
        match self {
            Self::ListenAndUnlisten => on.execute(simple("unlisten l4".into())).await.map(drop),
            _ => Ok(()),
        }
    }
}

const IMPOSTORS: &str = "do $$ declare name text; begin
    for name in select s.name from pg_prepared_statements s where s.name like 'sqlx_s_%' loop
        execute format('deallocate %I', name);
        execute format('prepare %I(bigint) as select 666::bigint', name);
    end loop;
    select 'sqlx_s_' || 1 + coalesce(max(substr(s.name, 8)::int), 0) into name from pg_prepared_statements s;
    execute format('prepare %I(bigint) as select 666::bigint', name);
    end $$";
const COPY_IN: &str = "copy public.sink from stdin";
/// More than the two ends of a socket hold.
const LONG: usize = 4 << 20;

/// The query with that fault, prepared and with an argument.
fn bound(fault: Fault) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(AssertSqlSafe(fault.query("$1"))).bind(ROWS)
}

fn simple(sql: String) -> sqlx::RawSql {
    sqlx::raw_sql(AssertSqlSafe(sql))
}

fn text(sql: String) -> SqlStr {
    AssertSqlSafe(sql).into_sql_str()
}

fn batch(fault: Fault) -> String {
    format!("select 1; select 2; {}; select 3; select 4", fault.literal())
}

/// Reads at most so many rows.
async fn read(
    mut rows: BoxStream<'_, Result<Step, Error>>,
    rows_max: usize,
    pace: &Pace<'_>,
) -> Result<(), Error> {
    let mut count = 0;
    while count < rows_max && rows.try_next().await?.is_some() {
        if count < 3 || count % 16 == 0 {
            pace.step().await;
        }
        count += 1;
    }
    Ok(())
}

/// A question of the holder itself, after what it left unread.
async fn ask(on: Access<'_>, pace: &Pace<'_>) -> Result<(), Error> {
    let nonce = i64::from(fastrand::u32(..));
    let row = on.fetch_one(sqlx::query("select $1::bigint").bind(nonce)).await?;
    match row.try_get::<i64, _>(0) {
        Ok(echo) if echo == nonce => {}
        other => pace.is_wrong(format!("its holder's own question {nonce} was answered by {other:?}")),
    }
    Ok(())
}

async fn many_statements(mut on: Access<'_>, pace: &Pace<'_>) -> Result<(), Error> {
    for _ in 0..8 {
        let one = format!("select $1::bigint, {}::bigint", fastrand::u32(..));
        on.again().execute(sqlx::query(AssertSqlSafe(one)).bind(1_i64)).await?;
        pace.step().await;
    }
    Ok(())
}

async fn copy_out(
    conn: &mut PgConnection,
    statement: &str,
    chunks_max: usize,
    pace: &Pace<'_>,
) -> Result<(), Error> {
    let mut chunks = conn.copy_out_raw(statement).await?;
    let mut count = 0;
    while count < chunks_max && chunks.try_next().await?.is_some() {
        if count < 3 || count % 16 == 0 {
            pace.step().await;
        }
        count += 1;
    }
    Ok(())
}
