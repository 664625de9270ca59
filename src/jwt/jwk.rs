//! Public keys as JSON (RFC 7517, RFC 7518 section 6), and the set of them that one trust domain signs with.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, EcdsaVerificationAlgorithm,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters,
    RsaPublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use thiserror::Error;

use super::JwtError;
use super::jws::Algorithm;
use crate::id::TrustDomain;
use crate::x509::der::{Reader, Spki, oid, tag, unsigned};

/// Why a public key cannot be used.
#[derive(Debug, Error)]
pub enum JwkError {
    /// Neither EC nor RSA, or a curve other than P-256, P-384 and P-521.
    #[error("the key is of an unsupported kind")]
    Kind,
    /// A parameter is absent or malformed, or the parameters are no key.
    #[error("the key's parameter `{0}` is absent or malformed")]
    Parameter(&'static str),
    /// An RSA key outside of 2048 to 8192 bits.
    #[error("an RSA key has 2048 to 8192 bits, not {0}")]
    RsaSize(usize),
    /// The bytes are no SubjectPublicKeyInfo.
    #[error("not a public key")]
    Malformed,
}

/// A public key that can check signatures. Cheap to clone.
#[derive(Clone)]
pub struct Jwk(Arc<Material>);

enum Material {
    Ec { curve: Curve, point: Vec<u8>, parsed: ParsedPublicKey },
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
}

/// The curves of the standard's algorithms.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// The content of its OBJECT IDENTIFIER.
    pub(super) fn oid(self) -> &'static [u8] {
        match self {
            Self::P256 => oid::P256,
            Self::P384 => oid::P384,
            Self::P521 => oid::P521,
        }
    }

    /// Octets of one coordinate.
    pub(super) fn width(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// The one algorithm for this curve (RFC 7518, section 3.4).
    fn algorithm(self) -> (Algorithm, &'static EcdsaVerificationAlgorithm) {
        match self {
            Self::P256 => (Algorithm::Es256, &ECDSA_P256_SHA256_FIXED),
            Self::P384 => (Algorithm::Es384, &ECDSA_P384_SHA384_FIXED),
            Self::P521 => (Algorithm::Es512, &ECDSA_P521_SHA512_FIXED),
        }
    }
}

fn rsa_parameters(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    match algorithm {
        Algorithm::Rs256 => Some(&RSA_PKCS1_2048_8192_SHA256),
        Algorithm::Rs384 => Some(&RSA_PKCS1_2048_8192_SHA384),
        Algorithm::Rs512 => Some(&RSA_PKCS1_2048_8192_SHA512),
        Algorithm::Ps256 => Some(&RSA_PSS_2048_8192_SHA256),
        Algorithm::Ps384 => Some(&RSA_PSS_2048_8192_SHA384),
        Algorithm::Ps512 => Some(&RSA_PSS_2048_8192_SHA512),
        Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 => None,
    }
}

impl Jwk {
    /// The key in a SubjectPublicKeyInfo.
    pub fn from_spki(der: &[u8]) -> Result<Self, JwkError> {
        let spki = Spki::parse(der).ok_or(JwkError::Malformed)?;
        match spki.algorithm {
            oid::EC_PUBLIC_KEY => {
                let curve =
                    Curve::ALL.into_iter().find(|curve| spki.curve == Some(curve.oid())).ok_or(JwkError::Kind)?;
                Self::ec(curve, spki.key.to_vec())
            }
            oid::RSA_ENCRYPTION => {
                let mut parts = Reader::new(Reader::new(spki.key).only(tag::SEQUENCE).ok_or(JwkError::Malformed)?);
                let n = parts.take(tag::INTEGER).and_then(unsigned).ok_or(JwkError::Parameter("n"))?;
                let e = parts.only(tag::INTEGER).and_then(unsigned).ok_or(JwkError::Parameter("e"))?;
                Self::rsa(n.to_vec(), e.to_vec())
            }
            _ => Err(JwkError::Kind),
        }
    }

    /// Reads the key parameters of a JWK. Members that are not key parameters are not looked at.
    pub fn from_json(members: &Map<String, Value>) -> Result<Self, JwkError> {
        let text = |name| members.get(name).and_then(Value::as_str).ok_or(JwkError::Parameter(name));
        let octets = |name| URL_SAFE_NO_PAD.decode(text(name)?).map_err(|_| JwkError::Parameter(name));
        match text("kty")? {
            "EC" => {
                let name = text("crv")?;
                let curve = Curve::ALL.into_iter().find(|curve| curve.name() == name).ok_or(JwkError::Kind)?;
                let mut point = vec![UNCOMPRESSED];
                for coordinate in ["x", "y"] {
                    let octets = octets(coordinate)?;
                    if octets.len() != curve.width() {
                        return Err(JwkError::Parameter(coordinate));
                    }
                    point.extend(octets);
                }
                Self::ec(curve, point)
            }
            "RSA" => Self::rsa(octets("n")?, octets("e")?),
            _ => Err(JwkError::Kind),
        }
    }

