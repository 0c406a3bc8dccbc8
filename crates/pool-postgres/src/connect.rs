//! Opening a session, with the patience that a server needs which is full for a moment only: it frees a
//! slot when the backend has exited, a little after it stopped showing it.

use std::time::Duration;

use pool_core::DriverErrorKind;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Error};
use tokio::time::sleep;

use crate::classify::kind_of;
use crate::contain::contained;

/// The pauses after which a full server is asked again, about a quarter of a second in all. Each is
/// stretched at random by up to its own length, so that those who wait do not come back together.
const PAUSES_MILLIS: [u64; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Connects; asks a full server again a few times.
pub(crate) async fn establish(options: &PgConnectOptions) -> Result<PgConnection, Error> {
    for pause in PAUSES_MILLIS {
        match connect(options).await {
            Err(error) if kind_of(&error, pool_core::Phase::Connect) == DriverErrorKind::ServerFull => {
                sleep(Duration::from_millis(pause).mul_f64(1.0 + fastrand::f64())).await;
            }
            outcome => return outcome,
        }
    }
    connect(options).await
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, Error> {
    contained(PgConnection::connect_with(options)).await.map_err(without_a_character)
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
