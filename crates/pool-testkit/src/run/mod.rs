//! A run of the suites as a whole: what its processes are told, what they leave for the report, what the
//! server says about it while it runs, and what is left of it afterwards.

mod figure;
mod leftovers;
mod measured;
mod record;
mod replaced;
mod sampler;
mod timeline;

pub use crate::naming::{RUN_ENV, RunId, current_test, in_tag};
pub use figure::{Figure, figure, figure_series, read_figures};
pub(crate) use leftovers::{ALIVE_CLASS, drop_database, reap_databases};
pub use leftovers::{Cleaned, TaggedConnection, clean, connections, terminate};
pub use measured::{Goal, Measured};
pub use record::{Record, read_records};
pub use replaced::{Replaced, read_replaced, replaced};
pub use sampler::{LeftConnection, LeftDatabase, Sampled, Sampler};
pub use timeline::{Point, Timeline};

/// Names the directory in which each test pool leaves a [`Record`], and each figure itself.
pub const RECORDS_ENV: &str = "POOL_TEST_RECORDS";
/// Gives the tests their seed, as a decimal number.
pub const SEED_ENV: &str = "POOL_TEST_SEED";

/// The seed of this run, or a random one. Printed, so that a failure can be replayed.
pub fn seed() -> u64 {
    let given = std::env::var(SEED_ENV).ok().and_then(|seed| seed.trim().parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    seed
}

/// Leaves a file for the report, if there is to be one. Its kind is the beginning of its name.
fn leave(kind: &str, what: &impl serde::Serialize) {
    let Some(dir) = std::env::var_os(RECORDS_ENV) else { return };
    let name = format!("{kind}-{}-{:016x}.json", std::process::id(), fastrand::u64(..));
    let written = serde_json::to_vec(what).map_err(std::io::Error::from);
    let path = std::path::Path::new(&dir).join(name);
    if let Err(error) = written.and_then(|json| std::fs::write(path, json)) {
        tracing::error!(%error, "what a test told for the report could not be written");
    }
}

/// What was left in a directory of this kind, in no particular order.
fn read<T: serde::de::DeserializeOwned>(dir: &std::path::Path, kind: &str) -> std::io::Result<Vec<T>> {
    let mut read = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let is_of_kind = |name: &str| name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('-'));
        if entry.file_name().to_str().is_some_and(is_of_kind) {
            read.push(serde_json::from_slice(&std::fs::read(entry.path())?)?);
        }
    }
    Ok(read)
}
