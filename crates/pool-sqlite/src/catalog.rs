//! Databases of workspaces: files that are made, found, listed and removed. Nothing is lent for that.
//!
//! Processes that share a directory take turns by a lock on one file in it, so that nobody removes what another one has just made.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::path::Path;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use pool_core::{Catalog, DatabaseName, DatabaseNaming, DriverError, DriverErrorKind, Phase, WorkspaceId};

use crate::config::SqliteConfig;
use crate::files::{Directory, Pointer, log_of};

/// The file whose lock whoever makes or removes a database holds. It is no database: those end in `.sqlite`.
const LOCK: &str = ".lock";

/// The catalog of a directory.
pub struct SqliteCatalog {
    config: SqliteConfig,
    naming: Arc<dyn DatabaseNaming>,
}

impl SqliteCatalog {
    /// A catalog that names databases with `naming`.
    pub fn new(config: SqliteConfig, naming: Arc<dyn DatabaseNaming>) -> Self {
        Self { config, naming }
    }

    /// Runs what touches the disk where it may block.
    async fn on_disk<R: Send + 'static>(
        &self,
        address: String,
        work: impl FnOnce(&Directory, &Wanted) -> io::Result<R> + Send + 'static,
    ) -> Result<R, DriverError> {
        let directory = self.config.directory();
        // Dropped with this future: what nobody waits for any more is not begun.
        let asker = Arc::new(());
        let wanted = Wanted(Arc::downgrade(&asker));
        let outcome = tokio::task::spawn_blocking(move || work(&directory, &wanted)).await;
        drop(asker);
        let failed = |cause: Box<dyn std::error::Error + Send + Sync>| {
            DriverError::new(Phase::Catalog, DriverErrorKind::Other, address).caused_by(cause)
        };
        match outcome {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failed(error.into())),
            Err(error) => Err(failed(error.into())),
        }
    }

    fn address(&self, database: &DatabaseName) -> String {
        self.config.directory().place(database).display().to_string()
    }
}

/// Whether somebody still waits for what was ordered.
struct Wanted(Weak<()>);

/// The right to make or remove databases in a directory, across processes.
struct Lock(File);

impl Lock {
    /// Waits for it. An order whose caller has gone meanwhile is not carried out: others may have been told the contrary since.
    fn wait(directory: &Directory, wanted: &Wanted) -> io::Result<Self> {
        let path = directory.path().join(LOCK);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        file.lock()?;
        let lock = Self(file);
        if wanted.0.strong_count() == 0 {
            return Err(io::Error::new(ErrorKind::Interrupted, "nobody waits for it any more"));
        }
        Ok(lock)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // To close the file is not enough: a child that another thread has just forked has it, too.
        let _ = self.0.unlock();
    }
}

fn make(
    directory: &Directory,
    name: &DatabaseName,
    workspace: WorkspaceId,
    template: Option<&Path>,
    wanted: &Wanted,
) -> io::Result<bool> {
    let _lock = Lock::wait(directory, wanted)?;
    if directory.current(name)?.is_some() {
        return Ok(false);
    }
    // What is left of a making or a removal that was cut short belongs to nobody.
    remove_all(&directory.all_files(name)?)?;
    let pointer = Pointer { generation: format!("{:08x}", fastrand::u32(..)), workspace };
    let file = directory.file(name, &pointer.generation);
    let mut database = OpenOptions::new().create_new(true).write(true).open(&file)?;
    if let Some(template) = template {
        copy(template, &mut database)?;
    }
    database.sync_all()?;
    // The database is there with its pointer, and not before; and it stays, whatever happens to the machine.
    let unpublished = directory.pointer(name).with_extension("making");
    let mut written = File::create(&unpublished)?;
    written.write_all(pointer.text().as_bytes())?;
    written.sync_all()?;
    std::fs::rename(unpublished, directory.pointer(name))?;
    sync(directory)?;
    Ok(true)
}

/// Copies what a template holds, but not who may write to it.
fn copy(template: &Path, database: &mut File) -> io::Result<()> {
    if std::fs::metadata(log_of(template)).is_ok_and(|log| log.len() > 0) {
        let why =
            format!("the template {} is in use: what is in its log would be missing", template.display());
        return Err(io::Error::new(ErrorKind::ResourceBusy, why));
    }
    io::copy(&mut File::open(template)?, database).map(drop)
}

/// Makes the names in a directory last.
fn sync(directory: &Directory) -> io::Result<()> {
    File::open(directory.path())?.sync_all()
}

fn remove(directory: &Directory, name: &DatabaseName, wanted: &Wanted) -> io::Result<bool> {
    let _lock = Lock::wait(directory, wanted)?;
    // The database is gone with its pointer; the rest is removed behind it.
    let was_there = removed(std::fs::remove_file(directory.pointer(name)))?;
    sync(directory)?;
    remove_all(&directory.all_files(name)?)?;
    Ok(was_there)
}

fn remove_all(files: &[impl AsRef<Path>]) -> io::Result<()> {
    files.iter().try_for_each(|file| removed(std::fs::remove_file(file)).map(drop))
}

/// Whether there was something to remove.
fn removed(outcome: io::Result<()>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The workspaces whose databases are in `directory`: as the pointers say, believed only if the naming scheme agrees.
fn list(directory: &Directory, naming: &dyn DatabaseNaming) -> io::Result<Vec<WorkspaceId>> {
    let pointers = directory.pointers()?.into_iter();
    let named =
        pointers.filter(|(path, pointer)| directory.pointer(&naming.database(&pointer.workspace)) == *path);
    Ok(named.map(|(_, pointer)| pointer.workspace).collect())
}

impl DatabaseNaming for SqliteCatalog {
    fn database(&self, workspace: &WorkspaceId) -> DatabaseName {
        self.naming.database(workspace)
    }
}

#[async_trait]
impl Catalog<()> for SqliteCatalog {
    async fn ensure(&self, (): &mut (), workspace: &WorkspaceId) -> Result<bool, DriverError> {
        let (name, workspace) = (self.naming.database(workspace), workspace.clone());
        let template = self.config.get_template().map(Path::to_owned);
        let address = self.address(&name);
        self.on_disk(address, move |directory, wanted| {
            make(directory, &name, workspace, template.as_deref(), wanted)
        })
        .await
    }

    async fn drop(&self, (): &mut (), workspace: &WorkspaceId) -> Result<bool, DriverError> {
        let name = self.naming.database(workspace);
        self.on_disk(self.address(&name), move |directory, wanted| remove(directory, &name, wanted)).await
    }

    async fn exists(&self, (): &mut (), workspace: &WorkspaceId) -> Result<bool, DriverError> {
        let name = self.naming.database(workspace);
        self.on_disk(self.address(&name), move |directory, _| Ok(directory.current(&name)?.is_some())).await
    }

    async fn list(&self, (): &mut ()) -> Result<Vec<WorkspaceId>, DriverError> {
        let naming = Arc::clone(&self.naming);
        let address = self.config.directory().path().display().to_string();
        self.on_disk(address, move |directory, _| list(directory, naming.as_ref())).await
    }
}