    fn ec(curve: Curve, point: Vec<u8>) -> Result<Self, JwkError> {
        if point.len() != 1 + 2 * curve.width() || point[0] != UNCOMPRESSED {
            return Err(JwkError::Parameter("x"));
        }
        // Parsing proves that the point is on the curve.
        let parsed = ParsedPublicKey::new(curve.algorithm().1, &point).map_err(|_| JwkError::Parameter("x"))?;
        Ok(Self(Arc::new(Material::Ec { curve, point, parsed })))
    }

    fn rsa(n: Vec<u8>, e: Vec<u8>) -> Result<Self, JwkError> {
        let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
        if !(2048..=8192).contains(&bits) {
            return Err(JwkError::RsaSize(bits));
        }
        let key = RsaPublicKeyComponents { n, e };
        key.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).map_err(|_| JwkError::Parameter("e"))?;
        Ok(Self(Arc::new(Material::Rsa(key))))
    }

    /// The key parameters as JSON members: `kty` and what belongs to it, public parts only.
    pub fn to_json(&self) -> Map<String, Value> {
        self.required().into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
    }

    /// The key's own name: the unpadded base64url SHA-256 of its required members (RFC 7638).
    pub fn thumbprint(&self) -> String {
        // Names in order, no white space; no value needs escaping.
        let members: Vec<String> =
            self.required().into_iter().map(|(name, value)| format!(r#""{name}":"{value}""#)).collect();
        let json = format!("{{{}}}", members.join(","));
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, json.as_bytes()))
    }

    /// The members RFC 7638 asks for, in its order.
    pub(super) fn required(&self) -> Vec<(&'static str, String)> {
        match &*self.0 {
            Material::Ec { curve, point, .. } => {
                let (x, y) = point[1..].split_at(curve.width());
                vec![
                    ("crv", curve.name().to_owned()),
                    ("kty", "EC".to_owned()),
                    ("x", URL_SAFE_NO_PAD.encode(x)),
                    ("y", URL_SAFE_NO_PAD.encode(y)),
                ]
            }
            Material::Rsa(key) => vec![
                ("e", URL_SAFE_NO_PAD.encode(&key.e)),
                ("kty", "RSA".to_owned()),
                ("n", URL_SAFE_NO_PAD.encode(&key.n)),
            ],
        }
    }

    /// The curve of an EC key; `None` for RSA.
    pub(super) fn curve(&self) -> Option<Curve> {
        match &*self.0 {
            Material::Ec { curve, .. } => Some(*curve),
            Material::Rsa(_) => None,
        }
    }

    /// The algorithm that keys of this kind sign with here: the one of their curve, and RS256 for RSA, which every
    /// verifier knows.
    pub fn algorithm(&self) -> Algorithm {
        match &*self.0 {
            Material::Ec { curve, .. } => curve.algorithm().0,
            Material::Rsa(_) => Algorithm::Rs256,
        }
    }

    /// Whether `algorithm` is for keys like this one.
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        match &*self.0 {
            Material::Ec { curve, .. } => curve.algorithm().0 == algorithm,
            Material::Rsa(_) => rsa_parameters(algorithm).is_some(),
        }
    }

    /// Checks a JWS signature: ECDSA as fixed-length `r || s`, RSA as is.
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Result<(), JwtError> {
        match &*self.0 {
            Material::Ec { curve, parsed, .. } if curve.algorithm().0 == algorithm => {
                parsed.verify_sig(message, signature)
            }
            Material::Ec { .. } => return Err(JwtError::Signature),
            Material::Rsa(key) => {
                let parameters = rsa_parameters(algorithm).ok_or(JwtError::Signature)?;
                key.verify(parameters, message, signature)
            }
        }
        .map_err(|_| JwtError::Signature)
    }
}

impl PartialEq for Jwk {
    fn eq(&self, other: &Self) -> bool {
        self.required() == other.required()
    }
}

impl Eq for Jwk {}

impl fmt::Debug for Jwk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Jwk({})", self.thumbprint())
    }
}

/// The keys one trust domain signs JWT-SVIDs with, by key ID; those of two domains are never in one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtAuthorities {
    domain: TrustDomain,
    keys: BTreeMap<String, Jwk>,
}

impl JwtAuthorities {
    /// The keys of `domain`; of two with one key ID the later counts.
    pub fn new(domain: TrustDomain, keys: impl IntoIterator<Item = (String, Jwk)>) -> Self {
        Self { domain, keys: keys.into_iter().collect() }
    }

    /// The trust domain they speak for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The key of that ID.
    pub fn find(&self, key_id: &str) -> Option<&Jwk> {
        self.keys.get(key_id)
    }

    /// The keys with their IDs, in the order of these.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Jwk)> {
        self.keys.iter().map(|(key_id, key)| (key_id.as_str(), key))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

const UNCOMPRESSED: u8 = 4;
