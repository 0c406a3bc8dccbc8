//! Each law is seen to be broken: a registry that keeps them all is spoilt in one place, and `check` names the law.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rstest::rstest;

use super::super::{Acquire, Claim, Failure, RegistryConfig, Terms, Waiter};
use super::*;
use crate::error::{DriverError, DriverErrorKind, Phase};
use crate::ids::WorkspaceId;
use crate::lru::Lru;
use crate::token::{CloseDebt, Effects, Leased, LostOpen, OpenWork, Ticket};

const MS: Duration = Duration::from_millis(1);
const QUANTUM: Duration = Duration::from_millis(3);
/// What opens and closes take, so that a switch takes 5 ms.
const OPEN: Duration = Duration::from_millis(4);
const CLOSE: Duration = Duration::from_millis(1);
const SWITCH: Duration = Duration::from_millis(5);

fn target(name: &str) -> Target {
    Target::Workspace(WorkspaceId::new(name).unwrap())
}

fn refused() -> Arc<DriverError> {
    Arc::new(DriverError::new(Phase::Connect, DriverErrorKind::Unreachable, "db:5432/x"))
}

/// A registry, and what a shell would own. The registry goes first, so that debts may be left unpaid.
struct World {
    registry: Registry<u32>,
    now: Instant,
    opens: Vec<OpenWork>,
    closes: Vec<CloseDebt>,
    lost: Vec<LostOpen>,
    leases: Vec<Leased<u32>>,
    tickets: Vec<Ticket>,
}

impl World {
    fn new(limit: u32, per_target: u32) -> Self {
        Self::with(RegistryConfig { quantum: Some(QUANTUM), ..RegistryConfig::new(limit, per_target) })
    }

    fn with(config: RegistryConfig) -> Self {
        Self {
            registry: Registry::new(config, Box::new(Lru::default())),
            now: Instant::now(),
            opens: Vec::new(),
            closes: Vec::new(),
            lost: Vec::new(),
            leases: Vec::new(),
            tickets: Vec::new(),
        }
    }

    fn take(&mut self, effects: Effects<u32>) {
        self.opens.extend(effects.opens);
        self.closes.extend(effects.closes.into_iter().map(|work| work.split().1));
        effects.wakes.wake();
        self.registry.check(self.now).unwrap();
    }

    fn asks(&mut self, name: &str) {
        let Acquire::Queued(ticket, effects) = self.registry.acquire(&target(name), self.now) else {
            panic!("{name} was not queued")
        };
        self.tickets.push(ticket);
        self.take(effects);
    }

    fn opens(&mut self) {
        self.now += OPEN;
        let (_, effects) = self.registry.opened(self.opens.remove(0), 7, (), None, self.now);
        self.take(effects);
    }

    fn leases(&mut self, name: &str) {
        self.asks(name);
        self.opens();
        self.claims();
    }

    fn claims(&mut self) {
        let ticket = self.tickets.pop().unwrap();
        let Claim::Leased(leased) = self.registry.claim(ticket, &mut None, self.now) else {
            panic!("not served")
        };
        self.leases.push(leased);
    }

    /// The last lease comes back.
    fn releases(&mut self) {
        let Leased { debt, conn, .. } = self.leases.pop().unwrap();
        let effects = self.registry.release(debt, conn, self.now);
        self.take(effects);
    }

    fn discards(&mut self) {
        let Leased { debt, conn, .. } = self.leases.pop().unwrap();
        let effects = self.registry.discard(debt, conn, self.now);
        self.take(effects);
    }

    fn loses(&mut self) {
        let (lost, effects) = self.registry.open_given_up(self.opens.remove(0), refused(), self.now);
        self.lost.push(lost);
        self.take(effects);
    }

    fn closes(&mut self) {
        self.now += CLOSE;
        let effects = self.registry.closed(self.closes.remove(0), self.now);
        self.take(effects);
    }

    fn begins_to_close(&mut self, name: &str) {
        let effects = self.registry.begin_close(&target(name), self.now);
        self.take(effects);
    }

    fn workspace(&mut self, name: &str) -> &mut Workspace {
        let ws = self.registry.by_target[&target(name)];
        self.registry.workspace_mut(ws)
    }

