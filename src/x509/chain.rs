//! A certificate and what leads from it towards an authority.

use rustls_pki_types::CertificateDer;

use super::certificate::Certificate;
use super::{X509Error, pem};

/// The most certificates a chain may have. The longest real ones have four.
pub const MAX_CHAIN: usize = 16;

/// Certificates, leaf first; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain(Vec<Certificate>);

impl Chain {
    /// A chain of certificates that have been read already.
    ///
    /// # Errors
    /// None, or more than [`MAX_CHAIN`].
    pub fn new(certificates: Vec<Certificate>) -> Result<Self, X509Error> {
        match certificates.len() {
            0 => Err(X509Error::NoCertificate),
            1..=MAX_CHAIN => Ok(Self(certificates)),
            _ => Err(X509Error::TooManyCertificates),
        }
    }

    /// Reads concatenated DER, as the Workload API carries it (`X509SVID.x509_svid`).
    pub fn from_der(bytes: &[u8]) -> Result<Self, X509Error> {
        Self::new(read_concatenated(bytes, MAX_CHAIN)?)
    }

    /// Reads every `CERTIFICATE` block of a text.
    pub fn from_pem(text: &[u8]) -> Result<Self, X509Error> {
        Self::from_certificates(&pem::certificates(text)?)
    }

    /// Reads what a TLS peer presented.
    pub fn from_certificates(certificates: &[CertificateDer<'_>]) -> Result<Self, X509Error> {
        if certificates.len() > MAX_CHAIN {
            return Err(X509Error::TooManyCertificates);
        }
        Self::new(certificates.iter().map(|der| Certificate::from_der(der)).collect::<Result<_, _>>()?)
    }

    /// The certificate that identifies.
    pub fn leaf(&self) -> &Certificate {
        &self.0[0]
    }

    /// What was sent along to build a path; empty when an authority signed the leaf itself.
    pub fn intermediates(&self) -> &[Certificate] {
        &self.0[1..]
    }

    /// All certificates, leaf first.
    pub fn certificates(&self) -> &[Certificate] {
        &self.0
    }

    /// Concatenated DER, leaf first.
    pub fn to_der(&self) -> Vec<u8> {
        self.0.iter().flat_map(|certificate| certificate.der().iter().copied()).collect()
    }

    /// PEM blocks, leaf first.
    pub fn to_pem(&self) -> String {
        self.0.iter().map(Certificate::to_pem).collect()
    }
}

/// Certificates one after the other without padding; at most `limit`.
pub(super) fn read_concatenated(mut bytes: &[u8], limit: usize) -> Result<Vec<Certificate>, X509Error> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        if out.len() == limit {
            return Err(X509Error::TooManyCertificates);
        }
        let (rest, certificate) = Certificate::read(bytes)?;
        out.push(certificate);
        bytes = rest;
    }
    Ok(out)
}
