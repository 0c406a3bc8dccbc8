//! A TCP proxy in front of a server, with faults on demand.
//!
//! It reads the startup message of each session, so that a fault can be laid on the sessions of one database
//! while those of others pass. TLS is declined on the server's behalf. One task owns the listener and all
//! sessions; it ends with the proxy.

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
/// No startup message of a test is longer.
const STARTUP_BYTES_MAX: u32 = 10_000;
const CHUNK_BYTES: usize = 8_192;

/// How the sessions of a database fare until something else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// As if there were no proxy.
    #[default]
    Up,
    /// Nothing arrives in either direction, and nobody is told; new sessions are accepted and hear nothing. What
    /// was sent meanwhile arrives when the link is up again.
    Dark,
    /// Sessions that exist are served; new ones are accepted and hear nothing before the link is up again.
    ConnectsHang,
    /// The same, but those that came meanwhile never hear anything, as when their packets were lost for good.
    ConnectsLost,
    /// Sessions that exist, and those that come meanwhile, never hear anything again, as after a failover, or when an address
    /// translator has forgotten them. The server does not learn of it, and goes on counting them.
    Lost,
    /// Everything that arrives has waited this long.
    Slow(Duration),
}

/// What holds for the sessions of one database.
#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    link: Link,
    /// How often its sessions have been reset, and cut in half; each session knows the numbers it was born with.
    resets: u32,
    halves: u32,
}

#[derive(Clone, Debug, Default)]
struct Rules {
    by_database: BTreeMap<String, Orders>,
    /// What holds for the links of all databases.
    everywhere: Option<Link>,
}

impl Rules {
    fn about(&self, database: &str) -> Orders {
        let its = self.by_database.get(database).copied().unwrap_or_default();
        Orders { link: self.everywhere.unwrap_or(its.link), ..its }
    }
}

/// Whether to listen, and where to say that it is done.
type Switch = (bool, oneshot::Sender<io::Result<()>>);

/// A running proxy. Dropping it ends all sessions through it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    rules: watch::Sender<Rules>,
    switches: mpsc::UnboundedSender<Switch>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port of the loopback interface for sessions with the server at `upstream`.
    ///
    /// # Errors
    /// When there is no port to be had.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (rules, orders) = watch::channel(Rules::default());
        let (switches, inbox) = mpsc::unbounded_channel();
        let acceptor = Acceptor { address, upstream, orders, listener: Some(listener) };
        let task = tokio::spawn(acceptor.run(inbox));
        Ok(Self { address, rules, switches, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says how the sessions of `database` fare from now on, those that exist and new ones.
    pub fn set(&self, database: &str, link: Link) {
        self.order(database, |orders| orders.link = link);
    }

    /// Says how the sessions of all databases fare from now on; none leaves them to what is said of each.
    pub fn set_everywhere(&self, link: Option<Link>) {
        self.rules.send_modify(|rules| rules.everywhere = link);
    }

    /// Resets the sessions of `database` at both ends, once. New ones pass.
    pub fn reset(&self, database: &str) {
        self.order(database, |orders| orders.resets += 1);
    }

    /// Ends the sessions of `database` at the server's end, once, without telling the client's: whatever it says
    /// is accepted, and never answered. New ones pass.
    pub fn half_open(&self, database: &str) {
        self.order(database, |orders| orders.halves += 1);
    }

    /// Stops to listen, so that new sessions are refused, of whatever database. Those that exist go on.
    ///
    /// # Errors
    /// When the proxy has ended.
    ///
    /// # Cancel safety
    /// Dropping the future leaves open when it happens.
    pub async fn refuse(&self) -> io::Result<()> {
        self.switch(false).await
    }

    /// Listens again, on the same port.
    ///
    /// # Errors
    /// When somebody has taken the port.
    ///
    /// # Cancel safety
    /// Dropping the future leaves open when it happens.
    pub async fn listen(&self) -> io::Result<()> {
        self.switch(true).await
    }

    async fn switch(&self, on: bool) -> io::Result<()> {
        let (done, is_done) = oneshot::channel();
        let ended = || io::Error::other("the proxy has ended");
        self.switches.send((on, done)).map_err(|_| ended())?;
        is_done.await.map_err(|_| ended())?
    }

    fn order(&self, database: &str, change: impl FnOnce(&mut Orders)) {
        self.rules.send_modify(|rules| change(rules.by_database.entry(database.to_owned()).or_default()));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The sessions belong to the task, and are aborted with it.
        self.task.abort();
    }
}

struct Acceptor {
    address: SocketAddr,
    upstream: SocketAddr,
    orders: watch::Receiver<Rules>,
    listener: Option<TcpListener>,
}

impl Acceptor {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Switch>) {
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                switch = inbox.recv() => {
                    let Some((on, done)) = switch else { return };
                    let _ = done.send(self.switch(on).await);
                }
                Some(client) = accept(self.listener.as_ref()) => {
                    sessions.spawn(serve(client, self.upstream, self.orders.clone()));
                }
                Some(ended) = sessions.join_next() => {
                    if let Ok(Err(error)) = ended {
                        tracing::debug!(%error, "a session through the proxy failed");
                    }
                }
            }
        }
    }

    async fn switch(&mut self, on: bool) -> io::Result<()> {
        if on {
            self.listener = Some(TcpListener::bind(self.address).await?);
        } else if let Some(listener) = self.listener.take() {
            // To close it is not enough: a child that another thread has forked, and that has not come to its `exec`, has it, too.
            socket2::SockRef::from(&listener).shutdown(Shutdown::Both)?;
        }
        Ok(())
    }
}

