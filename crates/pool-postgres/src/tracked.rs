//! A session as an executor whose statements are seen, and how leases and transactions pass on to it.

use std::ops::{Deref, DerefMut};

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::TryStreamExt;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Acquire, Describe, Either, Error, Execute, Executor, Postgres, SqlStr, Transaction};

use crate::connection::{PgSession, StatementGuard};
use crate::lease::PgLease;
use crate::statement::OwnedQuery;
use crate::transaction::PgTransaction;

/// What a query that ends with rows or counts gives, step by step.
pub(crate) type Step = Either<PgQueryResult, PgRow>;

impl PgSession {
    fn see(&mut self, query: &mut OwnedQuery) -> (&mut PgConnection, StatementGuard<'_>) {
        if !self.keeps_statements() {
            query.without_a_name();
        }
        self.track(query.text(), query.has_arguments())
    }
}

impl Deref for PgSession {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.raw()
    }
}

impl DerefMut for PgSession {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.raw_mut()
    }
}

impl<'c> Executor<'c> for &'c mut PgSession {
    type Database = Postgres;

    fn fetch_many<'e, 'q, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'c: 'e,
        E: Execute<'q, Postgres>,
        'q: 'e,
        E: 'q,
    {
        let mut query = OwnedQuery::new(query);
        let (conn, statement) = self.see(&mut query);
        Box::pin(async_stream::try_stream! {
            statement.may_start()?;
            let mut steps = conn.fetch_many(query);
            loop {
                match steps.try_next().await {
                    Ok(Some(step)) => yield step,
                    last => {
                        statement.ended(last)?;
                        break;
                    }
                }
            }
        })
    }

    fn fetch_optional<'e, 'q, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: Execute<'q, Postgres>,
        'q: 'e,
        E: 'q,
    {
        let mut query = OwnedQuery::new(query);
        let (conn, statement) = self.see(&mut query);
        Box::pin(async move {
            statement.may_start()?;
            statement.ended(conn.fetch_optional(query).await)
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        let (conn, statement) = self.begin_prepare();
        Box::pin(async move {
            statement.may_start()?;
            statement.ended(conn.prepare_with(sql, parameters).await)
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        let (conn, statement) = self.begin_prepare();
        Box::pin(async move {
            statement.may_start()?;
            statement.ended(conn.describe(sql).await)
        })
    }
}

impl AsMut<PgConnection> for PgSession {
    fn as_mut(&mut self) -> &mut PgConnection {
        self.raw_mut()
    }
}

impl AsRef<PgConnection> for PgSession {
    fn as_ref(&self) -> &PgConnection {
        self.raw()
    }
}

/// Both ways give what sqlx asks for, its own connection: raw access. A transaction that begins here is of sqlx's own type, and ends in
/// its way: where a statement has failed, its `commit` returns `Ok` although the server has rolled back. Only
/// [`PgTransaction`], which [`db.begin()`](crate::PgWorkspacePool::begin) gives, asks before.
impl<'c> Acquire<'c> for &'c mut PgSession {
    type Database = Postgres;
    type Connection = &'c mut PgConnection;

    fn acquire(self) -> BoxFuture<'c, Result<Self::Connection, Error>> {
        Box::pin(std::future::ready(Ok(self.raw_mut())))
    }

    fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, Postgres>, Error>> {
        Transaction::begin(self.raw_mut(), None)
    }
}

/// `&mut` of what derefs to a session is the same executor.
macro_rules! pass_on_to_the_session {
    ($holder:ty) => {
        impl<'c> Executor<'c> for &'c mut $holder {
            type Database = Postgres;

            fn fetch_many<'e, 'q, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
            where
                'c: 'e,
                E: Execute<'q, Postgres>,
                'q: 'e,
                E: 'q,
            {
                self.deref_mut().fetch_many(query)
            }

            fn fetch_optional<'e, 'q, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
            where
                'c: 'e,
                E: Execute<'q, Postgres>,
                'q: 'e,
                E: 'q,
            {
                self.deref_mut().fetch_optional(query)
            }

            fn prepare_with<'e>(
                self,
                sql: SqlStr,
                parameters: &'e [PgTypeInfo],
            ) -> BoxFuture<'e, Result<PgStatement, Error>>
            where
                'c: 'e,
            {
                self.deref_mut().prepare_with(sql, parameters)
            }

            fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
            where
                'c: 'e,
            {
                self.deref_mut().describe(sql)
            }
        }

        impl AsMut<PgConnection> for $holder {
            fn as_mut(&mut self) -> &mut PgConnection {
                self.deref_mut().as_mut()
            }
        }

        impl AsRef<PgConnection> for $holder {
            fn as_ref(&self) -> &PgConnection {
                self.deref().as_ref()
            }
        }

        /// Raw access, as [`PgSession`]'s.
        impl<'c> Acquire<'c> for &'c mut $holder {
            type Database = Postgres;
            type Connection = &'c mut PgConnection;

            fn acquire(self) -> BoxFuture<'c, Result<Self::Connection, Error>> {
                self.deref_mut().acquire()
            }

            fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, Postgres>, Error>> {
                self.deref_mut().begin()
            }
        }
    };
}

pass_on_to_the_session!(PgLease);
pass_on_to_the_session!(PgTransaction);
