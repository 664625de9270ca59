//! What tether signs: roots, signing authorities, leaves and revocation lists, one function each.
//!
//! The documents are written directly rather than through a certificate library for one reason: the issuer's name must
//! be copied octet for octet (RFC 5280, section 4.1.2.4), and libraries that take names apart lose some of them when
//! they put them together again: `DC=example,DC=org`, which every directory-born CA has, comes out as `DC=org`.
//! Everything written here is read back in tests by two independent parsers and by `openssl verify -x509_strict`.
//!
//! Choices, with why:
//! * Leaves have the subject `O=tether`. An empty subject with a critical SAN is as legal (X509-SVID, section 3.1), but
//!   what prints, logs or maps subjects (databases, proxies, older Java stacks) does better with a short one. It carries
//!   no identity: there is one place for that, the SAN, which RFC 5280 (section 4.2.1.6) then wants not critical.
//! * Every authority has its own subject (its serial number is part of the name), so a path or a revocation list found
//!   by name is never that of another key.
//! * keyUsage is always critical, basicConstraints is explicit on leaves too, extended key usage is on leaves only: in
//!   an authority it would constrain some verifiers and not others (X509-SVID, section 4.4).

use aws_lc_rs::digest;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use thiserror::Error;
use time::OffsetDateTime;

use super::X509Error;
use super::certificate::{Certificate, Serial};
use super::der::Spki;
use super::encode::{self as der, oid, tag};
use super::key::{KeyError, PrivateKey, SignatureAlgorithm};
use crate::id::{SpiffeId, TrustDomain};

/// Why something is not signed.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// The certificate of an issuer is not a CA's, or may not sign certificates.
    #[error("the issuer's certificate may not sign certificates")]
    NotAnAuthority,
    /// The key does not belong to the issuer's certificate.
    #[error("the private key does not belong to the issuer's certificate")]
    OtherKey,
    /// The issuer's certificate names another trust domain.
    #[error("the issuer's certificate belongs to `{0}`, not to this trust domain")]
    OtherTrustDomain(SpiffeId),
    /// The issuer's subject is empty: nothing can be chained to it (RFC 5280, section 4.1.2.4).
    #[error("the issuer's certificate has an empty subject")]
    EmptySubject,
    /// The issuer's pathLenConstraint forbids an authority below it.
    #[error("the issuer's certificate allows no authority below it: use it to sign directly")]
    PathLength,
    /// The issuer's key usage lacks cRLSign.
    #[error("the issuer's certificate may not sign revocation lists")]
    MayNotSignCrls,
    /// The ID is of another trust domain than the issuer, or has no path.
    #[error("`{0}` is no workload's ID in the issuer's trust domain")]
    Identity(SpiffeId),
    /// A DNS name is not one.
    #[error("`{0}` is not a DNS name")]
    DnsName(String),
    /// The bytes are no SubjectPublicKeyInfo.
    #[error("not a public key")]
    PublicKey,
    /// The lifetime is empty, or outlives the issuer's certificate.
    #[error("valid from {not_before} to {not_after} does not lie within the issuer's validity")]
    Validity {
        /// The first second asked for.
        not_before: OffsetDateTime,
        /// The last second asked for.
        not_after: OffsetDateTime,
    },
    /// The issuer's certificate, or one just written, cannot be read.
    #[error("the certificate cannot be read")]
    Certificate(#[source] X509Error),
    /// The key cannot sign.
    #[error("signing failed")]
    Key(#[source] KeyError),
}

/// From when to when something is valid, both ends included, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: OffsetDateTime,
    /// The last second.
    pub not_after: OffsetDateTime,
}

impl Validity {
    fn check(self) -> Result<Self, ProfileError> {
        let Self { not_before, not_after } = self;
        if not_before < not_after { Ok(self) } else { Err(ProfileError::Validity { not_before, not_after }) }
    }

