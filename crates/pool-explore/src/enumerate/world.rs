//! A small world around a real registry: it owns what a shell would own, and takes steps.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use pool_core::{
    Acquire, Broken, Claim, CloseReason, ConnectionId, DriverError, DriverErrorKind, Effects, LeaseDebt,
    Leased, LostOpen, Lru, OpenWork, Phase, Registry, RegistryConfig, Target, Ticket, WorkspaceId,
};

use super::parts::{Caller, Close, Closer, Conn, Flag, History, Live, Open};
use super::{Scenario, Step};

/// The workspaces of a world, `a` and so on.
pub(super) fn targets_of(scenario: &Scenario) -> Arc<[Target]> {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let ids = names.into_iter().take(scenario.workspaces).filter_map(|name| WorkspaceId::new(name).ok());
    ids.map(Target::Workspace).collect()
}

/// How long a connection serves before it yields, in all worlds.
pub(super) const QUANTUM: Duration = Duration::from_millis(3);
const IDLE_TIMEOUT: Duration = Duration::from_mins(5);

pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) targets: Arc<[Target]>,
    pub(super) registry: Registry<Conn>,
    pub(super) now: Instant,
    clock: i64,
    pub(super) during: Step,
    pub(super) callers: Vec<Caller>,
    pub(super) opens: Vec<Open>,
    /// For whom the last step has started opens.
    pub(super) started: Vec<Target>,
    pub(super) closes: Vec<Close>,
    pub(super) closers: Vec<Closer>,
    pub(super) retries: Vec<(Target, Instant)>,
    /// When the registry is to be called, as it was promised.
    pub(super) due_at: Option<Instant>,
    pub(super) look_ups: Vec<Target>,
    pub(super) live: Vec<Live>,
    /// The limit now, and what may be counted: more, for a while, after it was lowered.
    pub(super) budget: u32,
    pub(super) allowed: u32,
    pub(super) cut: Vec<ConnectionId>,
    /// Connections whose sessions are gone, and count no longer, while their holders still have them.
    pub(super) dead: Vec<Conn>,
    /// A session that had ended when the driver was asked, and has not been told of yet.
    pub(super) vanished: Option<ConnectionId>,
    /// Whether the server has been found not to answer.
    pub(super) is_dark: bool,
    /// Whether nobody does what is asked.
    pub(super) is_stranded: bool,
    pub(super) history: History,
    pub(super) mishaps_left: u32,
    pub(super) quanta_left: u32,
}

impl World {
    pub(super) fn new(scenario: Scenario, targets: &Arc<[Target]>, start: Instant) -> Self {
        let config = RegistryConfig {
            opens: scenario.opens,
            quantum: Some(QUANTUM),
            look_up: scenario.look_ups,
            idle_timeout: Some(IDLE_TIMEOUT),
            ..RegistryConfig::new(scenario.budget, scenario.per_workspace.min(scenario.budget))
        };
        let registry = Registry::new(config, Box::new(Lru::default()));
        Self {
            targets: Arc::clone(targets),
            registry,
            now: start,
            clock: 0,
            during: Step::QuantumPasses,
            callers: (0..scenario.callers).map(|_| Caller::New).collect(),
            opens: Vec::new(),
            started: Vec::new(),
            closes: Vec::new(),
            closers: Vec::new(),
            retries: Vec::new(),
            due_at: None,
            look_ups: Vec::new(),
            live: Vec::new(),
            budget: scenario.budget,
            allowed: scenario.budget,
            cut: Vec::new(),
            dead: Vec::new(),
            vanished: None,
            is_dark: false,
            is_stranded: false,
            history: History::default(),
            mishaps_left: scenario.mishaps,
            quanta_left: scenario.quanta,
            scenario,
        }
    }

