//! A server in memory: databases, sessions, and gates that a test opens and shuts.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pool_core::{DriverErrorKind, WorkspaceId};
use tokio::sync::Notify;

/// What becomes of the next connect to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It succeeds.
    Succeed,
    /// It fails in this way.
    Fail(DriverErrorKind),
    /// It waits until [`FakeServer::let_go`].
    Hold,
}

/// A server in memory. Cloning gives another handle on the same one.
#[derive(Clone, Debug, Default)]
pub struct FakeServer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    let_go: Notify,
    light: Notify,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// By name, with the workspace that each was made for.
    databases: BTreeMap<String, Option<WorkspaceId>>,
    /// What was written last into each.
    values: BTreeMap<String, i64>,
    pub(super) sessions: BTreeMap<u64, String>,
    gates: HashMap<String, VecDeque<Gate>>,
    refused_databases: BTreeSet<String>,
    next_session: u64,
    peak: usize,
    connects: u64,
    look_ups: u64,
    pub(super) questions: u64,
    pub(super) connect_takes: Duration,
    pub(super) close_takes: Duration,
    pub(super) answers_take: Duration,
    pub(super) checks_take: Duration,
    pub(super) list_takes: Duration,
    pub(super) look_ups_take: Duration,
    pub(super) statements_take: Duration,
    pub(super) checks: u64,
    pub(super) refuses_to_terminate: bool,
    pub(super) refuses_logins: bool,
    /// The last session that is to be replaced.
    pub(super) outdated_up_to: u64,
    is_dark: bool,
    hung_creations: BTreeSet<String>,
    /// Sessions that will never hear anything again.
    lost: BTreeSet<u64>,
}

impl FakeServer {
    /// A server with one database, `postgres`.
    pub fn new() -> Self {
        let server = Self::default();
        server.state().databases.insert("postgres".to_owned(), None);
        server
    }

    /// Scripts the next connects to `database`; after them, all succeed.
    pub fn script(&self, database: &str, gates: impl IntoIterator<Item = Gate>) {
        self.state().gates.entry(database.to_owned()).or_default().extend(gates);
    }

    /// From now on the creation of `database` hangs until [`FakeServer::let_go`].
    pub fn hang_creation(&self, database: &str) {
        self.state().hung_creations.insert(database.to_owned());
    }

    /// Lets every held connect, and every creation that hangs, go on.
    pub fn let_go(&self) {
        self.shared.let_go.notify_waiters();
    }

    /// The server says nothing any more. Its sessions, and whatever is begun before [`FakeServer::goes_light`], never hear
    /// of it again, as after a failover; it goes on counting them.
    pub fn goes_dark(&self) {
        let mut state = self.state();
        state.is_dark = true;
        let all: Vec<u64> = state.sessions.keys().copied().collect();
        state.lost.extend(all);
    }

    /// The server answers again, and lets sessions go that it is told to end.
    pub fn goes_light(&self) {
        self.state().is_dark = false;
        self.shared.light.notify_waiters();
    }

    /// Whether the server refuses everybody from now on, as for a wrong password.
    pub fn refuse_logins(&self, refuses: bool) {
        self.state().refuses_logins = refuses;
    }

    /// The sessions that there are now are to be replaced, as after a change of the password.
    pub fn outdate_sessions(&self) {
        let mut state = self.state();
        state.outdated_up_to = state.next_session;
    }

    /// How long a connect takes from now on.
    pub fn connect_takes(&self, time: Duration) {
        self.state().connect_takes = time;
    }

    /// How long the server goes on counting a session after its close from now on.
    pub fn close_takes(&self, time: Duration) {
        self.state().close_takes = time;
    }

    /// How long the server thinks about which sessions it has from now on.
    pub fn answers_take(&self, time: Duration) {
        self.state().answers_take = time;
    }

    /// How long the check of a session takes from now on.
    pub fn checks_take(&self, time: Duration) {
        self.state().checks_take = time;
    }

    /// How long the list of databases takes from now on.
    pub fn list_takes(&self, time: Duration) {
        self.state().list_takes = time;
    }

    /// How long the catalog thinks about which of many databases exist from now on.
    pub fn look_ups_take(&self, time: Duration) {
        self.state().look_ups_take = time;
    }

    /// How long each statement of a holder takes from now on.
    pub fn statements_take(&self, time: Duration) {
        self.state().statements_take = time;
    }

