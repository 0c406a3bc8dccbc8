//! The real binary as a child process, and clients of it.

use std::io::{BufRead, BufReader, Read, Seek};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pool_testkit::wait_for_condition;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// How long a child may take to end, when nothing is under way any more.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// A running service. Dropped, it is killed; when a test fails, its log is shown.
pub struct Server {
    child: Child,
    log: std::fs::File,
    pub address: SocketAddr,
}

impl Server {
    /// Starts the service on any free port, and waits until it listens.
    pub fn start(variables: &[(&str, &str)]) -> Self {
        let log = tempfile::tempfile().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_notes-axum"))
            .env("NOTES_LISTEN", "127.0.0.1:0")
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(log.try_clone().unwrap())
            .spawn()
            .unwrap();
        let says = BufReader::new(child.stdout.take().unwrap());
        let mut server = Self { child, log, address: SocketAddr::from(([0, 0, 0, 0], 0)) };
        let mut line = String::new();
        let _ = { says }.read_line(&mut line);
        let address = line.trim().strip_prefix("listening on http://").and_then(|at| at.parse().ok());
        server.address = address.expect("a service that listens");
        server
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Waits for the end.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        let child = &mut self.child;
        let has_ended = || {
            status = child.try_wait().unwrap();
            status.is_some()
        };
        wait_for_condition("the service's end", ENDS_WITHIN, has_ended).await.unwrap();
        status.unwrap()
    }

    /// What it has logged.
    pub fn log(&mut self) -> String {
        let mut log = String::new();
        self.log.rewind().unwrap();
        self.log.read_to_string(&mut log).unwrap();
        log
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("the service's log:\n{}", self.log());
        }
    }
}

/// A client with a connection of its own that it keeps.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    connection: JoinHandle<hyper::Result<()>>,
}

impl Client {
    pub async fn connect(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        Self { sender, connection: tokio::spawn(connection) }
    }

    pub async fn get(&mut self, path: &str, workspace: &str) -> (StatusCode, Value) {
        self.call(Method::GET, path, workspace, String::new()).await
    }

    pub async fn post(&mut self, path: &str, workspace: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::POST, path, workspace, body.to_string()).await
    }

    /// Names the workspace as a host.
    async fn call(
        &mut self,
        method: Method,
        path: &str,
        workspace: &str,
        body: String,
    ) -> (StatusCode, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", format!("{workspace}.notes.example"))
            .header("content-type", "application/json")
            .body(Full::from(body))
            .unwrap();
        self.sender.ready().await.unwrap();
        let response = self.sender.send_request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    pub async fn close(self) {
        drop(self.sender);
        self.connection.await.unwrap().unwrap();
    }
}

/// A request of which the service has the head, and waits for the body: it has asked for it.
pub struct Begun {
    stream: TcpStream,
    body: String,
}

impl Begun {
    pub async fn post(server: SocketAddr, path: &str, workspace: &str, body: Value) -> Self {
        let body = body.to_string();
        let mut stream = TcpStream::connect(server).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {workspace}.notes.example\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nexpect: 100-continue\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut asked = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
        stream.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
        Self { stream, body }
    }

    /// Sends the body. Returns the answer, after which the service has closed the connection.
    pub async fn finish(mut self) -> String {
        self.stream.write_all(self.body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}
