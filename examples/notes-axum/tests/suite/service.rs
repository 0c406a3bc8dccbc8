//! The same cases on both adapters: a [`TestPool`] on a throwaway server, and files in a directory of the test's own.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use notes_axum::app::App;
use notes_axum::handlers::router;
use notes_axum::notes::Notes;
use notes_axum::schema::{Schema, migrate_all};
use pool_core::{Limits, WorkspaceId, WorkspacePools, Workspaces};
use pool_sqlite::{SqliteConfig, SqlitePools};
use pool_testkit::TestPool;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

use crate::postgres::test_pool;

/// Connections for workspaces.
const SLOTS: u32 = 3;
/// How many may wait for one of them.
const WAITING: u32 = 1;

/// What the service needs of an adapter.
trait Pools: WorkspacePools<Lease: Notes> + Workspaces + Schema + Clone + 'static {}

impl<P: WorkspacePools<Lease: Notes> + Workspaces + Schema + Clone + 'static> Pools for P {}

/// Makes two tests of each case.
macro_rules! on_both {
    ($($case:ident)*) => {$(
        mod $case {
            #[tokio::test]
            async fn on_postgres() {
                let Some(pool) = super::postgres().await else { return };
                super::$case(pool.pools().clone()).await;
                pool.cleanup().await.unwrap();
            }

            #[tokio::test]
            async fn on_sqlite() {
                let directory = super::TempDir::new().unwrap();
                super::$case(super::sqlite(&directory).await).await;
            }
        }
    )*};
}

on_both! {
    a_note_is_read_back_in_its_workspace_only
    a_workspace_that_does_not_exist_is_not_found
    a_hostile_name_is_data
    a_full_queue_is_told_and_passes
    tables_that_are_behind_are_brought_up_to_date_at_the_start
    a_closed_pool_is_unhealthy
}

async fn postgres() -> Option<TestPool> {
    let limits = Limits::new(SLOTS + 3).system(3).waiting_per_workspace(WAITING);
    test_pool(TestPool::builder().limits(limits)).await
}

async fn sqlite(directory: &TempDir) -> SqlitePools {
    let limits = Limits::new(SLOTS).waiting_per_workspace(WAITING);
    SqlitePools::builder(SqliteConfig::new(directory.path())).limits(limits).build().await.unwrap()
}

fn acme() -> WorkspaceId {
    WorkspaceId::new("acme").unwrap()
}

/// Calls the service on `pools` for a workspace, with a body or without: by POST or by GET.
async fn call(pools: &impl Pools, path: &str, workspace: &str, body: Option<Value>) -> (StatusCode, Value) {
    let request = Request::builder().uri(path).header("x-workspace", workspace);
    let request = match body {
        Some(body) => request
            .method("POST")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string())),
        None => request.body(Body::empty()),
    };
    let app = App::new(Arc::new(pools.clone()), "notes.example");
    let response = router(app).oneshot(request.unwrap()).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

async fn create(pools: &impl Pools, workspace: &str) {
    let created = call(pools, "/workspaces", workspace, Some(json!({ "workspace": workspace }))).await;
    assert_eq!(created, (StatusCode::CREATED, json!({ "workspace": workspace })));
}

async fn a_note_is_read_back_in_its_workspace_only(pools: impl Pools) {
    create(&pools, "acme").await;
    create(&pools, "globex").await;
    for (id, text) in [(1, "milk"), (2, "bread")] {
        let added = call(&pools, "/notes", "acme", Some(json!({ "text": text }))).await;
        assert_eq!(added, (StatusCode::CREATED, json!({ "id": id, "text": text })));
    }
    let notes = json!({ "notes": [{ "id": 2, "text": "bread" }, { "id": 1, "text": "milk" }] });
    assert_eq!(call(&pools, "/notes", "acme", None).await, (StatusCode::OK, notes));
    assert_eq!(call(&pools, "/notes", "globex", None).await, (StatusCode::OK, json!({ "notes": [] })));
    let workspaces = call(&pools, "/workspaces", "acme", None).await;
    assert_eq!(workspaces, (StatusCode::OK, json!({ "workspaces": ["acme", "globex"] })));
    // Once more is no error, and changes nothing.
    create(&pools, "acme").await;
    assert_eq!(call(&pools, "/notes", "acme", None).await.1["notes"].as_array().map(Vec::len), Some(2));
}

async fn a_workspace_that_does_not_exist_is_not_found(pools: impl Pools) {
    let told = json!({ "error": "there is no such workspace" });
    assert_eq!(call(&pools, "/notes", "acme", None).await, (StatusCode::NOT_FOUND, told.clone()));
    let added = call(&pools, "/notes", "acme", Some(json!({ "text": "milk" }))).await;
    assert_eq!(added, (StatusCode::NOT_FOUND, told));
    assert!(!pools.workspace_exists(&acme()).await.unwrap());
}

async fn a_hostile_name_is_data(pools: impl Pools) {
    for name in ["x'; drop table note; --", "../../etc/passwd", "café 日本"] {
        create(&pools, name).await;
        let added = call(&pools, "/notes", name, Some(json!({ "text": name }))).await;
        assert_eq!(added, (StatusCode::CREATED, json!({ "id": 1, "text": name })));
    }
}

async fn a_full_queue_is_told_and_passes(pools: impl Pools) {
    create(&pools, "acme").await;
    let mut leases = Vec::new();
    for _ in 0..SLOTS {
        leases.push(pools.acquire(&acme()).await.unwrap());
    }
    let patient = pools.clone();
    let waits = tokio::spawn(async move { call(&patient, "/notes", "acme", None).await.0 });
    while call(&pools, "/stats", "acme", None).await.1["workspaces"]["waiting"] != json!(WAITING) {
        tokio::task::yield_now().await;
    }
    let (status, told) = call(&pools, "/notes", "acme", None).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{told}");
    drop(leases);
    assert_eq!(waits.await.unwrap(), StatusCode::OK);
    assert_eq!(call(&pools, "/notes", "acme", None).await.0, StatusCode::OK);
}

async fn tables_that_are_behind_are_brought_up_to_date_at_the_start(pools: impl Pools) {
    pools.ensure_workspace(&acme()).await.unwrap();
    let (status, told) = call(&pools, "/notes", "acme", None).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!told.to_string().contains("note\""), "the statement's error is in {told}");
    assert_eq!(migrate_all(&pools, &pools).await.unwrap(), 0);
    assert_eq!(call(&pools, "/notes", "acme", None).await, (StatusCode::OK, json!({ "notes": [] })));
}

async fn a_closed_pool_is_unhealthy(pools: impl Pools) {
    create(&pools, "acme").await;
    assert_eq!(call(&pools, "/health", "acme", None).await, (StatusCode::OK, json!({ "status": "serving" })));
    WorkspacePools::close(&pools).await.unwrap();
    assert_eq!(call(&pools, "/health", "acme", None).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(call(&pools, "/notes", "acme", None).await.0, StatusCode::SERVICE_UNAVAILABLE);
}
