//! Believing a JWT-SVID (JWT-SVID, section 5).

use std::time::Duration;

use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::JwtError;
use super::jwk::JwtAuthorities;
use super::jws::Jws;
use crate::id::{SpiffeId, TrustDomain};

/// The `typ` values of a JWT-SVID, besides none (JWT-SVID, section 2.3).
const TYPES: [&str; 2] = ["JWT", "JOSE"];
/// The most audiences a token may name: a bound on what one caller can make us compare.
const MAX_AUDIENCES: usize = 256;

/// A token that was believed by [`validate`]; there is no other way to make one.
#[derive(Debug, Clone)]
#[must_use]
pub struct JwtSvid {
    id: SpiffeId,
    audience: Vec<String>,
    expires_at: OffsetDateTime,
    claims: Map<String, Value>,
}

impl JwtSvid {
    /// Whom it identifies.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.id
    }

    /// For whom it is meant; the verifier is among them.
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// From when on it is no longer valid.
    pub fn expires_at(&self) -> OffsetDateTime {
        self.expires_at
    }

    /// Its own identifier, by which the issuer may know it.
    pub fn token_id(&self) -> Option<&str> {
        self.claims.get("jti").and_then(Value::as_str)
    }

    /// All claims.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// All claims, for an answer that carries them.
    pub fn into_claims(self) -> Map<String, Value> {
        self.claims
    }
}

/// Believes a token meant for `audience`, or says why not, at `now`.
///
/// `authorities` gives the keys of a trust domain; it is asked once, for the domain of the token's subject. `leeway`
/// forgives clocks that disagree, at both ends of the token's life.
///
/// # Errors
/// The first rule that does not hold, in the order of JWT-SVID: algorithm, type, subject, key, signature, audience, time.
pub fn validate<'a>(
    token: &str,
    audience: &str,
    authorities: impl FnOnce(&TrustDomain) -> Option<&'a JwtAuthorities>,
    now: OffsetDateTime,
    leeway: Duration,
) -> Result<JwtSvid, JwtError> {
    let jws = Jws::parse(token)?;
    if jws.header().kind.as_deref().is_some_and(|kind| !TYPES.contains(&kind)) {
        return Err(JwtError::Type);
    }
    let claims = jws.claims()?;
    let subject = claims.get("sub").and_then(Value::as_str).ok_or(JwtError::Member("sub"))?;
    let id = SpiffeId::parse(subject).map_err(JwtError::Subject)?;
    let domain = id.trust_domain();
    let keys = authorities(&domain).filter(|keys| *keys.trust_domain() == domain && !keys.is_empty());
    check_signature(&jws, keys.ok_or(JwtError::UnknownTrustDomain(domain))?)?;

    let named = audiences(&claims)?;
    if !named.iter().any(|name| name == audience) {
        return Err(JwtError::Audience(id));
    }
    let expires_at = numeric_date(&claims, "exp")?.ok_or(JwtError::Member("exp"))?;
    if now >= expires_at.saturating_add(leeway_of(leeway)) {
        return Err(JwtError::Expired(expires_at));
    }
    if let Some(not_before) = numeric_date(&claims, "nbf")?
        && now.saturating_add(leeway_of(leeway)) < not_before
    {
        return Err(JwtError::NotYetValid(not_before));
    }
    Ok(JwtSvid { id, audience: named, expires_at, claims })
}

/// With a key ID exactly that key; without one, which the standard allows, any of the domain's that fits.
fn check_signature(jws: &Jws<'_>, keys: &JwtAuthorities) -> Result<(), JwtError> {
    let unknown = || JwtError::UnknownKey(keys.trust_domain().clone());
    let algorithm = jws.header().algorithm;
    if let Some(key_id) = &jws.header().key_id {
        let key = keys.find(key_id).filter(|key| key.fits(algorithm)).ok_or_else(unknown)?;
        return jws.verify(key);
    }
    let mut fitting = keys.iter().map(|(_, key)| key).filter(|key| key.fits(algorithm)).peekable();
    fitting.peek().ok_or_else(unknown)?;
    fitting.find_map(|key| jws.verify(key).ok()).ok_or(JwtError::Signature)
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, JwtError> {
    let malformed = || JwtError::Member("aud");
    match claims.get("aud") {
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(several)) if (1..=MAX_AUDIENCES).contains(&several.len()) => {
            several.iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(malformed)).collect()
        }
        _ => Err(malformed()),
    }
}

/// The claim `name` as a NumericDate: seconds, perhaps with a fraction (RFC 7519, section 2).
///
/// # Errors
/// It is there and not a number of seconds that a date can have.
pub fn numeric_date(claims: &Map<String, Value>, name: &'static str) -> Result<Option<OffsetDateTime>, JwtError> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let malformed = || JwtError::Member(name);
    if let Some(seconds) = value.as_i64() {
        return OffsetDateTime::from_unix_timestamp(seconds).map(Some).map_err(|_| malformed());
    }
    let seconds = value.as_f64().ok_or_else(malformed)?;
    // Out of range saturates here and is refused there.
    OffsetDateTime::from_unix_timestamp_nanos((seconds * 1e9) as i128).map(Some).map_err(|_| malformed())
}

fn leeway_of(leeway: Duration) -> time::Duration {
    time::Duration::try_from(leeway).unwrap_or(time::Duration::MAX)
}
