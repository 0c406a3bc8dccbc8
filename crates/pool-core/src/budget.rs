//! The only place that counts connections. A [`Slot`] stands for one connection that the server may see;
//! it remembers its own state, so a count can only move together with the thing it counts.
//!
//! A count that would fall below zero is a bug, and must be seen. Where debug assertions are on (all tests, and the
//! enumerator), it panics. In a release build it stays at zero, and the miscount is counted in a number of its own, which
//! every snapshot shows: a panic would come inside a transition, under the lock, perhaps in the `Drop` of a lease that
//! is being unwound, and so end the program or leave a state that is not whole; and a number that wraps around would
//! read as a full budget, or as none.

#[cfg(debug_assertions)]
use std::sync::{Arc, Weak};

/// Where a counted connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotState {
    Opening,
    InUse,
    Idle,
    Closing,
}

/// One unit of the budget. Not `Clone`, made and ended by [`Budget`] alone.
#[derive(Debug)]
#[must_use = "a slot that is not given back is lost to the budget"]
pub(crate) struct Slot {
    state: SlotState,
    is_paid: bool,
    /// Alive as long as the budget that the slot is owed to.
    #[cfg(debug_assertions)]
    owed_to: Weak<()>,
}

/// A slot that is dropped without having been given back is lost to the budget, unless the whole registry goes.
#[cfg(debug_assertions)]
impl Drop for Slot {
    fn drop(&mut self) {
        let is_lost = !self.is_paid && self.owed_to.strong_count() > 0;
        assert!(
            !is_lost || std::thread::panicking(),
            "the slot of a connection {:?} was dropped",
            self.state
        );
    }
}

/// Takes one from `count`; see the front page for what becomes of one that is zero.
#[inline]
pub(crate) fn take_one(count: &mut u32, miscounts: &mut u64) {
    if let Some(less) = count.checked_sub(1) {
        *count = less;
        return;
    }
    *miscounts += 1;
    debug_assert!(false, "a count was to fall below zero");
}

/// A hard ceiling and the count below it, by state.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u32,
    /// What may be counted at most: the limit, and after it was lowered whatever was counted then and is not freed yet.
    allowed: u32,
    counts: [u32; 4],
    miscounts: u64,
    #[cfg(debug_assertions)]
    lives: Arc<()>,
}

impl Budget {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit,
            allowed: limit,
            counts: [0; 4],
            miscounts: 0,
            #[cfg(debug_assertions)]
            lives: Arc::new(()),
        }
    }

    pub(crate) fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
        self.allowed = self.counted().max(limit);
    }

    /// The most that may be counted now.
    pub(crate) fn allowed(&self) -> u32 {
        self.allowed
    }

    /// A slot for a connection about to be opened, or none when the budget is spent.
    pub(crate) fn reserve(&mut self) -> Option<Slot> {
        (!self.is_full()).then(|| self.slot())
    }

    fn slot(&mut self) -> Slot {
        self.counts[SlotState::Opening as usize] += 1;
        Slot {
            state: SlotState::Opening,
            is_paid: false,
            #[cfg(debug_assertions)]
            owed_to: Arc::downgrade(&self.lives),
        }
    }

    #[inline]
    pub(crate) fn shift(&mut self, slot: &mut Slot, to: SlotState) {
        take_one(&mut self.counts[slot.state as usize], &mut self.miscounts);
        self.counts[to as usize] += 1;
        slot.state = to;
    }

    pub(crate) fn free(&mut self, mut slot: Slot) {
        slot.is_paid = true;
        take_one(&mut self.counts[slot.state as usize], &mut self.miscounts);
        self.allowed = self.allowed.min(self.counted()).max(self.limit);
    }

    /// How often a count was found wrong.
    pub(crate) fn miscounts(&self) -> u64 {
        self.miscounts
    }

    pub(crate) fn count(&self, state: SlotState) -> u32 {
        self.counts[state as usize]
    }

    pub(crate) fn counted(&self) -> u32 {
        self.counts.iter().sum()
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    pub(crate) fn is_full(&self) -> bool {
        self.counted() >= self.limit
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn b1_a_spent_budget_gives_no_slot_until_one_is_freed() {
        let mut budget = Budget::new(1);
        let mut slot = budget.reserve().unwrap();
        for state in [SlotState::InUse, SlotState::Idle, SlotState::Closing] {
            budget.shift(&mut slot, state);
            assert_eq!((budget.count(state), budget.counted()), (1, 1));
            assert!(budget.reserve().is_none());
        }
        budget.free(slot);
        let again = budget.reserve();
        budget.free(again.unwrap());
    }

    #[test]
    fn s1_a_slot_that_is_dropped_unpaid_is_seen() {
        let mut budget = Budget::new(1);
        let slot = budget.reserve();
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(slot)));
        assert_eq!(dropped.is_err(), cfg!(debug_assertions));
    }

    #[test]
    fn a_slot_may_outlive_its_budget() {
        let mut budget = Budget::new(1);
        let slot = budget.reserve();
        drop(budget);
        drop(slot);
    }

    #[test]
    fn s1_a_count_does_not_fall_below_zero_unseen() {
        let (mut count, mut miscounts) = (0, 0);
        let taken = catch_unwind(AssertUnwindSafe(|| take_one(&mut count, &mut miscounts)));
        assert_eq!((taken.is_err(), count, miscounts), (cfg!(debug_assertions), 0, 1));
    }
}
