//! A knock at the server's door: the shortest question of the protocol, whether it encrypts. A server that answers is
//! there; it has begun no session for it, and counts none.

use std::io;

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::relay::socket_in;

/// Its length, and the code of an `SSLRequest` (`PostgreSQL` documentation, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Returns when somebody has opened.
pub(crate) async fn knock(options: &PgConnectOptions) -> io::Result<()> {
    let (host, port) = (options.get_host(), options.get_port());
    if let Some(directory) = options.get_socket() {
        return ask(UnixStream::connect(socket_in(directory, port)).await?).await;
    }
    ask(TcpStream::connect((host, port)).await?).await
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.write_all(&SSL_REQUEST).await?;
    stream.read_u8().await.map(drop)
}
