//! The conformance suite: what an adapter must keep, as one test for each clause of the contract that it can break.
//!
//! An adapter brings its driver, its catalog, and an [`Adapter`]: a few verbs by which the suite looks behind them. One line
//! makes the tests:
//!
//! ```
//! # use pool_testkit::conformance::memory::MemoryAdapter;
//! pool_testkit::conformance!(MemoryAdapter);
//! # fn main() {}
//! ```
//!
//! What an adapter cannot show it says ([`Cannot`]), and the clauses that need it are skipped with that reason. A clause that does
//! not hold says its id, its sentence, and what was seen. `docs/adapters.md` walks through an adapter.
//!
//! An eviction policy has a suite of its own, [`check_eviction_policy`].

mod catalog;
mod driver;
mod drops;
mod manager;
pub mod memory;
mod naming;
mod policy;
#[cfg(feature = "postgres")]
pub mod postgres;
mod world;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use pool_core::{CatalogKind, Driver};

pub use policy::check_eviction_policy;
pub use world::World;

/// How long one clause may take before it counts as broken.
const CLAUSE_LIMIT: Duration = Duration::from_mins(2);

/// What the suite cannot look at in this adapter, and why; printed where a clause is skipped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cannot(pub &'static str);

/// The connections of an adapter.
pub type ConnectionOf<A> = <<A as Adapter>::Driver as Driver>::Connection;

/// An adapter, and what the suite needs to look behind it. Verbs have a default where not every adapter has them; each that an
/// adapter leaves out skips the clauses that need it.
pub trait Adapter: Send + Sync + Sized + 'static {
    /// The driver under test.
    type Driver: Driver;

    /// A world of its own: its databases and sessions are seen in no other, though all run at the same time.
    ///
    /// # Errors
    /// What is missing, such as a server.
    fn set_up() -> impl Future<Output = Result<Self, String>> + Send;

    /// Takes the world away: its databases and files.
    fn tear_down(self) -> impl Future<Output = ()> + Send;

    /// A driver, started. May be called several times; all drivers see the same databases.
    ///
    /// # Errors
    /// Why there is none.
    fn driver(&self) -> impl Future<Output = Result<Self::Driver, String>> + Send;

    /// The catalog of the world, which names its databases as well.
    fn catalog(&self) -> CatalogKind<ConnectionOf<Self>>;

    /// Writes `value` into the database of a connection, for good, and so that it has an effect at once.
    ///
    /// # Errors
    /// What the driver says.
    fn write(
        &self,
        conn: &mut ConnectionOf<Self>,
        value: i64,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// The value that was written last into the database of a connection.
    ///
    /// # Errors
    /// What the driver says.
    fn read(&self, conn: &mut ConnectionOf<Self>)
    -> impl Future<Output = Result<Option<i64>, String>> + Send;

    /// Asks the server for the echo of a number, as a user's statement would, and returns the answer that was read.
    ///
    /// # Errors
    /// What the driver says.
    fn echo(
        &self,
        conn: &mut ConnectionOf<Self>,
        number: i64,
    ) -> impl Future<Output = Result<i64, String>> + Send;

    /// How many sessions of this world there are, as an independent witness counts: the server, or the operating system. Not
    /// what the driver believes. At most as many as there were at one moment: a list that is walked through while sessions come and go may
    /// show one that has left and another that came in its place, which looks like one too many.
    fn sessions(&self) -> impl Future<Output = Result<usize, Cannot>> + Send {
        std::future::ready(Err(Cannot("nobody but the driver counts its sessions")))
    }

    /// Ends a session behind the driver's back.
    fn end_session(&self, conn: &mut ConnectionOf<Self>) -> impl Future<Output = Result<(), Cannot>> + Send {
        let _ = conn;
        std::future::ready(Err(Cannot("nobody can end a session behind the driver's back")))
    }

    /// The ways in which a holder can leave a connection unclean: an open transaction, a changed setting, a lock.
    fn ways(&self) -> &'static [&'static str] {
        &[]
    }

    /// Leaves a connection in one of these ways.
    ///
    /// # Errors
    /// What the driver says.
    fn leave(
        &self,
        conn: &mut ConnectionOf<Self>,
        way: &'static str,
    ) -> impl Future<Output = Result<(), String>> + Send {
        let (_, _) = (conn, way);
        std::future::ready(Ok(()))
    }

    /// Whether something of that way is left on a connection.
    ///
    /// # Errors
    /// What the driver says.
    fn is_left(
        &self,
        conn: &mut ConnectionOf<Self>,
        way: &'static str,
    ) -> impl Future<Output = Result<bool, String>> + Send {
        let (_, _) = (conn, way);
        std::future::ready(Ok(false))
    }

    /// A statement that takes a minute at least, unless it is ended.
    fn slow_statement(
        &self,
        conn: &mut ConnectionOf<Self>,
    ) -> impl Future<Output = Result<(), Cannot>> + Send {
        let _ = conn;
        std::future::ready(Err(Cannot("it has no statement that takes long")))
    }

    /// Whether [`Driver::departed`] tells which sessions have ended.
    ///
    /// # Errors
    /// Why it does not.
    fn tells_departed(&self) -> Result<(), Cannot> {
        Err(Cannot("it does not tell which idle sessions have ended"))
    }

    /// Makes the next [`Driver::terminate`] fail, although the server goes on.
    fn refuse_to_terminate(&self) -> impl Future<Output = Result<(), Cannot>> + Send {
        std::future::ready(Err(Cannot("the server cannot be made to refuse that a session is ended")))
    }

    /// A driver that the server refuses, with a password that must appear nowhere.
    fn refused_driver(
        &self,
        password: &'static str,
    ) -> impl Future<Output = Result<Self::Driver, Cannot>> + Send {
        let _ = password;
        std::future::ready(Err(Cannot("it has no passwords")))
    }
}