/// The next client; none at once where nobody listens.
async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    listener?.accept().await.ok().map(|(client, _)| client)
}

/// One session, from its startup message to its end.
async fn serve(
    mut client: TcpStream,
    upstream: SocketAddr,
    orders: watch::Receiver<Rules>,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    let startup = startup(&mut client).await?;
    let mut orders = OrdersOf { database: database(&startup), rules: orders };
    let born = orders.now();
    if matches!(born.link, Link::ConnectsLost | Link::Lost) {
        return swallow(&mut client).await;
    }
    orders.until(|now| !matches!(now.link, Link::Dark | Link::ConnectsHang)).await;
    let mut server = TcpStream::connect(upstream).await?;
    server.set_nodelay(true)?;
    server.write_all(&startup).await?;
    let (mut reset, mut halved, mut lost) = (orders.clone(), orders.clone(), orders.clone());
    tokio::select! {
        relayed = relay(&mut client, &mut server, &orders) => relayed,
        () = reset.until(|now| now.resets != born.resets) => {
            client.set_zero_linger()?;
            server.set_zero_linger()
        }
        () = lost.until(|now| now.link == Link::Lost) => {
            swallow(&mut client).await?;
            swallow(&mut server).await
        }
        () = halved.until(|now| now.halves != born.halves) => {
            drop(server);
            swallow(&mut client).await
        }
    }
}

/// Reads the first message, declining encryption before it.
async fn startup(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    loop {
        let length = client.read_u32().await?;
        if !(8..=STARTUP_BYTES_MAX).contains(&length) {
            return Err(io::Error::other("this is no startup message"));
        }
        let mut message = vec![0; length as usize];
        message[..4].copy_from_slice(&length.to_be_bytes());
        client.read_exact(&mut message[4..]).await?;
        let code = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
        if !matches!(code, SSL_REQUEST | GSS_REQUEST) {
            return Ok(message);
        }
        client.write_all(b"N").await?;
    }
}

/// The database that a startup message asks for: pairs of names and values follow its length and version.
fn database(startup: &[u8]) -> String {
    let mut words = startup[8..].split(|byte| *byte == 0);
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        if name == b"database" {
            return String::from_utf8_lossy(value).into_owned();
        }
    }
    String::new()
}

