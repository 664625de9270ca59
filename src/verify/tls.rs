//! The agent's own end of mutual TLS: what it presents, and whom it believes.
//!
//! Promises: TLS 1.3 and mutual; the peer is judged as an X509-SVID of our own trust domain by the bundle and the
//! revocation lists of that moment, those of other nodes included; nothing is resumed, so every connection is judged.
//! Does not: look again by itself at a peer whose connection stays open; whoever keeps one asks [`Tls::believes`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, ServerConfig,
    SignatureScheme,
};
use thiserror::Error as ThisError;
use tokio::sync::watch;

use crate::authority::X509Svid;
use crate::base::clock::Clock;
use crate::id::SpiffeId;
use crate::trust::{Crls, Trust};
use crate::x509::{Chain, X509Error, verify};

const PROVIDER_IS_WHOLE: &str = "the provider has cipher suites and key exchanges of TLS 1.3";

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
        let mut config = ServerConfig::builder_with_details(provider(), Arc::new(TlsTime(self.clock.clone())))
            .with_protocol_versions(&[&TLS13])
            .expect(PROVIDER_IS_WHOLE)
            .with_client_cert_verifier(Arc::new(PeerVerifier { tls: self.clone(), meant: None }))
            .with_cert_resolver(Arc::new(self.own.clone()));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config
    }

    /// A client that talks to `meant` and to nobody else.
    pub fn client(&self, meant: SpiffeId) -> ClientConfig {
        let mut config = ClientConfig::builder_with_details(provider(), Arc::new(TlsTime(self.clock.clone())))
            .with_protocol_versions(&[&TLS13])
            .expect(PROVIDER_IS_WHOLE)
            .dangerous() // which means: with a verifier of our own
            .with_custom_certificate_verifier(Arc::new(PeerVerifier { tls: self.clone(), meant: Some(meant) }))
            .with_client_cert_resolver(Arc::new(self.own.clone()));
        config.resumption = Resumption::disabled();
        config
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

/// Judges the peer's certificate, on both sides by the same straight path.
#[derive(Debug)]
struct PeerVerifier {
    tls: Tls,
    /// The only one that is talked to; `None` for everybody of our trust domain.
    meant: Option<SpiffeId>,
}

impl PeerVerifier {
    fn check(&self, end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
        let certificates: Vec<CertificateDer<'_>> =
            std::iter::once(end_entity).chain(intermediates).map(|der| CertificateDer::from(der.as_ref())).collect();
        self.tls.judge(&certificates, self.meant.as_ref()).map_err(|error| {
            tracing::info!(error = &error as &dyn std::error::Error, "a peer of the agent was refused");
            Error::InvalidCertificate(match error {
                PeerError::Certificate(X509Error::Revoked) => CertificateError::Revoked,
                PeerError::Certificate(X509Error::Expired(_)) => CertificateError::Expired,
                PeerError::Certificate(error) => CertificateError::Other(OtherError(Arc::new(error))),
                PeerError::Another { .. } => CertificateError::ApplicationVerificationFailure,
            })
        })
    }
}

fn only_tls13() -> Error {
    Error::General("SVIDs are exchanged in TLS 1.3 and no older version".to_owned())
}

fn is_signed(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature(message, certificate, signature, &default_provider().signature_verification_algorithms)
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _ocsp_response: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        is_signed(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        is_signed(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// TLS 1.3 alone; the hybrid key exchange first.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..default_provider()
    })
}

#[derive(Debug)]
struct TlsTime(Clock);

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().unix_timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}
