//! Before a connection of one workspace is closed for another, the registry asks whether that one exists at all. One task
//! answers: from the facts where they suffice, and otherwise by one question to the catalog for all that have asked
//! meanwhile. So a storm of callers for databases that do not exist costs nobody a warm connection (law O4).

use std::sync::{Arc, Weak};

use pool_core::{Driver, DriverError, DriverErrorKind, Phase, Target, WorkspaceId};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::catalog::{self, Unanswered, WhichExist};
use crate::engine::{Engine, Fact};

/// How many workspaces one question is about, at most.
const BATCH_MAX: usize = 500;

/// Answers look-ups until the engine is gone.
pub(crate) async fn answer<D: Driver>(engine: Weak<Engine<D>>, mut asked: mpsc::UnboundedReceiver<Target>) {
    let mut batch = Vec::new();
    while asked.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let Some(engine) = engine.upgrade() else { return };
        let unknown = answer_from_facts(&engine, batch.drain(..));
        if !unknown.is_empty() {
            answer_from_catalog(&engine, &unknown).await;
        }
    }
}

/// Answers for those that have come to be known to exist, and returns the others.
fn answer_from_facts<D: Driver>(engine: &Engine<D>, asked: impl Iterator<Item = Target>) -> Vec<WorkspaceId> {
    let mut unknown = Vec::new();
    for target in asked {
        if engine.is_seen(&target) {
            looked_up(engine, &target, None);
        } else if let Target::Workspace(id) = target {
            unknown.push(id);
        }
    }
    unknown
}

/// A catalog that cannot be asked answers nothing: the opens show the truth, as if nobody had asked.
async fn answer_from_catalog<D: Driver>(engine: &Arc<Engine<D>>, unknown: &[WorkspaceId]) {
    let limit = engine.settings.check_timeout;
    let exist = match timeout(limit, which_exist(engine, unknown)).await {
        Ok(Ok(exist)) if exist.len() == unknown.len() => exist,
        other => {
            let cause =
                other.map(|answer| answer.map(|exist| exist.len()).map_err(|error| error.to_string()));
            tracing::debug!(?cause, asked = unknown.len(), "the catalog did not say which databases exist");
            vec![true; unknown.len()]
        }
    };
    for (id, exists) in unknown.iter().zip(exist) {
        let target = Target::from(id);
        if exists {
            looked_up(engine, &target, None);
        } else {
            let missing = DriverErrorKind::DatabaseMissing;
            let missing = DriverError::new(Phase::Catalog, missing, engine.address(&target));
            looked_up(engine, &target, Some(Arc::new(missing)));
        }
    }
}

async fn which_exist<D: Driver>(
    engine: &Arc<Engine<D>>,
    unknown: &[WorkspaceId],
) -> Result<Vec<bool>, Unanswered> {
    let exist = catalog::ask(engine, WhichExist(unknown)).await?;
    for (id, _) in unknown.iter().zip(&exist).filter(|(_, exists)| **exists) {
        engine.facts.insert(id.clone(), Fact::Seen).await;
    }
    Ok(exist)
}

fn looked_up<D: Driver>(engine: &Engine<D>, target: &Target, missing: Option<Arc<DriverError>>) {
    engine.step(target, "looked up", |registry, now| registry.looked_up(target, missing, now));
}
