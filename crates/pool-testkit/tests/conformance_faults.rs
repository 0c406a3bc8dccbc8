//! The conformance suite bites: each adapter here has one fault, and breaks exactly the clauses that say so.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use async_trait::async_trait;
use pool_core::{
    Catalog, CatalogKind, Condition, DatabaseName, DatabaseNaming, Driver, DriverError, DriverErrorKind,
    Endpoint, PrefixNaming, WorkspaceId,
};
use pool_testkit::conformance::memory::MemoryAdapter;
use pool_testkit::conformance::{Adapter, Cannot, Miss, clauses};
use pool_testkit::fakes::{FakeConn, FakeDriver};
use rstest::rstest;

/// What is wrong with an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// It connects everybody to one database.
    OneForAll,
    MissingIsOther,
    ErrorsWithoutPlace,
    NewIsSuspect,
    DirtyIsClean,
    RecycleDoesNothing,
    RecycleLeavesAnswers,
    CheckBelievesAll,
    CloseReturnsEarly,
    TerminateLies,
    TerminateDoesNothing,
    DepartedTellsAll,
    KeepsASessionForItself,
    EnsureSaysCreated,
    ExistsSaysYes,
    WhichExistInAnotherOrder,
    DropDoesNothing,
    ListForgets,
    FoldsCase,
}

struct Faulty<const FAULT: u8> {
    good: MemoryAdapter,
}

const ALL: [Fault; 20] = [
    Fault::None,
    Fault::OneForAll,
    Fault::MissingIsOther,
    Fault::ErrorsWithoutPlace,
    Fault::NewIsSuspect,
    Fault::DirtyIsClean,
    Fault::RecycleDoesNothing,
    Fault::RecycleLeavesAnswers,
    Fault::CheckBelievesAll,
    Fault::CloseReturnsEarly,
    Fault::TerminateLies,
    Fault::TerminateDoesNothing,
    Fault::DepartedTellsAll,
    Fault::KeepsASessionForItself,
    Fault::EnsureSaysCreated,
    Fault::ExistsSaysYes,
    Fault::WhichExistInAnotherOrder,
    Fault::DropDoesNothing,
    Fault::ListForgets,
    Fault::FoldsCase,
];

struct FaultyDriver {
    good: FakeDriver,
    fault: Fault,
    kept: tokio::sync::OnceCell<FakeConn>,
}

impl Driver for FaultyDriver {
    type Connection = FakeConn;
    type Handle = u64;

    async fn connect(&self, endpoint: &Endpoint) -> Result<FakeConn, DriverError> {
        if self.fault == Fault::KeepsASessionForItself {
            let system = Endpoint {
                target: pool_core::Target::System,
                database: DatabaseName::new("postgres").unwrap(),
            };
            self.kept.get_or_try_init(|| self.good.connect(&system)).await?;
        }
        let connected = if self.fault == Fault::OneForAll {
            let same = DatabaseName::new("postgres").unwrap();
            self.good.connect(&Endpoint { target: endpoint.target.clone(), database: same }).await
        } else {
            self.good.connect(endpoint).await
        };
        let mut conn = connected.map_err(|error| match self.fault {
            Fault::MissingIsOther if error.kind == DriverErrorKind::DatabaseMissing => {
                DriverError { kind: DriverErrorKind::Other, ..error }
            }
            Fault::ErrorsWithoutPlace => DriverError { address: String::new(), ..error },
            _ => error,
        })?;
        if self.fault == Fault::NewIsSuspect {
            conn.make_dirty();
        }
        Ok(conn)
    }

    async fn check(&self, conn: &mut FakeConn) -> Result<(), DriverError> {
        let checked = self.good.check(conn).await;
        if self.fault == Fault::CheckBelievesAll { Ok(()) } else { checked }
    }

    fn inspect(&self, conn: &mut FakeConn) -> Condition {
        match self.good.inspect(conn) {
            Condition::Suspect if self.fault == Fault::DirtyIsClean => Condition::Clean,
            condition => condition,
        }
    }

