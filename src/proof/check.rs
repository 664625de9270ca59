//! Checking proofs, each rule in its turn: first what the proof stands on, then the proof.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::make::{BodyDigest, DPOP, WPT, hash};
use super::session::SessionClaims;
use super::uri::{Method, TargetUri};
use super::{LIFETIME, ProofError};
use crate::id::TrustDomain;
use crate::jwt::{Jwk, Jws, JwtError, parse_strict};
use crate::wit::{WitAuthorities, WitSession, WitSvid};

/// The longest `jti` that is remembered.
const MAX_JTI: usize = 128;
/// Members that only private keys have (RFC 7518, section 6).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// What a verifier expects of a proof: all of it from its own configuration and the request line, nothing from the proof.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// Where the verifier serves the request: never made from the request's `Host` or a forwarding header.
    pub uri: &'a TargetUri,
    /// The digest of the body, where the proof must cover it.
    pub body: Option<BodyDigest>,
}

/// What a request carries.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// The header `Workload-Identity-Token`.
    pub wit: &'a str,
    /// The token after `WPT` in the only header `Authorization`.
    pub proof: &'a str,
    /// The header `Txn-Token`, where there is one: the proof must cover it.
    pub txn_token: Option<&'a str>,
}

/// A Workload Proof Token that holds, and the WIT it stands on. It says nothing of replay: see [`super::ReplayCache`].
#[derive(Debug)]
#[must_use = "a proof that holds can still be a replay"]
pub struct CheckedProof {
    /// Who sent the request, and until when that is certified.
    pub wit: WitSvid,
    /// The thumbprint (RFC 7638) of the key that signed.
    pub thumbprint: String,
    /// The proof's own id.
    pub jti: String,
    /// When it was made, as far as is known: what it says, or else as early as it can have been.
    pub made_at: OffsetDateTime,
    /// When it ends.
    pub expires_at: OffsetDateTime,
    /// What it says of the session it was made in; the WIT says the same of whose it is.
    pub session: Option<SessionClaims>,
}

/// Checks a Workload Proof Token and the WIT it goes with (draft-ietf-wimse-wpt-02).
///
/// `authorities` gives the WIT keys of a trust domain. `leeway` forgives clocks that disagree.
///
/// # Errors
/// The first rule that does not hold: the WIT; the proof's type, algorithm and signature, by the WIT's key alone; URI,
/// method, time, WIT hash, other tokens, body.
pub fn check_wpt<'a>(
    presented: Presented<'_>,
    expected: Expected<'_>,
    authorities: impl FnOnce(&TrustDomain) -> Option<&'a WitAuthorities>,
    now: OffsetDateTime,
    leeway: Duration,
) -> Result<CheckedProof, ProofError> {
    let wit = crate::wit::validate(presented.wit, authorities, now, leeway).map_err(ProofError::Wit)?;
    let key = wit.confirmation();

    let jws = Jws::parse(presented.proof).map_err(ProofError::Jws)?;
    if jws.header().kind.as_deref() != Some(WPT) {
        return Err(ProofError::Type(WPT));
    }
    if jws.header().algorithm != key.algorithm() {
        return Err(ProofError::Algorithm);
    }
    jws.verify(key.key()).map_err(ProofError::Jws)?;

    let claims = jws.claims().map_err(ProofError::Jws)?;
    same_uri(text(&claims, "aud")?, expected.uri)?;
    same_method(&claims, expected.method)?;
    let expires_at = date(&claims, "exp")?.ok_or(ProofError::Claim("exp"))?;
    let issued_at = date(&claims, "iat")?;
    in_time(issued_at.unwrap_or(now), expires_at, now, leeway)?;
    let jti = jti(&claims)?;
    if text(&claims, "wth")? != hash(presented.wit) {
        return Err(ProofError::WitHash);
    }
    other_tokens(&claims, presented.txn_token)?;
    same_body(&claims, expected.body)?;

    let session = SessionClaims::of(&claims).map_err(|_| ProofError::Claim("tether"))?;
    let of_wit = WitSession::of(wit.claims()).map_err(|_| ProofError::Claim("tether"))?;
    if session.as_ref().map(|proof| &proof.tether.sid) != of_wit.as_ref().map(|wit| &wit.sid) {
        return Err(ProofError::Session);
    }

    let made_at = issued_at.unwrap_or(expires_at - LIFETIME);
    Ok(CheckedProof { thumbprint: key.key().thumbprint(), wit, jti, made_at, expires_at, session })
}

/// A DPoP proof that holds. It says nothing of replay.
#[derive(Debug)]
#[must_use = "a proof that holds can still be a replay"]
pub struct CheckedDpop {
    /// The thumbprint (RFC 7638) of the key that signed.
    pub thumbprint: String,
    /// The proof's own id.
    pub jti: String,
    /// When it was made.
    pub made_at: OffsetDateTime,
    /// The nonce it carries.
    pub nonce: Option<String>,
}

