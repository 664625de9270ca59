//! One certificate, read once and strictly.

use std::fmt;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Version};

use super::X509Error;
use super::der::{Reader, oid, tag, unsigned};
use super::handed::is_signature_of;
use super::pem;
use crate::base::entropy::hex;
use crate::id::SpiffeId;

/// A certificate's serial number: unsigned, big-endian, without leading zeros. It prints as lower-case hex.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(Box<[u8]>);

impl Serial {
    /// A serial number from 16 random octets: positive, always 16 octets long, 126 bits of them random.
    ///
    /// RFC 5280, section 4.1.2.2 allows at most 20 octets and no zero; a fixed length needs no case distinctions.
    pub fn from_random(mut octets: [u8; 16]) -> Self {
        octets[0] = octets[0] & 0x7f | 0x40;
        Self(octets.into())
    }

    /// Reads what `Display` wrote. `None` unless the text is an even number of lower-case hex digits without a
    /// leading zero octet.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let pairs = text.as_bytes().chunks(2);
        let octets: Vec<u8> = pairs
            .map(|pair| match pair {
                [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
                _ => None,
            })
            .collect::<Option<_>>()?;
        (octets.len() <= 64 && octets.first().is_some_and(|&first| first != 0)).then(|| Self(octets.into()))
    }

    /// The octets, big-endian.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a certificate's key may be used for (RFC 5280, section 4.2.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUsage {
    bits: u16,
    critical: bool,
}

impl KeyUsage {
    /// Whether the extension is marked critical.
    pub fn is_critical(self) -> bool {
        self.critical
    }
    /// May sign data, as in a TLS handshake.
    pub fn digital_signature(self) -> bool {
        self.bit(0)
    }
    /// May sign certificates.
    pub fn key_cert_sign(self) -> bool {
        self.bit(5)
    }
    /// May sign revocation lists.
    pub fn crl_sign(self) -> bool {
        self.bit(6)
    }

    fn bit(self, n: u32) -> bool {
        self.bits & (0x8000 >> n) != 0
    }
}

/// Which protocols a certificate is for (RFC 5280, section 4.2.1.12), as far as SPIFFE cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtendedKeyUsage {
    /// It names id-kp-serverAuth.
    pub server_auth: bool,
    /// It names id-kp-clientAuth.
    pub client_auth: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BasicConstraints {
    pub(super) ca: bool,
    pub(super) path_len: Option<u32>,
}

/// One X.509 certificate whose fields have been read. Cheap to clone.
///
/// Reading refuses malformed or repeated extensions but judges nothing else: whether a certificate is an SVID is
/// for [`Certificate::svid_id`], and whether it is to be believed is for [`super::verify`].
#[derive(Clone)]
pub struct Certificate(Arc<Fields>);

struct Fields {
    der: CertificateDer<'static>,
    serial: Serial,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    issuer: Vec<u8>,
    subject: Vec<u8>,
    public_key: Vec<u8>,
    extensions: Extensions,
}

#[derive(Default)]
struct Extensions {
    basic_constraints: Option<BasicConstraints>,
    key_usage: Option<KeyUsage>,
    extended_key_usage: Option<ExtendedKeyUsage>,
    subject_key_id: Option<Vec<u8>>,
    authority_key_id: Option<Vec<u8>>,
    uris: Vec<String>,
    dns_names: Vec<String>,
}

