//! The world in which one clause runs: an adapter set up for it alone, and the steps that clauses have in common.

use std::future::Future;
use std::time::Duration;

use pool_core::{Catalog, CatalogKind, Driver, DriverError, Endpoint, Limits, Target, WorkspaceId};
use pool_manager::{PoolManager, Settings};
use tokio::time::{Instant, sleep};

use super::{Adapter, Cannot, ConnectionOf, Miss, Outcome, hold};

/// How long sessions that nobody waits for may take to go.
const GONE_WITHIN: Duration = Duration::from_secs(8);

/// An adapter in a world of its own.
pub struct World<A: Adapter> {
    /// What is under test.
    pub adapter: A,
}

impl<A: Adapter> World<A> {
    pub(super) async fn set_up() -> Result<Self, Miss> {
        let adapter =
            A::set_up().await.map_err(|why| Miss::Broken(format!("the world was not set up: {why}")))?;
        Ok(Self { adapter })
    }

    pub(super) async fn tear_down(self) {
        self.adapter.tear_down().await;
    }

    pub(super) async fn driver(&self) -> Result<A::Driver, Miss> {
        self.adapter.driver().await.map_err(|why| Miss::Broken(format!("no driver: {why}")))
    }

    /// Where `workspace` is.
    pub(super) fn endpoint(&self, workspace: &WorkspaceId) -> Endpoint {
        let database = self.adapter.catalog().database(workspace);
        Endpoint { target: Target::from(workspace), database }
    }

    pub(super) async fn connect(
        &self,
        driver: &A::Driver,
        workspace: &WorkspaceId,
    ) -> Result<ConnectionOf<A>, Miss> {
        driver.connect(&self.endpoint(workspace)).await.map_err(failed("connect"))
    }

    /// Asks the catalog, over a connection of its own where it needs one.
    pub(super) async fn ask<R>(
        &self,
        driver: &A::Driver,
        question: impl Question<ConnectionOf<A>, R> + Question<(), R>,
    ) -> Result<R, Miss> {
        match self.adapter.catalog() {
            CatalogKind::OverSystem { system, catalog } => {
                let endpoint = Endpoint { target: Target::Catalog, database: system };
                let mut conn = driver.connect(&endpoint).await.map_err(failed("connect to the system"))?;
                let answer = question.ask(catalog.as_ref(), &mut conn).await;
                driver.close(conn).await;
                answer.map_err(failed("ask the catalog"))
            }
            CatalogKind::Alone(catalog) => {
                question.ask(catalog.as_ref(), &mut ()).await.map_err(failed("ask the catalog"))
            }
        }
    }

    /// A database for each of `names`, made now.
    pub(super) async fn workspaces(
        &self,
        driver: &A::Driver,
        names: &[&str],
    ) -> Result<Vec<WorkspaceId>, Miss> {
        let mut ids = Vec::new();
        for name in names {
            let id = id(name)?;
            self.ask(driver, Ensure(&id)).await?;
            ids.push(id);
        }
        Ok(ids)
    }

    /// A manager over the adapter, with `budget` connections for workspaces.
    pub(super) async fn manager(
        &self,
        budget: u32,
        adjust: impl FnOnce(&mut Settings),
    ) -> Result<PoolManager<A::Driver>, Miss> {
        let driver = self.driver().await?;
        let catalog = self.adapter.catalog();
        let own = driver.control_connections() + driver.control_reserve();
        let limits = match catalog.system() {
            Some(_) => Limits::new(budget + own + 2).system(own + 2).per_workspace(budget),
            None => Limits::new(budget + own).per_workspace(budget),
        };
        let mut settings = Settings::new(limits);
        adjust(&mut settings);
        PoolManager::start(driver, catalog, settings)
            .map_err(|error| Miss::Broken(format!("the manager does not start: {error}")))
    }

    pub(super) async fn write(&self, conn: &mut ConnectionOf<A>, value: i64) -> Outcome {
        self.adapter.write(conn, value).await.map_err(|why| Miss::Broken(format!("write: {why}")))
    }

    pub(super) async fn read(&self, conn: &mut ConnectionOf<A>) -> Result<Option<i64>, Miss> {
        self.adapter.read(conn).await.map_err(|why| Miss::Broken(format!("read: {why}")))
    }

    /// Asks for the echo of a number that was never asked for before, and holds the answer against it.
    pub(super) async fn answers_rightly(&self, conn: &mut ConnectionOf<A>, number: i64) -> Outcome {
        let answer =
            self.adapter.echo(conn, number).await.map_err(|why| Miss::Broken(format!("echo: {why}")))?;
        hold(answer == number, || format!("asked for {number}, answered {answer}"))
    }

    /// Waits until a witness counts no more than `most` sessions.
    pub(super) async fn sessions_become_at_most(&self, most: usize) -> Outcome {
        let began = Instant::now();
        loop {
            let counted = self.adapter.sessions().await?;
            if counted <= most {
                return Ok(());
            }
            if began.elapsed() > GONE_WITHIN {
                return Err(Miss::Broken(format!(
                    "{counted} sessions after {GONE_WITHIN:?}, of at most {most}"
                )));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// What the witness counts now.
    pub(super) async fn sessions(&self) -> Result<usize, Cannot> {
        self.adapter.sessions().await
    }
}

/// How many connections a driver says that it has for itself.
pub(super) fn own(driver: &impl Driver) -> usize {
    (driver.control_connections() + driver.control_reserve()) as usize
}

/// The workspace `name`.
pub(super) fn id(name: &str) -> Result<WorkspaceId, Miss> {
    WorkspaceId::new(name).map_err(|error| Miss::Broken(error.to_string()))
}

/// A driver's failure where it should have succeeded.
pub(super) fn failed(doing: &str) -> impl FnOnce(DriverError) -> Miss {
    move |error| Miss::Broken(format!("could not {doing}: {error}"))
}

/// Something that a catalog is asked, whatever it is lent.
pub(super) trait Question<C: Send, R> {
    fn ask(
        self,
        catalog: &dyn Catalog<C>,
        lent: &mut C,
    ) -> impl Future<Output = Result<R, DriverError>> + Send;
}

macro_rules! question {
    ($name:ident, $verb:ident, $answer:ty) => {
        pub(super) struct $name<'a>(pub(super) &'a WorkspaceId);

        impl<C: Send> Question<C, $answer> for $name<'_> {
            async fn ask(self, catalog: &dyn Catalog<C>, lent: &mut C) -> Result<$answer, DriverError> {
                catalog.$verb(lent, self.0).await
            }
        }
    };
}

question!(Ensure, ensure, bool);
question!(DropIt, drop, bool);
question!(Exists, exists, bool);

pub(super) struct WhichExist<'a>(pub(super) &'a [WorkspaceId]);

impl<C: Send> Question<C, Vec<bool>> for WhichExist<'_> {
    async fn ask(self, catalog: &dyn Catalog<C>, lent: &mut C) -> Result<Vec<bool>, DriverError> {
        catalog.which_exist(lent, self.0).await
    }
}

pub(super) struct List;

impl<C: Send> Question<C, Vec<WorkspaceId>> for List {
    async fn ask(self, catalog: &dyn Catalog<C>, lent: &mut C) -> Result<Vec<WorkspaceId>, DriverError> {
        catalog.list(lent).await
    }
}