    /// Takes a step, and checks what can be told from what the registry asks for.
    pub(super) fn step(&mut self, step: Step) -> Result<(), Broken> {
        // Time goes on a little with every step, so that "least recently used" is never a tie.
        self.clock += 1;
        self.now += Duration::from_nanos(1);
        self.mishaps_left -= u32::from(self.costs_a_mishap(step));
        self.during = step;
        self.started.clear();
        match step {
            Step::Ask(c) => self.ask(c),
            Step::Fetch(c) => self.fetch(c),
            Step::GiveUp(c) => self.cancel_wait(c),
            Step::Release(c) => self.give_back(c, Registry::release),
            Step::Break(c) => self.give_back(c, Registry::discard_broken),
            Step::Discard(c) => self.give_back(c, Registry::discard),
            Step::CheckFails(c) => self.check_fails(c),
            Step::OpenSucceeds(i) => self.open_succeeds(i),
            Step::OpenFails(i) => self.open_fails(i),
            Step::OpenIsSlow(i) => self.open_is_slow(i),
            Step::OpenIsGivenUp(i) => self.open_is_given_up(i),
            Step::OpenIsOvertaken(i) => self.open_is_overtaken(i),
            Step::CloseIsConfirmed(i) => {
                let Close { conn, debt, .. } = self.closes.remove(i);
                self.live.retain(|live| live.conn != conn);
                let effects = self.registry.closed(debt, self.now);
                self.perform(effects)
            }
            Step::CloseIsSlow(i) => {
                self.closes[i].slow = true;
                let effects = self.registry.close_is_slow(&mut self.closes[i].debt, self.now);
                self.perform(effects)
            }
            Step::RetryIsDue(_)
            | Step::DueComes
            | Step::IsFound(_)
            | Step::IsMissing(_)
            | Step::LimitIs(_)
            | Step::QuantumPasses
            | Step::IdleTimeout
            | Step::SessionVanishes(_)
            | Step::VanishedIsTold
            | Step::ServerIsLost
            | Step::ServerAnswers
            | Step::RuntimeEnds
            | Step::AnotherBegins
            | Step::DatabaseIsMade(_) => self.step_of_the_world(step),
            Step::BeginClose(w) => {
                let target = self.target(w);
                self.history.closed |= self.bit(w);
                let effects = self.registry.begin_close(&target, self.now);
                self.begin_closer(Some(target), effects)
            }
            Step::CloseAll => {
                self.history.all_closed = true;
                let effects = self.registry.close_all(self.now);
                self.begin_closer(None, effects)
            }
            Step::CloserLooks(k) => self.closer_looks(k),
            Step::CloserGoes(k) => self.closer_ends(k),
            Step::Deadline(k) => self.deadline(k),
            Step::Cut(k) => {
                self.closers[k].has_cut = true;
                for id in self.closers[k].listed.iter().flatten() {
                    self.registry.retire_on_return(*id, CloseReason::WorkspaceClosed, self.now);
                    self.cut.push(*id);
                }
                self.closers[k].told = true;
                Ok(())
            }
            Step::CutIsConfirmed(k) => self.cut_is_confirmed(k),
        }
    }

    /// Time that passes, what the catalog says, and what is set from outside.
    fn step_of_the_world(&mut self, step: Step) -> Result<(), Broken> {
        match step {
            Step::RetryIsDue(i) => {
                let (target, at) = self.retries.remove(i);
                self.now = self.now.max(at);
                let effects = self.registry.retry(&target, self.now);
                self.perform(effects)
            }
            Step::DueComes => self.due_comes(),
            Step::IsFound(i) => self.is_looked_up(i, None),
            Step::IsMissing(i) => self.is_looked_up(i, Some(unreachable_server())),
            Step::LimitIs(limit) => self.limit_is(limit),
            Step::QuantumPasses => {
                self.quanta_left -= 1;
                self.now += QUANTUM;
                Ok(())
            }
            Step::IdleTimeout => {
                self.now += IDLE_TIMEOUT;
                let effects = self.registry.expire(self.now);
                self.perform(effects)
            }
            Step::SessionVanishes(i) => {
                self.vanished = Some(self.registry.idle()[i]);
                Ok(())
            }
            Step::VanishedIsTold => {
                let gone = self.vanished.take();
                let effects = self.registry.vanished(gone.as_slice(), self.now);
                self.perform(effects)
            }
            Step::ServerIsLost => self.server_is_lost(),
            Step::ServerAnswers => self.server_answers(),
            Step::RuntimeEnds => self.runtime_ends(),
            Step::AnotherBegins => self.another_begins(),
            Step::DatabaseIsMade(w) => {
                let target = self.target(w);
                let effects = self.registry.clear_failure(&target, self.now);
                // Those that it asks for begin after it.
                self.outdate_opens(&target);
                self.perform(effects)
            }
            _ => Err(Broken { law: "S1", what: format!("{step} is no step of the world") }),
        }
    }

    pub(super) fn wants(&self, caller: usize) -> usize {
        caller % self.scenario.workspaces
    }

    pub(super) fn target(&self, workspace: usize) -> Target {
        self.targets[workspace % self.targets.len()].clone()
    }

    #[allow(clippy::unused_self)]
    pub(super) fn bit(&self, workspace: usize) -> u8 {
        1 << (workspace % 8)
    }

    pub(super) fn bit_of(&self, target: &Target) -> u8 {
        self.targets.iter().position(|other| other == target).map_or(0, |w| self.bit(w))
    }

