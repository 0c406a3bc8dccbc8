//! Where `PostgreSQL`'s server binaries are on this machine.
//!
//! Distributions keep `initdb` and `postgres` off the PATH, each in a place of its own. A place counts only if both
//! run, as the user who will run them.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::error::ServerError;
use crate::owner::Owner;

/// The oldest major version whose `postmaster.pid` says when the server is ready.
const OLDEST_MAJOR: u32 = 10;

/// Directories that hold one installation for each version, as `<parent>/<prefix><version>/<bin>`.
const FAMILIES: [(&str, &str, &str); 4] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/opt/homebrew/opt", "postgresql", "bin"),
    ("/usr/local/opt", "postgresql", "bin"),
    ("/usr", "pgsql-", "bin"),
];

/// Server binaries that have been seen to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    dir: PathBuf,
    version: String,
    major: u32,
}

impl Binaries {
    /// The directory with `initdb` and `postgres`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The version, such as `15.18`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The major version, such as 15.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.major
    }
}

/// Where to look for binaries.
#[derive(Debug, Clone)]
pub struct Search {
    pg_bin: Option<PathBuf>,
    path: OsString,
    families: Vec<(PathBuf, &'static str, &'static str)>,
}

impl Search {
    /// `$PG_BIN` if it is set; else what `pg_config` says, PATH, and the places of Debian, Homebrew and Red Hat.
    #[must_use]
    pub fn from_env() -> Self {
        Self {
            pg_bin: env::var_os("PG_BIN").filter(|value| !value.is_empty()).map(PathBuf::from),
            path: env::var_os("PATH").unwrap_or_default(),
            families: FAMILIES.map(|(parent, prefix, bin)| (parent.into(), prefix, bin)).to_vec(),
        }
    }

    /// The first place where both binaries run.
    ///
    /// # Errors
    /// [`ServerError::PgBin`] if `$PG_BIN` is set and does not work: a wish is not passed over.
    /// [`ServerError::NoBinaries`] if no place does; it lists them, and what to install.
    pub fn run(&self) -> Result<Binaries, ServerError> {
        let owner = Owner::of_this_process()?;
        if let Some(dir) = &self.pg_bin {
            return inspect(dir, &owner).map_err(|why| ServerError::PgBin { dir: dir.clone(), why });
        }
        self.first_that_works(&owner)
    }

    fn first_that_works(&self, owner: &Owner) -> Result<Binaries, ServerError> {
        let mut looked = vec!["PG_BIN: not set".to_owned()];
        for place in self.places(owner) {
            for dir in &place.dirs {
                match inspect(dir, owner) {
                    Ok(found) => return Ok(found),
                    Err(why) => looked.push(format!("{}: {}: {why}", place.name, dir.display())),
                }
            }
            if place.dirs.is_empty() {
                looked.push(format!("{}: nothing there", place.name));
            }
        }
        Err(ServerError::NoBinaries { looked })
    }

    fn places(&self, owner: &Owner) -> impl Iterator<Item = Place> {
        let families = self.families.iter().map(Place::family);
        // Lazy: pg_config is run only if it is reached, the directories are read only if nothing came before.
        std::iter::once_with(|| self.told_by_pg_config(owner))
            .chain(std::iter::once_with(|| self.on_path()))
            .chain(families)
    }

    fn told_by_pg_config(&self, owner: &Owner) -> Place {
        let told = env::split_paths(&self.path)
            .map(|dir| dir.join("pg_config"))
            .find(|file| file.is_file())
            .and_then(|file| output(owner, &file, "--bindir").ok());
        Place { name: "pg_config --bindir".into(), dirs: told.map(PathBuf::from).into_iter().collect() }
    }

    fn on_path(&self) -> Place {
        Place {
            name: "PATH".into(),
            dirs: env::split_paths(&self.path).filter(|dir| dir.join("postgres").exists()).collect(),
        }
    }
}

/// One place, with the directories it offers, best first.
struct Place {
    name: String,
    dirs: Vec<PathBuf>,
}

impl Place {
    fn family((parent, prefix, bin): &(PathBuf, &'static str, &'static str)) -> Self {
        let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let version = name.to_str()?.strip_prefix(prefix)?;
                // `postgresql@17`, `pgsql-17`, `17`; Homebrew's bare `postgresql` comes last
                let major = version.trim_start_matches('@').parse().unwrap_or(0);
                Some((major, entry.path().join(bin)))
            })
            .collect();
        versions.sort_by(|a, b| b.cmp(a));
        Self {
            name: parent.join(format!("{prefix}*")).join(bin).display().to_string(),
            dirs: versions.into_iter().map(|(_, dir)| dir).collect(),
        }
    }
}

