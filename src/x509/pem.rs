//! PEM (RFC 7468): labels and base64, nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use super::X509Error;
use crate::base::secret::Secret;

/// The text form of one document, ending with a line feed.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    // Private keys pass through here: nothing is left behind, and `out` never grows beyond its first allocation.
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut out = String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 36);
    out.push_str("-----BEGIN ");
    out.push_str(label);
    out.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
    out
}

/// Every `CERTIFICATE` block of a text, in order; other blocks are skipped.
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, X509Error> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().map_err(X509Error::Pem)?;
    if found.is_empty() {
        return Err(X509Error::NoCertificate);
    }
    Ok(found)
}

/// A revocation list in DER as an `X509 CRL` block.
pub fn crl_to_pem(der: &[u8]) -> String {
    encode("X509 CRL", der)
}

/// A PKCS#8 key as a `PRIVATE KEY` block.
pub fn pkcs8_to_pem(der: &[u8]) -> Secret<String> {
    Secret::new(encode("PRIVATE KEY", der))
}
