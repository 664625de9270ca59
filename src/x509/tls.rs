//! What SVIDs in TLS are the same for, whoever decides about the peer: the agent's own connections and the library's.
//!
//! Promises: TLS 1.3 and mutual; the hybrid key exchange first; nothing is resumed, so every connection is judged; a
//! refusal is told to the peer by the alert that fits (RFC 8446, section 6.2). Does not: decide. That is [`Judge`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, ServerConfig,
    SignatureScheme,
};

use super::X509Error;
use crate::base::clock::Clock;

pub(crate) const PROVIDER_IS_WHOLE: &str = "the provider has cipher suites and key exchanges of TLS 1.3";

/// Who decides about a peer.
pub trait Judge: fmt::Debug + Send + Sync {
    /// Whether the peer that presented these certificates, leaf first, is talked to.
    ///
    /// # Errors
    /// What makes rustls send the alert that fits.
    fn admit(&self, certificates: &[CertificateDer<'_>], now: UnixTime) -> Result<(), CertificateError>;
}

/// The certificate verifier of both sides for rustls: a [`Judge`] on one straight path, and nothing but TLS 1.3.
///
/// Names in DNS play no part: the server name of a connection is not looked at.
#[derive(Clone, Debug)]
pub struct Verifier<J> {
    pub(crate) judge: J,
    algorithms: WebPkiSupportedAlgorithms,
}

impl<J: Judge> Verifier<J> {
    /// Talks to whom `judge` admits.
    pub fn by(judge: J) -> Self {
        Self { judge, algorithms: default_provider().signature_verification_algorithms }
    }

    fn check(&self, end_entity: &CertificateDer<'_>, rest: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let certificates: Vec<CertificateDer<'_>> =
            std::iter::once(end_entity).chain(rest).map(|der| CertificateDer::from(der.as_ref())).collect();
        self.judge.admit(&certificates, now).map_err(Error::InvalidCertificate)
    }
}

/// A server by this judge, of which the program may set what else it wants.
pub(crate) fn server(clock: &Clock, judge: impl Judge + 'static, own: Arc<dyn ResolvesServerCert>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(ClockTime(clock.clone())))
        .with_protocol_versions(&[&TLS13])
        .expect(PROVIDER_IS_WHOLE)
        .with_client_cert_verifier(Arc::new(Verifier::by(judge)))
        .with_cert_resolver(own);
    // A resumed session skips the judgement of the certificate, so it would outlive a revocation.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// A client by this judge, of which the program may set what else it wants.
pub(crate) fn client(clock: &Clock, judge: impl Judge + 'static, own: Arc<dyn ResolvesClientCert>) -> ClientConfig {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(ClockTime(clock.clone())))
        .with_protocol_versions(&[&TLS13])
        .expect(PROVIDER_IS_WHOLE)
        .dangerous() // which means: with a verifier of our own
        .with_custom_certificate_verifier(Arc::new(Verifier::by(judge)))
        .with_client_cert_resolver(own);
    config.resumption = Resumption::disabled();
    config
}

/// TLS 1.3 alone, also when another crate switches older versions on in rustls; the hybrid key exchange first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
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

/// A clock as rustls asks for it.
#[derive(Debug)]
pub(crate) struct ClockTime(pub(crate) Clock);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().unix_timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// The error that makes rustls send the alert that fits (RFC 8446, section 6.2).
pub(crate) fn certificate_error(error: X509Error) -> CertificateError {
    use X509Error as E;
    match error {
        E::UnknownAuthority | E::OtherTrustDomain { .. } | E::NoBundle(_) => CertificateError::UnknownIssuer, // unknown_ca
        E::Expired(_) => CertificateError::Expired, // certificate_expired
        E::NotYetValid(_) => CertificateError::NotValidYet, // certificate_expired
        E::Revoked => CertificateError::Revoked,    // certificate_revoked
        E::StaleCrl(_) => CertificateError::ExpiredRevocationList, // unknown_ca
        E::Path(webpki::Error::UnknownRevocationStatus) => CertificateError::UnknownRevocationStatus, // unknown_ca
        E::AuthorityAsIdentity
        | E::NoBasicConstraints
        | E::NoKeyUsage
        | E::KeyUsageNotCritical
        | E::SigningKeyUsage
        | E::NoDigitalSignature
        | E::ExtendedKeyUsage => CertificateError::InvalidPurpose, // unsupported_certificate
        E::NoUri | E::SeveralUris | E::SpiffeId(_) | E::NoPath => CertificateError::NotValidForName, // bad_certificate
        E::Malformed
        | E::Version
        | E::TrailingData
        | E::DuplicateExtension(_)
        | E::MalformedExtension(_)
        | E::NoCertificate
        | E::TooManyCertificates => CertificateError::BadEncoding, // bad_certificate
        other => CertificateError::Other(OtherError(Arc::new(other))), // certificate_unknown
    }
}

fn only_tls13() -> Error {
    Error::General("SVIDs are exchanged in TLS 1.3 and no older version".to_owned())
}

impl<J: Judge> ServerCertVerifier for Verifier<J> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
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
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl<J: Judge> ClientCertVerifier for Verifier<J> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
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
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription as Alert;
    use time::OffsetDateTime;

    use super::*;
    use crate::id::TrustDomain;

    #[test]
    fn each_refusal_is_told_to_the_peer_by_the_alert_that_fits() {
        let domain = TrustDomain::parse("td").expect("legal");
        let epoch = OffsetDateTime::UNIX_EPOCH;
        let cases = [
            (X509Error::NoBundle(domain), Alert::UnknownCA),
            (X509Error::StaleCrl(epoch), Alert::UnknownCA),
            (X509Error::UnknownAuthority, Alert::UnknownCA),
            (X509Error::Expired(epoch), Alert::CertificateExpired),
            (X509Error::NotYetValid(epoch), Alert::CertificateExpired),
            (X509Error::Revoked, Alert::CertificateRevoked),
            (X509Error::Path(webpki::Error::UnknownRevocationStatus), Alert::UnknownCA),
            (X509Error::AuthorityAsIdentity, Alert::UnsupportedCertificate),
            (X509Error::ExtendedKeyUsage, Alert::UnsupportedCertificate),
            (X509Error::NoUri, Alert::BadCertificate),
            (X509Error::SeveralUris, Alert::BadCertificate),
            (X509Error::Malformed, Alert::BadCertificate),
            (X509Error::TooManyCertificates, Alert::BadCertificate),
            (X509Error::Path(webpki::Error::NameConstraintViolation), Alert::CertificateUnknown),
        ];
        for (error, alert) in cases {
            let told = error.to_string();
            assert_eq!(Alert::from(certificate_error(error)), alert, "{told}");
        }
    }
}
