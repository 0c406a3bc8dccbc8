//! The handlers on mocks: which call each makes, and what a client is told when it fails. There is no database.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderName, Request, Response, StatusCode, header};
use mockall::Sequence;
use mockall::predicate::eq;
use pool_core::mock::{MockWorkspacePools, MockWorkspaces};
use pool_core::{
    AcquireError, CatalogError, DriverError, DriverErrorKind, Health, Phase, PoolStats, Pressure, Stage,
    WorkspaceId,
};
use rstest::rstest;
use sqlx::migrate::MigrateError;
use tower::ServiceExt;

use crate::app::App;
use crate::handlers::router;
use crate::notes::{MockNotes, Note};
use crate::schema::MockSchema;

/// What no client may read: it stands in the errors below.
const ADDRESS: &str = "db.internal:5432/secret";

/// The three ports, without a call that is expected yet.
#[derive(Default)]
struct Mocks {
    pools: MockWorkspacePools<MockNotes>,
    workspaces: MockWorkspaces,
    schema: MockSchema,
}

impl Mocks {
    /// The answer to a request, with its body.
    async fn answer(self, request: Request<Body>) -> (Response<()>, String) {
        let app = App {
            pools: Arc::new(self.pools),
            workspaces: Arc::new(self.workspaces),
            schema: Arc::new(self.schema),
            domain: "notes.example".into(),
        };
        let (parts, body) = router(app).oneshot(request).await.unwrap().into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        (Response::from_parts(parts, ()), String::from_utf8(body.to_vec()).unwrap())
    }

    /// An acquire of `acme` that fails like this.
    fn acquire_fails(&mut self, error: AcquireError) {
        self.pools.expect_acquire().with(eq(acme())).times(1).return_once(|_| Err(error));
    }

    /// An acquire of `acme` that gives this lease.
    fn acquire_gives(&mut self, lease: MockNotes) {
        self.pools.expect_acquire().with(eq(acme())).times(1).return_once(|_| Ok(lease));
    }
}

fn acme() -> WorkspaceId {
    WorkspaceId::new("acme").unwrap()
}

fn get(path: &str, name: impl Into<HeaderName>, value: &[u8]) -> Request<Body> {
    Request::get(path).header(name.into(), value).body(Body::empty()).unwrap()
}

fn get_notes() -> Request<Body> {
    get("/notes", HeaderName::from_static("x-workspace"), b"acme")
}

fn post(path: &str, body: &'static str) -> Request<Body> {
    let request = Request::post(path).header("x-workspace", "acme");
    request.header(header::CONTENT_TYPE, "application/json").body(body.into()).unwrap()
}

fn failure(kind: DriverErrorKind) -> Arc<DriverError> {
    Arc::new(DriverError::new(Phase::Connect, kind, ADDRESS).caused_by("select password from users"))
}

fn open_failed(kind: DriverErrorKind) -> AcquireError {
    let (target, retry_in) = ((&acme()).into(), Duration::from_millis(2_100));
    AcquireError::OpenFailed { target, retryable: kind.is_retryable(), retry_in, source: failure(kind) }
}

fn timed_out() -> AcquireError {
    AcquireError::TimedOut {
        target: (&acme()).into(),
        waiting_for: Stage::Budget,
        after: Duration::from_secs(2),
        pressure: Pressure::default(),
        last_failure: Some(failure(DriverErrorKind::ServerFull)),
    }
}

/// Asserts status and `retry-after` of a refusal, and that it says no more than it should.
fn assert_refused((response, body): &(Response<()>, String), status: u16, retry_after: Option<&str>) {
    assert_eq!(response.status().as_u16(), status, "{body}");
    let seconds = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap());
    assert_eq!(seconds, retry_after, "{body}");
    let body = body.to_lowercase();
    assert!(!body.contains("internal:") && !body.contains("select") && !body.contains("insert"), "{body}");
}