/// Why a clause was not shown to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The adapter cannot show it.
    Skipped(Cannot),
    /// It does not hold, and this was seen.
    Broken(String),
}

impl From<Cannot> for Miss {
    fn from(cannot: Cannot) -> Self {
        Self::Skipped(cannot)
    }
}

impl From<String> for Miss {
    fn from(seen: String) -> Self {
        Self::Broken(seen)
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skipped(Cannot(why)) => write!(f, "skipped: {why}"),
            Self::Broken(seen) => write!(f, "broken: {seen}"),
        }
    }
}

/// What became of a clause.
pub type Outcome = Result<(), Miss>;

/// Fails a clause, with what was seen, unless it holds.
pub(crate) fn hold(holds: bool, seen: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(Miss::Broken(seen())) }
}

type Run<A> = for<'a> fn(&'a World<A>) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// A clause of the suite, for one adapter.
pub struct Clause<A: Adapter> {
    /// The name of its test: the id in the contract, and what must be.
    pub name: &'static str,
    /// The same as a sentence.
    pub sentence: &'static str,
    run: Run<A>,
}

impl<A: Adapter> Clause<A> {
    /// Runs it in a world of its own.
    ///
    /// # Errors
    /// Why it was not shown to hold.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the world as it is.
    pub async fn outcome(&self) -> Outcome {
        let world = World::<A>::set_up().await?;
        let late = |_| Miss::Broken(format!("no end within {CLAUSE_LIMIT:?}"));
        let outcome = tokio::time::timeout(CLAUSE_LIMIT, (self.run)(&world)).await.map_err(late);
        world.tear_down().await;
        outcome?
    }
}

