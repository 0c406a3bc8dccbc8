//! The driver: connect, check, recycle, close, on sqlx's `PgConnection`.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_core::{Capacity, Condition, Driver, DriverError, DriverErrorKind, Endpoint, Phase};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgTransactionManager};
use sqlx::{Connection, Error};
use sqlx_core::transaction::TransactionManager;
use tokio::time::{sleep, timeout};

use crate::catch_panics::catch_panics;
use crate::classify::{driver_error, is_fatal};
use crate::config::PostgresConfig;
use crate::connect::{Connector, NewSession};
use crate::connection::{PgConn, Session, session_of};
use crate::control::Control;
use crate::password::Generation;
use crate::places::{Counted, Places};
use crate::plans::AllPlans;
use crate::session::{SessionKind, TargetRole};
use crate::tag::Tag;
use crate::verify::{self, Prepared, With};

/// How long what is left on the wire may take to arrive before the query behind it is cancelled.
const DRAIN_PATIENCE: Duration = Duration::from_millis(10);
/// How long a cancelled query may take to end.
const CANCEL_LIMIT: Duration = Duration::from_secs(1);
/// How long the server may take to confirm that sessions were ended.
const TERMINATE_LIMIT: Duration = Duration::from_secs(3);
/// How long the control connection may take to say who a new session is; then that is asked itself.
const WHO_LIMIT: Duration = Duration::from_millis(250);
/// The pause between two questions whether a session that was asked for is counted; also added to the time in which it may
/// authenticate.
const FORGOTTEN_MARGIN: Duration = Duration::from_secs(1);
/// The pause between two looks whether the session of a listener, which may have begun, is there.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a close waits for the sessions of listeners.
const LISTENERS_LIMIT: Duration = Duration::from_secs(1);
/// How long saying goodbye may take before the session is ended from outside.
const GOODBYE_LIMIT: Duration = Duration::from_millis(500);

/// Opens and closes sessions with one `PostgreSQL` server.
pub struct PgDriver {
    connector: Arc<Connector>,
    control: Control,
    plans: AllPlans,
    connect_timeout: Duration,
    places: Places,
}

/// A session from outside: what it takes to end it, and the generation of its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgHandle(Session, Generation);

impl PgDriver {
    /// Reaches the server: opens the control connection, within `connect_timeout`.
    ///
    /// # Errors
    /// A [`DriverError`] that names host, port, database and cause.
    pub async fn start(
        config: PostgresConfig,
        system_database: &str,
        connect_timeout: Duration,
    ) -> Result<Self, DriverError> {
        let connector = Arc::new(Connector::new(config, connect_timeout));
        let control =
            Control::start(Arc::clone(&connector), system_database.to_owned(), connect_timeout).await?;
        let (plans, places) = (AllPlans::default(), Places::default());
        Ok(Self { connector, control, plans, connect_timeout, places })
    }

    /// The same with so many connections of its own for listeners.
    pub(crate) fn with_listeners(self, listeners: u32) -> Self {
        Self { places: Places::new(listeners), ..self }
    }

    /// The places of listeners.
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// What a session is opened with that is not opened here.
    pub(crate) async fn options_of(
        &self,
        database: &str,
        kind: SessionKind,
        tag: &Tag,
    ) -> Result<PgConnectOptions, Error> {
        self.connector.options(database, kind, tag).await.map(|(options, _)| options)
    }

    /// Ends a session that is counted in a place, or waits for the end of one that was asked for and given up; within the connect timeout.
    /// True when the server counts it no longer, as far as it shows.
    pub(crate) async fn ends(&self, counted: Counted) -> bool {
        let gone = async {
            match counted {
                Counted::Session(session) => self.control.wait_for_exit(session, true).await,
                Counted::Asked(tag, database) => self.is_nowhere(&tag, &database, LOOK_EVERY).await,
            }
        };
        timeout(self.connect_timeout, gone).await.is_ok()
    }

    /// Begins no session any more, and asks the server nothing.
    pub(crate) fn give_up(&self) {
        self.connector.give_up();
        self.control.stop();
    }

    /// The configuration.
    pub fn config(&self) -> &PostgresConfig {
        self.connector.config()
    }

    /// `host:port`, for errors.
    fn server(&self) -> String {
        format!("{}:{}", self.config().host(), self.config().get_port())
    }

    fn error(&self, error: Error, phase: Phase) -> DriverError {
        driver_error(error, phase, self.server())
    }

    /// Reads what is known to be left on the wire; cancels the query behind it if that takes long.
    async fn drain(&self, conn: &mut PgConn) -> Result<(), Error> {
        if let Ok(drained) = timeout(DRAIN_PATIENCE, flush(conn)).await {
            return drained;
        }
        // A cancel of which nobody knows whether it was sent may hit a later holder's statement. One that was
        // sent has hit, or has met an idle backend, when the server has answered a question asked after it.
        if !self.control.cancel(conn.session()).await {
            return Err(Error::Protocol("the server has not confirmed a cancel".into()));
        }
        let late = || Error::Protocol("a cancelled query did not end in time".into());
        timeout(CANCEL_LIMIT, flush(conn)).await.unwrap_or_else(|_| Err(late()))
    }

