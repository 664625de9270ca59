//! Trust: the authorities of one domain, and the one function that believes a certificate.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use time::OffsetDateTime;
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, ExtendedKeyUsageValidator, KeyPurposeIdIter,
    OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};

use super::certificate::{Certificate, Serial};
use super::chain::{Chain, read_concatenated};
use super::{X509Error, pem};
use crate::base::entropy::hex;
use crate::id::{SpiffeId, TrustDomain};

/// The most authorities a trust domain may have at once: a bound on what one peer can make us parse.
const MAX_AUTHORITIES: usize = 1024;

/// The CA certificates of one trust domain; those of two domains are never in one value (SPIFFE Federation, section
/// 4.2). May be empty: then nothing of that domain is believed.
#[derive(Clone)]
pub struct X509Authorities {
    domain: TrustDomain,
    set: Arc<[Certificate]>,
    // INVARIANT: `anchors[i]` was made from `set[i]`.
    anchors: Arc<[TrustAnchor<'static>]>,
}

impl X509Authorities {
    /// The authorities of `domain`; repeated certificates count once.
    ///
    /// Their own names are not judged: an authority may come from a public key infrastructure that knows no SPIFFE.
    ///
    /// # Errors
    /// A certificate that is not a CA, or that path validation cannot use.
    pub fn new(domain: TrustDomain, certificates: impl IntoIterator<Item = Certificate>) -> Result<Self, X509Error> {
        let mut set: Vec<Certificate> = Vec::new();
        let mut anchors = Vec::new();
        for certificate in certificates {
            if set.contains(&certificate) {
                continue;
            }
            if !certificate.is_ca() {
                return Err(X509Error::NotAnAuthority(domain));
            }
            let anchor = webpki::anchor_from_trusted_cert(certificate.der()).map_err(X509Error::UnusableAuthority)?;
            anchors.push(anchor.to_owned());
            set.push(certificate);
        }
        Ok(Self { domain, set: set.into(), anchors: anchors.into() })
    }

    /// Reads concatenated DER, as the Workload API carries bundles.
    pub fn from_der(domain: TrustDomain, bytes: &[u8]) -> Result<Self, X509Error> {
        Self::new(domain, read_concatenated(bytes, MAX_AUTHORITIES)?)
    }

    /// Reads every `CERTIFICATE` block of a text; there is at least one.
    pub fn from_pem(domain: TrustDomain, text: &[u8]) -> Result<Self, X509Error> {
        let certificates: Vec<_> =
            pem::certificates(text)?.iter().map(|der| Certificate::from_der(der)).collect::<Result<_, _>>()?;
        Self::new(domain, certificates)
    }

    /// The trust domain they speak for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The certificates, in the order given.
    pub fn certificates(&self) -> &[Certificate] {
        &self.set
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Concatenated DER, as the Workload API carries bundles.
    pub fn to_der(&self) -> Vec<u8> {
        self.set.iter().flat_map(|certificate| certificate.der().iter().copied()).collect()
    }

    /// PEM blocks.
    pub fn to_pem(&self) -> String {
        self.set.iter().map(Certificate::to_pem).collect()
    }

    /// The authority at the end of a path that was found with `self.anchors`.
    fn of_path(&self, path: &VerifiedPath<'_>) -> Option<&Certificate> {
        let index = self.anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()))?;
        self.set.get(index)
    }
}

impl PartialEq for X509Authorities {
    fn eq(&self, other: &Self) -> bool {
        self.domain == other.domain && self.set == other.set
    }
}

impl Eq for X509Authorities {}

impl fmt::Debug for X509Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Authorities").field("domain", &self.domain).field("set", &self.set).finish()
    }
}

/// A revocation list of one authority. Its signature is checked when it is used, with the key of the authority that
/// the path leads through. Clones share one list.
#[derive(Clone)]
pub struct Crl(Arc<ParsedCrl>);

struct ParsedCrl {
    list: CertRevocationList<'static>,
    der: Box<[u8]>,
}

impl Crl {
    /// Reads one complete list. Delta, indirect and reason-partitioned lists are refused.
    pub fn from_der(der: &[u8]) -> Result<Self, X509Error> {
        let list = OwnedCertRevocationList::from_der(der).map_err(X509Error::MalformedCrl)?;
        Ok(Self(Arc::new(ParsedCrl { list: list.into(), der: der.into() })))
    }

    /// Whether the certificate with this serial number, of this list's authority, is on the list.
    pub fn revokes(&self, serial: &Serial) -> bool {
        // The list keeps numbers as they are encoded: with a zero octet in front where the top bit is set.
        let number = serial.as_bytes();
        let zero: &[u8] = if number.first().is_some_and(|top| top & 0x80 != 0) { &[0] } else { &[] };
        self.0.list.find_serial(&[zero, number].concat()).is_ok_and(|found| found.is_some())
    }

    /// The encoded list.
    pub fn der(&self) -> &[u8] {
        &self.0.der
    }

    /// The list as a PEM block.
    pub fn to_pem(&self) -> String {
        pem::crl_to_pem(self.der())
    }
}

impl PartialEq for Crl {
    fn eq(&self, other: &Self) -> bool {
        self.der() == other.der()
    }
}

impl Eq for Crl {}

impl fmt::Debug for Crl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crl").field("issuer", &hex(self.0.list.issuer())).finish_non_exhaustive()
    }
}

/// An identity that was proven by [`verify`]; there is no other way to make one.
#[derive(Debug, Clone)]
#[must_use]
pub struct VerifiedSvid {
    id: SpiffeId,
    leaf: Certificate,
}

