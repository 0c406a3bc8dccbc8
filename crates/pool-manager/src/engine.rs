//! What all handles, leases and tasks have in common: the two shares, what is plugged in, the settings and the ways to the
//! background tasks. [`Engine::step`] runs a transition and performs its effects after the door of the share has closed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moka::future::Cache;
use pool_core::{
    CatalogKind, Ceilings, Counts, Driver, Effects, Endpoint, Event, LeaseDebt, Limits, LimitsError,
    PoolStats, Registry, RegistryConfig, Target, TargetStats, WorkspaceId, WorkspaceStats,
};
use tokio::sync::{Mutex as AsyncMutex, Notify};

use crate::health::ServerHealth;
use crate::job::Outlets;
use crate::roster::Roster;
use crate::settings::Settings;
use crate::share::{self, Share, ShareRegistry, note_holder};
use crate::tasks::Tasks;

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

/// What `limits` are with this driver, which has connections of its own, and with or without a system database.
pub(crate) fn divide(
    driver: &impl Driver,
    has_system: bool,
    limits: Limits,
) -> Result<Ceilings, LimitsError> {
    let control = driver.control_connections();
    let ceilings =
        if has_system { limits.ceilings(control)? } else { limits.ceilings_without_system(control)? };
    Ok(ceilings.with_reserve(driver.control_reserve()))
}

pub(crate) struct Engine<D: Driver> {
    /// The shares come first, so that they are dropped first: what is owed to a registry that is gone is void.
    pub(crate) workspaces: Share<D>,
    pub(crate) system: Share<D>,
    pub(crate) driver: D,
    pub(crate) settings: Settings,
    pub(crate) catalog: CatalogKind<D::Connection>,
    /// What was wished last; the shares may still be on their way there.
    ceilings: Mutex<Ceilings>,
    /// Told whenever something else is wished.
    pub(crate) ceilings_changed: Notify,
    /// Workspaces that are known to have a database.
    pub(crate) facts: Cache<WorkspaceId, Fact>,
    /// None before the background tasks have been started.
    outlets: Mutex<Option<Outlets<D>>>,
    /// Whether the runtime has ended that the background tasks ran on, without their having been told to end.
    is_stranded: AtomicBool,
    /// Starts the background tasks again. A function pointer, since `crew` imports this module, and modules do not import each
    /// other in a circle.
    revive: fn(&Arc<Self>),
    /// Held by a `close` under way; another one waits here for it.
    pub(crate) tasks: AsyncMutex<Tasks>,
    /// Told whenever something that is being closed has no connection left but those in use.
    pub(crate) drained: Notify,
    /// Told whenever something begins to be closed.
    pub(crate) closing: Notify,
    /// Told whenever a connection has proved broken; others may have broken with it.
    pub(crate) breakage: Arc<Notify>,
    pub(crate) health: Arc<ServerHealth>,
    pub(crate) roster: Roster,
}

