//! The one place where the catalog is asked, whatever it is lent for that.

use std::panic::Location;
use std::sync::Arc;

use pool_core::{AcquireError, Catalog, CatalogKind, Driver, DriverError, Target, WorkspaceId};
use thiserror::Error;

use crate::acquire;
use crate::engine::Engine;

/// Something that a catalog can be asked.
pub(crate) trait Question {
    type Answer;

    fn put<C: Send>(
        self,
        catalog: &dyn Catalog<C>,
        lent: &mut C,
    ) -> impl Future<Output = Result<Self::Answer, DriverError>> + Send;
}

/// Why a question has no answer.
#[derive(Debug, Error)]
pub(crate) enum Unanswered {
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// Asks, over a connection of the system share if the catalog needs one.
pub(crate) async fn ask<D: Driver, Q: Question>(
    engine: &Arc<Engine<D>>,
    question: Q,
) -> Result<Q::Answer, Unanswered> {
    match &engine.catalog {
        CatalogKind::OverSystem { catalog, .. } => {
            let mut system = acquire::lease(engine, &Target::Catalog, Location::caller()).await?;
            Ok(question.put(catalog.as_ref(), &mut *system).await?)
        }
        // Where nothing is lent, nothing else refuses.
        CatalogKind::Alone(_) if engine.is_closed() => Err(AcquireError::Closed.into()),
        CatalogKind::Alone(catalog) => Ok(question.put(catalog.as_ref(), &mut ()).await?),
    }
}

/// What can be asked about one workspace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Ensure,
    Drop,
    Exists,
}

/// A question about one workspace.
pub(crate) struct About<'a>(pub(crate) Verb, pub(crate) &'a WorkspaceId);

impl Question for About<'_> {
    type Answer = bool;

    async fn put<C: Send>(self, catalog: &dyn Catalog<C>, lent: &mut C) -> Result<bool, DriverError> {
        let Self(verb, workspace) = self;
        match verb {
            Verb::Ensure => catalog.ensure(lent, workspace).await,
            Verb::Drop => catalog.drop(lent, workspace).await,
            Verb::Exists => catalog.exists(lent, workspace).await,
        }
    }
}

/// Which of these have a database, in their order.
pub(crate) struct WhichExist<'a>(pub(crate) &'a [WorkspaceId]);

impl Question for WhichExist<'_> {
    type Answer = Vec<bool>;

    async fn put<C: Send>(self, catalog: &dyn Catalog<C>, lent: &mut C) -> Result<Vec<bool>, DriverError> {
        catalog.which_exist(lent, self.0).await
    }
}

/// All that have a database.
pub(crate) struct List;

impl Question for List {
    type Answer = Vec<WorkspaceId>;

    async fn put<C: Send>(
        self,
        catalog: &dyn Catalog<C>,
        lent: &mut C,
    ) -> Result<Vec<WorkspaceId>, DriverError> {
        catalog.list(lent).await
    }
}
