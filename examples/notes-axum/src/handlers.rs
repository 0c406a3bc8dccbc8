//! Which request is answered how. No adapter is named here, and no SQL.

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use pool_core::{Health, PoolStats, WorkspaceId};
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::notes::{Note, Notes};
use crate::refusal::Refusal;
use crate::tenant::Tenant;

/// How many notes are shown: an answer has a bound, too.
const NOTES_MAX: u32 = 100;
/// No request is longer than this.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// All that the service answers.
pub fn router<L: Notes + 'static>(app: App<L>) -> Router {
    Router::new()
        .route("/workspaces", get(workspaces::<L>).post(create::<L>))
        .route("/notes", get(notes::<L>).post(add::<L>))
        .route("/stats", get(stats::<L>))
        .route("/health", get(health::<L>))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app)
}

#[derive(Deserialize)]
struct NewWorkspace {
    workspace: String,
}

#[derive(Serialize)]
struct Created {
    workspace: WorkspaceId,
}

#[derive(Serialize)]
struct WorkspaceList {
    workspaces: Vec<WorkspaceId>,
}

#[derive(Deserialize)]
struct NewNote {
    text: String,
}

#[derive(Serialize)]
struct NoteList {
    notes: Vec<Note>,
}

#[derive(Serialize)]
struct HealthReport {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Makes a workspace with its tables. A client that is refused half-way calls again: each step is done once, however often it is
/// requested. (A service checks here, and in [`workspaces`] and [`stats`], that the caller is one of its operators.)
async fn create<L: Notes + 'static>(
    State(app): State<App<L>>,
    Json(new): Json<NewWorkspace>,
) -> Result<(StatusCode, Json<Created>), Refusal> {
    let workspace = WorkspaceId::new(new.workspace)?;
    app.workspaces.ensure_workspace(&workspace).await?;
    app.schema.migrate(&workspace).await?;
    Ok((StatusCode::CREATED, Json(Created { workspace })))
}

/// All workspaces.
async fn workspaces<L: Notes + 'static>(State(app): State<App<L>>) -> Result<Json<WorkspaceList>, Refusal> {
    let mut workspaces = app.workspaces.list_workspaces().await?;
    workspaces.sort();
    Ok(Json(WorkspaceList { workspaces }))
}

/// Writes a note. The body was read before the lease is taken, and the lease is back before the answer is sent: a slow client
/// holds no connection.
async fn add<L: Notes + 'static>(
    State(app): State<App<L>>,
    Tenant(workspace): Tenant,
    Json(new): Json<NewNote>,
) -> Result<(StatusCode, Json<Note>), Refusal> {
    if new.text.contains('\0') {
        return Err(Refusal::bad_request("a note must not hold a NUL character"));
    }
    let mut lease = app.pools.acquire(&workspace).await?;
    let note = lease.add(&new.text).await?;
    Ok((StatusCode::CREATED, Json(note)))
}

/// The newest notes, newest first.
async fn notes<L: Notes + 'static>(
    State(app): State<App<L>>,
    Tenant(workspace): Tenant,
) -> Result<Json<NoteList>, Refusal> {
    let mut lease = app.pools.acquire(&workspace).await?;
    let notes = lease.newest(NOTES_MAX).await?;
    Ok(Json(NoteList { notes }))
}

/// How the pool does.
async fn stats<L: Notes + 'static>(State(app): State<App<L>>) -> Json<PoolStats> {
    Json(app.pools.stats())
}

/// Whether a load balancer should send requests here. It costs no question to the database.
async fn health<L: Notes + 'static>(State(app): State<App<L>>) -> (StatusCode, Json<HealthReport>) {
    let (status, reason) = match app.pools.health() {
        Health::Serving => return (StatusCode::OK, Json(HealthReport { status: "serving", reason: None })),
        // What kind of failure it is, and not where: `Display` of the error has the address, for logs.
        Health::Unavailable { lasting, error } => {
            ("unavailable", format!("{}, for {} s", error.kind, lasting.as_secs()))
        }
        _ => ("closed", "the service is shutting down".to_owned()),
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(HealthReport { status, reason: Some(reason) }))
}
