//! The server that tests run on: the one that the environment names, or a throwaway one.
//!
//! Throwaway servers are those of [`throwaway_postgres`], which knows nothing of pools: [`Ephemeral`] is shared by all test
//! processes of a user, [`DedicatedServer`] is one test's own. Here they meet the environment ([`TestServer`]) and
//! get a [`PostgresConfig`].

mod error;
mod test_server;

use pool_postgres::PostgresConfig;
pub use throwaway_postgres::{
    Binaries, DedicatedServer, Ephemeral, KeptMark, KeptServer, Reaped, Search, ServerAddress, Stop,
    kept_server, reap_orphans,
};

pub use error::ServerError;
pub use test_server::TestServer;

/// How a superuser reaches a throwaway server, for a pool.
pub fn config_of(address: &ServerAddress) -> PostgresConfig {
    PostgresConfig::new(address.host())
        .port(address.port())
        .user(address.user())
        .password(address.password())
        .system_database(address.database())
}
