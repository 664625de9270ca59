//! The one form of bytes that is signed for TLS, so that the signer is no oracle for anything else.

use thiserror::Error;

/// What content begins with.
const PADDING: [u8; 64] = [b' '; 64];
/// The context strings of RFC 8446, section 4.4.3, each with the zero byte after it. RFC 8446bis and its extensions have
/// others, which are not signed.
const CONTEXTS: [&[u8]; 2] = [b"TLS 1.3, client CertificateVerify\0", b"TLS 1.3, server CertificateVerify\0"];
/// Lengths of a transcript hash: of SHA-256 and SHA-384. It follows from the cipher suite and not from the signature
/// scheme: a P-256 key signs 48 bytes with TLS_AES_256_GCM_SHA384.
const HASHES: [usize; 2] = [32, 48];
/// ecdsa_secp256r1_sha256, ecdsa_secp384r1_sha384, rsa_pss_rsae_sha256.
const SCHEMES: [u16; 3] = [0x0403, 0x0503, 0x0804];

/// Why something is not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotCertificateVerify {
    /// The scheme is none of the three that keys here sign with.
    #[error("`{0:#06x}` is not a signature scheme for keys held here: use 0x0403, 0x0503 or 0x0804")]
    Scheme(u32),
    /// The scheme is for another kind of key.
    #[error("`{scheme:#06x}` is not the signature scheme of this key, which is {key:#06x}")]
    OtherScheme {
        /// The scheme that was asked for.
        scheme: u16,
        /// The key's own.
        key: u16,
    },
    /// It does not begin with 64 spaces, one of the two context strings and a zero byte.
    #[error("this is not the content of a TLS 1.3 CertificateVerify, and nothing else is signed")]
    Content,
    /// What follows is no transcript hash of a cipher suite of TLS 1.3.
    #[error("a transcript hash has 32 or 48 bytes, not {0}")]
    Hash(usize),
}

/// The content that a TLS 1.3 CertificateVerify message signs, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateVerify<'a> {
    scheme: u16,
    content: &'a [u8],
}

impl<'a> CertificateVerify<'a> {
    /// Checks scheme and content, every byte before the hash.
    ///
    /// # Errors
    /// They are anything else.
    pub fn parse(scheme: u32, content: &'a [u8]) -> Result<Self, NotCertificateVerify> {
        let known = u16::try_from(scheme).ok().filter(|scheme| SCHEMES.contains(scheme));
        let scheme = known.ok_or(NotCertificateVerify::Scheme(scheme))?;
        let rest = content.strip_prefix(&PADDING).ok_or(NotCertificateVerify::Content)?;
        let hash = CONTEXTS.iter().find_map(|context| rest.strip_prefix(*context));
        let hash = hash.ok_or(NotCertificateVerify::Content)?;
        if !HASHES.contains(&hash.len()) {
            return Err(NotCertificateVerify::Hash(hash.len()));
        }
        Ok(Self { scheme, content })
    }

    /// The SignatureScheme.
    pub fn scheme(&self) -> u16 {
        self.scheme
    }

    /// What is signed.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.content
    }
}
