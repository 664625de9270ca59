//! The agent's own end of mutual TLS: what it presents, and whom it believes.
//!
//! Promises: TLS 1.3 and mutual; the peer is judged as an X509-SVID of our own trust domain by the bundle and the
//! revocation lists of that moment, those of other nodes included; nothing is resumed, so every connection is judged.
//! Does not: look again by itself at a peer whose connection stays open; whoever keeps one asks [`Tls::believes`].

use std::fmt;
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, Error, OtherError, ServerConfig, SignatureScheme};
use thiserror::Error as ThisError;
use tokio::sync::watch;

use crate::authority::X509Svid;
use crate::base::clock::Clock;
use crate::id::SpiffeId;
use crate::trust::{Crls, Trust};
use crate::x509::tls::{self, Judge, certificate_error};
use crate::x509::{Chain, X509Error, verify};

/// Why a peer was refused.
#[derive(Debug, ThisError)]
enum PeerError {
    /// What it presented is no X509-SVID of our trust domain, or no longer stands.
    #[error("the peer's certificate is not believed")]
    Certificate(#[from] X509Error),
    /// It is another than the one that was meant.
    #[error("the peer is `{found}` and not `{meant}`")]
    Another { found: SpiffeId, meant: SpiffeId },
}

/// The agent's own SVID, as it is renewed; clones share it.
#[derive(Clone, Debug)]
pub struct OwnSvid(Arc<watch::Sender<Option<Presented>>>);

#[derive(Clone)]
struct Presented(Arc<CertifiedKey>);

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presented").finish_non_exhaustive()
    }
}

impl Default for OwnSvid {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl OwnSvid {
    /// Presents `svid` from now on.
    ///
    /// # Errors
    /// It is not one that TLS can use.
    pub fn set(&self, svid: &X509Svid) -> Result<(), Error> {
        let chain = Chain::from_der(&svid.signed.chain).map_err(|error| Error::Other(OtherError(Arc::new(error))))?;
        // Borrowed, so that the one copy is the one that gets wiped.
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key.expose().as_slice()));
        let chain = chain.certificates().iter().map(|certificate| certificate.der().clone()).collect();
        let presented = Presented(Arc::new(CertifiedKey::new(chain, any_supported_type(&key)?)));
        self.0.send_replace(Some(presented));
        Ok(())
    }

    /// Waits until there is one.
    pub async fn there(&self) {
        // The sender is ours: it does not end.
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }

    fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().as_ref().map(|presented| presented.0.clone())
    }
}

impl ResolvesServerCert for OwnSvid {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

impl ResolvesClientCert for OwnSvid {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What connections of the agent are made with.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Who it is.
    pub own: OwnSvid,
    /// Whom it believes.
    pub trust: Arc<Trust>,
    /// What was revoked.
    pub crls: Crls,
    /// The time.
    pub clock: Clock,
}

impl Tls {
    /// A server that talks to whoever has an X509-SVID of our trust domain.
    pub fn server(&self) -> ServerConfig {
        tls::server(&self.clock, Own { tls: self.clone(), meant: None }, Arc::new(self.own.clone()))
    }

    /// A client that talks to `meant` and to nobody else.
    pub fn client(&self, meant: SpiffeId) -> ClientConfig {
        tls::client(&self.clock, Own { tls: self.clone(), meant: Some(meant) }, Arc::new(self.own.clone()))
    }

    /// Whether what a peer proved, leaf first, is still believed; and is of the one that is meant, where one is.
    pub fn believes(&self, presented: &[CertificateDer<'_>], meant: Option<&SpiffeId>) -> bool {
        self.judge(presented, meant).is_ok()
    }

    fn judge(&self, certificates: &[CertificateDer<'_>], meant: Option<&SpiffeId>) -> Result<(), PeerError> {
        let chain = Chain::from_certificates(certificates)?;
        let (trust, lists) = (self.trust.current(), self.crls.latest());
        let peer = verify(&chain, trust.own().x509(), self.clock.now(), lists.parsed()?)?;
        match meant {
            Some(meant) if peer.spiffe_id() != meant => {
                Err(PeerError::Another { found: peer.spiffe_id().clone(), meant: meant.clone() })
            }
            _ => Ok(()),
        }
    }
}

/// Judges the peer as one of our own trust domain.
#[derive(Debug)]
struct Own {
    tls: Tls,
    /// The only one that is talked to; `None` for everybody of our trust domain.
    meant: Option<SpiffeId>,
}

impl Judge for Own {
    fn admit(&self, certificates: &[CertificateDer<'_>], _: UnixTime) -> Result<(), CertificateError> {
        self.tls.judge(certificates, self.meant.as_ref()).map_err(|error| {
            tracing::info!(error = &error as &dyn std::error::Error, "a peer of the agent was refused");
            match error {
                PeerError::Certificate(error) => certificate_error(error),
                PeerError::Another { .. } => CertificateError::ApplicationVerificationFailure,
            }
        })
    }
}
