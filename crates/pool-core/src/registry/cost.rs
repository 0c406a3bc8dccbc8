//! What things cost, measured: how long opens, closes and leases take, as decayed means. From them follow the price of
//! a switch (a slot goes from one target to another: a close and an open), the quantum and the patience.

use std::time::{Duration, Instant};

/// What an open costs before one was measured: about a connect on a local network.
pub const OPEN_DEFAULT: Duration = Duration::from_millis(4);
/// What a close costs before one was measured.
pub const CLOSE_DEFAULT: Duration = Duration::from_millis(1);
/// How long a lease lasts before one was measured.
pub const LEASE_DEFAULT: Duration = Duration::from_millis(1);

/// The quantum in switches, unless one is configured. A slot that changes its target every quantum does work for
/// `quantum / (quantum + switch)` of the time: 6 switches make that 0.86.
const QUANTUM_SWITCHES: u32 = 6;
/// Bounds of the quantum that follows the measurement. Below the first, scheduling itself would count; above the second,
/// a waiting target would take the pool for dead.
pub const QUANTUM_MIN: Duration = Duration::from_millis(10);
/// See [`QUANTUM_MIN`].
pub const QUANTUM_MAX: Duration = Duration::from_secs(1);

/// One lease of so many is measured.
const LEASES_PER_SAMPLE: u32 = 8;

/// A mean that forgets: each sample counts an eighth. A sample counts at most four times the mean, so that one lease of
/// ten minutes does not pass for the habit, while a new habit is learnt in a dozen samples.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    nanos: Option<u64>,
}

impl Mean {
    const WEIGHT: u64 = 8;
    const OUTLIER: u64 = 4;

    fn add(&mut self, sample: Duration) {
        let sample = u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX);
        self.nanos = Some(match self.nanos {
            None => sample,
            Some(mean) => {
                let heard = sample.min(mean.saturating_mul(Self::OUTLIER).max(1));
                mean - mean / Self::WEIGHT + heard / Self::WEIGHT
            }
        });
    }

    fn or(self, default: Duration) -> Duration {
        self.nanos.map_or(default, Duration::from_nanos)
    }
}

/// A connect that takes so many times what a quick one takes is held up by others.
const CROWDED: u32 = 2;
/// How slowly the quickest connect is forgotten: by a part in so many with every connect.
const QUICKEST_FORGOTTEN: u32 = 512;

/// Which part of the opens that may be under way at a time pays: where connects hold each other up, more of them only take
/// longer. It shrinks by a sixteenth with each connect that finds others in its way, and grows slowly again (additive
/// increase, multiplicative decrease; Chiu and Jain 1989), and never below a half: whoever comes next waits for one of them.
#[derive(Clone, Copy, Debug)]
struct Paying {
    in_256ths: u32,
    quickest: Option<Duration>,
}

impl Paying {
    const ALL: u32 = 256;
    const LEAST: u32 = 128;
    const STEP_UP: u32 = 4;

    fn add(&mut self, took: Duration, usual: Duration) {
        let quickest =
            self.quickest.map_or(took, |quickest| quickest + quickest / QUICKEST_FORGOTTEN).min(took);
        self.quickest = Some(quickest);
        self.in_256ths = if usual > quickest * CROWDED {
            (self.in_256ths - self.in_256ths / 16).max(Self::LEAST)
        } else {
            (self.in_256ths + Self::STEP_UP).min(Self::ALL)
        };
    }

    fn of(self, opens: u32) -> u32 {
        let part = u64::from(opens) * u64::from(self.in_256ths);
        u32::try_from(part.div_ceil(u64::from(Self::ALL))).unwrap_or(opens)
    }
}

impl Default for Paying {
    fn default() -> Self {
        Self { in_256ths: Self::ALL, quickest: None }
    }
}

/// The measurements of one share.
#[derive(Debug, Default)]
pub(super) struct Costs {
    open: Mean,
    paying: Paying,
    close: Mean,
    lease: Mean,
    leases: u32,
}

impl Costs {
    pub(super) fn opened_in(&mut self, took: Duration) {
        self.open.add(took);
        self.paying.add(took, self.open());
    }

    pub(super) fn closed_in(&mut self, took: Duration) {
        self.close.add(took);
    }

