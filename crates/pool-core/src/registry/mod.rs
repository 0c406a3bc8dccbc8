//! The registry: all policy of one share of the budget, as one synchronous state machine. It is told
//! what happened and answers with what to do; it performs nothing, reads no clock, takes no lock, and
//! never drops a connection (it hands each one out again). Generic in the connection `C`, and in `S`, what ends its session from
//! outside, without a bound, so it could not do I/O if it wanted to.
//!
//! A *target* is what a connection belongs to for life. `Workspace`, `workspaces` and `ws` in here mean the entry of a target of any
//! kind.
//!
//! The transitions, by file:
//! - `acquire`: `acquire`, `try_acquire`, `replace`, `claim`, `cancel_wait`;
//! - `open`: `opened`, `open_failed`, `open_is_slow`, `looked_up`, `retry`, `clear_failure`;
//! - `lost`: `open_given_up`, `lost_opened`, `lost_ended`;
//! - `outage`: `server_is_lost`, `server_answers`, `open_overtaken`, `nobody_is_left`, `begin_again`;
//! - `release`: `release`, `discard`, `discard_broken`, `discard_unclean`, `closed`, `close_is_slow`, `expire`, `retire_on_return`;
//! - `gone`: `vanished`, `orphaned`, `cut` and `doubt_idle`, for sessions that ended behind the registry's back;
//! - `closing`: `begin_close`, `end_close`, `close_all`;
//! - `adjust`: `set_limits`, `set_terms`;
//! - `schedule`: who gets the next slot, and for how long, at the end of most transitions; `due`;
//! - `answers`: `checked`, `not_served`, `check_given_up`, `asks_again`; what callers were answered, target by target;
//! - `fair`, `cost`, `grant`: whose turn it is; what a switch costs; who of a target is served;
//! - `invariants`: `check`, the laws that one state alone can show, and `view`.

mod acquire;
mod adjust;
mod answers;
mod closing;
mod cost;
mod fair;
mod gone;
mod grant;
mod invariants;
mod lost;
mod open;
mod outage;
mod release;
mod schedule;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::budget::{Budget, Slot, SlotState, take_one};
use crate::error::{AcquireError, DriverError};
use crate::events::CloseReason;
use crate::ids::{ConnectionId, Target};
use crate::links::{Chain, Links};
use crate::policy::EvictionPolicy;
use crate::stats::{Answers, Counts, ShareStats};
use crate::token::Leased;

use answers::Remembered;
use cost::Costs;
use fair::{Account, Fair};
use lost::Lost;
use outage::Outage;

pub use acquire::{Acquire, CancelledWait, Claim};
pub use adjust::Terms;
pub use answers::ANSWERS_KEPT;
pub use cost::{CLOSE_DEFAULT, LEASE_DEFAULT, OPEN_DEFAULT, QUANTUM_MAX, QUANTUM_MIN};
pub use invariants::{Broken, View, WorkspaceView};

/// The settings of one share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistryConfig {
    /// The ceiling of the share, in connections.
    pub limit: u32,
    /// The ceiling of one target.
    pub per_target: u32,
    /// Opens under way at a time; one that is known to be slow does not count.
    pub opens: u32,
    /// How long a connection serves its target before it is closed for another one, although its own has callers
    /// waiting. None: six times the measured price of a switch, from 10 ms to 1 s.
    pub quantum: Option<Duration>,
    /// Callers that may wait for one target; more are refused.
    pub waiting_per_target: u32,
    /// Whether a connection of another target is closed only for a target that is known to exist; the world is asked
    /// ([`Effects::look_ups`](crate::Effects::look_ups)). The system target exists.
    pub look_up: bool,
    /// A connection idle longer than this is to be checked before use.
    pub check_after: Duration,
    /// A connection idle longer than this is closed by `expire`; none keeps it for ever.
    pub idle_timeout: Option<Duration>,
    /// The pause after a first failed open; doubled with every further one.
    pub backoff_first: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
}