    /// Finds out who is behind a new connection.
    async fn identify(
        &self,
        mut new: NewSession,
        tag: Tag,
    ) -> Result<(PgConnection, Session, Generation), Error> {
        let session = match timeout(WHO_LIMIT, self.control.who(tag)).await {
            Ok(Some(session)) => session,
            Ok(None) | Err(_) => new.ask(session_of).await?,
        };
        let (conn, generation) = new.open();
        Ok((conn, session, generation))
    }

    /// Returns when the server counts no session with `tag`, and will count none. It is asked first after the time in which a session may
    /// authenticate, since before version 18 such a one is not shown; one that waits for the lock on its database is looked for
    /// among the locks.
    async fn is_forgotten(&self, tag: &Tag, database: &str) {
        sleep(self.control.authentication_limit() + FORGOTTEN_MARGIN).await;
        self.is_nowhere(tag, database, FORGOTTEN_MARGIN).await;
    }

    /// Returns when the server has twice shown nothing of a session with `tag`: between the lock on its database and its being shown,
    /// a session is nowhere to be seen.
    async fn is_nowhere(&self, tag: &Tag, database: &str, pause: Duration) {
        let mut times = 0;
        while times < 2 {
            let is_uncounted = self.control.is_uncounted(tag.clone(), database.to_owned()).await;
            times = if is_uncounted == Some(true) { times + 1 } else { 0 };
            sleep(pause).await;
        }
    }

    async fn clean(&self, conn: &mut PgConn) -> Result<(), Error> {
        while conn.own().is_in_transaction() {
            PgTransactionManager::start_rollback(conn.own());
        }
        self.drain(conn).await?;
        let with = self.with(conn);
        let seen = verify::verify(conn, with).await?;
        renew_statements(conn, seen.prepared).await?;
        if with.reset {
            self.prepare(conn).await?;
        }
        conn.is_clean_now();
        Ok(())
    }

    /// What is done with a connection that comes back, beside verifying it.
    fn with(&self, conn: &PgConn) -> With {
        let reset = conn.wants_reset(self.config().sessions().reset);
        // What raw access did to prepared statements, and the errors behind it, were not seen.
        let statements = conn.was_dirtied();
        let role = self.config().sessions().target_role;
        With { reset, close_statements: statements && !conn.keeps_statements(), statements, role }
    }

    /// Asks a new session whether its server has the role that is wished, if any is.
    async fn proves_its_role(&self, conn: &mut PgConn) -> Result<(), Error> {
        match self.config().sessions().target_role {
            TargetRole::Any => Ok(()),
            role @ TargetRole::ReadWrite => verify::check(conn, role).await,
        }
    }

    /// Does with a session that is new, or as good as new, what the configuration says.
    async fn prepare(&self, conn: &mut PgConn) -> Result<(), Error> {
        let (Some(hook), SessionKind::Lent) = (&self.config().sessions().after_connect, conn.kind()) else {
            return Ok(());
        };
        catch_panics(hook(conn.own())).await?;
        verify::check(conn, TargetRole::Any).await?;
        conn.is_clean_now();
        Ok(())
    }
}

fn not_counted() -> Error {
    Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the server has no such session"))
}

/// Has sqlx throw its prepared statements away unless they are known to be good.
async fn renew_statements(conn: &mut PgConn, prepared: Option<Prepared>) -> Result<(), Error> {
    let kept = conn.own().cached_statements_size();
    let are_good = match prepared {
        Some(prepared) if !prepared.are_those_kept(kept) => {
            conn.deallocate_statements().await?;
            false
        }
        Some(prepared) if kept > 0 => know_schema(conn, kept, prepared.snapshot).await?,
        _ => true,
    };
    if !are_good || conn.has_spoiled_plans() {
        conn.forget_statements().await?;
    }
    Ok(())
}

