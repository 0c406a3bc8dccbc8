//! A connection in a caller's hands. Dropping it anywhere gives it back: clean, or to be made clean, or
//! to be closed (laws L1 and L2).

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use pool_core::{Condition, ConnectionId, Driver, Event, LeaseDebt, Registry, Target};

use crate::engine::Engine;
use crate::job::Returned;

/// A connection to one target, given back when dropped: in a panic, in a cancelled task, outside a
/// runtime, after `close()`. Dropping neither blocks nor awaits; a connection that is not known to be
/// clean is made so in the background, off the caller's path, and counts as in use until then.
#[must_use = "a lease that is dropped at once was not needed"]
pub struct Lease<D: Driver> {
    engine: Arc<Engine<D>>,
    target: Target,
    held: Option<Held<D::Connection>>,
    /// The connection was idle for long, and no check of it has come to its end.
    pub(crate) unchecked: bool,
    /// Since when its caller has it, where somebody is told of that.
    held_since: Option<Instant>,
}

struct Held<C> {
    conn: C,
    debt: LeaseDebt,
}

impl<D: Driver> Lease<D> {
    pub(crate) fn new(engine: Arc<Engine<D>>, target: Target, conn: D::Connection, debt: LeaseDebt) -> Self {
        Self { engine, target, held: Some(Held { conn, debt }), unchecked: false, held_since: None }
    }

    /// Whose database this is connected to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Which connection it is, as events and [`PoolView`](pool_core::PoolView) name it.
    pub fn connection(&self) -> ConnectionId {
        match &self.held {
            Some(held) => held.debt.connection(),
            None => unreachable!("a lease holds its connection until it is dropped"),
        }
    }

    /// The driver that made the connection.
    pub fn driver(&self) -> &D {
        &self.engine.driver
    }

    /// Has the connection closed instead of used again, on purpose: its state is beyond repair, as the caller knows.
    /// Other connections are not doubted for it.
    pub fn discard(mut self) {
        self.tell_of_release();
        if let Some((conn, debt)) = self.take() {
            let discard = |registry: &mut Registry<_, _>, now| registry.discard(debt, conn, now);
            self.engine.step(&self.target, "discard", discard);
        }
    }

    /// Has the connection closed instead of used again, as [`discard`](Self::discard) does, and returns when the server no longer
    /// counts it. A server that does not say so within 30 s is not waited for any longer (law B1).
    ///
    /// # Cancel safety
    /// The close goes on.
    pub async fn close(mut self) {
        self.tell_of_release();
        let Some((conn, debt)) = self.take() else { return };
        let id = debt.connection();
        let share = self.engine.share(&self.target);
        let mut effects = share.with("close lease", |registry, now| registry.discard(debt, conn, now));
        let its = effects.closes.iter().position(|work| work.connection() == id);
        // None, where a close of the workspace has cut the lease: the server had let go then.
        let is_over = its.map(|its| self.engine.close(effects.closes.swap_remove(its)));
        self.engine.perform(share, effects);
        if let Some(is_over) = is_over {
            // Nothing is sent: the other end is dropped.
            let _ = is_over.await;
        }
    }

    /// Has a connection closed that broke, and others that may have broken with it looked at.
    pub(crate) fn discard_broken(mut self) {
        if let Some((conn, debt)) = self.take() {
            self.engine.discard_broken(&self.target, debt, conn);
        }
    }

    /// It is in its caller's hands now, of which somebody is told.
    pub(crate) fn hold_since(&mut self, now: Instant) -> Option<ConnectionId> {
        self.held_since = Some(now);
        Some(self.held.as_ref()?.debt.connection())
    }

    /// Tells that its holder lets go, unless nobody was told that it had it.
    fn tell_of_release(&mut self) {
        let (Some(since), Some(held)) = (self.held_since.take(), &self.held) else { return };
        let held_for = Engine::<D>::now().saturating_duration_since(since);
        let (target, connection) = (&self.target, held.debt.connection());
        self.engine.emit(&Event::Released { target, connection, held: held_for });
    }

    pub(crate) fn engine(&self) -> &Arc<Engine<D>> {
        &self.engine
    }

    pub(crate) fn take(&mut self) -> Option<(D::Connection, LeaseDebt)> {
        self.held.take().map(|Held { conn, debt }| (conn, debt))
    }

    /// What the lease holds, to be made clean.
    fn returned(&self, conn: D::Connection, debt: LeaseDebt) -> Returned<D::Connection> {
        Returned { target: self.target.clone(), conn, debt, unchecked: self.unchecked }
    }
}

impl<D: Driver> Drop for Lease<D> {
    fn drop(&mut self) {
        self.tell_of_release();
        let Some(held) = self.held.as_mut() else { return };
        if self.unchecked {
            let target = &self.target;
            let share = self.engine.share(target);
            share.with("check given up", |registry, _| registry.check_given_up(target));
        }
        // Inspected in place: a driver that panics here loses the connection, not the count of it.
        let inspected = std::panic::AssertUnwindSafe(|| self.engine.driver.inspect(&mut held.conn));
        let condition = std::panic::catch_unwind(inspected).unwrap_or(Condition::Broken);
        let Some((conn, debt)) = self.take() else { return };
        match condition {
            Condition::Clean if self.unchecked => self.engine.recycle(self.returned(conn, debt)),
            Condition::Clean => self.engine.release(&self.target, debt, conn),
            Condition::Suspect => self.engine.recycle(self.returned(conn, debt)),
            Condition::Broken => self.engine.discard_broken(&self.target, debt, conn),
        }
    }
}

impl<D: Driver> Deref for Lease<D> {
    type Target = D::Connection;

    fn deref(&self) -> &Self::Target {
        match &self.held {
            Some(held) => &held.conn,
            None => unreachable!("a lease holds its connection until it is dropped"),
        }
    }
}

impl<D: Driver> DerefMut for Lease<D> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match &mut self.held {
            Some(held) => &mut held.conn,
            None => unreachable!("a lease holds its connection until it is dropped"),
        }
    }
}

impl<D: Driver> fmt::Debug for Lease<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("target", &self.target).finish_non_exhaustive()
    }
}