impl RegistryConfig {
    /// The defaults, for a share of `limit` connections and `per_target` of them for one target.
    pub fn new(limit: u32, per_target: u32) -> Self {
        Self {
            limit,
            per_target,
            opens: crate::limits::OPENS_DEFAULT,
            quantum: None,
            waiting_per_target: crate::limits::WAITING_PER_WORKSPACE_DEFAULT,
            look_up: false,
            check_after: Duration::from_millis(500),
            idle_timeout: Some(Duration::from_mins(5)),
            backoff_first: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// The state machine of one share. See the module's front page.
pub struct Registry<C, S = ()> {
    config: RegistryConfig,
    budget: Budget,
    /// Hashed once on every acquire, so by a hash that is quick for short keys; it is seeded at random, since ids come from
    /// outside. Nothing is ever decided by its order.
    by_target: HashMap<Target, u32, foldhash::fast::RandomState>,
    workspaces: Slab<Workspace>,
    conns: Slab<Conn<C, S>>,
    next_serial: u32,
    idle_links: Links,
    waiters: Slab<Waiter<C>>,
    waiter_links: Links,
    /// The targets that want a slot, in the order of what they have had.
    fair: Fair,
    costs: Costs,
    /// What has been set for single targets; most have no entry.
    terms: HashMap<Target, Terms>,
    /// When the patience of a target ends.
    moments: BTreeSet<(Instant, u32)>,
    /// Connections that have had their turn and serve on because no permit is free: the one that has served longest first.
    overdue: BTreeSet<(Instant, u32)>,
    /// Idle connections that are kept for their targets a moment longer, first the one whose moment ends first.
    lingering: Chain,
    lingering_links: Links,
    /// The moment at which the world was asked to call `due`.
    promised: Option<Instant>,
    /// How many opens have been started.
    next_open: u64,
    /// Opens that count against the limit on simultaneous ones.
    permits_taken: u32,
    /// Opens that do not any more, because they are slow.
    slow_opens: u32,
    /// Opens that nobody waits for any more.
    lost: Lost,
    /// Set while the server does not answer.
    outage: Option<Outage>,
    /// Closes that take so long that their slots cannot be counted on.
    slow_closes: u32,
    policy: Box<dyn EvictionPolicy>,
    failures: HashMap<Target, Failure>,
    /// What callers of targets without an entry were answered.
    remembered: Remembered,
    /// Leases whose sessions have been ended behind their holders: nothing is counted for them any more, and they have
    /// no entry. Each is forgotten when its holder brings it back.
    cut: HashMap<ConnectionId, Target>,
    broken_at: Option<Instant>,
    closed: bool,
    totals: Totals,
}

/// A target with a connection, a waiter or a close under way; it has no entry otherwise.
struct Workspace {
    target: Target,
    in_use: u32,
    opens: Opens,
    closing: u32,
    /// Most recently used at the back.
    idle: Chain,
    /// First come at the front; only the queued ones.
    waiters: Chain,
    /// Waiters that have been answered and have not claimed the answer yet.
    unclaimed: u32,
    /// How many closes of this target are under way; it takes no new work until they end.
    closers: u32,
    /// What its callers were answered.
    answers: Answers,
    /// What it has had of the slots, and where it stands in the order of those that want one.
    account: Account,
    /// The most connections that it may have.
    ceiling: u32,
    /// What it may be counted with: its ceiling, and after that was lowered whatever was counted then and is not gone.
    ceiling_allowed: u32,
    existence: Existence,
    /// When its waiters will have waited without a break for as long as a switch takes; counted anew from each connection
    /// that is opened for them.
    patience_ends: Option<Instant>,
    /// Until when it rather waits for a connection of its own; the same moment is in `moments`.
    patient_until: Option<Instant>,
    /// When a connection of it that another target wanted went idle, until it asks again.
    went_idle_at: Option<Instant>,
    /// Whether it asked again at once the last time.
    comes_back: bool,
    /// When a connection of it was last found broken, or not to be made clean, without the server's having failed.
    broken_at: Option<Instant>,
}

/// The opens of one target.
#[derive(Default)]
struct Opens {
    under_way: u32,
    /// The number of the first open that began after the database was created: the failure of an earlier one means nothing.
    valid_from: u64,
    has_succeeded: bool,
}

/// What is known of a target's database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Existence {
    Unknown,
    /// The world has been asked.
    Asked,
    Known,
}

struct Conn<C, S> {
    id: ConnectionId,
    /// What ends it from outside, whoever has it.
    session: S,
    workspace: u32,
    slot: Slot,
    opened_at: Instant,
    retire_at: Option<Instant>,
    /// Why it is closed when that moment has come.
    retires_for: CloseReason,
    /// It has neither come back from a caller nor been idle.
    is_new: bool,
    /// The pause of the failure before it, if the last open had failed.
    pause_before: Option<Duration>,
    /// Idle, and kept for its target until then.
    lingers_until: Option<Instant>,
    state: ConnState<C>,
}

enum ConnState<C> {
    Idle { conn: C, since: Instant },
    InUse { since: Instant },
}

struct Waiter<C> {
    workspace: u32,
    since: Instant,
    waker: Option<Waker>,
    state: WaiterState<C>,
}

enum WaiterState<C> {
    Queued,
    /// Owned here until it is fetched, so that a cancelled caller cannot lose it.
    Granted {
        leased: Leased<C>,
        since: Instant,
    },
    Failed(AcquireError),
}

/// The memory of failed opens, kept apart from the entries so that it costs no budget.
struct Failure {
    error: Arc<DriverError>,
    /// Whether the open was given up because there was no answer.
    has_hung: bool,
    pause: Duration,
    retry_at: Instant,
    /// Whether somebody has been asked to call `retry` when the pause is over.
    retry_is_owed: bool,
}

#[derive(Default)]
struct Totals {
    peak: u32,
    opened: u64,
    closed: u64,
    evicted: u64,
    open_failures: u64,
    answers: Answers,
    /// How often one of the counts beside the budget's was found wrong.
    miscounts: u64,
}

impl<C, S> Registry<C, S> {
    /// An empty registry.
    pub fn new(config: RegistryConfig, policy: Box<dyn EvictionPolicy>) -> Self {
        Self {
            budget: Budget::new(config.limit),
            config,
            by_target: HashMap::default(),
            workspaces: Slab::new(),
            conns: Slab::new(),
            next_serial: 0,
            idle_links: Links::default(),
            waiters: Slab::new(),
            waiter_links: Links::default(),
            fair: Fair::default(),
            costs: Costs::default(),
            terms: HashMap::new(),
            moments: BTreeSet::new(),
            overdue: BTreeSet::new(),
            lingering: Chain::default(),
            lingering_links: Links::default(),
            promised: None,
            next_open: 0,
            permits_taken: 0,
            slow_opens: 0,
            lost: Lost::default(),
            outage: None,
            slow_closes: 0,
            policy,
            failures: HashMap::new(),
            remembered: Remembered::default(),
            cut: HashMap::new(),
            broken_at: None,
            closed: false,
            totals: Totals::default(),
        }
    }

    /// A snapshot whose sums agree. Cost: O(1).
    pub fn stats(&self) -> ShareStats {
        let totals = &self.totals;
        ShareStats {
            limit: self.budget.limit(),
            connections: self.counts(),
            peak: totals.peak,
            waiting: self.waiting(),
            targets: u32_of(self.workspaces.len()),
            opened: totals.opened,
            closed: totals.closed,
            evicted: totals.evicted,
            open_failures: totals.open_failures,
            acquired: totals.answers.acquired,
            hits: totals.answers.hits,
            errors: totals.answers.errors,
            given_up: totals.answers.given_up,
            miscounts: totals.miscounts + self.budget.miscounts(),
        }
    }

    /// The connections of one target, by state; all zero for one that has none.
    pub fn target_counts(&self, target: &Target) -> Counts {
        self.counts_of(target, self.entry_of(target))
    }

    fn entry_of(&self, target: &Target) -> Option<&Workspace> {
        self.by_target.get(target).map(|ws| self.workspace(*ws))
    }

    fn counts_of(&self, target: &Target, entry: Option<&Workspace>) -> Counts {
        let lost = Counts { opening: self.lost.of(target), ..Counts::default() };
        let Some(ws) = entry else { return lost };
        let opening = ws.opens.under_way + lost.opening;
        Counts { in_use: ws.in_use, idle: ws.idle.len(), opening, closing: ws.closing }
    }

    /// Whether no connection of `target` is left in any state.
    pub fn is_drained(&self, target: &Target) -> bool {
        self.target_counts(target).total() == 0
    }

    /// Whether no connection at all is left in any state.
    pub fn is_empty(&self) -> bool {
        self.budget.counted() == 0
    }

    /// Whether `target`, or everything, is being closed.
    pub fn is_closing(&self, target: &Target) -> bool {
        self.closed || self.entry_of(target).is_some_and(|ws| ws.closers > 0)
    }

    /// Whether `close_all` has been called.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    fn counts(&self) -> Counts {
        Counts {
            in_use: self.budget.count(SlotState::InUse),
            idle: self.budget.count(SlotState::Idle),
            opening: self.budget.count(SlotState::Opening),
            closing: self.budget.count(SlotState::Closing),
        }
    }

    fn waiting(&self) -> u32 {
        u32_of(self.waiters.len())
    }

    /// All targets that have an entry now, for a pass in which some may lose it.
    fn all_workspaces(&self) -> Vec<u32> {
        self.workspaces.iter().map(|(ws, _)| u32_of(ws)).collect()
    }

    fn workspace(&self, ws: u32) -> &Workspace {
        &self.workspaces[ws as usize]
    }

    fn workspace_mut(&mut self, ws: u32) -> &mut Workspace {
        &mut self.workspaces[ws as usize]
    }

    /// Takes one from a count of `ws`.
    fn one_less(&mut self, ws: u32, which: fn(&mut Workspace) -> &mut u32) {
        take_one(which(&mut self.workspaces[ws as usize]), &mut self.totals.miscounts);
    }

    /// The entry of `target`, made if there is none.
    fn entry(&mut self, target: &Target) -> u32 {
        if let Some(ws) = self.by_target.get(target) {
            return *ws;
        }
        let terms = self.terms_of(target);
        let exists = !self.config.look_up || *target == Target::System;
        let ws = u32_of(self.workspaces.insert(Workspace {
            target: target.clone(),
            in_use: 0,
            opens: Opens::default(),
            closing: 0,
            idle: Chain::default(),
            waiters: Chain::default(),
            unclaimed: 0,
            closers: 0,
            answers: self.remembered.take(target),
            account: self.fair.account(target, terms.weight),
            ceiling: terms.ceiling(self.config.per_target),
            ceiling_allowed: terms.ceiling(self.config.per_target),
            existence: if exists { Existence::Known } else { Existence::Unknown },
            patience_ends: None,
            patient_until: None,
            went_idle_at: None,
            comes_back: false,
            broken_at: None,
        }));
        self.by_target.insert(target.clone(), ws);
        ws
    }
}

impl Workspace {
    /// What counts against the ceiling of one target.
    fn counted(&self) -> u32 {
        self.in_use + self.idle.len() + self.opens.under_way + self.closing
    }

    fn set_ceiling(&mut self, ceiling: u32) {
        self.ceiling = ceiling;
        self.ceiling_allowed = self.counted().max(ceiling);
    }

    fn is_spent(&self) -> bool {
        self.counted() == 0 && self.waiters.is_empty() && self.unclaimed == 0 && self.closers == 0
    }
}

/// Slab indices stay far below 2^32: each stands for a connection, a waiter or a workspace in memory.
#[allow(clippy::cast_possible_truncation)]
fn u32_of(index: usize) -> u32 {
    index as u32
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::lru::Lru;

    #[test]
    fn s1_miscounts_of_the_budget_and_of_other_counts_are_shown_in_one_number() {
        let mut registry = Registry::<u32>::new(RegistryConfig::new(4, 4), Box::new(Lru::default()));
        registry.totals.miscounts = 2;
        // A slot of another budget is one too many here.
        let slot = Budget::new(1).reserve().unwrap();
        let freed = catch_unwind(AssertUnwindSafe(|| registry.budget.free(slot)));
        assert_eq!((freed.is_err(), registry.stats().miscounts), (cfg!(debug_assertions), 3));
    }
}
