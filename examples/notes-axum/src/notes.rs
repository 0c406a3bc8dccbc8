//! The application's port for its rows, and its two adapters: a lease of either pool is one.

use async_trait::async_trait;
use pool_postgres::PgLease;
use pool_sqlite::SqliteLease;
use serde::Serialize;

/// A note, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Note {
    /// Its number in its workspace.
    pub id: i64,
    /// What it says.
    pub text: String,
}

/// What the handlers ask of a workspace's database. Both adapters are on sqlx, and so is the error.
#[cfg_attr(test, mockall::automock)]
#[async_trait]
pub trait Notes: Send {
    /// Keeps a note.
    async fn add(&mut self, text: &str) -> sqlx::Result<Note>;

    /// The newest notes, newest first.
    async fn newest(&mut self, at_most: u32) -> sqlx::Result<Vec<Note>>;
}

// `&mut **self` is the session of the lease, whose statements the pool sees: after plain ones it is known to be clean.

#[async_trait]
impl Notes for PgLease {
    async fn add(&mut self, text: &str) -> sqlx::Result<Note> {
        let insert = "insert into note (text) values ($1) returning id, text";
        sqlx::query_as(insert).bind(text).fetch_one(&mut **self).await
    }

    async fn newest(&mut self, at_most: u32) -> sqlx::Result<Vec<Note>> {
        let select = "select id, text from note order by id desc limit $1";
        sqlx::query_as(select).bind(i64::from(at_most)).fetch_all(&mut **self).await
    }
}

#[async_trait]
impl Notes for SqliteLease {
    async fn add(&mut self, text: &str) -> sqlx::Result<Note> {
        let insert = sqlx::query("insert into note (text) values (?)").bind(text);
        let id = insert.execute(&mut **self).await?.last_insert_rowid();
        Ok(Note { id, text: text.to_owned() })
    }

    async fn newest(&mut self, at_most: u32) -> sqlx::Result<Vec<Note>> {
        let select = "select id, text from note order by id desc limit ?";
        sqlx::query_as(select).bind(at_most).fetch_all(&mut **self).await
    }
}
