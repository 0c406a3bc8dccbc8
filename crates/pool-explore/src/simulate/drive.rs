//! The shell in virtual time, and the only place here that knows the registry. It performs nothing by itself: what the
//! registry asks for is left in [`Shell::next_job`], and the simulation reports back when its time has come.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use pool_core::{
    Acquire, Broken, Claim, CloseDebt, DriverError, DriverErrorKind, Effects, LeaseDebt, Leased, Lru,
    OpenWork, Phase, Registry, RegistryConfig, Target, Terms, Ticket, WorkspaceId,
};

use super::world::World;

/// What the registry asks the world to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job {
    /// Connect, then report with [`Shell::open_ends`].
    Open { open: u32, workspace: u32 },
    /// Close, then report with [`Shell::close_ends`].
    Close { close: u32 },
    /// Call [`Shell::retry`] at that moment.
    Retry { workspace: u32, at: Duration },
    /// Call [`Shell::due`] at that moment.
    Due { at: Duration },
    /// Ask the catalog, then report with [`Shell::looked_up`].
    LookUp { workspace: u32 },
}

/// What a task was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Leased,
    Waiting,
    Failed,
}

/// What a task has of the registry's.
enum Call {
    None,
    Waiting(Ticket),
    Holding(u32, LeaseDebt),
}

/// The tasks that have been woken and not looked yet.
type Woken = Arc<Mutex<VecDeque<u32>>>;

struct WakeTask {
    task: u32,
    woken: Woken,
}

impl Wake for WakeTask {
    fn wake(self: Arc<Self>) {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.task);
    }
}

pub(super) struct Shell {
    /// A connection is the number of the workspace that it was opened for.
    registry: Registry<u32>,
    /// Where virtual time begins. Nothing but differences to it is ever used.
    start: Instant,
    targets: Vec<Target>,
    numbers: HashMap<Target, u32>,
    /// Workspaces from this number on have no database.
    existing: u32,
    opens: Ledger<OpenWork>,
    closes: Ledger<CloseDebt>,
    calls: Vec<Call>,
    wakers: Vec<Waker>,
    woken: Woken,
    jobs: VecDeque<Job>,
}

impl Shell {
    pub(super) fn new(world: &World, tasks: u32) -> Self {
        let config = RegistryConfig {
            opens: world.permits,
            quantum: Some(world.quantum),
            look_up: true,
            ..RegistryConfig::new(world.slots, world.per_workspace.min(world.slots))
        };
        let ids = (0..world.all_workspaces()).filter_map(|w| WorkspaceId::new(format!("w{w}")).ok());
        let targets: Vec<Target> = ids.map(Target::Workspace).collect();
        let woken = Woken::default();
        let waker = |task| Waker::from(Arc::new(WakeTask { task, woken: Arc::clone(&woken) }));
        let start = Instant::now();
        let mut registry = Registry::new(config, Box::new(Lru::default()));
        for (target, weight) in targets.iter().zip(world.weights.iter().cycle()) {
            // Nothing is asked for yet, so nothing has to be done.
            let _nothing = registry.set_terms(target, Terms { weight: *weight, ceiling: None }, start);
        }
        Self {
            registry,
            start,
            numbers: targets.iter().cloned().zip(0..).collect(),
            targets,
            existing: world.existing(),
            opens: Ledger::default(),
            closes: Ledger::default(),
            calls: (0..tasks).map(|_| Call::None).collect(),
            wakers: (0..tasks).map(waker).collect(),
            woken,
            jobs: VecDeque::new(),
        }
    }

    /// A task asks for a connection to a workspace.
    pub(super) fn ask(&mut self, task: u32, workspace: u32, now: Duration) -> Result<Answer, Broken> {
        match self.registry.acquire(&self.targets[workspace as usize], self.start + now) {
            Acquire::Leased(leased) => self.hold(task, workspace, leased),
            Acquire::Refused(_) => Ok(Answer::Failed),
            Acquire::Queued(ticket, effects) => {
                self.perform(effects);
                self.look(task, workspace, ticket, now)
            }
        }
    }

    /// A task that was woken looks for its answer.
    pub(super) fn fetch(&mut self, task: u32, workspace: u32, now: Duration) -> Result<Answer, Broken> {
        match std::mem::replace(&mut self.calls[task as usize], Call::None) {
            Call::Waiting(ticket) => self.look(task, workspace, ticket, now),
            Call::None | Call::Holding(..) => {
                Err(Broken { law: "W3", what: format!("task {task} was woken without having asked") })
            }
        }
    }

    fn look(&mut self, task: u32, workspace: u32, ticket: Ticket, now: Duration) -> Result<Answer, Broken> {
        let mut waker = Some(self.wakers[task as usize].clone());
        match self.registry.claim(ticket, &mut waker, self.start + now) {
            Claim::Waiting(ticket) => {
                self.calls[task as usize] = Call::Waiting(ticket);
                Ok(Answer::Waiting)
            }
            Claim::Leased(leased) => self.hold(task, workspace, leased),
            Claim::Failed(_) => Ok(Answer::Failed),
        }
    }

