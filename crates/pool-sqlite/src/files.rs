//! Where databases are: one directory, and in it for each database a pointer and a file. No name leaves the directory, and two names
//! never share a file, on file systems that ignore case as well.
//!
//! `SQLite` finds what it keeps beside a database by the name of its file, and removes it by that name when the last session closes. So
//! a name is never used again: a session that outlives its database would remove the log of the next one. Each database has a
//! *generation* in its name, and the pointer says which is the present one, and whose it is.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use pool_core::{DatabaseName, WorkspaceId};

/// What a database file ends in; those that `SQLite` keeps beside it add to that.
const SUFFIX: &str = ".sqlite";
/// What a pointer ends in.
const POINTER_SUFFIX: &str = ".ws";

/// The directory of a pool's databases.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    path: PathBuf,
}

/// What a pointer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    pub(crate) generation: String,
    pub(crate) workspace: WorkspaceId,
}

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where `database` is, for errors: its files begin with this.
    pub(crate) fn place(&self, database: &DatabaseName) -> PathBuf {
        self.path.join(file_stem(database))
    }

    /// The file of `database` in one generation.
    pub(crate) fn file(&self, database: &DatabaseName, generation: &str) -> PathBuf {
        self.path.join(format!("{}.{generation}{SUFFIX}", file_stem(database)))
    }

    /// The pointer of `database`.
    pub(crate) fn pointer(&self, database: &DatabaseName) -> PathBuf {
        self.path.join(format!("{}{POINTER_SUFFIX}", file_stem(database)))
    }

    /// What the pointer of `database` says; none if there is no such database.
    pub(crate) fn current(&self, database: &DatabaseName) -> io::Result<Option<Pointer>> {
        match std::fs::read_to_string(self.pointer(database)) {
            Ok(text) => Pointer::parse(&text).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All pointers, with what they say.
    pub(crate) fn pointers(&self) -> io::Result<Vec<(PathBuf, Pointer)>> {
        let mut pointers = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.to_string_lossy().ends_with(POINTER_SUFFIX)
                && let Ok(text) = std::fs::read_to_string(&path)
                && let Ok(pointer) = Pointer::parse(&text)
            {
                pointers.push((path, pointer));
            }
        }
        Ok(pointers)
    }

    /// The files of all generations of `database`, with what `SQLite` keeps beside them.
    pub(crate) fn all_files(&self, database: &DatabaseName) -> io::Result<Vec<PathBuf>> {
        let start = format!("{}.", file_stem(database));
        let is_its = |name: &str| name.strip_prefix(&start).is_some_and(|rest| rest.contains(SUFFIX));
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.file_name().and_then(|name| name.to_str()).is_some_and(is_its) {
                files.push(path);
            }
        }
        Ok(files)
    }
}

impl Pointer {
    /// The generation, and the id behind it, which may hold anything.
    pub(crate) fn text(&self) -> String {
        format!("{}\n{}", self.generation, self.workspace.as_str())
    }

    fn parse(text: &str) -> io::Result<Self> {
        let parsed = text.split_once('\n').and_then(|(generation, id)| {
            let is_sound =
                !generation.is_empty() && generation.bytes().all(|byte| byte.is_ascii_alphanumeric());
            let workspace = WorkspaceId::new(id).ok()?;
            is_sound.then(|| Self { generation: generation.to_owned(), workspace })
        });
        parsed.ok_or_else(|| {
            io::Error::new(ErrorKind::InvalidData, "the pointer to the database cannot be read")
        })
    }
}

/// The log that `SQLite` keeps beside the database `file`.
pub(crate) fn log_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

/// `database` as a file name: letters and digits of ASCII, `_` and `-`; every other byte, and every capital, as `%` and two digits.
fn file_stem(database: &DatabaseName) -> String {
    database.as_str().bytes().fold(String::new(), |mut stem, byte| {
        if matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-') {
            stem.push(char::from(byte));
        } else {
            let _ = write!(stem, "%{byte:02x}");
        }
        stem
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i3_no_name_leaves_the_directory_or_shares_a_file() {
        let directory = Directory::new(PathBuf::from("/data"));
        let names =
            ["a", "A", "../a", "..", ".", "/etc/passwd", "a/b", "a%2fb", "a\\b", "a b", "é", "E", "%45"];
        let mut files: Vec<String> = Vec::new();
        for name in names {
            let file = directory.file(&DatabaseName::new(name).unwrap(), "1");
            assert_eq!(file.parent(), Some(Path::new("/data")), "{name}");
            files.push(file.to_str().unwrap().to_lowercase());
        }
        files.sort();
        files.dedup();
        assert_eq!(files.len(), names.len());
    }

    #[test]
    fn i3_a_pointer_gives_any_id_back_and_leads_nowhere_else() {
        for id in ["acme", "two\nlines", "", "../x"].iter().filter_map(|id| WorkspaceId::new(*id).ok()) {
            let pointer = Pointer { generation: "0a1b".into(), workspace: id };
            assert_eq!(Pointer::parse(&pointer.text()).unwrap(), pointer);
        }
        for forged in ["", "acme", "../../etc\nacme", "\nacme", "1\n"] {
            Pointer::parse(forged).unwrap_err();
        }
    }
}
