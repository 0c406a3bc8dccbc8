//! Owns what a shell would own: the debts, and the moment that every transition is told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_core::{
    Acquire, AcquireError, Claim, CloseReason, CloseWork, DriverError, DriverErrorKind, Effects,
    EffectsDescription, Leased, LostOpen, Lru, OpenWork, Phase, Registry, RegistryConfig, Target, Ticket,
    WorkspaceId,
};

pub type Conn = u32;

/// How long a connection serves its target before it yields, in worlds that do not say otherwise.
pub const QUANTUM: Duration = Duration::from_millis(3);
/// All that a transition asks for.
pub type Asked = EffectsDescription<Conn>;

pub struct World {
    pub registry: Registry<Conn>,
    pub now: Instant,
    pub opens: Vec<OpenWork>,
    pub closes: Vec<CloseWork<Conn>>,
    pub due_at: Option<Instant>,
    pub look_ups: Vec<Target>,
    pub made: u32,
    pub belongs: HashMap<Conn, Target>,
    /// All that the last transition asked for.
    pub asked: Asked,
}

/// What things take in worlds that measure: as much as the defaults say, so that a switch takes 5 ms.
pub const OPEN: Duration = Duration::from_millis(4);
pub const CLOSE: Duration = Duration::from_millis(1);
pub const LEASE: Duration = Duration::from_millis(1);
pub const SWITCH: Duration = Duration::from_millis(5);

/// Nothing is asked for.
pub fn nothing() -> Asked {
    Asked::default()
}

/// Opens are asked for, and nothing else.
pub fn opens(names: &[&str]) -> Asked {
    Asked { opens: names.iter().map(|name| target(name)).collect(), ..nothing() }
}

/// A call of `due` is asked for, and nothing else.
pub fn due_at(at: Instant) -> Asked {
    Asked { due_at: Some(at), ..nothing() }
}

/// Closes are asked for, and nothing else.
pub fn closes(names: &[&str], reason: CloseReason) -> Asked {
    Asked { closes: names.iter().map(|name| (target(name), reason)).collect(), ..nothing() }
}

pub fn target(name: &str) -> Target {
    Target::Workspace(WorkspaceId::new(name).unwrap())
}

pub fn refused() -> Arc<DriverError> {
    Arc::new(DriverError::new(Phase::Connect, DriverErrorKind::Unreachable, "db:5432/x"))
}

/// What a check says of a connection that has broken.
pub fn broke() -> Arc<DriverError> {
    Arc::new(DriverError::new(Phase::Check, DriverErrorKind::ConnectionLost, "db:5432/x"))
}

impl World {
    pub fn new(limit: u32, per_target: u32) -> Self {
        Self::with(RegistryConfig { quantum: Some(QUANTUM), ..RegistryConfig::new(limit, per_target) })
    }

    pub fn with(config: RegistryConfig) -> Self {
        Self {
            registry: Registry::new(config, Box::new(Lru::default())),
            now: Instant::now(),
            opens: Vec::new(),
            closes: Vec::new(),
            due_at: None,
            look_ups: Vec::new(),
            made: 0,
            belongs: HashMap::new(),
            asked: nothing(),
        }
    }

