//! SQLSTATE and I/O errors to the kinds that the manager knows: one table, one place.

use std::io;

use pool_core::{DriverError, DriverErrorKind, Phase};
use sqlx::Error;

use crate::password::NoPassword;

/// SQLSTATE codes, or classes (two characters), and what they mean for a pool. The first match counts.
/// Source: `PostgreSQL`, appendix A of the manual.
const STATES: &[(&str, DriverErrorKind)] = &[
    ("28", DriverErrorKind::Refused),
    ("42501", DriverErrorKind::Refused),
    ("3D000", DriverErrorKind::DatabaseMissing),
    ("53300", DriverErrorKind::ServerFull),
    ("57P03", DriverErrorKind::ServerNotReady),
    ("57P01", DriverErrorKind::ConnectionLost),
    ("57P02", DriverErrorKind::ConnectionLost),
    ("57P05", DriverErrorKind::ConnectionLost),
    ("08", DriverErrorKind::ConnectionLost),
];

/// The kind of the I/O error that stands for a server that takes no writes.
pub(crate) const STANDBY: io::ErrorKind = io::ErrorKind::ReadOnlyFilesystem;

/// What an SQLSTATE means for a pool.
pub(crate) fn kind_of_state(code: &str) -> DriverErrorKind {
    STATES.iter().find(|(state, _)| code.starts_with(state)).map_or(DriverErrorKind::Other, |(_, kind)| *kind)
}

/// What an error of sqlx means for a pool, in `phase`. In a hook of the user, only a loss has a meaning that
/// the pool knows: what is missing or refused there is not the workspace's database.
pub(crate) fn kind_of(error: &Error, phase: Phase) -> DriverErrorKind {
    match error {
        error if phase == Phase::Prepare && !is_loss(error) => DriverErrorKind::Other,
        Error::Database(error) => error.code().map_or(DriverErrorKind::Other, |code| kind_of_state(&code)),
        Error::Io(error) => kind_of_io(error.kind(), phase),
        Error::Configuration(why) if why.is::<NoPassword>() => DriverErrorKind::NoCredentials,
        Error::Tls(_) if phase == Phase::Connect => DriverErrorKind::Refused,
        _ => DriverErrorKind::Other,
    }
}

fn kind_of_io(kind: io::ErrorKind, phase: Phase) -> DriverErrorKind {
    match (kind, phase) {
        (io::ErrorKind::TimedOut, _) => DriverErrorKind::TimedOut,
        (STANDBY, _) => DriverErrorKind::ServerNotReady,
        (_, Phase::Connect) => DriverErrorKind::Unreachable,
        _ => DriverErrorKind::ConnectionLost,
    }
}

/// Whether an error of a statement says that the session is gone.
pub(crate) fn is_loss(error: &Error) -> bool {
    match error {
        Error::Database(_) => kind_of(error, Phase::Check) == DriverErrorKind::ConnectionLost,
        Error::Io(_) => true,
        _ => false,
    }
}

/// Whether the session is gone, so that the connection is of no more use.
pub(crate) fn is_fatal(error: &Error) -> bool {
    match error {
        Error::Database(_) => is_loss(error),
        Error::RowNotFound | Error::ColumnNotFound(_) | Error::ColumnDecode { .. } | Error::Decode(_) => {
            false
        }
        _ => true,
    }
}

/// Whether a statement's error is neither the server's word nor one that sqlx finds before it sends anything or after it
/// has read everything. sqlx may then wait for an answer while the server waits for more.
pub(crate) fn leads_astray(error: &Error) -> bool {
    use Error::{
        ColumnDecode, ColumnIndexOutOfBounds, ColumnNotFound, Database, Decode, Encode, InvalidArgument,
        RowNotFound, TypeNotFound,
    };
    let is_known = matches!(
        error,
        Database(_)
            | Encode(_)
            | InvalidArgument(_)
            | TypeNotFound { .. }
            | RowNotFound
            | ColumnNotFound(_)
            | ColumnIndexOutOfBounds { .. }
            | ColumnDecode { .. }
            | Decode(_)
    );
    !is_known
}

pub(crate) fn driver_error(error: Error, phase: Phase, address: impl Into<String>) -> DriverError {
    let failed = DriverError::new(phase, kind_of(&error, phase), address);
    match error {
        // sqlx would call it an error of the configuration.
        Error::Configuration(why) if why.is::<NoPassword>() => failed.caused_by(why),
        error => failed.caused_by(error),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::wrong_password("28P01", DriverErrorKind::Refused)]
    #[case::invalid_authorization("28000", DriverErrorKind::Refused)]
    #[case::insufficient_privilege("42501", DriverErrorKind::Refused)]
    #[case::missing_database("3D000", DriverErrorKind::DatabaseMissing)]
    #[case::too_many_connections("53300", DriverErrorKind::ServerFull)]
    #[case::starting_up("57P03", DriverErrorKind::ServerNotReady)]
    #[case::admin_shutdown("57P01", DriverErrorKind::ConnectionLost)]
    #[case::crash_shutdown("57P02", DriverErrorKind::ConnectionLost)]
    #[case::idle_session_timeout("57P05", DriverErrorKind::ConnectionLost)]
    #[case::connection_failure("08006", DriverErrorKind::ConnectionLost)]
    #[case::query_cancelled("57014", DriverErrorKind::Other)]
    #[case::disk_full("53100", DriverErrorKind::Other)]
    fn every_state_has_its_kind(#[case] code: &str, #[case] kind: DriverErrorKind) {
        assert_eq!(kind_of_state(code), kind);
    }

    #[rstest]
    #[case::refused(io::ErrorKind::ConnectionRefused, Phase::Connect, DriverErrorKind::Unreachable)]
    #[case::standby(STANDBY, Phase::Check, DriverErrorKind::ServerNotReady)]
    #[case::timed_out(io::ErrorKind::TimedOut, Phase::Connect, DriverErrorKind::TimedOut)]
    #[case::reset(io::ErrorKind::ConnectionReset, Phase::Check, DriverErrorKind::ConnectionLost)]
    fn every_io_error_has_its_kind(
        #[case] error: io::ErrorKind,
        #[case] phase: Phase,
        #[case] kind: DriverErrorKind,
    ) {
        assert_eq!(kind_of(&Error::Io(error.into()), phase), kind);
    }
}