    fn der(self) -> Vec<u8> {
        der::sequence(&[&der::time(self.not_before), &der::time(self.not_after)])
    }
}

/// What goes into a workload's certificate.
#[derive(Debug, Clone, Copy)]
pub struct LeafParams<'a> {
    /// Whom it identifies; an ID with a path in the issuer's trust domain.
    pub spiffe_id: &'a SpiffeId,
    /// The workload's public key as SubjectPublicKeyInfo.
    pub public_key: &'a [u8],
    /// Further names, for peers that look for DNS names.
    pub dns_names: &'a [String],
    /// From when to when; not beyond the issuer's own end.
    pub validity: Validity,
    /// Never used before with this issuer.
    pub serial: &'a Serial,
}

/// Why a certificate was revoked (RFC 5280, section 5.3.1), as far as tether has reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevocationReason {
    /// The key is known to have leaked.
    KeyCompromise,
    /// A newer certificate took its place.
    Superseded,
    /// What it identified has ended.
    CessationOfOperation,
    /// It is no longer entitled to it.
    PrivilegeWithdrawn,
}

impl RevocationReason {
    fn code(self) -> u8 {
        match self {
            Self::KeyCompromise => 1,
            Self::Superseded => 4,
            Self::CessationOfOperation => 5,
            Self::PrivilegeWithdrawn => 9,
        }
    }
}

/// One line of a revocation list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Which certificate.
    pub serial: Serial,
    /// Since when.
    pub at: OffsetDateTime,
    /// Why.
    pub reason: RevocationReason,
}

/// A signing certificate together with its key: what certificates and revocation lists are signed with.
///
/// It may be one of ours or come from files; either way its own limits (validity, pathLenConstraint, key usage, trust
/// domain) hold for everything it signs.
#[derive(Debug)]
pub struct Issuer {
    certificate: Certificate,
    key: PrivateKey,
    domain: TrustDomain,
    authority_key_id: Option<Vec<u8>>,
}

impl Issuer {
    /// Joins a certificate and its key into an issuer for `domain`.
    ///
    /// # Errors
    /// The certificate may not sign certificates, is of another trust domain, or does not belong to the key.
    pub fn new(domain: TrustDomain, certificate: Certificate, key: PrivateKey) -> Result<Self, ProfileError> {
        if !certificate.is_ca() || certificate.key_usage().is_some_and(|usage| !usage.key_cert_sign()) {
            return Err(ProfileError::NotAnAuthority);
        }
        if certificate.public_key() != key.public_key() {
            return Err(ProfileError::OtherKey);
        }
        if certificate.subject() == EMPTY_NAME {
            return Err(ProfileError::EmptySubject);
        }
        // A CA from files need not have a SPIFFE ID, but one that has must have ours.
        if let Ok(id) = certificate.spiffe_id()
            && !id.is_member_of(&domain)
        {
            return Err(ProfileError::OtherTrustDomain(id));
        }
        let authority_key_id = certificate.subject_key_id().map(|id| {
            let id = der::sequence(&[&der::element(tag::context(0), id)]);
            extension(oid::AUTHORITY_KEY_ID, false, &id)
        });
        Ok(Self { certificate, key, domain, authority_key_id })
    }

    /// The signing certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Its private key: what a root's owner stores.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Its private key, to keep it and give up signing.
    pub fn into_key(self) -> PrivateKey {
        self.key
    }

    /// The trust domain it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Whether it may have authorities below it. If not, it signs leaves itself.
    pub fn may_sign_authorities(&self) -> bool {
        self.certificate.path_len() != Some(0)
    }

    /// Whether it may sign revocation lists.
    pub fn may_sign_crls(&self) -> bool {
        self.certificate.key_usage().is_none_or(|usage| usage.crl_sign())
    }

