//! What a client is told when it does not get what it asked for: a status, and a reason in our own words. Errors of the pool and of
//! sqlx hold addresses and SQL, and go into the log.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pool_core::{AcquireError, CatalogError, DriverError, DriverErrorKind, WorkspaceIdError};
use serde::Serialize;
use sqlx::migrate::MigrateError;

/// When to come again, where nothing better is known.
const SOON: Duration = Duration::from_secs(1);

/// An answer that is none.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    reason: Cow<'static, str>,
    retry_after: Option<Duration>,
}

#[derive(Serialize)]
struct Told<'r> {
    error: &'r str,
}

impl Refusal {
    /// The client can do something about it, and `reason` says what.
    pub fn bad_request(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, reason: reason.into(), retry_after: None }
    }

    fn not_found() -> Self {
        Self { status: StatusCode::NOT_FOUND, reason: "there is no such workspace".into(), retry_after: None }
    }

    fn busy(retry_after: Duration) -> Self {
        let reason = "the service is busy, or its database is away for a moment".into();
        Self { status: StatusCode::SERVICE_UNAVAILABLE, reason, retry_after: Some(retry_after) }
    }

    fn internal() -> Self {
        let reason = "something went wrong here; it was logged".into();
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, reason, retry_after: None }
    }

    /// A failure of the driver, after which the pool tries again in `retry_in`.
    fn of_driver(error: &DriverError, retry_in: Duration) -> Self {
        match error.kind {
            DriverErrorKind::DatabaseMissing => Self::not_found(),
            kind if kind.is_retryable() => Self::busy(retry_in),
            _ => Self::internal(),
        }
    }

    /// Logs what the client is not told.
    fn logged(self, error: &dyn std::error::Error) -> Self {
        if self.status.is_server_error() {
            tracing::warn!(status = self.status.as_u16(), %error, "a request is refused");
        }
        self
    }
}

impl From<WorkspaceIdError> for Refusal {
    fn from(error: WorkspaceIdError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<AcquireError> for Refusal {
    fn from(error: AcquireError) -> Self {
        let refusal = match &error {
            AcquireError::OpenFailed { source, retry_in, .. } => Self::of_driver(source, *retry_in),
            AcquireError::NoSystemDatabase { .. } => Self::internal(),
            // Timed out, a full queue, a workspace or a pool that is being closed: another time, or another process.
            _ => Self::busy(SOON),
        };
        refusal.logged(&error)
    }
}

impl From<CatalogError> for Refusal {
    fn from(error: CatalogError) -> Self {
        let refusal = match &error {
            CatalogError::Driver { source, .. } => Self::of_driver(source, SOON),
            _ => Self::busy(SOON),
        };
        refusal.logged(&error)
    }
}

impl From<MigrateError> for Refusal {
    fn from(error: MigrateError) -> Self {
        let refusal = match &error {
            MigrateError::Execute(sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) => Self::busy(SOON),
            _ => Self::internal(),
        };
        refusal.logged(&error)
    }
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Self::internal().logged(&error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(Told { error: &self.reason })).into_response();
        if let Some(after) = self.retry_after {
            // In whole seconds, and never at once.
            let seconds = after.as_secs_f64().ceil().max(1.0);
            let seconds = HeaderValue::try_from(format!("{seconds:.0}"));
            response.headers_mut().extend(seconds.ok().map(|seconds| (header::RETRY_AFTER, seconds)));
        }
        response
    }
}
