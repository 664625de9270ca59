//! JWT documents: signed tokens and the keys that check them (JWT-SVID, RFC 7515, RFC 7517).
//!
//! Promises: compact serialization only, the nine algorithms of the standard and no other, checked before anything else
//! and against the kind of key; no member name twice; keys only from the authorities of the subject's trust domain,
//! never from the token.
//!
//! Does not: remember tokens (replay is not this document's business), read clocks, or decide who may have a token.

mod jwk;
mod jws;
mod private;
mod signer;
mod strict;
mod svid;
#[cfg(test)]
pub(crate) mod tests;

use thiserror::Error;
use time::OffsetDateTime;

pub use jwk::{Jwk, JwkError, JwtAuthorities};
pub use jws::{Algorithm, Header, Jws, MAX_TOKEN_BYTES};
pub use private::{private_jwk, read_private_jwk};
pub use signer::{EncodedHeader, JwtClaims, JwtSigner, serialize_numeric_date};
pub use strict::{StrictJsonError, parse_strict};
pub use svid::{JwtSvid, numeric_date, validate};

use crate::id::{IdError, SpiffeId, TrustDomain};

/// Why a token is refused, or cannot be signed.
#[derive(Debug, Error)]
pub enum JwtError {
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// Not three parts of unpadded base64url.
    #[error("not a JWS in compact serialization")]
    NotCompact,
    /// The header or the claims are not one JSON object with each name once.
    #[error("the {part} is not a JSON object")]
    Json {
        /// `header` or `claims`.
        part: &'static str,
        /// What is wrong with it.
        #[source]
        source: StrictJsonError,
    },
    /// `alg` is absent, or none of the nine of the standard.
    #[error("the algorithm is not one of RS256, RS384, RS512, ES256, ES384, ES512, PS256, PS384 and PS512")]
    Algorithm,
    /// `crit` names extensions; none is understood here.
    #[error("the token demands extensions (`crit`) that are not supported")]
    Critical,
    /// `typ` is not one of those allowed for this kind of token.
    #[error("the token is of another type")]
    Type,
    /// A member of header or claims is absent or of the wrong type.
    #[error("`{0}` is absent or malformed")]
    Member(&'static str),
    /// `sub` is not a SPIFFE ID.
    #[error("the subject is not a SPIFFE ID")]
    Subject(#[source] IdError),
    /// There are no keys for the subject's trust domain.
    #[error("there are no JWT authorities for trust domain `{0}`")]
    UnknownTrustDomain(TrustDomain),
    /// No authority of the subject's trust domain has the token's key ID, or fits its algorithm.
    #[error("no JWT authority of trust domain `{0}` fits this token")]
    UnknownKey(TrustDomain),
    /// The signature does not hold.
    #[error("the signature is wrong")]
    Signature,
    /// The verifier's audience is not among the token's.
    #[error("the token of `{0}` is not meant for this audience")]
    Audience(SpiffeId),
    /// The token is past its end.
    #[error("the token expired at {0}")]
    Expired(OffsetDateTime),
    /// The token is not valid yet.
    #[error("the token is valid only from {0}")]
    NotYetValid(OffsetDateTime),
    /// A key cannot sign tokens.
    #[error("this key cannot sign tokens")]
    SigningKey,
}

/// Entry point for fuzzing: reads arbitrary text as a token.
#[doc(hidden)]
pub fn fuzz_token(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(jws) = Jws::parse(text)
    {
        let _ = jws.claims();
    }
}
