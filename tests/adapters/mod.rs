//! The five suites once more, as one source for every adapter: what each case shows, it shows over memory, over files and over a
//! server alike, through the ports and nothing else. What only a server has is in the suites beside this directory.
//!
//! `cargo xtask test-pools --adapter sqlite` runs those of one adapter.

mod concurrency;
mod failure;
mod lifecycle;
mod limits;
mod performance;
mod rig;
mod worlds;

/// Makes a test of each case for each adapter, below a module of the adapter's name.
macro_rules! for_each_adapter {
    ($($suite:ident { $($case:ident)+ })+) => {
        for_each_adapter!(@ memory, super::worlds::Memory, $($suite { $($case)+ })+);
        for_each_adapter!(@ sqlite, super::worlds::Sqlite, $($suite { $($case)+ })+);
        for_each_adapter!(@ postgres, super::worlds::Postgres, $($suite { $($case)+ })+);
    };
    (@ $adapter:ident, $world:ty, $($suite:ident { $($case:ident)+ })+) => {
        mod $adapter {
            type World = $world;

            $(mod $suite {
                use super::super::{rig, $suite};
                use crate::support::Outcome;

                $(#[test]
                fn $case() -> Outcome {
                    rig::run::<super::World>($suite::$case::<super::World>())
                })+
            })+
        }
    };
}

// The names are those of the suites on a server, so that each is found under the same one everywhere.
for_each_adapter! {
    lifecycle {
        pool_initialization
        workspace_pool_creation
        workspace_pool_reuse
        workspace_pool_cleanup
        full_cleanup
        cleanup_idempotency
        multiple_pools_isolated
        pool_manager_isolation
        metrics_tracking
    }
    concurrency {
        concurrent_workspace_creation
        concurrent_same_workspace_access
        concurrent_read_write_operations
        concurrent_cleanup
        race_detector_stress_test
        high_contention
        rapid_create_destroy
    }
    limits {
        max_connections_respected
        connection_reuse
        connection_timeout_handling
        idle_connection_cleanup
        connection_stats_accuracy
        max_open_connections_per_database
        connection_limit_protects_system
        no_connection_leaks_on_error
        cleanup_releases_all_resources
    }
    failure {
        stale_connection_detection
        workspace_database_deleted_externally
        invalid_database_name
        recover_from_connection_errors
        concurrent_failures
        cleanup_handles_partially_failed_state
        system_connection_retry
        edge_cases
        double_cleanup_idempotency
    }
    performance {
        connection_reuse_performance
        high_workspace_count
        rapid_create_destroy_cycles
        idle_connection_cleanup_overhead
        concurrent_query_performance
        memory_efficiency
        connection_pool_warmup_time
        linear_scaling
        throughput_under_sustained_load
    }
}
