//! Mutual TLS between SPIFFE identities for Rust programs, with keys that need not be in the program.
//!
//! An [`X509Source`] keeps this program's X509-SVIDs, the bundles and the revocation lists up to date.
//! [`server_config`] and [`client_config`] make rustls configurations from it that are made once and never again: each
//! handshake presents the newest SVID and judges the peer by the newest bundles and lists. What a program decides is
//! who holds its keys ([`Custody`]) and whom it talks to ([`Authorize`]).
//!
//! A server that talks to one client, and whose key tether holds:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use tether::client::tls::{Authorize, Custody, X509Source, peer_id, server_config};
//! use tether::id::SpiffeId;
//! use tokio::io::AsyncWriteExt;
//! use tokio::net::TcpListener;
//! use tokio_rustls::TlsAcceptor;
//!
//! # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//! // From `SPIFFE_ENDPOINT_SOCKET`. Waits until the agent has an identity for this program.
//! let source = X509Source::from_env(Custody::Tether).await?;
//! let billing = SpiffeId::parse("spiffe://example.org/billing")?;
//!
//! let acceptor = TlsAcceptor::from(Arc::new(server_config(&source, Authorize::Id(billing))));
//! let listener = TcpListener::bind("0.0.0.0:8443").await?;
//! loop {
//!     let (connection, _) = listener.accept().await?;
//!     let acceptor = acceptor.clone();
//!     tokio::spawn(async move {
//!         // Whoever is not `billing` ends here, and has been told why by a TLS alert.
//!         let mut stream = acceptor.accept(connection).await?;
//!         let peer = peer_id(stream.get_ref().1).expect("the handshake proved an identity");
//!         stream.write_all(format!("hello, {peer}\n").as_bytes()).await?;
//!         stream.shutdown().await
//!     });
//! }
//! # }
//! ```
//!
//! And the client:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use tether::client::tls::{Authorize, Custody, X509Source, client_config, unnamed};
//! use tether::id::SpiffeId;
//! use tokio::io::AsyncReadExt;
//! use tokio::net::TcpStream;
//! use tokio_rustls::TlsConnector;
//!
//! # async fn call() -> Result<(), Box<dyn std::error::Error>> {
//! let source = X509Source::from_env(Custody::Tether).await?;
//! let ledger = SpiffeId::parse("spiffe://example.org/ledger")?;
//!
//! let connector = TlsConnector::from(Arc::new(client_config(&source, Authorize::Id(ledger))));
//! let connection = TcpStream::connect("ledger.internal:8443").await?;
//! // The identity says who the server is. A DNS name would only be sent along for those who route by it.
//! let mut stream = connector.connect(unnamed(), connection).await?;
//! let mut greeting = String::new();
//! stream.read_to_string(&mut greeting).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Promises: TLS 1.3 and mutual, always; a key exchange that a later quantum computer does not open where the peer can
//! do it (X25519MLKEM768); nobody is talked to without having been judged at that moment, so sessions are never resumed
//! and there are no tickets; an SVID that has expired is not presented, and a revocation list that has is not believed.
//! With [`Custody::Tether`] no private key is in the program at any time.
//!
//! Connections that are open are looked at again where a [`Guard`] is put over them, and otherwise not. DNS names are not
//! known. A handshake with a held key waits for the agent on the thread it runs on, for a fraction of a millisecond, and
//! two seconds at most; one on the client's side too.

mod authorize;
mod guard;
mod resolver;
mod signer;
mod source;
mod state;
mod verifier;
mod worker;

#[cfg(all(test, feature = "agent"))]
mod tests;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, CommonState, ServerConfig};

pub use authorize::Authorize;
pub use guard::{Cut, Guard, Guarded, PeerCertificates};
pub use resolver::SvidResolver;
pub use signer::SignError;
pub use source::{Changes, Custody, SourceError, Standing, X509Source};
pub use state::{X509Identity, X509State};
pub use verifier::{Believing, PeerError, PeerVerifier};

use crate::id::SpiffeId;
use crate::x509::{Certificate, tls};

/// A client that presents the identity of `source` and talks to the servers that `authorize` names.
///
/// What else a program wants, such as ALPN, it sets on the result. Resumption stays off: a resumed session skips the
/// judgement of the certificate, so it would outlive a revocation.
pub fn client_config(source: &X509Source, authorize: Authorize) -> ClientConfig {
    tls::client(source.clock(), Believing::new(source, authorize), Arc::new(SvidResolver::new(source)))
}

/// A server that presents the identity of `source` and talks to the clients that `authorize` names. A client without a
/// certificate is refused.
///
/// What else a program wants, such as ALPN, it sets on the result. Tickets stay off: a resumed session skips the
/// judgement of the certificate, so it would outlive a revocation.
pub fn server_config(source: &X509Source, authorize: Authorize) -> ServerConfig {
    tls::server(source.clock(), Believing::new(source, authorize), Arc::new(SvidResolver::new(source)))
}

/// The server name for a connection to a server that is known by its SPIFFE ID alone: nothing is sent for it.
pub fn unnamed() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())
}

/// Who is at the other end of a connection that was made with [`client_config`] or [`server_config`]; `None` before its
/// handshake is over.
pub fn peer_id(connection: &CommonState) -> Option<SpiffeId> {
    let leaf = connection.peer_certificates().filter(|_| !connection.is_handshaking())?.first()?;
    Certificate::from_der(leaf).ok()?.svid_id().ok()
}
