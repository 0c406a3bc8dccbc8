//! initdb: how a data directory is made, for the shared server and for dedicated ones.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use crate::address::USER;
use crate::binaries::Binaries;
use crate::error::{Doing, ServerError};
use crate::watched::WatchedDirectory;

/// Starts initdb, which [`clear`] follows when it has ended.
pub(crate) fn begin(
    place: &mut WatchedDirectory,
    binaries: &Binaries,
    password: &str,
    options: &[&str],
) -> Result<(), ServerError> {
    let passwords = pwfile(place);
    place.owner().write_private(&passwords, password)?;
    let mut arguments: Vec<OsString> = vec!["-D".into(), place.data().into()];
    arguments.push(format!("--pwfile={}", passwords.display()).into());
    arguments.push(format!("--username={USER}").into());
    arguments.extend(["--encoding=UTF8", "--locale=C", "--no-sync"].map(Into::into));
    arguments.extend(options.iter().map(Into::into));
    place.spawn(&binaries.dir().join("initdb"), arguments)
}

/// Removes what only initdb needed.
pub(crate) fn clear(place: &WatchedDirectory) -> Result<(), ServerError> {
    let passwords = pwfile(place);
    fs::remove_file(&passwords).doing("remove", &passwords)
}

fn pwfile(place: &WatchedDirectory) -> PathBuf {
    place.path().join("pwfile")
}
