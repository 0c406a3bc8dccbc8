//! The places in the budget that are kept for listeners, and the sessions that have them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::connection::Session;

/// The places that are kept for listeners.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Vec<Place>>);

#[derive(Debug)]
pub(crate) enum Place {
    Free,
    /// By the session, once there is one.
    Taken(Option<Session>),
    /// Let go of, and perhaps still counted.
    Leaving(Session),
}

impl Places {
    pub(crate) fn new(count: u32) -> Self {
        Self(Mutex::new((0..count).map(|_| Place::Free).collect()))
    }

    fn all(&self) -> MutexGuard<'_, Vec<Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.all().len()).unwrap_or(u32::MAX)
    }

    /// The sessions that the server may count.
    pub(crate) fn sessions(&self) -> Vec<Session> {
        let session = |place: &Place| match place {
            Place::Free | Place::Taken(None) => None,
            Place::Taken(Some(session)) | Place::Leaving(session) => Some(*session),
        };
        self.all().iter().filter_map(session).collect()
    }

    /// A place, and the session that had it before and may still be counted.
    pub(crate) fn take(&self) -> Option<(usize, Option<Session>)> {
        let mut all = self.all();
        let at = all.iter().position(|place| !matches!(place, Place::Taken(_)))?;
        match std::mem::replace(&mut all[at], Place::Taken(None)) {
            Place::Leaving(before) => Some((at, Some(before))),
            Place::Free | Place::Taken(_) => Some((at, None)),
        }
    }

    pub(crate) fn set(&self, at: usize, place: Place) {
        self.all()[at] = place;
    }
}
