//! What became of work that was done for each workspace.

use std::collections::BTreeMap;
use std::fmt::Display;

use pool_core::WorkspaceId;

/// What became of the workspaces of one run of migrations. The stream of their outcomes can be collected into it; each failure is logged as
/// it comes.
///
/// ```
/// use pool_core::WorkspaceId;
/// use pool_manager::MigrationReport;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut report = MigrationReport::default();
/// report.extend([(WorkspaceId::new("a")?, Ok(())), (WorkspaceId::new("b")?, Err("in the way"))]);
/// assert_eq!((report.migrated, report.is_complete()), (1, false));
/// assert_eq!(report.failures[&WorkspaceId::new("b")?], "in the way");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "it tells which workspaces could not be migrated"]
#[non_exhaustive]
pub struct MigrationReport<E> {
    /// How many workspaces have all migrations now, also those that had them before.
    pub migrated: usize,
    /// Why each of the others has not.
    pub failures: BTreeMap<WorkspaceId, E>,
}

impl<E> MigrationReport<E> {
    /// Whether no workspace failed.
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty()
    }
}

impl<E> Default for MigrationReport<E> {
    fn default() -> Self {
        Self { migrated: 0, failures: BTreeMap::new() }
    }
}

impl<E: Display> Extend<(WorkspaceId, Result<(), E>)> for MigrationReport<E> {
    fn extend<I: IntoIterator<Item = (WorkspaceId, Result<(), E>)>>(&mut self, outcomes: I) {
        for (workspace, outcome) in outcomes {
            match outcome {
                Ok(()) => self.migrated += 1,
                Err(error) => {
                    tracing::warn!(%workspace, %error, "a workspace was not migrated");
                    self.failures.insert(workspace, error);
                }
            }
        }
    }
}
