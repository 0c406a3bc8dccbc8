//! What the handlers work with: ports.

use std::sync::Arc;

use pool_core::{WorkspacePools, Workspaces};

use crate::schema::Schema;

/// The state of every handler. `L` is a lease of the adapter behind them, or a mock of one.
pub struct App<L> {
    /// Connections to workspaces' databases.
    pub pools: Arc<dyn WorkspacePools<Lease = L>>,
    /// Which workspaces there are.
    pub workspaces: Arc<dyn Workspaces>,
    /// The tables of a workspace.
    pub schema: Arc<dyn Schema>,
    /// The domain whose names are workspaces.
    pub domain: Arc<str>,
}

impl<L> App<L> {
    /// An application on `pools`, which has all three ports.
    pub fn new<P>(pools: Arc<P>, domain: &str) -> Self
    where
        P: WorkspacePools<Lease = L> + Workspaces + Schema + 'static,
    {
        Self { pools: pools.clone(), workspaces: pools.clone(), schema: pools, domain: domain.into() }
    }
}

impl<L> Clone for App<L> {
    fn clone(&self) -> Self {
        Self {
            pools: Arc::clone(&self.pools),
            workspaces: Arc::clone(&self.workspaces),
            schema: Arc::clone(&self.schema),
            domain: Arc::clone(&self.domain),
        }
    }
}
