//! The background tasks: which there are, and their start, at first and again after the runtime that they ran on has ended.

use std::sync::Arc;

use pool_core::{Driver, Registry};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::engine::{Engine, Part};
use crate::job::Outlets;
use crate::jobs::{self, JobQueue};
use crate::tasks::Tasks;
use crate::{look_ups, maintenance, moments, server};

/// Starts the tasks of a new engine.
pub(crate) fn start<D: Driver>(engine: &Arc<Engine<D>>, runtime: &Handle) {
    if let Ok(mut tasks) = engine.tasks.try_lock() {
        *tasks = spawn(engine, runtime);
    }
}

/// Starts the tasks again on the present runtime, if there is one.
pub(crate) fn revive<D: Driver>(engine: &Arc<Engine<D>>) {
    let Ok(runtime) = Handle::try_current() else { return };
    // Whoever has the tasks starts or ends them.
    let Ok(mut tasks) = engine.tasks.try_lock() else { return };
    let is_closed = engine.is_closed();
    if !engine.is_stranded() || is_closed {
        return;
    }
    // First, since a runtime that is about to end drops them at once.
    engine.set_stranded(false);
    *tasks = spawn(engine, &runtime);
    drop(tasks);
    tracing::debug!("the pool's background tasks run on another runtime now");
    engine.step_both("begin again", Registry::begin_again);
}

fn spawn<D: Driver>(engine: &Arc<Engine<D>>, runtime: &Handle) -> Tasks {
    let (jobs, todo) = mpsc::unbounded_channel();
    let (look_ups, asked) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel();
    *engine.outlets() = Some(Outlets { jobs, look_ups });
    let weak = || Arc::downgrade(engine);
    // Made here, so that what is in it is settled although its runtime ends before the task has begun.
    let queue = JobQueue::new(weak(), todo, runtime.id());
    let dispatcher = runtime.spawn(jobs::dispatch(queue, stopped));
    let mut others = vec![
        runtime.spawn(maintenance::maintain(weak(), maintenance::period(&engine.settings))),
        runtime.spawn(maintenance::find_departed(weak(), Arc::clone(&engine.breakage))),
        runtime.spawn(server::watch_over(weak(), Arc::clone(&engine.health))),
        runtime.spawn(look_ups::answer(weak(), asked)),
    ];
    for part in [Part::Workspaces, Part::System] {
        let promised = engine.part(part).promised();
        others.push(runtime.spawn(moments::keep_promises(weak(), part, promised)));
    }
    Tasks::new(stop, dispatcher, others)
}