/// Whether the plans' epoch now tells of every change that a statement of this connection may have met.
async fn know_schema(conn: &mut PgConn, kept: usize, snapshot: i64) -> Result<bool, Error> {
    if conn.plans().have_seen(snapshot) {
        return Ok(true);
    }
    let asked = Instant::now();
    if !conn.plans().want_look(kept, asked) {
        return Ok(false);
    }
    match verify::look(conn).await {
        Ok(look) => {
            let now = Instant::now();
            conn.plans().looked(look, now - asked, now);
            Ok(true)
        }
        Err(error) if verify::may_ask_again(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads to the end of every answer that sqlx knows to be still to come. An error among them is an answer, too.
async fn flush(conn: &mut PgConn) -> Result<(), Error> {
    loop {
        match conn.own().flush().await {
            Err(error) if !is_fatal(&error) => {}
            outcome => return outcome,
        }
    }
}

impl Driver for PgDriver {
    type Connection = PgConn;
    type Handle = PgHandle;

    async fn connect(&self, endpoint: &Endpoint) -> Result<PgConn, DriverError> {
        let database = endpoint.database.as_str();
        let kind = SessionKind::from(&endpoint.target);
        let tag = Tag::fresh();
        let opened = async {
            let connected = tokio::select! {
                biased;
                connected = self.connector.connect(database, kind, &tag) => connected,
                () = self.is_forgotten(&tag, database) => Err(not_counted()),
            };
            self.identify(connected?, tag.clone()).await
        };
        let opened =
            opened.await.map_err(|error| driver_error(error, Phase::Connect, self.address(endpoint)))?;
        let keeps_statements = kind == SessionKind::Own || self.config().keeps_statements();
        let mut conn = PgConn::new(opened, kind, self.plans.of(database), keeps_statements);
        let ready = async {
            self.proves_its_role(&mut conn).await.map_err(|error| (error, Phase::Connect))?;
            self.prepare(&mut conn).await.map_err(|error| (error, Phase::Prepare))
        };
        if let Err((error, phase)) = ready.await {
            self.close(conn).await;
            return Err(driver_error(error, phase, self.address(endpoint)));
        }
        Ok(conn)
    }

    async fn check(&self, conn: &mut PgConn) -> Result<(), DriverError> {
        let checked = async {
            if conn.has_spoiled_plans() {
                conn.forget_statements().await?;
            }
            verify::check(conn, self.config().sessions().target_role).await
        };
        checked.await.map_err(|error| self.error(error, Phase::Check))
    }

    fn wants_check(&self, conn: &PgConn) -> bool {
        conn.has_spoiled_plans()
    }

    fn inspect(&self, conn: &mut PgConn) -> Condition {
        let wants_reset = || conn.wants_reset(self.config().sessions().reset);
        match conn.condition() {
            Condition::Clean if conn.was_used() && (wants_reset() || conn.has_spoiled_plans()) => {
                Condition::Suspect
            }
            condition => condition,
        }
    }

    async fn recycle(&self, conn: &mut PgConn) -> Result<(), DriverError> {
        catch_panics(self.clean(conn)).await.map_err(|error| self.error(error, Phase::Recycle))
    }

    async fn close(&self, conn: PgConn) {
        let is_clean = conn.condition() == Condition::Clean;
        let (conn, session) = conn.into_parts();
        // A backend that is busy does not read a goodbye until it is done; it is ended from outside, and
        // sees its socket closed at once, in case that the outside cannot be reached.
        let left = if is_clean {
            matches!(timeout(GOODBYE_LIMIT, catch_panics(conn.close())).await, Ok(Ok(())))
        } else {
            drop(conn);
            false
        };
        self.control.wait_for_exit(session, !left).await;
    }

    fn address(&self, endpoint: &Endpoint) -> String {
        self.config().address(endpoint.database.as_str())
    }

    fn handle(&self, conn: &PgConn) -> Option<PgHandle> {
        Some(PgHandle(conn.session(), conn.generation()))
    }

    fn is_outdated(&self, PgHandle(_, generation): &PgHandle) -> bool {
        self.connector.is_outdated(*generation)
    }

    async fn terminate(&self, handles: Vec<PgHandle>) -> Result<(), DriverError> {
        let count = handles.len();
        let gone = handles.into_iter().map(|PgHandle(session, _)| self.control.wait_for_exit(session, true));
        let all = futures_util::future::join_all(gone);
        if timeout(TERMINATE_LIMIT, all).await.is_err() {
            let error = DriverError::new(Phase::Close, DriverErrorKind::TimedOut, self.server());
            return Err(error.caused_by(format!("{count} sessions were told to end")));
        }
        Ok(())
    }

    async fn departed(&self, handles: Vec<PgHandle>) -> Result<Vec<usize>, DriverError> {
        let sessions = handles.into_iter().map(|PgHandle(session, _)| session).collect();
        let gone = self.control.departed(sessions).await;
        gone.ok_or_else(|| DriverError::new(Phase::Check, DriverErrorKind::ConnectionLost, self.server()))
    }

    async fn answers(&self) -> Result<u64, DriverError> {
        self.control.answers(self.server()).await
    }

    async fn admits(&self) -> Result<(), DriverError> {
        self.control.admits(self.server()).await
    }

    async fn capacity(&self, own: Vec<PgHandle>) -> Result<Option<Capacity>, DriverError> {
        let own = own.into_iter().map(|PgHandle(session, _)| session);
        let listening = self.places.counted().into_iter().filter_map(|counted| match counted {
            Counted::Session(session) => Some(session),
            Counted::Asked(..) => None,
        });
        Ok(self.control.capacity(own.chain(listening).collect()).await)
    }

    fn control_connections(&self) -> u32 {
        1 + self.places.count()
    }

    fn control_reserve(&self) -> u32 {
        1
    }

    async fn shutdown(&self) {
        self.places.close();
        let listeners = self.places.counted().into_iter().map(|counted| self.ends(counted));
        if timeout(LISTENERS_LIMIT, futures_util::future::join_all(listeners)).await.is_err() {
            tracing::warn!("the server did not end the sessions of listeners in time");
        }
        self.control.shutdown().await;
    }
}
