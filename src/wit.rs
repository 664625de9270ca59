//! WIT-SVIDs: signed statements that name a workload and the key it holds (WIT-SVID, incubating; WIMSE workload
//! credentials).
//!
//! Promises: everything [`crate::jwt`] promises about tokens, and beyond it: the type, the key ID and the confirmation
//! key are always there; only keys published for WIT-SVIDs (`use: wit-svid`, [`WitAuthorities`]) are believed; a
//! confirmation key is public and fits its algorithm.
//!
//! Does not: authenticate anybody. A WIT-SVID is no bearer token: whoever shows one has to prove that it holds the
//! confirmation key (sections 4 and 7.1), by a proof that is made and checked elsewhere. It never travels in an HTTP
//! `Authorization` header (section 5).

mod confirmation;
mod session;
mod svid;
#[cfg(test)]
mod tests;

use serde::Serialize;
use thiserror::Error;
use time::OffsetDateTime;

pub use confirmation::{Confirmation, ConfirmationError};
pub use session::WitSession;
pub use svid::{UnverifiedWit, WitSvid, validate};

use crate::id::{IdError, SpiffeId, TrustDomain};
use crate::jwt::{Jwk, JwtAuthorities, JwtError, JwtSigner, serialize_numeric_date};
use crate::x509::PrivateKey;

/// `typ` of every WIT-SVID, to the letter (section 2.2).
pub const WIT_TYPE: &str = "wit+jwt";

/// Why a WIT-SVID is not believed.
#[derive(Debug, Error)]
pub enum WitError {
    /// It is not a token that this software reads, or its signature is wrong.
    #[error(transparent)]
    Token(#[from] JwtError),
    /// `typ` is absent or not `wit+jwt`.
    #[error("the token is not a WIT: its `typ` is not `{WIT_TYPE}`")]
    Type,
    /// A member of header or claims is absent or of the wrong type.
    #[error("`{0}` is absent or malformed")]
    Member(&'static str),
    /// `sub` is not a SPIFFE ID.
    #[error("the subject is not a SPIFFE ID")]
    Subject(#[source] IdError),
    /// It names an audience, which only other kinds of tokens have (section 3.8).
    #[error("a WIT has no `aud`")]
    Audience,
    /// `cnf` is absent, or holds no key that can be used (section 3.2).
    #[error("the confirmation key (`cnf.jwk`) cannot be used")]
    Confirmation(#[from] ConfirmationError),
    /// There are no WIT keys for the subject's trust domain.
    #[error("there are no WIT authorities for trust domain `{0}`")]
    UnknownTrustDomain(TrustDomain),
    /// No WIT authority of the subject's trust domain has the token's key ID and fits its algorithm.
    #[error("no WIT authority of trust domain `{0}` fits this token")]
    UnknownKey(TrustDomain),
    /// The token is past its end.
    #[error("the WIT expired at {0}")]
    Expired(OffsetDateTime),
    /// The token is not valid yet.
    #[error("the WIT is valid only from {0}")]
    NotYetValid(OffsetDateTime),
}

/// The keys one trust domain signs WIT-SVIDs with, by key ID (section 6).
///
/// A type of its own, so that keys of JWT-SVIDs are never asked about a WIT or the reverse (section 6.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitAuthorities(JwtAuthorities);

impl WitAuthorities {
    /// The keys of `domain`; of two with one key ID the later counts.
    pub fn new(domain: TrustDomain, keys: impl IntoIterator<Item = (String, Jwk)>) -> Self {
        Self(JwtAuthorities::new(domain, keys))
    }

    /// The trust domain they speak for.
    pub fn trust_domain(&self) -> &TrustDomain {
        self.0.trust_domain()
    }

    /// The key of that ID.
    pub fn find(&self, key_id: &str) -> Option<&Jwk> {
        self.0.find(key_id)
    }

    /// The keys with their IDs, in the order of these.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Jwk)> {
        self.0.iter()
    }

    /// Whether there are none: then nothing the trust domain says is a WIT-SVID (section 6.2).
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The claims of a WIT-SVID (section 3), written in this order: never an `aud`, and no `iss`, which a reader could
/// take for an OpenID Connect issuer (section 3.7). Times are cut to whole seconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct WitClaims<'a> {
    /// Whom it names.
    pub sub: &'a SpiffeId,
    /// From when on it is no longer valid.
    #[serde(serialize_with = "serialize_numeric_date")]
    pub exp: OffsetDateTime,
    /// When it was issued.
    #[serde(serialize_with = "serialize_numeric_date")]
    pub iat: OffsetDateTime,
    /// Its own identifier: for the ledger, never to detect replay (section 3.3).
    pub jti: &'a str,
    /// The key its subject holds.
    pub cnf: &'a Confirmation,
    /// The session it belongs to.
    #[serde(rename = "tether", skip_serializing_if = "Option::is_none")]
    pub session: Option<&'a WitSession>,
}

/// A key that signs WIT-SVIDs; see [`JwtSigner`].
#[derive(Debug)]
pub struct WitSigner(JwtSigner);

impl WitSigner {
    /// Signs with `key`; its thumbprint (RFC 7638) is the key ID.
    pub fn new(key: &PrivateKey) -> Result<Self, JwtError> {
        JwtSigner::with_type(key, WIT_TYPE).map(Self)
    }

    /// The key ID in every token's header.
    pub fn key_id(&self) -> &str {
        self.0.key_id()
    }

    /// The key that checks these tokens.
    pub fn public_key(&self) -> &Jwk {
        self.0.public_key()
    }

    /// Signs `claims` and returns the compact token.
    pub fn sign(&self, claims: &WitClaims<'_>) -> Result<String, JwtError> {
        self.0.sign(claims)
    }
}

/// Entry point for fuzzing: reads arbitrary text as a WIT-SVID signed by the one key there is. What is believed keeps
/// the rules that make it one.
#[doc(hidden)]
pub fn fuzz_wit(bytes: &[u8], authorities: &WitAuthorities, now: OffsetDateTime) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let find = |domain: &TrustDomain| (domain == authorities.trust_domain()).then_some(authorities);
    let Ok(wit) = validate(text, find, now, std::time::Duration::ZERO) else { return false };
    assert!(wit.spiffe_id().is_member_of(authorities.trust_domain()), "of the keys' trust domain");
    assert!(wit.confirmation().key().fits(wit.confirmation().algorithm()), "a key that fits its algorithm");
    assert!(wit.expires_at() > now && !wit.claims().contains_key("aud"), "not over, and for nobody in particular");
    true
}
