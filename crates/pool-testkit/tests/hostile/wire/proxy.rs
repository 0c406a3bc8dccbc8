//! Stands between a pool and a real server: most sessions go through, those with certain databases meet
//! something evil, and an answer can be poisoned on its way.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pool_postgres::PostgresConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::evil::{Evil, Then};

const SSL_REQUEST: u32 = 80_877_103;
/// Between two chunks of what has no end. Where the clients run on the same single thread, nothing is sent while they
/// read. What comes faster than sqlx reads keeps it from ever yielding, unless it is under guard.
const PACE: Duration = Duration::from_millis(1);

/// The listener and all its sessions; they end when it is dropped.
pub struct Proxy {
    pub port: u16,
    poison: Arc<AtomicBool>,
    _sessions: JoinSet<()>,
    /// Where they run, if not among the clients.
    apart: Option<Runtime>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.apart.take() {
            runtime.shutdown_background();
        }
    }
}

struct Plan {
    pace: Option<Duration>,
    real: Option<PostgresConfig>,
    /// By database; the empty name is for all that have no other.
    evil: HashMap<String, Evil>,
    poison: Arc<AtomicBool>,
}

impl Proxy {
    /// In front of `real`, if there is one. What has no end is sent at a pace.
    pub async fn start(real: Option<PostgresConfig>, evil: HashMap<String, Evil>) -> Self {
        Self::serve(Some(PACE), real, evil).await
    }

    /// The same on threads of its own, and what has no end is sent as fast as it can be.
    pub async fn flooding(real: PostgresConfig, evil: HashMap<String, Evil>) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut proxy = runtime.spawn(Self::serve(None, Some(real), evil)).await.unwrap();
        proxy.apart = Some(runtime);
        proxy
    }

    async fn serve(
        pace: Option<Duration>,
        real: Option<PostgresConfig>,
        evil: HashMap<String, Evil>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let poison = Arc::new(AtomicBool::new(false));
        let plan = Arc::new(Plan { pace, real, evil, poison: Arc::clone(&poison) });
        let mut sessions = JoinSet::new();
        sessions.spawn(async move {
            let mut tasks = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let plan = Arc::clone(&plan);
                // A client that leaves in the midst is what these tests are about.
                tasks.spawn(async move { serve(&plan, client).await.ok() });
                while tasks.try_join_next().is_some() {}
            }
        });
        Self { port, poison, _sessions: sessions, apart: None }
    }

    /// The next answer of the real server becomes a message of length zero.
    pub fn poison_the_next_answer(&self) {
        self.poison.store(true, Ordering::SeqCst);
    }

    /// Whether an answer was poisoned since that was asked for.
    pub fn has_poisoned(&self) -> bool {
        !self.poison.load(Ordering::SeqCst)
    }
}

async fn serve(plan: &Plan, mut client: TcpStream) -> io::Result<()> {
    let startup = read_startup(&mut client).await?;
    let database = parameter(&startup, "database");
    match plan.evil.get(&database).or_else(|| plan.evil.get("")) {
        Some(evil) => say(plan.pace, evil, client).await,
        None => match &plan.real {
            Some(real) => splice(plan, real, client, &startup).await,
            None => Ok(()),
        },
    }
}

/// The startup message, its length included; a wish for TLS before it is refused.
async fn read_startup(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    loop {
        let length = client.read_u32().await?;
        let mut message = length.to_be_bytes().to_vec();
        message.resize(length as usize, 0);
        client.read_exact(&mut message[4..]).await?;
        if message[4..] != SSL_REQUEST.to_be_bytes() {
            return Ok(message);
        }
        client.write_all(b"N").await?;
    }
}

fn parameter(startup: &[u8], name: &str) -> String {
    let mut parts = startup[8..].split(|byte| *byte == 0).map(String::from_utf8_lossy);
    while let (Some(key), Some(value)) = (parts.next(), parts.next()) {
        if key == name {
            return value.into_owned();
        }
    }
    String::new()
}

async fn say(pace: Option<Duration>, evil: &Evil, mut client: TcpStream) -> io::Result<()> {
    client.write_all(&evil.bytes).await?;
    match evil.then {
        Then::Close => client.shutdown().await,
        Then::Hold => copy(&mut client, &mut tokio::io::sink()).await.map(drop),
        Then::Go(more) => {
            for number in 0.. {
                client.write_all(&more(number)).await?;
                if let Some(pace) = pace {
                    tokio::time::sleep(pace).await;
                }
            }
            Ok(())
        }
    }
}

async fn splice(plan: &Plan, real: &PostgresConfig, client: TcpStream, startup: &[u8]) -> io::Result<()> {
    let (host, port) = (real.host(), real.get_port());
    if host.starts_with('/') {
        let server = UnixStream::connect(format!("{host}/.s.PGSQL.{port}")).await?;
        return relay(plan, client, server, startup).await;
    }
    relay(plan, client, TcpStream::connect((host, port)).await?, startup).await
}

async fn relay(
    plan: &Plan,
    client: TcpStream,
    server: impl AsyncRead + AsyncWrite,
    startup: &[u8],
) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    to_server.write_all(startup).await?;
    let upwards = async {
        copy(&mut from_client, &mut to_server).await?;
        to_server.shutdown().await
    };
    let downwards = async {
        let mut buffer = vec![0; 16384];
        loop {
            let read = from_server.read(&mut buffer).await?;
            if read == 0 {
                return to_client.shutdown().await;
            }
            let poisoned = plan.poison.swap(false, Ordering::SeqCst);
            to_client.write_all(if poisoned { b"Z\0\0\0\0" } else { &buffer[..read] }).await?;
        }
    };
    tokio::try_join!(upwards, downwards).map(drop)
}
