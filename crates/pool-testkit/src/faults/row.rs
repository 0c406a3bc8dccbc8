//! What one test of a fault has observed, for the table in `docs/reliability.md`.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Names the directory in which each test of a fault leaves its [`Row`].
pub const RELIABILITY_ENV: &str = "POOL_RELIABILITY_DIR";

/// One row: everything in it has been observed, but for the names of the fault and the law.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The function that observed it.
    pub test: String,
    /// What was done.
    pub fault: String,
    /// The clause of `docs/contract.md` that says what has to come of it.
    pub law: String,
    /// The errors that callers saw.
    pub seen: String,
    /// What callers of another workspace saw meanwhile.
    pub others: String,
    /// From the end of the fault, or from the fault itself where it does not last, to the first query served.
    pub recovery: Duration,
    /// What the server counts of the pool's sessions beyond what the pool counts, once it is quiet.
    pub leaked: i64,
}

impl Row {
    /// Leaves the row for the table, if there is to be one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn leave(&self) -> io::Result<()> {
        let Some(dir) = std::env::var_os(RELIABILITY_ENV) else { return Ok(()) };
        let path = Path::new(&dir).join(format!("{}.json", self.test));
        std::fs::write(path, serde_json::to_vec_pretty(self)?)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, law, seen, others, recovery, leaked, .. } = self;
        write!(
            f,
            "{law}: {fault}; seen: {seen}; others: {others}; back after {recovery:.1?}; leaked: {leaked}"
        )
    }
}

/// The rows in a directory, in the order of their tests' names.
///
/// # Errors
/// When the directory or one of the rows cannot be read.
pub fn read_rows(dir: &Path) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        rows.push(serde_json::from_slice::<Row>(&std::fs::read(entry?.path())?)?);
    }
    rows.sort_by(|a, b| a.test.cmp(&b.test));
    Ok(rows)
}
