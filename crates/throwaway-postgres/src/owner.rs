//! Who runs the server: the user of the tests, or, because `PostgreSQL` refuses root, a lesser one.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{User, geteuid};

use crate::error::{Doing, ServerError};

/// What the children may see of the environment; the rest (PGPORT, secrets, ...) is not theirs.
const ENV_KEPT: [&str; 5] =
    ["PATH", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"];

/// The user that owns the base directory and runs watchdog and server.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    name: String,
    uid: u32,
    gid: u32,
    switches: bool,
}

impl Owner {
    /// The user of this process, or as root `postgres`, or else `nobody`.
    pub(crate) fn of_this_process() -> Result<Self, ServerError> {
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

    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether this is another user than the one of this process.
    pub(crate) fn switches(&self) -> bool {
        self.switches
    }

    /// Makes a path this user's own.
    pub(crate) fn give(&self, path: &Path) -> Result<(), ServerError> {
        if self.switches {
            chown(path, Some(self.uid), Some(self.gid)).doing("change the owner of", path)?;
        }
        Ok(())
    }

    /// Writes a file that is this user's own.
    pub(crate) fn write(&self, path: &Path, text: &str) -> Result<(), ServerError> {
        fs::write(path, text).doing("write", path)?;
        self.give(path)
    }

    /// Writes a secret into a new file that this user alone can read.
    pub(crate) fn write_private(&self, path: &Path, secret: &str) -> Result<(), ServerError> {
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(path);
        file.and_then(|mut file| writeln!(file, "{secret}")).doing("write", path)?;
        self.give(path)
    }

    /// A command that runs as this user, with a small environment and messages in English.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
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
