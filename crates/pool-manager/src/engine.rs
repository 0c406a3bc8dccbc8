//! What all handles, leases and tasks have in common: the two shares, the driver, the settings and the queue of jobs.
//! [`Engine::step`] runs a transition and performs its effects after the door of the share has closed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::future::Cache;
use pool_core::{
    Ceilings, CloseDebt, CloseWork, Driver, DriverError, DriverErrorKind, Effects, Endpoint, Event,
    LeaseDebt, Limits, LimitsError, OpenWork, Phase, PoolStats, Registry, RegistryConfig, Target,
    WorkspaceId,
};
use tokio::sync::{Notify, mpsc};

use crate::lease::Lease;
use crate::opener::Job;
use crate::server::ServerHealth;
use crate::settings::Settings;
use crate::share::{self, Share};

/// One of the two shares.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    Workspaces,
    System,
}

/// What is known of a workspace's database.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fact {
    /// It is there.
    Seen,
    /// It was ensured, with all that belongs to that.
    Ensured,
}

/// What moka can take.
const FACTS_TTL_MAX: Duration = Duration::from_hours(24 * 365);
const CENTURY: Duration = Duration::from_hours(24 * 365 * 100);

/// What `limits` are with this driver, which has connections of its own.
pub(crate) fn divide(driver: &impl Driver, limits: Limits) -> Result<Ceilings, LimitsError> {
    Ok(limits.ceilings(driver.control_connections())?.with_reserve(driver.control_reserve()))
}

pub(crate) struct Engine<D: Driver> {
    /// The shares come first, so that they are dropped first: what is owed to a registry that is gone is void.
    pub(crate) workspaces: Share<D>,
    pub(crate) system: Share<D>,
    pub(crate) driver: D,
    pub(crate) settings: Settings,
    /// What was wished last; the shares may still be on their way there.
    ceilings: Mutex<Ceilings>,
    /// Workspaces that are known to have a database.
    pub(crate) facts: Cache<WorkspaceId, Fact>,
    jobs: mpsc::UnboundedSender<Job<D>>,
    look_ups: mpsc::UnboundedSender<Target>,
    /// Told whenever something that is being closed has no connection left but those in use.
    pub(crate) drained: Notify,
    /// Told whenever something begins to be closed.
    pub(crate) closing: Notify,
    /// Told whenever a connection has proved broken; others may have broken with it.
    pub(crate) breakage: Arc<Notify>,
    pub(crate) health: Arc<ServerHealth>,
}

impl<D: Driver> Engine<D> {
    pub(crate) fn new(
        driver: D,
        settings: Settings,
        ceilings: Ceilings,
        jobs: mpsc::UnboundedSender<Job<D>>,
        look_ups: mpsc::UnboundedSender<Target>,
    ) -> Self {
        let facts = Cache::builder()
            .max_capacity(100_000)
            .time_to_live(settings.facts_ttl.min(FACTS_TTL_MAX))
            .build();
        Self {
            workspaces: Share::new(Registry::new(
                settings.workspaces_config(&ceilings),
                (settings.eviction)(),
            )),
            system: Share::new(Registry::new(settings.system_config(&ceilings), (settings.eviction)())),
            driver,
            settings,
            ceilings: Mutex::new(ceilings),
            facts,
            jobs,
            look_ups,
            drained: Notify::new(),
            closing: Notify::new(),
            breakage: Arc::default(),
            health: Arc::default(),
        }
    }

    pub(crate) fn now() -> Instant {
        share::now()
    }

    /// The moment `wait` from `moment`; a wait beyond a century is one of a century, which a clock can hold.
    pub(crate) fn after(moment: Instant, wait: Duration) -> Instant {
        moment + wait.min(CENTURY)
    }

    /// The share that `target` is served from.
    pub(crate) fn share(&self, target: &Target) -> &Share<D> {
        match target {
            Target::System | Target::Catalog => &self.system,
            Target::Workspace(_) => &self.workspaces,
        }
    }

    pub(crate) fn part(&self, part: Part) -> &Share<D> {
        match part {
            Part::Workspaces => &self.workspaces,
            Part::System => &self.system,
        }
    }

    pub(crate) fn shares(&self) -> [&Share<D>; 2] {
        [&self.workspaces, &self.system]
    }