impl<D: Driver> Engine<D> {
    pub(crate) fn new(
        driver: D,
        settings: Settings,
        catalog: CatalogKind<D::Connection>,
        ceilings: Ceilings,
        revive: fn(&Arc<Self>),
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
            catalog,
            ceilings: Mutex::new(ceilings),
            ceilings_changed: Notify::new(),
            facts,
            outlets: Mutex::new(None),
            is_stranded: AtomicBool::new(false),
            revive,
            tasks: AsyncMutex::default(),
            drained: Notify::new(),
            closing: Notify::new(),
            breakage: Arc::default(),
            health: Arc::default(),
            roster: Roster::default(),
        }
    }

    /// The ways to the background tasks.
    pub(crate) fn outlets(&self) -> MutexGuard<'_, Option<Outlets<D>>> {
        self.outlets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The background tasks have ended, or have been started.
    pub(crate) fn set_stranded(&self, is_stranded: bool) {
        self.is_stranded.store(is_stranded, Ordering::Release);
    }

    pub(crate) fn is_stranded(&self) -> bool {
        self.is_stranded.load(Ordering::Acquire)
    }

    /// Starts the background tasks again on the present runtime, if the one that they ran on has ended.
    pub(crate) fn revive(self: &Arc<Self>) {
        if self.is_stranded() {
            (self.revive)(self);
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
        transition: impl FnOnce(&mut ShareRegistry<D>, Instant) -> Effects<D::Connection>,
    ) {
        let share = self.share(target);
        self.perform(share, share.with(name, transition));
    }

    /// Runs a transition of both shares, and performs its effects.
    pub(crate) fn step_both(
        &self,
        name: &'static str,
        transition: impl Fn(&mut ShareRegistry<D>, Instant) -> Effects<D::Connection>,
    ) {
        for share in self.shares() {
            self.perform(share, share.with(name, &transition));
        }
    }

    /// What `limits` are with this driver.
    pub(crate) fn divide(&self, limits: Limits) -> Result<Ceilings, LimitsError> {
        divide(&self.driver, self.catalog.system().is_some(), limits)
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
        self.ceilings_changed.notify_waiters();
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

    /// Whether the facts say that `target` exists. They may have been forgotten.
    pub(crate) fn is_seen(&self, target: &Target) -> bool {
        match target {
            Target::Workspace(id) => self.facts.contains_key(id),
            Target::System | Target::Catalog => true,
        }
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

    pub(crate) fn release(&self, target: &Target, debt: LeaseDebt, conn: D::Connection) {
        self.step(target, "release", |registry, now| {
            note_holder::<D>(registry, debt.connection(), None);
            registry.release(debt, conn, now)
        });
    }

    /// Has a connection closed that broke, and others that may have broken with it looked at.
    pub(crate) fn discard_broken(&self, target: &Target, debt: LeaseDebt, conn: D::Connection) {
        self.step(target, "discard broken", |registry, now| registry.discard_broken(debt, conn, now));
        self.breakage.notify_one();
    }

    /// The database of `target`; none for the system of an adapter without one.
    pub(crate) fn endpoint(&self, target: &Target) -> Option<Endpoint> {
        let database = match target {
            Target::System | Target::Catalog => self.catalog.system()?.clone(),
            Target::Workspace(id) => self.catalog.database(id),
        };
        Some(Endpoint { target: target.clone(), database })
    }

    /// Where `target` is, for errors.
    pub(crate) fn address(&self, target: &Target) -> String {
        self.endpoint(target).map_or_else(|| target.to_string(), |endpoint| self.driver.address(&endpoint))
    }

    /// Whether `target` can be served at all.
    pub(crate) fn serves(&self, target: &Target) -> bool {
        matches!(target, Target::Workspace(_)) || self.catalog.system().is_some()
    }

    pub(crate) fn emit(&self, event: &Event<'_>) {
        if let Some(observer) = &self.settings.observer {
            observer.on(event);
        }
    }

    /// The connections of one target, by state.
    pub(crate) fn counts(&self, target: &Target) -> Counts {
        self.share(target).with("counts", |registry, _| registry.target_counts(target))
    }

    /// All that is known of one target.
    pub(crate) fn target_stats(&self, target: &Target) -> TargetStats {
        self.share(target).with("target stats", |registry, _| registry.target_stats(target))
    }

    /// The same of all workspaces.
    pub(crate) fn workspace_stats(&self) -> WorkspaceStats {
        let (targets, forgotten) =
            self.workspaces.with("workspace stats", |registry, _| registry.all_target_stats());
        let by_workspace = targets.into_iter().filter_map(|(target, stats)| match target {
            Target::Workspace(id) => Some((id, stats)),
            Target::System | Target::Catalog => None,
        });
        WorkspaceStats { by_workspace: by_workspace.collect(), forgotten }
    }

    /// Both shares at one moment: both locks are held while it is taken, always in this order.
    /// Whether everything is being closed, or has been.
    pub(crate) fn is_closed(&self) -> bool {
        self.workspaces.with("is closed", |registry, _| registry.is_closed())
    }

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
