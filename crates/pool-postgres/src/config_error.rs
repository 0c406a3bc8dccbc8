//! Why a configuration cannot be used, whichever part of it.

use pool_core::NamingError;
use thiserror::Error;

/// Why a configuration was refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No variable that names a server is set.
    #[error(
        "no database is configured: set DATABASE_URL, or PGHOST (and PGPORT, PGUSER, PGPASSWORD, PGDATABASE, PGSSLMODE)"
    )]
    NothingSet,
    /// A variable holds what it cannot.
    #[error("{variable} cannot be {value:?}: {expected}")]
    Variable {
        /// Which variable.
        variable: String,
        /// What it holds; never a password.
        value: String,
        /// What it may hold.
        expected: &'static str,
    },
    /// The URL cannot be read. It is not shown, since it may hold a password.
    #[error("the database URL cannot be read: {0} (expected postgres://user:password@host:port/database)")]
    Url(#[source] sqlx::Error),
    /// TLS is asked for, and none is compiled in.
    #[error(
        "sslmode={mode} asks for TLS, and none is compiled in: switch on the feature `tls-rustls-ring-webpki` of pool-postgres (or \
         `tls-rustls-ring-native-roots`, or `tls-rustls-aws-lc-rs`), or set sslmode=disable"
    )]
    NoTls {
        /// What is asked for.
        mode: &'static str,
    },
    /// A session default cannot be one.
    #[error("{name:?} cannot be a session default: {why}")]
    SessionDefault {
        /// Which setting.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The database name or the prefix cannot be one.
    #[error(transparent)]
    Naming(#[from] NamingError),
}