    /// Whether each connect to `database` fails from now on.
    pub fn refuse_database(&self, database: &str, refuses: bool) {
        let mut state = self.state();
        if refuses {
            state.refused_databases.insert(database.to_owned());
        } else {
            state.refused_databases.remove(database);
        }
    }

    /// Drops `database` with its sessions, without a word to anybody.
    pub fn lose_database(&self, database: &str) {
        self.state().drop_database(database);
    }

    /// Checks of sessions so far, the unfinished ones included.
    pub fn checks(&self) -> u64 {
        self.state().checks
    }

    /// Whether the server refuses to end sessions from outside from now on.
    pub fn refuse_to_terminate(&self, refuses: bool) {
        self.state().refuses_to_terminate = refuses;
    }

    /// Ends every session with `database` behind its holder.
    pub fn kill_sessions_of(&self, database: &str) {
        self.state().sessions.retain(|_, of| of != database);
    }

    /// Ends one session.
    pub fn end_session(&self, session: u64) {
        self.state().sessions.remove(&session);
    }

    /// Sessions now.
    pub fn sessions(&self) -> usize {
        self.state().sessions.len()
    }

    /// Sessions with one database now.
    pub fn sessions_of(&self, database: &str) -> usize {
        self.state().sessions.values().filter(|of| *of == database).count()
    }

    /// The most sessions at a time.
    pub fn peak(&self) -> usize {
        self.state().peak
    }

    /// Connects so far, the failed ones included.
    pub fn connects(&self) -> u64 {
        self.state().connects
    }

    /// Catalog look-ups so far; one about many databases counts once.
    pub fn look_ups(&self) -> u64 {
        self.state().look_ups
    }

    /// How often the driver has asked which sessions are still there.
    pub fn questions(&self) -> u64 {
        self.state().questions
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns at once while there is light, and never for what is begun in the dark.
    pub(super) async fn is_heard(&self) {
        if self.state().is_dark {
            std::future::pending::<()>().await;
        }
    }

    /// The same for a session, which may have been lost before.
    pub(super) async fn is_heard_by(&self, session: u64) {
        if self.state().lost.contains(&session) {
            std::future::pending::<()>().await;
        }
    }

    /// Returns while there is light.
    pub(super) async fn light(&self) {
        loop {
            let light = self.shared.light.notified();
            if !self.state().is_dark {
                return;
            }
            light.await;
        }
    }

    pub(super) async fn held(&self) {
        self.shared.let_go.notified().await;
    }
}

impl State {
    pub(super) fn next_gate(&mut self, database: &str) -> Gate {
        self.connects += 1;
        let scripted = self.gates.get_mut(database).and_then(VecDeque::pop_front);
        match scripted {
            _ if self.refuses_logins => Gate::Fail(DriverErrorKind::Refused),
            Some(gate) => gate,
            None if self.refused_databases.contains(database) => Gate::Fail(DriverErrorKind::Other),
            None if self.databases.contains_key(database) => Gate::Succeed,
            None => Gate::Fail(DriverErrorKind::DatabaseMissing),
        }
    }

    pub(super) fn open(&mut self, database: &str) -> u64 {
        self.next_session += 1;
        self.sessions.insert(self.next_session, database.to_owned());
        self.peak = self.peak.max(self.sessions.len());
        self.next_session
    }

    pub(super) fn creation_hangs(&self, database: &str) -> bool {
        self.hung_creations.contains(database)
    }

    pub(super) fn look_up(&mut self, database: &str) -> bool {
        self.look_ups += 1;
        self.databases.contains_key(database)
    }

    pub(super) fn look_up_all<'a>(&mut self, databases: impl Iterator<Item = &'a str>) -> Vec<bool> {
        self.look_ups += 1;
        databases.map(|database| self.databases.contains_key(database)).collect()
    }

    pub(super) fn create(&mut self, database: &str, workspace: &WorkspaceId) -> bool {
        self.look_ups += 1;
        if self.databases.contains_key(database) {
            return false;
        }
        self.databases.insert(database.to_owned(), Some(workspace.clone()));
        true
    }

    pub(super) fn write(&mut self, database: &str, value: i64) {
        self.values.insert(database.to_owned(), value);
    }

    pub(super) fn read(&self, database: &str) -> Option<i64> {
        self.values.get(database).copied()
    }

    pub(super) fn drop_database(&mut self, database: &str) -> bool {
        self.sessions.retain(|_, of| of != database);
        self.values.remove(database);
        self.databases.remove(database).is_some()
    }

    pub(super) fn workspaces(&self) -> Vec<WorkspaceId> {
        self.databases.values().flatten().cloned().collect()
    }
}
