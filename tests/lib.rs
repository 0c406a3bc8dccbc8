//! Nothing: this package exists for its suites, which are one integration binary (`suites.rs`).
