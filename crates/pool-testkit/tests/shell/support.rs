//! What the tests share.

use std::time::Duration;

use pool_core::{Limits, WorkspaceId};
use pool_manager::{PoolManager, Settings};
use pool_testkit::fakes::{FakeDriver, FakeServer};
use tokio::time::sleep;

pub type Manager = PoolManager<FakeDriver>;

pub fn id(name: &str) -> WorkspaceId {
    WorkspaceId::new(name).unwrap()
}

/// A manager with `budget` connections for workspaces, which exist as far as they are named.
pub async fn start(
    budget: u32,
    workspaces: &[&str],
    adjust: impl FnOnce(&mut Settings),
) -> (FakeServer, Manager) {
    let server = FakeServer::new();
    let manager = server.manager(Limits::new(budget + 2).system(2), adjust).unwrap();
    for name in workspaces {
        manager.ensure_workspace(&id(name)).await.unwrap();
    }
    (server, manager)
}

pub fn busy(manager: &Manager) -> u32 {
    let stats = manager.stats().workspaces;
    stats.connections.in_use + stats.connections.opening + stats.connections.closing + stats.waiting
}

/// Lets everything that can happen without time passing happen.
pub async fn settle() {
    sleep(Duration::from_nanos(1)).await;
}