    fn due_comes(&mut self) -> Result<(), Broken> {
        self.now = self.due_at.take().map_or(self.now, |at| self.now.max(at));
        let effects = self.registry.due(self.now);
        self.perform(effects)
    }

    fn is_looked_up(&mut self, i: usize, missing: Option<Arc<DriverError>>) -> Result<(), Broken> {
        let target = self.look_ups.remove(i);
        self.history.failed |= if missing.is_some() { self.bit_of(&target) } else { 0 };
        let effects = self.registry.looked_up(&target, missing, self.now);
        self.perform(effects)
    }

    fn limit_is(&mut self, limit: u32) -> Result<(), Broken> {
        self.history.limit_lowered |= limit < self.budget;
        self.budget = limit;
        self.allowed = self.registry.stats().connections.total().max(limit);
        let per_workspace = self.scenario.per_workspace.min(limit);
        let config =
            RegistryConfig { opens: self.scenario.opens, ..RegistryConfig::new(limit, per_workspace) };
        let effects = self.registry.set_limits(&config, self.now);
        self.perform(effects)
    }

    fn replace(&mut self, c: usize, with: Caller) -> Caller {
        std::mem::replace(&mut self.callers[c], with)
    }

    fn ask(&mut self, c: usize) -> Result<(), Broken> {
        let answer = self.registry.acquire(&self.target(self.wants(c)), self.now);
        self.answered(c, answer, self.clock)
    }

    fn answered(&mut self, c: usize, answer: Acquire<Conn>, asked: i64) -> Result<(), Broken> {
        match answer {
            Acquire::Leased(leased) => self.hold(c, leased),
            Acquire::Refused(error) => {
                self.callers[c] = Caller::Done;
                self.check_failure(c, &error)
            }
            Acquire::Queued(ticket, effects) => {
                // What is owed is taken before anything is found wrong, so that it is not dropped.
                let checked = self.check_is_open(c);
                self.perform(effects)?;
                checked?;
                let woken = Arc::new(Flag::default());
                self.look(c, ticket, woken, asked)
            }
        }
    }

    fn fetch(&mut self, c: usize) -> Result<(), Broken> {
        let Caller::Waiting { ticket, woken, asked } = self.replace(c, Caller::Done) else { return Ok(()) };
        woken.lower();
        self.look(c, ticket, woken, asked)?;
        if let Caller::Waiting { .. } = self.callers[c] {
            let what = format!("caller {c} was told of an answer, and it was taken away again");
            return Err(Broken { law: "E1", what });
        }
        Ok(())
    }

    /// Polls a ticket as a future would.
    fn look(&mut self, c: usize, ticket: Ticket, woken: Arc<Flag>, asked: i64) -> Result<(), Broken> {
        match self.registry.claim(ticket, &mut Some(Waker::from(Arc::clone(&woken))), self.now) {
            Claim::Waiting(ticket) => {
                self.callers[c] = Caller::Waiting { ticket, woken, asked };
                Ok(())
            }
            Claim::Leased(leased) => {
                self.check_order(c, asked)?;
                self.hold(c, leased)
            }
            Claim::Failed(error) => self.check_failure(c, &error),
        }
    }

    fn hold(&mut self, c: usize, leased: Leased<Conn>) -> Result<(), Broken> {
        let Leased { conn, debt, .. } = leased;
        self.check_lease(c, conn)?;
        self.callers[c] = Caller::Holding { conn, debt, fresh: true };
        Ok(())
    }

    fn cancel_wait(&mut self, c: usize) -> Result<(), Broken> {
        let Caller::Waiting { ticket, .. } = self.replace(c, Caller::Done) else { return Ok(()) };
        let gave_up = self.registry.cancel_wait(ticket, self.now);
        self.perform(gave_up.effects)
    }

    fn give_back(
        &mut self,
        c: usize,
        how: fn(&mut Registry<Conn>, LeaseDebt, Conn, Instant) -> Effects<Conn>,
    ) -> Result<(), Broken> {
        let Caller::Holding { conn, debt, .. } = self.replace(c, Caller::Done) else { return Ok(()) };
        if let Some(live) = self.live.iter_mut().find(|live| live.conn == conn) {
            live.returned = self.now;
        }
        let effects = how(&mut self.registry, debt, conn, self.now);
        self.perform(effects)
    }

