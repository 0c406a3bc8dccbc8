//! The only place that counts connections. A [`Slot`] stands for one connection that the server may see;
//! it remembers its own state, so a count can only move together with the thing it counts.

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
}

/// A hard ceiling and the count below it, by state.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u32,
    counts: [u32; 4],
}

impl Budget {
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, counts: [0; 4] }
    }

    /// A slot for a connection about to be opened, or none when the budget is spent.
    pub(crate) fn reserve(&mut self) -> Option<Slot> {
        if self.is_full() {
            return None;
        }
        self.counts[SlotState::Opening as usize] += 1;
        Some(Slot { state: SlotState::Opening })
    }

    /// A slot above the limit, which only a planted bug takes.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn reserve_beyond(&mut self) -> Slot {
        self.counts[SlotState::Opening as usize] += 1;
        Slot { state: SlotState::Opening }
    }

    pub(crate) fn shift(&mut self, slot: &mut Slot, to: SlotState) {
        self.counts[slot.state as usize] -= 1;
        self.counts[to as usize] += 1;
        slot.state = to;
    }

    pub(crate) fn free(&mut self, slot: Slot) {
        let Slot { state } = slot;
        self.counts[state as usize] -= 1;
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
        assert!(budget.reserve().is_some());
    }
}
