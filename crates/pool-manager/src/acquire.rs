//! Acquire: the warm path, the place in the queue, the check of an idle connection, and the time limit over all of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_core::{
    Acquire, AcquireError, CallSite, Door, Driver, DriverError, DriverErrorKind, Effects, Event, LastLook,
    Leased, Phase, Pressure, QueuedAcquire, Stage, Target,
};
use tokio::time::timeout_at;

use crate::effects::is_stranded;
use crate::engine::Engine;
use crate::job::Orderer;
use crate::lease::Lease;
use crate::roster::Shown;
use crate::share::{Session, Share, ShareRegistry, note_holder};

/// A caller: since when it asks, for how long, and from where.
#[derive(Clone, Copy)]
struct Caller {
    since: Instant,
    limit: Duration,
    at: CallSite,
}

/// A lease on a connection to `target`, within the acquire timeout, for a caller at `at`.
pub(crate) async fn lease<D: Driver>(
    engine: &Arc<Engine<D>>,
    target: &Target,
    at: CallSite,
) -> Result<Lease<D>, AcquireError> {
    lease_within(engine, target, engine.settings.acquire_timeout, at).await
}

/// A lease on a connection to `target`, within `limit`.
pub(crate) async fn lease_within<D: Driver>(
    engine: &Arc<Engine<D>>,
    target: &Target,
    limit: Duration,
    at: CallSite,
) -> Result<Lease<D>, AcquireError> {
    if !engine.serves(target) {
        return Err(AcquireError::NoSystemDatabase { target: target.clone() });
    }
    let caller = Caller { since: Engine::<D>::now(), limit, at };
    let mut outcome = loop {
        engine.revive();
        match serve(engine, target, caller).await {
            // The open failed because its runtime had ended. This caller is on a live one, so it forgets the failure and asks again.
            Err(AcquireError::OpenFailed { source, .. })
                if is_stranded(&source) && Engine::<D>::now() < Engine::<D>::after(caller.since, limit) =>
            {
                tokio::task::yield_now().await;
                engine.step(target, "ask again", |registry, now| {
                    registry.asks_again(target);
                    registry.clear_failure(target, now)
                });
            }
            outcome => break outcome,
        }
    };
    tell(engine, target, caller, outcome.as_mut());
    outcome
}

/// Tells an observer what became of a caller.
fn tell<D: Driver>(
    engine: &Engine<D>,
    target: &Target,
    caller: Caller,
    outcome: Result<&mut Lease<D>, &mut AcquireError>,
) {
    if engine.settings.observer.is_none() {
        return;
    }
    let now = Engine::<D>::now();
    let waited = now.saturating_duration_since(caller.since);
    match outcome {
        Ok(lease) => {
            let Some(connection) = lease.hold_since(now) else { return };
            engine.emit(&Event::Acquired { target, connection, waited });
        }
        Err(AcquireError::TimedOut { after, .. }) => engine.emit(&Event::TimedOut { target, waited: *after }),
        Err(error) => engine.emit(&Event::Failed { target, waited, error }),
    }
}

async fn serve<D: Driver>(
    engine: &Arc<Engine<D>>,
    target: &Target,
    caller: Caller,
) -> Result<Lease<D>, AcquireError> {
    let answer = engine.share(target).with("acquire", |registry, now| {
        let answer = registry.acquire(target, now);
        if let Acquire::Leased(leased) = &answer {
            note_holder::<D>(registry, leased.debt.connection(), Some(caller.at));
        }
        answer
    });
    let answer = match answer {
        Acquire::Leased(Leased { conn, debt, check_first: false, .. }) => {
            let mut lease = Lease::new(Arc::clone(engine), target.clone(), conn, debt);
            if !engine.driver.wants_check(&lease) {
                return Ok(lease);
            }
            let Some((conn, debt)) = lease.take() else {
                unreachable!("a lease that was just made holds its connection")
            };
            Acquire::Leased(Leased { conn, debt, check_first: false, waited: None })
        }
        Acquire::Refused(error) => return Err(error),
        other => other,
    };
    let place = Place::take(engine, target, caller);
    let outcome = wait(engine, target, answer, caller).await;
    place.end();
    outcome
}