/// Checks a DPoP proof for an access token that is bound to the key with the thumbprint `jkt` (its claim `cnf.jkt`).
///
/// `nonce` is what the server gave out, where it asks for one.
///
/// # Errors
/// The first rule of RFC 9449, section 4.3, that does not hold.
pub fn check_dpop(
    proof: &str,
    expected: Expected<'_>,
    access_token: &str,
    jkt: &str,
    nonce: Option<&str>,
    now: OffsetDateTime,
    leeway: Duration,
) -> Result<CheckedDpop, ProofError> {
    let jws = Jws::parse(proof).map_err(ProofError::Jws)?;
    if jws.header().kind.as_deref() != Some(DPOP) {
        return Err(ProofError::Type(DPOP));
    }
    // The one kind of proof that brings its key. The thumbprint says which key that must be.
    let key = key_in_header(proof)?;
    if !key.fits(jws.header().algorithm) {
        return Err(ProofError::Algorithm);
    }
    let thumbprint = key.thumbprint();
    if thumbprint != jkt {
        return Err(ProofError::Binding);
    }
    jws.verify(&key).map_err(ProofError::Jws)?;

    let claims = jws.claims().map_err(ProofError::Jws)?;
    let jti = jti(&claims)?;
    same_method(&claims, expected.method)?;
    same_uri(text(&claims, "htu")?, expected.uri)?;
    let made_at = date(&claims, "iat")?.ok_or(ProofError::Claim("iat"))?;
    in_time(made_at, made_at.saturating_add(long(LIFETIME)), now, leeway)?;
    let carried = claims.get("nonce").map(|nonce| nonce.as_str().ok_or(ProofError::Claim("nonce"))).transpose()?;
    if nonce.is_some() && carried != nonce {
        return Err(ProofError::Nonce);
    }
    if text(&claims, "ath")? != hash(access_token) {
        return Err(ProofError::TokenHash);
    }
    same_body(&claims, expected.body)?;
    Ok(CheckedDpop { thumbprint, jti, made_at, nonce: carried.map(str::to_owned) })
}

/// The public key that a DPoP proof carries (RFC 9449, section 4.2).
fn key_in_header(proof: &str) -> Result<Jwk, ProofError> {
    let header = proof.split('.').next().unwrap_or_default();
    let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| ProofError::Jws(JwtError::NotCompact))?;
    let header = parse_strict(&header).map_err(|source| ProofError::Jws(JwtError::Json { part: "header", source }))?;
    let jwk = header.get("jwk").and_then(Value::as_object).ok_or(ProofError::Key)?;
    if PRIVATE.iter().any(|member| jwk.contains_key(*member)) {
        return Err(ProofError::Key);
    }
    Jwk::from_json(jwk).map_err(|_| ProofError::Key)
}

fn same_uri(claimed: &str, expected: &TargetUri) -> Result<(), ProofError> {
    // What is no target is not the one that is meant.
    let same = TargetUri::parse(claimed).is_ok_and(|claimed| claimed == *expected);
    if same { Ok(()) } else { Err(ProofError::Uri) }
}

fn same_method(claims: &Map<String, Value>, expected: &Method) -> Result<(), ProofError> {
    if text(claims, "htm")? == expected.as_str() { Ok(()) } else { Err(ProofError::Method) }
}

/// A proof is made now and good for a moment: neither end of its life may be far from here.
fn in_time(
    made_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    now: OffsetDateTime,
    leeway: Duration,
) -> Result<(), ProofError> {
    let leeway = long(leeway);
    if now >= expires_at.saturating_add(leeway) {
        return Err(ProofError::Expired(expires_at));
    }
    let latest = now.saturating_add(leeway);
    if made_at > latest || expires_at > latest.saturating_add(long(LIFETIME)) {
        return Err(ProofError::TooLong);
    }
    Ok(())
}

/// Whether the proof covers the other tokens of the request, and only such as are known here: `tth` for a transaction
/// token, and nothing in `oth`, which names tokens of any other kind.
fn other_tokens(claims: &Map<String, Value>, txn_token: Option<&str>) -> Result<(), ProofError> {
    let covered = match claims.get("tth") {
        None => None,
        Some(claimed) => Some(claimed.as_str().ok_or(ProofError::Claim("tth"))?),
    };
    if covered != txn_token.map(hash).as_deref() {
        return Err(ProofError::OtherToken);
    }
    match claims.get("oth") {
        None => Ok(()),
        Some(Value::Object(others)) if others.is_empty() => Ok(()),
        Some(Value::Object(_)) => Err(ProofError::OtherToken),
        Some(_) => Err(ProofError::Claim("oth")),
    }
}

fn same_body(claims: &Map<String, Value>, expected: Option<BodyDigest>) -> Result<(), ProofError> {
    let Some(expected) = expected else { return Ok(()) };
    let covered = claims.get("body_sha256").and_then(Value::as_str);
    if covered == Some(expected.encoded().as_str()) { Ok(()) } else { Err(ProofError::Body) }
}

fn jti(claims: &Map<String, Value>) -> Result<String, ProofError> {
    let jti = text(claims, "jti")?;
    if (1..=MAX_JTI).contains(&jti.len()) { Ok(jti.to_owned()) } else { Err(ProofError::Claim("jti")) }
}

fn text<'a>(claims: &'a Map<String, Value>, name: &'static str) -> Result<&'a str, ProofError> {
    claims.get(name).and_then(Value::as_str).ok_or(ProofError::Claim(name))
}

fn date(claims: &Map<String, Value>, name: &'static str) -> Result<Option<OffsetDateTime>, ProofError> {
    crate::jwt::numeric_date(claims, name).map_err(|_| ProofError::Claim(name))
}

fn long(duration: Duration) -> time::Duration {
    time::Duration::try_from(duration).unwrap_or(time::Duration::MAX)
}
