//! A connection that we can end without the client.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use crate::base::drain;
use crate::peer::{PeerConn, PeerStream};

/// A client's connection, which ends for the server when it is cut.
pub(super) struct Connection {
    stream: PeerStream,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Connection {
    pub(super) fn new(stream: PeerStream, mut cut: drain::Watcher) -> Self {
        Self { stream, cut: Box::pin(async move { cut.draining().await }) }
    }

    fn ended() -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionAborted, "the agent stops, and the client did not hang up")
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            // Whoever reads after that reads the same, and does not ask a future that is over.
            self.cut = Box::pin(std::future::ready(()));
            return Poll::Ready(Err(Self::ended()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerConn;

    fn connect_info(&self) -> PeerConn {
        self.stream.connect_info()
    }
}
