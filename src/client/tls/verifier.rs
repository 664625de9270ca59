//! Judges the peer's certificate, on both sides by the same straight path.

use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, UnixTime};
use thiserror::Error;
use time::OffsetDateTime;

use super::{Authorize, X509Source};
use crate::id::SpiffeId;
use crate::x509::tls::{Judge, Verifier, certificate_error};
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
pub type PeerVerifier = Verifier<Believing>;

/// What a [`PeerVerifier`] decides by.
#[derive(Clone, Debug)]
pub struct Believing {
    source: X509Source,
    authorize: Authorize,
}

impl PeerVerifier {
    /// Believes by what `source` has, and talks to `authorize`.
    pub fn new(source: &X509Source, authorize: Authorize) -> Self {
        Self::by(Believing::new(source, authorize))
    }

    /// Who presented these certificates, leaf first, if it is somebody this program talks to.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn judge(&self, certificates: &[CertificateDer<'_>], now: OffsetDateTime) -> Result<VerifiedSvid, PeerError> {
        self.judge.believe(&Chain::from_certificates(certificates)?, now)
    }
}

impl Believing {
    pub(super) fn new(source: &X509Source, authorize: Authorize) -> Self {
        Self { source: source.clone(), authorize }
    }

    fn believe(&self, chain: &Chain, now: OffsetDateTime) -> Result<VerifiedSvid, PeerError> {
        let peer = self.source.state().bundles().verify_peer(chain, now)?;
        if !self.authorize.allows(peer.spiffe_id()) {
            return Err(PeerError::NotAuthorised(peer.spiffe_id().clone()));
        }
        Ok(peer)
    }
}

impl Judge for Believing {
    fn admit(&self, certificates: &[CertificateDer<'_>], now: UnixTime) -> Result<(), CertificateError> {
        let believed = Chain::from_certificates(certificates).map_err(PeerError::Certificate);
        let Err(error) = believed.and_then(|chain| self.believe(&chain, date(now))) else { return Ok(()) };
        tracing::info!(error = &error as &dyn std::error::Error, "a peer was refused");
        Err(match error {
            PeerError::NotAuthorised(_) => CertificateError::ApplicationVerificationFailure, // access_denied
            PeerError::Certificate(error) => certificate_error(error),
        })
    }
}

fn date(time: UnixTime) -> OffsetDateTime {
    let seconds = i64::try_from(time.as_secs()).ok();
    // A time beyond the calendar: nothing is valid then.
    seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
