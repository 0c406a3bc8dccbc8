//! Random schedules over the whole API, longer than the enumerator can go: every law after each step, and
//! everybody served in the end.

use std::time::{Duration, Instant};

use pool_core::{
    Acquire, Claim, CloseDebt, CloseReason, ConnectionId, Effects, LeaseDebt, LostOpen, Lru, OpenWork,
    Registry, RegistryConfig, Target, Terms, Ticket,
};

use crate::world::{Conn, broke, refused, target};

const SEEDS: u64 = 250;
const STEPS: u32 = 400;

struct Chaos {
    dice: fastrand::Rng,
    registry: Registry<Conn>,
    now: Instant,
    made: Conn,
    opens: Vec<OpenWork>,
    lost: Vec<LostOpen>,
    closes: Vec<CloseDebt>,
    retries: Vec<(Target, Instant)>,
    due_at: Option<Instant>,
    look_ups: Vec<Target>,
    tickets: Vec<(Ticket, Target)>,
    held: Vec<(Conn, LeaseDebt)>,
    closing: Vec<Target>,
    /// Sessions that were found gone when they were idle.
    gone: Vec<ConnectionId>,
    /// Leases that a close is going to cut.
    cut: Vec<ConnectionId>,
}

/// Law S4: what makes room says for whom, and that is never the target whose connection goes.
fn makes_room_for_another(close: &CloseDebt) {
    let makes_room = matches!(close.reason(), CloseReason::Evicted | CloseReason::Yielded);
    let for_another = close.for_whom().is_some_and(|whom| whom != close.target());
    assert_eq!(
        makes_room,
        for_another,
        "{} for {:?}: {:?}",
        close.target(),
        close.for_whom(),
        close.reason()
    );
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut roll = |below: u32| dice.u32(..below);
        let limit = 1 + roll(4);
        let mut config = RegistryConfig::new(limit, 1 + roll(limit));
        config.opens = 1 + roll(3);
        config.look_up = roll(2) == 0;
        config.waiting_per_target = 2 + roll(40);
        config.quantum = (roll(2) == 0).then(|| Duration::from_millis(3));
        config.idle_timeout = Some(Duration::from_millis(20));
        Self {
            dice,
            registry: Registry::new(config, Box::new(Lru::default())),
            now: Instant::now(),
            made: 0,
            opens: Vec::new(),
            lost: Vec::new(),
            closes: Vec::new(),
            retries: Vec::new(),
            due_at: None,
            look_ups: Vec::new(),
            tickets: Vec::new(),
            held: Vec::new(),
            closing: Vec::new(),
            gone: Vec::new(),
            cut: Vec::new(),
        }
    }

    fn roll(&mut self, below: usize) -> usize {
        self.dice.usize(..below)
    }

    /// One of `from`, taken out; none if it is empty.
    fn any<T>(&mut self, from: fn(&mut Self) -> &mut Vec<T>) -> Option<T> {
        let len = from(self).len();
        let at = self.roll(len.max(1));
        (len > 0).then(|| from(self).swap_remove(at))
    }

    fn perform(&mut self, effects: Effects<Conn>) {
        self.opens.extend(effects.opens);
        let closes: Vec<CloseDebt> = effects.closes.into_iter().map(|work| work.split().1).collect();
        closes.iter().for_each(makes_room_for_another);
        self.closes.extend(closes);
        self.retries.extend(effects.retry_at);
        self.due_at = effects.due_at.into_iter().chain(self.due_at).min();
        self.look_ups.extend(effects.look_ups);
        effects.wakes.wake();
    }

    fn answered(&mut self, whom: Target, answer: Acquire<Conn>) {
        match answer {
            Acquire::Leased(leased) => self.held.push((leased.conn, leased.debt)),
            Acquire::Queued(ticket, effects) => {
                self.perform(effects);
                self.tickets.push((ticket, whom));
            }
            Acquire::Refused(_) => {}
        }
    }

    fn claim(&mut self, ticket: Ticket, whom: Target) {
        match self.registry.claim(ticket, &mut None, self.now) {
            Claim::Waiting(ticket) => self.tickets.push((ticket, whom)),
            Claim::Leased(leased) => self.held.push((leased.conn, leased.debt)),
            Claim::Failed(_) => {}
        }
    }

    fn opened(&mut self, work: OpenWork, retire_at: Option<Instant>) {
        self.made += 1;
        let (_, effects) = self.registry.opened(work, self.made, (), retire_at, self.now);
        self.perform(effects);
    }

    fn time_passes(&mut self, by: Duration) {
        self.now += by;
        while self.due_at.take_if(|at| *at <= self.now).is_some() {
            let effects = self.registry.due(self.now);
            self.perform(effects);
        }
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.retries).into_iter().partition(|(_, at)| *at <= now);
        self.retries = later;
        let due: Vec<_> = due;
        for (whom, _) in due {
            let effects = self.registry.retry(&whom, self.now);
            self.perform(effects);
        }
    }

    fn step(&mut self, may_ask: bool) {
        let whom = target(["a", "b", "c", "d"][self.roll(4)]);
        match self.roll(14) {
            0..=3 if may_ask => {
                let answer = self.registry.acquire(&whom, self.now);
                self.answered(whom, answer);
            }
            4 => self.give_back(),
            5 => self.an_open_ends(),
            6 => self.something_is_slow(),
            7 => {
                if let Some(debt) = self.any(|world| &mut world.closes) {
                    let effects = self.registry.closed(debt, self.now);
                    self.perform(effects);
                }
            }
            8 => {
                if let Some((ticket, whom)) = self.any(|world| &mut world.tickets) {
                    self.claim(ticket, whom);
                }
            }
            9 => {
                if let Some((ticket, _)) = self.any(|world| &mut world.tickets) {
                    let gave_up = self.registry.cancel_wait(ticket, self.now);
                    self.perform(gave_up.effects);
                }
            }
            10 => {
                let by = Duration::from_millis(self.roll(8) as u64);
                self.time_passes(by);
                let effects = self.registry.expire(self.now);
                self.perform(effects);
            }
            11 => self.sessions_vanish(),
            _ => self.somebody_closes_or_creates(whom),
        }
    }

    /// What was found gone some time ago is told now, and some of what is idle now will be told later.
    fn sessions_vanish(&mut self) {
        let gone = std::mem::take(&mut self.gone);
        let effects = self.registry.vanished(&gone, self.now);
        self.perform(effects);
        let idle = self.registry.idle();
        self.gone = idle.into_iter().filter(|_| self.dice.bool()).collect();
    }

    fn give_back(&mut self) {
        let Some((conn, debt)) = self.any(|world| &mut world.held) else { return };
        match self.roll(5) {
            0 => {
                let effects = self.registry.discard_broken(debt, conn, self.now);
                self.perform(effects);
            }
            4 => {
                let effects = self.registry.discard(debt, conn, self.now);
                self.perform(effects);
            }
            1 => {
                let (again, effects) = self.registry.replace(debt, conn, broke(), self.now);
                self.perform(effects);
                self.answered(target("a"), again);
            }
            _ => {
                let effects = self.registry.release(debt, conn, self.now);
                self.perform(effects);
            }
        }
    }

    fn a_lost_open_ends(&mut self) {
        let Some(lost) = self.any(|world| &mut world.lost) else { return };
        let effects = if self.roll(2) == 0 {
            self.registry.lost_ended(lost, self.now)
        } else {
            self.made += 1;
            match self.registry.lost_opened(lost, self.made, (), None, self.now) {
                Ok((_, effects)) => effects,
                Err((lost, _)) => self.registry.lost_ended(lost, self.now),
            }
        };
        self.perform(effects);
    }

    fn an_open_ends(&mut self) {
        self.a_lost_open_ends();
        let Some(work) = self.any(|world| &mut world.opens) else { return };
        if self.roll(3) == 0 {
            let effects = self.registry.open_failed(work, refused(), self.now);
            self.perform(effects);
        } else {
            let retire_at = (self.roll(3) == 0).then(|| self.now + Duration::from_millis(5));
            self.opened(work, retire_at);
        }
    }

    fn something_is_slow(&mut self) {
        if let Some(mut work) = self.any(|world| &mut world.opens) {
            let effects = self.registry.open_is_slow(&mut work, self.now);
            self.perform(effects);
            if self.roll(2) == 0 {
                let (lost, effects) = self.registry.open_given_up(work, refused(), self.now);
                self.perform(effects);
                self.lost.push(lost);
            } else {
                self.opens.push(work);
            }
        }
        if let Some(mut debt) = self.any(|world| &mut world.closes) {
            let effects = self.registry.close_is_slow(&mut debt, self.now);
            self.perform(effects);
            self.closes.push(debt);
        }
    }

    fn somebody_closes_or_creates(&mut self, whom: Target) {
        let effects = match self.roll(13) {
            10 => self.a_limit_changes(),
            11 => {
                let terms = Terms {
                    weight: self.dice.u32(1..4),
                    ceiling: (self.roll(2) == 0).then(|| self.dice.u32(1..4)),
                };
                self.registry.set_terms(&whom, terms, self.now)
            }
            12 => return self.a_look_up_ends(),
            0 => {
                let effects = self.registry.begin_close(&whom, self.now);
                self.closing.push(whom);
                effects
            }
            1..=4 => match self.closing.pop() {
                Some(whom) => self.registry.end_close(&whom, self.now),
                None => return,
            },
            5..=6 => self.registry.clear_failure(&whom, self.now),
            7 => {
                for id in self.registry.in_use(Some(&whom)) {
                    self.registry.retire_on_return(id, CloseReason::WorkspaceClosed, self.now);
                    self.cut.push(id);
                }
                return;
            }
            8 => {
                let Some((_, effects)) = self.cut.pop().and_then(|id| self.registry.cut(id, self.now)) else {
                    return;
                };
                effects
            }
            _ if self.roll(40) == 0 => self.registry.close_all(self.now),
            _ => return,
        };
        self.perform(effects);
    }

    fn a_limit_changes(&mut self) -> Effects<Conn> {
        let limit = self.dice.u32(1..6);
        let config = RegistryConfig {
            opens: self.dice.u32(1..4),
            ..RegistryConfig::new(limit, self.dice.u32(1..=limit))
        };
        self.registry.set_limits(&config, self.now)
    }

    fn a_look_up_ends(&mut self) {
        if let Some(whom) = self.any(|world| &mut world.look_ups) {
            let missing = (self.roll(3) == 0).then(refused);
            let effects = self.registry.looked_up(&whom, missing, self.now);
            self.perform(effects);
        }
    }

    /// Everything succeeds and everybody gives back; nobody may be left.
    fn wind_down(&mut self) {
        while let Some(whom) = self.closing.pop() {
            let effects = self.registry.end_close(&whom, self.now);
            self.perform(effects);
        }
        for _ in 0..12_000 {
            self.time_passes(Duration::from_millis(1));
            while let Some(whom) = self.look_ups.pop() {
                let effects = self.registry.looked_up(&whom, None, self.now);
                self.perform(effects);
            }
            while let Some(work) = self.opens.pop() {
                self.opened(work, None);
            }
            while !self.lost.is_empty() {
                self.a_lost_open_ends();
            }
            while let Some(debt) = self.closes.pop() {
                let effects = self.registry.closed(debt, self.now);
                self.perform(effects);
            }
            for (ticket, whom) in std::mem::take(&mut self.tickets) {
                self.claim(ticket, whom);
            }
            while let Some((conn, debt)) = self.held.pop() {
                let effects = self.registry.release(debt, conn, self.now);
                self.perform(effects);
            }
            if self.tickets.is_empty() && self.opens.is_empty() && self.closes.is_empty() {
                return;
            }
        }
        panic!("somebody waits for ever: {:?}", self.registry.stats());
    }
}

#[test]
fn random_schedules_over_the_whole_registry_keep_the_laws() {
    for seed in 0..SEEDS {
        let mut world = Chaos::new(seed);
        for step in 0..STEPS {
            world.time_passes(Duration::from_nanos(1));
            world.step(step < STEPS * 3 / 4);
            if let Err(broken) = world.registry.check(world.now) {
                panic!("seed {seed}, step {step}: {broken}");
            }
        }
        world.wind_down();
        world.registry.check(world.now).unwrap();
        assert_eq!(world.registry.stats().connections.in_use, 0, "seed {seed}");
    }
}