/// A lease on an idle connection of `target`, if there is one.
pub(crate) async fn try_lease<D: Driver>(
    engine: &Arc<Engine<D>>,
    target: &Target,
    at: CallSite,
) -> Result<Option<Lease<D>>, AcquireError> {
    if !engine.serves(target) {
        return Err(AcquireError::NoSystemDatabase { target: target.clone() });
    }
    engine.revive();
    let caller = Caller { since: Engine::<D>::now(), limit: engine.settings.acquire_timeout, at };
    let idle = engine.share(target).with("try acquire", |registry, now| {
        let idle = registry.try_acquire(target, now);
        if let Ok(Some(leased)) = &idle {
            note_holder::<D>(registry, leased.debt.connection(), Some(at));
        }
        idle
    });
    let mut outcome = match idle {
        Ok(None) => return Ok(None),
        Ok(Some(leased)) => try_idle(engine, target, leased, caller).await,
        Err(error) => Err(error),
    };
    match &mut outcome {
        Ok(Some(lease)) => tell(engine, target, caller, Ok(lease)),
        Ok(None) => {}
        Err(error) => tell(engine, target, caller, Err(error)),
    }
    outcome
}

/// The same, from the connection that was idle.
async fn try_idle<D: Driver>(
    engine: &Arc<Engine<D>>,
    target: &Target,
    leased: Leased<D::Connection>,
    caller: Caller,
) -> Result<Option<Lease<D>>, AcquireError> {
    let Leased { conn, debt, check_first, .. } = leased;
    let lease = Lease::new(Arc::clone(engine), target.clone(), conn, debt);
    if is_ready(&lease, check_first, true) {
        return Ok(Some(lease));
    }
    check_idle(lease, caller).await
}

/// Serves one caller from the registry's first answer to a lease that may be used.
async fn wait<D: Driver>(
    engine: &Arc<Engine<D>>,
    target: &Target,
    mut answer: Acquire<D::Connection>,
    caller: Caller,
) -> Result<Lease<D>, AcquireError> {
    let share = engine.share(target);
    let deadline = Engine::<D>::after(caller.since, caller.limit);
    loop {
        let leased = match answer {
            Acquire::Leased(leased) => leased,
            Acquire::Queued(ticket, effects) => {
                let queued = QueuedAcquire::new(ShareDoor { engine, share }, ticket);
                engine.perform_for(Orderer::Waits, share, effects);
                // The background tasks may have ended since this caller looked.
                engine.revive();
                queue(queued, target, caller, deadline).await?
            }
            Acquire::Refused(error) => return Err(error),
        };
        let Leased { conn, debt, check_first, waited } = leased;
        let mut lease = Lease::new(Arc::clone(engine), target.clone(), conn, debt);
        share.with("held", |registry, _| {
            note_holder::<D>(registry, lease.connection(), Some(caller.at));
        });
        let was_hit = waited.is_none();
        if is_ready(&lease, check_first, was_hit) {
            return Ok(lease);
        }
        lease.unchecked = true;
        match check(lease, caller, deadline).await? {
            Checked::Alive(lease) => {
                share.with("checked", |registry, _| registry.checked(target, was_hit));
                return Ok(lease);
            }
            Checked::Broken(mut lease, error) => {
                let Some((conn, debt)) = lease.take() else {
                    unreachable!("a checked lease is not dropped yet")
                };
                let (again, mut effects) =
                    share.with("replace", |registry, now| registry.replace(debt, conn, error, now));
                engine.breakage.notify_one();
                engine.health.suspect();
                if let Acquire::Queued(ticket, more) = again {
                    effects.append(more);
                    answer = Acquire::Queued(ticket, effects);
                } else {
                    engine.perform(share, effects);
                    answer = again;
                }
            }
        }
    }
}

/// A caller that is not served at once, as the view and the observer see it.
struct Place<'a, D: Driver> {
    engine: &'a Engine<D>,
    target: &'a Target,
    since: Instant,
    is_over: bool,
    _shown: Shown<'a>,
}

impl<'a, D: Driver> Place<'a, D> {
    fn take(engine: &'a Engine<D>, target: &'a Target, caller: Caller) -> Self {
        engine.emit(&Event::WaitStarted { target });
        let shown = engine.roster.waiting(target, caller.since, caller.at);
        Self { engine, target, since: caller.since, is_over: false, _shown: shown }
    }

    fn end(mut self) {
        self.is_over = true;
    }
}

impl<D: Driver> Drop for Place<'_, D> {
    fn drop(&mut self) {
        if !self.is_over {
            let waited = Engine::<D>::now().saturating_duration_since(self.since);
            self.engine.emit(&Event::GaveUp { target: self.target, waited });
        }
    }
}

