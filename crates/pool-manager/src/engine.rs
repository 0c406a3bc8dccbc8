//! What all handles, leases and tasks have in common: the two shares, the driver, the settings and the queue of jobs.
//! [`Engine::step`] runs a transition and performs its effects after the door of the share has closed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::future::Cache;
use pool_core::{
    Ceilings, CloseDebt, CloseWork, Driver, DriverError, DriverErrorKind, Effects, Endpoint, Event,
    LeaseDebt, OpenWork, Phase, PoolStats, Registry, Target, WorkspaceId,
};
use tokio::sync::{Notify, mpsc};

use crate::lease::Lease;
use crate::opener::Job;
use crate::settings::Settings;
use crate::share::{self, Share};

/// What moka can take.
const FACTS_TTL_MAX: Duration = Duration::from_hours(24 * 365);
const CENTURY: Duration = Duration::from_hours(24 * 365 * 100);

pub(crate) struct Engine<D: Driver> {
    /// The shares come first, so that they are dropped first: what is owed to a registry that is gone is void.
    pub(crate) workspaces: Share<D>,
    pub(crate) system: Share<D>,
    pub(crate) driver: D,
    pub(crate) settings: Settings,
    ceilings: Ceilings,
    /// Workspaces that are known to have a database.
    pub(crate) facts: Cache<WorkspaceId, ()>,
    jobs: mpsc::UnboundedSender<Job<D>>,
    /// Told whenever something that is being closed has no connection left but those in use.
    pub(crate) drained: Notify,
    /// Told whenever something begins to be closed.
    pub(crate) closing: Notify,
    /// Told whenever a connection has proved broken; others may have broken with it.
    pub(crate) breakage: Arc<Notify>,
}

impl<D: Driver> Engine<D> {
    pub(crate) fn new(
        driver: D,
        settings: Settings,
        ceilings: Ceilings,
        jobs: mpsc::UnboundedSender<Job<D>>,
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
            ceilings,
            facts,
            jobs,
            drained: Notify::new(),
            closing: Notify::new(),
            breakage: Arc::default(),
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
        let effects = self.share(target).with(name, transition);
        self.perform(effects);
    }

    /// Performs what a transition asked for: wakes callers, and hands the rest to the task that owns it.
    pub(crate) fn perform(&self, effects: Effects<D::Connection>) {
        let mut unrun = VecDeque::new();
        self.submit(effects, &mut unrun);
        // Without a runtime nobody can open or close; what is owed is settled here, and what that asks
        // for is settled in turn.
        while let Some(job) = unrun.pop_front() {
            let effects = self.settle_one(job);
            self.submit(effects, &mut unrun);
        }
    }

    fn submit(&self, effects: Effects<D::Connection>, unrun: &mut VecDeque<Job<D>>) {
        let Effects { opens, closes, dead, wakes, drained, retry_at } = effects;
        let opens = opens.into_iter().map(|work| Job::Open(work));
        let closes = closes.into_iter().map(|work| Job::Close(work));
        let retry = retry_at.map(|(target, at)| Job::Retry { target, at });
        for job in opens.chain(closes).chain(retry) {
            if let Err(mpsc::error::SendError(job)) = self.jobs.send(job) {
                unrun.push_back(job);
            }
        }
        wakes.wake();
        if drained {
            self.drained.notify_waiters();
        }
        drop(dead);
    }

    fn settle_one(&self, job: Job<D>) -> Effects<D::Connection> {
        match job {
            Job::Open(work) => {
                let (error, target) = (Self::stopped(&work), work.target().clone());
                let failed =
                    |registry: &mut Registry<_>, now| registry.open_failed(work, Arc::new(error), now);
                self.share(&target).with("open failed", failed)
            }
            Job::Close(work) => self.abandon(work),
            Job::Recycle(lease) => lease.into_discard(),
            Job::Retry { .. } => Effects::default(),
        }
    }

    /// Settles a job that nobody will perform any more.
    pub(crate) fn settle_unrun(&self, job: Job<D>) {
        let effects = self.settle_one(job);
        self.perform(effects);
    }

    /// Drops a connection that cannot be closed in the proper way; the server sees its socket close.
    fn abandon(&self, work: CloseWork<D::Connection>) -> Effects<D::Connection> {
        let (conn, debt) = work.split();
        drop(conn);
        let (target, reason) = (debt.target().clone(), debt.reason());
        let share = self.share(&target);
        share.forget(debt.connection());
        let effects = share.with("closed", |registry, now| registry.closed(debt, now));
        self.emit(&Event::Closed { target: &target, reason });
        effects
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
        self.workspaces.with("stats", |workspaces, _| PoolStats {
            workspaces: workspaces.stats(),
            system: self.system.with("stats", |system, _| system.stats()),
            control: self.ceilings.control(),
        })
    }
}
