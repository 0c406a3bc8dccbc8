//! Prepared statements that a change of the schema has spoiled. The server answers such a statement with an error
//! (`0A000`, "cached plan must not change result type") until it is prepared anew, and sqlx keeps it, so that one
//! connection after another would fail for ever.
//!
//! Each database has an epoch. A connection remembers the one in which it last threw its statements away, and does so again
//! before its next use when it is behind. The epoch moves on when a statement that was seen fails in that way.
//!
//! Behind raw access nobody sees the errors. A connection that comes back from there says whether any transaction of the server
//! has ended since the last look at the schema. If none has, its statements are good. Otherwise the schema is looked at again,
//! which moves the epoch on if it has changed, or the connection throws its statements away, where that is cheaper.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use sqlx::Error;
use sqlx::postgres::PgDatabaseError;

/// A look at so many columns is cheaper than to prepare everything again: so many in any case, and so many more for each statement.
const COLUMNS_MIN: i64 = 1_000;
const COLUMNS_PER_STATEMENT: i64 = 500;
/// A look at more waits this many times as long as the last one took, so that it costs a twentieth of the time at most.
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
    last_look: Mutex<LastLook>,
}

#[derive(Debug, Default)]
struct LastLook {
    look: Option<Look>,
    next: Option<Instant>,
}

/// What a look at the schema has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Stands for all transactions that had ended.
    pub(crate) snapshot: i64,
    pub(crate) columns: i64,
    pub(crate) fingerprint: String,
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

    /// All statements that were prepared before now may be spoiled.
    pub(crate) fn all_spoiled(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the last look has seen all that is in `snapshot`.
    pub(crate) fn have_seen(&self, snapshot: i64) -> bool {
        self.last_look().look.as_ref().is_some_and(|look| look.snapshot == snapshot)
    }

    /// Whether another look is worth it for a connection that keeps so many statements.
    pub(crate) fn want_look(&self, kept: usize, now: Instant) -> bool {
        let last = self.last_look();
        let kept = i64::try_from(kept).unwrap_or(i64::MAX);
        let cheap = COLUMNS_MIN.saturating_add(kept.saturating_mul(COLUMNS_PER_STATEMENT));
        last.next.is_none_or(|next| next <= now)
            || last.look.as_ref().is_none_or(|look| look.columns <= cheap)
    }

    /// A look at the schema took so long and found this. The first one has nothing to compare with, so everything
    /// before it counts as spoiled.
    pub(crate) fn looked(&self, look: Look, took: Duration, now: Instant) {
        let mut last = self.last_look();
        last.next = Some(now + took.saturating_mul(PAUSE_FACTOR).min(PAUSE_MAX));
        let before = last.look.replace(look);
        if before.map(|look| look.fingerprint) != last.look.as_ref().map(|look| look.fingerprint.clone()) {
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn last_look(&self) -> std::sync::MutexGuard<'_, LastLook> {
        self.last_look.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn look(snapshot: i64, fingerprint: &str) -> Look {
        Look { snapshot, columns: 2_000, fingerprint: fingerprint.to_owned() }
    }

    #[test]
    fn a_look_that_finds_another_schema_moves_the_epoch() {
        let (plans, now, took) = (Plans::default(), Instant::now(), Duration::from_millis(1));
        for (snapshot, fingerprint, epoch) in [(7, "1", 1), (8, "1", 1), (9, "2", 2)] {
            assert!(!plans.have_seen(snapshot));
            plans.looked(look(snapshot, fingerprint), took, now);
            assert!(plans.have_seen(snapshot));
            assert_eq!(plans.epoch(), epoch);
        }
    }

    #[test]
    fn a_look_waits_where_it_is_cheaper_to_prepare_everything_again() {
        let (plans, now, took) = (Plans::default(), Instant::now(), Duration::from_millis(1));
        assert!(plans.want_look(1, now), "nothing is known yet");
        plans.looked(look(7, "1"), took, now);
        assert!(plans.want_look(2, now) && !plans.want_look(1, now));
        assert!(!plans.want_look(1, now + took * 19) && plans.want_look(1, now + took * 20));
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
