//! `base/current`: the note that tells newcomers which server to join.
//!
//! It appears complete or not at all, because it is written aside and renamed. Only a holder of the lock writes
//! it; the watchdog of the server that it names takes it away.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::address::{ServerAddress, Written};
use crate::base::{Base, Locked, SERVER_PREFIX};
use crate::error::{Doing, ServerError};

/// How half-written notes are called; a killed writer may leave one.
pub(crate) const DRAFT_PREFIX: &str = ".current-";

/// A running server: how to reach it, and who runs it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The directory's name below the base: unique, so it identifies the server.
    pub(crate) name: String,
    #[serde(with = "Written")]
    pub(crate) address: ServerAddress,
    pub(crate) version: String,
    pub(crate) postmaster_pid: u32,
    pub(crate) watchdog_pid: u32,
}

/// The name by which the note knows a server.
pub(crate) fn name_of(dir: &Path) -> String {
    dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where the note lies.
pub(crate) fn path_in(base: &Base) -> PathBuf {
    base.path().join("current")
}

/// The note, if there is one that makes sense. One that does not is as good as none: the next start replaces it.
pub(crate) fn read(base: &Base) -> Result<Option<Record>, ServerError> {
    let path = path_in(base);
    match fs::read(&path) {
        Ok(bytes) => Ok(parse(&bytes, &path)),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(refused) => Err(refused).doing("read", &path),
    }
}

fn parse(bytes: &[u8], path: &Path) -> Option<Record> {
    match serde_json::from_slice::<Record>(bytes) {
        Ok(record) if record.name.starts_with(SERVER_PREFIX) && !record.name.contains('/') => Some(record),
        _ => {
            tracing::warn!(path = %path.display(), "not a note that names a server; ignoring it");
            None
        }
    }
}

/// Whether the note names this server now.
pub(crate) fn names(base: &Base, name: &str) -> Result<bool, ServerError> {
    Ok(read(base)?.is_some_and(|record| record.name == name))
}

/// Makes a server the one to join.
pub(crate) fn publish(lock: &Locked<'_>, record: &Record) -> Result<(), ServerError> {
    let path = path_in(lock.base());
    let mut line = serde_json::to_vec(record).doing("encode", &path)?;
    line.push(b'\n'); // the watchdog reads it as a line
    let mut draft = tempfile::Builder::new()
        .prefix(DRAFT_PREFIX)
        .tempfile_in(lock.base().path())
        .doing("create a file in", lock.base().path())?;
    draft.write_all(&line).doing("write", draft.path())?;
    lock.base().owner().give(draft.path())?;
    draft.persist(&path).map_err(io::Error::from).doing("write", &path)?;
    Ok(())
}

/// Removes the note if it names this server.
pub(crate) fn withdraw(lock: &Locked<'_>, name: &str) -> Result<(), ServerError> {
    if names(lock.base(), name)? {
        let path = path_in(lock.base());
        fs::remove_file(&path).doing("remove", &path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn record(name: &str) -> Record {
        Record {
            name: name.into(),
            address: ServerAddress::local(1, "hunter2".into()),
            version: "15.18".into(),
            postmaster_pid: 1,
            watchdog_pid: 1,
        }
    }

    #[test]
    fn the_note_is_private_and_names_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base::prepare(dir.path()).unwrap();
        let lock = base.lock().unwrap();
        publish(&lock, &record("srv-a")).unwrap();
        assert!(names(&base, "srv-a").unwrap());
        assert_eq!(read(&base).unwrap().unwrap().address, record("srv-a").address);
        let mode = fs::metadata(path_in(&base)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        withdraw(&lock, "srv-b").unwrap();
        assert!(names(&base, "srv-a").unwrap());
        withdraw(&lock, "srv-a").unwrap();
        assert!(read(&base).unwrap().is_none());
    }

    #[test]
    fn nonsense_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base::prepare(dir.path()).unwrap();
        for text in ["", "{", "{\"name\":\"srv-a\"}"] {
            fs::write(path_in(&base), text).unwrap();
            assert!(read(&base).unwrap().is_none());
        }
    }

    #[test]
    fn a_note_cannot_point_outside_the_base() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base::prepare(dir.path()).unwrap();
        publish(&base.lock().unwrap(), &record("srv-/../../x")).unwrap();
        assert!(read(&base).unwrap().is_none());
    }
}