    async fn recycle(&self, conn: &mut FakeConn) -> Result<(), DriverError> {
        match self.fault {
            Fault::RecycleDoesNothing => Ok(()),
            Fault::RecycleLeavesAnswers => {
                let has_unread = conn.ask(3) != 3;
                self.good.recycle(conn).await?;
                if has_unread {
                    conn.leave_unread(5);
                }
                Ok(())
            }
            _ => self.good.recycle(conn).await,
        }
    }

    async fn close(&self, conn: FakeConn) {
        if self.fault == Fault::CloseReturnsEarly {
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(30)).await;
                drop(conn);
            });
        } else {
            self.good.close(conn).await;
        }
    }

    fn address(&self, endpoint: &Endpoint) -> String {
        self.good.address(endpoint)
    }

    fn handle(&self, conn: &FakeConn) -> Option<u64> {
        self.good.handle(conn)
    }

    async fn terminate(&self, handles: Vec<u64>) -> Result<(), DriverError> {
        match self.fault {
            Fault::TerminateDoesNothing => Ok(()),
            // Ok, whatever the server says.
            Fault::TerminateLies => self.good.terminate(handles).await.or(Ok(())),
            _ => self.good.terminate(handles).await,
        }
    }

    async fn departed(&self, handles: Vec<u64>) -> Result<Vec<usize>, DriverError> {
        if self.fault == Fault::DepartedTellsAll {
            return Ok((0..handles.len()).collect());
        }
        self.good.departed(handles).await
    }
}

struct FaultyCatalog {
    good: Arc<dyn Catalog<FakeConn>>,
    fault: Fault,
}

impl DatabaseNaming for FaultyCatalog {
    fn database(&self, workspace: &WorkspaceId) -> DatabaseName {
        if self.fault == Fault::FoldsCase {
            let folded = workspace.as_str().to_lowercase();
            return PrefixNaming::new("fake").unwrap().database(&WorkspaceId::new(folded).unwrap());
        }
        self.good.database(workspace)
    }
}

#[async_trait]
impl Catalog<FakeConn> for FaultyCatalog {
    async fn ensure(&self, system: &mut FakeConn, workspace: &WorkspaceId) -> Result<bool, DriverError> {
        let created = self.good.ensure(system, &self.seen_as(workspace)).await?;
        Ok(created || self.fault == Fault::EnsureSaysCreated)
    }

    async fn drop(&self, system: &mut FakeConn, workspace: &WorkspaceId) -> Result<bool, DriverError> {
        if self.fault == Fault::DropDoesNothing {
            return self.good.exists(system, workspace).await;
        }
        Catalog::drop(&*self.good, system, &self.seen_as(workspace)).await
    }

    async fn exists(&self, system: &mut FakeConn, workspace: &WorkspaceId) -> Result<bool, DriverError> {
        let exists = self.good.exists(system, &self.seen_as(workspace)).await?;
        Ok(exists || self.fault == Fault::ExistsSaysYes)
    }

    async fn which_exist(
        &self,
        system: &mut FakeConn,
        workspaces: &[WorkspaceId],
    ) -> Result<Vec<bool>, DriverError> {
        let seen: Vec<WorkspaceId> = workspaces.iter().map(|id| self.seen_as(id)).collect();
        let mut exist = self.good.which_exist(system, &seen).await?;
        if self.fault == Fault::WhichExistInAnotherOrder {
            exist.sort_unstable();
        }
        Ok(exist)
    }

    async fn list(&self, system: &mut FakeConn) -> Result<Vec<WorkspaceId>, DriverError> {
        let mut listed = self.good.list(system).await?;
        if self.fault == Fault::ListForgets {
            listed.retain(|id| id.as_str().is_ascii());
        }
        Ok(listed)
    }
}

impl FaultyCatalog {
    fn seen_as(&self, workspace: &WorkspaceId) -> WorkspaceId {
        if self.fault == Fault::FoldsCase {
            return WorkspaceId::new(workspace.as_str().to_lowercase()).unwrap();
        }
        workspace.clone()
    }
}

