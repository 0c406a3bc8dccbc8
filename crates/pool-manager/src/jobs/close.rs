//! A close, from the debt to its report.

use std::sync::Arc;

use pool_core::{CloseDebt, CloseWork, Driver};
use tokio::time::sleep;

use crate::engine::Engine;

/// Owes the report of a close.
struct CloseJob<'a, D: Driver> {
    engine: &'a Arc<Engine<D>>,
    debt: Option<CloseDebt>,
}

impl<D: Driver> CloseJob<'_, D> {
    fn is_slow(&mut self) {
        let Some(debt) = self.debt.as_mut() else { return };
        let target = debt.target().clone();
        self.engine.step(&target, "close is slow", |registry, now| registry.close_is_slow(debt, now));
    }
}

impl<D: Driver> Drop for CloseJob<'_, D> {
    fn drop(&mut self) {
        if let Some(debt) = self.debt.take() {
            self.engine.report_closed(debt);
        }
    }
}

/// Closes a connection, and reports when the server no longer counts it.
pub(super) async fn close<D: Driver>(engine: &Arc<Engine<D>>, work: CloseWork<D::Connection>) {
    let (conn, debt) = work.split();
    let mut owed = CloseJob { engine, debt: Some(debt) };
    let mut closing = std::pin::pin!(engine.driver.close(conn));
    tokio::select! {
        biased;
        () = &mut closing => return,
        () = sleep(engine.settings.slow_open_after) => owed.is_slow(),
    }
    closing.await;
}
