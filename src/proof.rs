//! Proofs: signed statements that one HTTP request comes from whoever has the key of a credential.
//!
//! Two kinds: the WIMSE Workload Proof Token (draft-ietf-wimse-wpt-02), for a WIT, and DPoP (RFC 9449), for an OAuth
//! access token that is bound to a key.
//!
//! Promises: a proof is made of a method and a URI that were parsed, and of nothing else a caller could choose; it lives
//! 30 seconds at most. Checking trusts no key in the header of a WPT, compares URIs in one normal form, and requires the
//! method, for which our WPTs carry the private claim `htm`, and `body_sha256` where the verifier asks for the body.
//!
//! Does not: read clocks, do I/O, or remember. [`ReplayCache`] remembers, for whoever keeps one.

mod check;
mod make;
mod replay;
mod session;
#[cfg(test)]
mod tests;
mod uri;

use std::time::Duration;

use thiserror::Error;
use time::OffsetDateTime;

use crate::jwt::JwtError;
use crate::wit::WitError;

pub use check::{CheckedDpop, CheckedProof, Expected, Presented, check_dpop, check_wpt};
pub use make::{BodyDigest, ProofKey, ProofTarget, SignedProof};
pub use replay::{ReplayCache, ReplayError, ReplayLimits};
pub use session::{Actor, SessionClaims, SubjectId, TetherClaims};
pub use uri::{Method, TargetError, TargetUri, UriPrefix};

/// How long a proof of ours is good, and the longest life that is accepted of anybody's.
pub const LIFETIME: Duration = Duration::from_secs(30);

/// Why a proof is refused. The first rule that does not hold, in the order in which they are checked.
#[derive(Debug, Error)]
pub enum ProofError {
    /// The WIT is absent, or is not good.
    #[error("the WIT is not valid")]
    Wit(#[source] WitError),
    /// The proof is not a JWS, demands extensions, or its signature is wrong.
    #[error("the proof is not valid")]
    Jws(#[source] JwtError),
    /// The proof's `typ` is that of something else.
    #[error("the proof is of another type than `{0}`")]
    Type(&'static str),
    /// The proof's algorithm is not the one that the WIT's key says (draft-ietf-wimse-wpt-02, section 3).
    #[error("the proof's algorithm is not that of the key it is bound to")]
    Algorithm,
    /// A DPoP proof carries no usable public key, or a private one.
    #[error("the proof has no usable public key in its header")]
    Key,
    /// A DPoP proof was made with another key than the access token is bound to.
    #[error("the proof was made with another key than the token is bound to")]
    Binding,
    /// A claim is absent or malformed.
    #[error("`{0}` of the proof is absent or malformed")]
    Claim(&'static str),
    /// The proof is for another URI.
    #[error("the proof is for another URI")]
    Uri,
    /// The proof is for another method.
    #[error("the proof is for another method")]
    Method,
    /// The proof is past its end.
    #[error("the proof expired at {0}")]
    Expired(OffsetDateTime),
    /// The proof says that it lives longer than proofs may, or that it was made in the future.
    #[error("the proof claims a longer life than proofs may have")]
    TooLong,
    /// The proof belongs to another WIT.
    #[error("the proof is bound to another WIT")]
    WitHash,
    /// The proof belongs to another access token.
    #[error("the proof is bound to another access token")]
    TokenHash,
    /// The proof covers a token that the request does not carry, or one of a kind that is not known here.
    #[error("the proof covers a token that cannot be checked")]
    OtherToken,
    /// The WIT belongs to a session and the proof to none or another, or the reverse.
    #[error("the proof was made in another session than its WIT")]
    Session,
    /// The proof does not cover the body, or another one.
    #[error("the proof does not cover this body")]
    Body,
    /// The server's nonce is absent or another.
    #[error("the proof does not carry the nonce that was given out")]
    Nonce,
}

impl ProofError {
    /// A label of a small fixed set, for whoever asked and for audit.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Wit(_) => "wit_invalid",
            Self::Jws(_) | Self::Type(_) | Self::Algorithm | Self::Key | Self::Claim(_) => "proof_invalid",
            Self::Binding | Self::Session | Self::WitHash | Self::TokenHash | Self::OtherToken => {
                "proof_of_another_token"
            }
            Self::Uri => "another_uri",
            Self::Method => "another_method",
            Self::Expired(_) | Self::TooLong => "proof_expired",
            Self::Body => "another_body",
            Self::Nonce => "another_nonce",
        }
    }
}
