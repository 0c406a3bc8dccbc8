//! Opening a session, with the patience that a server needs which is full for a moment only: it frees a
//! slot when the backend has exited, a little after it stopped showing it.

use std::time::Duration;

use pool_core::DriverErrorKind;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Error};
use tokio::time::sleep;

use crate::classify::kind_of;

/// The pauses after which a full server is asked again, about a quarter of a second in all. Each is
/// stretched at random by up to its own length, so that those who wait do not come back together.
const PAUSES_MILLIS: [u64; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Connects; asks a full server again a few times.
pub(crate) async fn establish(options: &PgConnectOptions) -> Result<PgConnection, Error> {
    for pause in PAUSES_MILLIS {
        match PgConnection::connect_with(options).await {
            Err(error) if kind_of(&error, pool_core::Phase::Connect) == DriverErrorKind::ServerFull => {
                sleep(Duration::from_millis(pause).mul_f64(1.0 + fastrand::f64())).await;
            }
            outcome => return outcome,
        }
    }
    PgConnection::connect_with(options).await
}
