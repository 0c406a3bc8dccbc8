//! The registry's laws, one clause a test, without a runtime. `World` owns what a shell would own: the
//! debts, and the moment that every transition is told.
// A test may end with debts unpaid.
#![allow(unused_must_use)]
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use pool_core::{
    Acquire, AcquireError, Claim, CloseReason, CloseWork, DriverError, DriverErrorKind, Effects, Leased, Lru,
    OpenWork, Phase, Registry, RegistryConfig, Stage, Target, Ticket, WorkspaceId,
};

type Conn = u32;

struct World {
    registry: Registry<Conn>,
    now: Instant,
    opens: Vec<OpenWork>,
    closes: Vec<CloseWork<Conn>>,
    made: u32,
    belongs: HashMap<Conn, Target>,
}

fn target(name: &str) -> Target {
    Target::Workspace(WorkspaceId::new(name).unwrap())
}

fn refused() -> Arc<DriverError> {
    Arc::new(DriverError::new(Phase::Connect, DriverErrorKind::Unreachable, "db:5432/x"))
}

impl World {
    fn new(limit: u32, per_target: u32) -> Self {
        Self::with(RegistryConfig::new(limit, per_target))
    }

    fn with(config: RegistryConfig) -> Self {
        Self {
            registry: Registry::new(config, Box::new(Lru::default())),
            now: Instant::now(),
            opens: Vec::new(),
            closes: Vec::new(),
            made: 0,
            belongs: HashMap::new(),
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn take(&mut self, effects: Effects<Conn>) {
        self.opens.extend(effects.opens);
        self.closes.extend(effects.closes);
        effects.wakes.wake();
        self.registry.check(self.now).unwrap();
    }

    fn ask(&mut self, name: &str) -> Ticket {
        match self.registry.acquire(&target(name), self.now) {
            Acquire::Queued(ticket, effects) => {
                self.take(effects);
                ticket
            }
            other => panic!("{name} was not queued: {other:?}"),
        }
    }

    fn hit(&mut self, name: &str) -> Leased<Conn> {
        match self.registry.acquire(&target(name), self.now) {
            Acquire::Leased(leased) => leased,
            other => panic!("{name} was not served at once: {other:?}"),
        }
    }

    fn refusal(&mut self, name: &str) -> AcquireError {
        match self.registry.acquire(&target(name), self.now) {
            Acquire::Refused(error) => error,
            other => panic!("{name} was not refused: {other:?}"),
        }
    }

    fn claim(&mut self, ticket: Ticket) -> Claim<Conn> {
        self.registry.claim(ticket, &mut None)
    }

    fn served(&mut self, ticket: Ticket) -> Leased<Conn> {
        match self.claim(ticket) {
            Claim::Leased(leased) => leased,
            other => panic!("not served: {other:?}"),
        }
    }

    fn waits(&mut self, ticket: Ticket) -> Ticket {
        match self.claim(ticket) {
            Claim::Waiting(ticket) => ticket,
            other => panic!("not waiting: {other:?}"),
        }
    }

    /// Opens what the registry wants opened; returns for whom.
    fn open_all(&mut self) -> Vec<Target> {
        let mut opened = Vec::new();
        while !self.opens.is_empty() {
            opened.push(self.open_first());
        }
        opened
    }

    fn open_first(&mut self) -> Target {
        let work = self.opens.remove(0);
        let whom = work.target().clone();
        self.made += 1;
        self.belongs.insert(self.made, whom.clone());
        let (_, effects) = self.registry.opened(work, self.made, None, self.now);
        self.take(effects);
        whom
    }

    fn fail_first(&mut self) {
        let work = self.opens.remove(0);
        let effects = self.registry.open_failed(work, refused(), self.now);
        self.take(effects);
    }

    fn close_all_owed(&mut self) -> Vec<(Conn, CloseReason)> {
        let mut closed = Vec::new();
        while let Some(work) = self.closes.pop() {
            let reason = work.reason();
            let (conn, debt) = work.split();
            closed.push((conn, reason));
            let effects = self.registry.closed(debt, self.now);
            self.take(effects);
        }
        closed
    }

    fn release(&mut self, leased: Leased<Conn>) {
        let effects = self.registry.release(leased.debt, leased.conn, self.now);
        self.take(effects);
    }

    /// A lease on `name`, opened if need be; there must be room.
    fn lease(&mut self, name: &str) -> Leased<Conn> {
        let ticket = self.ask(name);
        self.open_all();
        self.served(ticket)
    }

    fn idle(&mut self, name: &str) -> Conn {
        let leased = self.lease(name);
        let conn = leased.conn;
        self.release(leased);
        conn
    }
}

#[test]
fn b1_a_spent_budget_opens_nothing_more() {
    let mut world = World::new(2, 2);
    let held = [world.lease("a"), world.lease("b")];
    let ticket = world.ask("c");
    assert!(world.opens.is_empty() && world.closes.is_empty());
    let [first, _second] = held;
    world.release(first);
    assert!(world.opens.is_empty(), "the evicted connection still counts");
    world.close_all_owed();
    assert_eq!(world.open_all(), [target("c")]);
    world.served(ticket);
    assert_eq!(world.registry.stats().peak, 2);
}

#[test]
fn b2_a_workspace_at_its_ceiling_waits_for_its_own_connections() {
    let mut world = World::new(10, 1);
    let held = world.lease("a");
    let ticket = world.ask("a");
    assert!(world.opens.is_empty());
    world.release(held);
    world.served(ticket);
}

#[test]
fn e1_a_connection_in_use_is_never_chosen() {
    let mut world = World::new(1, 1);
    let held = world.lease("a");
    let _waiting = world.ask("b");
    assert!(world.closes.is_empty());
    world.release(held);
    assert_eq!(world.closes.len(), 1);
}

#[test]
fn e2_the_least_recently_used_idle_connection_is_closed() {
    let mut world = World::new(2, 2);
    let a = world.idle("a");
    let b = world.idle("b");
    let again = world.hit("a");
    world.release(again);
    let _c = world.ask("c");
    assert_eq!(world.close_all_owed(), [(b, CloseReason::Evicted)]);
    assert_ne!(a, b);
}

#[test]
fn e3_nothing_is_evicted_while_the_budget_has_room() {
    let mut world = World::new(3, 3);
    world.idle("a");
    let _b = world.ask("b");
    assert!(world.closes.is_empty());
    assert_eq!(world.opens.len(), 1);
}

#[test]
fn e3_a_queue_of_misses_does_not_empty_the_idle_set() {
    let mut config = RegistryConfig::new(8, 1);
    config.opens = 2;
    let mut world = World::with(config);
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        world.idle(name);
    }
    let _tickets: Vec<_> = (0..20).map(|i| world.ask(&format!("miss{i}"))).collect();
    assert_eq!(world.closes.len(), 2);
}

#[test]
fn e4_a_workspace_without_connections_has_no_entry() {
    let mut world = World::new(2, 2);
    world.idle("a");
    world.pass(Duration::from_hours(1));
    let effects = world.registry.expire(world.now);
    world.take(effects);
    world.close_all_owed();
    assert_eq!(world.registry.stats().targets, 0);
    assert!(world.registry.is_empty());
}

#[test]
fn w1_waiters_of_a_workspace_are_served_first_come_first_served() {
    let mut world = World::new(1, 1);
    let mut held = world.lease("a");
    let tickets: Vec<_> = (0..5).map(|_| world.ask("a")).collect();
    for ticket in tickets {
        world.release(held);
        held = world.served(ticket);
    }
}

#[test]
fn w2_a_flood_yields_to_another_workspace_when_its_turn_has_come() {
    let mut world = World::new(1, 1);
    let mut held = world.lease("loud");
    let mut flood: Vec<_> = (0..10).map(|_| world.ask("loud")).collect();
    let quiet = world.ask("quiet");
    // Within the turn, the warm connection goes on serving its own workspace.
    world.release(held);
    held = world.served(flood.remove(0));
    assert!(world.closes.is_empty());
    // The quiet one's eldest waiter has now waited the turn: the connection is closed for it.
    world.pass(Duration::from_millis(3));
    world.release(held);
    assert_eq!(world.close_all_owed()[0].1, CloseReason::Yielded);
    assert_eq!(world.open_all(), [target("quiet")]);
    let quiet = world.served(quiet);
    // And the flood gets its turn back.
    world.release(quiet);
    world.close_all_owed();
    assert_eq!(world.open_all(), [target("loud")]);
    world.served(flood.remove(0));
}

#[test]
fn w2_waiting_workspaces_open_in_turn() {
    let mut world = World::new(1, 1);
    let mut held = world.lease("a");
    let tickets: Vec<_> = ["b", "c", "d"].iter().map(|name| world.ask(name)).collect();
    for (ticket, name) in tickets.into_iter().zip(["b", "c", "d"]) {
        world.release(held);
        world.close_all_owed();
        assert_eq!(world.open_all(), [target(name)]);
        held = world.served(ticket);
    }
}

#[test]
fn w3_an_answered_waiter_is_woken() {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let mut world = World::new(1, 1);
    let ticket = world.ask("a");
    let waker = Waker::from(Arc::clone(&count));
    let Claim::Waiting(ticket) = world.registry.claim(ticket, &mut Some(waker)) else {
        panic!("served early")
    };
    world.open_all();
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    world.served(ticket);
}

#[test]
fn w4_a_cancelled_waiter_leaves_no_trace() {
    let mut world = World::new(1, 1);
    let held = world.lease("a");
    let before = world.registry.view(world.now);
    let ticket = world.ask("b");
    let gave_up = world.registry.give_up(ticket, world.now);
    assert_eq!((gave_up.waiting_for, gave_up.pressure.in_use), (Stage::Budget, 1));
    world.take(gave_up.effects);
    assert_eq!(world.registry.view(world.now), before);
    world.release(held);
    assert!(world.closes.is_empty(), "nobody wants the slot any more");
}

#[test]
fn w4_a_grant_that_meets_a_cancelled_waiter_goes_to_the_next() {
    let mut world = World::new(1, 1);
    let held = world.lease("a");
    let (first, second) = (world.ask("a"), world.ask("a"));
    world.release(held);
    let gave_up = world.registry.give_up(first, world.now);
    world.take(gave_up.effects);
    world.served(second);
}

#[test]
fn o1_a_hung_open_neither_blocks_other_opens_nor_keeps_its_permit() {
    let mut config = RegistryConfig::new(4, 4);
    config.opens = 1;
    let mut world = World::with(config);
    let _hung = world.ask("hung");
    let mut hung = world.opens.remove(0);
    let other = world.ask("other");
    assert!(world.opens.is_empty(), "one open at a time here");
    let effects = world.registry.open_is_slow(&mut hung);
    world.take(effects);
    assert_eq!(world.open_all(), [target("other")]);
    world.served(other);
    let effects = world.registry.open_failed(hung, refused(), world.now);
    world.take(effects);
}

#[test]
fn o2_an_open_outlives_the_caller_that_asked_for_it() {
    let mut world = World::new(1, 1);
    let ticket = world.ask("a");
    let gave_up = world.registry.give_up(ticket, world.now);
    assert_eq!(gave_up.waiting_for, Stage::Opening);
    world.take(gave_up.effects);
    world.open_all();
    let conn = world.hit("a").conn;
    assert_eq!(conn, 1);
}

#[test]
fn o3_a_failed_open_tells_the_waiters_and_gives_the_slot_back() {
    let mut world = World::new(1, 1);
    let (first, second) = (world.ask("a"), world.ask("a"));
    let other = world.ask("b");
    world.fail_first();
    for ticket in [first, second] {
        let Claim::Failed(error) = world.claim(ticket) else { panic!("not told") };
        assert!(matches!(error, AcquireError::OpenFailed { retryable: true, .. }), "{error}");
        assert!(error.to_string().contains("connecting to db:5432/x failed"), "{error}");
    }
    assert_eq!(world.open_all(), [target("b")]);
    world.served(other);
}

#[test]
fn o3_a_target_that_failed_backs_off_longer_each_time() {
    let mut world = World::new(1, 1);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let _told = world.ask("a");
        world.fail_first();
        let AcquireError::OpenFailed { retry_in, .. } = world.refusal("a") else { panic!("not refused") };
        pauses.push(retry_in.as_millis());
        world.pass(retry_in);
    }
    assert_eq!(pauses[..4], [50, 100, 200, 400]);
    assert_eq!(pauses[9], 5_000);
}