    /// A waiter that no transition has seen.
    fn smuggles_in(&mut self, name: &str) {
        let registry = &mut self.registry;
        let ws = registry.by_target[&target(name)];
        let waiter = Waiter { workspace: ws, since: self.now, waker: None, state: WaiterState::Queued };
        let id = u32_of(registry.waiters.insert(waiter));
        registry.workspaces[ws as usize].waiters.push_back(&mut registry.waiter_links, id);
    }

    /// A failure whose pause ends `pause` after the start of the world.
    fn fails(&mut self, name: &str, pause: Duration, retry_is_owed: bool) {
        let failure =
            Failure { error: refused(), has_hung: false, pause, retry_at: self.now + pause, retry_is_owed };
        self.registry.failures.insert(target(name), failure);
    }

    fn view(&self, name: &str) -> WorkspaceView {
        let view = self.registry.view(self.now);
        view.workspaces.into_iter().find(|ws| ws.target == target(name)).unwrap()
    }
}

/// `a` has two connections in use and an idle one, `b` is closing one and opening one; one open of `c` is lost.
fn busy() -> World {
    let mut world = World::new(6, 3);
    for _ in 0..3 {
        world.leases("a");
    }
    world.releases();
    world.leases("b");
    world.discards();
    world.asks("b");
    world.asks("c");
    let open = world.opens.pop().unwrap();
    world.opens.insert(0, open);
    world.loses();
    world
}

/// `a` has its only slot in use, and `b` stands ready for it.
fn spent() -> World {
    let mut world = World::new(1, 1);
    world.leases("a");
    world.asks("b");
    world
}

/// `a` has a connection in use and may have another one.
fn roomy() -> World {
    let mut world = World::new(4, 2);
    world.leases("a");
    world
}

/// `b` stands ready for the only slot, and the idle connection of `a` is kept, for `a` came back soon the last time.
fn lingering() -> World {
    let mut world = World::new(1, 1);
    world.leases("a");
    world.asks("b");
    world.releases();
    world.asks("a");
    world.closes();
    world.opens();
    world.tickets.swap(0, 1);
    world.claims();
    world.releases();
    world.closes();
    world.opens();
    world.claims();
    world.asks("b");
    world.releases();
    assert_eq!((world.view("a").lingering, world.closes.len()), (1, 0));
    world
}

/// `a` has a connection in use and a waiter that waits for it, rather than have the one of `b` closed.
fn patient() -> World {
    let mut world = World::new(2, 2);
    world.leases("b");
    world.releases();
    world.leases("a");
    world.asks("a");
    assert!(world.view("a").is_patient);
    world
}

/// `a` is being closed.
fn closing() -> World {
    let mut world = World::new(2, 1);
    world.begins_to_close("a");
    world
}

/// `a` is being closed and opening.
fn closing_and_opening() -> World {
    let mut world = World::new(2, 1);
    world.asks("a");
    world.begins_to_close("a");
    world
}

/// `a` is being closed and has a connection in use.
fn closing_and_in_use() -> World {
    let mut world = World::new(2, 1);
    world.leases("a");
    world.begins_to_close("a");
    world
}

/// `a` is being closed, and so is its only connection.
fn closing_and_on_its_way_out() -> World {
    let mut world = closing_and_in_use();
    world.discards();
    world
}

/// A change that no transition makes.
type Spoil = fn(&mut World);

#[rstest]
#[case::an_entry_counts_too_much(busy, |w: &mut World| w.workspace("a").in_use += 1, "B1", "7 of 6 connections")]
#[case::a_workspace_is_above_its_ceiling(
    roomy, |w: &mut World| w.workspace("a").in_use += 2, "B2", r#"workspace "a" has 3 of 2 connections"#)]
#[case::in_use(roomy, |w: &mut World| w.workspace("a").in_use += 1,
    "S1", "the budget says [1, 0, 0, 0], the entries [2, 0, 0, 0]")]
#[case::opening(roomy, |w: &mut World| w.workspace("a").opens.under_way += 1,
    "S1", "the budget says [1, 0, 0, 0], the entries [1, 0, 1, 0]")]
#[case::closing(roomy, |w: &mut World| w.workspace("a").closing += 1,
    "S1", "the budget says [1, 0, 0, 0], the entries [1, 0, 0, 1]")]
#[case::idle(roomy, |w: &mut World| {
        let Registry { workspaces, idle_links, .. } = &mut w.registry;
        workspaces[0].idle.push_back(idle_links, 5);
    }, "S1", "the budget says [1, 0, 0, 0], the entries [1, 1, 0, 0]")]