impl VerifiedSvid {
    /// Who the certificate identifies.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.id
    }

    /// The certificate itself.
    pub fn leaf(&self) -> &Certificate {
        &self.leaf
    }
}

/// Believes a chain, or says why not: X509-SVID section 5 with RFC 5280 section 6 at `now`.
///
/// `authorities` are those of the domain the peer says it is from; authorities of another domain refuse. With `crls`, a
/// certificate on any of them is refused, and so is one whose issuer's list has passed its nextUpdate: a verifier that
/// was given lists must not go on with stale ones. An issuer without a list is taken as not revoking.
///
/// Authorities are held to more than RFC 5280 demands of trust anchors: their validity, pathLenConstraint and keyUsage
/// count too, as in Go and OpenSSL. A name constraint on URIs, which X509-SVID section 4.2 makes optional, is not
/// evaluated: a path under one is refused.
///
/// # Errors
/// The first rule that does not hold.
pub fn verify(
    chain: &Chain,
    authorities: &X509Authorities,
    now: OffsetDateTime,
    crls: &[Crl],
) -> Result<VerifiedSvid, X509Error> {
    let leaf = chain.leaf();
    let id = leaf.svid_id()?;
    if !id.is_member_of(&authorities.domain) {
        return Err(X509Error::OtherTrustDomain { id, domain: authorities.domain.clone() });
    }
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now.unix_timestamp().try_into().unwrap_or(0)));
    let end_entity = EndEntityCert::try_from(leaf.der()).map_err(path_error)?;
    let intermediates: Vec<CertificateDer<'_>> =
        chain.intermediates().iter().map(|certificate| CertificateDer::from(certificate.der().as_ref())).collect();
    let crls: Vec<&CertRevocationList<'_>> = crls.iter().map(|crl| &crl.0.list).collect();
    let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
        options
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build()
    });
    end_entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &authorities.anchors,
            &intermediates,
            time,
            BothPurposes,
            revocation,
            Some(&|path| check_authorities_on(path, authorities, time)),
        )
        .map_err(path_error)?;
    Ok(VerifiedSvid { id, leaf: leaf.clone() })
}

/// What the path library leaves open about the signing certificates of a path it found: it never looks at their key
/// usage, and takes from trust anchors only name and key.
fn check_authorities_on(
    path: &VerifiedPath<'_>,
    authorities: &X509Authorities,
    time: UnixTime,
) -> Result<(), webpki::Error> {
    let anchor = authorities.of_path(path).ok_or(webpki::Error::UnknownIssuer)?;
    let mut below = 0;
    for intermediate in path.intermediate_certificates() {
        let certificate = Certificate::from_der(&intermediate.der()).map_err(|_| webpki::Error::BadDer)?;
        check_may_sign_certificates(&certificate)?;
        // Self-issued certificates (key rollover) do not count (RFC 5280, section 4.2.1.9).
        below += u32::from(!certificate.is_self_issued());
    }
    check_may_sign_certificates(anchor)?;
    if anchor.path_len().is_some_and(|limit| below > limit) {
        return Err(webpki::Error::PathLenConstraintViolated);
    }
    let unix = |at: OffsetDateTime| {
        UnixTime::since_unix_epoch(Duration::from_secs(at.unix_timestamp().try_into().unwrap_or(0)))
    };
    let (not_before, not_after) = (unix(anchor.not_before()), unix(anchor.not_after()));
    if time < not_before {
        return Err(webpki::Error::CertNotValidYet { time, not_before });
    }
    if time > not_after {
        return Err(webpki::Error::CertExpired { time, not_after });
    }
    Ok(())
}

/// RFC 5280, section 6.1.4 (n).
fn check_may_sign_certificates(authority: &Certificate) -> Result<(), webpki::Error> {
    match authority.key_usage() {
        Some(usage) if !usage.key_cert_sign() => Err(webpki::Error::EndEntityUsedAsCa),
        _ => Ok(()),
    }
}

fn path_error(error: webpki::Error) -> X509Error {
    let at = |time: UnixTime| {
        i64::try_from(time.as_secs())
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    };
    match error {
        webpki::Error::CertExpired { not_after, .. } => X509Error::Expired(at(not_after)),
        webpki::Error::CertNotValidYet { not_before, .. } => X509Error::NotYetValid(at(not_before)),
        webpki::Error::CertRevoked => X509Error::Revoked,
        webpki::Error::CrlExpired { next_update, .. } => X509Error::StaleCrl(at(next_update)),
        // An authority of the right name whose key made no such signature is not the one that signed either.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => X509Error::UnknownAuthority,
        other => X509Error::Path(other),
    }
}

/// A workload is both client and server (X509-SVID, section 4.4), so wherever extended key usage is present, on the
/// leaf or above it, it must allow both.
struct BothPurposes;

impl ExtendedKeyUsageValidator for BothPurposes {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let (mut present, mut server, mut client) = (false, false, false);
        for purpose in purposes {
            let purpose = purpose?.to_decoded_oid();
            present = true;
            let any = purpose == ANY_EXTENDED_KEY_USAGE;
            server |= any || purpose == webpki::KeyUsage::SERVER_AUTH_REPR;
            client |= any || purpose == webpki::KeyUsage::CLIENT_AUTH_REPR;
        }
        if !present || (server && client) {
            return Ok(());
        }
        let missing = if server { webpki::KeyUsage::client_auth() } else { webpki::KeyUsage::server_auth() };
        Err(webpki::Error::RequiredEkuNotFoundContext(webpki::RequiredEkuNotFoundContext {
            required: missing,
            present: Vec::new(),
        }))
    }
}

const ANY_EXTENDED_KEY_USAGE: &[usize] = &[2, 5, 29, 37, 0];
