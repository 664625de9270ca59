//! Connections to the target: mutual TLS with one SPIFFE ID, or TLS with an outside service by its name.

use std::io;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::super::{Connector, Limits, Link, Protocol, Upstream};
use super::target::Target;
use crate::base::clock::Clock;
use crate::client::tls::{Authorize, Guard, PeerCertificates, X509Source, client_config, unnamed};
use crate::id::SpiffeId;

/// How the target is reached, the same for every program.
#[derive(Clone)]
pub(super) struct Connect {
    pub(super) target: Arc<Target>,
    /// Sent along for those who route by it, and for an outside service what its certificate must be for.
    pub(super) server_name: Option<ServerName<'static>>,
    pub(super) trust: Trust,
    pub(super) limits: Limits,
}

/// Whom to believe that it is the target.
#[derive(Clone)]
pub(super) enum Trust {
    /// The holder of this SPIFFE ID, by the bundles; it is shown the identity of who asks.
    Peer(SpiffeId),
    /// Whoever these roots certify under the target's name; it is shown no certificate.
    Outside(Arc<ClientConfig>),
}

/// Connections for one program, made anew when the certificates are over that were shown on them: who was revoked since
/// is on no list any more. What is under way on one goes on.
pub(super) struct Line {
    connect: Connect,
    source: X509Source,
    alpn: Vec<Vec<u8>>,
    clock: Clock,
    current: Mutex<(Upstream, Expiry)>,
}

/// When the first of the certificates ends that were shown, in seconds since the epoch.
#[derive(Clone)]
struct Expiry(Arc<AtomicI64>);

impl Line {
    /// Connections in the name of `source`. With `http2` the target may choose it.
    pub(super) fn new(connect: &Connect, source: &X509Source, http2: bool, clock: &Clock) -> Self {
        let alpn = if http2 { &Protocol::ALPN[..] } else { &Protocol::ALPN[1..] };
        let alpn = alpn.iter().map(|name| name.to_vec()).collect::<Vec<_>>();
        let current = Mutex::new(connect.upstream(source, &alpn, clock));
        Self { connect: connect.clone(), source: source.clone(), alpn, clock: clock.clone(), current }
    }

    /// Those that a request may use now.
    pub(super) fn upstream(&self) -> Upstream {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.1.0.load(Ordering::Relaxed) <= self.clock.now().unix_timestamp() {
            *current = self.connect.upstream(&self.source, &self.alpn, &self.clock);
        }
        current.0.clone()
    }
}

impl Connect {
    fn upstream(&self, source: &X509Source, alpn: &[Vec<u8>], clock: &Clock) -> (Upstream, Expiry) {
        let mut tls = match &self.trust {
            Trust::Peer(peer) => client_config(source, Authorize::Id(peer.clone())),
            Trust::Outside(tls) => ClientConfig::clone(tls),
        };
        tls.alpn_protocols = alpn.to_vec();
        let (connect, source, tls) = (self.clone(), source.clone(), TlsConnector::from(Arc::new(tls)));
        let (patience, waits, expiry) =
            (self.limits.handshake, clock.clone(), Expiry(Arc::new(AtomicI64::new(i64::MAX))));
        let ends = expiry.clone();
        let connector = Connector::new(move || {
            let (connect, source, tls, waits, ends) =
                (connect.clone(), source.clone(), tls.clone(), waits.clone(), ends.clone());
            async move {
                tokio::select! {
                    linked = connect.link(&source, &tls, &ends) => linked,
                    () = waits.pause(patience) => Err(io::ErrorKind::TimedOut.into()),
                }
            }
        });
        (Upstream::new(connector, false, &self.limits, clock.clone()).never_again(), expiry)
    }

    async fn link(&self, source: &X509Source, tls: &TlsConnector, ends: &Expiry) -> io::Result<Link> {
        let stream = TcpStream::connect((self.target.host(), self.target.port())).await?;
        stream.set_nodelay(true)?;
        let name = self.server_name.clone().unwrap_or_else(unnamed);
        let mut connecting = std::pin::pin!(tls.connect(name, stream));
        // A handshake that shows a certificate waits for the agent, which signs, on its thread: what else that thread had to
        // do is done by another one meanwhile.
        let stream = std::future::poll_fn(|cx| match &self.trust {
            Trust::Peer(_) => tokio::task::block_in_place(|| connecting.as_mut().poll(cx)),
            Trust::Outside(_) => connecting.as_mut().poll(cx),
        });
        let stream = stream.await?;
        let state = stream.get_ref().1;
        let http2 = state.alpn_protocol() == Some(Protocol::ALPN[0]);
        match &self.trust {
            Trust::Outside(_) => Ok(Link { io: Box::new(stream), http2 }),
            Trust::Peer(peer) => {
                let shown = PeerCertificates::of(state).ok_or_else(|| io::Error::other("the target showed nothing"))?;
                // Cut when the target's certificate is revoked, or nobody is acted for any more.
                let guard = Guard::new(source, &Authorize::Id(peer.clone()), &shown).map_err(io::Error::other)?;
                ends.0.fetch_min(guard.not_after().unix_timestamp(), Ordering::Relaxed);
                Ok(Link { io: Box::new(guard.over(stream)), http2 })
            }
        }
    }
}