#[test]
fn o3_waiters_that_a_live_connection_can_serve_outlast_a_failed_open() {
    let mut world = World::new(4, 4);
    let held = world.lease("a");
    let ticket = world.ask("a");
    world.fail_first();
    let ticket = world.waits(ticket);
    // After the pause another open is tried.
    world.pass(Duration::from_millis(50));
    let effects = world.registry.retry(&target("a"), world.now);
    world.take(effects);
    assert_eq!(world.opens.len(), 1);
    world.release(held);
    world.served(ticket);
}

#[test]
fn o4_a_storm_for_a_missing_database_costs_one_open() {
    let mut world = World::new(8, 8);
    let tickets: Vec<_> = (0..100).map(|_| world.ask("missing")).collect();
    assert_eq!(world.opens.len(), 1);
    world.fail_first();
    for ticket in tickets {
        assert!(matches!(world.claim(ticket), Claim::Failed(_)));
    }
    for _ in 0..100 {
        world.refusal("missing");
    }
    assert!(world.opens.is_empty());
    assert_eq!(world.registry.stats().open_failures, 1);
}

#[test]
fn o4_a_database_that_was_just_created_is_opened_at_once() {
    let mut world = World::new(8, 8);
    let _told = world.ask("new");
    world.fail_first();
    let effects = world.registry.forgive(&target("new"), world.now);
    world.take(effects);
    world.lease("new");
}

