//! PKCS#12 (RFC 7292), written and never read: a key with its chain, or certificates to believe, for programs that take
//! nothing else.
//!
//! Contents are encrypted as RFC 8018 says (PBES2: PBKDF2 with HMAC-SHA-256, AES-256-CBC), with a MAC over SHA-256, which
//! OpenSSL since 1.1 and Java since 8u301 read. Programs that only know what came before them do not.
//!
//! The password protects nothing where it lies beside the file, as it must for a program to read both.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{AES_256, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{hmac, pbkdf2};
use thiserror::Error;
use zeroize::Zeroizing;

use super::encode::{constructed, element, integer, sequence, tag};
use super::{Certificate, Chain, KeyError, PrivateKey};
use crate::base::entropy::Entropy;
use crate::base::secret::Secret;

/// For both derivations. Whoever has the file mostly has the password too; this is what other writers use.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(10_000).expect("it is not zero");
/// The longest password.
const MAX_PASSWORD: usize = 128;
/// What the entry with the key is called.
const ALIAS: &str = "svid";

/// Why no PKCS#12 was written.
#[derive(Debug, Error)]
pub enum Pkcs12Error {
    /// The key cannot be given away.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Programs do not agree on how other characters are encoded.
    #[error("a password for PKCS#12 has 1 to {MAX_PASSWORD} printable ASCII characters")]
    Password,
    /// The crypto library failed, which it does only when out of memory.
    #[error("the crypto library failed")]
    Crypto,
}

/// A password that every reader of PKCS#12 takes for the same.
#[derive(Debug)]
pub struct Password(Secret<String>);

impl Password {
    /// Checks it: 1 to 128 printable ASCII characters.
    pub fn new(text: Secret<String>) -> Result<Self, Pkcs12Error> {
        let fits = (1..=MAX_PASSWORD).contains(&text.expose().len());
        let plain = text.expose().bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if fits && plain { Ok(Self(text)) } else { Err(Pkcs12Error::Password) }
    }
}

mod oid {
    //! The contents of object identifiers.
    pub const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
    pub const ENCRYPTED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 6];
    pub const SHROUDED_KEY_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 12, 10, 1, 2];
    pub const CERT_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 12, 10, 1, 3];
    pub const X509_CERTIFICATE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 22, 1];
    pub const FRIENDLY_NAME: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 20];
    pub const LOCAL_KEY_ID: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 21];
    /// Java: a certificate is believed for what is named.
    pub const TRUSTED_KEY_USAGE: &[u8] = &[0x60, 0x86, 0x48, 1, 0x86, 0xf9, 0x66, 0xad, 0xca, 0x7b, 1, 1];
    pub const ANY_EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37, 0];
    pub const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 13];
    pub const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 12];
    pub const HMAC_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 2, 9];
    pub const AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 1, 101, 3, 4, 1, 42];
    pub const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 101, 3, 4, 2, 1];
}

const BMP_STRING: u8 = 0x1e;

/// A key with its chain, the leaf first, as one entry with the name `svid`.
pub fn key_store(
    chain: &Chain,
    key: &PrivateKey,
    password: &Password,
    entropy: &Entropy,
) -> Result<Secret<Vec<u8>>, Pkcs12Error> {
    let key_id = digest(&SHA256, chain.leaf().der());
    let of_key = [attribute(oid::LOCAL_KEY_ID, &element(tag::OCTET_STRING, key_id.as_ref())), friendly_name(ALIAS)];
    let certificates = chain.certificates().iter().enumerate().map(|(at, certificate)| {
        // The first one is the key's; the others are found by their names.
        cert_bag(certificate.der(), if at == 0 { &of_key } else { &[] })
    });
    let certificates: Vec<Vec<u8>> = certificates.collect();
    let shrouded = encrypt(key.to_pkcs8()?.expose(), password, entropy)?;
    let shrouded = sequence(&[&shrouded.algorithm, &element(tag::OCTET_STRING, &shrouded.content)]);
    let key_bag = bag(oid::SHROUDED_KEY_BAG, &shrouded, &of_key);
    let safes = [encrypted_safe(&certificates, password, entropy)?, data(&sequence(&[&key_bag]))];
    authenticated(&safes, password, entropy)
}

/// Certificates to believe, as Java's trust stores have them: each an entry with the name `authority-N`.
pub fn trust_store(
    authorities: &[&Certificate],
    password: &Password,
    entropy: &Entropy,
) -> Result<Secret<Vec<u8>>, Pkcs12Error> {
    let any_use = attribute(oid::TRUSTED_KEY_USAGE, &element(tag::OID, oid::ANY_EXTENDED_KEY_USAGE));
    let bag = |(at, certificate): (usize, &&Certificate)| {
        cert_bag(certificate.der(), &[friendly_name(&format!("authority-{}", at + 1)), any_use.clone()])
    };
    let bags: Vec<Vec<u8>> = authorities.iter().enumerate().map(bag).collect();
    authenticated(&[encrypted_safe(&bags, password, entropy)?], password, entropy)
}

/// A SafeBag (RFC 7292, section 4.2).
fn bag(kind: &[u8], value: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let attributes = set_of(attributes);
    let attributes = if attributes.len() > 2 { attributes } else { Vec::new() };
    sequence(&[&element(tag::OID, kind), &element(tag::context_constructed(0), value), &attributes])
}

fn cert_bag(certificate: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let certificate = element(tag::context_constructed(0), &element(tag::OCTET_STRING, certificate));
    bag(oid::CERT_BAG, &sequence(&[&element(tag::OID, oid::X509_CERTIFICATE), &certificate]), attributes)
}

