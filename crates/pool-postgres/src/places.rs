//! The places in the budget that are kept for listeners, and what the server may count in each.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::connection::Session;
use crate::tag::Tag;

/// The places that are kept for listeners.
#[derive(Debug, Default)]
pub(crate) struct Places {
    all: Mutex<Vec<Place>>,
    are_closed: watch::Sender<bool>,
}

/// What the server may count in a place.
#[derive(Clone, Debug)]
pub(crate) enum Counted {
    /// A session that has come.
    Session(Session),
    /// One that was asked for with this tag in this database, and has not come.
    Asked(Tag, String),
}

#[derive(Debug, Default)]
struct Place {
    is_taken: bool,
    counted: Option<Counted>,
}

impl Places {
    pub(crate) fn new(count: u32) -> Self {
        Self { all: Mutex::new((0..count).map(|_| Place::default()).collect()), ..Self::default() }
    }

    fn all(&self) -> MutexGuard<'_, Vec<Place>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.all().len()).unwrap_or(u32::MAX)
    }

    /// What the server may count in all places.
    pub(crate) fn counted(&self) -> Vec<Counted> {
        self.all().iter().filter_map(|place| place.counted.clone()).collect()
    }

    /// A place that nobody has, if possible one in which nothing is counted any more of whoever had it before.
    pub(crate) fn take(&self) -> Option<usize> {
        let mut all = self.all();
        let free = |(_, place): &(usize, &Place)| !place.is_taken;
        let (at, _) = all.iter().enumerate().filter(free).min_by_key(|(_, place)| place.counted.is_some())?;
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

    /// No session begins in a place any more.
    pub(crate) fn close(&self) {
        self.are_closed.send_replace(true);
    }

    /// Returns when no session may begin any more.
    pub(crate) async fn closed(&self) {
        // It fails only when the places are gone, and then nobody asks.
        let _ = self.are_closed.subscribe().wait_for(|are_closed| *are_closed).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o1_a_place_in_which_nothing_is_counted_is_taken_first() {
        let places = Places::new(3);
        assert_eq!((places.take(), places.take(), places.count()), (Some(0), Some(1), 3));
        places.set(0, Some(Counted::Asked(Tag::fresh(), "hangs".to_owned())));
        places.give_back(0);
        places.give_back(1);
        assert_eq!([places.take(), places.take()], [Some(1), Some(2)]);
        assert_eq!(places.take(), Some(0), "if there is no other");
        assert!(matches!(places.counted_at(0), Some(Counted::Asked(..))) && places.counted().len() == 1);
        assert_eq!(places.take(), None);
    }
}