#[test]
fn l3_a_broken_connection_is_replaced_at_the_front_of_the_queue() {
    let mut world = World::new(1, 1);
    world.idle("a");
    let broken = world.hit("a");
    let behind = world.ask("a");
    let (again, effects) = world.registry.replace(broken.debt, broken.conn, world.now);
    world.take(effects);
    let Acquire::Queued(ticket, effects) = again else { panic!("nothing else is idle") };
    world.take(effects);
    world.close_all_owed();
    world.open_all();
    assert_eq!(world.served(ticket).conn, 2);
    world.waits(behind);
}

#[test]
fn l3_connections_that_were_idle_when_another_broke_are_checked() {
    let mut world = World::new(4, 4);
    world.idle("a");
    assert!(!world.hit("a").check_first, "used a moment ago");
    let (idle, broken) = (world.lease("b"), world.lease("c"));
    world.release(idle);
    let effects = world.registry.discard(broken.debt, broken.conn, world.now);
    world.take(effects);
    assert!(world.hit("b").check_first);
}

#[test]
fn l3_a_connection_idle_for_long_is_checked() {
    let mut world = World::new(1, 1);
    world.idle("a");
    world.pass(Duration::from_millis(501));
    assert!(world.hit("a").check_first);
}

#[test]
fn c1_a_closed_registry_refuses_work_fails_waiters_and_closes_what_comes_back() {
    let mut world = World::new(1, 1);
    let held = world.lease("a");
    let ticket = world.ask("b");
    let effects = world.registry.close_all(world.now);
    assert!(!effects.drained, "a lease is out");
    world.take(effects);
    assert!(matches!(world.claim(ticket), Claim::Failed(AcquireError::Closed)));
    assert!(matches!(world.refusal("a"), AcquireError::Closed));
    world.release(held);
    assert_eq!(world.close_all_owed()[0].1, CloseReason::PoolClosed);
    assert!(world.registry.is_empty());
}