    /// Signs an authority below this one, which may have none below itself.
    ///
    /// # Errors
    /// This issuer allows no authority below it, or ends earlier.
    pub fn sign_ca(&self, public_key: &[u8], validity: Validity, serial: &Serial) -> Result<Certificate, ProfileError> {
        if !self.may_sign_authorities() {
            return Err(ProfileError::PathLength);
        }
        self.check_validity(validity)?;
        let profile = CaProfile { name: "tether signing authority", path_len: Some(0), domain: &self.domain };
        let extensions = profile.extensions(public_key, self.authority_key_id.as_deref())?;
        let subject = profile.subject(serial);
        let tbs =
            to_be_signed(&self.key, serial, self.certificate.subject(), validity, &subject, public_key, &extensions);
        Certificate::from_der(&signed(&self.key, &tbs)?).map_err(ProfileError::Certificate)
    }

    /// Signs a workload's certificate.
    ///
    /// # Errors
    /// The ID is not a workload's in this trust domain, a DNS name or the key is not one, or the validity exceeds the
    /// issuer's.
    pub fn sign_leaf(&self, leaf: &LeafParams<'_>) -> Result<CertificateDer<'static>, ProfileError> {
        if leaf.spiffe_id.path().is_empty() || !leaf.spiffe_id.is_member_of(&self.domain) {
            return Err(ProfileError::Identity(leaf.spiffe_id.clone()));
        }
        if let Some(bad) = leaf.dns_names.iter().find(|name| !is_dns_name(name)) {
            return Err(ProfileError::DnsName(bad.clone()));
        }
        self.check_validity(leaf.validity)?;
        let extensions = leaf_extensions(leaf, self.authority_key_id.as_deref())?;
        let subject = name(&[(oid::ORGANIZATION, tag::UTF8_STRING, "tether")]);
        let issuer = self.certificate.subject();
        let tbs = to_be_signed(&self.key, leaf.serial, issuer, leaf.validity, &subject, leaf.public_key, &extensions);
        Ok(signed(&self.key, &tbs)?.into())
    }

    /// Signs a revocation list. `number` grows with every list of this issuer (RFC 5280, section 5.2.3).
    ///
    /// # Errors
    /// This issuer may not sign lists, or the list would end before it begins.
    pub fn sign_crl(
        &self,
        revoked: &[Revoked],
        validity: Validity,
        number: u64,
    ) -> Result<CertificateRevocationListDer<'static>, ProfileError> {
        if !self.may_sign_crls() {
            return Err(ProfileError::MayNotSignCrls);
        }
        let Validity { not_before: this_update, not_after: next_update } = validity.check()?;
        let lines: Vec<u8> = revoked.iter().flat_map(revoked_line).collect();
        // The list of no certificates is absent, not empty (RFC 5280, section 5.1.2.6).
        let lines = if lines.is_empty() { lines } else { der::element(tag::SEQUENCE, &lines) };
        let number = extension(oid::CRL_NUMBER, false, &der::integer(&number.to_be_bytes()));
        let extensions = der::sequence(&[self.authority_key_id.as_deref().unwrap_or_default(), &number]);
        let tbs = der::sequence(&[
            &der::integer(&[1]), // version 2
            &algorithm_identifier(self.key.algorithm()),
            self.certificate.subject(),
            &der::time(this_update),
            &der::time(next_update),
            &lines,
            &der::element(tag::context_constructed(0), &extensions),
        ]);
        Ok(signed(&self.key, &tbs)?.into())
    }

    fn check_validity(&self, validity: Validity) -> Result<(), ProfileError> {
        let Validity { not_before, not_after } = validity.check()?;
        if not_after > self.certificate.not_after() {
            return Err(ProfileError::Validity { not_before, not_after });
        }
        Ok(())
    }
}

