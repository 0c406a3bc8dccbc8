//! A connection that came back is made clean.

use std::sync::Arc;

use pool_core::{Driver, Event, Registry};
use tokio::time::timeout;

use crate::engine::Engine;
use crate::job::Returned;

/// Owes a connection that is being made clean; dropped early, or in a panic, it is closed instead.
struct RecycleJob<'a, D: Driver> {
    engine: &'a Arc<Engine<D>>,
    returned: Option<Returned<D::Connection>>,
}

impl<D: Driver> Drop for RecycleJob<'_, D> {
    fn drop(&mut self) {
        if let Some(Returned { target, conn, debt, .. }) = self.returned.take() {
            let discard = |registry: &mut Registry<_, _>, now| registry.discard_unclean(debt, conn, now);
            self.engine.step(&target, "discard unclean", discard);
        }
    }
}

/// Makes a connection clean and gives it back, or has it closed.
pub(super) async fn recycle<D: Driver>(engine: &Arc<Engine<D>>, returned: Returned<D::Connection>) {
    let began = Engine::<D>::now();
    let mut owed = RecycleJob { engine, returned: Some(returned) };
    let Some(Returned { conn, unchecked, .. }) = owed.returned.as_mut() else { return };
    let outcome = match timeout(engine.settings.recycle_timeout, engine.driver.recycle(conn)).await {
        // A connection that needed no cleaning has not been asked whether it lives.
        Ok(Ok(())) if *unchecked => timeout(engine.settings.check_timeout, engine.driver.check(conn)).await,
        outcome => outcome,
    };
    match outcome {
        Ok(Ok(())) => {
            if let Some(Returned { target, conn, debt, .. }) = owed.returned.take() {
                let took = Engine::<D>::now().saturating_duration_since(began);
                engine.emit(&Event::Recycled { target: &target, connection: debt.connection(), took });
                engine.release(&target, debt, conn);
            }
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a returned connection could not be made clean and is closed");
            if error.kind.may_concern_all()
                && let Some(Returned { target, conn, debt, .. }) = owed.returned.take()
            {
                engine.discard_broken(&target, debt, conn);
            }
        }
        Err(_) => {
            tracing::debug!("a returned connection was not clean in time and is closed");
            engine.health.suspect();
        }
    }
}
