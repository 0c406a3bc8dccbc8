//! The background tasks of a manager, each owned here and joined by its close.

use pool_core::CloseError;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What is left to be ended; each part is forgotten when it has been, so that a `close` that was dropped
/// half-way can be taken up by the next.
#[derive(Default)]
pub(crate) struct Tasks {
    stop: Option<oneshot::Sender<()>>,
    dispatcher: Option<JoinHandle<()>>,
    /// Tasks that owe nothing, and are ended where they stand.
    others: Vec<JoinHandle<()>>,
    /// What the first close to come to its end has found.
    pub(crate) outcome: Option<Result<(), CloseError>>,
}

impl Tasks {
    /// The dispatcher, which ends when it is told with `stop`, and the others.
    pub(crate) fn new(
        stop: oneshot::Sender<()>,
        dispatcher: JoinHandle<()>,
        others: Vec<JoinHandle<()>>,
    ) -> Self {
        Self { stop: Some(stop), dispatcher: Some(dispatcher), others, outcome: None }
    }

    /// Ends them all, and waits until they have.
    pub(crate) async fn end(&mut self) {
        self.stop = None;
        for task in &self.others {
            task.abort();
        }
        if let Some(dispatcher) = &mut self.dispatcher {
            join(dispatcher).await;
            self.dispatcher = None;
        }
        while let Some(task) = self.others.last_mut() {
            join(task).await;
            self.others.pop();
        }
    }
}

impl Drop for Tasks {
    /// The dispatcher ends with its way to be told.
    fn drop(&mut self) {
        for task in &self.others {
            task.abort();
        }
    }
}

async fn join(task: &mut JoinHandle<()>) {
    if let Err(error) = task.await
        && error.is_panic()
    {
        tracing::error!(%error, "a background task of the pool panicked");
    }
}
