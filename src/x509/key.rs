//! Private keys: made here or read from a file, used to sign, written out as PKCS#8 and nothing else.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroize as _;

use super::pem::pkcs8_to_pem;
use crate::base::secret::Secret;

/// Why a private key cannot be made, read or used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The key is none of the kinds tether works with.
    #[error("not an unencrypted P-256, P-384 or RSA (2048 to 8192 bits) private key")]
    Unsupported,
    /// The text holds no private key.
    #[error("not a PEM private key")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// The name of a key type is unknown.
    #[error("`{0}` is not a key type: use ec-p256, ec-p384 or rsa-2048")]
    UnknownType(String),
    /// The crypto library failed, which it does only when out of memory or without entropy.
    #[error("the crypto library failed")]
    Crypto,
}

/// The kind of a new key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyType {
    /// ECDSA on P-256: the default; ES256 in tokens.
    #[default]
    #[serde(rename = "ec-p256")]
    EcP256,
    /// ECDSA on P-384: ES384 in tokens.
    #[serde(rename = "ec-p384")]
    EcP384,
    /// RSA with 2048 bits: RS256 in tokens.
    #[serde(rename = "rsa-2048")]
    Rsa2048,
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EcP256 => "ec-p256",
            Self::EcP384 => "ec-p384",
            Self::Rsa2048 => "rsa-2048",
        })
    }
}

impl FromStr for KeyType {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        [Self::EcP256, Self::EcP384, Self::Rsa2048]
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| KeyError::UnknownType(text.to_owned()))
    }
}

/// How a key signs certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignatureAlgorithm {
    EcdsaP256Sha256,
    EcdsaP384Sha384,
    RsaSha256,
}

/// A private key with its public half. It signs; only [`PrivateKey::to_pkcs8`] gives it away.
pub struct PrivateKey {
    pair: Pair,
    algorithm: SignatureAlgorithm,
    public: Vec<u8>,
}

enum Pair {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

const EC_KINDS: [(&EcdsaSigningAlgorithm, SignatureAlgorithm); 2] = [
    (&ECDSA_P256_SHA256_ASN1_SIGNING, SignatureAlgorithm::EcdsaP256Sha256),
    (&ECDSA_P384_SHA384_ASN1_SIGNING, SignatureAlgorithm::EcdsaP384Sha384),
];

impl PrivateKey {
    /// [`Self::generate`] for async threads: an RSA key takes tens of milliseconds, and is made where that holds up
    /// nobody.
    pub async fn generate_aside(kind: KeyType) -> Result<Self, KeyError> {
        match kind {
            KeyType::EcP256 | KeyType::EcP384 => Self::generate(kind),
            KeyType::Rsa2048 => {
                let made = tokio::task::spawn_blocking(move || Self::generate(kind)).await;
                made.map_err(|_| KeyError::Crypto)?
            }
        }
    }

    /// A new key from the crypto library's generator.
    pub fn generate(kind: KeyType) -> Result<Self, KeyError> {
        let ec = |(algorithm, name): (&'static EcdsaSigningAlgorithm, SignatureAlgorithm)| {
            let pair = EcdsaKeyPair::generate(algorithm).map_err(|_| KeyError::Crypto)?;
            Self::from_ec(pair, name)
        };
        match kind {
            KeyType::EcP256 => ec(EC_KINDS[0]),
            KeyType::EcP384 => ec(EC_KINDS[1]),
            KeyType::Rsa2048 => Self::from_rsa(RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| KeyError::Crypto)?),
        }
    }

