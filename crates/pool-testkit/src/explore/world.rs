//! A small world around a real registry: it owns what a shell would own, knows which steps are possible,
//! takes them, and checks what only an outsider can see (who was served, with what, in which order).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use pool_core::{
    Acquire, Broken, Claim, CloseWork, DriverError, DriverErrorKind, Effects, LeaseDebt, Leased, Lru,
    OpenWork, Phase, Registry, RegistryConfig, Target, Ticket, View, WorkspaceId,
};

use super::{Scenario, Step};

type Conn = u32;

/// Whether a waiting caller has been woken.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

enum Caller {
    New,
    Waiting { ticket: Ticket, woken: Arc<Flag>, asked: u64 },
    Holding { conn: Conn, debt: LeaseDebt },
    Done,
}

/// What two worlds have in common that will behave alike.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Fingerprint {
    view: View,
    callers: Vec<(u8, u64)>,
    opens: Vec<Target>,
    closes: Vec<Target>,
    retries: Vec<Target>,
    left: [u32; 3],
}

pub(super) struct World {
    scenario: Scenario,
    registry: Registry<Conn>,
    now: Instant,
    clock: u64,
    callers: Vec<Caller>,
    opens: Vec<OpenWork>,
    closes: Vec<CloseWork<Conn>>,
    retries: Vec<(Target, Instant)>,
    belongs: BTreeMap<Conn, Target>,
    failures_left: u32,
    breakages_left: u32,
    turns_left: u32,
}

impl World {
    pub(super) fn new(scenario: Scenario, start: Instant) -> Self {
        let config = RegistryConfig::new(scenario.budget, scenario.per_workspace.min(scenario.budget));
        let mut registry = Registry::new(config, Box::new(Lru::default()));
        if let Some(bug) = scenario.bug {
            registry.plant(bug);
        }
        Self {
            registry,
            now: start,
            clock: 0,
            callers: (0..scenario.callers).map(|_| Caller::New).collect(),
            opens: Vec::new(),
            closes: Vec::new(),
            retries: Vec::new(),
            belongs: BTreeMap::new(),
            failures_left: scenario.failures,
            breakages_left: scenario.breakages,
            turns_left: scenario.turns,
            scenario,
        }
    }

    /// Every step that can be taken now.
    pub(super) fn possible(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (c, caller) in self.callers.iter().enumerate() {
            match caller {
                Caller::New => steps.push(Step::Ask(c)),
                Caller::Waiting { woken, .. } => {
                    steps.push(Step::GiveUp(c));
                    if woken.0.load(Ordering::Relaxed) {
                        steps.push(Step::Fetch(c));
                    }
                }
                Caller::Holding { .. } => {
                    steps.push(Step::Release(c));
                    if self.breakages_left > 0 {
                        steps.push(Step::Break(c));
                    }
                }
                Caller::Done => {}
            }
        }
        steps.extend((0..self.opens.len()).map(Step::OpenSucceeds));
        if self.failures_left > 0 {
            steps.extend((0..self.opens.len()).map(Step::OpenFails));
        }
        steps.extend((0..self.closes.len()).map(Step::CloseIsConfirmed));
        steps.extend((0..self.retries.len()).map(Step::RetryIsDue));
        if self.turns_left > 0 && self.is_anybody_waiting() {
            steps.push(Step::TurnPasses);
        }
        steps
    }

