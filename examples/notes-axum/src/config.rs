//! What the environment says. `NOTES_DATABASE` is the line that decides between `PostgreSQL` and `SQLite`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// How the service is run.
pub struct Config {
    /// Where the workspaces' databases are: `NOTES_DATABASE`, which must be set.
    pub database: Database,
    /// Where clients are listened to: `NOTES_LISTEN`, default `127.0.0.1:3000`; port 0 for any that is free.
    pub listen: SocketAddr,
    /// The budget, in connections over all workspaces: `NOTES_CONNECTIONS`, default 20.
    pub connections: u32,
    /// The domain whose names are workspaces: `NOTES_DOMAIN`, default `notes.example`.
    pub domain: String,
    /// What the names of databases begin with: `NOTES_PREFIX`, default `notes`.
    pub prefix: String,
}

/// A server, or a directory. It has no `Debug`, because a URL holds a password.
pub enum Database {
    /// One database for each workspace, on the server of this URL.
    Postgres(String),
    /// One file for each workspace, in this directory.
    Sqlite(PathBuf),
}

/// A variable that is missing, or cannot be read. Its value is not shown.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{variable} must be {expected}")]
pub struct ConfigError {
    variable: &'static str,
    expected: &'static str,
}

impl Config {
    /// The configuration that the environment gives.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// The same, from any source of variables.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        Ok(Self {
            database: read(
                &get,
                "NOTES_DATABASE",
                "",
                "postgres://user@host/database or sqlite:///directory",
            )?,
            listen: read(&get, "NOTES_LISTEN", "127.0.0.1:3000", "an address and a port")?,
            connections: read(&get, "NOTES_CONNECTIONS", "20", "a number of connections")?,
            domain: read(&get, "NOTES_DOMAIN", "notes.example", "a domain")?,
            prefix: read(&get, "NOTES_PREFIX", "notes", "a prefix")?,
        })
    }
}

fn read<T: FromStr>(
    get: &impl Fn(&str) -> Option<String>,
    variable: &'static str,
    default: &str,
    expected: &'static str,
) -> Result<T, ConfigError> {
    let value = get(variable).unwrap_or_else(|| default.to_owned());
    value.parse().map_err(|_| ConfigError { variable, expected })
}

impl FromStr for Database {
    type Err = ();

    fn from_str(url: &str) -> Result<Self, ()> {
        match url.split_once("://") {
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(url.to_owned())),
            Some(("sqlite", directory)) if !directory.is_empty() => Ok(Self::Sqlite(directory.into())),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rstest::rstest;

    use super::{Config, Database};

    fn config(database: &str, more: &[(&str, &str)]) -> Result<Config, String> {
        let get = |name: &str| {
            let variables = [&[("NOTES_DATABASE", database)], more].concat();
            variables.into_iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_owned())
        };
        Config::from_variables(get).map_err(|error| error.to_string())
    }

    #[test]
    fn one_line_decides_which_database_it_is() {
        let postgres = config("postgres://u:p@h/d", &[]).unwrap();
        assert!(matches!(postgres.database, Database::Postgres(url) if url == "postgres://u:p@h/d"));
        let sqlite = config("sqlite:///srv/notes", &[]).unwrap();
        assert!(matches!(sqlite.database, Database::Sqlite(path) if path == Path::new("/srv/notes")));
        assert_eq!((sqlite.connections, sqlite.listen.port()), (20, 3000));
    }

    #[rstest]
    #[case::nothing("", &[], "NOTES_DATABASE")]
    #[case::another("mysql://u:hunter2@h/d", &[], "NOTES_DATABASE")]
    #[case::no_directory("sqlite://", &[], "NOTES_DATABASE")]
    #[case::port("sqlite:///d", &[("NOTES_LISTEN", "3000")], "NOTES_LISTEN")]
    #[case::budget("sqlite:///d", &[("NOTES_CONNECTIONS", "many")], "NOTES_CONNECTIONS")]
    fn a_bad_variable_is_named_and_no_password_is_shown(
        #[case] database: &str,
        #[case] more: &[(&str, &str)],
        #[case] named: &str,
    ) {
        let Err(error) = config(database, more) else { panic!("{database} is taken") };
        assert!(error.starts_with(named) && !error.contains("hunter2"), "{error}");
    }
}
