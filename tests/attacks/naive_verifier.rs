//! What stolen tokens must succeed against: a verifier that believes what is signed. It takes its keys from the
//! published bundle, checks signatures, and asks nobody.

use serde_json::{Map, Value};
use tether::jwt::{Jwk, Jws};

use crate::orders::Headers;

/// Keys of every use, by key ID.
pub struct NaiveVerifier(Vec<(String, Jwk)>);

impl NaiveVerifier {
    /// With the keys of a bundle.
    pub fn new(bundle: &str) -> Self {
        let bundle: Value = serde_json::from_str(bundle).unwrap();
        let keys = bundle["keys"].as_array().unwrap().iter().filter_map(Value::as_object);
        let named = |key: &Map<String, Value>| {
            let id = key.get("kid")?.as_str()?.to_owned();
            Some((id, Jwk::from_json(key).ok()?))
        };
        Self(keys.filter_map(named).collect())
    }

    /// Whether a token is signed by the trust domain.
    pub fn believes(&self, token: &str) -> bool {
        let Ok(jws) = Jws::parse(token) else { return false };
        let named = |(id, _): &&(String, Jwk)| jws.header().key_id.as_deref() == Some(id.as_str());
        self.0.iter().find(named).is_some_and(|(_, key)| jws.verify(key).is_ok())
    }

    /// Whether a request carries such a token, and beside it a proof by the token's key.
    pub fn believes_request(&self, headers: &Headers) -> bool {
        let wit = headers.get("Workload-Identity-Token").or_else(|| headers.get("Authorization"));
        let Some(wit) = wit.map(|value| value.trim_start_matches("Bearer ")) else { return false };
        if !self.believes(wit) {
            return false;
        }
        let proof = headers.get("Authorization").and_then(|value| value.strip_prefix("WPT "));
        // A token without a key proves nothing more, and is believed all the same.
        let Some((proof, key)) = proof.zip(confirmed_key(wit)) else { return true };
        Jws::parse(proof).is_ok_and(|jws| jws.verify(&key).is_ok())
    }
}

fn confirmed_key(wit: &str) -> Option<Jwk> {
    let claims = Jws::parse(wit).ok()?.claims().ok()?;
    Jwk::from_json(claims.get("cnf")?.get("jwk")?.as_object()?).ok()
}
