//! Who waits, and what is being opened: kept for [`PoolView`] alone. Who holds what is in the registry's entries.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pool_core::{CallSite, Driver, LeaseView, OpenView, PoolView, Target, WaitView};

use crate::share::{Session, ShareRegistry};

/// The callers that wait and the opens under way, none of which is on the warm path.
#[derive(Default)]
pub(crate) struct Roster {
    rows: Mutex<Rows>,
}

#[derive(Default)]
struct Rows {
    next: u64,
    by_number: BTreeMap<u64, Row>,
}

struct Row {
    target: Target,
    since: Instant,
    /// Where a caller asked; none for an open.
    at: Option<CallSite>,
}

/// Keeps a row while it lives.
pub(crate) struct Shown<'a> {
    roster: &'a Roster,
    number: u64,
}

impl Roster {
    pub(crate) fn waiting(&self, target: &Target, since: Instant, at: CallSite) -> Shown<'_> {
        self.show(Row { target: target.clone(), since, at: Some(at) })
    }

    pub(crate) fn opening(&self, target: &Target, since: Instant) -> Shown<'_> {
        self.show(Row { target: target.clone(), since, at: None })
    }

    fn show(&self, row: Row) -> Shown<'_> {
        let mut rows = self.rows();
        let number = rows.next;
        rows.next += 1;
        rows.by_number.insert(number, row);
        Shown { roster: self, number }
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the rows of this moment to a view.
    pub(crate) fn add_to(&self, view: &mut PoolView, now: Instant) {
        for Row { target, since, at } in self.rows().by_number.values() {
            let lasting = now.saturating_duration_since(*since);
            match at {
                Some(at) => view.waiting.push(WaitView::new(target.clone(), lasting, at)),
                None => view.opening.push(OpenView::new(target.clone(), lasting)),
            }
        }
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.roster.rows().by_number.remove(&self.number);
    }
}

/// What is in use of one share.
pub(crate) fn leases<D: Driver>(registry: &ShareRegistry<D>, now: Instant) -> Vec<LeaseView> {
    let view = |(connection, target, since, session): (_, &Target, Instant, &Session<D::Handle>)| {
        LeaseView::new(target.clone(), connection, now.saturating_duration_since(since), session.holder)
    };
    registry.leases().map(view).collect()
}