/// Accepts whatever is said, and never answers.
async fn swallow(peer: &mut TcpStream) -> io::Result<()> {
    tokio::io::copy(peer, &mut tokio::io::sink()).await.map(drop)
}

async fn relay(client: &mut TcpStream, server: &mut TcpStream, orders: &OrdersOf) -> io::Result<()> {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::try_join!(
        pump(from_client, to_server, orders.clone()),
        pump(from_server, to_client, orders.clone())
    )
    .map(drop)
}

/// Carries one direction to its end, in the way that the orders say at the moment.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut orders: OrdersOf,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let bytes = from.read(&mut chunk).await?;
        orders.until(|now| now.link != Link::Dark).await;
        if let Link::Slow(delay) = orders.now().link {
            sleep(delay).await;
        }
        if bytes == 0 {
            return to.shutdown().await;
        }
        to.write_all(&chunk[..bytes]).await?;
    }
}

/// The orders about one database.
#[derive(Clone)]
struct OrdersOf {
    database: String,
    rules: watch::Receiver<Rules>,
}

impl OrdersOf {
    fn now(&self) -> Orders {
        self.rules.borrow().about(&self.database)
    }

    /// Returns when the orders are such; never if the proxy ends before.
    async fn until(&mut self, such: impl Fn(Orders) -> bool) {
        let Self { database, rules } = self;
        let met = |rules: &Rules| such(rules.about(database));
        let is_met = rules.wait_for(met).await.is_ok();
        if !is_met {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn startup_for(database: &str) -> Vec<u8> {
        let pairs = format!("user\0app\0database\0{database}\0\0");
        let length = u32::try_from(8 + pairs.len()).unwrap();
        [&length.to_be_bytes(), &196_608_u32.to_be_bytes(), pairs.as_bytes()].concat()
    }

    /// A client that has been answered by the echo behind the proxy.
    async fn session(proxy: &Proxy, database: &str) -> TcpStream {
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        client.write_all(&8_u32.to_be_bytes()).await.unwrap();
        client.write_all(&SSL_REQUEST.to_be_bytes()).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'N');
        client.write_all(&startup_for(database)).await.unwrap();
        let mut answer = vec![0; startup_for(database).len()];
        client.read_exact(&mut answer).await.unwrap();
        client
    }

    async fn proxied_echo() -> (Proxy, JoinHandle<()>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let upstream = listener.local_addr().unwrap();
        let echo = tokio::spawn(async move {
            let mut sessions = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                sessions.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        (Proxy::start(upstream).await.unwrap(), echo)
    }

    async fn echoes(client: &mut TcpStream) -> io::Result<bool> {
        client.write_all(b"x").await?;
        let heard = tokio::time::timeout(Duration::from_millis(100), client.read_u8()).await;
        heard.map_or(Ok(false), |heard| heard.map(|byte| byte == b'x'))
    }

    #[tokio::test]
    async fn a_fault_hits_the_sessions_of_its_database_only() {
        let (proxy, echo) = proxied_echo().await;
        let (mut hit, mut other) = (session(&proxy, "a").await, session(&proxy, "b").await);
        assert!(echoes(&mut hit).await.unwrap());

        proxy.set("a", Link::Dark);
        assert!(!echoes(&mut hit).await.unwrap() && echoes(&mut other).await.unwrap());
        proxy.set("a", Link::Up);
        assert_eq!(hit.read_u8().await.unwrap(), b'x', "what was sent in the dark arrives");

        proxy.half_open("a");
        assert!(!echoes(&mut hit).await.unwrap() && echoes(&mut other).await.unwrap());
        let mut hit = session(&proxy, "a").await;
        proxy.reset("a");
        assert_eq!(hit.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

        proxy.refuse().await.unwrap();
        let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(echoes(&mut other).await.unwrap());
        proxy.listen().await.unwrap();
        assert!(echoes(&mut session(&proxy, "a").await).await.unwrap());
        drop(proxy);
        assert_eq!(other.read(&mut [0]).await.unwrap_or(0), 0, "its sessions end with it");
        echo.abort();
    }
}
