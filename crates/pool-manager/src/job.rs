//! What a transition asks for and needs to be awaited: plain debts, and their ways from the registry to the tasks that pay
//! them.

use std::time::Instant;

use pool_core::{CloseWork, Driver, LeaseDebt, OpenWork, Target};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// A piece of work for a task of its own.
pub(crate) enum Job<D: Driver> {
    Open(OpenWork),
    Close {
        work: CloseWork<D::Connection>,
        /// Dropped when it is over, for whoever waits for that.
        waited_for: Option<oneshot::Sender<()>>,
    },
    Recycle(Returned<D::Connection>),
    Retry {
        target: Target,
        at: Instant,
    },
    /// A look-up that the facts have answered: never handed to a task.
    Found(Target),
}

/// A connection that has come back, and is not known to be clean.
pub(crate) struct Returned<C> {
    pub(crate) target: Target,
    pub(crate) conn: C,
    pub(crate) debt: LeaseDebt,
    /// It was idle for long before it was leased, and no check of it has come to its end.
    pub(crate) unchecked: bool,
}

/// A job, and where it is to run, if not beside the dispatcher: what is opened lives as long as the runtime on which that
/// happens, so it happens on the one of whoever waits for it.
pub(crate) struct Ordered<D: Driver> {
    pub(crate) job: Job<D>,
    pub(crate) runtime: Option<Handle>,
}

/// Who has a job ordered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orderer {
    /// Somebody who is going to wait, and so drives the runtime that he is on.
    Waits,
    /// Somebody who goes away.
    Leaves,
}

/// The ways to the background tasks.
pub(crate) struct Outlets<D: Driver> {
    pub(crate) jobs: mpsc::UnboundedSender<Ordered<D>>,
    /// To the task that asks the catalog which databases exist.
    pub(crate) look_ups: mpsc::UnboundedSender<Target>,
}

impl<D: Driver> Outlets<D> {
    /// Hands `job` on, or back where nobody takes it.
    pub(crate) fn order(&self, job: Job<D>, by: Orderer) -> Result<(), Job<D>> {
        let is_open = by == Orderer::Waits && matches!(job, Job::Open(_));
        let runtime = if is_open { Handle::try_current().ok() } else { None };
        self.jobs.send(Ordered { job, runtime }).map_err(|mpsc::error::SendError(order)| order.job)
    }

    /// Asks whether `target` exists, or hands it back where nobody asks.
    pub(crate) fn ask_about(&self, target: Target) -> Result<(), Target> {
        self.look_ups.send(target).map_err(|mpsc::error::SendError(target)| target)
    }
}
