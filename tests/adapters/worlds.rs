//! The three worlds of the suites: a server in memory, a directory of files, a server.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pool_core::DatabaseName;
use pool_testkit::conformance::memory::MemoryAdapter;
use pool_testkit::conformance::postgres::PostgresAdapter;

use super::rig::{Outcome, Suite};

#[path = "../../crates/pool-sqlite/tests/files/mod.rs"]
mod files;

pub type Memory = MemoryAdapter;
pub type Sqlite = files::Files;
pub type Postgres = PostgresAdapter;

/// What things cost in memory, in virtual time: about what a server near by takes.
const CONNECT: Duration = Duration::from_millis(5);
const CLOSE: Duration = Duration::from_millis(1);
const STATEMENT: Duration = Duration::from_millis(1);
const ROUND_TRIP: Duration = Duration::from_micros(200);

impl Suite for Memory {
    const IS_VIRTUAL: bool = true;

    fn cost(&self) {
        let server = self.server();
        server.connect_takes(CONNECT);
        server.close_takes(CLOSE);
        server.statements_take(STATEMENT);
        server.checks_take(ROUND_TRIP);
        server.answers_take(ROUND_TRIP);
        server.look_ups_take(ROUND_TRIP);
    }

    async fn delete(&self, database: &DatabaseName) -> Outcome {
        self.server().lose_database(database.as_str());
        Ok(())
    }

    async fn refuse(&self, database: &DatabaseName, refuses: bool) -> Outcome {
        self.server().refuse_database(database.as_str(), refuses);
        Ok(())
    }
}

impl Suite for Sqlite {
    async fn delete(&self, database: &DatabaseName) -> Outcome {
        for file in self.files_of(database)? {
            fs::remove_file(file)?;
        }
        Ok(())
    }

    /// A file that begins with anything else is no database.
    async fn refuse(&self, database: &DatabaseName, refuses: bool) -> Outcome {
        let is_file = |path: &PathBuf| path.extension() == Some(OsStr::new("sqlite"));
        let file = self.files_of(database)?.into_iter().find(is_file).ok_or("there is no file")?;
        let aside = self.directory.path().join(format!("aside-{database}"));
        if refuses {
            fs::rename(&file, &aside)?;
            fs::write(&file, "this is no database, whatever its name says".repeat(100))?;
        } else {
            fs::rename(&aside, &file)?;
        }
        Ok(())
    }
}

impl Sqlite {
    /// What is there of a database.
    fn files_of(&self, database: &DatabaseName) -> Outcome<Vec<PathBuf>> {
        let start = format!("{}.", database.as_str());
        let is_its = |path: &Path| {
            path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(&start))
        };
        let entries = fs::read_dir(self.directory.path())?.collect::<Result<Vec<_>, _>>()?;
        Ok(entries.into_iter().map(|entry| entry.path()).filter(|path| is_its(path)).collect())
    }
}

impl Suite for Postgres {
    async fn delete(&self, database: &DatabaseName) -> Outcome {
        Ok(self.execute_outside(&format!("drop database \"{database}\" with (force)")).await?)
    }

    async fn refuse(&self, database: &DatabaseName, refuses: bool) -> Outcome {
        let alter = format!("alter database \"{database}\" allow_connections {}", !refuses);
        Ok(self.execute_outside(&alter).await?)
    }
}