    /// Runs a transition of the share that `target` is served from, and performs its effects.
    pub(crate) fn step(
        &self,
        target: &Target,
        name: &'static str,
        transition: impl FnOnce(&mut Registry<D::Connection>, Instant) -> Effects<D::Connection>,
    ) {
        let share = self.share(target);
        self.perform(share, share.with(name, transition));
    }

    /// Runs a transition of both shares, and performs its effects.
    pub(crate) fn step_both(
        &self,
        name: &'static str,
        transition: impl Fn(&mut Registry<D::Connection>, Instant) -> Effects<D::Connection>,
    ) {
        for share in self.shares() {
            self.perform(share, share.with(name, &transition));
        }
    }

    /// What `limits` are with this driver.
    pub(crate) fn divide(&self, limits: Limits) -> Result<Ceilings, LimitsError> {
        divide(&self.driver, limits)
    }

    pub(crate) fn ceilings(&self) -> Ceilings {
        *self.ceilings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_ceilings(&self, ceilings: Ceilings) {
        self.approach(Some(ceilings));
    }

    /// Brings the shares as near to their ceilings as both together allow: one may grow when the other has shrunk. Does
    /// nothing once they are there.
    pub(crate) fn approach_ceilings(&self) {
        self.approach(None);
    }

    fn approach(&self, new: Option<Ceilings>) {
        // One at a time: a step towards older ceilings would undo what the other share's growth rests on.
        let mut wished = self.ceilings.lock().unwrap_or_else(PoisonError::into_inner);
        *wished = new.unwrap_or(*wished);
        let steps = self.steps_towards(&wished);
        drop(wished);
        for (share, effects) in steps {
            self.perform(share, effects);
        }
    }

    fn steps_towards(&self, wished: &Ceilings) -> Vec<(&Share<D>, Effects<D::Connection>)> {
        let goals = [self.settings.workspaces_config(wished), self.settings.system_config(wished)];
        let all = goals[0].limit + goals[1].limit;
        let limit_of = |share: &Share<D>| share.with("limit", |registry, _| registry.stats().limit);
        let mut steps = Vec::new();
        for (share, wish) in self.shares().into_iter().zip(&goals) {
            if wish.limit <= limit_of(share) {
                let step = share.with("set limits", |registry, now| registry.set_limits(wish, now));
                steps.push((share, step));
            }
        }
        let allowed = self.shares().map(|share| share.with("allowed", |registry, _| registry.allowed()));
        for (at, (share, wish)) in self.shares().into_iter().zip(goals).enumerate() {
            let limit = wish.limit.min(all.saturating_sub(allowed[1 - at]));
            if limit > limit_of(share) {
                let config = RegistryConfig { limit, per_target: wish.per_target.min(limit), ..wish };
                let step = share.with("set limits", |registry, now| registry.set_limits(&config, now));
                steps.push((share, step));
            }
        }
        steps
    }

    /// Performs what a transition asked for: wakes callers, and hands the rest to the task that owns it.
    pub(crate) fn perform(&self, share: &Share<D>, effects: Effects<D::Connection>) {
        if effects.is_empty() {
            return;
        }
        let mut unrun = VecDeque::new();
        self.submit(share, effects, &mut unrun);
        // What can be answered at once is; and without a runtime nobody can open or close: what is owed then is
        // settled here, and what that asks for is settled in turn.
        while let Some(job) = unrun.pop_front() {
            let (share, effects) = self.settle_one(job);
            self.submit(share, effects, &mut unrun);
        }
    }

    fn submit(&self, share: &Share<D>, effects: Effects<D::Connection>, unrun: &mut VecDeque<Job<D>>) {
        let Effects { opens, closes, dead, wakes, drained, retry_at, due_at, look_ups } = effects;
        let opens = opens.into_iter().map(|work| Job::Open(work));
        let closes = closes.into_iter().map(|work| Job::Close(work));
        let retry = retry_at.map(|(target, at)| Job::Retry { target, at });
        for job in opens.chain(closes).chain(retry) {
            if let Err(mpsc::error::SendError(job)) = self.jobs.send(job) {
                unrun.push_back(job);
            }
        }
        for target in look_ups {
            if self.is_seen(&target) {
                unrun.push_back(Job::Found(target));
                continue;
            }
            // Without a runtime nobody can be asked; the open would show the truth, and there will be none.
            if let Err(mpsc::error::SendError(target)) = self.look_ups.send(target) {
                unrun.push_back(Job::Retry { target, at: Self::now() });
            }
        }
        if let Some(at) = due_at {
            share.promise(at);
        }
        wakes.wake();
        if drained {
            self.drained.notify_waiters();
        }
        drop(dead);
    }

    fn settle_one(&self, job: Job<D>) -> (&Share<D>, Effects<D::Connection>) {
        match job {
            Job::Open(work) => {
                let (error, target) = (Self::stopped(&work), work.target().clone());
                let failed =
                    |registry: &mut Registry<_>, now| registry.open_failed(work, Arc::new(error), now);
                let share = self.share(&target);
                (share, share.with("open failed", failed))
            }
            Job::Close(work) => self.abandon(work),
            Job::Recycle(lease) => (self.share(lease.target()), lease.into_discard()),
            Job::Retry { target, .. } => (self.share(&target), Effects::default()),
            Job::Found(target) => {
                let share = self.share(&target);
                let found = |registry: &mut Registry<_>, now| registry.looked_up(&target, None, now);
                (share, share.with("looked up", found))
            }
        }
    }

    /// Settles a job that nobody will perform any more.
    pub(crate) fn settle_unrun(&self, job: Job<D>) {
        let (share, effects) = self.settle_one(job);
        self.perform(share, effects);
    }

    /// Drops a connection that cannot be closed in the proper way; the server sees its socket close.
    fn abandon(&self, work: CloseWork<D::Connection>) -> (&Share<D>, Effects<D::Connection>) {
        let (conn, debt) = work.split();
        drop(conn);
        let (target, reason) = (debt.target().clone(), debt.reason());
        let share = self.share(&target);
        share.forget(debt.connection());
        let effects = share.with("closed", |registry, now| registry.closed(debt, now));
        self.emit(&Event::Closed { target: &target, reason });
        (share, effects)
    }

    /// Whether the facts say that `target` exists. They may have been forgotten.
    fn is_seen(&self, target: &Target) -> bool {
        match target {
            Target::Workspace(id) => self.facts.contains_key(id),
            Target::System | Target::Catalog => true,
        }
    }

    /// Plugged-in code is not asked for anything here: it may be what has just panicked.
    fn stopped(work: &OpenWork) -> DriverError {
        DriverError::new(Phase::Connect, DriverErrorKind::Other, work.target().to_string())
            .caused_by("the pool's background task, or the runtime it was built on, has stopped")
    }

    /// Returns when `target`, or everything, is being closed.
    pub(crate) async fn is_being_closed(&self, target: &Target) {
        loop {
            let mut told = std::pin::pin!(self.closing.notified());
            told.as_mut().enable();
            if self.share(target).with("is closing", |registry, _| registry.is_closing(target)) {
                return;
            }
            told.await;
        }
    }

    /// Reports that the server no longer counts a connection.
    pub(crate) fn report_closed(&self, debt: CloseDebt) {
        let (target, reason) = (debt.target().clone(), debt.reason());
        self.share(&target).forget(debt.connection());
        self.step(&target, "closed", |registry, now| registry.closed(debt, now));
        self.emit(&Event::Closed { target: &target, reason });
    }

    /// Hands a lease that is not known to be clean to the task that makes it so.
    pub(crate) fn recycle(&self, lease: Lease<D>) {
        if let Err(mpsc::error::SendError(job)) = self.jobs.send(Job::Recycle(lease)) {
            self.settle_unrun(job);
        }
    }

    pub(crate) fn release(&self, target: &Target, debt: LeaseDebt, conn: D::Connection) {
        self.step(target, "release", |registry, now| registry.release(debt, conn, now));
    }

    pub(crate) fn endpoint(&self, target: &Target) -> Endpoint {
        let database = match target {
            Target::System | Target::Catalog => self.settings.system_database.clone(),
            Target::Workspace(id) => self.settings.naming.database(id),
        };
        Endpoint { target: target.clone(), database }
    }

    pub(crate) fn emit(&self, event: &Event<'_>) {
        if let Some(observer) = &self.settings.observer {
            observer.on(event);
        }
    }

    /// Both shares at one moment: both locks are held while it is taken, always in this order.
    pub(crate) fn stats(&self) -> PoolStats {
        let ceilings = self.ceilings();
        self.workspaces.with("stats", |workspaces, _| PoolStats {
            workspaces: workspaces.stats(),
            system: self.system.with("stats", |system, _| system.stats()),
            control: ceilings.control(),
            control_reserve: ceilings.reserve(),
        })
    }
}
