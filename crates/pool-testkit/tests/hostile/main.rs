//! Hostile input: ids, and servers that break the protocol.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod ids;
mod wire;
