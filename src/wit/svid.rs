//! Believing a WIT-SVID (WIT-SVID, sections 2, 3 and 6.2).

use std::time::Duration;

use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{Confirmation, WIT_TYPE, WitAuthorities, WitError};
use crate::id::{SpiffeId, TrustDomain};
use crate::jwt::{Jws, numeric_date};

/// A WIT-SVID that was believed by [`validate`]; there is no other way to make one.
///
/// It says whom a key belongs to. It does not say that whoever showed it is that workload: it is public, and copies of
/// it prove nothing. Authenticate by checking a proof made with [`WitSvid::confirmation`], and never without one
/// (section 7.1).
#[derive(Debug, Clone)]
#[must_use = "a WIT-SVID alone authenticates nobody: check a proof with its confirmation key"]
pub struct WitSvid {
    id: SpiffeId,
    confirmation: Confirmation,
    key_id: String,
    expires_at: OffsetDateTime,
    claims: Map<String, Value>,
}

impl WitSvid {
    /// Whom the confirmation key belongs to.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.id
    }

    /// The key that proofs are checked with, and the one algorithm they may use.
    pub fn confirmation(&self) -> &Confirmation {
        &self.confirmation
    }

    /// The ID of the authority's key that signed it.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// From when on it is no longer valid.
    pub fn expires_at(&self) -> OffsetDateTime {
        self.expires_at
    }

    /// Its own identifier, by which the issuer may know it. It says nothing about replay: one WIT is shown many times
    /// (section 3.3).
    pub fn token_id(&self) -> Option<&str> {
        self.claims.get("jti").and_then(Value::as_str)
    }

    /// All claims.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }
}

/// Believes a WIT-SVID at `now`, or says why not.
///
/// `authorities` gives the WIT keys of a trust domain; it is asked once, for the domain of the token's subject.
/// `leeway` forgives a clock that is ahead at the end of the token's life; the standard gives none at its beginning
/// (section 3.5), and `iat` is never looked at (section 3.6).
///
/// # Errors
/// The first rule that does not hold, in the order of WIT-SVID: header, subject, key, signature, claims, time.
pub fn validate<'a>(
    token: &str,
    authorities: impl FnOnce(&TrustDomain) -> Option<&'a WitAuthorities>,
    now: OffsetDateTime,
    leeway: Duration,
) -> Result<WitSvid, WitError> {
    let jws = Jws::parse(token)?;
    let key_id = key_id(&jws)?.to_owned();
    let claims = jws.claims()?;
    let id = subject(&claims)?;
    let domain = id.trust_domain();
    let keys = authorities(&domain).filter(|keys| *keys.trust_domain() == domain && !keys.is_empty());
    let keys = keys.ok_or_else(|| WitError::UnknownTrustDomain(domain.clone()))?;
    let key = keys.find(&key_id).filter(|key| key.fits(jws.header().algorithm));
    jws.verify(key.ok_or(WitError::UnknownKey(domain))?)?;

    let (confirmation, expires_at) = body(&claims)?;
    let forgiven = time::Duration::try_from(leeway).unwrap_or(time::Duration::MAX);
    if now >= expires_at.saturating_add(forgiven) {
        return Err(WitError::Expired(expires_at));
    }
    if let Some(not_before) = numeric_date(&claims, "nbf")?
        && now < not_before
    {
        return Err(WitError::NotYetValid(not_before));
    }
    Ok(WitSvid { id, confirmation, key_id, expires_at, claims })
}

/// What a WIT-SVID says of itself, with nothing proven: for the workload it was issued to, which trusts whom it has it
/// from. Whoever is shown one takes [`validate`].
#[derive(Debug, Clone)]
pub struct UnverifiedWit {
    /// Whom it says the key belongs to.
    pub spiffe_id: SpiffeId,
    /// The key it speaks of.
    pub confirmation: Confirmation,
    /// From when on it is no longer valid.
    pub expires_at: OffsetDateTime,
}

impl UnverifiedWit {
    /// Reads a token without its signature.
    ///
    /// # Errors
    /// It breaks a rule about its form.
    pub fn read(token: &str) -> Result<Self, WitError> {
        let jws = Jws::parse(token)?;
        key_id(&jws)?;
        let claims = jws.claims()?;
        let (confirmation, expires_at) = body(&claims)?;
        Ok(Self { spiffe_id: subject(&claims)?, confirmation, expires_at })
    }
}

/// The key ID in the header of what says that it is a WIT (sections 2.1 and 2.2).
fn key_id<'a>(jws: &'a Jws<'_>) -> Result<&'a str, WitError> {
    if jws.header().kind.as_deref() != Some(WIT_TYPE) {
        return Err(WitError::Type);
    }
    jws.header().key_id.as_deref().filter(|key_id| !key_id.is_empty()).ok_or(WitError::Member("kid"))
}

fn subject(claims: &Map<String, Value>) -> Result<SpiffeId, WitError> {
    let subject = claims.get("sub").and_then(Value::as_str).ok_or(WitError::Member("sub"))?;
    SpiffeId::parse(subject).map_err(WitError::Subject)
}

/// The confirmation key and the end of a token that is for no audience (sections 3.2, 3.4 and 3.8).
fn body(claims: &Map<String, Value>) -> Result<(Confirmation, OffsetDateTime), WitError> {
    if claims.contains_key("aud") {
        return Err(WitError::Audience);
    }
    let confirmation = Confirmation::parse(claims.get("cnf").ok_or(WitError::Member("cnf"))?)?;
    Ok((confirmation, numeric_date(claims, "exp")?.ok_or(WitError::Member("exp"))?))
}
