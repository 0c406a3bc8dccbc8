//! The suites, one module each, in one binary. A case is named by its suite and what it shows; run one
//! with `cargo xtask test-pools --case NAME`.

mod adapters;
mod concurrency;
mod failure;
mod lifecycle;
mod limits;
mod performance;
#[cfg(feature = "planted-leak")]
mod planted;
mod support;
