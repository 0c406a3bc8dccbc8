//! `base/current`: the note that tells newcomers which server to join.
//!
//! It appears complete or not at all, because it is written aside and renamed. Only a holder of the lock writes
//! it; the watchdog of the server that it names takes it away.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::base::{Base, Locked, SERVER_PREFIX};
use super::error::{Doing, ServerError};

/// How half-written notes are called; a killed writer may leave one.
pub(super) const DRAFT_PREFIX: &str = ".current-";

/// How to reach a running server.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// The directory's name below the base: unique, so it identifies the server.
    pub(super) name: String,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) database: String,
    pub(super) version: String,
    pub(super) postmaster_pid: u32,
    pub(super) watchdog_pid: u32,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("name", &self.name)
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("password", &"***")
            .field("database", &self.database)
            .field("version", &self.version)
            .field("postmaster_pid", &self.postmaster_pid)
            .field("watchdog_pid", &self.watchdog_pid)
            .finish()
    }
}

/// Where the note lies.
pub(super) fn path_in(base: &Base) -> PathBuf {
    base.path().join("current")
}

/// The note, if there is one that makes sense. One that does not is as good as none: the next start replaces it.
pub(super) fn read(base: &Base) -> Result<Option<Record>, ServerError> {
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
            tracing::warn!(path = %path.display(), "not a note of the test kit; ignoring it");
            None
        }
    }
}

/// Whether the note names this server now.
pub(super) fn names(base: &Base, name: &str) -> Result<bool, ServerError> {
    Ok(read(base)?.is_some_and(|record| record.name == name))
}

/// Makes a server the one to join.
pub(super) fn publish(lock: &Locked<'_>, record: &Record) -> Result<(), ServerError> {
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
pub(super) fn withdraw(lock: &Locked<'_>, name: &str) -> Result<(), ServerError> {
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
            host: "127.0.0.1".into(),
            port: 1,
            user: "u".into(),
            password: "hunter2".into(),
            database: "postgres".into(),
            version: "15.18".into(),
            postmaster_pid: 1,
            watchdog_pid: 1,
        }
    }

    #[test]
    fn debug_masks_the_password() {
        assert!(!format!("{:?}", record("srv-a")).contains("hunter2"));
    }

    #[test]
    fn the_note_is_private_and_names_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base::prepare(dir.path()).unwrap();
        let lock = base.lock().unwrap();
        publish(&lock, &record("srv-a")).unwrap();
        assert!(names(&base, "srv-a").unwrap());
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