    /// Lets time pass, and calls the registry at each moment that it was promised.
    pub fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(at) = self.due_at.filter(|at| *at <= until) {
            self.due_at = None;
            self.now = self.now.max(at);
            let effects = self.registry.due(self.now);
            self.take(effects);
        }
        self.now = until;
    }

    pub fn take(&mut self, effects: Effects<Conn>) {
        self.asked = effects.describe();
        // Whoever waits for a drain looks at `asked`, which has the dead and the retries, too.
        let Effects { opens, closes, wakes, due_at, look_ups, dead: _, drained: _, retry_at: _ } = effects;
        self.opens.extend(opens);
        self.closes.extend(closes);
        self.due_at = due_at.into_iter().chain(self.due_at).min();
        self.look_ups.extend(look_ups);
        wakes.wake();
        self.registry.check(self.now).unwrap();
    }

    pub fn ask(&mut self, name: &str) -> Ticket {
        match self.registry.acquire(&target(name), self.now) {
            Acquire::Queued(ticket, effects) => {
                self.take(effects);
                ticket
            }
            other => panic!("{name} was not queued: {other:?}"),
        }
    }

    pub fn hit(&mut self, name: &str) -> Leased<Conn> {
        self.asked = nothing();
        match self.registry.acquire(&target(name), self.now) {
            Acquire::Leased(leased) => leased,
            other => panic!("{name} was not served at once: {other:?}"),
        }
    }

    pub fn refusal(&mut self, name: &str) -> AcquireError {
        match self.registry.acquire(&target(name), self.now) {
            Acquire::Refused(error) => error,
            other => panic!("{name} was not refused: {other:?}"),
        }
    }

    pub fn claim(&mut self, ticket: Ticket) -> Claim<Conn> {
        self.registry.claim(ticket, &mut None, self.now)
    }

    pub fn served(&mut self, ticket: Ticket) -> Leased<Conn> {
        match self.claim(ticket) {
            Claim::Leased(leased) => leased,
            other => panic!("not served: {other:?}"),
        }
    }

    pub fn waits(&mut self, ticket: Ticket) -> Ticket {
        match self.claim(ticket) {
            Claim::Waiting(ticket) => ticket,
            other => panic!("not waiting: {other:?}"),
        }
    }

    /// Opens what the registry wants opened; returns for whom.
    pub fn open_all(&mut self) -> Vec<Target> {
        let mut opened = Vec::new();
        while !self.opens.is_empty() {
            opened.push(self.open_first());
        }
        opened
    }

    pub fn open_first(&mut self) -> Target {
        let work = self.opens.remove(0);
        let whom = work.target().clone();
        self.made += 1;
        self.belongs.insert(self.made, whom.clone());
        let (_, effects) = self.registry.opened(work, self.made, (), None, self.now);
        self.take(effects);
        whom
    }

    pub fn fail_first(&mut self) {
        let work = self.opens.remove(0);
        let effects = self.registry.open_failed(work, refused(), self.now);
        self.take(effects);
    }

    pub fn give_up_first(&mut self) -> LostOpen {
        let work = self.opens.remove(0);
        let (lost, effects) = self.registry.open_given_up(work, refused(), self.now);
        self.take(effects);
        lost
    }

    pub fn close_all_owed(&mut self) -> Vec<(Conn, CloseReason)> {
        let mut closed = Vec::new();
        while let Some(work) = self.closes.pop() {
            let reason = work.reason();
            let (conn, debt) = work.split();
            closed.push((conn, reason));
            let effects = self.registry.closed(debt, self.now);
            self.take(effects);
        }
        closed
    }

    pub fn release(&mut self, leased: Leased<Conn>) {
        let effects = self.registry.release(leased.debt, leased.conn, self.now);
        self.take(effects);
    }

    /// A lease on `name`, opened if need be; there must be room.
    pub fn lease(&mut self, name: &str) -> Leased<Conn> {
        let ticket = self.ask(name);
        self.open_all();
        self.served(ticket)
    }

    pub fn idle(&mut self, name: &str) -> Conn {
        let leased = self.lease(name);
        let conn = leased.conn;
        self.release(leased);
        conn
    }

    /// Opens what is to be opened, in the time that an open takes.
    pub fn open_in_time(&mut self) -> Vec<Target> {
        self.pass(OPEN);
        self.open_all()
    }

    /// Closes what is to be closed, in the time that a close takes.
    pub fn close_in_time(&mut self) -> Vec<(Conn, CloseReason)> {
        self.pass(CLOSE);
        self.close_all_owed()
    }

    /// A lease on `name` by an open that takes its time; there must be room.
    pub fn lease_in_time(&mut self, name: &str) -> Leased<Conn> {
        let ticket = self.ask(name);
        self.open_in_time();
        self.served(ticket)
    }

    /// An idle connection of `name`, after an open and a lease that took their time.
    pub fn idle_in_time(&mut self, name: &str) -> Conn {
        let leased = self.lease_in_time(name);
        let conn = leased.conn;
        self.pass(LEASE);
        self.release(leased);
        conn
    }
}
