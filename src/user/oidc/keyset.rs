//! The keys an issuer publishes: a JWK set (RFC 7517, section 5), with what of it can check a signature.

use serde_json::{Map, Value};
use thiserror::Error;

use crate::jwt::{Algorithm, Header, Jwk, StrictJsonError, parse_strict};

/// The most keys of a set that are looked at: far above any issuer's.
const MAX_KEYS: usize = 128;

/// Why a document is no set of keys.
#[derive(Debug, Error)]
pub enum KeySetError {
    /// It is not JSON, or has a name twice.
    #[error("it is no JSON object")]
    Json(#[source] StrictJsonError),
    /// There is no list `keys`.
    #[error("it has no list `keys`")]
    NoList,
    /// The list is longer than any issuer's.
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
    /// None of the keys can check a signature here.
    #[error("none of its {0} keys is an EC or RSA key for signatures")]
    NoneUsable(usize),
}

/// The keys of one issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySet(Vec<Key>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    id: Option<String>,
    /// The one algorithm it is for, where the issuer says so.
    algorithm: Option<Algorithm>,
    key: Jwk,
}

impl KeySet {
    /// Reads a JWK set. Keys for encryption, of other kinds and for other algorithms are left out, as RFC 7517, section
    /// 5, asks: an issuer may have them beside those that matter.
    ///
    /// # Errors
    /// It is no JWK set, or no key is left.
    pub fn parse(json: &[u8]) -> Result<Self, KeySetError> {
        let members = parse_strict(json).map_err(KeySetError::Json)?;
        let Some(Value::Array(listed)) = members.get("keys") else { return Err(KeySetError::NoList) };
        if listed.len() > MAX_KEYS {
            return Err(KeySetError::TooMany);
        }
        let usable: Vec<Key> = listed.iter().filter_map(Value::as_object).filter_map(Key::read).collect();
        if usable.is_empty() { Err(KeySetError::NoneUsable(listed.len())) } else { Ok(Self(usable)) }
    }

    /// Whether there is a key for a token with this header.
    pub fn has_for(&self, header: &Header) -> bool {
        self.for_token(header).next().is_some()
    }

    /// The keys that may have signed a token with this header: with a key ID those of that ID; without one the only key
    /// for its algorithm, and none if there are several (OpenID Connect Core 1.0, section 10.1).
    pub fn for_token(&self, header: &Header) -> impl Iterator<Item = &Jwk> {
        let fitting = move |key: &&Key| {
            key.key.fits(header.algorithm) && key.algorithm.is_none_or(|only| only == header.algorithm)
        };
        let ambiguous = header.key_id.is_none() && self.0.iter().filter(fitting).count() > 1;
        let named = move |key: &&Key| match &header.key_id {
            Some(id) => key.id.as_ref() == Some(id),
            None => !ambiguous,
        };
        self.0.iter().filter(fitting).filter(named).map(|key| &key.key)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: a set without keys is not made.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Key {
    fn read(members: &Map<String, Value>) -> Option<Self> {
        let text = |name| members.get(name).map(Value::as_str);
        if text("use").is_some_and(|usage| usage != Some("sig")) {
            return None;
        }
        if let Some(operations) = members.get("key_ops")
            && !operations.as_array()?.iter().any(|operation| operation == "verify")
        {
            return None;
        }
        let key = Jwk::from_json(members).ok()?;
        let algorithm = match text("alg") {
            None => None,
            Some(name) => Some(Algorithm::from_name(name?).filter(|algorithm| key.fits(*algorithm))?),
        };
        let id = match text("kid") {
            None => None,
            Some(id) => Some(id?.to_owned()),
        };
        Some(Self { id, algorithm, key })
    }
}