    /// A lease from `since` to `now`. Every eighth is measured, which is often enough for a mean, and keeps the clock's
    /// arithmetic off the warm path.
    #[inline]
    pub(super) fn leased(&mut self, since: Instant, now: Instant) {
        if self.leases.is_multiple_of(LEASES_PER_SAMPLE) {
            self.lease.add(now.saturating_duration_since(since));
        }
        self.leases = self.leases.wrapping_add(1);
    }

    /// How long an open takes.
    pub(super) fn open(&self) -> Duration {
        self.open.or(OPEN_DEFAULT)
    }

    /// How many of `opens` at a time are worth it.
    pub(super) fn opens_that_pay(&self, opens: u32) -> u32 {
        self.paying.of(opens)
    }

    /// How long a close takes.
    pub(super) fn close(&self) -> Duration {
        self.close.or(CLOSE_DEFAULT)
    }

    /// How long a lease lasts.
    pub(super) fn lease(&self) -> Duration {
        self.lease.or(LEASE_DEFAULT)
    }

    /// The price of a switch: from the decision to close a connection until another target has one in the slot.
    pub(super) fn switch(&self) -> Duration {
        self.open() + self.close()
    }

    /// The quantum: `configured`, or six switches within its bounds.
    pub(super) fn quantum(&self, configured: Option<Duration>) -> Duration {
        configured.unwrap_or_else(|| (self.switch() * QUANTUM_SWITCHES).clamp(QUANTUM_MIN, QUANTUM_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_lease_does_not_pass_for_the_habit() {
        let mut costs = Costs::default();
        let now = Instant::now();
        costs.leased(now, now + Duration::from_millis(1));
        for _ in 0..LEASES_PER_SAMPLE {
            costs.leased(now, now + Duration::from_mins(10));
        }
        assert!(costs.lease() <= Duration::from_micros(1_400), "{:?}", costs.lease());
    }

    #[test]
    fn a_new_habit_is_learnt_in_a_few_dozen_samples() {
        let mut costs = Costs::default();
        costs.opened_in(Duration::from_millis(1));
        for _ in 0..40 {
            costs.opened_in(Duration::from_millis(100));
        }
        assert!(costs.switch() > Duration::from_millis(90), "{:?}", costs.switch());
        for _ in 0..60 {
            costs.opened_in(Duration::from_millis(1));
        }
        assert!(costs.switch() < Duration::from_millis(3), "{:?}", costs.switch());
    }

    /// How many of 16 opens pay after so many connects of so many milliseconds.
    fn pay_after(connects: &[(u32, u64)]) -> u32 {
        let mut costs = Costs::default();
        for (count, millis) in connects {
            for _ in 0..*count {
                costs.opened_in(Duration::from_millis(*millis));
            }
        }
        costs.opens_that_pay(16)
    }

    #[test]
    fn opens_that_do_not_hold_each_other_up_all_pay() {
        assert_eq!((pay_after(&[]), pay_after(&[(1_000, 50)])), (16, 16));
    }

    #[test]
    fn opens_that_take_no_time_all_pay() {
        assert_eq!(pay_after(&[(100, 0)]), 16);
    }

    #[test]
    fn opens_that_take_longer_than_the_quickest_pay_less_but_never_less_than_half_of_them() {
        assert_eq!(pay_after(&[(1, 4), (10, 12)]), 12);
        assert_eq!(pay_after(&[(1, 4), (100, 12)]), 8);
    }

    #[test]
    fn opens_that_became_quick_again_all_pay_again_after_a_while() {
        assert_eq!(pay_after(&[(1, 4), (100, 12), (12, 4)]), 10);
        assert_eq!(pay_after(&[(1, 4), (100, 12), (100, 4)]), 16);
    }

    #[test]
    fn a_server_that_has_become_slower_is_not_taken_for_a_crowded_one_for_ever() {
        assert_eq!(pay_after(&[(1, 1), (2_500, 50)]), 16);
    }

    #[test]
    fn the_quantum_follows_the_switch_within_its_bounds() {
        let mut costs = Costs::default();
        assert_eq!(costs.quantum(None), Duration::from_millis(30));
        assert_eq!(costs.quantum(Some(Duration::from_millis(3))), Duration::from_millis(3));
        costs.opened_in(Duration::from_secs(9));
        assert_eq!(costs.quantum(None), QUANTUM_MAX);
    }
}