#[test]
fn c3_closing_twice_changes_nothing() {
    let mut world = World::new(1, 1);
    world.idle("a");
    for _ in 0..2 {
        let effects = world.registry.close_all(world.now);
        world.take(effects);
    }
    assert_eq!(world.close_all_owed().len(), 1);
}

#[test]
fn c1_a_workspace_being_closed_refuses_work_until_it_is_done() {
    let mut world = World::new(2, 2);
    let held = world.lease("a");
    let effects = world.registry.begin_close(&target("a"), world.now);
    world.take(effects);
    assert!(matches!(world.refusal("a"), AcquireError::WorkspaceClosing { .. }));
    world.release(held);
    world.close_all_owed();
    assert!(world.registry.is_drained(&target("a")));
    let effects = world.registry.end_close(&target("a"), world.now);
    world.take(effects);
    world.lease("a");
}

#[test]
fn a_connection_past_its_lifetime_is_closed_on_return() {
    let mut world = World::new(1, 1);
    let ticket = world.ask("a");
    let work = world.opens.remove(0);
    let retire_at = Some(world.now + Duration::from_mins(1));
    let (_, effects) = world.registry.opened(work, 7, retire_at, world.now);
    world.take(effects);
    let leased = world.served(ticket);
    world.pass(Duration::from_mins(1));
    world.release(leased);
    assert_eq!(world.close_all_owed(), [(7, CloseReason::Lifetime)]);
}

#[test]
fn s1_s2_every_snapshot_adds_up() {
    let mut world = World::new(3, 2);
    let held = world.lease("a");
    world.idle("b");
    let _opening = world.ask("c");
    let stats = world.registry.stats();
    let counts = stats.connections;
    assert_eq!((counts.in_use, counts.idle, counts.opening, counts.closing), (1, 1, 1, 0));
    assert_eq!(stats.opened, stats.closed + u64::from(counts.in_use + counts.idle + counts.closing));
    world.release(held);
}
