//! A service of notes: each tenant has a workspace, each workspace a database of its own, and all of them share one bounded pool.
//!
//! The handlers know ports and no adapter: those of [`pool_core`] for connections and workspaces, and two of the application's own,
//! [`notes::Notes`] for its rows and [`schema::Schema`] for its tables. So `PostgreSQL` or `SQLite` is one line of configuration,
//! and unit tests have neither. Read on in `main.rs`.

pub mod app;
pub mod config;
pub mod handlers;
#[cfg(test)]
mod handlers_tests;
pub mod notes;
pub mod refusal;
pub mod schema;
pub mod shutdown;
pub mod tenant;