/// Runs both binaries; says in words what is wrong with them.
fn inspect(dir: &Path, owner: &Owner) -> Result<Binaries, String> {
    // The watchdog runs elsewhere, so a relative directory would mean another one there.
    let dir = std::path::absolute(dir).map_err(|why| why.to_string())?;
    for name in ["initdb", "postgres"] {
        if !dir.join(name).is_file() {
            return Err(format!("there is no {name}"));
        }
    }
    output(owner, &dir.join("initdb"), "--version")?;
    let said = output(owner, &dir.join("postgres"), "--version")?;
    let (version, major) = parse_version(&said).ok_or_else(|| format!("postgres --version says `{said}`"))?;
    if major < OLDEST_MAJOR {
        return Err(format!("version {version} is too old; {OLDEST_MAJOR} or newer is needed"));
    }
    Ok(Binaries { dir, version, major })
}

fn output(owner: &Owner, program: &Path, argument: &str) -> Result<String, String> {
    let ran = owner
        .command(program)
        .arg(argument)
        .stdin(Stdio::null())
        .output()
        .map_err(|why| format!("{} does not run: {why}", program.display()))?;
    if !ran.status.success() {
        return Err(format!(
            "{} {argument} failed: {}",
            program.display(),
            String::from_utf8_lossy(&ran.stderr).trim()
        ));
    }
    Ok(String::from_utf8_lossy(&ran.stdout).trim().to_owned())
}

/// Takes `15.18` and 15 from `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`; knows `18beta1`, too.
fn parse_version(said: &str) -> Option<(String, u32)> {
    let version = said.split_once("(PostgreSQL) ")?.1.split(' ').next()?;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((version.to_owned(), digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A place that the server's user can reach, with scripts instead of binaries.
    fn installation(parent: &Path, version: &str) {
        let bin = parent.join(version).join("bin");
        fs::create_dir_all(&bin).unwrap();
        for name in ["initdb", "postgres"] {
            let file = bin.join(name);
            fs::write(&file, format!("#!/bin/sh\necho 'x (PostgreSQL) {version}.4'")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    fn open_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        dir
    }

    fn nowhere() -> Search {
        Search { pg_bin: None, path: OsString::new(), families: Vec::new() }
    }

    #[test]
    fn versions_are_read() {
        let known = |said| parse_version(said).unwrap();
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)";
        assert_eq!(known(debian), ("15.18".into(), 15));
        assert_eq!(known("postgres (PostgreSQL) 18beta1"), ("18beta1".into(), 18));
        assert_eq!(parse_version("redis 7"), None);
    }

    #[test]
    fn this_machine_has_binaries() {
        let found = Search::from_env().run().unwrap();
        assert!(found.major() >= OLDEST_MAJOR);
        assert!(found.version().starts_with(&found.major().to_string()));
    }

    #[test]
    fn the_highest_major_wins() {
        let dir = open_dir();
        for version in ["9", "10", "17"] {
            installation(dir.path(), version);
        }
        let search = Search { families: vec![(dir.path().into(), "", "bin")], ..nowhere() };
        let found = search.run().unwrap();
        assert_eq!((found.major(), found.version()), (17, "17.4"));
    }

    #[test]
    fn too_old_is_passed_over_with_a_reason() {
        let dir = open_dir();
        installation(dir.path(), "9");
        let search = Search { families: vec![(dir.path().into(), "", "bin")], ..nowhere() };
        let text = search.run().unwrap_err().to_string();
        assert!(text.contains("9.4 is too old"), "{text}");
    }

    #[test]
    fn path_is_searched() {
        let dir = open_dir();
        installation(dir.path(), "16");
        let bin = dir.path().join("16/bin");
        let search = Search { path: bin.clone().into(), ..nowhere() };
        assert_eq!(search.run().unwrap().dir(), bin);
    }

    #[test]
    fn nothing_found_lists_the_places() {
        let search = Search { families: vec![("/nonexistent".into(), "pgsql-", "bin")], ..nowhere() };
        let text = search.run().unwrap_err().to_string();
        for part in [
            "PG_BIN: not set",
            "pg_config --bindir: nothing there",
            "PATH: nothing there",
            "/nonexistent/pgsql-*/bin: nothing there",
            "apt-get install postgresql",
        ] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }

    #[test]
    fn an_empty_pg_bin_is_an_error_of_its_own() {
        let dir = open_dir();
        let search = Search { pg_bin: Some(dir.path().into()), ..Search::from_env() };
        let refused = search.run().unwrap_err();
        assert!(matches!(refused, ServerError::PgBin { .. }));
        assert!(refused.to_string().contains("there is no initdb"));
    }

    #[test]
    fn binaries_that_do_not_run_are_an_error() {
        let dir = open_dir();
        installation(dir.path(), "15");
        let bin = dir.path().join("15/bin");
        let not_executable = fs::Permissions::from_mode(0o644);
        fs::set_permissions(bin.join("initdb"), not_executable).unwrap();
        let search = Search { pg_bin: Some(bin), ..nowhere() };
        let text = search.run().unwrap_err().to_string();
        assert!(text.contains("initdb does not run"), "{text}");
    }
}
