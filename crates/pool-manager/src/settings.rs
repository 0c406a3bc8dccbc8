//! How long things may take, and what is plugged in. Every duration is a ceiling on one wait.

use std::sync::Arc;
use std::time::Duration;

use pool_core::{Ceilings, EvictionPolicy, Limits, Lru, Observer, RegistryConfig};

/// Makes an eviction policy; each share of the budget gets its own.
pub type PolicyFactory = Arc<dyn Fn() -> Box<dyn EvictionPolicy> + Send + Sync>;

/// The settings of a manager, with the defaults that [`Settings::new`] documents.
#[derive(Clone)]
#[non_exhaustive]
pub struct Settings {
    /// The hard ceilings.
    pub limits: Limits,
    /// How long a caller waits for a lease. Default 30 s.
    pub acquire_timeout: Duration,
    /// How long one open may take. Default 10 s.
    pub connect_timeout: Duration,
    /// When an open stops counting against the limit on simultaneous opens, and a close against the slots
    /// that will be free in a moment. Default 250 ms.
    pub slow_open_after: Duration,
    /// How long the check of an idle connection may take before it counts as broken. Default 1 s.
    pub check_timeout: Duration,
    /// A connection used less than this ago is handed out unchecked. Default 500 ms.
    pub check_after: Duration,
    /// How long it may take to make a returned connection clean. Default 5 s.
    pub recycle_timeout: Duration,
    /// A connection idle for this long is closed; none keeps it. Default 5 min.
    pub idle_timeout: Option<Duration>,
    /// A connection older than this is closed when it comes back, or while idle; each gets up to a tenth
    /// less, at random, so that they do not all end at once. None keeps it. Default 30 min.
    pub max_lifetime: Option<Duration>,
    /// How long `close` and `close_workspace` wait for leases before they cut. Default 10 s.
    pub close_timeout: Duration,
    /// How long creating or dropping a database may take, its turn included. Default 60 s.
    pub change_timeout: Duration,
    /// How long a connection serves its workspace before it is closed for another one that waits, although its own has
    /// callers waiting; above zero, at most the acquire timeout. Default: none, which is six times the measured price of a
    /// switch (a close and a connect), from 10 ms to 1 s.
    pub quantum: Option<Duration>,
    /// How long the catalog's facts are believed. Default 10 min.
    pub facts_ttl: Duration,
    /// Whom to evict. Default: the least recently used.
    pub eviction: PolicyFactory,
    /// Who is told of events.
    pub observer: Option<Arc<dyn Observer>>,
}

impl Settings {
    /// The defaults, for these ceilings.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            acquire_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            slow_open_after: Duration::from_millis(250),
            check_timeout: Duration::from_secs(1),
            check_after: Duration::from_millis(500),
            recycle_timeout: Duration::from_secs(5),
            idle_timeout: Some(Duration::from_mins(5)),
            max_lifetime: Some(Duration::from_mins(30)),
            close_timeout: Duration::from_secs(10),
            change_timeout: Duration::from_mins(1),
            quantum: None,
            facts_ttl: Duration::from_mins(10),
            eviction: Arc::new(|| Box::new(Lru::default())),
            observer: None,
        }
    }

    /// Whether the quantum can hold.
    pub(crate) fn quantum_is_sound(&self) -> bool {
        self.quantum.is_none_or(|quantum| !quantum.is_zero() && quantum <= self.acquire_timeout)
    }

    pub(crate) fn workspaces_config(&self, ceilings: &Ceilings) -> RegistryConfig {
        RegistryConfig {
            look_up: true,
            ..self.config(ceilings.workspaces(), ceilings.per_workspace(), ceilings)
        }
    }

    pub(crate) fn system_config(&self, ceilings: &Ceilings) -> RegistryConfig {
        self.config(ceilings.system_leases(), ceilings.system_leases(), ceilings)
    }

    fn config(&self, limit: u32, per_target: u32, ceilings: &Ceilings) -> RegistryConfig {
        RegistryConfig {
            opens: ceilings.opens(),
            waiting_per_target: ceilings.waiting_per_workspace(),
            quantum: self.quantum,
            check_after: self.check_after,
            idle_timeout: self.idle_timeout,
            ..RegistryConfig::new(limit, per_target)
        }
    }
}
