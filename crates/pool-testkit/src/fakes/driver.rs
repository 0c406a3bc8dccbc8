//! The driver for a server in memory.

use std::collections::VecDeque;

use pool_core::{Condition, Driver, DriverError, DriverErrorKind, Endpoint, Phase};
use tokio::time::sleep;

use super::{FakeServer, Gate};

/// Opens sessions with a [`FakeServer`].
#[derive(Clone, Debug)]
pub struct FakeDriver {
    server: FakeServer,
}

/// A session with a [`FakeServer`]. Dropping it ends the session, as a closed socket does.
#[derive(Debug)]
pub struct FakeConn {
    server: FakeServer,
    session: u64,
    database: String,
    is_dirty: bool,
    /// What the server has answered and nobody has read.
    unread: VecDeque<u64>,
}

impl FakeDriver {
    pub(super) fn new(server: FakeServer) -> Self {
        Self { server }
    }
}

impl FakeConn {
    /// The database it is connected to.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The session's number, never used again.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Whether something was left behind.
    pub fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Writes a value into the database, for good.
    ///
    /// # Errors
    /// The session has ended.
    ///
    /// # Cancel safety
    /// Dropping the future leaves open whether the value was written, and the connection dirty.
    pub async fn write(&mut self, value: i64) -> Result<(), DriverError> {
        self.statement().await?;
        self.server.state().write(&self.database, value);
        Ok(())
    }

    /// The value that was written last into the database.
    ///
    /// # Errors
    /// The session has ended.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the connection dirty.
    pub async fn read(&mut self) -> Result<Option<i64>, DriverError> {
        self.statement().await?;
        Ok(self.server.state().read(&self.database))
    }

    /// Asks for the echo of a number as a statement does: the answer comes after a moment, and is the next one that was not read.
    ///
    /// # Errors
    /// The session has ended.
    ///
    /// # Cancel safety
    /// Dropping the future leaves an answer that was not read, and the connection dirty.
    pub async fn echo(&mut self, number: i64) -> Result<i64, DriverError> {
        self.unread.push_back(number.cast_unsigned());
        self.statement().await?;
        Ok(self.unread.pop_front().map_or(number, u64::cast_signed))
    }

    /// What every statement does: it takes a moment, and while it does the connection is not known to be clean.
    async fn statement(&mut self) -> Result<(), DriverError> {
        let was_dirty = std::mem::replace(&mut self.is_dirty, true);
        let takes = self.server.state().statements_take;
        tokio::task::yield_now().await;
        sleep(takes).await;
        self.is_dirty = was_dirty;
        if self.lives() { Ok(()) } else { Err(self.lost(Phase::Check)) }
    }

    /// Leaves something behind, so that it must be recycled when it comes back.
    pub fn make_dirty(&mut self) {
        self.is_dirty = true;
    }

    /// Asks the server for the echo of a number, and reads the next answer that comes: its own, unless an
    /// answer was left unread.
    pub fn ask(&mut self, number: u64) -> u64 {
        self.unread.push_back(number);
        self.unread.pop_front().unwrap_or(number)
    }

    /// Asks, and leaves the answer to whoever reads next, unless the connection is recycled before.
    pub fn ask_and_leave(&mut self, number: u64) {
        self.leave_unread(number);
        self.is_dirty = true;
    }

    /// Leaves an answer to whoever reads next, without a sign of it.
    pub fn leave_unread(&mut self, number: u64) {
        self.unread.push_back(number);
    }

    fn lives(&self) -> bool {
        self.server.state().sessions.contains_key(&self.session)
    }

    fn lost(&self, phase: Phase) -> DriverError {
        DriverError::new(phase, DriverErrorKind::ConnectionLost, format!("fake/{}", self.database))
    }
}

impl Drop for FakeConn {
    fn drop(&mut self) {
        self.server.state().sessions.remove(&self.session);
    }
}

