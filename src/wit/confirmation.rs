//! The key a WIT-SVID speaks of (WIT-SVID, section 3.2; RFC 7800, section 3.2).

use serde::ser::{Serialize, Serializer};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::jwt::{Algorithm, Jwk, JwkError};

/// Members of a JWK that are secret: of EC and RSA keys, and of symmetric ones (RFC 7518, section 6).
const SECRET: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
/// Other ways to name a key (RFC 7800, section 3.1: there is one).
const OTHER_KEYS: [&str; 2] = ["jwe", "jku"];

/// Why a confirmation key cannot be used.
#[derive(Debug, Error)]
pub enum ConfirmationError {
    /// `cnf` has no `jwk` that is an object: a thumbprint alone is no key.
    #[error("there is no `jwk` in `cnf`")]
    NoKey,
    /// `cnf` names a second key.
    #[error("`cnf` names more than one key")]
    SecondKey,
    /// The key has a private part, which is now known to everyone who saw the token.
    #[error("the key is not a public key: it has the member `{0}`")]
    Private(&'static str),
    /// `alg` is absent, or none of the nine of the standard.
    #[error("`alg` is none of the nine of the standard")]
    Algorithm,
    /// `alg` is for another kind of key.
    #[error("`alg` is `{}`, which is for another kind of key", .0.name())]
    Unfit(Algorithm),
    /// The key itself cannot be used.
    #[error(transparent)]
    Key(#[from] JwkError),
}

/// The public key whose holder a WIT-SVID names, and the one algorithm its proofs are signed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmation {
    key: Jwk,
    algorithm: Algorithm,
}

impl Confirmation {
    /// A key with the algorithm that keys of its kind sign with here (see [`Jwk::algorithm`]).
    pub fn of(key: Jwk) -> Self {
        let algorithm = key.algorithm();
        Self { key, algorithm }
    }

    /// A key and an algorithm that is for it.
    ///
    /// # Errors
    /// The algorithm is for another kind of key.
    pub fn new(key: Jwk, algorithm: Algorithm) -> Result<Self, ConfirmationError> {
        if key.fits(algorithm) { Ok(Self { key, algorithm }) } else { Err(ConfirmationError::Unfit(algorithm)) }
    }

    /// Reads the value of a `cnf` claim.
    pub(super) fn parse(cnf: &Value) -> Result<Self, ConfirmationError> {
        let jwk = cnf.get("jwk").and_then(Value::as_object).ok_or(ConfirmationError::NoKey)?;
        if OTHER_KEYS.into_iter().any(|other| cnf.get(other).is_some()) {
            return Err(ConfirmationError::SecondKey);
        }
        if let Some(secret) = SECRET.into_iter().find(|name| jwk.contains_key(*name)) {
            return Err(ConfirmationError::Private(secret));
        }
        let algorithm = jwk.get("alg").and_then(Value::as_str).and_then(Algorithm::from_name);
        Self::new(Jwk::from_json(jwk)?, algorithm.ok_or(ConfirmationError::Algorithm)?)
    }

    /// The key.
    pub fn key(&self) -> &Jwk {
        &self.key
    }

    /// The algorithm. A proof signed in another way is none.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The members of its JWK: the key's own and `alg`.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut jwk = self.key.to_json();
        jwk.insert("alg".to_owned(), self.algorithm.name().into());
        jwk
    }
}

/// As the value of `cnf`.
impl Serialize for Confirmation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let cnf: [(&str, Map<String, Value>); 1] = [("jwk", self.to_json())];
        serializer.collect_map(cnf)
    }
}
