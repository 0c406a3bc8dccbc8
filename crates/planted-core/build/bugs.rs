//! The bugs, and where they are planted: a text that stands once in a source of `pool-core`, and what stands in its place.

/// A bug.
pub struct Bug {
    pub name: &'static str,
    pub what: &'static str,
    pub edits: &'static [Edit],
}

/// A change of one source.
pub struct Edit {
    /// Below `pool-core/src`.
    pub file: &'static str,
    pub find: &'static str,
    pub put: &'static str,
}

const fn edit(file: &'static str, find: &'static str, put: &'static str) -> Edit {
    Edit { file, find, put }
}

/// What the copy needs beside: the module of the bugs, and sight of it. Mocks are not copied.
pub const PLAIN: &[Edit] = &[
    edit("lib.rs", "#[cfg(feature = \"mock\")]\npub mod mock;\n", ""),
    edit("registry/mod.rs", "mod outage;\n", "mod outage;\npub(crate) mod planted;\n"),
    edit("budget.rs", "    fn slot(&mut self)", "    pub(crate) fn slot(&mut self)"),
    edit("registry/acquire.rs", "use super::{", "use super::planted::{Bug, has};\nuse super::{"),
    edit("registry/open.rs", "use super::{", "use super::planted::{Bug, has};\nuse super::{"),
    edit("registry/schedule.rs", "use super::{", "use super::planted::{Bug, has};\nuse super::{"),
    edit("registry/grant.rs", "use super::{", "use super::planted::{Bug, has};\nuse super::{"),
    edit("registry/release.rs", "use super::{", "use super::planted::{Bug, has};\nuse super::{"),
    edit("registry/gone.rs", "use super::{", "use super::planted::{Bug, has};\nuse super::{"),
];

