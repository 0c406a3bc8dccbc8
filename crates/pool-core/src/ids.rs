//! Names of things: the workspace a caller asks for, the target of a connection, and the small
//! identities that the registry hands out. A [`WorkspaceId`] is data from outside: it is checked once,
//! here, and carried as a cheap shared string afterwards.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// The longest workspace id in bytes. Longer than any database name may be (63 bytes), since ids are
/// hashed into names; short enough to be a key, a log field and part of an error.
pub const WORKSPACE_ID_BYTES_MAX: usize = 255;

/// Why a workspace id was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkspaceIdError {
    /// Nothing was given.
    #[error("a workspace id must not be empty")]
    Empty,
    /// It could not be a key or a log field.
    #[error("a workspace id has at most {max} bytes, this one has {bytes} bytes")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The longest allowed.
        max: usize,
    },
    /// `PostgreSQL` cannot carry a NUL in a text.
    #[error("a workspace id must not hold a NUL character (at byte {at})")]
    Nul {
        /// Where it was found.
        at: usize,
    },
}

/// A validated workspace (tenant) id: 1 to 255 bytes of UTF-8 without NUL. Any other character is
/// allowed: a hostile id is data, never SQL. Cloning costs one reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkspaceId(Arc<str>);

impl WorkspaceId {
    /// Checks `id` and keeps it as it is: no trimming, no case folding, so that two ids that differ in
    /// any byte stay two workspaces.
    ///
    /// # Errors
    /// [`WorkspaceIdError`] when the id is empty, longer than 255 bytes, or holds a NUL.
    ///
    /// ```
    /// use pool_core::WorkspaceId;
    ///
    /// assert_eq!(WorkspaceId::new("acme")?.as_str(), "acme");
    /// assert!(WorkspaceId::new("").is_err());
    /// # Ok::<(), pool_core::WorkspaceIdError>(())
    /// ```
    pub fn new(id: impl AsRef<str>) -> Result<Self, WorkspaceIdError> {
        let id = id.as_ref();
        if id.is_empty() {
            return Err(WorkspaceIdError::Empty);
        }
        if id.len() > WORKSPACE_ID_BYTES_MAX {
            return Err(WorkspaceIdError::TooLong { bytes: id.len(), max: WORKSPACE_ID_BYTES_MAX });
        }
        if let Some(at) = id.find('\0') {
            return Err(WorkspaceIdError::Nul { at });
        }
        Ok(Self(id.into()))
    }

    /// The id as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkspaceId {
    /// Quoted and escaped, so that a hostile id cannot forge a line of a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl fmt::Debug for WorkspaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkspaceId({self})")
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for WorkspaceId {
    /// The id as it was given.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl std::str::FromStr for WorkspaceId {
    type Err = WorkspaceIdError;

    fn from_str(id: &str) -> Result<Self, Self::Err> {
        Self::new(id)
    }
}

/// What a connection belongs to for life: one workspace's database, the system database, or the catalog's own sessions with that.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The system database, served from the reserved share.
    System,
    /// The catalog's own sessions with the system database, served from the reserved share as well. They are
    /// lent to nobody, so that no caller's settings reach the statements that create, drop and find databases.
    Catalog,
    /// The database of one workspace.
    Workspace(WorkspaceId),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("the system database"),
            Self::Catalog => f.write_str("the catalog"),
            Self::Workspace(id) => write!(f, "workspace {id}"),
        }
    }
}

impl From<&WorkspaceId> for Target {
    fn from(id: &WorkspaceId) -> Self {
        Self::Workspace(id.clone())
    }
}

/// A live connection, as eviction policies and reports know it. The index is small and dense, and used
/// again once the connection is gone, so a policy may index an array with it; the id as a whole is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    index: u32,
    serial: u32,
}

impl ConnectionId {
    /// An id, for the registry and for tests of eviction policies.
    pub const fn new(index: u32, serial: u32) -> Self {
        Self { index, serial }
    }

    /// The id as an array index, unique among the connections that live.
    pub const fn index(self) -> u32 {
        self.index
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.serial)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::empty("", "empty")]
    #[case::nul("a\0b", "NUL")]
    #[case::over_long(&"x".repeat(256), "256 bytes")]
    fn a_bad_id_gets_an_error_that_says_why(#[case] id: &str, #[case] says: &str) {
        let error = WorkspaceId::new(id).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }

    #[rstest]
    #[case::quotes("a\"b'c")]
    #[case::statement("x'; drop database postgres; --")]
    #[case::unicode("café-日本-🙂")]
    #[case::longest(&"x".repeat(255))]
    fn a_hostile_id_is_kept_as_it_is(#[case] id: &str) {
        assert_eq!(WorkspaceId::new(id).unwrap().as_str(), id);
    }

    #[test]
    fn a_display_cannot_forge_a_log_line() {
        assert_eq!(WorkspaceId::new("a\nERROR").unwrap().to_string(), "\"a\\nERROR\"");
    }
}