/// Whether nobody wants the connection checked before its use. What the registry does not want checked, it has counted as
/// served; that is taken back where the driver wants it.
fn is_ready<D: Driver>(lease: &Lease<D>, check_first: bool, was_hit: bool) -> bool {
    let (engine, target) = (lease.engine(), lease.target());
    let is_ready = !check_first && !engine.driver.wants_check(lease);
    if !check_first && !is_ready {
        engine.share(target).with("not served", |registry, _| registry.not_served(target, was_hit));
    }
    is_ready
}

enum Checked<D: Driver> {
    Alive(Lease<D>),
    Broken(Lease<D>, Arc<DriverError>),
}

/// Asks an idle connection whether it lives, outside the lock. A caller whose time runs out, or who goes away, gives the
/// connection back: it is made clean and asked again in the background, since nothing is known against it.
async fn check<D: Driver>(
    mut lease: Lease<D>,
    caller: Caller,
    deadline: Instant,
) -> Result<Checked<D>, AcquireError> {
    let (engine, target) = (Arc::clone(lease.engine()), lease.target().clone());
    let limit = deadline.min(Engine::<D>::after(Engine::<D>::now(), engine.settings.check_timeout));
    let outcome = timeout_at(limit.into(), engine.driver.check(&mut lease)).await;
    if matches!(outcome, Ok(Ok(()))) {
        lease.unchecked = false;
        engine.health.succeeded();
        return Ok(Checked::Alive(lease));
    }
    if outcome.is_err() && Engine::<D>::now() >= deadline {
        drop(lease);
        let pressure = engine.share(&target).with("pressure", |registry, _| registry.pressure_on(&target));
        return Err(timed_out::<D>(&target, caller, Stage::Check, pressure, None));
    }
    let error = match outcome {
        Ok(Err(error)) => error,
        _ => no_answer(&engine, &target),
    };
    Ok(Checked::Broken(lease, Arc::new(error)))
}

fn no_answer<D: Driver>(engine: &Engine<D>, target: &Target) -> DriverError {
    let address = engine.address(target);
    let error = DriverError::new(Phase::Check, DriverErrorKind::TimedOut, address);
    error.caused_by(format!("no answer within {:?}", engine.settings.check_timeout))
}

/// The same for a caller that does not wait for another connection if this one is broken.
async fn check_idle<D: Driver>(
    mut lease: Lease<D>,
    caller: Caller,
) -> Result<Option<Lease<D>>, AcquireError> {
    let engine = Arc::clone(lease.engine());
    let deadline = Engine::<D>::after(caller.since, caller.limit);
    lease.unchecked = true;
    match check(lease, caller, deadline).await? {
        Checked::Alive(lease) => {
            let target = lease.target();
            engine.share(target).with("checked", |registry, _| registry.checked(target, true));
            Ok(Some(lease))
        }
        Checked::Broken(lease, _) => {
            lease.discard_broken();
            Ok(None)
        }
    }
}

async fn queue<D: Driver>(
    mut queued: QueuedAcquire<ShareDoor<'_, D>>,
    target: &Target,
    caller: Caller,
    deadline: Instant,
) -> Result<Leased<D::Connection>, AcquireError> {
    if let Ok(answer) = timeout_at(deadline.into(), &mut queued).await {
        return answer;
    }
    match queued.last_look() {
        Some(LastLook::Answered(answer)) => answer,
        Some(LastLook::GivenUp { waiting_for, pressure, last_failure }) => {
            Err(timed_out::<D>(target, caller, waiting_for, pressure, last_failure))
        }
        None => unreachable!("a queued acquire that was answered has returned"),
    }
}

fn timed_out<D: Driver>(
    target: &Target,
    caller: Caller,
    waiting_for: Stage,
    pressure: Pressure,
    last_failure: Option<Arc<pool_core::DriverError>>,
) -> AcquireError {
    let after = Engine::<D>::now().saturating_duration_since(caller.since);
    AcquireError::TimedOut { target: target.clone(), waiting_for, after, pressure, last_failure }
}

/// The way of a place in the queue to its share.
struct ShareDoor<'a, D: Driver> {
    engine: &'a Engine<D>,
    share: &'a Share<D>,
}

impl<D: Driver> Door for ShareDoor<'_, D> {
    type Connection = D::Connection;
    type Session = Session<D::Handle>;

    fn with<R>(&self, name: &'static str, section: impl FnOnce(&mut ShareRegistry<D>, Instant) -> R) -> R {
        self.share.with(name, section)
    }

    fn perform(&self, effects: Effects<D::Connection>) {
        self.engine.perform(self.share, effects);
    }
}
