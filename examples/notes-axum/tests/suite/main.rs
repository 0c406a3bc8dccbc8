//! The service on real databases: `service.rs` calls it in this process, `load.rs` drives the real binary by HTTP.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod load;
mod postgres;
mod server;
mod service;
