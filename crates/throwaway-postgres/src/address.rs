//! How a server is reached: what every driver asks for, and the URL that most of them take.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The loopback interface: no server can be reached from elsewhere.
pub(crate) const HOST: &str = "127.0.0.1";
pub(crate) const USER: &str = "throwaway";
const DATABASE: &str = "postgres";

/// How a superuser reaches a server. `Debug` does not show the password.
///
/// ```no_run
/// # fn main() -> Result<(), throwaway_postgres::ServerError> {
/// let server = throwaway_postgres::Ephemeral::join_or_start()?;
/// let url = server.address().url();                              // postgres://throwaway:…@127.0.0.1:40231/postgres
/// let mine = server.address().with_database("my tests").url();   // …/my%20tests
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ServerAddress {
    host: String,
    port: u16,
    user: String,
    password: String,
    database: String,
}

/// The same to be written down. Not the address itself, since writing it tells the password.
#[derive(Serialize, Deserialize)]
#[serde(remote = "ServerAddress")]
pub(crate) struct Written {
    host: String,
    port: u16,
    user: String,
    password: String,
    database: String,
}

impl ServerAddress {
    pub(crate) fn local(port: u16, password: String) -> Self {
        Self { host: HOST.into(), port, user: USER.into(), password, database: DATABASE.into() }
    }

    pub(crate) fn set_port(&mut self, port: u16) {
        self.port = port;
    }

    /// Always the loopback interface.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A superuser.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The superuser's password: 128 random bits, which go with the server.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The database to connect to: `postgres`, which always exists, unless [`ServerAddress::with_database`] said another.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The same server with another database, which this does not create.
    pub fn with_database(&self, database: impl Into<String>) -> Self {
        Self { database: database.into(), ..self.clone() }
    }

    /// `postgres://user:password@host:port/database`, with each part percent-encoded. It contains the password.
    pub fn url(&self) -> String {
        let Self { host, port, user, password, database } = self;
        let (user, password, database) = (encoded(user), encoded(password), encoded(database));
        format!("postgres://{user}:{password}@{host}:{port}/{database}")
    }
}

impl fmt::Debug for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, user, password: _, database } = self;
        f.debug_struct("ServerAddress")
            .field("host", host)
            .field("port", port)
            .field("user", user)
            .field("password", &"***")
            .field("database", database)
            .finish()
    }
}

/// All but the unreserved characters of RFC 3986 is encoded, which no reader of URLs takes for a separator.
fn encoded(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_all_that_a_driver_needs() {
        let address = ServerAddress::local(5433, "a1b2".into());
        assert_eq!(address.url(), "postgres://throwaway:a1b2@127.0.0.1:5433/postgres");
    }

    #[test]
    fn what_would_end_a_part_of_the_url_is_encoded() {
        let address = ServerAddress::local(1, "p@:/?#%".into()).with_database("my tests/ü");
        assert_eq!(address.url(), "postgres://throwaway:p%40%3A%2F%3F%23%25@127.0.0.1:1/my%20tests%2F%C3%BC");
    }

    #[test]
    fn debug_masks_the_password() {
        let text = format!("{:?}", ServerAddress::local(5433, "hunter2".into()));
        assert!(text.contains("5433") && !text.contains("hunter2"), "{text}");
    }
}
