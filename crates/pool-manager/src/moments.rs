//! The registry reads no clock: it says at which moment it wants to be called, and one task for each share calls it then.

use std::sync::Weak;
use std::time::Instant;

use pool_core::{Driver, Registry};
use tokio::sync::watch;
use tokio::time::sleep_until;

use crate::engine::{Engine, Part};

/// Calls the registry of one share at each moment that it was promised, until the engine is gone.
pub(crate) async fn keep_promises<D: Driver>(
    engine: Weak<Engine<D>>,
    part: Part,
    mut promised: watch::Receiver<Option<Instant>>,
) {
    loop {
        let at = *promised.borrow_and_update();
        let has_come = async {
            match at {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = promised.changed() => if changed.is_err() { return },
            () = has_come => {
                let Some(engine) = engine.upgrade() else { return };
                let share = engine.part(part);
                share.forget_promise(at);
                engine.perform(share, share.with("due", Registry::due));
            }
        }
    }
}