impl Driver for FakeDriver {
    type Connection = FakeConn;
    type Handle = u64;

    async fn connect(&self, endpoint: &Endpoint) -> Result<FakeConn, DriverError> {
        self.server.is_heard().await;
        let database = endpoint.database.as_str();
        let (gate, takes) = {
            let mut state = self.server.state();
            (state.next_gate(database), state.connect_takes)
        };
        sleep(takes).await;
        match gate {
            Gate::Succeed => {}
            Gate::Hold => self.server.held().await,
            Gate::Fail(kind) => return Err(DriverError::new(Phase::Connect, kind, self.address(endpoint))),
        }
        let session = self.server.state().open(database);
        Ok(FakeConn {
            server: self.server.clone(),
            session,
            database: database.to_owned(),
            is_dirty: false,
            unread: VecDeque::new(),
        })
    }

    async fn check(&self, conn: &mut FakeConn) -> Result<(), DriverError> {
        let takes = {
            let mut state = self.server.state();
            state.checks += 1;
            state.checks_take
        };
        // Dropped in here, a check leaves no trace on the connection: the engine must remember it.
        tokio::task::yield_now().await;
        self.server.is_heard_by(conn.session).await;
        sleep(takes).await;
        if conn.lives() { Ok(()) } else { Err(conn.lost(Phase::Check)) }
    }

    fn inspect(&self, conn: &mut FakeConn) -> Condition {
        match (conn.lives(), conn.is_dirty) {
            (false, _) => Condition::Broken,
            (true, true) => Condition::Suspect,
            (true, false) => Condition::Clean,
        }
    }

    async fn recycle(&self, conn: &mut FakeConn) -> Result<(), DriverError> {
        tokio::task::yield_now().await;
        self.server.is_heard_by(conn.session).await;
        if !conn.lives() {
            return Err(conn.lost(Phase::Recycle));
        }
        conn.is_dirty = false;
        conn.unread.clear();
        Ok(())
    }

    async fn close(&self, conn: FakeConn) {
        let takes = self.server.state().close_takes;
        sleep(takes).await;
        self.server.light().await;
        drop(conn);
    }

    fn address(&self, endpoint: &Endpoint) -> String {
        format!("fake/{}", endpoint.database)
    }

    fn handle(&self, conn: &FakeConn) -> Option<u64> {
        Some(conn.session)
    }

    fn is_outdated(&self, session: &u64) -> bool {
        *session <= self.server.state().outdated_up_to
    }

    async fn terminate(&self, handles: Vec<u64>) -> Result<(), DriverError> {
        self.server.is_heard().await;
        let mut state = self.server.state();
        if state.refuses_to_terminate {
            return Err(DriverError::new(Phase::Close, DriverErrorKind::ConnectionLost, "fake"));
        }
        for handle in handles {
            state.sessions.remove(&handle);
        }
        Ok(())
    }

    async fn departed(&self, handles: Vec<u64>) -> Result<Vec<usize>, DriverError> {
        self.server.is_heard().await;
        let takes = {
            let mut state = self.server.state();
            state.questions += 1;
            state.answers_take
        };
        sleep(takes).await;
        let state = self.server.state();
        let gone = |handle: &u64| !state.sessions.contains_key(handle);
        Ok(handles.iter().enumerate().filter(|(_, handle)| gone(handle)).map(|(place, _)| place).collect())
    }

    async fn answers(&self) -> Result<u64, DriverError> {
        self.server.is_heard().await;
        Ok(0)
    }

    async fn admits(&self) -> Result<(), DriverError> {
        self.server.is_heard().await;
        let mut state = self.server.state();
        match state.next_gate("postgres") {
            Gate::Fail(DriverErrorKind::Refused) if state.refuses_logins => {
                Err(DriverError::new(Phase::Connect, DriverErrorKind::Refused, "fake"))
            }
            _ => Ok(()),
        }
    }
}