impl<const FAULT: u8> Faulty<FAULT> {
    fn fault() -> Fault {
        ALL[FAULT as usize]
    }
}

impl<const FAULT: u8> Adapter for Faulty<FAULT> {
    type Driver = FaultyDriver;

    async fn set_up() -> Result<Self, String> {
        Ok(Self { good: MemoryAdapter::set_up().await? })
    }

    async fn tear_down(self) {
        self.good.tear_down().await;
    }

    async fn driver(&self) -> Result<FaultyDriver, String> {
        let good = self.good.driver().await?;
        Ok(FaultyDriver { good, fault: Self::fault(), kept: tokio::sync::OnceCell::new() })
    }

    fn catalog(&self) -> CatalogKind<FakeConn> {
        let CatalogKind::OverSystem { system, catalog: good } = self.good.catalog() else {
            panic!("the catalog in memory is lent a connection")
        };
        CatalogKind::OverSystem { system, catalog: Arc::new(FaultyCatalog { good, fault: Self::fault() }) }
    }

    async fn write(&self, conn: &mut FakeConn, value: i64) -> Result<(), String> {
        self.good.write(conn, value).await
    }

    async fn read(&self, conn: &mut FakeConn) -> Result<Option<i64>, String> {
        self.good.read(conn).await
    }

    async fn echo(&self, conn: &mut FakeConn, number: i64) -> Result<i64, String> {
        self.good.echo(conn, number).await
    }

    async fn sessions(&self) -> Result<usize, Cannot> {
        self.good.sessions().await
    }

    async fn end_session(&self, conn: &mut FakeConn) -> Result<(), Cannot> {
        self.good.end_session(conn).await
    }

    fn ways(&self) -> &'static [&'static str] {
        self.good.ways()
    }

    async fn leave(&self, conn: &mut FakeConn, way: &'static str) -> Result<(), String> {
        self.good.leave(conn, way).await
    }

    async fn is_left(&self, conn: &mut FakeConn, way: &'static str) -> Result<bool, String> {
        self.good.is_left(conn, way).await
    }

    fn tells_departed(&self) -> Result<(), Cannot> {
        self.good.tells_departed()
    }

    async fn refuse_to_terminate(&self) -> Result<(), Cannot> {
        self.good.refuse_to_terminate().await
    }

    async fn refused_driver(&self, password: &'static str) -> Result<FaultyDriver, Cannot> {
        let good = self.good.refused_driver(password).await?;
        Ok(FaultyDriver { good, fault: Self::fault(), kept: tokio::sync::OnceCell::new() })
    }
}

/// The clauses that an adapter breaks, and what was seen.
async fn broken<A: Adapter>() -> Vec<(&'static str, String)> {
    let mut broken = Vec::new();
    for clause in clauses::<A>() {
        if let Err(Miss::Broken(seen)) = clause.outcome().await {
            broken.push((clause.name, seen));
        }
    }
    broken
}

macro_rules! dispatch {
    ($fault:expr; $($number:literal)+) => {
        match ALL.iter().position(|one| *one == $fault).unwrap() {
            $($number => broken::<Faulty<$number>>().await,)+
            _ => unreachable!("a fault without a number"),
        }
    };
}

async fn broken_with(fault: Fault) -> Vec<(&'static str, String)> {
    dispatch!(fault; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19)
}