#[case::a_connection_is_not_what_is_counted(roomy, |w: &mut World| {
        let conn = &mut w.registry.conns[0];
        conn.state = ConnState::Idle { conn: 7, since: w.now };
    }, "S1", "1 entries, 1 of them idle, but 1 live")]
#[case::a_connection_is_missing(
    busy, |w: &mut World| std::mem::forget(w.registry.conns.remove(0)), "S1", "2 entries, 1 of them idle, but 3 live")]
#[case::a_close_was_not_counted(
    busy, |w: &mut World| w.registry.totals.closed += 1, "S2", "opened 4 closed 1 alive 4")]
#[case::an_open_was_not_counted(
    busy, |w: &mut World| w.registry.totals.opened -= 1, "S2", "opened 3 closed 0 alive 4")]
#[case::an_idle_connection_and_a_waiter(
    busy, |w: &mut World| w.smuggles_in("a"), "W3", r#"workspace "a" has an idle connection and a waiter"#)]
#[case::nobody_put_it_into_a_queue(
    roomy, |w: &mut World| w.smuggles_in("a"), "W3", r#"workspace "a" is eligible for a slot but stands in no queue"#)]
#[case::a_pause_is_over_and_no_retry_to_come(roomy, |w: &mut World| {
        w.fails("a", Duration::ZERO, false);
        w.smuggles_in("a");
    }, "W3", r#"workspace "a" is eligible for a slot but stands in no queue"#)]
#[case::a_pause_goes_on_and_no_retry_is_to_come(roomy, |w: &mut World| {
        w.fails("a", MS, false);
        w.smuggles_in("a");
    }, "W3", r#"workspace "a" waits for a pause that nobody watches"#)]
#[case::a_slot_has_become_free_unseen(
    spent, |w: &mut World| w.registry.budget.set_limit(2), "W3", r#"a free slot, and workspace "b" waits"#)]
#[case::something_is_idle_and_nobody_closes_it(lingering, |w: &mut World| {
        let Registry { lingering, lingering_links, .. } = &mut w.registry;
        lingering.remove(lingering_links, 0);
    }, "W3", "1 wait, 0 slots are coming, and something is idle")]
#[case::no_source(closing, |w: &mut World| w.smuggles_in("a"), "O6", r#"1 callers of workspace "a" wait for nothing"#)]
#[case::no_source_though_a_ceiling_of_nothing_is_reached(closing, |w: &mut World| {
        w.workspace("a").ceiling = 0;
        w.smuggles_in("a");
    }, "O6", r#"1 callers of workspace "a" wait for nothing"#)]
#[case::no_source_though_a_connection_goes_that_nobody_needs(closing_and_on_its_way_out, |w: &mut World| {
        w.workspace("a").ceiling = 2;
        w.smuggles_in("a");
    }, "O6", r#"1 callers of workspace "a" wait for nothing"#)]
#[case::patience_is_promised_no_end(
    patient, |w: &mut World| w.registry.promised = None, "O6", r#"workspace "a" is patient for ever"#)]
#[case::patience_ends_before_what_is_promised(
    patient, |w: &mut World| w.registry.promised = Some(w.now + 2 * SWITCH), "O6", r#"workspace "a" is patient for ever"#)]
#[case::what_is_kept_is_promised_no_end(
    lingering, |w: &mut World| w.registry.promised = None, "O6", "a connection is kept for ever")]
#[case::an_entry_with_nothing(roomy, |w: &mut World| {
        w.registry.entry(&target("x"));
    }, "E4", r#"workspace "x" has an entry and nothing else"#)]
#[case::a_waiter_in_no_queue(spent, |w: &mut World| {
        let waiter = Waiter { workspace: 0, since: w.now, waker: None, state: WaiterState::Queued };
        w.registry.waiters.insert(waiter);
    }, "W4", "2 wait, 1 stand in queues")]
#[case::an_answer_too_many(spent, |w: &mut World| w.workspace("a").unclaimed += 1, "W4", "0 answers, 1 counted")]
fn a_registry_that_breaks_a_law_is_told_which(
    #[case] world: fn() -> World,
    #[case] spoil: Spoil,
    #[case] law: &'static str,
    #[case] what: &str,
) {
    let mut world = world();
    world.registry.check(world.now).unwrap();
    spoil(&mut world);
    assert_eq!(world.registry.check(world.now), Err(Broken { law, what: what.to_owned() }));
}