impl Certificate {
    /// Reads exactly one certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, X509Error> {
        let (rest, certificate) = Self::read(der)?;
        if rest.is_empty() { Ok(certificate) } else { Err(X509Error::TrailingData) }
    }

    /// Reads the first `CERTIFICATE` block of a text.
    pub fn from_pem(text: &[u8]) -> Result<Self, X509Error> {
        Self::from_der(&pem::certificates(text)?[0])
    }

    /// Reads the certificate at the start of `bytes` and returns what follows it.
    pub(super) fn read(bytes: &[u8]) -> Result<(&[u8], Self), X509Error> {
        let (rest, parsed) = X509Certificate::from_der(bytes).map_err(|_| X509Error::Malformed)?;
        if parsed.version() != X509Version::V3 {
            return Err(X509Error::Version);
        }
        // Foreign authorities with a zero or negative serial exist: keep the octets (RFC 5280, section 4.1.2.2).
        let serial = unsigned(parsed.raw_serial()).unwrap_or(parsed.raw_serial());
        let fields = Fields {
            der: CertificateDer::from(bytes[..bytes.len() - rest.len()].to_vec()),
            serial: Serial(serial.into()),
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
            issuer: parsed.issuer().as_raw().to_vec(),
            subject: parsed.subject().as_raw().to_vec(),
            public_key: parsed.public_key().raw.to_vec(),
            extensions: Extensions::read(&parsed)?,
        };
        Ok((rest, Self(Arc::new(fields))))
    }

    /// The encoded certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.0.der
    }

    /// The certificate as a PEM block.
    pub fn to_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.0.der)
    }

    /// The serial number.
    pub fn serial(&self) -> &Serial {
        &self.0.serial
    }

    /// The first second of validity.
    pub fn not_before(&self) -> OffsetDateTime {
        self.0.not_before
    }

    /// The last second of validity.
    pub fn not_after(&self) -> OffsetDateTime {
        self.0.not_after
    }

    /// The issuer's name, encoded.
    pub fn issuer(&self) -> &[u8] {
        &self.0.issuer
    }

    /// The subject's name, encoded.
    pub fn subject(&self) -> &[u8] {
        &self.0.subject
    }

    /// Whether issuer and subject are the same name; says nothing about who signed.
    pub fn is_self_issued(&self) -> bool {
        self.0.issuer == self.0.subject
    }

    /// Whether it is a root in the strict sense: its own key made its signature.
    pub fn is_self_signed(&self) -> bool {
        self.is_self_issued() && self.is_signed_with_key_of(self)
    }

    /// Whether the key of `issuer` made its signature; says nothing of names, validity and whether that one may sign.
    pub(super) fn is_signed_with_key_of(&self, issuer: &Self) -> bool {
        let Ok((_, parsed)) = X509Certificate::from_der(self.der()) else { return false };
        is_signature_of(issuer.der(), parsed.tbs_certificate.as_ref(), parsed.signature_value.as_ref())
    }

    /// The public key as SubjectPublicKeyInfo.
    pub fn public_key(&self) -> &[u8] {
        &self.0.public_key
    }

    /// The subject key identifier.
    pub fn subject_key_id(&self) -> Option<&[u8]> {
        self.0.extensions.subject_key_id.as_deref()
    }

    /// The key identifier of the authority that signed this.
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.0.extensions.authority_key_id.as_deref()
    }

    /// Whether this is a signing certificate: basicConstraints is there and says cA.
    pub fn is_ca(&self) -> bool {
        self.basic_constraints().is_some_and(|constraints| constraints.ca)
    }

    /// How many further authorities may follow below this one; `None` is no limit.
    pub fn path_len(&self) -> Option<u32> {
        self.basic_constraints().and_then(|constraints| constraints.path_len)
    }

    /// The key usage extension.
    pub fn key_usage(&self) -> Option<KeyUsage> {
        self.0.extensions.key_usage
    }

    /// The extended key usage extension.
    pub fn extended_key_usage(&self) -> Option<ExtendedKeyUsage> {
        self.0.extensions.extended_key_usage
    }

    /// The URIs among the subject alternative names, of any scheme.
    pub fn uris(&self) -> &[String] {
        &self.0.extensions.uris
    }

    /// The DNS names among the subject alternative names.
    pub fn dns_names(&self) -> &[String] {
        &self.0.extensions.dns_names
    }

    /// The SPIFFE ID: the one URI among the subject alternative names (X509-SVID, section 2).
    ///
    /// # Errors
    /// None or several URIs, or one that is not a SPIFFE ID.
    pub fn spiffe_id(&self) -> Result<SpiffeId, X509Error> {
        match self.uris() {
            [uri] => SpiffeId::parse(uri).map_err(X509Error::SpiffeId),
            [] => Err(X509Error::NoUri),
            _ => Err(X509Error::SeveralUris),
        }
    }

    /// The SPIFFE ID of a certificate that identifies a workload: every rule on the leaf alone (X509-SVID, sections
    /// 2, 3.1, 4 and 5.2). It does not say who signed it: that is [`super::verify`].
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn svid_id(&self) -> Result<SpiffeId, X509Error> {
        let constraints = self.basic_constraints().ok_or(X509Error::NoBasicConstraints)?;
        if constraints.ca {
            return Err(X509Error::AuthorityAsIdentity);
        }
        let usage = self.key_usage().ok_or(X509Error::NoKeyUsage)?;
        if !usage.is_critical() {
            return Err(X509Error::KeyUsageNotCritical);
        }
        if usage.key_cert_sign() || usage.crl_sign() {
            return Err(X509Error::SigningKeyUsage);
        }
        if !usage.digital_signature() {
            return Err(X509Error::NoDigitalSignature);
        }
        if self.extended_key_usage().is_some_and(|usage| !(usage.server_auth && usage.client_auth)) {
            return Err(X509Error::ExtendedKeyUsage);
        }
        let id = self.spiffe_id()?;
        if id.path().is_empty() {
            return Err(X509Error::NoPath);
        }
        Ok(id)
    }

    fn basic_constraints(&self) -> Option<BasicConstraints> {
        self.0.extensions.basic_constraints
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.0.der == other.0.der
    }
}

impl Eq for Certificate {}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("serial", self.serial())
            .field("uris", &self.uris())
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}