#[rstest]
#[case::timed_out(timed_out(), 503, Some("1"))]
#[case::queue(AcquireError::QueueFull { target: (&acme()).into(), waiting: 9, limit: 9 }, 503, Some("1"))]
#[case::closing(AcquireError::WorkspaceClosing { target: (&acme()).into() }, 503, Some("1"))]
#[case::closed(AcquireError::Closed, 503, Some("1"))]
#[case::missing(open_failed(DriverErrorKind::DatabaseMissing), 404, None)]
#[case::away(open_failed(DriverErrorKind::Unreachable), 503, Some("3"))]
#[case::full(open_failed(DriverErrorKind::ServerFull), 503, Some("3"))]
#[case::refused(open_failed(DriverErrorKind::Refused), 500, None)]
#[tokio::test]
async fn a_failed_acquire_is_told_by_what_the_client_can_do(
    #[case] error: AcquireError,
    #[case] status: u16,
    #[case] retry_after: Option<&str>,
) {
    let mut mocks = Mocks::default();
    mocks.acquire_fails(error);
    assert_refused(&mocks.answer(get_notes()).await, status, retry_after);
}

#[tokio::test]
async fn a_statement_that_fails_is_logged_and_not_told() {
    let (mut mocks, mut lease) = (Mocks::default(), MockNotes::new());
    let error = || sqlx::Error::Protocol(format!("insert into note at {ADDRESS}"));
    lease.expect_add().times(1).returning(move |_| Err(error()));
    mocks.acquire_gives(lease);
    assert_refused(&mocks.answer(post("/notes", r#"{"text": "x"}"#)).await, 500, None);
}

#[tokio::test]
async fn a_note_is_written_on_a_lease_of_the_tenant() {
    let (mut mocks, mut lease) = (Mocks::default(), MockNotes::new());
    let keep = |text: &str| Ok(Note { id: 7, text: text.to_owned() });
    lease.expect_add().with(eq("milk")).times(1).returning(keep);
    mocks.acquire_gives(lease);
    let (response, body) = mocks.answer(post("/notes", r#"{"text": "milk"}"#)).await;
    assert_eq!((response.status(), body.as_str()), (StatusCode::CREATED, r#"{"id":7,"text":"milk"}"#));
}

/// No acquire is expected: a request that cannot be served costs no connection.
#[rstest]
#[case::no_json("{", 400)]
#[case::no_text("{}", 422)]
#[case::nul(r#"{"text": "a\u0000b"}"#, 400)]
#[tokio::test]
async fn a_bad_note_takes_no_connection(#[case] body: &'static str, #[case] status: u16) {
    assert_refused(&Mocks::default().answer(post("/notes", body)).await, status, None);
}

#[rstest]
#[case::nothing(get("/notes", header::ACCEPT, b"*/*"), "<workspace>.notes.example")]
#[case::empty(get("/notes", HeaderName::from_static("x-workspace"), b""), "empty")]
#[case::no_utf8(get("/notes", HeaderName::from_static("x-workspace"), b"\xff"), "UTF-8")]
#[case::long(get("/notes", HeaderName::from_static("x-workspace"), &[b'x'; 256]), "255")]
#[case::twice(Request::get("/notes").header("x-workspace", "a").header("x-workspace", "b").body(Body::empty()).unwrap(), "once")]
#[case::the_domain_itself(get("/notes", header::HOST, b"notes.example"), "names no workspace")]
#[case::another_domain(get("/notes", header::HOST, b"acme.evilnotes.example"), "names no workspace")]
#[case::two_labels(get("/notes", header::HOST, b"a.b.notes.example"), "names no workspace")]
#[tokio::test]
async fn a_request_without_a_workspace_is_told_why(#[case] request: Request<Body>, #[case] says: &str) {
    let answer = Mocks::default().answer(request).await;
    assert_refused(&answer, 400, None);
    assert!(answer.1.contains(says), "{}", answer.1);
}

#[rstest]
#[case::header(get_notes())]
#[case::host(get("/notes", header::HOST, b"acme.notes.example"))]
#[case::port_and_case(get("/notes", header::HOST, b"Acme.Notes.Example:3000"))]
#[case::authority(get("http://acme.notes.example/notes", header::HOST, b"other.notes.example"))]
#[case::header_first(Request::get("/notes").header("x-workspace", "acme").header("host", "b.notes.example").body(Body::empty()).unwrap())]
#[tokio::test]
async fn a_tenant_is_named_by_header_or_host(#[case] request: Request<Body>) {
    let (mut mocks, mut lease) = (Mocks::default(), MockNotes::new());
    lease.expect_newest().times(1).returning(|_| Ok(Vec::new()));
    mocks.acquire_gives(lease);
    let (response, body) = mocks.answer(request).await;
    assert_eq!((response.status(), body.as_str()), (StatusCode::OK, r#"{"notes":[]}"#));
}

#[tokio::test]
async fn a_new_workspace_has_a_database_before_it_has_tables() {
    let (mut mocks, mut order) = (Mocks::default(), Sequence::new());
    let ensure = mocks.workspaces.expect_ensure_workspace().with(eq(acme())).times(1);
    ensure.in_sequence(&mut order).returning(|_| Ok(()));
    let migrate = mocks.schema.expect_migrate().with(eq(acme())).times(1);
    migrate.in_sequence(&mut order).returning(|_| Ok(()));
    let (response, body) = mocks.answer(post("/workspaces", r#"{"workspace": "acme"}"#)).await;
    assert_eq!((response.status(), body.as_str()), (StatusCode::CREATED, r#"{"workspace":"acme"}"#));
}

#[rstest]
#[case::catalog(Some(DriverErrorKind::ServerNotReady), None, 503, Some("1"))]
#[case::no_right_to(Some(DriverErrorKind::Refused), None, 500, None)]
#[case::busy(None, Some(MigrateError::Execute(sqlx::Error::PoolTimedOut)), 503, Some("1"))]
#[case::migration(None, Some(MigrateError::VersionMissing(1)), 500, None)]
#[tokio::test]
async fn a_workspace_that_cannot_be_made_is_told_by_what_the_client_can_do(
    #[case] ensure: Option<DriverErrorKind>,
    #[case] migrate: Option<MigrateError>,
    #[case] status: u16,
    #[case] retry_after: Option<&str>,
) {
    let mut mocks = Mocks::default();
    let failed = |kind| CatalogError::Driver { target: (&acme()).into(), source: failure(kind) };
    let ensured = ensure.map_or(Ok(()), |kind| Err(failed(kind)));
    mocks.workspaces.expect_ensure_workspace().times(1).return_once(|_| ensured);
    mocks
        .schema
        .expect_migrate()
        .times(usize::from(migrate.is_some()))
        .return_once(|_| migrate.map_or(Ok(()), Err));
    let answer = mocks.answer(post("/workspaces", r#"{"workspace": "acme"}"#)).await;
    assert_refused(&answer, status, retry_after);
}

#[tokio::test]
async fn workspaces_are_listed_in_order() {
    let mut mocks = Mocks::default();
    let list = || Ok(["b", "a"].map(|name| WorkspaceId::new(name).unwrap()).into());
    mocks.workspaces.expect_list_workspaces().times(1).returning(list);
    assert_eq!(
        mocks.answer(get("/workspaces", header::ACCEPT, b"*/*")).await.1,
        r#"{"workspaces":["a","b"]}"#
    );
}

#[tokio::test]
async fn the_statistics_are_the_pool_s_own() {
    let mut mocks = Mocks::default();
    mocks.pools.expect_stats().times(1).returning(|| PoolStats { control: 1, ..PoolStats::default() });
    let body = mocks.answer(get("/stats", header::ACCEPT, b"*/*")).await.1;
    let stats: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&stats["control"], &stats["workspaces"]["connections"]["in_use"]), (&1.into(), &0.into()));
}

#[rstest]
#[case::serving(Health::Serving, 200, r#"{"status":"serving"}"#)]
#[case::closed(Health::Closed, 503, r#"{"status":"closed","reason":"the service is shutting down"}"#)]
#[case::away(
    Health::Unavailable { lasting: Duration::from_secs(12), error: failure(DriverErrorKind::Unreachable) },
    503,
    r#"{"status":"unavailable","reason":"the server cannot be reached, for 12 s"}"#
)]
#[tokio::test]
async fn health_says_why_and_not_where(#[case] health: Health, #[case] status: u16, #[case] says: &str) {
    let mut mocks = Mocks::default();
    mocks.pools.expect_health().times(1).return_const(health);
    let answer = mocks.answer(get("/health", header::ACCEPT, b"*/*")).await;
    assert_refused(&answer, status, None);
    assert_eq!(answer.1, says);
}
