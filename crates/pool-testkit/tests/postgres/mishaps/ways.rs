//! How a mishap comes about: dropped at an await point, failing, disturbed from outside, or coming to its end.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Error};
use tokio::task::yield_now;

use super::access::Route;

/// What is wrong with the statements of a mishap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Nothing,
    Syntax,
    MissingTable,
    Constraint,
    /// In one of the later rows, when many have been sent already.
    DivisionInARow,
    /// `statement_timeout` ends it.
    Timeout,
    CancelsItself,
    EndsItself,
    /// It sleeps on the server twice, which is when it can be met at work.
    Slow,
}

pub const FAILING: [Fault; 7] = [
    Fault::Syntax,
    Fault::MissingTable,
    Fault::Constraint,
    Fault::DivisionInARow,
    Fault::Timeout,
    Fault::CancelsItself,
    Fault::EndsItself,
];

/// How many rows a query gives: more than sqlx reads at once.
pub const ROWS: i32 = 60;

impl Fault {
    /// Whether it can be had over this route: a handle's settings are reset before its next statement.
    pub fn goes_over(self, route: Route) -> bool {
        !(self == Self::Timeout && route == Route::Handle)
    }

    /// A query that has it; its number of rows is written as `rows`, a literal or `$1`.
    pub fn query(self, rows: &str) -> String {
        let wide = "n, repeat('x', 500)";
        match self {
            Self::Nothing => format!("select {wide} from generate_series(1, {rows}) n"),
            Self::Syntax => format!("select {wide} fro generate_series(1, {rows}) n"),
            Self::MissingTable => format!("select {wide} from nowhere, generate_series(1, {rows}) n"),
            Self::Constraint => {
                format!(
                    "insert into public.mark select n from generate_series(1, {rows}) n union all select 0 \
                     returning {wide}"
                )
            }
            Self::DivisionInARow => {
                format!("select {wide}, 1 / (n - 40) from generate_series(1, {rows}) n")
            }
            Self::CancelsItself => in_row_40("pg_cancel_backend(pg_backend_pid())", rows),
            Self::EndsItself => in_row_40("pg_terminate_backend(pg_backend_pid())", rows),
            Self::Timeout | Self::Slow => {
                format!(
                    "select {wide}, case when n % 30 = 0 then pg_sleep(0.03)::text end \
                     from generate_series(1, {rows}) n"
                )
            }
        }
    }

    /// The same as a literal statement.
    pub fn literal(self) -> String {
        self.query(&ROWS.to_string())
    }

    /// The same for `COPY (…) TO STDOUT`, which takes an INSERT, too.
    pub fn copy_out(self) -> String {
        format!("copy ({}) to stdout", self.literal())
    }
}

fn in_row_40(call: &str, rows: &str) -> String {
    format!("select n, repeat('x', 500), case when n = 40 then {call} end from generate_series(1, {rows}) n")
}

/// What somebody else does to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    Cancel,
    Terminate,
}

pub const DISTURBANCES: [Disturbance; 2] = [Disturbance::Cancel, Disturbance::Terminate];

/// How a mishap ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It comes to its end, or fails by itself.
    Left,
    /// Polled so often and dropped then, at once.
    Dropped(usize),
    /// Polled so often and dropped when it is woken once more: the answer has arrived, and is not read.
    DroppedWhenWoken(usize),
    /// Disturbed between two of its steps.
    Disturbed(Disturbance, usize),
    /// Disturbed when its query is at work on the server.
    DisturbedAtWork(Disturbance),
}

/// Polls `future` so often and drops it; none if it has come to its end before.
pub async fn drop_at<F: Future>(polls: usize, when_woken: bool, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polled = 0;
    poll_fn(|context| {
        if polled == polls {
            return Poll::Ready(None);
        }
        polled += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polled == polls && !when_woken => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Counts the steps of a mishap, and disturbs it at one of them.
pub struct Pace<'w> {
    outsider: Option<&'w Outsider>,
    disturbed: Option<(Disturbance, usize)>,
    passed: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl<'w> Pace<'w> {
    pub fn of(outsider: Option<&'w Outsider>, way: Way) -> Self {
        let disturbed = match way {
            Way::Disturbed(what, at) => Some((what, at)),
            _ => None,
        };
        Self { outsider, disturbed, passed: AtomicUsize::new(0), wrong: Mutex::default() }
    }

    /// Between two steps: a point to be dropped or disturbed at.
    pub async fn step(&self) {
        yield_now().await;
        let at = self.passed.fetch_add(1, Ordering::Relaxed);
        if let (Some(outsider), Some((what, when))) = (self.outsider, self.disturbed)
            && at == when
        {
            outsider.disturb(what).await;
        }
    }

    /// Sends a notification to whoever listens.
    pub async fn notify(&self) {
        if let Some(outsider) = self.outsider {
            outsider.run("select pg_notify('l4', 'from outside')").await;
        }
    }

    /// An answer within the mishap was another's.
    pub fn is_wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    /// How many steps there were, and what was wrong within them.
    pub fn end(self) -> (usize, Vec<String>) {
        (self.passed.into_inner(), self.wrong.into_inner().unwrap())
    }
}

/// A session of nobody's pool in the same database.
pub struct Outsider {
    conn: tokio::sync::Mutex<PgConnection>,
    /// How the pool's sessions in this database are found.
    sessions: String,
}

impl Outsider {
    pub async fn of(pool: &pool_testkit::TestPool, database: &str) -> Self {
        let options = pool.config().clone().application_name("outsider").connect_options(database);
        let conn = PgConnection::connect_with(&options).await.unwrap().into();
        let sessions = format!(
            "from pg_stat_activity where starts_with(application_name, '{}') and datname = current_database()",
            pool.tag()
        );
        Self { conn, sessions }
    }

    /// Returns when the server has done it: what is asked later is not meant.
    pub async fn disturb(&self, what: Disturbance) {
        let call = match what {
            Disturbance::Cancel => "pg_cancel_backend",
            Disturbance::Terminate => "pg_terminate_backend",
        };
        self.run(&format!("select {call}(pid) {}", self.sessions)).await;
    }

    /// Returns when a query of the pool sleeps on the server.
    pub async fn sees_it_at_work(&self) {
        let asleep = format!("select 1 {} and wait_event = 'PgSleep'", self.sessions);
        while self.run(&asleep).await == 0 {
            yield_now().await;
        }
    }

    async fn run(&self, sql: &str) -> u64 {
        let mut conn = self.conn.lock().await;
        let done: Result<_, Error> = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *conn).await;
        done.unwrap().rows_affected()
    }

    pub async fn leave(self) {
        self.conn.into_inner().close().await.unwrap();
    }
}
