//! Opening a session, with the patience that a server needs which is full for a moment only: it frees a
//! slot when the backend has exited, a little after it stopped showing it.

use std::time::Duration;

use pool_core::{DriverErrorKind, Phase};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error};
use tokio::time::sleep;

use crate::catch_panics::catch_panics;
use crate::classify::kind_of;
use crate::config::PostgresConfig;
use crate::relay::Relay;
use crate::session::SessionKind;
use crate::tag::Tag;

/// The pauses after which a full server is asked again, about a quarter of a second in all. Each is
/// stretched at random by up to its own length, so that those who wait do not come back together.
const PAUSES_MILLIS: [u64; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Opens sessions with one server, under guard if it is not trusted.
#[derive(Debug)]
pub(crate) struct Connector {
    config: PostgresConfig,
    guard: Option<Relay>,
}

impl Connector {
    pub(crate) fn new(config: PostgresConfig) -> Self {
        let guard = config.is_guarded().then(Relay::default);
        Self { config, guard }
    }

    pub(crate) fn config(&self) -> &PostgresConfig {
        &self.config
    }

    /// Connects to `database`; asks a full server again a few times.
    pub(crate) async fn connect(
        &self,
        database: &str,
        kind: SessionKind,
    ) -> Result<(PgConnection, Tag), Error> {
        for pause in PAUSES_MILLIS {
            match self.try_once(database, kind).await {
                Err(error) if kind_of(&error, Phase::Connect) == DriverErrorKind::ServerFull => {
                    sleep(Duration::from_millis(pause).mul_f64(1.0 + fastrand::f64())).await;
                }
                outcome => return outcome,
            }
        }
        self.try_once(database, kind).await
    }

    async fn try_once(&self, database: &str, kind: SessionKind) -> Result<(PgConnection, Tag), Error> {
        let tag = Tag::fresh();
        let options = self.config.session_options(database, kind, &tag);
        let server = (self.config.host(), self.config.get_port());
        let outcome = match &self.guard {
            None => catch_panics(PgConnection::connect_with(&options)).await,
            Some(guard) => catch_panics(guard.connect(server, options)).await,
        };
        outcome.map(|conn| (conn, tag)).map_err(without_a_character)
    }
}

/// sqlx names the character of a password that `SASLprep` forbids; no part of a password is to be told.
fn without_a_character(error: Error) -> Error {
    match error {
        Error::Configuration(why) if why.to_string().contains("saslprep password") => {
            Error::Configuration("the password holds a character that SASLprep forbids".into())
        }
        error => error,
    }
}
