//! `LISTEN`: a session that waits for notifications stays for long and is nobody's to lend, so it has a place of its own in the
//! budget. sqlx's listener does the work, over a pool of one connection; here are its place, and its way back after a loss.

use std::fmt;

use pool_core::{Target, WorkspaceId};
use pool_manager::PoolManager;
use sqlx::postgres::{PgListener, PgNotification, PgPoolOptions};
use sqlx::{Acquire, Error};
use thiserror::Error as ThisError;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::catch_panics::catch_panics;
use crate::connection::{Session, session_of};
use crate::driver::PgDriver;
use crate::places::Counted;
use crate::session::SessionKind;
use crate::tag::Tag;

/// Why there is no listener.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum ListenError {
    /// All places are taken, or none were asked for.
    #[error(
        "there is no place for another listener: {places} are kept. Build the pool with `.listeners({})` or more",
        places + 1
    )]
    NoPlace {
        /// How many are kept.
        places: u32,
    },
    /// A relay stands between, which listeners cannot use.
    #[error("a pool that guards its sessions has no listeners")]
    Guarded,
    /// The server, or the network.
    #[error(transparent)]
    Sqlx(#[from] Error),
}

/// Listens to the channels of one workspace's database, in a session of its own with a place of its own in the budget
/// ([`listeners`](crate::PgPoolsBuilder::listeners)). After a loss it begins another session, when the server has let go of the last, and
/// listens to the same channels; what was sent meanwhile is lost, and [`reconnects`](Self::reconnects) tells that there was a loss.
///
/// Dropped, it ends its session.
pub struct PgWorkspaceListener {
    manager: PoolManager<PgDriver>,
    target: Target,
    database: String,
    at: usize,
    live: Option<PgListener>,
    channels: Vec<String>,
    reconnects: u64,
    /// sqlx says goodbye in a task.
    runtime: Handle,
}

impl PgWorkspaceListener {
    pub(crate) async fn begin(
        manager: PoolManager<PgDriver>,
        workspace: &WorkspaceId,
    ) -> Result<Self, ListenError> {
        let driver = manager.driver();
        if driver.config().is_guarded() {
            return Err(ListenError::Guarded);
        }
        let database = manager.database(workspace).as_str().to_owned();
        let (target, runtime) = (Target::from(workspace), Handle::current());
        // Last, since nobody gives it back before there is a listener.
        let places = driver.places();
        let Some(at) = places.take() else {
            return Err(ListenError::NoPlace { places: places.count() });
        };
        let mut listener =
            Self { manager, target, database, at, live: None, channels: Vec::new(), reconnects: 0, runtime };
        listener.connected().await?;
        Ok(listener)
    }

    /// Whose notifications these are.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// How often another session had to be begun: what was sent in between is lost each time.
    pub fn reconnects(&self) -> u64 {
        self.reconnects
    }

    /// Listens to a channel, too; its name is quoted.
    ///
    /// # Errors
    /// What the server says, or `PoolClosed`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves open whether it listens; the next call or [`recv`](Self::recv) sees to it.
    pub async fn listen(&mut self, channel: &str) -> Result<(), Error> {
        if !self.channels.iter().any(|known| known == channel) {
            self.channels.push(channel.to_owned());
        }
        let heard = self.connected().await?.listen(channel).await;
        self.lost_if_failed(heard)
    }

    /// Listens to a channel no longer.
    ///
    /// # Errors
    /// As [`listen`](Self::listen).
    ///
    /// # Cancel safety
    /// As [`listen`](Self::listen).
    pub async fn unlisten(&mut self, channel: &str) -> Result<(), Error> {
        self.channels.retain(|known| known != channel);
        let heard = self.connected().await?.unlisten(channel).await;
        self.lost_if_failed(heard)
    }

    /// The next notification of any of the channels.
    ///
    /// # Errors
    /// `PoolClosed` after [`PgPools::close`](crate::PgPools::close), and what the server says to another session: that there is no such database, that it
    /// refuses. `PoolTimedOut` when the connect took too long, or when the server has not let go of the last session in that time. Called once
    /// more, it tries once more.
    ///
    /// # Cancel safety
    /// Dropping the future loses no notification that has come in.
    pub async fn recv(&mut self) -> Result<PgNotification, Error> {
        loop {
            let heard = self.connected().await?.try_recv().await;
            match heard {
                Ok(Some(notification)) => return Ok(notification),
                // Lost, in one way or in another: the next round begins another session.
                Ok(None) | Err(_) => self.lose(),
            }
        }
    }

    /// A session that listens to all channels.
    async fn connected(&mut self) -> Result<&mut PgListener, Error> {
        if self.live.is_none() {
            self.begin_session().await?;
        }
        self.live.as_mut().ok_or(Error::PoolClosed)
    }

    async fn begin_session(&mut self) -> Result<(), Error> {
        // Its place has one session at a time.
        if let Some(last) = self.driver().places().counted_at(self.at) {
            if !self.driver().ends(last).await {
                return Err(Error::PoolTimedOut);
            }
            self.now_counts(None);
        }
        if self.manager.is_closed() {
            return Err(Error::PoolClosed);
        }
        let tag = Tag::fresh();
        self.now_counts(Some(Counted::Asked(tag.clone(), self.database.clone())));
        let limit = self.driver().connect_timeout();
        let options = self.driver().options_of(&self.database, SessionKind::Lent, &tag).await?;
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(limit)
            .connect_lazy_with(options);
        let begun = tokio::select! {
            biased;
            () = self.driver().places().closed() => return Err(Error::PoolClosed),
            begun = timeout(limit, catch_panics(introduced(&pool, &self.channels))) => begun,
        };
        let (mut listener, session) = begun.unwrap_or(Err(Error::PoolTimedOut))?;
        listener.eager_reconnect(false);
        self.now_counts(Some(Counted::Session(session)));
        self.live = Some(listener);
        Ok(())
    }

    fn now_counts(&self, counted: Option<Counted>) {
        self.driver().places().set(self.at, counted);
    }

    fn lost_if_failed(&mut self, heard: Result<(), Error>) -> Result<(), Error> {
        if matches!(heard, Err(Error::Io(_) | Error::Protocol(_))) {
            self.lose();
        }
        heard
    }

    fn lose(&mut self) {
        self.reconnects += 1;
        self.let_go();
    }

    /// sqlx says goodbye in a task of the runtime on which the listener was made.
    fn let_go(&mut self) {
        let _inside = self.runtime.enter();
        self.live = None;
    }

    fn driver(&self) -> &PgDriver {
        self.manager.driver()
    }
}

/// A listener, and who serves it.
async fn introduced(pool: &sqlx::PgPool, channels: &[String]) -> Result<(PgListener, Session), Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    let session = session_of(Acquire::acquire(&mut listener).await?).await?;
    if !channels.is_empty() {
        listener.listen_all(channels.iter().map(String::as_str)).await?;
    }
    Ok((listener, session))
}

impl Drop for PgWorkspaceListener {
    fn drop(&mut self) {
        self.let_go();
        self.driver().places().give_back(self.at);
    }
}

impl fmt::Debug for PgWorkspaceListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, channels, reconnects, .. } = self;
        f.debug_struct("PgWorkspaceListener")
            .field("target", target)
            .field("channels", channels)
            .field("reconnects", reconnects)
            .finish_non_exhaustive()
    }
}
