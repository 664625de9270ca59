//! The rules for a token, in the order they are checked. Pure: no clock, no network.

use serde_json::{Map, Value};
use time::{Duration, OffsetDateTime};

use super::IssuerSettings;
use super::keyset::KeySet;
use crate::jwt::{Header, Jws, JwtError, numeric_date};
use crate::user::{User, UserError, UserProof};

/// How far the issuer's clock may be ahead of ours. It is not granted at the token's end: a user whose token has
/// expired has ended.
const LEEWAY: Duration = Duration::seconds(10);
/// The longest `sub` (OpenID Connect Core 1.0, section 2), and the longest of the other texts that are kept.
const MAX_TEXT: usize = 255;
/// The most audiences that are compared.
const MAX_AUDIENCES: usize = 64;
/// `typ` of an ID token and of an access token (RFC 9068, section 2.1), besides none. What tether signs itself, logout
/// tokens and security events say otherwise, and prove no user.
const TYPES: [&str; 3] = ["JWT", "at+jwt", "application/at+jwt"];

/// Who the token says has made it. Nothing is proven yet; it decides whose rules and keys are used.
pub(super) fn issuer(claims: &Map<String, Value>) -> Result<&str, UserError> {
    claims.get("iss").and_then(Value::as_str).ok_or(UserError::Claim("iss"))
}

/// The algorithm is one that this issuer may use, and the token is of a kind that speaks of users.
pub(super) fn check_header(header: &Header, settings: &IssuerSettings) -> Result<(), UserError> {
    if !settings.algorithms.contains(&header.algorithm) {
        return Err(UserError::Algorithm(header.algorithm.name()));
    }
    let known = |kind: &str| TYPES.iter().any(|known| known.eq_ignore_ascii_case(kind));
    if header.kind.as_deref().is_some_and(|kind| !known(kind)) {
        return Err(UserError::Type);
    }
    Ok(())
}

/// One of the issuer's keys that are for this token made the signature.
pub(super) fn check_signature(jws: &Jws<'_>, keys: &KeySet) -> Result<(), UserError> {
    let mut candidates = keys.for_token(jws.header()).peekable();
    candidates.peek().ok_or(UserError::UnknownKey)?;
    if candidates.any(|key| jws.verify(key).is_ok()) { Ok(()) } else { Err(UserError::Signature) }
}

/// The person, if the claims of a token that was signed by `issuer` hold now.
pub(super) fn believe(
    claims: &Map<String, Value>,
    issuer: &str,
    settings: &IssuerSettings,
    now: OffsetDateTime,
) -> Result<User, UserError> {
    check_audience(claims, settings)?;
    let expires_at = check_times(claims, settings, now)?;
    let subject = text(claims, "sub")?.ok_or(UserError::Claim("sub"))?;
    if subject.starts_with("spiffe://") {
        return Err(UserError::Workload);
    }
    let proof = UserProof::Token { expires_at, session: text(claims, "sid")?, context: text(claims, "acr")? };
    Ok(User { issuer: issuer.to_owned(), subject, proof })
}

/// The token is for us. For us alone: a token that others take as well may have been presented to one of them, who
/// could go on and present it here. If its issuer says for which client it was made, that may stand in for this.
fn check_audience(claims: &Map<String, Value>, settings: &IssuerSettings) -> Result<(), UserError> {
    let audiences = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(several)) if (1..=MAX_AUDIENCES).contains(&several.len()) => {
            several.iter().map(|one| one.as_str().ok_or(UserError::Claim("aud"))).collect::<Result<_, _>>()?
        }
        _ => return Err(UserError::Claim("aud")),
    };
    if !audiences.contains(&settings.audience.as_str()) {
        return Err(UserError::Audience);
    }
    let alone = audiences.iter().all(|audience| *audience == settings.audience);
    let party = text(claims, "azp")?;
    let listed = party.as_ref().is_some_and(|party| settings.authorized_parties.contains(party));
    let ours = party.is_some_and(|party| party == settings.audience);
    match (alone, settings.authorized_parties.is_empty()) {
        (true, true) => Ok(()),
        (true, false) if listed => Ok(()),
        (false, _) if listed || ours => Ok(()),
        _ => Err(UserError::AuthorizedParty),
    }
}

/// When the user ends by the clock.
fn check_times(
    claims: &Map<String, Value>,
    settings: &IssuerSettings,
    now: OffsetDateTime,
) -> Result<OffsetDateTime, UserError> {
    let date = |name| numeric_date(claims, name).map_err(|_: JwtError| UserError::Claim(name));
    let expires_at = date("exp")?.ok_or(UserError::Claim("exp"))?;
    if now >= expires_at {
        return Err(UserError::Expired(expires_at));
    }
    let issued_at = date("iat")?;
    for begins in [date("nbf")?, issued_at].into_iter().flatten() {
        if now.saturating_add(LEEWAY) < begins {
            return Err(UserError::NotYetValid(begins));
        }
    }
    if let Some(max_age) = settings.max_age {
        let issued_at = issued_at.ok_or(UserError::Claim("iat"))?;
        if now > later(issued_at, max_age).saturating_add(LEEWAY) {
            return Err(UserError::TooOld(issued_at));
        }
    }
    Ok(settings.max_ttl.map_or(expires_at, |max_ttl| expires_at.min(later(now, max_ttl))))
}

/// A claim that is kept and shown: printable ASCII, of a length that fits everywhere.
fn text(claims: &Map<String, Value>, name: &'static str) -> Result<Option<String>, UserError> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let text = value.as_str().ok_or(UserError::Claim(name))?;
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let sane = printable && (1..=MAX_TEXT).contains(&text.len()) && text.trim() == text;
    if sane { Ok(Some(text.to_owned())) } else { Err(UserError::Claim(name)) }
}

fn later(time: OffsetDateTime, by: std::time::Duration) -> OffsetDateTime {
    time.saturating_add(Duration::try_from(by).unwrap_or(Duration::MAX))
}
