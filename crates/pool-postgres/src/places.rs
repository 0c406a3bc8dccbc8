//! The places in the budget that are kept for listeners, and what the server may count in each.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::connection::Session;
use crate::tag::Tag;

/// The places that are kept for listeners.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Vec<Place>>);

/// What the server may count in a place.
#[derive(Clone, Debug)]
pub(crate) enum Counted {
    /// A session that has come.
    Session(Session),
    /// One that was asked for with this tag in this database, and has not come.
    Asked(Tag, String),
}

#[derive(Debug)]
struct Place {
    is_taken: bool,
    counted: Option<Counted>,
}

impl Places {
    pub(crate) fn new(count: u32) -> Self {
        Self(Mutex::new((0..count).map(|_| Place { is_taken: false, counted: None }).collect()))
    }

    fn all(&self) -> MutexGuard<'_, Vec<Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.all().len()).unwrap_or(u32::MAX)
    }

    /// What the server may count in all places.
    pub(crate) fn counted(&self) -> Vec<Counted> {
        self.all().iter().filter_map(|place| place.counted.clone()).collect()
    }

    /// A place that nobody has; what may be counted there is of whoever had it before.
    pub(crate) fn take(&self) -> Option<usize> {
        let mut all = self.all();
        let at = all.iter().position(|place| !place.is_taken)?;
        all[at].is_taken = true;
        Some(at)
    }

    /// What the server may count in this place.
    pub(crate) fn counted_at(&self, at: usize) -> Option<Counted> {
        self.all()[at].counted.clone()
    }

    /// Says what may be counted in a place from now on.
    pub(crate) fn set(&self, at: usize, counted: Option<Counted>) {
        self.all()[at].counted = counted;
    }

    /// Gives a place back, with what may be counted there.
    pub(crate) fn give_back(&self, at: usize) {
        self.all()[at].is_taken = false;
    }
}
