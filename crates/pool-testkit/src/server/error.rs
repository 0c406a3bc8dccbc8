//! What can go wrong between asking for a server and having one, and what to do about it.

use std::io;

use throwaway_postgres::ServerError as Throwaway;

/// Why there is no server to test on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// No directory with working server binaries: install `PostgreSQL`, or name an existing server.
    #[error("{0}\n  no install:      TEST_DB_HOST=..., to use a server that already runs")]
    NoBinaries(Throwaway),
    /// A throwaway server did not start, or did not end; the text says what to do.
    #[error(transparent)]
    Throwaway(Throwaway),
    /// The environment names a server in a way that cannot be read.
    #[error(transparent)]
    Config(#[from] pool_postgres::ConfigError),
    /// The server that the environment names does not answer as it should.
    #[error("the test server failed: {0}")]
    Sql(#[from] sqlx::Error),
    /// No runtime, thread or the like could be had.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl From<Throwaway> for ServerError {
    fn from(why: Throwaway) -> Self {
        match why {
            Throwaway::NoBinaries { .. } => Self::NoBinaries(why),
            _ => Self::Throwaway(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_binaries_are_no_end_with_a_server_elsewhere() {
        let missing = Throwaway::NoBinaries { looked: vec!["PATH: no initdb".into()] };
        let text = ServerError::from(missing).to_string();
        for part in ["- PATH: no initdb", "apt-get install postgresql", "\n  no install:      TEST_DB_HOST="]
        {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }
}
