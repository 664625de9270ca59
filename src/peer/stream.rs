//! A connection as bytes, each of which has a known sender.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use super::conn::PeerConn;
use super::instance::InstanceEnd;
use super::refusal::Refusal;
use super::wire::{Event, Inbound, Outbound, Passed, WriteAction};
use crate::base::quota::Place;
use crate::sys::socket::{self, Received};

/// The most that is read at once. The caller's buffer is zeroed that far each time.
const MAX_READ: usize = 16 * 1024;

/// An accepted connection. It carries HTTP/2 and nothing else, and ends with the first byte of a foreign sender, with
/// the instance at its other end, or when the challenge is not answered in time.
///
/// The checks of time and end are made when it is read or written: an HTTP/2 server always has a read waiting.
pub struct PeerStream {
    socket: UnixStream,
    conn: PeerConn,
    inbound: Inbound,
    outbound: Outbound,
    /// How long the caller may still take; `None` once it has answered.
    deadline: Option<Pin<Box<Sleep>>>,
    ended: Pin<Box<dyn Future<Output = InstanceEnd> + Send>>,
    over: Option<Refusal>,
    _place: Place,
}

impl PeerStream {
    pub(super) fn new(
        socket: UnixStream,
        conn: PeerConn,
        challenge: [u8; 8],
        half_open: Duration,
        place: Place,
    ) -> Self {
        Self {
            socket,
            inbound: Inbound::new(challenge),
            outbound: Outbound::new(challenge),
            deadline: Some(Box::pin(tokio::time::sleep(half_open))),
            ended: Box::pin(conn.instance().ended_owned()),
            conn,
            over: None,
            _place: place,
        }
    }

    /// Who is on the other end.
    pub fn conn(&self) -> &PeerConn {
        &self.conn
    }

    /// Ready with the reason when the connection must not go on.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let Some(refusal) = &self.over {
            return Poll::Ready(aborted(refusal.clone()));
        }
        if let Poll::Ready(end) = self.ended.as_mut().poll(cx) {
            return Poll::Ready(self.instance_ended(end));
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(self.cut(Refusal::ChallengeTimeout));
        }
        Poll::Pending
    }

    /// Reads once and checks the sender. `Ok(None)`: what was read was for us, or there was nothing after all.
    fn read_checked(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<Option<()>> {
        let space = buf.initialize_unfilled_to(buf.remaining().min(MAX_READ));
        let received = match self.socket.try_io(Interest::READABLE, || socket::recv_with_sender(&self.socket, space)) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let count = match received {
            Received::End => return Ok(Some(())),
            Received::Descriptors => return Err(self.cut(Refusal::DescriptorsPassed)),
            Received::Bytes { count, sender } => {
                let sender = sender.map(|sender| sender.pid);
                if sender != Some(self.conn.instance().pid()) {
                    return Err(self.cut(Refusal::SenderChanged { sender: sender.filter(|pid| *pid != 0) }));
                }
                count
            }
        };
        // The number named the sender when it sent. Only because the process we hold is alive now was it its number.
        if !self.conn.instance().is_alive() {
            return Err(self.instance_ended(InstanceEnd::Exited));
        }

        let read = match self.inbound.accept(&space[..count]) {
            Ok(read) => read,
            Err(error) => return Err(self.cut(error.into())),
        };
        if read.event == Some(Event::ChallengeAnswered) && self.outbound.challenge_sent() {
            match self.conn.instance().look() {
                Ok(_) => self.conn.prove(),
                Err(error) => return Err(self.cut(error.into())),
            }
            self.deadline = None;
        }
        match read.passed {
            Passed::AsRead => {
                buf.advance(count);
                Ok(Some(()))
            }
            Passed::Queued => Ok(None),
        }
    }

    fn instance_ended(&mut self, end: InstanceEnd) -> io::Error {
        match end {
            // The ordinary end of a caller: its end of the connection went with it.
            InstanceEnd::Exited if socket::peer_has_closed(&self.socket) => self.cut(Refusal::Closed),
            end => self.cut(end.into()),
        }
    }

    /// Ends the connection for good. Says why with GOAWAY where a frame may start and the socket takes it at once.
    fn cut(&mut self, refusal: Refusal) -> io::Error {
        self.conn.over(refusal.clone());
        if refusal != Refusal::Closed
            && self.outbound.goaway(self.inbound.last_stream(), refusal.code(), &refusal.to_string())
        {
            // Best effort: who does not read is cut without a word.
            let _ = self.socket.try_write(self.outbound.pending());
        }
        self.over = Some(refusal.clone());
        aborted(refusal)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_over(cx) {
            return Poll::Ready(Err(error));
        }
        let first: &[u8] = slices.iter().find(|slice| !slice.is_empty()).map_or(&[], |slice| slice);
        loop {
            match self.outbound.accept(first) {
                Err(error) => return Poll::Ready(Err(self.cut(error.into()))),
                Ok(WriteAction::Taken(count)) => return Poll::Ready(Ok(count)),
                Ok(WriteAction::FlushFirst) => ready!(self.poll_flush_pending(cx))?,
                Ok(WriteAction::Through) => {
                    let count = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, slices))?;
                    let mut left = count;
                    for slice in slices {
                        let taken = slice.len().min(left);
                        self.outbound.wrote(&slice[..taken]);
                        left -= taken;
                    }
                    return Poll::Ready(Ok(count));
                }
            }
        }
    }

    fn poll_flush_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbound.pending().is_empty() {
            let count = ready!(Pin::new(&mut self.socket).poll_write(cx, self.outbound.pending()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outbound.wrote_pending(count);
        }
        Poll::Ready(Ok(()))
    }
}

fn aborted(refusal: Refusal) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, refusal)
}

impl AsyncRead for PeerStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Poll::Ready(error) = this.poll_over(cx) {
                return Poll::Ready(Err(error));
            }
            let queued = this.inbound.queued();
            if !queued.is_empty() || buf.remaining() == 0 {
                let count = queued.len().min(buf.remaining());
                buf.put_slice(&queued[..count]);
                this.inbound.consume(count);
                return Poll::Ready(Ok(()));
            }
            ready!(this.socket.poll_read_ready(cx))?;
            if this.read_checked(buf)?.is_some() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, slices)
    }

    /// A message of some size is written with its frame heads in one call, so that the caller wakes up once for it.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(error) = this.poll_over(cx) {
            return Poll::Ready(Err(error));
        }
        ready!(this.poll_flush_pending(cx))?;
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.over.is_none() {
            ready!(this.poll_flush_pending(cx))?;
        }
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

impl Drop for PeerStream {
    fn drop(&mut self) {
        self.conn.over(Refusal::Closed);
    }
}

impl Connected for PeerStream {
    type ConnectInfo = PeerConn;

    fn connect_info(&self) -> PeerConn {
        self.conn.clone()
    }
}

impl std::fmt::Debug for PeerStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerStream").field("conn", &self.conn).finish_non_exhaustive()
    }
}
