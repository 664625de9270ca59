//! Signing tokens. This is the hot path of `FetchJWTSVID`: the header is encoded once per key, claims are written
//! straight from their type, and nothing is parsed.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::JwtError;
use super::jwk::Jwk;
use super::jws::Algorithm;
use crate::id::SpiffeId;
use crate::x509::PrivateKey;

/// The claims of a JWT-SVID (JWT-SVID, section 3), written in this order. Times are cut to whole seconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct JwtClaims<'a> {
    /// Whom it identifies.
    pub sub: &'a SpiffeId,
    /// For whom it is meant; at least one. Always written as an array.
    pub aud: &'a [String],
    /// From when on it is no longer valid.
    #[serde(serialize_with = "serialize_numeric_date")]
    pub exp: OffsetDateTime,
    /// When it was issued.
    #[serde(serialize_with = "serialize_numeric_date")]
    pub iat: OffsetDateTime,
    /// Its own identifier.
    pub jti: &'a str,
    /// Who issued it, for verifiers that come from OpenID Connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<&'a str>,
}

/// A key that signs tokens of one type, with its key ID.
pub struct JwtSigner {
    pair: Pair,
    key_id: String,
    public: Jwk,
    algorithm: Algorithm,
    header: EncodedHeader,
}

/// The header of tokens of one kind from one key, encoded once for all of them, with the dot after it.
#[derive(Clone, Debug)]
pub struct EncodedHeader(String);

impl EncodedHeader {
    fn new(header: &JoseHeader<'_>) -> Result<Self, JwtError> {
        let header = serde_json::to_vec(header).map_err(|_| JwtError::SigningKey)?;
        Ok(Self(URL_SAFE_NO_PAD.encode(header) + "."))
    }
}

enum Pair {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl JwtSigner {
    /// Signs JWT-SVIDs with `key`; its thumbprint (RFC 7638) is the key ID.
    ///
    /// The algorithm follows from the key: ES256, ES384 or RS256.
    pub fn new(key: &PrivateKey) -> Result<Self, JwtError> {
        Self::with_type(key, "JWT")
    }

    /// The same for tokens whose `typ` is `kind`.
    pub fn with_type(key: &PrivateKey, kind: &str) -> Result<Self, JwtError> {
        let pkcs8 = key.to_pkcs8().map_err(|_| JwtError::SigningKey)?;
        let public = Jwk::from_spki(key.public_key()).map_err(|_| JwtError::SigningKey)?;
        let ec = |algorithm| EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.expose()).map(Pair::Ec);
        let (pair, algorithm) = if public.fits(Algorithm::Es256) {
            (ec(&ECDSA_P256_SHA256_FIXED_SIGNING), Algorithm::Es256)
        } else if public.fits(Algorithm::Es384) {
            (ec(&ECDSA_P384_SHA384_FIXED_SIGNING), Algorithm::Es384)
        } else {
            (RsaKeyPair::from_pkcs8(pkcs8.expose()).map(Pair::Rsa), Algorithm::Rs256)
        };
        let pair = pair.map_err(|_| JwtError::SigningKey)?;
        let key_id = public.thumbprint();
        let header =
            EncodedHeader::new(&JoseHeader { alg: algorithm.name(), kid: Some(&key_id), typ: kind, jwk: None })?;
        Ok(Self { pair, key_id, public, algorithm, header })
    }

    /// A header for tokens whose reader knows the key from elsewhere.
    pub fn header_without_key_id(&self, kind: &str) -> Result<EncodedHeader, JwtError> {
        EncodedHeader::new(&JoseHeader { alg: self.algorithm.name(), kid: None, typ: kind, jwk: None })
    }

    /// A header for tokens that bring their public key along (RFC 7515, section 4.1.3).
    pub fn header_with_key(&self, kind: &str) -> Result<EncodedHeader, JwtError> {
        let jwk = Some(self.public.to_json());
        EncodedHeader::new(&JoseHeader { alg: self.algorithm.name(), kid: None, typ: kind, jwk })
    }

    /// The key ID in every token's header.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The key that checks these tokens.
    pub fn public_key(&self) -> &Jwk {
        &self.public
    }

    /// How tokens are signed.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Signs `claims`, which serialize as a JSON object, and returns the compact token.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, JwtError> {
        self.sign_as(&self.header, claims)
    }

    /// The same with another header of this key.
    pub fn sign_as(&self, header: &EncodedHeader, claims: &impl Serialize) -> Result<String, JwtError> {
        let claims = serde_json::to_vec(claims).map_err(|_| JwtError::Member("claims"))?;
        let mut token = String::with_capacity(header.0.len() + claims.len() * 4 / 3 + SIGNATURE_CHARS);
        token.push_str(&header.0);
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        match &self.pair {
            Pair::Ec(pair) => {
                let signature = pair.sign(&SystemRandom::new(), token.as_bytes()).map_err(|_| JwtError::SigningKey)?;
                token.push('.');
                URL_SAFE_NO_PAD.encode_string(signature, &mut token);
            }
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), token.as_bytes(), &mut signature)
                    .map_err(|_| JwtError::SigningKey)?;
                token.push('.');
                URL_SAFE_NO_PAD.encode_string(signature, &mut token);
            }
        }
        Ok(token)
    }
}

impl fmt::Debug for JwtSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSigner")
            .field("key_id", &self.key_id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct JoseHeader<'a> {
    alg: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<&'a str>,
    typ: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwk: Option<Map<String, Value>>,
}

/// Writes a time as a NumericDate, cut to whole seconds (RFC 7519, section 2): for `serialize_with`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize_numeric_date<S: Serializer>(at: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(at.unix_timestamp())
}

/// The dot and an ES256 signature; longer ones make the string grow once.
const SIGNATURE_CHARS: usize = 96;
