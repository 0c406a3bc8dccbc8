//! The async shell around `pool-core`: it holds two registries (workspaces, system), each under a mutex of its own, never
//! awaits while holding one, performs the answers in tasks it owns, and reports back.
mod acquire;
mod catalog;
mod closing;
mod crew;
mod databases;
mod effects;
mod engine;
mod health;
mod job;
mod jobs;
mod lease;
mod look_ups;
mod maintenance;
mod manager;
mod moments;
mod report;
mod roster;
mod server;
mod settings;
mod share;
mod tasks;
mod workspace_pool;

pub use lease::Lease;
pub use manager::{PoolManager, StartError};
pub use report::MigrationReport;
pub use settings::{PolicyFactory, Settings};
pub use workspace_pool::WorkspacePool;
