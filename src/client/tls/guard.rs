//! Open connections: judged again when there is reason to.
//!
//! A handshake judges its peer once, and a connection may live for days. A [`Guard`] says when it is to be closed; put over
//! the connection ([`Guard::over`]) it closes it.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use rustls::CommonState;
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::X509Bundles;
use super::source::Standing;
use super::{Authorize, PeerError, X509Source};
use crate::id::SpiffeId;
use crate::x509::Chain;

/// The certificates that a peer proved in a handshake, leaf first.
///
/// A server puts them among the extensions of each request of the connection, for
/// [`VerifyLayer`](crate::client::verifier::VerifyLayer) and the service behind it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificates(Arc<[CertificateDer<'static>]>);

impl PeerCertificates {
    /// Those of a connection; `None` before its handshake is over, and of a peer that presented none.
    pub fn of(connection: &CommonState) -> Option<Self> {
        let certificates = connection.peer_certificates().filter(|_| !connection.is_handshaking())?;
        Some(Self::proven(certificates.iter().cloned().map(CertificateDer::into_owned)))
    }

    /// Those that another TLS stack made the peer prove, leaf first.
    pub fn proven(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        Self(certificates.into_iter().collect())
    }

    /// The certificates, leaf first.
    pub fn as_slice(&self) -> &[CertificateDer<'static>] {
        &self.0
    }

    pub(in crate::client) fn to_wire(&self) -> impl Iterator<Item = Bytes> {
        self.0.iter().map(|certificate| Bytes::copy_from_slice(certificate))
    }
}

/// Why an open connection is to be closed.
#[derive(Debug, Error)]
pub enum Cut {
    /// The peer is not believed any more: its certificate is on a revocation list, or the authority behind it is gone.
    #[error("the peer of an open connection is not believed any more")]
    Peer(#[from] PeerError),
    /// The process that this side acts for is gone, or is not acted for any more ([`X509Source::ended`]).
    #[error("the process this connection was made for is over: {0}")]
    Ended(String),
}

/// Watches over one open connection. Cheap to clone.
///
/// It judges the peer again, by the rules of the handshake, whenever bundles or revocation lists change. Lists are
/// enforced only on certificates that have not expired, and connections often live longer than certificates do, so the end
/// of the certificate is told apart ([`Self::expired`]), and it is for the program to choose what it means: to let a
/// connection end in good order then, so that the peer comes again with its next certificate, is what keeps revocation whole.
#[derive(Clone)]
pub struct Guard(Arc<Watched>);

struct Watched {
    source: X509Source,
    chain: Chain,
    peer: SpiffeId,
    /// What it was judged by at first.
    judged: Arc<X509Bundles>,
}

impl Guard {
    /// Over a connection with this peer; judges it once more, now.
    ///
    /// # Errors
    /// The peer is not believed, or not one of `authorize`.
    pub fn new(source: &X509Source, authorize: &Authorize, peer: &PeerCertificates) -> Result<Self, PeerError> {
        let chain = Chain::from_certificates(peer.as_slice())?;
        let judged = source.state().bundles;
        let peer = judged.verify_peer(&chain, source.clock().now())?.spiffe_id().clone();
        if !authorize.allows(&peer) {
            return Err(PeerError::NotAuthorised(peer));
        }
        Ok(Self(Arc::new(Watched { source: source.clone(), chain, peer, judged })))
    }

    /// Who the peer is.
    pub fn peer(&self) -> &SpiffeId {
        &self.0.peer
    }

    /// When the peer's certificate ends.
    pub fn not_after(&self) -> OffsetDateTime {
        self.0.chain.leaf().not_after()
    }

    /// Returns when the peer's certificate has ended; needs a runtime with a clock.
    pub async fn expired(&self) {
        self.0.source.clock().sleep_until(self.not_after()).await;
    }

    /// Returns when the connection is to be closed, with why. The end of the certificate is not among the reasons.
    pub async fn cut(&self) -> Cut {
        let source = &self.0.source;
        let mut changes = source.changes();
        let mut judged = self.0.judged.clone();
        loop {
            if let Standing::Ended { reason } = source.standing() {
                return Cut::Ended(reason);
            }
            let bundles = source.state().bundles;
            if !Arc::ptr_eq(&judged, &bundles) {
                if let Err(error) = self.judge(&bundles) {
                    return Cut::Peer(error);
                }
                judged = bundles;
            }
            if changes.next().await.is_none() {
                return Cut::Ended(source.ended().await);
            }
        }
    }

    /// The connection, which fails with [`io::ErrorKind::ConnectionAborted`] and a [`Cut`] in it once it is to be closed.
    pub fn over<IO>(&self, io: IO) -> Guarded<IO> {
        let guard = self.clone();
        let wakers = Arc::new(Wakers { woken: AtomicBool::new(true), ..Wakers::default() });
        Guarded { io, guard: self.clone(), cut: Some(Box::pin(async move { guard.cut().await })), wakers }
    }

    fn judge(&self, bundles: &X509Bundles) -> Result<(), PeerError> {
        // As of its last moment, once it has passed: the end is told apart.
        let now = self.0.source.clock().now().min(self.not_after());
        bundles.verify_peer(&self.0.chain, now).map(drop).map_err(PeerError::Certificate)
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("peer", &self.0.peer).finish_non_exhaustive()
    }
}

/// A connection under a [`Guard`]: `hyper`, `axum` and `tonic` serve it like any other.
pub struct Guarded<IO> {
    io: IO,
    guard: Guard,
    /// `None` once it is ready: everything fails from then on.
    cut: Option<Pin<Box<dyn Future<Output = Cut> + Send>>>,
    wakers: Arc<Wakers>,
}

/// Reading and writing may wait on two tasks, and both are to learn that the connection is cut.
#[derive(Default)]
struct Wakers {
    woken: AtomicBool,
    reading: AtomicWaker,
    writing: AtomicWaker,
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.reading.wake();
        self.writing.wake();
    }
}

impl<IO> Guarded<IO> {
    /// The connection underneath.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// What watches over it.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Fails once the connection is cut.
    fn check(&mut self, context: &mut Context<'_>, side: fn(&Wakers) -> &AtomicWaker) -> io::Result<()> {
        let Some(cut) = &mut self.cut else { return Err(io::ErrorKind::ConnectionAborted.into()) };
        // First: whoever wakes it afterwards sees this task.
        side(&self.wakers).register(context.waker());
        // Looking costs more than I/O does, so it is done when there is something to be seen.
        if !self.wakers.woken.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let waker = Waker::from(self.wakers.clone());
        let Poll::Ready(cut) = cut.as_mut().poll(&mut Context::from_waker(&waker)) else { return Ok(()) };
        tracing::info!(peer = %self.guard.peer(), error = &cut as &dyn std::error::Error, "an open connection is cut");
        self.cut = None;
        // The other side, if it waits, has to learn of it too.
        self.wakers.reading.wake();
        self.wakers.writing.wake();
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, cut))
    }
}

impl<IO: fmt::Debug> fmt::Debug for Guarded<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("io", &self.io).field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context, |wakers| &wakers.reading)?;
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context, |wakers| &wakers.writing)?;
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context, |wakers| &wakers.writing)?;
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context, |wakers| &wakers.writing)?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context, |wakers| &wakers.writing)?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