pub const BUGS: &[Bug] = &[
    Bug {
        name: "AnswersForgotten",
        what: "What a workspace was counted with is forgotten with its entry.",
        edits: &[edit(
            "registry/grant.rs",
            r#"            self.remembered.keep(workspace.target.clone(), workspace.answers);
"#,
            r#"            if !has(Bug::AnswersForgotten) {
                self.remembered.keep(workspace.target.clone(), workspace.answers);
            }
"#,
        )],
    },
    Bug {
        name: "GrantLostOnCancel",
        what: "A cancelled caller takes the connection granted to it along.",
        edits: &[edit(
            "registry/acquire.rs",
            r#"                self.take_back(leased.debt, leased.conn, now, &mut cancelled.effects);
"#,
            r#"                if !has(Bug::GrantLostOnCancel) {
                    self.take_back(leased.debt, leased.conn, now, &mut cancelled.effects);
                }
"#,
        )],
    },
    Bug {
        name: "CancelledWaiterServed",
        what: "A caller that has gone keeps its place in the queue.",
        edits: &[edit(
            "registry/acquire.rs",
            r#"        let id = ticket.waiter;
        let waiter = self.waiters.remove(id as usize);
        cancelled.waker"#,
            r#"        let id = ticket.waiter;
        if has(Bug::CancelledWaiterServed) {
            return cancelled;
        }
        let waiter = self.waiters.remove(id as usize);
        cancelled.waker"#,
        )],
    },
    Bug {
        name: "SlotLeakedOnFailedOpen",
        what: "A failed open keeps its slot.",
        edits: &[edit(
            "registry/open.rs",
            r#"        Fair::refund(&mut self.workspace_mut(ws).account, turn);
        self.budget.free(slot);
"#,
            r#"        Fair::refund(&mut self.workspace_mut(ws).account, turn);
        if has(Bug::SlotLeakedOnFailedOpen) {
            std::mem::forget(slot);
        } else {
            self.budget.free(slot);
        }
"#,
        )],
    },
    Bug {
        name: "DoubleGrant",
        what: "One free slot is given to two opens.",
        edits: &[edit(
            "registry/schedule.rs",
            r#"let Some(slot) = self.budget.reserve()
"#,
            r#"let Some(slot) = self.budget.reserve().or_else(|| self.reserve_wrongly())
"#,
        )],
    },
    Bug {
        name: "NoEviction",
        what: "Nothing idle is ever closed for another target.",
        edits: &[edit(
            "registry/schedule.rs",
            r#"        while self.is_wanted_elsewhere()
            && let Some(victim)"#,
            r#"        while self.is_wanted_elsewhere()
            && !has(Bug::NoEviction)
            && let Some(victim)"#,
        )],
    },
    Bug {
        name: "EvictsInUse",
        what: "Where nothing is idle, a connection that was granted and not yet fetched is closed.",
        edits: &[edit(
            "registry/schedule.rs",
            r#"        self.end_lingering(now);
        while"#,
            r#"        self.end_lingering(now);
        self.evict_wrongly(now, effects);
        while"#,
        )],
    },
    Bug {
        name: "NeverYields",
        what: "A connection is never closed for the turn of another target.",
        edits: &[edit(
            "registry/schedule.rs",
            r#"        if self.workspace(ws).waiters.is_empty()
            || !self.budget.is_full()"#,
            r#"        if self.workspace(ws).waiters.is_empty()
            || has(Bug::NeverYields)
            || !self.budget.is_full()"#,
        )],
    },
    Bug {
        name: "YieldsEarly",
        what: "A connection is closed for another target before it has served its own for a quantum.",
        edits: &[edit(
            "registry/schedule.rs",
            r#"        if now.saturating_duration_since(opened_at) < quantum {"#,
            r#"        if now.saturating_duration_since(opened_at) < quantum && !has(Bug::YieldsEarly) {"#,
        )],
    },
    Bug {
        name: "ForgottenMoment",
        what: "The world is not asked to come back when patience ends.",
        edits: &[edit(
            "registry/schedule.rs",
            r#"        if self.promised.is_none_or(|promised| next < promised) {"#,
            r#"        if self.promised.is_none_or(|promised| next < promised) && !has(Bug::ForgottenMoment) {"#,
        )],
    },
    Bug {
        name: "UnfairTurn",
        what: "The target that has had most is served first.",
        edits: &[edit(
            "registry/schedule.rs",
            r#"        while let Some(ws) = self.fair.first_ready() {"#,
            r#"        if has(Bug::UnfairTurn) {
            return self.fair.ready().last().or(self.fair.first_later());
        }
        while let Some(ws) = self.fair.first_ready() {"#,
        )],
    },
    Bug {
        name: "LastComeFirstServed",
        what: "The youngest waiter is served first.",
        edits: &[edit(
            "registry/grant.rs",
            r#"        let Some(id) = self.workspace(ws).waiters.front() else {
            unreachable!"#,
            r#"        let queue = &self.workspace(ws).waiters;
        let first = if has(Bug::LastComeFirstServed) { queue.back() } else { queue.front() };
        let Some(id) = first else {
            unreachable!"#,
        )],
    },
    Bug {
        name: "LostWakeUp",
        what: "An answered waiter is not woken.",
        edits: &[edit(
            "registry/grant.rs",
            r#"        effects.wakes.0.extend(waiter.waker.take());
"#,
            r#"        if !has(Bug::LostWakeUp) {
            effects.wakes.0.extend(waiter.waker.take());
        }
"#,
        )],
    },
    Bug {
        name: "ForgottenRetry",
        what: "A retry after a failed open is asked of nobody.",
        edits: &[edit(
            "registry/open.rs",
            r#"        if workspace.waiters.is_empty() || self.failures.is_empty() {"#,
            r#"        if workspace.waiters.is_empty() || self.failures.is_empty() || has(Bug::ForgottenRetry) {"#,
        )],
    },
    Bug {
        name: "CountDriftOnClose",
        what: "A close that was confirmed is still counted by its workspace.",
        edits: &[edit(
            "registry/release.rs",
            r#"        self.one_less(ws, |ws| &mut ws.closing);
        let mut effects"#,
            r#"        if !has(Bug::CountDriftOnClose) {
            self.one_less(ws, |ws| &mut ws.closing);
        }
        let mut effects"#,
        )],
    },
    Bug {
        name: "SlotFreedEarly",
        what: "The slot of a connection is free when its close begins, not when the server has let go.",
        edits: &[],
    },
    Bug {
        name: "StaleToken",
        what: "The serial number of a connection is not looked at, so a token of its predecessor passes for its own.",
        edits: &[
            edit(
                "registry/release.rs",
                r#".filter(|entry| entry.id == id) {"#,
                r#".filter(|entry| entry.id == id || has(Bug::StaleToken)) {"#,
            ),
            edit(
                "registry/gone.rs",
                r#"        if entry.id != id || !matches!("#,
                r#"        if entry.id != id && !has(Bug::StaleToken) || !matches!("#,
            ),
            edit(
                "registry/gone.rs",
                r#"        (entry.id == id && matches!("#,
                r#"        ((entry.id == id || has(Bug::StaleToken)) && matches!("#,
            ),
        ],
    },
    Bug {
        name: "CutKeepsSlot",
        what: "A lease that was cut goes on counting.",
        edits: &[edit(
            "registry/gone.rs",
            r#"        let Conn { id, workspace: ws, slot, opened_at, .. } = self.conns.remove("#,
            r#"        if has(Bug::CutKeepsSlot) {
            return Some((self.workspace(entry.workspace).target.clone(), Effects::default()));
        }
        let Conn { id, workspace: ws, slot, opened_at, .. } = self.conns.remove("#,
        )],
    },
    Bug {
        name: "ForgottenCloser",
        what: "Nobody is told that what is being closed has no connection left.",
        edits: &[edit(
            "registry/schedule.rs",
            r#"        effects.drained |= drained;
"#,
            r#"        effects.drained |= drained && !has(Bug::ForgottenCloser);
"#,
        )],
    },
];