/// Makes the root of a trust domain: an authority that signed itself.
pub fn self_signed_root(
    domain: TrustDomain,
    key: PrivateKey,
    validity: Validity,
    serial: &Serial,
) -> Result<Issuer, ProfileError> {
    let profile = CaProfile { name: "tether root", path_len: None, domain: &domain };
    let extensions = profile.extensions(key.public_key(), None)?;
    let subject = profile.subject(serial);
    let tbs = to_be_signed(&key, serial, &subject, validity.check()?, &subject, key.public_key(), &extensions);
    let certificate = Certificate::from_der(&signed(&key, &tbs)?).map_err(ProfileError::Certificate)?;
    Issuer::new(domain, certificate, key)
}

/// What authorities have in common (X509-SVID, sections 3.2 and 4).
struct CaProfile<'a> {
    name: &'static str,
    path_len: Option<u8>,
    domain: &'a TrustDomain,
}

impl CaProfile<'_> {
    fn subject(&self, serial: &Serial) -> Vec<u8> {
        name(&[
            (oid::ORGANIZATION, tag::UTF8_STRING, "tether"),
            (oid::COMMON_NAME, tag::UTF8_STRING, self.name),
            (oid::SERIAL_NUMBER, tag::PRINTABLE_STRING, &serial.to_string()),
        ])
    }

    fn extensions(&self, public_key: &[u8], authority_key_id: Option<&[u8]>) -> Result<Vec<u8>, ProfileError> {
        let path_len = self.path_len.map(|limit| der::integer(&[limit])).unwrap_or_default();
        let constraints = der::sequence(&[&der::element(tag::BOOLEAN, &[0xff]), &path_len]);
        let id = self.domain.id();
        Ok(der::sequence(&[
            &extension(oid::BASIC_CONSTRAINTS, true, &constraints),
            &key_usage(KEY_CERT_SIGN | CRL_SIGN),
            &extension(oid::SUBJECT_ALT_NAME, false, &der::sequence(&[&uri(&id)])),
            &subject_key_id(public_key)?,
            authority_key_id.unwrap_or_default(),
        ]))
    }
}

fn leaf_extensions(leaf: &LeafParams<'_>, authority_key_id: Option<&[u8]>) -> Result<Vec<u8>, ProfileError> {
    let is_rsa = Spki::parse(leaf.public_key).ok_or(ProfileError::PublicKey)?.algorithm == oid::RSA_ENCRYPTION;
    // TLS 1.2 can use an RSA certificate's key to encrypt the session key; no other kind of key does that.
    let usage = if is_rsa { DIGITAL_SIGNATURE | KEY_ENCIPHERMENT } else { DIGITAL_SIGNATURE };
    let purposes =
        der::sequence(&[&der::element(tag::OID, oid::KP_SERVER_AUTH), &der::element(tag::OID, oid::KP_CLIENT_AUTH)]);
    let mut names = uri(leaf.spiffe_id);
    for dns_name in leaf.dns_names {
        names.extend(der::element(tag::context(2), dns_name.as_bytes()));
    }
    Ok(der::sequence(&[
        &extension(oid::BASIC_CONSTRAINTS, true, &der::sequence(&[])),
        &key_usage(usage),
        &extension(oid::EXT_KEY_USAGE, false, &purposes),
        &extension(oid::SUBJECT_ALT_NAME, false, &der::element(tag::SEQUENCE, &names)),
        &subject_key_id(leaf.public_key)?,
        authority_key_id.unwrap_or_default(),
    ]))
}

/// A TBSCertificate (RFC 5280, section 4.1.2).
pub(super) fn to_be_signed(
    key: &PrivateKey,
    serial: &Serial,
    issuer: &[u8],
    validity: Validity,
    subject: &[u8],
    public_key: &[u8],
    extensions: &[u8],
) -> Vec<u8> {
    der::sequence(&[
        &der::element(tag::context_constructed(0), &der::integer(&[2])), // version 3
        &der::integer(serial.as_bytes()),
        &algorithm_identifier(key.algorithm()),
        issuer,
        &validity.der(),
        subject,
        public_key,
        &der::element(tag::context_constructed(3), extensions),
    ])
}