    /// Reads PKCS#8, as the Workload API carries keys (`X509SVID.x509_svid_key`).
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        for (algorithm, name) in EC_KINDS {
            if let Ok(pair) = EcdsaKeyPair::from_pkcs8(algorithm, der) {
                return Self::from_ec(pair, name);
            }
        }
        Self::from_rsa(RsaKeyPair::from_pkcs8(der).map_err(|_| KeyError::Unsupported)?)
    }

    /// Reads the first private key of a text: PKCS#8, SEC1 (`EC PRIVATE KEY`) or PKCS#1 (`RSA PRIVATE KEY`).
    pub fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        let mut der = PrivateKeyDer::from_pem_slice(text).map_err(KeyError::Pem)?;
        let key = match &der {
            PrivateKeyDer::Pkcs8(pkcs8) => Self::from_pkcs8(pkcs8.secret_pkcs8_der()),
            PrivateKeyDer::Sec1(sec1) => Self::from_sec1(sec1.secret_sec1_der()),
            PrivateKeyDer::Pkcs1(pkcs1) => Self::from_pkcs1(pkcs1.secret_pkcs1_der()),
            _ => Err(KeyError::Unsupported),
        };
        der.zeroize();
        key
    }

    /// Reads SEC1 (RFC 5915).
    pub(crate) fn from_sec1(der: &[u8]) -> Result<Self, KeyError> {
        for (algorithm, name) in EC_KINDS {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(algorithm, der) {
                return Self::from_ec(pair, name);
            }
        }
        Err(KeyError::Unsupported)
    }

    /// Reads PKCS#1 (RFC 8017, appendix A.1.2).
    pub(crate) fn from_pkcs1(der: &[u8]) -> Result<Self, KeyError> {
        Self::from_rsa(RsaKeyPair::from_der(der).map_err(|_| KeyError::Unsupported)?)
    }

    fn from_ec(pair: EcdsaKeyPair, algorithm: SignatureAlgorithm) -> Result<Self, KeyError> {
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| KeyError::Crypto)?;
        let public = public.as_ref().to_vec();
        Ok(Self { pair: Pair::Ec(pair), algorithm, public })
    }

    fn from_rsa(pair: RsaKeyPair) -> Result<Self, KeyError> {
        if !(256..=1024).contains(&pair.public_modulus_len()) {
            return Err(KeyError::Unsupported);
        }
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| KeyError::Crypto)?;
        let public = public.as_ref().to_vec();
        Ok(Self { pair: Pair::Rsa(pair), algorithm: SignatureAlgorithm::RsaSha256, public })
    }

    /// The public key as SubjectPublicKeyInfo.
    pub fn public_key(&self) -> &[u8] {
        &self.public
    }

    /// The key itself as PKCS#8: to hand to its workload or to write to a file.
    pub fn to_pkcs8(&self) -> Result<Secret<Vec<u8>>, KeyError> {
        match &self.pair {
            Pair::Ec(pair) => pair.to_pkcs8v1().map(|document| document.as_ref().to_vec()),
            Pair::Rsa(pair) => pair.as_der().map(|document: Pkcs8V1Der<'_>| document.as_ref().to_vec()),
        }
        .map(Secret::new)
        .map_err(|_| KeyError::Crypto)
    }

    /// The key as a `PRIVATE KEY` block.
    pub fn to_pem(&self) -> Result<Secret<String>, KeyError> {
        Ok(pkcs8_to_pem(self.to_pkcs8()?.expose()))
    }

    /// Signs as certificates are signed: ECDSA (DER) with the curve's hash, or RSASSA-PKCS1-v1_5 with SHA-256.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.pair {
            Pair::Ec(pair) => pair.sign(&SystemRandom::new(), message).map(|signature| signature.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).map(|()| signature)
            }
        }
        .map_err(|_| KeyError::Crypto)
    }

    /// The one SignatureScheme of TLS 1.3 (RFC 8446, section 4.2.3) this key signs with.
    pub fn tls_scheme(&self) -> u16 {
        match self.algorithm {
            SignatureAlgorithm::EcdsaP256Sha256 => 0x0403,
            SignatureAlgorithm::EcdsaP384Sha384 => 0x0503,
            SignatureAlgorithm::RsaSha256 => 0x0804,
        }
    }

    /// Signs as TLS 1.3 does with [`Self::tls_scheme`]: ECDSA (DER) with the curve's hash, or RSASSA-PSS with SHA-256.
    pub fn sign_tls13(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let Pair::Rsa(pair) = &self.pair else { return self.sign(message) };
        let mut signature = vec![0; pair.public_modulus_len()];
        let signed = pair.sign(&RSA_PSS_SHA256, &SystemRandom::new(), message, &mut signature);
        signed.map(|()| signature).map_err(|_| KeyError::Crypto)
    }

    /// How [`PrivateKey::sign`] signs.
    #[cfg(feature = "agent")]
    pub(super) fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({:?}, redacted)", self.algorithm)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn an_rsa_key_does_not_hold_up_the_thread_that_waits_for_it_and_an_ec_key_is_there_at_once() {
        assert!(PrivateKey::generate_aside(KeyType::EcP256).now_or_never().is_some_and(|made| made.is_ok()));
        let mut making = Box::pin(PrivateKey::generate_aside(KeyType::Rsa2048));
        assert!((&mut making).now_or_never().is_none());
        assert!(making.await.is_ok());
    }
}