#[rstest]
#[case::none(Fault::None, &[])]
#[case::one_for_all(Fault::OneForAll, &["i2_a_session_is_in_the_database_that_it_was_opened_for", "o4_a_database_that_does_not_exist_is_told_as_missing", "o4_a_dropped_database_is_gone_with_what_was_in_it", "i3_hostile_ids_have_databases_of_their_own", "i2_each_lease_under_load_is_in_its_own_database", "o4_a_missing_database_is_told_to_its_caller"])]
#[case::missing_is_other(Fault::MissingIsOther, &["o4_a_database_that_does_not_exist_is_told_as_missing", "o4_a_dropped_database_is_gone_with_what_was_in_it", "o4_a_missing_database_is_told_to_its_caller"])]
#[case::errors_without_place(Fault::ErrorsWithoutPlace, &["i3_an_error_names_phase_and_place_and_no_password"])]
#[case::new_is_suspect(Fault::NewIsSuspect, &["l1_a_new_session_is_clean"])]
#[case::dirty_is_clean(Fault::DirtyIsClean, &["l1_what_a_holder_left_reaches_nobody", "l4_a_statement_dropped_at_any_await_answers_nobody_else", "l1_a_lease_that_was_left_unclean_is_clean_for_the_next_holder"])]
#[case::recycle_does_nothing(Fault::RecycleDoesNothing, &["l1_what_a_holder_left_reaches_nobody", "l4_a_statement_dropped_at_any_await_answers_nobody_else", "l1_a_lease_that_was_left_unclean_is_clean_for_the_next_holder"])]
#[case::recycle_leaves_answers(Fault::RecycleLeavesAnswers, &["l1_what_a_holder_left_reaches_nobody", "l4_a_statement_dropped_at_any_await_answers_nobody_else", "l1_a_lease_that_was_left_unclean_is_clean_for_the_next_holder"])]
#[case::check_believes_all(Fault::CheckBelievesAll, &["l3_a_check_tells_sessions_that_live_from_those_that_ended", "l3_a_session_of_a_database_that_was_made_again_is_found_out"])]
#[case::close_returns_early(Fault::CloseReturnsEarly, &["b1_a_close_returns_when_the_session_is_gone", "b1_a_close_ends_a_session_in_any_state", "c2_shutdown_ends_what_is_the_drivers_own", "b1_the_budget_holds_under_load_as_a_witness_counts", "c2_a_close_leaves_nothing"])]
#[case::terminate_lies(Fault::TerminateLies, &["b1_terminate_says_so_when_sessions_were_not_ended"])]
#[case::terminate_does_nothing(Fault::TerminateDoesNothing, &["b1_terminate_returns_when_the_sessions_are_gone", "b1_terminate_says_so_when_sessions_were_not_ended", "c1_a_lease_held_past_the_deadline_is_cut_or_counted"])]
#[case::departed_tells_all(Fault::DepartedTellsAll, &["s1_departed_tells_of_ended_sessions_and_of_no_other"])]
#[case::keeps_a_session(Fault::KeepsASessionForItself, &["b1_a_driver_has_no_more_connections_of_its_own_than_it_says", "c2_shutdown_ends_what_is_the_drivers_own", "o2_a_connect_dropped_at_any_await_leaves_no_session", "c2_a_close_leaves_nothing"])]
#[case::ensure_says_created(Fault::EnsureSaysCreated, &["o4_a_database_is_created_once_and_found", "o4_a_database_that_is_ensured_by_many_at_once_is_made_once"])]
#[case::exists_says_yes(Fault::ExistsSaysYes, &["o4_a_database_is_created_once_and_found", "o4_a_dropped_database_is_gone_with_what_was_in_it", "o4_a_database_is_dropped_under_the_sessions_of_others"])]
#[case::which_exist_in_another_order(Fault::WhichExistInAnotherOrder, &["o4_which_exist_answers_in_order"])]
#[case::drop_does_nothing(Fault::DropDoesNothing, &["o4_a_dropped_database_is_gone_with_what_was_in_it", "o4_a_database_is_dropped_under_the_sessions_of_others"])]
#[case::list_forgets(Fault::ListForgets, &["i3_every_workspace_is_listed_by_its_own_id"])]
#[case::folds_case(Fault::FoldsCase, &["i3_every_workspace_is_listed_by_its_own_id", "i1_ids_that_are_taken_for_each_other_have_names_of_their_own"])]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_breaks_the_clauses_that_say_so_and_no_other(
    #[case] fault: Fault,
    #[case] expected: &[&str],
) {
    let broken = broken_with(fault).await;
    for (clause, seen) in &broken {
        println!("{fault:?}: {clause}: {seen}");
    }
    assert_eq!(broken.iter().map(|(clause, _)| *clause).collect::<Vec<_>>(), expected);
}
