//! Where the databases of a test pool with a schema come from: the stock, which the pool's janitor makes up for.

use async_trait::async_trait;
use pool_core::DatabaseName;
use pool_postgres::DatabaseSource;
use sqlx::Error;
use sqlx::postgres::PgConnection;

use crate::janitor::JanitorHandle;
use crate::templates::{self, Schema};

/// Gives out stocked copies, and asks for more.
pub(crate) struct TemplateStock {
    pub(crate) schema: Schema,
    pub(crate) janitor: JanitorHandle,
}

impl TemplateStock {
    /// Has the janitor make up for what was taken, off the test's path.
    pub(crate) fn restock(&self) {
        let schema = self.schema.clone();
        self.janitor.hand(move |admin| Box::pin(async move { admin.refill(&schema).await }));
    }
}

#[async_trait]
impl DatabaseSource for TemplateStock {
    async fn make(&self, system: &mut PgConnection, name: &DatabaseName) -> Result<(), Error> {
        if templates::make(system, &self.schema, name.as_str()).await? {
            self.restock();
        }
        Ok(())
    }
}
