//! The servers against real processes: shared or a test's own, and gone with the last of their holders, however those end.
//!
//! Where another process is needed, this test binary runs itself: the "test" `another_process` is that process, and does
//! nothing on its own.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod dedicated;
mod ends;
mod refusals;
mod sharing;
mod support;