    fn check_fails(&mut self, c: usize) -> Result<(), Broken> {
        let Caller::Holding { conn, debt, .. } = self.replace(c, Caller::Done) else { return Ok(()) };
        // Who has been answered already was so before this caller came back.
        for caller in &mut self.callers {
            if let Caller::Waiting { woken, asked, .. } = caller
                && woken.is_up()
            {
                *asked = i64::MIN;
            }
        }
        // The first broken connection is replaced; those after it may count as failed opens.
        let its = self.bit(self.wants(c));
        self.history.failed |= self.history.broken & its;
        self.history.broken |= its;
        let (answer, effects) = self.registry.replace(debt, conn, unreachable_server(), self.now);
        let performed = self.perform(effects);
        self.answered(c, answer, -self.clock)?;
        performed
    }

    fn open_succeeds(&mut self, i: usize) -> Result<(), Broken> {
        let conn = Conn::try_from(self.clock).unwrap_or_default();
        let target = self.opens[i].target().clone();
        let (id, effects) = match self.opens.remove(i) {
            Open::UnderWay { work, .. } => self.registry.opened(work, conn, (), None, self.now),
            Open::Lost(lost) => match self.registry.lost_opened(lost, conn, (), None, self.now) {
                Ok(admitted) => admitted,
                Err((lost, _)) => {
                    let effects = self.registry.lost_ended(lost, self.now);
                    return self.perform(effects);
                }
            },
        };
        self.history.served |= self.bit_of(&target);
        self.live.push(Live { conn, id, target, opened: self.now, returned: self.now });
        self.perform(effects)
    }

    fn open_fails(&mut self, i: usize) -> Result<(), Broken> {
        let effects = match self.opens.remove(i) {
            Open::UnderWay { work, .. } => {
                self.history.failed |= self.bit_of(work.target());
                self.registry.open_failed(work, unreachable_server(), self.now)
            }
            Open::Lost(lost) => self.registry.lost_ended(lost, self.now),
        };
        self.perform(effects)
    }

    fn open_is_slow(&mut self, i: usize) -> Result<(), Broken> {
        let Open::UnderWay { work, slow, .. } = &mut self.opens[i] else { return Ok(()) };
        *slow = true;
        let effects = self.registry.open_is_slow(work, self.now);
        self.perform(effects)
    }

    fn open_is_given_up(&mut self, i: usize) -> Result<(), Broken> {
        self.history.failed |= self.bit_of(self.opens[i].target());
        let now = self.now;
        self.lose_open(i, |registry, work| registry.open_given_up(work, unreachable_server(), now))
    }

    fn open_is_overtaken(&mut self, i: usize) -> Result<(), Broken> {
        let now = self.now;
        self.lose_open(i, |registry, work| registry.open_overtaken(work, now))
    }

    fn lose_open(
        &mut self,
        i: usize,
        how: impl FnOnce(&mut Registry<Conn>, OpenWork) -> (LostOpen, Effects<Conn>),
    ) -> Result<(), Broken> {
        self.history.lost |= self.bit_of(self.opens[i].target());
        match self.opens.remove(i) {
            Open::UnderWay { work, .. } => {
                let (lost, effects) = how(&mut self.registry, work);
                self.opens.push(Open::Lost(lost));
                self.perform(effects)
            }
            lost @ Open::Lost(_) => {
                self.opens.push(lost);
                Ok(())
            }
        }
    }

    pub(super) fn perform(&mut self, effects: Effects<Conn>) -> Result<(), Broken> {
        let Effects { opens, closes, dead, wakes, drained, retry_at, due_at, look_ups } = effects;
        self.started.extend(opens.iter().map(|work| work.target().clone()));
        let opened_in_the_dark = self.is_dark && !opens.is_empty();
        self.opens.extend(opens.into_iter().map(|work| Open::UnderWay {
            work,
            slow: false,
            outlived: false,
            outdated: false,
        }));
        wakes.wake();
        self.retries.extend(retry_at);
        self.due_at = self.due_at.into_iter().chain(due_at).min();
        self.look_ups.extend(look_ups);
        for closer in &mut self.closers {
            closer.told |= drained;
        }
        if opened_in_the_dark {
            let what = "something is opened while the server does not answer".to_owned();
            return Err(Broken { law: "O7", what });
        }
        let mut closing = Vec::new();
        for work in closes {
            let reason = work.reason();
            let (conn, debt) = work.split();
            closing.push((conn, reason));
            self.closes.push(Close { conn, debt, slow: false });
        }
        closing.into_iter().try_for_each(|(conn, reason)| self.check_close(conn, reason))?;
        for conn in dead {
            self.check_dead(conn)?;
            self.dead.retain(|other| *other != conn);
        }
        Ok(())
    }
}

pub(super) fn unreachable_server() -> Arc<DriverError> {
    Arc::new(DriverError::new(Phase::Connect, DriverErrorKind::Unreachable, "nowhere"))
}