    fn hold(&mut self, task: u32, workspace: u32, leased: Leased<u32>) -> Result<Answer, Broken> {
        if leased.conn != workspace {
            let what = format!("a connection to w{} was given to a caller of w{workspace}", leased.conn);
            return Err(Broken { law: "I2", what });
        }
        self.calls[task as usize] = Call::Holding(leased.conn, leased.debt);
        Ok(Answer::Leased)
    }

    /// A task gives its connection back.
    pub(super) fn release(&mut self, task: u32, now: Duration) {
        if let Call::Holding(conn, debt) = std::mem::replace(&mut self.calls[task as usize], Call::None) {
            let effects = self.registry.release(debt, conn, self.start + now);
            self.perform(effects);
        }
    }

    /// A connect is over: it fails where there is no database. Returns whether it succeeded, and whose it was.
    pub(super) fn open_ends(&mut self, open: u32, now: Duration) -> Option<(u32, bool)> {
        let work = self.opens.take(open)?;
        let workspace = self.number(work.target());
        let exists = workspace < self.existing;
        let effects = if exists {
            self.registry.opened(work, workspace, (), None, self.start + now).1
        } else {
            self.registry.open_failed(work, Arc::new(missing_database()), self.start + now)
        };
        self.perform(effects);
        Some((workspace, exists))
    }

    /// A session is gone. Returns whose it was.
    pub(super) fn close_ends(&mut self, close: u32, now: Duration) -> Option<u32> {
        let debt = self.closes.take(close)?;
        let workspace = self.number(debt.target());
        let effects = self.registry.closed(debt, self.start + now);
        self.perform(effects);
        Some(workspace)
    }

    /// The moment that the registry asked for has come.
    pub(super) fn retry(&mut self, workspace: u32, now: Duration) {
        let effects = self.registry.retry(&self.targets[workspace as usize], self.start + now);
        self.perform(effects);
    }

    /// The moment that the registry was promised has come.
    pub(super) fn due(&mut self, now: Duration) {
        let effects = self.registry.due(self.start + now);
        self.perform(effects);
    }

    /// The catalog says whether a workspace has a database.
    pub(super) fn looked_up(&mut self, workspace: u32, now: Duration) {
        let missing = || Arc::new(missing_database());
        let missing = (workspace >= self.existing).then(missing);
        let effects = self.registry.looked_up(&self.targets[workspace as usize], missing, self.start + now);
        self.perform(effects);
    }

    pub(super) fn next_job(&mut self) -> Option<Job> {
        self.jobs.pop_front()
    }

    pub(super) fn next_woken(&mut self) -> Option<u32> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Has the registry check itself.
    pub(super) fn check(&self, now: Duration) -> Result<(), Broken> {
        self.registry.check(self.start + now)
    }

    fn perform(&mut self, effects: Effects<u32>) {
        let Effects { opens, closes, wakes, retry_at, due_at, look_ups, dead: _, drained: _ } = effects;
        for work in opens {
            let workspace = self.number(work.target());
            self.jobs.push_back(Job::Open { open: self.opens.enter(work), workspace });
        }
        for work in closes {
            let (_, debt) = work.split();
            self.jobs.push_back(Job::Close { close: self.closes.enter(debt) });
        }
        if let Some((target, at)) = retry_at {
            let workspace = self.number(&target);
            let at = at.saturating_duration_since(self.start);
            self.jobs.push_back(Job::Retry { workspace, at });
        }
        if let Some(at) = due_at {
            self.jobs.push_back(Job::Due { at: at.saturating_duration_since(self.start) });
        }
        for target in look_ups {
            self.jobs.push_back(Job::LookUp { workspace: self.number(&target) });
        }
        wakes.wake();
    }

    fn number(&self, target: &Target) -> u32 {
        self.numbers.get(target).copied().unwrap_or(u32::MAX)
    }
}

fn missing_database() -> DriverError {
    DriverError::new(Phase::Connect, DriverErrorKind::DatabaseMissing, "simulated")
}

/// What is owed, by small numbers that are used again.
struct Ledger<T> {
    owed: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Ledger<T> {
    fn default() -> Self {
        Self { owed: Vec::new(), free: Vec::new() }
    }
}

impl<T> Ledger<T> {
    fn enter(&mut self, debt: T) -> u32 {
        if let Some(number) = self.free.pop() {
            self.owed[number as usize] = Some(debt);
            return number;
        }
        self.owed.push(Some(debt));
        u32::try_from(self.owed.len() - 1).unwrap_or(u32::MAX)
    }

    fn take(&mut self, number: u32) -> Option<T> {
        let debt = self.owed.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(debt)
    }
}