/// The signed form of a certificate or a revocation list (RFC 5280, section 4.1.1).
pub(super) fn signed(key: &PrivateKey, tbs: &[u8]) -> Result<Vec<u8>, ProfileError> {
    let signature = key.sign(tbs).map_err(ProfileError::Key)?;
    Ok(der::sequence(&[tbs, &algorithm_identifier(key.algorithm()), &der::bit_string(&signature)]))
}

/// An Extension (RFC 5280, section 4.1).
pub(super) fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { der::element(tag::BOOLEAN, &[0xff]) } else { Vec::new() };
    der::sequence(&[&der::element(tag::OID, oid), &critical, &der::element(tag::OCTET_STRING, value)])
}

fn algorithm_identifier(algorithm: SignatureAlgorithm) -> Vec<u8> {
    match algorithm {
        SignatureAlgorithm::EcdsaP256Sha256 => der::sequence(&[&der::element(tag::OID, oid::ECDSA_WITH_SHA256)]),
        SignatureAlgorithm::EcdsaP384Sha384 => der::sequence(&[&der::element(tag::OID, oid::ECDSA_WITH_SHA384)]),
        SignatureAlgorithm::RsaSha256 => {
            der::sequence(&[&der::element(tag::OID, oid::SHA256_WITH_RSA), &der::element(tag::NULL, &[])])
        }
    }
}

/// A Name of one attribute per relative distinguished name.
pub(super) fn name(attributes: &[(&[u8], u8, &str)]) -> Vec<u8> {
    let parts: Vec<u8> = attributes
        .iter()
        .flat_map(|(oid, tag, text)| {
            let attribute = der::sequence(&[&der::element(tag::OID, oid), &der::element(*tag, text.as_bytes())]);
            der::element(tag::SET, &attribute)
        })
        .collect();
    der::element(tag::SEQUENCE, &parts)
}

pub(super) fn key_usage(bits: u8) -> Vec<u8> {
    // A named bit list has no trailing zero bits (X.690, section 11.2.2).
    let unused = bits.trailing_zeros() as u8;
    extension(oid::KEY_USAGE, true, &der::element(tag::BIT_STRING, &[unused, bits]))
}

pub(super) fn uri(id: &SpiffeId) -> Vec<u8> {
    der::element(tag::context(6), id.as_str().as_bytes())
}

/// The leftmost 160 bits of the key's SHA-256 (RFC 7093, section 2, method 1).
fn subject_key_id(public_key: &[u8]) -> Result<Vec<u8>, ProfileError> {
    let key = Spki::parse(public_key).ok_or(ProfileError::PublicKey)?.key;
    let digest = digest::digest(&digest::SHA256, key);
    Ok(extension(oid::SUBJECT_KEY_ID, false, &der::element(tag::OCTET_STRING, &digest.as_ref()[..20])))
}

fn revoked_line(revoked: &Revoked) -> Vec<u8> {
    let reason = extension(oid::CRL_REASON, false, &der::element(tag::ENUMERATED, &[revoked.reason.code()]));
    der::sequence(&[
        &der::integer(revoked.serial.as_bytes()),
        &der::time(revoked.at),
        &der::element(tag::SEQUENCE, &reason),
    ])
}

/// Letters, digits and hyphens in labels of at most 63 (RFC 1034, section 3.5), with one wildcard label in front at most.
fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.strip_prefix("*.").unwrap_or(name).split('.').all(label)
}

pub(super) const DIGITAL_SIGNATURE: u8 = 0x80;
const KEY_ENCIPHERMENT: u8 = 0x20;
pub(super) const KEY_CERT_SIGN: u8 = 0x04;
pub(super) const CRL_SIGN: u8 = 0x02;
const EMPTY_NAME: &[u8] = &[tag::SEQUENCE, 0];