impl Extensions {
    fn read(certificate: &X509Certificate<'_>) -> Result<Self, X509Error> {
        let mut out = Self::default();
        let mut seen: Vec<&[u8]> = Vec::with_capacity(certificate.extensions().len());
        for extension in certificate.extensions() {
            let oid = extension.oid.as_bytes();
            if seen.contains(&oid) {
                return Err(X509Error::DuplicateExtension(extension.oid.to_id_string()));
            }
            seen.push(oid);
            out.read_one(oid, extension.critical, extension.value)
                .ok_or_else(|| X509Error::MalformedExtension(extension.oid.to_id_string()))?;
        }
        Ok(out)
    }

    /// `None` when an extension that matters here is not well-formed.
    fn read_one(&mut self, oid: &[u8], critical: bool, value: &[u8]) -> Option<()> {
        let value = Reader::new(value);
        match oid {
            oid::BASIC_CONSTRAINTS => self.basic_constraints = Some(basic_constraints(value)?),
            oid::KEY_USAGE => self.key_usage = Some(KeyUsage { bits: key_usage_bits(value)?, critical }),
            oid::EXT_KEY_USAGE => self.extended_key_usage = Some(extended_key_usage(value)?),
            oid::SUBJECT_KEY_ID => self.subject_key_id = Some(value.only(tag::OCTET_STRING)?.to_vec()),
            oid::AUTHORITY_KEY_ID => {
                let mut parts = Reader::new(value.only(tag::SEQUENCE)?);
                self.authority_key_id = parts.take(tag::context(0)).map(<[u8]>::to_vec);
            }
            oid::SUBJECT_ALT_NAME => self.subject_alt_names(value)?,
            _ => {} // path validation refuses the critical ones it does not know
        }
        Some(())
    }

    fn subject_alt_names(&mut self, value: Reader<'_>) -> Option<()> {
        let mut names = Reader::new(value.only(tag::SEQUENCE)?);
        if names.is_empty() {
            return None;
        }
        while !names.is_empty() {
            let (tag, content) = names.element()?;
            const RFC822: u8 = tag::context(1);
            const DNS: u8 = tag::context(2);
            const URI: u8 = tag::context(6);
            const IP: u8 = tag::context(7);
            const REGISTERED: u8 = tag::context(8);
            // otherName, x400Address, directoryName, ediPartyName: constructed.
            const FIRST_OTHER: u8 = tag::context_constructed(0);
            const LAST_OTHER: u8 = tag::context_constructed(5);
            match tag {
                DNS => self.dns_names.push(ia5_string(content)?),
                URI => self.uris.push(ia5_string(content)?),
                RFC822 => drop(ia5_string(content)?),
                IP | REGISTERED | FIRST_OTHER..=LAST_OTHER => {}
                _ => return None,
            }
        }
        Some(())
    }
}

fn basic_constraints(value: Reader<'_>) -> Option<BasicConstraints> {
    let mut parts = Reader::new(value.only(tag::SEQUENCE)?);
    // `cA` is FALSE by default. Writing the default out is not DER, but widespread enough that everyone reads it.
    let ca = match parts.take(tag::BOOLEAN) {
        None | Some([0x00]) => false,
        Some([0xff]) => true,
        Some(_) => return None,
    };
    let path_len = match parts.take(tag::INTEGER) {
        None => None,
        Some(content) => {
            let octets = unsigned(content).filter(|octets| octets.len() <= 4)?;
            Some(octets.iter().fold(0u32, |acc, &octet| acc << 8 | u32::from(octet)))
        }
    };
    parts.is_empty().then_some(BasicConstraints { ca, path_len })
}

fn key_usage_bits(value: Reader<'_>) -> Option<u16> {
    // Nine bits are defined: two octets at most, and at least one bit is set.
    let bits = match value.only(tag::BIT_STRING)? {
        [unused @ 0..=7, a] if a.trailing_zeros() >= u32::from(*unused) => u16::from_be_bytes([*a, 0]),
        [unused @ 0..=7, a, b] if b.trailing_zeros() >= u32::from(*unused) => u16::from_be_bytes([*a, *b]),
        _ => return None,
    };
    (bits != 0).then_some(bits)
}

fn extended_key_usage(value: Reader<'_>) -> Option<ExtendedKeyUsage> {
    let mut purposes = Reader::new(value.only(tag::SEQUENCE)?);
    let mut usage = ExtendedKeyUsage { server_auth: false, client_auth: false };
    if purposes.is_empty() {
        return None;
    }
    while !purposes.is_empty() {
        match purposes.take(tag::OID)? {
            oid::KP_SERVER_AUTH => usage.server_auth = true,
            oid::KP_CLIENT_AUTH => usage.client_auth = true,
            _ => {}
        }
    }
    Some(usage)
}

fn ia5_string(content: &[u8]) -> Option<String> {
    content.is_ascii().then(|| String::from_utf8_lossy(content).into_owned())
}
