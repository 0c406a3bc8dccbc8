//! The fault matrix: one fault a test, on a server of its own, through the public interface. Each test leaves a
//! row of docs/reliability.md; `cargo xtask reliability` writes that.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

mod backends;
mod control;
mod holders;
mod machine;
mod network;
mod refusals;
mod server;
mod support;
