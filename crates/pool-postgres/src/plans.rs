//! Prepared statements that a change of the schema has spoiled. The server answers such a statement with an error
//! (`0A000`, "cached plan must not change result type") until it is prepared anew, and sqlx keeps it, so that one
//! connection after another would fail for ever.
//!
//! Each database has an epoch. A connection remembers the one in which it last threw its statements away, and does so again
//! before its next use when it is behind. The epoch moves on when a statement that was seen fails in that
//! way, or when the database's columns are found to have changed after raw access, whose errors nobody sees.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use sqlx::Error;
use sqlx::postgres::PgDatabaseError;

/// A look at the columns waits this many times as long as the last one took, so that it costs a twentieth
/// of the time at most.
const PAUSE_FACTOR: u32 = 20;
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// From this many databases on, those without a connection are forgotten now and then.
const FORGET_FROM: usize = 64;

/// The plans of all databases that have a connection.
#[derive(Default)]
pub(crate) struct AllPlans {
    by_database: Mutex<HashMap<String, Weak<Plans>>>,
}

/// What the connections to one database know together.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    epoch: AtomicU64,
    columns: Mutex<Columns>,
}

/// The last look at the columns of a database.
#[derive(Debug, Default)]
struct Columns {
    fingerprint: Option<String>,
    next_look: Option<Instant>,
}

impl AllPlans {
    pub(crate) fn of(&self, database: &str) -> Arc<Plans> {
        let mut all = self.by_database.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plans) = all.get(database).and_then(Weak::upgrade) {
            return plans;
        }
        if all.len() >= FORGET_FROM && all.len() == all.capacity() {
            all.retain(|_, plans| plans.strong_count() > 0);
        }
        let plans = Arc::<Plans>::default();
        all.insert(database.to_owned(), Arc::downgrade(&plans));
        plans
    }
}

impl Plans {
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Statements that were prepared in `epoch` are spoiled. Those of a later one were prepared since.
    pub(crate) fn spoiled_in(&self, epoch: u64) {
        let _ = self.epoch.compare_exchange(epoch, epoch + 1, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Whether it is time for another look at the columns.
    pub(crate) fn wants_look(&self, now: Instant) -> bool {
        self.columns().next_look.is_none_or(|at| at <= now)
    }

    /// A look at the columns took so long and found this. The first one has nothing to compare with, so
    /// everything before it counts as spoiled.
    pub(crate) fn looked(&self, fingerprint: Option<String>, took: Duration, now: Instant) {
        let fingerprint = fingerprint.unwrap_or_default();
        let mut columns = self.columns();
        columns.next_look = Some(now + took.saturating_mul(PAUSE_FACTOR).min(PAUSE_MAX));
        if columns.fingerprint.as_ref() != Some(&fingerprint) {
            columns.fingerprint = Some(fingerprint);
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn columns(&self) -> std::sync::MutexGuard<'_, Columns> {
        self.columns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a statement failed because it was prepared before the schema changed, or because it is prepared no more
/// (somebody has sent `DEALLOCATE` or `DISCARD ALL`).
pub(crate) fn is_spoiled(error: &Error) -> bool {
    let Some(error) = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
    else {
        return false;
    };
    match error.code() {
        "26000" => true,
        // Other things that the server cannot do have the same state; this one is said in one place only.
        "0A000" => error.routine() == Some("RevalidateCachedQuery"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_change_moves_the_epoch_once_however_many_notice() {
        let plans = Plans::default();
        plans.spoiled_in(0);
        plans.spoiled_in(0);
        assert_eq!(plans.epoch(), 1);
    }

    #[test]
    fn a_look_that_finds_other_columns_moves_the_epoch_and_the_next_one_waits() {
        let (plans, now, took) = (Plans::default(), Instant::now(), Duration::from_millis(1));
        assert!(plans.wants_look(now));
        for (found, epoch) in [("1", 1), ("1", 1), ("2", 2)] {
            plans.looked(Some(found.to_owned()), took, now);
            assert_eq!(plans.epoch(), epoch);
        }
        assert!(!plans.wants_look(now + took * 19));
        assert!(plans.wants_look(now + took * 20));
    }

    #[test]
    fn a_database_is_known_as_long_as_it_has_a_connection() {
        let all = AllPlans::default();
        let plans = all.of("a");
        assert!(Arc::ptr_eq(&plans, &all.of("a")) && !Arc::ptr_eq(&plans, &all.of("b")));
        for number in 0..10_000 {
            drop(all.of(&number.to_string()));
        }
        assert!(all.by_database.lock().unwrap().len() < 1_000);
        assert!(Arc::ptr_eq(&plans, &all.of("a")));
    }
}
