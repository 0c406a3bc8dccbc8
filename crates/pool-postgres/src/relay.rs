//! A relay within this process, between sqlx and a server that is not trusted.
//!
//! sqlx reads for as long as there is something to read, and does not yield meanwhile: a server that sends faster than
//! sqlx reads holds a thread of the runtime, where no time limit fires, and fills the memory. Here nobody reads the socket
//! but this relay, which yields as tasks do, ends a session that is told too much before it is open, and pauses in
//! long answers until sqlx has come to the end of what is there, so that its time limits are looked at.
//!
//! sqlx can be given no socket, but it connects to Unix sockets: each open has one of its own, in a directory that nobody
//! else may enter, for as long as it takes to be connected to.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Error};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};

/// What a server may send before a session is open. An honest one needs about five hundred bytes, and a few thousand
/// for its certificates.
const GREETING_MAX: usize = 1 << 20;

/// After so much of an answer, the relay pauses.
const BURST: usize = 4 << 20;
/// The pause, as a part of the time that the burst took. In a burst that is read more slowly than it is sent, what lies
/// in the socket's buffers (212 KB by default on Linux) takes about a twentieth of that time to read.
const PAUSE_PART: u32 = 8;
/// A burst that took long was not held up by its reader.
const PAUSE_MAX: Duration = Duration::from_millis(100);

const BUFFER: usize = 64 << 10;

/// The relays of one pool; they end with it, or with their session.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    relays: Mutex<JoinSet<()>>,
}

/// What the two sides of a session know of each other.
#[derive(Debug, Default)]
struct Session {
    is_open: AtomicBool,
    /// The client has sent something since this was last asked.
    was_asked: AtomicBool,
    was_cut: AtomicBool,
}

/// An open under way: the server may not say much. Dropped before it has come to its good end, it ends the relay.
#[derive(Debug)]
pub(crate) struct Opening {
    relay: AbortHandle,
    session: Arc<Session>,
}

impl Opening {
    /// The session is open: the server may say as much as it is asked for.
    pub(crate) fn succeeded(self) {
        self.session.is_open.store(true, Ordering::Relaxed);
    }

    /// Why the open failed: `error`, or that the server was cut off.
    pub(crate) fn failed(&self, error: Error) -> Error {
        if self.session.was_cut.load(Ordering::Relaxed) {
            let what = format!("the server sent more than {GREETING_MAX} bytes before the session was open");
            return Error::Protocol(what);
        }
        error
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.session.is_open.load(Ordering::Relaxed) {
            self.relay.abort();
        }
    }
}

impl Relay {
    /// A session with the server at `host` and `port`, whose socket is the relay's, and which is not open before it is known
    /// who serves it.
    ///
    /// # Cancel safety
    /// Dropping the future ends the relay.
    pub(crate) async fn connect(
        &self,
        (host, port): (&str, u16),
        options: PgConnectOptions,
    ) -> Result<(PgConnection, Opening), Error> {
        // `tempfile` lets nobody but the owner enter it.
        let site = TempDir::with_prefix("pool-guard")?;
        let options = options.socket(site.path());
        let opening = if host.starts_with('/') {
            let server = UnixStream::connect(socket_in(host.as_ref(), port)).await?;
            self.relay(site, port, server.into_split())?
        } else {
            let server = TcpStream::connect((host, port)).await?;
            server.set_nodelay(true)?;
            self.relay(site, port, server.into_split())?
        };
        match PgConnection::connect_with(&options).await {
            Ok(conn) => Ok((conn, opening)),
            Err(error) => Err(opening.failed(error)),
        }
    }

    fn relay<R, W>(&self, site: TempDir, port: u16, server: (R, W)) -> io::Result<Opening>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let listener = UnixListener::bind(socket_in(site.path(), port))?;
        let session = Arc::new(Session::default());
        let work = relay((listener, site), server, Arc::clone(&session));
        let mut relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        while relays.try_join_next().is_some() {}
        let relay = relays.spawn(work);
        Ok(Opening { relay, session })
    }
}

/// Where libpq and sqlx look for the socket of a server.
pub(crate) fn socket_in(directory: &Path, port: u16) -> std::path::PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// Both directions of one session, until either side ends it.
async fn relay<R, W>(door: (UnixListener, TempDir), server: (R, W), session: Arc<Session>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (from_server, to_server) = server;
    let Ok((client, _)) = door.0.accept().await else { return };
    // Nobody else is to come, and whoever is killed from now on leaves no file behind.
    drop(door);
    let (from_client, to_client) = client.into_split();
    let ended = tokio::select! {
        ended = questions(from_client, to_server, &session) => ended,
        ended = answers(from_server, to_client, &session) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a guarded session has ended");
    }
}

async fn questions(
    mut client: impl AsyncRead + Unpin,
    mut server: impl AsyncWrite + Unpin,
    session: &Session,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = client.read(&mut buffer).await?;
        if read == 0 {
            return server.shutdown().await;
        }
        session.was_asked.store(true, Ordering::Relaxed);
        server.write_all(&buffer[..read]).await?;
    }
}

async fn answers(
    mut server: impl AsyncRead + Unpin,
    mut client: impl AsyncWrite + Unpin,
    session: &Session,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut greeting = 0;
    let (mut burst, mut began) = (0, Instant::now());
    loop {
        let read = server.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if !session.is_open.load(Ordering::Relaxed) {
            greeting += read;
            if greeting > GREETING_MAX {
                session.was_cut.store(true, Ordering::Relaxed);
                return Ok(());
            }
        }
        if session.was_asked.swap(false, Ordering::Relaxed) {
            (burst, began) = (0, Instant::now());
        }
        client.write_all(&buffer[..read]).await?;
        burst += read;
        if burst >= BURST {
            sleep((began.elapsed() / PAUSE_PART).min(PAUSE_MAX)).await;
            (burst, began) = (0, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    /// Reads 64 KB a millisecond, far below what a relay can send, and never waits; until nothing is there, or for long.
    async fn read_slowly(client: &UnixStream) -> bool {
        let mut buffer = vec![0; BUFFER];
        for _ in 0..100 * BURST / BUFFER {
            sleep(Duration::from_millis(1)).await;
            if client.try_read(&mut buffer).is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
                return true;
            }
        }
        false
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_is_slower_than_the_server_comes_to_the_end_of_what_is_there() {
        let (client, relayed) = UnixStream::pair().unwrap();
        let session = Session { is_open: AtomicBool::new(true), ..Session::default() };
        let reader = async {
            client.readable().await.unwrap();
            read_slowly(&client).await
        };
        tokio::select! {
            ended = answers(tokio::io::repeat(b'x'), relayed, &session) => panic!("{ended:?}"),
            came_to_the_end = reader => assert!(came_to_the_end, "there was always more to read"),
        }
    }

    #[tokio::test]
    async fn a_server_that_says_too_much_before_it_is_open_is_cut_off() {
        let session = Session::default();
        answers(tokio::io::repeat(b'x'), tokio::io::sink(), &session).await.unwrap();
        assert!(session.was_cut.load(Ordering::Relaxed));
    }
}
