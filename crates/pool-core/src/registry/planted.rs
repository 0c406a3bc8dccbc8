//! Bugs planted on purpose, so that the checks can prove that they bite. Without the feature
//! `planted-bugs` the answer to [`Registry::has_bug`] is a constant, and the compiler removes them.

use super::Registry;

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, missing_docs)]
pub enum Bug {
    /// A cancelled caller takes the connection granted to it along.
    GrantLostOnCancel,
    /// A failed open keeps its slot.
    SlotLeakedOnFailedOpen,
    /// Nothing idle is ever closed for another target.
    NoEviction,
    /// A connection is never closed for the turn of another target.
    NeverYields,
    /// The youngest waiter is served first.
    LastComeFirstServed,
    /// An answered waiter is not woken.
    LostWakeUp,
}

impl<C> Registry<C> {
    /// Plants `bug`.
    #[cfg(feature = "planted-bugs")]
    pub fn plant(&mut self, bug: Bug) {
        self.planted = Some(bug);
    }

    #[cfg(feature = "planted-bugs")]
    pub(super) fn has_bug(&self, bug: Bug) -> bool {
        self.planted == Some(bug)
    }

    #[cfg(not(feature = "planted-bugs"))]
    #[allow(clippy::unused_self)]
    pub(super) const fn has_bug(&self, _: Bug) -> bool {
        false
    }
}
