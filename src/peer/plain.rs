//! A connection whose bytes have a known sender and any meaning: what a program says that knows nothing of tether.
//!
//! Promises: no byte is handed on, and none is sent, unless the process that connected was there with the program it had
//! at `accept`, a moment before; the first byte of anybody else ends the connection, and so does any descriptor.
//!
//! Does not: ask the caller anything, as [`super::PeerStream`] does in HTTP/2. Bytes that were sent before `accept` may
//! be those of a program that the process ran before. Only [`PeerConn::holds_cloexec`] rules that out: a connection that
//! is closed on exec was opened by the program that has it.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use super::conn::PeerConn;
use super::instance::InstanceEnd;
use super::refusal::Refusal;
use crate::base::quota::Place;
use crate::sys::socket::{self, Received};

/// The most that is read at once. The caller's buffer is zeroed that far each time.
const MAX_READ: usize = 16 * 1024;

/// An accepted connection of [`super::Listener::accept_plain`].
pub struct PlainStream {
    socket: UnixStream,
    conn: PeerConn,
    ended: Pin<Box<dyn Future<Output = InstanceEnd> + Send>>,
    over: Option<Refusal>,
    _place: Place,
}

impl PlainStream {
    pub(super) fn new(socket: UnixStream, conn: PeerConn, place: Place) -> Self {
        Self { socket, ended: Box::pin(conn.instance().ended_owned()), conn, over: None, _place: place }
    }

    /// Who is on the other end.
    pub fn conn(&self) -> &PeerConn {
        &self.conn
    }

    /// Ready with the reason when the connection must not go on. Wakes the reader when the process exits.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let Some(refusal) = &self.over {
            return Poll::Ready(aborted(refusal.clone()));
        }
        match self.ended.as_mut().poll(cx) {
            Poll::Ready(InstanceEnd::Exited) if socket::peer_has_closed(&self.socket) => {
                Poll::Ready(self.cut(Refusal::Closed))
            }
            Poll::Ready(end) => Poll::Ready(self.cut(end.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// That it is the same program still, now.
    fn look(&mut self) -> io::Result<()> {
        self.conn.instance().look().map(drop).map_err(|error| self.cut(error.into()))
    }

    /// Reads once and checks the sender. `Ok(false)`: there was nothing after all.
    fn read_checked(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
        let space = buf.initialize_unfilled_to(buf.remaining().min(MAX_READ));
        let received = match self.socket.try_io(Interest::READABLE, || socket::recv_with_sender(&self.socket, space)) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let (count, sender) = match received {
            Received::End => return Ok(true),
            Received::Descriptors => return Err(self.cut(Refusal::DescriptorsPassed)),
            Received::Bytes { count, sender } => (count, sender.map(|sender| sender.pid)),
        };
        if sender != Some(self.conn.instance().pid()) {
            return Err(self.cut(Refusal::SenderChanged { sender: sender.filter(|pid| *pid != 0) }));
        }
        // The number named the sender when it sent. Only because the process we hold is alive now was it its number.
        self.look()?;
        buf.advance(count);
        Ok(true)
    }

    fn cut(&mut self, refusal: Refusal) -> io::Error {
        self.conn.over(refusal.clone());
        self.over = Some(refusal.clone());
        aborted(refusal)
    }
}

fn aborted(refusal: Refusal) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, refusal)
}

impl AsyncRead for PlainStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Poll::Ready(error) = this.poll_over(cx) {
                return Poll::Ready(Err(error));
            }
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            ready!(this.socket.poll_read_ready(cx))?;
            if this.read_checked(buf)? {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for PlainStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Poll::Ready(error) = this.poll_over(cx) {
            return Poll::Ready(Err(error));
        }
        this.look()?;
        Pin::new(&mut this.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

impl Drop for PlainStream {
    fn drop(&mut self) {
        self.conn.over(Refusal::Closed);
    }
}

impl std::fmt::Debug for PlainStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlainStream").field("conn", &self.conn).finish_non_exhaustive()
    }
}
