//! X.509 documents: certificates, chains, authorities and revocation lists (X509-SVID, RFC 5280).
//!
//! Promises: what is parsed is strict (a malformed or repeated extension is refused, never skipped); [`verify`] applies
//! RFC 5280 path validation and every rule of X509-SVID section 5, against the authorities of one trust domain; what
//! is issued passes the same rules.
//!
//! Does not: read files or clocks, decide who may have a certificate, or ask anyone about revocation: the caller
//! brings the time and the revocation lists.

mod authorities;
mod certificate;
mod chain;
pub(crate) mod der;
#[cfg(feature = "agent")]
mod encode;
mod handed;
mod key;
mod pem;
#[cfg(feature = "agent")]
pub mod pkcs12;
#[cfg(feature = "agent")]
mod profile;
pub mod tls;
#[cfg(test)]
#[cfg(feature = "agent")]
mod tests;

use thiserror::Error;
use time::OffsetDateTime;

pub use authorities::{Crl, VerifiedSvid, X509Authorities, verify};
pub use certificate::{Certificate, ExtendedKeyUsage, KeyUsage, Serial};
pub use chain::{Chain, MAX_CHAIN};
pub use handed::{VerifiedCrl, verify_crl};
pub use key::{KeyError, KeyType, PrivateKey};
pub use pem::{crl_to_pem, pkcs8_to_pem};
#[cfg(feature = "agent")]
pub use profile::{Issuer, LeafParams, ProfileError, RevocationReason, Revoked, Validity, self_signed_root};

use crate::id::{IdError, TrustDomain};

/// Why a certificate, chain or revocation list is refused.
#[derive(Debug, Error)]
pub enum X509Error {
    /// The bytes are not one X.509 certificate.
    #[error("not a DER-encoded X.509 certificate")]
    Malformed,
    /// The certificate is not version 3, so it has no extensions.
    #[error("not a version 3 certificate")]
    Version,
    /// Something follows the certificate.
    #[error("there are bytes after the certificate")]
    TrailingData,
    /// The same extension occurs twice (RFC 5280, section 4.2).
    #[error("extension {0} occurs more than once")]
    DuplicateExtension(String),
    /// An extension that identity or trust depends on cannot be read.
    #[error("extension {0} is malformed")]
    MalformedExtension(String),
    /// A chain or set of certificates is empty.
    #[error("there is no certificate")]
    NoCertificate,
    /// More certificates than any real chain has.
    #[error("more than {MAX_CHAIN} certificates in a chain")]
    TooManyCertificates,
    /// The text is not PEM.
    #[error("not PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// No URI among the subject alternative names.
    #[error("the certificate has no URI name, so no SPIFFE ID")]
    NoUri,
    /// More than one URI among the subject alternative names (X509-SVID, section 2).
    #[error("the certificate has more than one URI name")]
    SeveralUris,
    /// The URI name is not a SPIFFE ID.
    #[error("the URI name is not a SPIFFE ID")]
    SpiffeId(#[source] IdError),
    /// The ID of a leaf has no path (X509-SVID, section 5.2).
    #[error("the SPIFFE ID of a workload has a path, this one has none")]
    NoPath,
    /// A leaf without the extension: most verifiers refuse it, and so do we.
    #[error("the certificate has no basicConstraints extension")]
    NoBasicConstraints,
    /// A signing certificate was presented as a peer's identity (X509-SVID, section 3.2).
    #[error("a signing certificate cannot identify a workload")]
    AuthorityAsIdentity,
    /// A leaf without key usage (X509-SVID, section 4.3).
    #[error("the certificate has no keyUsage extension")]
    NoKeyUsage,
    /// A leaf whose key usage is not critical (X509-SVID, section 4.3).
    #[error("the keyUsage extension is not critical")]
    KeyUsageNotCritical,
    /// A leaf that may sign certificates or revocation lists (X509-SVID, section 5.2).
    #[error("a workload's certificate may not have keyCertSign or cRLSign")]
    SigningKeyUsage,
    /// A leaf that may not sign handshakes (X509-SVID, section 4.3).
    #[error("a workload's certificate needs digitalSignature")]
    NoDigitalSignature,
    /// Extended key usage is there but lacks one of the two purposes (X509-SVID, section 4.4).
    #[error("extended key usage needs both serverAuth and clientAuth")]
    ExtendedKeyUsage,
    /// The leaf belongs to another trust domain than the authorities it is checked against.
    #[error("`{id}` is not in trust domain `{domain}`")]
    OtherTrustDomain {
        /// The ID in the certificate.
        id: crate::id::SpiffeId,
        /// The domain whose authorities were given.
        domain: TrustDomain,
    },
    /// Nobody's authorities are known in the leaf's trust domain.
    #[error("there is no bundle of `{0}`: an identity of that trust domain is not believed")]
    NoBundle(TrustDomain),
    /// A certificate offered as an authority is not one.
    #[error("a certificate that is not a CA cannot be an authority of `{0}`")]
    NotAnAuthority(TrustDomain),
    /// An authority's public key or names cannot be used for path validation.
    #[error("the certificate cannot serve as an authority")]
    UnusableAuthority(#[source] webpki::Error),
    /// No authority of the trust domain signed this, directly or through the given intermediates.
    #[error("no authority of the trust domain signed this certificate")]
    UnknownAuthority,
    /// A certificate on the path is past its end.
    #[error("a certificate on the path expired at {0}")]
    Expired(OffsetDateTime),
    /// A certificate on the path is not valid yet.
    #[error("a certificate on the path is valid only from {0}")]
    NotYetValid(OffsetDateTime),
    /// A certificate on the path is on its issuer's revocation list.
    #[error("a certificate on the path is revoked")]
    Revoked,
    /// The revocation list of an authority on the path should have been replaced by then: whether the certificate was
    /// revoked since is not known.
    #[error("the revocation list of the issuer was to be replaced by {0} and was not")]
    StaleCrl(OffsetDateTime),
    /// Path validation failed otherwise (RFC 5280, section 6).
    #[error("the certificate path is not valid")]
    Path(#[source] webpki::Error),
    /// The bytes are not a revocation list that can be used.
    #[error("not a usable certificate revocation list")]
    MalformedCrl(#[source] webpki::Error),
    /// A revocation list did not come from the authority it came with, or that one may not sign lists.
    #[error("the revocation list is not signed by the authority it came with, or that one may not sign any")]
    CrlSigner,
    /// Without a number or an end nobody can tell which of two lists is newer (RFC 5280, sections 5.1.2.5 and 5.2.3).
    #[error("the revocation list has no number, or no end")]
    CrlWithoutNumber,
}

/// Entry point for fuzzing: reads arbitrary bytes as a chain and applies every rule on its leaf.
#[doc(hidden)]
pub fn fuzz_chain(bytes: &[u8]) {
    if let Ok(chain) = Chain::from_der(bytes) {
        assert_eq!(chain.to_der(), bytes, "what was read is what was sent");
        let _ = chain.leaf().svid_id();
    }
    let _ = Chain::from_pem(bytes);
    let _ = Crl::from_der(bytes);
}