    /// Takes a step, and checks every law.
    pub(super) fn take(&mut self, step: Step) -> Result<(), Broken> {
        // Time goes on a little with every step, so that "least recently used" is never a tie.
        self.clock += 1;
        self.now += Duration::from_nanos(1);
        match step {
            Step::Ask(c) => self.ask(c)?,
            Step::Fetch(c) => self.fetch(c)?,
            Step::GiveUp(c) => {
                if let Caller::Waiting { ticket, .. } = self.replace(c, Caller::Done) {
                    let gave_up = self.registry.give_up(ticket, self.now);
                    self.perform(gave_up.effects);
                }
            }
            Step::Release(c) => {
                if let Caller::Holding { conn, debt } = self.replace(c, Caller::Done) {
                    let effects = self.registry.release(debt, conn, self.now);
                    self.perform(effects);
                }
            }
            Step::Break(c) => {
                self.breakages_left -= 1;
                if let Caller::Holding { conn, debt } = self.replace(c, Caller::Done) {
                    let effects = self.registry.discard(debt, conn, self.now);
                    self.perform(effects);
                }
            }
            Step::OpenSucceeds(i) => self.open_succeeds(i),
            Step::OpenFails(i) => self.open_fails(i),
            Step::CloseIsConfirmed(i) => {
                let (conn, debt) = self.closes.remove(i).split();
                self.belongs.remove(&conn);
                let effects = self.registry.closed(debt, self.now);
                self.perform(effects);
            }
            Step::RetryIsDue(i) => {
                let (target, at) = self.retries.remove(i);
                self.now = self.now.max(at);
                let effects = self.registry.retry(&target, self.now);
                self.perform(effects);
            }
            Step::TurnPasses => {
                self.turns_left -= 1;
                self.now += Duration::from_millis(3);
            }
        }
        self.registry.check(self.now)
    }

    /// The laws that hold where nothing can happen any more: everybody was served, and everything is back.
    pub(super) fn check_the_end(&self) -> Result<(), Broken> {
        let broken = |law, what: String| Err(Broken { law, what });
        let in_use = self.registry.stats().connections.in_use as usize;
        let held = self.callers.iter().filter(|caller| matches!(caller, Caller::Holding { .. })).count();
        let view = self.registry.view(self.now);
        let granted: u32 = view.workspaces.iter().map(|ws| ws.answered).sum();
        if in_use > held + granted as usize {
            return broken(
                "W4",
                format!("{in_use} connections count as in use; {held} are held, {granted} granted"),
            );
        }
        if let Some(c) = self.callers.iter().position(|caller| matches!(caller, Caller::Waiting { .. })) {
            return broken("W3", format!("nothing can happen any more, and caller {c} waits"));
        }
        Ok(())
    }

    /// Whether only giving up can still happen: then a caller that waits has been forgotten.
    pub(super) fn is_stuck(possible: &[Step]) -> bool {
        possible.iter().all(|step| matches!(step, Step::GiveUp(_) | Step::TurnPasses))
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        let mut view = self.registry.view(self.now);
        let mut ages: Vec<u128> = view.workspaces.iter().flat_map(|ws| ws.idle_nanos.clone()).collect();
        ages.sort_unstable();
        for ws in &mut view.workspaces {
            for age in &mut ws.idle_nanos {
                *age = ages.iter().position(|other| other == age).unwrap_or_default() as u128;
            }
            for age in &mut ws.waiting_nanos {
                *age = u128::from(*age >= 3_000_000);
            }
        }
        let targets = |all: Vec<Target>| {
            let mut all = all;
            all.sort();
            all
        };
        Fingerprint {
            view,
            callers: self.callers.iter().map(|caller| self.rank(caller)).collect(),
            opens: targets(self.opens.iter().map(|work| work.target().clone()).collect()),
            closes: targets(self.closes.iter().map(|work| work.target().clone()).collect()),
            retries: targets(self.retries.iter().map(|(target, _)| target.clone()).collect()),
            left: [self.failures_left, self.breakages_left, self.turns_left],
        }
    }

    /// A caller's state, with its rank among those who wait instead of the time it came.
    fn rank(&self, caller: &Caller) -> (u8, u64) {
        match caller {
            Caller::New => (0, 0),
            Caller::Waiting { woken, asked, .. } => {
                let earlier =
                    |other: &&Caller| matches!(other, Caller::Waiting { asked: a, .. } if a < asked);
                let before = self.callers.iter().filter(earlier).count() as u64;
                (1 + u8::from(woken.0.load(Ordering::Relaxed)), before)
            }
            Caller::Holding { .. } => (3, 0),
            Caller::Done => (4, 0),
        }
    }

    fn wanted_by(&self, c: usize) -> Target {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let name = names[c % self.scenario.workspaces as usize % names.len()];
        match WorkspaceId::new(name) {
            Ok(id) => Target::Workspace(id),
            Err(_) => Target::System,
        }
    }

