//! What all handles, leases and tasks share. One mutex a share, one door ([`Engine::step`]): a transition
//! runs inside, its effects are performed after it closes. Nothing is awaited, woken or dropped inside.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use moka::future::Cache;
use pool_core::{
    Ceilings, CloseDebt, CloseWork, ConnectionId, Driver, DriverError, DriverErrorKind, Effects, Endpoint,
    Event, LeaseDebt, OpenWork, Phase, PoolStats, Registry, Target, WorkspaceId,
};
use tokio::sync::{Notify, mpsc};

use crate::lease::Lease;
use crate::opener::Job;
use crate::settings::Settings;

/// Which share of the budget a target is served from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ShareOf {
    Workspaces,
    System,
}

impl From<&Target> for ShareOf {
    fn from(target: &Target) -> Self {
        match target {
            Target::System | Target::Catalog => Self::System,
            Target::Workspace(_) => Self::Workspaces,
        }
    }
}

/// What moka can take.
const FACTS_TTL_MAX: Duration = Duration::from_hours(24 * 365);
const CENTURY: Duration = Duration::from_hours(24 * 365 * 100);

pub(crate) const SHARES: [ShareOf; 2] = [ShareOf::Workspaces, ShareOf::System];

pub(crate) struct Engine<D: Driver> {
    pub(crate) driver: D,
    pub(crate) settings: Settings,
    ceilings: Ceilings,
    workspaces: Mutex<Registry<D::Connection>>,
    system: Mutex<Registry<D::Connection>>,
    /// What ends each live session from outside, for closes that have to cut.
    pub(crate) handles: DashMap<(ShareOf, ConnectionId), D::Handle>,
    /// Workspaces that are known to have a database.
    pub(crate) facts: Cache<WorkspaceId, ()>,
    jobs: mpsc::UnboundedSender<Job<D>>,
    /// Told whenever something that is being closed has no connection left but those in use.
    pub(crate) drained: Notify,
    /// Told whenever something begins to be closed.
    pub(crate) closing: Notify,
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
            workspaces: Mutex::new(Registry::new(
                settings.workspaces_config(&ceilings),
                (settings.eviction)(),
            )),
            system: Mutex::new(Registry::new(settings.system_config(&ceilings), (settings.eviction)())),
            driver,
            settings,
            ceilings,
            handles: DashMap::new(),
            facts,
            jobs,
            drained: Notify::new(),
            closing: Notify::new(),
        }
    }

    pub(crate) fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// The moment `wait` from `moment`; a wait beyond a century is one of a century, which a clock can hold.
    pub(crate) fn after(moment: Instant, wait: Duration) -> Instant {
        moment + wait.min(CENTURY)
    }

    /// Looks at a registry, or runs a transition that has no effects.
    pub(crate) fn with<R>(
        &self,
        share: ShareOf,
        step: impl FnOnce(&mut Registry<D::Connection>, Instant) -> R,
    ) -> R {
        let now = Self::now();
        let registry = match share {
            ShareOf::Workspaces => &self.workspaces,
            ShareOf::System => &self.system,
        };
        // Only an eviction policy is plugged-in code in here; one that panics leaves a state that is not
        // whole, and everything after it may be wrong but not unsound.
        step(&mut registry.lock().unwrap_or_else(PoisonError::into_inner), now)
    }

    /// Runs a transition and performs its effects.
    pub(crate) fn step(
        &self,
        share: ShareOf,
        step: impl FnOnce(&mut Registry<D::Connection>, Instant) -> Effects<D::Connection>,
    ) {
        let effects = self.with(share, step);
        self.perform(share, effects);
    }

    /// Performs what a transition asked for: wakes callers, and hands the rest to the task that owns it.
    pub(crate) fn perform(&self, share: ShareOf, effects: Effects<D::Connection>) {
        let mut unrun = VecDeque::new();
        self.submit(share, effects, &mut unrun);
        // Without a runtime nobody can open or close; what is owed is settled here, and what that asks
        // for is settled in turn.
        while let Some(job) = unrun.pop_front() {
            let (share, effects) = self.settle_one(job);
            self.submit(share, effects, &mut unrun);
        }
    }

    fn submit(&self, share: ShareOf, effects: Effects<D::Connection>, unrun: &mut VecDeque<Job<D>>) {
        let Effects { opens, closes, wakes, drained, retry_at } = effects;
        let opens = opens.into_iter().map(|work| Job::Open { share, work });
        let closes = closes.into_iter().map(|work| Job::Close { share, work });
        let retry = retry_at.map(|(target, at)| Job::Retry { share, target, at });
        for job in opens.chain(closes).chain(retry) {
            if let Err(mpsc::error::SendError(job)) = self.jobs.send(job) {
                unrun.push_back(job);
            }
        }
        wakes.wake();
        if drained {
            self.drained.notify_waiters();
        }
    }

    fn settle_one(&self, job: Job<D>) -> (ShareOf, Effects<D::Connection>) {
        match job {
            Job::Open { share, work } => {
                let error = Self::stopped(&work);
                (share, self.with(share, |registry, now| registry.open_failed(work, Arc::new(error), now)))
            }
            Job::Close { share, work } => (share, self.abandon(share, work)),
            Job::Recycle(lease) => {
                let share = lease.share();
                (share, lease.into_discard())
            }
            Job::Retry { share, .. } => (share, Effects::default()),
        }
    }

    /// Settles a job that nobody will perform any more.
    pub(crate) fn settle_unrun(&self, job: Job<D>) {
        let (share, effects) = self.settle_one(job);
        self.perform(share, effects);
    }

    /// Drops a connection that cannot be closed in the proper way; the server sees its socket close.
    fn abandon(&self, share: ShareOf, work: CloseWork<D::Connection>) -> Effects<D::Connection> {
        let (conn, debt) = work.split();
        self.handles.remove(&(share, debt.connection()));
        drop(conn);
        let (target, reason) = (debt.target().clone(), debt.reason());
        let effects = self.with(share, |registry, now| registry.closed(debt, now));
        self.emit(&Event::Closed { target: &target, reason });
        effects
    }

    /// Plugged-in code is not asked for anything here: it may be what has just panicked.
    fn stopped(work: &OpenWork) -> DriverError {
        DriverError::new(Phase::Connect, DriverErrorKind::Other, work.target().to_string())
            .caused_by("the pool's background task, or the runtime it was built on, has stopped")
    }

    /// Returns when `target`, or everything, is being closed.
    pub(crate) async fn is_being_closed(&self, share: ShareOf, target: &Target) {
        loop {
            let mut told = std::pin::pin!(self.closing.notified());
            told.as_mut().enable();
            if self.with(share, |registry, _| registry.is_closing(target)) {
                return;
            }
            told.await;
        }
    }

    /// Reports that the server no longer counts a connection.
    pub(crate) fn report_closed(&self, share: ShareOf, debt: CloseDebt) {
        self.handles.remove(&(share, debt.connection()));
        let (target, reason) = (debt.target().clone(), debt.reason());
        self.step(share, |registry, now| registry.closed(debt, now));
        self.emit(&Event::Closed { target: &target, reason });
    }

    /// Hands a lease that is not known to be clean to the task that makes it so.
    pub(crate) fn recycle(&self, lease: Lease<D>) {
        if let Err(mpsc::error::SendError(job)) = self.jobs.send(Job::Recycle(lease)) {
            self.settle_unrun(job);
        }
    }

    pub(crate) fn release(&self, share: ShareOf, debt: LeaseDebt, conn: D::Connection) {
        self.step(share, |registry, now| registry.release(debt, conn, now));
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
        self.with(ShareOf::Workspaces, |workspaces, _| PoolStats {
            workspaces: workspaces.stats(),
            system: self.with(ShareOf::System, |system, _| system.stats()),
            control: self.ceilings.control(),
        })
    }
}
