//! What a pool did with its connections: how long they took to open, and why they were closed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pool_core::{CloseReason, Event, Observer};

use crate::contest::float;

/// Counts the events of one pool.
#[derive(Debug, Default)]
pub struct Watch {
    opened: AtomicU64,
    opening_nanoseconds: AtomicU64,
    evicted: AtomicU64,
    yielded: AtomicU64,
}

impl Observer for Watch {
    fn on(&self, event: &Event<'_>) {
        match event {
            Event::Opened { took, .. } => self.opened(*took),
            Event::Closed { reason: CloseReason::Evicted, .. } => {
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
            Event::Closed { reason: CloseReason::Yielded, .. } => {
                self.yielded.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

impl Watch {
    fn opened(&self, took: Duration) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.opening_nanoseconds.fetch_add(took, Ordering::Relaxed);
    }

    /// What an open took, in ms, on average.
    pub fn opening_ms(&self) -> f64 {
        let count = float(self.opened.load(Ordering::Relaxed));
        float(self.opening_nanoseconds.load(Ordering::Relaxed)) / 1e6 / count
    }

    /// Connections that were closed for another workspace: idle ones, and ones that their own workspace waited for.
    pub fn closed_for_others(&self) -> (f64, f64) {
        let [evicted, yielded] = [&self.evicted, &self.yielded].map(|count| count.load(Ordering::Relaxed));
        (float(evicted), float(yielded))
    }
}