/// Runs the clause `name` as a test: it prints why it is skipped.
///
/// # Panics
/// If the clause does not hold: with its name, its sentence and what was seen.
pub fn check<A: Adapter>(name: &str) {
    let clauses = clauses::<A>();
    let Some(clause) = clauses.iter().find(|clause| clause.name == name) else {
        panic!("there is no clause {name}");
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
    match runtime.block_on(clause.outcome()) {
        Ok(()) => {}
        Err(Miss::Skipped(Cannot(why))) => println!("skipped: {name}: {why}"),
        Err(Miss::Broken(seen)) => {
            panic!("{name} does not hold: {}\n  seen: {seen}", clause.sentence)
        }
    }
}

/// The clauses, in the one place where they are listed: each is a function of that name in that module, with its sentence. Hands
/// the list to another macro.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_clauses {
    ([$($then:tt)+] $($adapter:ty)?) => {
        $($then)+! { $($adapter;)?
            driver {
                i2_a_session_is_in_the_database_that_it_was_opened_for: "a lease for a workspace is connected to that workspace's database";
                o4_a_database_that_does_not_exist_is_told_as_missing: "a connect to a missing database fails as `DatabaseMissing`";
                l1_a_new_session_is_clean: "a connection that was just opened, or checked, is clean";
                l1_what_a_holder_left_reaches_nobody: "a connection comes back clean or is closed";
                l1_a_statement_that_was_dropped_is_ended_and_not_waited_for: "a dropped statement is ended, not waited for";
                l3_a_check_tells_sessions_that_live_from_those_that_ended: "a check of a broken connection fails";
                l3_a_session_that_ended_is_not_taken_for_clean: "a session that has ended is not handed out after a use of it";
                b1_a_close_returns_when_the_session_is_gone: "a close is over when the server has let go";
                b1_a_close_ends_a_session_in_any_state: "a close ends dirty, busy and broken sessions";
                b1_a_driver_has_no_more_connections_of_its_own_than_it_says: "the driver's own connections are counted";
                b1_terminate_returns_when_the_sessions_are_gone: "sessions that were ended from outside are gone";
                b1_terminate_says_so_when_sessions_were_not_ended: "an Ok for sessions that live on would free their slots";
                s1_departed_tells_of_ended_sessions_and_of_no_other: "an idle connection that has ended is told";
                i3_an_error_names_phase_and_place_and_no_password: "errors name the phase and the address, never a password";
                c2_shutdown_ends_what_is_the_drivers_own: "after the shutdown nothing of the driver is left";
            }
            drops {
                o2_a_connect_dropped_at_any_await_leaves_no_session: "a connect that was dropped leaves no session";
                l4_a_statement_dropped_at_any_await_answers_nobody_else: "a statement gets its own answer";
                l4_a_check_dropped_at_any_await_answers_nobody_else: "a check that was dropped does not answer the next question";
                l4_a_recycle_dropped_at_any_await_answers_nobody_else: "a recycle that was dropped leaves nothing to be read";
            }
            catalog {
                o4_a_database_is_created_once_and_found: "ensure creates once and says so, and exists agrees";
                o4_which_exist_answers_in_order: "many workspaces are looked up in their order";
                o4_a_database_that_is_ensured_by_many_at_once_is_made_once: "ensure is safe to race";
                o4_a_dropped_database_is_gone_with_what_was_in_it: "drop says whether there was one, and leaves nothing";
                l3_a_session_of_a_database_that_was_made_again_is_found_out: "a connection to a dropped database is not handed out for the next one";
            o4_a_database_is_dropped_under_the_sessions_of_others: "drop ends the sessions that others have there, or waits for none";
                i3_every_workspace_is_listed_by_its_own_id: "list gives the ids back, however hostile";
                i3_hostile_ids_have_databases_of_their_own: "no id changes a statement or reaches another's database";
            }
            naming {
                i1_ids_that_are_taken_for_each_other_have_names_of_their_own: "different ids have different names, also where case is folded as the adapter folds it";
                i1_a_name_is_the_same_each_time: "the same id has the same name for ever";
            }
            manager {
                b1_the_budget_holds_under_load_as_a_witness_counts: "never more sessions than the budget, as a witness counts";
                i2_each_lease_under_load_is_in_its_own_database: "under load each lease reads what was written for its workspace";
                w5_a_lonely_caller_reuses_one_connection: "a caller that comes back is served by the same connection";
                e2_a_full_budget_serves_another_workspace_by_closing_an_idle_connection: "an idle connection of another workspace makes room";
                l3_a_connection_that_ended_while_idle_is_replaced_unseen: "a broken idle connection is replaced before the caller sees it";
                l1_a_lease_that_was_left_unclean_is_clean_for_the_next_holder: "what one holder leaves, the next does not see";
                o4_a_missing_database_is_told_to_its_caller: "a caller for a missing database is told so";
                c1_a_lease_held_past_the_deadline_is_cut_or_counted: "a lease that is cut counts no longer, and one that cannot be cut does";
                c2_a_close_leaves_nothing: "after a close a witness counts no session";
            }
        }
    };
}

macro_rules! clauses_table {
    ($($module:ident { $($name:ident: $sentence:literal;)+ })+) => {
        /// All clauses, for one adapter.
        pub fn clauses<A: Adapter>() -> Vec<Clause<A>> {
            vec![$($(Clause {
                name: stringify!($name),
                sentence: $sentence,
                run: |world| Box::pin($module::$name(world)),
            },)+)+]
        }
    };
}
crate::conformance_clauses!([clauses_table]);

/// Makes a test of each clause for an [`Adapter`], each named as the clause is. Put it into a module of its own, or into a file
/// below `tests/`.
#[macro_export]
macro_rules! conformance {
    ($adapter:ty) => {
        $crate::conformance_clauses!([$crate::conformance_tests] $adapter);
    };
}

/// A test of each clause.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    ($adapter:ty; $($module:ident { $($name:ident: $sentence:literal;)+ })+) => {
        $($(
            #[test]
            fn $name() {
                $crate::conformance::check::<$adapter>(stringify!($name));
            }
        )+)+
    };
}
