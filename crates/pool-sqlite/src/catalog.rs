//! Databases of workspaces: files that are made, found, listed and removed. Nothing is lent for that.
//!
//! Processes that share a directory take turns by a lock on one file in it, so that nobody removes what another one has just made.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use pool_core::{Catalog, DatabaseName, DatabaseNaming, DriverError, DriverErrorKind, Phase, WorkspaceId};

use crate::config::SqliteConfig;
use crate::files::{Directory, Pointer};

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
        work: impl FnOnce(&Directory) -> io::Result<R> + Send + 'static,
    ) -> Result<R, DriverError> {
        let directory = self.config.directory();
        let outcome = tokio::task::spawn_blocking(move || work(&directory)).await;
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

/// Waits for the right to make or remove databases in `directory`, across processes. It ends with the file.
fn lock(directory: &Directory) -> io::Result<File> {
    let path = directory.path().join(LOCK);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    file.lock()?;
    Ok(file)
}

fn make(
    directory: &Directory,
    name: &DatabaseName,
    workspace: WorkspaceId,
    template: Option<&Path>,
) -> io::Result<bool> {
    let _lock = lock(directory)?;
    if directory.current(name)?.is_some() {
        return Ok(false);
    }
    // What is left of a making or a removal that was cut short belongs to nobody.
    remove_all(&directory.all_files(name)?)?;
    let pointer = Pointer { generation: format!("{:08x}", fastrand::u32(..)), workspace };
    let file = directory.file(name, &pointer.generation);
    match template {
        Some(template) => drop(std::fs::copy(template, &file)?),
        None => drop(OpenOptions::new().create_new(true).write(true).open(&file)?),
    }
    // The database is there with its pointer, and not before.
    let unpublished = directory.pointer(name).with_extension("making");
    std::fs::write(&unpublished, pointer.text())?;
    std::fs::rename(unpublished, directory.pointer(name))?;
    Ok(true)
}

fn remove(directory: &Directory, name: &DatabaseName) -> io::Result<bool> {
    let _lock = lock(directory)?;
    // The database is gone with its pointer; the rest is removed behind it.
    let was_there = removed(std::fs::remove_file(directory.pointer(name)))?;
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
        self.on_disk(address, move |directory| make(directory, &name, workspace, template.as_deref())).await
    }

    async fn drop(&self, (): &mut (), workspace: &WorkspaceId) -> Result<bool, DriverError> {
        let name = self.naming.database(workspace);
        self.on_disk(self.address(&name), move |directory| remove(directory, &name)).await
    }

    async fn exists(&self, (): &mut (), workspace: &WorkspaceId) -> Result<bool, DriverError> {
        let name = self.naming.database(workspace);
        self.on_disk(self.address(&name), move |directory| Ok(directory.current(&name)?.is_some())).await
    }

    async fn list(&self, (): &mut ()) -> Result<Vec<WorkspaceId>, DriverError> {
        let naming = Arc::clone(&self.naming);
        let address = self.config.directory().path().display().to_string();
        self.on_disk(address, move |directory| list(directory, naming.as_ref())).await
    }
}
