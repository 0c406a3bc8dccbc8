//! Who runs the server: the user of the tests, or, because `PostgreSQL` refuses root, a lesser one.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{User, geteuid};

use super::error::{Doing, ServerError};

/// What the children may see of the environment; the rest (PGPORT, secrets, ...) is not theirs.
const ENV_KEPT: [&str; 5] =
    ["PATH", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"];

/// The user that owns the base directory and runs watchdog and server.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    name: String,
    uid: u32,
    gid: u32,
    switches: bool,
}

impl Owner {
    /// The user of this process, or as root `postgres`, or else `nobody`.
    pub(super) fn of_this_process() -> Result<Self, ServerError> {
        let me = geteuid();
        if me.is_root() {
            return ["postgres", "nobody"].into_iter().find_map(Self::named).ok_or(ServerError::NoUser);
        }
        Ok(Self {
            name: format!("uid {me}"),
            uid: me.as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            switches: false,
        })
    }

    fn named(name: &str) -> Option<Self> {
        let user = User::from_name(name).ok().flatten()?;
        Some(Self { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), switches: true })
    }

    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether this is another user than the one of this process.
    pub(super) fn switches(&self) -> bool {
        self.switches
    }

    /// Makes a path this user's own.
    pub(super) fn give(&self, path: &Path) -> Result<(), ServerError> {
        if self.switches {
            chown(path, Some(self.uid), Some(self.gid)).doing("change the owner of", path)?;
        }
        Ok(())
    }

    /// Writes a file that is this user's own.
    pub(super) fn write(&self, path: &Path, text: &str) -> Result<(), ServerError> {
        fs::write(path, text).doing("write", path)?;
        self.give(path)
    }

    /// A command that runs as this user, with a small environment and messages in English.
    pub(super) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env_clear().env("LC_ALL", "C").current_dir("/");
        for name in ENV_KEPT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if self.switches {
            // std drops root's supplementary groups along with the user id.
            command.gid(self.gid).uid(self.uid);
        }
        command
    }
}
