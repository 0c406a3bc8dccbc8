//! The events to come, in the order of their moments; of those that share a moment, the one that was asked for first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Something that happens at a moment of virtual time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A task asks for a connection.
    Ask {
        task: u32,
    },
    /// A task has done its query and gives the connection back.
    Release {
        task: u32,
    },
    /// A connect is over.
    OpenEnds {
        open: u32,
    },
    /// The server has confirmed that a session is gone.
    CloseEnds {
        close: u32,
    },
    /// The registry asked to be called again about a workspace.
    Retry {
        workspace: u32,
    },
    Due,
    LookedUp {
        workspace: u32,
    },
    /// A part of the measurement ends, and the next begins.
    Mark,
}

#[derive(Debug, Default)]
pub(super) struct EventQueue {
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    asked: u64,
}

impl EventQueue {
    pub(super) fn push(&mut self, at: Duration, event: Event) {
        self.asked += 1;
        self.events.push(Reverse((at, self.asked, event)));
    }

    /// The next event before `end`.
    pub(super) fn pop(&mut self, end: Duration) -> Option<(Duration, Event)> {
        let Reverse((at, _, event)) = self.events.pop()?;
        (at < end).then_some((at, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_moment_and_then_as_they_were_asked_for() {
        let mut queue = EventQueue::default();
        let at = Duration::from_millis;
        queue.push(at(2), Event::Mark);
        queue.push(at(1), Event::Release { task: 9 });
        queue.push(at(1), Event::Ask { task: 1 });
        let order: Vec<_> = std::iter::from_fn(|| queue.pop(at(2))).map(|(_, event)| event).collect();
        assert_eq!(order, [Event::Release { task: 9 }, Event::Ask { task: 1 }]);
    }
}
