//! Revocation lists that another node hands over: whether they are to be believed, and which of two is newer.

use std::cmp::Ordering;

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use webpki::EndEntityCert;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

use super::{Certificate, Chain, Crl, X509Authorities, X509Error};

/// A list whose authority leads to those of a trust domain; made by [`verify_crl`] alone.
#[derive(Clone, Debug)]
#[must_use]
pub struct VerifiedCrl {
    crl: Crl,
    issuer: Vec<u8>,
    /// Without leading zero octets.
    number: Vec<u8>,
    this_update: OffsetDateTime,
    next_update: OffsetDateTime,
}

impl VerifiedCrl {
    /// The list.
    pub fn crl(&self) -> &Crl {
        &self.crl
    }

    /// The name of the authority, encoded.
    pub fn issuer(&self) -> &[u8] {
        &self.issuer
    }

    /// Nobody should go by it after that.
    pub fn next_update(&self) -> OffsetDateTime {
        self.next_update
    }

    /// Whether it comes after another list of the same authority: by its number, and by its time too (RFC 5280,
    /// section 5.2.3).
    pub fn is_newer_than(&self, other: &Self) -> bool {
        let by_number = (self.number.len(), &self.number).cmp(&(other.number.len(), &other.number));
        by_number == Ordering::Greater && self.this_update >= other.this_update
    }
}

/// Believes a revocation list, or says why not: complete, with a number, not past its end, signed by the first
/// certificate of `issuers`, which may sign lists and leads through the others to one of `authorities` at `now`.
///
/// # Errors
/// The first rule that does not hold.
pub fn verify_crl(
    der: &[u8],
    issuers: &Chain,
    authorities: &X509Authorities,
    now: OffsetDateTime,
) -> Result<VerifiedCrl, X509Error> {
    let crl = Crl::from_der(der)?;
    check_leads_to(issuers, authorities, now)?;
    let issuer = issuers.leaf();
    if issuer.key_usage().is_some_and(|usage| !usage.crl_sign()) {
        return Err(X509Error::CrlSigner);
    }
    let (_, list) = CertificateRevocationList::from_der(der).map_err(|_| X509Error::Malformed)?;
    let (message, signature) = (list.tbs_cert_list.as_ref(), list.signature_value.as_ref());
    if list.issuer().as_raw() != issuer.subject() || !is_signature_of(issuer.der(), message, signature) {
        return Err(X509Error::CrlSigner);
    }
    let number = list.crl_number().ok_or(X509Error::CrlWithoutNumber)?.to_bytes_be();
    let next_update = list.next_update().ok_or(X509Error::CrlWithoutNumber)?.to_datetime();
    if next_update <= now {
        return Err(X509Error::StaleCrl(next_update));
    }
    let this_update = list.last_update().to_datetime();
    Ok(VerifiedCrl { crl, issuer: issuer.subject().to_vec(), number, this_update, next_update })
}

/// Whether every certificate is a CA's and signed by the next, up to an authority.
fn check_leads_to(issuers: &Chain, authorities: &X509Authorities, now: OffsetDateTime) -> Result<(), X509Error> {
    let above = issuers.certificates().iter().skip(1).map(Some).chain([None]);
    for ((below, certificate), next) in (0..).zip(issuers.certificates()).zip(above) {
        check_authority(certificate, below, now)?;
        if authorities.certificates().contains(certificate) {
            return Ok(());
        }
        if let Some(authority) = authorities.certificates().iter().find(|authority| has_signed(authority, certificate))
        {
            return check_authority(authority, below + 1, now);
        }
        if !next.is_some_and(|next| has_signed(next, certificate)) {
            return Err(X509Error::UnknownAuthority);
        }
    }
    Err(X509Error::UnknownAuthority)
}

/// Whether a CA may have signed now, with so many CAs below it.
fn check_authority(certificate: &Certificate, below: u32, now: OffsetDateTime) -> Result<(), X509Error> {
    if now < certificate.not_before() {
        return Err(X509Error::NotYetValid(certificate.not_before()));
    }
    if now > certificate.not_after() {
        return Err(X509Error::Expired(certificate.not_after()));
    }
    let may_sign = certificate.key_usage().is_none_or(|usage| usage.key_cert_sign());
    if !certificate.is_ca() || !may_sign || certificate.path_len().is_some_and(|limit| below > limit) {
        return Err(X509Error::CrlSigner);
    }
    Ok(())
}

fn has_signed(authority: &Certificate, certificate: &Certificate) -> bool {
    certificate.issuer() == authority.subject() && certificate.is_signed_with_key_of(authority)
}

/// Whether the key of a certificate made a signature.
pub(super) fn is_signature_of(certificate: &CertificateDer<'_>, message: &[u8], signature: &[u8]) -> bool {
    let Ok(key) = EndEntityCert::try_from(certificate) else { return false };
    webpki::ALL_VERIFICATION_ALGS.iter().any(|&how| key.verify_signature(how, message, signature).is_ok())
}
