//! JWS compact serialization (RFC 7515, section 7.1), read strictly and checked with one given key.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::jwk::Jwk;
use super::strict::parse_strict;
use super::{JwtError, StrictJsonError};

/// The longest token that is looked at: far above any real one, far below what would hurt.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// The signature algorithms of SPIFFE (JWT-SVID, section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
}

impl Algorithm {
    /// All nine.
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
    ];

    /// Its name in `alg`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
        }
    }

    /// The algorithm of that name, upper and lower case being different.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// What of a JOSE header is used. Keys and addresses of keys in it (`jwk`, `x5c`, `jku`, `x5u`) never are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// How it is signed.
    pub algorithm: Algorithm,
    /// Which key of the issuer signed it.
    pub key_id: Option<String>,
    /// What kind of token it says it is.
    pub kind: Option<String>,
}

/// A token taken apart, with nothing about it proven yet.
#[derive(Debug)]
#[must_use]
pub struct Jws<'a> {
    header: Header,
    payload: Vec<u8>,
    signing_input: &'a str,
    signature: Vec<u8>,
}

impl<'a> Jws<'a> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// It is too long or not compact, its algorithm is not allowed, or it demands extensions.
    pub fn parse(token: &'a str) -> Result<Self, JwtError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwtError::TooLong);
        }
        let (signing_input, signature) = token.rsplit_once('.').ok_or(JwtError::NotCompact)?;
        let (header, payload) = signing_input.split_once('.').ok_or(JwtError::NotCompact)?;
        // A fourth part leaves a dot in one of these, which is not base64url.
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtError::NotCompact);
        let header = Header::parse(&decode(header)?)?;
        Ok(Self { header, payload: decode(payload)?, signing_input, signature: decode(signature)? })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The claims, not proven yet.
    pub fn claims(&self) -> Result<Map<String, Value>, JwtError> {
        parse_strict(&self.payload).map_err(|source| JwtError::Json { part: "claims", source })
    }

    /// Whether `key` made the signature. The key must be of the kind the algorithm is for.
    pub fn verify(&self, key: &Jwk) -> Result<(), JwtError> {
        key.verify(self.header.algorithm, self.signing_input.as_bytes(), &self.signature)
    }
}

impl Header {
    fn parse(json: &[u8]) -> Result<Self, JwtError> {
        let members =
            parse_strict(json).map_err(|source: StrictJsonError| JwtError::Json { part: "header", source })?;
        let text = |name| match members.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(JwtError::Member(name)),
        };
        let algorithm = text("alg")?.and_then(Algorithm::from_name).ok_or(JwtError::Algorithm)?;
        if members.contains_key("crit") {
            return Err(JwtError::Critical);
        }
        Ok(Self { algorithm, key_id: text("kid")?.map(str::to_owned), kind: text("typ")?.map(str::to_owned) })
    }
}
