//! Many clients of many tenants on a small budget, and then SIGTERM: no answer is wrong, none is missing, nothing is left.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hyper::StatusCode;
use nix::sys::signal::Signal;
use pool_core::Limits;
use pool_testkit::{TestPool, eventually};
use serde_json::{Value, json};
use sqlx::ConnectOptions;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::interval;

use crate::postgres::test_pool;
use crate::server::{Begun, Client, Server};

const TENANTS: usize = 12;
const CLIENTS: usize = 32;
/// The service's budget, in connections.
const BUDGET: u32 = 8;
const LASTS: Duration = Duration::from_secs(3);

fn tenant(number: usize) -> String {
    format!("tenant-{}", number % TENANTS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_every_answer_is_right_and_no_log_is_left_open() {
    let directory = TempDir::new().unwrap();
    let url = format!("sqlite://{}", directory.path().display());
    drive(&[("NOTES_DATABASE", &url)]).await;
    let names = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let is_open = |name: &OsString| [b"-wal", b"-shm"].iter().any(|end| name.as_bytes().ends_with(*end));
    assert_eq!(names.filter(is_open).collect::<Vec<_>>(), [] as [OsString; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_every_answer_is_right_and_no_session_is_left() {
    // The pool here opens nothing: it has the service's room on the server, sees its sessions, and drops its databases.
    let Some(pool) = test_pool(TestPool::builder().limits(Limits::new(BUDGET + 4).system(3))).await else {
        return;
    };
    let config = pool.config();
    let database = config.get_system_database().unwrap();
    let mut url = config.connect_options(database.as_str()).to_url_lossy();
    url.query_pairs_mut().append_pair("application_name", &pool.tag());
    let prefix = pool.prefix();
    let database = [("NOTES_DATABASE", url.as_str()), ("NOTES_PREFIX", &prefix)];
    let most = most_sessions(&pool, drive(&database)).await;
    assert!((2..=BUDGET).contains(&most), "the server counted {most} sessions of the service");
    pool.verify_no_leaked_connections().await.unwrap();
    pool.cleanup().await.unwrap();
}

/// The most sessions of the service that the server has counted at a time until `drive` ended.
async fn most_sessions(pool: &TestPool, drive: impl Future<Output = ()>) -> u32 {
    let own = pool.stats().control;
    let (mut drive, mut often) = (pin!(drive), interval(Duration::from_millis(20)));
    let mut most = 0;
    loop {
        tokio::select! {
            () = &mut drive => return most,
            _ = often.tick() => most = most.max(pool.active_connection_count().await.unwrap() - own),
        }
    }
}

/// A service's life under load, and a second, short one.
async fn drive(database: &[(&str, &str)]) {
    let budget = BUDGET.to_string();
    let variables = [database, &[("NOTES_CONNECTIONS", &budget)]].concat();
    let mut server = Server::start(&variables);
    make_tenants(server.address).await;
    let began = Instant::now();
    let rounds = join_all((0..CLIENTS).map(|client| tokio::spawn(load(server.address, client)))).await;
    let rounds: usize = rounds.into_iter().map(Result::unwrap).sum();
    println!("{rounds} notes written and read back in {:?}", began.elapsed());
    assert_stats(server.address).await;

    end_amid_requests(&mut server).await;
    // The second life finds what the last requests of the first have written.
    let mut server = Server::start(&variables);
    let mut client = Client::connect(server.address).await;
    for number in 0..TENANTS {
        let (_, found) = client.get("/notes", &tenant(number)).await;
        assert_eq!(found["notes"][0]["text"], last_words(number));
    }
    server.signal(Signal::SIGINT);
    assert!(server.ended().await.success());
    client.close().await;
}

async fn make_tenants(server: SocketAddr) {
    let make = async |number| {
        let workspace = tenant(number);
        let mut client = Client::connect(server).await;
        let (status, told) = client.post("/workspaces", "none", json!({ "workspace": workspace })).await;
        assert_eq!(status, StatusCode::CREATED, "{told}");
        client.close().await;
    };
    join_all((0..TENANTS).map(make)).await;
}

/// Writes and reads back, for one tenant after the other, until the time is over. Returns how often.
async fn load(server: SocketAddr, client: usize) -> usize {
    let mut connection = Client::connect(server).await;
    let began = Instant::now();
    let mut round = 0;
    while began.elapsed() < LASTS {
        let workspace = tenant(client + round);
        let note = format!("{workspace}: note {round} of client {client}");
        let (status, added) = connection.post("/notes", &workspace, json!({ "text": note })).await;
        assert_eq!((status, &added["text"]), (StatusCode::CREATED, &json!(note)), "{added}");
        let (status, found) = connection.get("/notes", &workspace).await;
        assert_eq!(status, StatusCode::OK, "{found}");
        let notes = found["notes"].as_array().unwrap();
        assert!(notes.contains(&added), "{added} is not among {notes:?}");
        let is_of_tenant =
            |note: &Value| note["text"].as_str().unwrap().starts_with(&format!("{workspace}:"));
        assert!(notes.iter().all(is_of_tenant), "a note of another tenant is among {notes:?}");
        round += 1;
    }
    connection.close().await;
    round
}

/// The service's own view: no request was refused, and the budget held.
async fn assert_stats(server: SocketAddr) {
    let mut client = Client::connect(server).await;
    let (_, stats) = client.get("/stats", "none").await;
    for share in ["workspaces", "system"] {
        let share = &stats[share];
        for never in ["errors", "given_up", "open_failures", "miscounts"] {
            assert_eq!(share[never], 0, "{never} in {stats}");
        }
        assert!(share["peak"].as_u64() <= share["limit"].as_u64(), "{stats}");
    }
    println!("evicted {} of {} opened", stats["workspaces"]["evicted"], stats["workspaces"]["opened"]);
    client.close().await;
}

fn last_words(number: usize) -> String {
    format!("{}: last words", tenant(number))
}

/// SIGTERM while a request of each tenant is under way: nothing more is accepted, all of them are answered, the exit code is 0.
async fn end_amid_requests(server: &mut Server) {
    let address = server.address;
    let with_head = async |number| {
        let body = json!({ "text": last_words(number) });
        Begun::post(address, "/notes", &tenant(number), body).await
    };
    let begun = join_all((0..TENANTS).map(with_head)).await;
    server.signal(Signal::SIGTERM);
    let is_refused = || async { TcpStream::connect(address).await.is_err() };
    eventually("a connect being refused", Duration::from_secs(5), is_refused).await.unwrap();
    for answer in join_all(begun.into_iter().map(Begun::finish)).await {
        assert!(answer.starts_with("HTTP/1.1 201") && answer.contains("last words"), "{answer}");
    }
    let status = server.ended().await;
    assert!(status.success(), "{status}");
    let log = server.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}
