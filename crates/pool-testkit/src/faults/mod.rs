//! Faults on demand, for tests that show what callers see of them and how service comes back.
//!
//! ```text
//! proxy.rs    a TCP proxy between a pool and its server: resets, darkness, half-open and slow links, one
//!             database at a time, so that others can be seen not to notice
//! row.rs      what one test has observed: a row of docs/reliability.md
//! ```
//!
//! A server that can be stopped, frozen and killed is [`DedicatedServer`]; it is at home in [`crate::server`].

mod proxy;
mod row;

pub use crate::server::{DedicatedServer, Stop};
pub use proxy::{Link, Proxy};
pub use row::{RELIABILITY_ENV, Row, read_rows};
