//! The end: nothing new is accepted, what was begun is finished, within a limit.

use std::io;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::sleep;

/// Returns a future that ends when the process is asked to: by SIGTERM, as from a supervisor, or by SIGINT, as from Ctrl-C. From the
/// call on, neither ends the process by itself.
///
/// # Errors
/// When the signals cannot be listened for.
pub fn requested() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Serves until `stop` ends. Then nothing more is accepted, and requests that were begun are finished.
///
/// # Errors
/// When requests still run after `limit`: a client that sends nothing more must not keep the process for ever.
///
/// # Cancel safety
/// Dropping the future accepts nothing more; requests that were begun go on as long as the runtime.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()>,
    limit: Duration,
) -> io::Result<()> {
    let (begin, has_begun) = oneshot::channel::<()>();
    let drains = async {
        // An error says the same: the other end is here.
        let _ = has_begun.await;
    };
    let mut serving =
        std::pin::pin!(axum::serve(listener, router).with_graceful_shutdown(drains).into_future());
    tokio::select! {
        served = &mut serving => return served,
        () = stop => tracing::info!("asked to end"),
    }
    drop(begin);
    tokio::select! {
        served = &mut serving => served,
        () = sleep(limit) => {
            let late = format!("requests still run {limit:?} after the service was asked to end");
            Err(io::Error::new(io::ErrorKind::TimedOut, late))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::post;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::JoinHandle;

    use super::*;

    /// Long enough for whatever should not have to wait for it.
    const LONG: Duration = Duration::from_mins(1);

    /// A service that echoes, and what ends it.
    async fn service(limit: Duration) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<io::Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", post(async |body: String| body));
        let (stop, is_to_stop) = oneshot::channel();
        let stopped = async {
            let _ = is_to_stop.await;
        };
        (address, stop, tokio::spawn(serve(listener, router, stopped, limit)))
    }

    const ASKED_TO_GO_ON: &str = "HTTP/1.1 100 Continue\r\n\r\n";

    /// A connection on which a request with five bytes of body was begun like this, and was answered like that.
    async fn client(server: SocketAddr, begun: &str, comes: &str) -> TcpStream {
        let mut client = TcpStream::connect(server).await.unwrap();
        let request = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n{begun}");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut come = vec![0; comes.len()];
        client.read_exact(&mut come).await.unwrap();
        assert_eq!(String::from_utf8(come).unwrap(), comes);
        client
    }

    #[tokio::test]
    async fn a_request_that_was_begun_is_finished() {
        let (address, stop, served) = service(LONG).await;
        let mut client = client(address, "expect: 100-continue\r\n\r\n", ASKED_TO_GO_ON).await;
        drop(stop);
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        client.write_all(b"hello").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
        served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_is_silent_between_requests_is_not_waited_for() {
        let (address, stop, served) = service(LONG).await;
        let client = client(address, "\r\nhello", "HTTP/1.1 200 OK\r\n").await;
        drop(stop);
        served.await.unwrap().unwrap();
        drop(client);
    }

    #[tokio::test]
    async fn a_client_that_stops_amid_a_request_is_waited_for_within_the_limit() {
        let (address, stop, served) = service(Duration::from_millis(50)).await;
        let client = client(address, "expect: 100-continue\r\n\r\n", ASKED_TO_GO_ON).await;
        drop(stop);
        assert_eq!(served.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(client);
    }
}
