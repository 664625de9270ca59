//! Judges the peer's certificate, on both sides by the same straight path.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use thiserror::Error;
use time::OffsetDateTime;

use super::{Authorize, X509Source};
use crate::id::SpiffeId;
use crate::x509::{Chain, VerifiedSvid, X509Error};

/// Why a peer was refused.
#[derive(Debug, Error)]
pub enum PeerError {
    /// What it presented is no X509-SVID, or no authority of its trust domain that we know signed it, or it no longer
    /// stands.
    #[error("the peer's certificate is not believed")]
    Certificate(#[from] X509Error),
    /// It is who it says, but not one of those this program talks to.
    #[error("`{0}` is not authorised")]
    NotAuthorised(SpiffeId),
}

/// The certificate verifier of both sides.
///
/// The peer's certificate is judged as an X509-SVID by the bundle of its own trust domain, against the revocation
/// lists, all as they are at that moment; then [`Authorize`] decides. Names in DNS play no part: the server name of a
/// connection is not looked at.
///
/// Why a peer was refused is logged with everything that is known ([`PeerError`], at the level info). The error that
/// rustls returns says less: it is what decides the alert, and an unauthorised peer is an
/// `ApplicationVerificationFailure` there.
#[derive(Clone, Debug)]
pub struct PeerVerifier {
    source: X509Source,
    authorize: Authorize,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    /// Believes by what `source` has, and talks to `authorize`.
    pub fn new(source: &X509Source, authorize: Authorize) -> Self {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        Self { source: source.clone(), authorize, algorithms }
    }

    /// Who presented these certificates, leaf first, if it is somebody this program talks to.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn judge(&self, certificates: &[CertificateDer<'_>], now: OffsetDateTime) -> Result<VerifiedSvid, PeerError> {
        let chain = Chain::from_certificates(certificates)?;
        let peer = self.source.state().bundles().verify_peer(&chain, now)?;
        if !self.authorize.allows(peer.spiffe_id()) {
            return Err(PeerError::NotAuthorised(peer.spiffe_id().clone()));
        }
        Ok(peer)
    }

    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let certificates: Vec<CertificateDer<'_>> =
            std::iter::once(end_entity).chain(intermediates).map(|der| CertificateDer::from(der.as_ref())).collect();
        match self.judge(&certificates, date(now)) {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::info!(error = &error as &dyn std::error::Error, "a peer was refused");
                Err(rustls::Error::InvalidCertificate(certificate_error(error)))
            }
        }
    }
}

fn date(time: UnixTime) -> OffsetDateTime {
    let seconds = i64::try_from(time.as_secs()).ok();
    // A time beyond the calendar: nothing is valid then.
    seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The error that makes rustls send the alert that fits (RFC 8446, section 6.2).
fn certificate_error(error: PeerError) -> CertificateError {
    use X509Error as E;
    let error = match error {
        PeerError::NotAuthorised(_) => return CertificateError::ApplicationVerificationFailure, // access_denied
        PeerError::Certificate(error) => error,
    };
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

fn only_tls13() -> rustls::Error {
    rustls::Error::General("SVIDs are exchanged in TLS 1.3 and no older version".to_owned())
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
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
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription as Alert;

    use super::*;

    #[test]
    fn each_refusal_is_told_to_the_peer_by_the_alert_that_fits() {
        let id = || SpiffeId::parse("spiffe://td/a").expect("legal");
        let epoch = OffsetDateTime::UNIX_EPOCH;
        let certificate = PeerError::Certificate;
        let cases = [
            (PeerError::NotAuthorised(id()), Alert::AccessDenied),
            (certificate(X509Error::NoBundle(id().trust_domain())), Alert::UnknownCA),
            (certificate(X509Error::StaleCrl(epoch)), Alert::UnknownCA),
            (certificate(X509Error::UnknownAuthority), Alert::UnknownCA),
            (certificate(X509Error::Expired(epoch)), Alert::CertificateExpired),
            (certificate(X509Error::NotYetValid(epoch)), Alert::CertificateExpired),
            (certificate(X509Error::Revoked), Alert::CertificateRevoked),
            (certificate(X509Error::Path(webpki::Error::UnknownRevocationStatus)), Alert::UnknownCA),
            (certificate(X509Error::AuthorityAsIdentity), Alert::UnsupportedCertificate),
            (certificate(X509Error::ExtendedKeyUsage), Alert::UnsupportedCertificate),
            (certificate(X509Error::NoUri), Alert::BadCertificate),
            (certificate(X509Error::SeveralUris), Alert::BadCertificate),
            (certificate(X509Error::Malformed), Alert::BadCertificate),
            (certificate(X509Error::TooManyCertificates), Alert::BadCertificate),
            (certificate(X509Error::Path(webpki::Error::NameConstraintViolation)), Alert::CertificateUnknown),
        ];
        for (error, alert) in cases {
            let told = error.to_string();
            assert_eq!(Alert::from(certificate_error(error)), alert, "{told}");
        }
    }
}