    fn is_anybody_waiting(&self) -> bool {
        self.callers.iter().any(|caller| matches!(caller, Caller::Waiting { .. }))
    }

    fn replace(&mut self, c: usize, with: Caller) -> Caller {
        std::mem::replace(&mut self.callers[c], with)
    }

    fn ask(&mut self, c: usize) -> Result<(), Broken> {
        match self.registry.acquire(&self.wanted_by(c), self.now) {
            Acquire::Leased(leased) => self.hold(c, leased),
            Acquire::Refused(_) => {
                self.callers[c] = Caller::Done;
                Ok(())
            }
            Acquire::Queued(ticket, effects) => {
                self.perform(effects);
                let woken = Arc::new(Flag(AtomicBool::new(false)));
                self.look(c, ticket, woken, self.clock)
            }
        }
    }

    fn fetch(&mut self, c: usize) -> Result<(), Broken> {
        match self.replace(c, Caller::Done) {
            Caller::Waiting { ticket, woken, asked } => {
                woken.0.store(false, Ordering::Relaxed);
                self.look(c, ticket, woken, asked)
            }
            other => {
                self.callers[c] = other;
                Ok(())
            }
        }
    }

    /// Polls a ticket as a future would.
    fn look(&mut self, c: usize, ticket: Ticket, woken: Arc<Flag>, asked: u64) -> Result<(), Broken> {
        match self.registry.claim(ticket, &mut Some(Waker::from(Arc::clone(&woken)))) {
            Claim::Waiting(ticket) => {
                self.callers[c] = Caller::Waiting { ticket, woken, asked };
                Ok(())
            }
            Claim::Leased(leased) => {
                self.check_order(c, asked)?;
                self.hold(c, leased)
            }
            Claim::Failed(_) => {
                self.callers[c] = Caller::Done;
                Ok(())
            }
        }
    }

    /// W1: nobody who came earlier for the same workspace is still unanswered.
    fn check_order(&self, c: usize, asked: u64) -> Result<(), Broken> {
        let target = self.wanted_by(c);
        for (other, caller) in self.callers.iter().enumerate() {
            if let Caller::Waiting { woken, asked: earlier, .. } = caller
                && *earlier < asked
                && self.wanted_by(other) == target
                && !woken.0.load(Ordering::Relaxed)
            {
                let what = format!("caller {c} was served before caller {other}, who came first");
                return Err(Broken { law: "W1", what });
            }
        }
        Ok(())
    }

    fn hold(&mut self, c: usize, leased: Leased<Conn>) -> Result<(), Broken> {
        let Leased { conn, debt, .. } = leased;
        let target = self.wanted_by(c);
        if self.belongs.get(&conn) != Some(&target) {
            return Err(Broken {
                law: "I2",
                what: format!("caller {c} got a connection of another database"),
            });
        }
        let is_held = |caller: &Caller| matches!(caller, Caller::Holding { conn: held, .. } if *held == conn);
        if self.callers.iter().any(is_held) {
            return Err(Broken {
                law: "E1",
                what: format!("caller {c} got a connection that another holds"),
            });
        }
        self.callers[c] = Caller::Holding { conn, debt };
        Ok(())
    }

    fn open_succeeds(&mut self, i: usize) {
        let work = self.opens.remove(i);
        let conn = Conn::try_from(self.clock).unwrap_or_default();
        self.belongs.insert(conn, work.target().clone());
        let (_, effects) = self.registry.opened(work, conn, None, self.now);
        self.perform(effects);
    }

    fn open_fails(&mut self, i: usize) {
        self.failures_left -= 1;
        let work = self.opens.remove(i);
        let error = DriverError::new(Phase::Connect, DriverErrorKind::Unreachable, "nowhere");
        let effects = self.registry.open_failed(work, Arc::new(error), self.now);
        self.perform(effects);
    }

    fn perform(&mut self, effects: Effects<Conn>) {
        self.opens.extend(effects.opens);
        self.closes.extend(effects.closes);
        self.retries.extend(effects.retry_at);
        effects.wakes.wake();
    }
}
