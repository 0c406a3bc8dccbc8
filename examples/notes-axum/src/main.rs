//! Starts the service, and ends it: by SIGTERM or Ctrl-C, with what was begun brought to its end.

use std::error::Error;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use notes_axum::app::App;
use notes_axum::config::{Config, Database};
use notes_axum::handlers::router;
use notes_axum::notes::Notes;
use notes_axum::schema::{POSTGRES, Schema, migrate_all};
use notes_axum::shutdown;
use pool_core::{WorkspacePools, Workspaces};
use pool_postgres::{Limits, PgPools, PostgresConfig};
use pool_sqlite::{SqliteConfig, SqlitePools};
use tokio::net::TcpListener;

/// How long requests may go on after the service was asked to end.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    match start().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the service ends");
            ExitCode::FAILURE
        }
    }
}

/// The one place that knows which database it is.
async fn start() -> Result<(), Box<dyn Error>> {
    let config = Config::from_env()?;
    match &config.database {
        Database::Postgres(url) => {
            let server = PostgresConfig::from_url(url)?.prefix(&config.prefix);
            // Of the budget, three are for the pool's own questions and for making databases.
            let limits = Limits::new(config.connections).system(3);
            // A new tenant is a copy that has all tables, however many migrations there are.
            let pools = PgPools::builder(server).limits(limits).migrations(&POSTGRES);
            run(pools.build().await?, &config).await
        }
        Database::Sqlite(directory) => {
            let files = SqliteConfig::new(directory).prefix(&config.prefix);
            let limits = Limits::new(config.connections);
            let pools = SqlitePools::builder(files).limits(limits);
            run(pools.build().await?, &config).await
        }
    }
}

/// Serves until it is asked to end, and leaves no connection behind, however the serving ended.
async fn run<P>(pools: P, config: &Config) -> Result<(), Box<dyn Error>>
where
    P: WorkspacePools<Lease: Notes> + Workspaces + Schema + 'static,
{
    let app = App::new(Arc::new(pools), &config.domain);
    let served = serve(&app, config).await;
    let closed = app.pools.close().await;
    served?;
    Ok(closed?)
}

async fn serve<L: Notes + 'static>(app: &App<L>, config: &Config) -> Result<(), Box<dyn Error>> {
    let mut stop = pin!(shutdown::requested()?);
    tokio::select! {
        migrated = migrate_all(&*app.workspaces, &*app.schema) => drop(migrated?),
        // What is under way is rolled back, and the next start goes on from there.
        () = &mut stop => return Ok(()),
    }
    let listener = TcpListener::bind(config.listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    shutdown::serve(listener, router(app.clone()), stop, DRAIN_LIMIT).await?;
    Ok(())
}