#[test]
fn s3_an_answer_that_is_counted_in_all_and_for_no_target_is_told() {
    let mut world = busy();
    world.registry.totals.answers.given_up += 1;
    assert_eq!(world.registry.check(world.now).unwrap_err().law, "S3");
}

/// What looks like a broken law at first sight, and is none.
#[rstest]
#[case::waiters_and_a_lost_open(busy, |_: &mut World| {})]
#[case::a_retry_is_to_come(roomy, |w: &mut World| {
    w.fails("a", MS, true);
    w.smuggles_in("a");
})]
#[case::a_retry_is_to_come_for_a_pause_that_has_just_ended(roomy, |w: &mut World| {
    w.fails("a", Duration::ZERO, true);
    w.smuggles_in("a");
})]
#[case::a_pause_has_ended_for_one_that_has_all_it_may_have(roomy, |w: &mut World| {
    w.leases("a");
    w.fails("a", Duration::ZERO, false);
    w.smuggles_in("a");
})]
#[case::a_slot_is_free_and_no_permit(spent, |w: &mut World| {
    w.registry.budget.set_limit(2);
    w.registry.permits_taken = w.registry.config.opens;
})]
#[case::everything_idle_is_kept(lingering, |_: &mut World| {})]
#[case::one_in_use_may_come_back(closing_and_in_use, |w: &mut World| w.smuggles_in("a"))]
#[case::an_open_is_under_way(closing_and_opening, |w: &mut World| w.smuggles_in("a"))]
#[case::the_world_has_been_asked(closing, |w: &mut World| {
    w.smuggles_in("a");
    w.workspace("a").existence = Existence::Asked;
})]
#[case::a_retry_is_to_come_for_one_that_has_nothing(closing, |w: &mut World| {
    w.smuggles_in("a");
    w.fails("a", MS, true);
})]
#[case::its_only_connection_is_on_its_way_out(closing_and_on_its_way_out, |w: &mut World| w.smuggles_in("a"))]
#[case::patience_ends_after_what_is_promised(patient, |w: &mut World| w.registry.promised = Some(w.now))]
fn a_registry_that_breaks_no_law_is_not_told_so(#[case] world: fn() -> World, #[case] change: Spoil) {
    let mut world = world();
    change(&mut world);
    world.registry.check(world.now).unwrap();
}

#[test]
fn w4_answers_and_waiters_are_counted_apart() {
    let mut world = World::new(1, 1);
    world.leases("a");
    world.asks("a");
    world.asks("a");
    world.releases();
    let view = world.view("a");
    assert_eq!((view.waiting, view.unclaimed), (1, 1));
    world.workspace("a").unclaimed += 1;
    let broken = Broken { law: "W4", what: "1 answers, 2 counted".to_owned() };
    assert_eq!(world.registry.check(world.now), Err(broken));
}

#[test]
fn a_view_shows_what_each_target_has() {
    let world = busy();
    let (a, b) = (world.view("a"), world.view("b"));
    assert_eq!(
        (a.in_use, a.idle_nanos.as_slice(), a.opening, a.closing),
        (2, [OPEN.as_nanos()].as_slice(), 0, 0)
    );
    assert_eq!((b.in_use, b.idle_nanos.as_slice(), b.opening, b.closing), (0, [].as_slice(), 1, 1));
    assert_eq!((a.lingering, a.new, b.new), (0, (2, 0), (0, 0)));
    assert_eq!((b.waiting, b.unclaimed, b.closers, b.has_succeeded), (1, 0, 0, true));
    let view = world.registry.view(world.now);
    assert_eq!(view.lost, (vec![(target("c"), 1)], 1, false));
    assert_eq!((view.opens, view.slow_closes, view.closed, view.outage), ((1, 0), 0, false, false));
}

