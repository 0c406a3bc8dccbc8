//! What a test pool tells about itself when it is gone.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

const KIND: &str = "pool";

/// What a test pool tells about itself when it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The suite of its test.
    pub suite: String,
    /// The case of its test.
    pub case: String,
    /// Connections opened.
    pub opened: u64,
    /// Connections closed.
    pub closed: u64,
    /// The most connections at a time, as the pool counted them.
    pub peak: u32,
    /// Sessions that the server still saw after the pool was closed.
    pub leaked: u32,
    /// From its creation to its end.
    pub duration_ms: u64,
}

impl Record {
    /// Leaves the record for the report, if there is to be one.
    pub fn leave(&self) {
        super::leave(KIND, self);
    }
}

/// The records in a directory.
///
/// # Errors
/// When the directory or one of the records cannot be read.
pub fn read_records(dir: &Path) -> io::Result<Vec<Record>> {
    super::read(dir, KIND)
}
