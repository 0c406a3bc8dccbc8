//! Cases that show something else than their name says, since the adapter that they run on has nothing of that kind.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::naming::current_test;

const KIND: &str = "replaced";

/// What a case shows instead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Replaced {
    /// The suite of the test.
    pub suite: String,
    /// The case.
    pub case: String,
    /// Why, and what is shown.
    pub by: String,
}

/// Tells that the case that runs on this thread shows something else: on standard output, and in the report, which counts it.
pub fn replaced(by: &str) {
    println!("replaced: {by}");
    let (suite, case) = current_test();
    super::leave(KIND, &Replaced { suite, case, by: by.to_owned() });
}

/// What was replaced, of a directory, in the order of suite and case.
///
/// # Errors
/// When the directory or a file of it cannot be read.
pub fn read_replaced(dir: &Path) -> io::Result<Vec<Replaced>> {
    let mut all: Vec<Replaced> = super::read(dir, KIND)?;
    all.sort();
    all.dedup();
    Ok(all)
}
