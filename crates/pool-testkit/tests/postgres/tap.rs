//! A relay in front of a server that writes down what clients send.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pool_postgres::{Limits, PgPools, PgWorkspacePool, Settings};
use pool_testkit::faults::DedicatedServer;
use pool_testkit::server::config_of;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::id;

const SSL_REQUEST: u32 = 80_877_103;

/// What was sent, each message with the database that its session is connected to.
type Sent = Arc<Mutex<Vec<(String, String)>>>;

/// A pool with one connection to workspace `a`, and what goes over it. Dropped in this order.
pub struct Tapped {
    pub pools: PgPools,
    pub db: PgWorkspacePool,
    database: String,
    sent: Sent,
    task: JoinHandle<()>,
    _server: DedicatedServer,
}

/// On a busy machine a connection may be idle long enough to be asked whether it lives.
fn never_checks(settings: &mut Settings) {
    settings.check_after = Duration::from_hours(1);
}

impl Tapped {
    pub async fn new() -> Self {
        let server = DedicatedServer::start().await.unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let config = config_of(server.address()).port(listener.local_addr().unwrap().port());
        let upstream = SocketAddr::from(([127, 0, 0, 1], server.address().port()));
        let sent = Sent::default();
        let task = tokio::spawn(serve_all(listener, upstream, Arc::clone(&sent)));
        let limits = Limits::new(6).system(5).per_workspace(1);
        let pools = PgPools::builder(config).limits(limits).adjust(never_checks).build().await.unwrap();
        pools.ensure_workspace(&id("a")).await.unwrap();
        let database = pools.config().naming().unwrap();
        let database = pool_postgres::DatabaseNaming::database(&database, &id("a")).as_str().to_owned();
        Self { db: pools.workspace(&id("a")), pools, database, sent, task, _server: server }
    }

    /// What was sent to the workspace's database since the last call: the type of each message, and the text of
    /// what is asked in the simple protocol.
    pub fn sent(&self) -> Vec<String> {
        let sent = std::mem::take(&mut *self.sent.lock().unwrap());
        sent.into_iter().filter(|(database, _)| *database == self.database).map(|(_, what)| what).collect()
    }
}

impl Drop for Tapped {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve_all(listener: TcpListener, upstream: SocketAddr, sent: Sent) {
    let mut sessions = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        sessions.spawn(serve(client, upstream, Arc::clone(&sent)));
    }
}

async fn serve(mut client: TcpStream, upstream: SocketAddr, sent: Sent) -> io::Result<()> {
    let startup = loop {
        let length = client.read_u32().await?;
        let mut rest = vec![0; length as usize - 4];
        client.read_exact(&mut rest).await?;
        if rest[..4] != SSL_REQUEST.to_be_bytes() {
            break [&length.to_be_bytes()[..], &rest].concat();
        }
        client.write_all(b"N").await?;
    };
    let mut words = startup[8..].split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let database = words.find(|word| word == "database").and_then(|_| words.next()).unwrap().into_owned();
    let mut server = TcpStream::connect(upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    server.write_all(&startup).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let there = async {
        loop {
            let kind = from_client.read_u8().await?;
            let length = from_client.read_u32().await?;
            let mut body = vec![0; length as usize - 4];
            from_client.read_exact(&mut body).await?;
            let mut what = char::from(kind).to_string();
            if kind == b'Q' {
                what = format!("Q {}", String::from_utf8_lossy(&body[..body.len() - 1]));
            }
            sent.lock().unwrap().push((database.clone(), what));
            to_server.write_all(&[&[kind], &length.to_be_bytes()[..], &body].concat()).await?;
        }
    };
    tokio::select! {
        ended = there => ended,
        ended = copy(&mut from_server, &mut to_client) => ended.map(drop),
    }
}