fn attribute(kind: &[u8], value: &[u8]) -> Vec<u8> {
    sequence(&[&element(tag::OID, kind), &element(tag::SET, value)])
}

fn friendly_name(name: &str) -> Vec<u8> {
    attribute(oid::FRIENDLY_NAME, &element(BMP_STRING, &utf16(name)))
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// A SET OF, in the order of DER.
fn set_of(elements: &[Vec<u8>]) -> Vec<u8> {
    let mut sorted: Vec<&[u8]> = elements.iter().map(Vec::as_slice).collect();
    sorted.sort_unstable();
    constructed(tag::SET, &sorted)
}

/// A ContentInfo of plain data.
fn data(content: &[u8]) -> Vec<u8> {
    let content = element(tag::context_constructed(0), &element(tag::OCTET_STRING, content));
    sequence(&[&element(tag::OID, oid::DATA), &content])
}

/// A ContentInfo with encrypted bags.
fn encrypted_safe(bags: &[Vec<u8>], password: &Password, entropy: &Entropy) -> Result<Vec<u8>, Pkcs12Error> {
    let bags: Vec<&[u8]> = bags.iter().map(Vec::as_slice).collect();
    let Encrypted { algorithm, content } = encrypt(&sequence(&bags), password, entropy)?;
    let content = element(tag::context(0), &content);
    let info = sequence(&[&element(tag::OID, oid::DATA), &algorithm, &content]);
    let encrypted = element(tag::context_constructed(0), &sequence(&[&integer(&[0]), &info]));
    Ok(sequence(&[&element(tag::OID, oid::ENCRYPTED_DATA), &encrypted]))
}

struct Encrypted {
    algorithm: Vec<u8>,
    content: Vec<u8>,
}

/// PBES2 (RFC 8018, section 6.2).
fn encrypt(plain: &[u8], password: &Password, entropy: &Entropy) -> Result<Encrypted, Pkcs12Error> {
    let (salt, iv) = (entropy.bytes::<16>(), entropy.bytes::<16>());
    let mut key = Zeroizing::new([0; 32]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, &salt, password.0.expose().as_bytes(), &mut *key);
    let failed = |_| Pkcs12Error::Crypto;
    let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(UnboundCipherKey::new(&AES_256, &*key).map_err(failed)?);
    // Grows by at most a block: no copy of the plain text is left behind.
    let mut content = Vec::with_capacity(plain.len() + 16);
    content.extend_from_slice(plain);
    let context = EncryptionContext::Iv128(FixedLength::from(iv));
    cipher.map_err(failed)?.less_safe_encrypt(&mut content, context).map_err(failed)?;

    let null = element(tag::NULL, &[]);
    let prf = sequence(&[&element(tag::OID, oid::HMAC_SHA256), &null]);
    let salt = element(tag::OCTET_STRING, &salt);
    let parameters = sequence(&[&salt, &integer(&ITERATIONS.get().to_be_bytes()), &prf]);
    let derivation = sequence(&[&element(tag::OID, oid::PBKDF2), &parameters]);
    let scheme = sequence(&[&element(tag::OID, oid::AES_256_CBC), &element(tag::OCTET_STRING, &iv)]);
    let algorithm = sequence(&[&element(tag::OID, oid::PBES2), &sequence(&[&derivation, &scheme])]);
    Ok(Encrypted { algorithm, content })
}

/// The PFX around contents, with its MAC (RFC 7292, section 4).
fn authenticated(safes: &[Vec<u8>], password: &Password, entropy: &Entropy) -> Result<Secret<Vec<u8>>, Pkcs12Error> {
    let safes: Vec<&[u8]> = safes.iter().map(Vec::as_slice).collect();
    let safe = sequence(&safes);
    let salt = entropy.bytes::<16>();
    let key = mac_key(password, &salt);
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &*key), &safe);
    let algorithm = sequence(&[&element(tag::OID, oid::SHA256), &element(tag::NULL, &[])]);
    let info = sequence(&[&algorithm, &element(tag::OCTET_STRING, mac.as_ref())]);
    let salt = element(tag::OCTET_STRING, &salt);
    let mac = sequence(&[&info, &salt, &integer(&ITERATIONS.get().to_be_bytes())]);
    Ok(Secret::new(sequence(&[&integer(&[3]), &data(&safe), &mac])))
}

/// The key of the MAC (RFC 7292, appendix B.2, with the diversifier 3): one block of SHA-256 is all of it.
fn mac_key(password: &Password, salt: &[u8; 16]) -> Zeroizing<[u8; 32]> {
    const BLOCK: usize = 64;
    let mut secret = Zeroizing::new(utf16(password.0.expose()));
    secret.extend_from_slice(&[0, 0]);
    let repeated = |bytes: &[u8]| -> Vec<u8> {
        let length = bytes.len().div_ceil(BLOCK) * BLOCK;
        bytes.iter().copied().cycle().take(length).collect()
    };
    let mut input = Zeroizing::new(vec![3; BLOCK]);
    input.extend_from_slice(&repeated(salt));
    input.extend_from_slice(&Zeroizing::new(repeated(&secret)));
    let mut hash = Zeroizing::new([0; 32]);
    hash.copy_from_slice(digest(&SHA256, &input).as_ref());
    for _ in 1..ITERATIONS.get() {
        let next = digest(&SHA256, &*hash);
        hash.copy_from_slice(next.as_ref());
    }
    hash
}

#[cfg(test)]
mod tests;
