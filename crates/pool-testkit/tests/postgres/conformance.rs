//! The conformance suite over PostgreSQL.

pool_testkit::conformance!(pool_testkit::conformance::postgres::PostgresAdapter);