#[test]
fn a_view_tells_a_lease_that_is_to_be_closed_and_one_that_has_served_from_the_moment_on() {
    let mut world = World::new(4, 2);
    world.leases("a");
    world.leases("b");
    let (id, start) = (world.leases[0].debt.id, world.now);
    world.registry.retire_on_return(id, crate::events::CloseReason::WorkspaceClosed, start);
    let seen = |world: &World, now| {
        let views = world.registry.view(now).workspaces;
        views.into_iter().map(|ws| (ws.retiring, ws.matured)).collect::<Vec<_>>()
    };
    // The connection of `a` was opened 4 ms ago, and that of `b` now.
    let before = start.checked_sub(OPEN).unwrap() + QUANTUM;
    assert_eq!(seen(&world, before.checked_sub(MS).unwrap()), [(0, 0), (0, 0)]);
    assert_eq!(seen(&world, before), [(0, 1), (0, 0)]);
    assert_eq!(seen(&world, start), [(1, 1), (0, 0)]);
    assert_eq!(seen(&world, start + QUANTUM), [(1, 1), (0, 1)]);
    assert_eq!(world.registry.in_use(Some(&target("a"))), [id]);
    assert_eq!(world.registry.in_use(None).len(), 2);
}

#[test]
fn a_view_tells_how_long_connections_have_been_idle_and_which_are_kept() {
    let mut world = lingering();
    world.now += MS;
    let view = world.view("a");
    assert_eq!((view.idle_nanos, view.lingering), (vec![], 1));
    let mut world = busy();
    world.now += MS;
    assert_eq!(world.view("a").idle_nanos, [(OPEN + MS).as_nanos()]);
}

#[test]
fn a_view_tells_opens_that_may_have_begun_before_the_database_was_created() {
    let mut world = World::new(4, 4);
    world.leases("a");
    world.asks("a");
    world.asks("a");
    assert_eq!((world.view("a").opening, world.view("a").outdated), (2, 0));
    let effects = world.registry.clear_failure(&target("a"), world.now);
    world.take(effects);
    assert_eq!((world.view("a").opening, world.view("a").outdated), (2, 2));
}

#[test]
fn a_view_tells_how_many_turns_a_target_is_ahead_of_the_one_that_has_had_least() {
    let mut world = World::new(2, 1);
    world.leases("a");
    world.leases("b");
    world.asks("c");
    world.now += 100 * MS;
    let (a, b) = (world.registry.by_target[&target("a")], world.registry.by_target[&target("b")]);
    world.registry.charge(b, world.now);
    // A turn is a quantum of 3 ms and a switch of 5 ms.
    let turns = |world: &World| (world.view("a").turns_ahead, world.view("b").turns_ahead);
    assert_eq!(turns(&world), (0, 12));
    world.registry.charge(a, world.now);
    assert_eq!(turns(&world), (12, 12), "`c` has had nothing");
    let gave_up = world.registry.cancel_wait(world.tickets.remove(0), world.now);
    world.take(gave_up.effects);
    assert_eq!(turns(&world), (0, 0), "nobody has had less");
}

#[test]
fn a_view_tells_whether_a_pause_goes_on() {
    let mut world = roomy();
    world.fails("a", MS, false);
    let failures = |now| world.registry.view(now).failures;
    let start = world.now;
    assert_eq!(failures(start), [(target("a"), true, false, false)]);
    assert_eq!(failures(start + MS), [(target("a"), false, false, false)]);
    assert_eq!(failures(start + 2 * MS), [(target("a"), false, false, false)]);
}

#[test]
fn a_view_tells_whether_there_is_something_to_do_at_the_promised_moment() {
    let mut world = patient();
    let at = world.now + SWITCH;
    let promised = |world: &World| world.registry.view(world.now).promised;
    assert_eq!((world.registry.promised, promised(&world)), (Some(at), (true, false)));
    world.registry.promised = at.checked_sub(MS);
    assert_eq!(promised(&world), (true, true));
    world.registry.promised = Some(at + MS);
    assert_eq!(promised(&world), (true, false));
    world.registry.promised = None;
    assert_eq!(promised(&world), (false, false));
}

#[test]
fn b2_what_a_lowered_ceiling_allows_falls_with_every_close() {
    let mut world = World::new(2, 2);
    world.leases("a");
    world.leases("a");
    let effects = world.registry.set_terms(&target("a"), Terms { weight: 1, ceiling: Some(1) }, world.now);
    world.take(effects);
    assert_eq!(world.workspace("a").ceiling_allowed, 2);
    world.releases();
    world.closes();
    assert_eq!(world.workspace("a").ceiling_allowed, 1);
}
