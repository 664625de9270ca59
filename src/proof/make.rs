//! Making proofs. Whoever calls says which request; everything else is decided here.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use time::OffsetDateTime;

use super::LIFETIME;
use super::session::SessionClaims;
use super::uri::{Method, TargetUri};
use crate::base::entropy::Entropy;
use crate::jwt::{EncodedHeader, Jwk, JwtError, JwtSigner};
use crate::x509::PrivateKey;

/// `typ` of a WPT.
pub(super) const WPT: &str = "wpt+jwt";
/// `typ` of a DPoP proof.
pub(super) const DPOP: &str = "dpop+jwt";

/// The SHA-256 of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyDigest([u8; 32]);

impl BodyDigest {
    /// The digest of `body`.
    pub fn of(body: &[u8]) -> Self {
        Self::from_slice(digest(&SHA256, body).as_ref()).expect("SHA-256 has 32 bytes")
    }

    /// A digest that was computed elsewhere; `None` when it has not 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// A digest as claims have it: unpadded base64url.
    pub fn parse(encoded: &str) -> Option<Self> {
        Self::from_slice(&URL_SAFE_NO_PAD.decode(encoded).ok()?)
    }

    /// In lower-case hex, as policies and the audit log have it.
    pub fn hex(&self) -> String {
        crate::base::entropy::hex(&self.0)
    }

    /// As the claim `body_sha256` has it.
    pub fn encoded(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

/// The one request that a proof is for.
#[derive(Clone, Debug)]
pub struct ProofTarget {
    /// The method.
    pub method: Method,
    /// The URI; its query and fragment are not covered.
    pub uri: TargetUri,
    /// The body, where it shall be covered.
    pub body: Option<BodyDigest>,
}

/// A proof, and when it ends.
#[derive(Clone, Debug)]
pub struct SignedProof {
    /// The compact token. Whoever has it first can use it once, for its one request.
    pub token: String,
    /// Its own id.
    pub jti: String,
    /// When verifiers stop accepting it, give or take their leeway.
    pub expires_at: OffsetDateTime,
}

/// A key that makes proofs and nothing else: what it signs is always a request, never bytes of the caller's choice.
#[derive(Debug)]
pub struct ProofKey {
    signer: JwtSigner,
    wpt: EncodedHeader,
    dpop: EncodedHeader,
}

impl ProofKey {
    /// Proofs by `key`.
    pub fn new(key: &PrivateKey) -> Result<Self, JwtError> {
        let signer = JwtSigner::new(key)?;
        let (wpt, dpop) = (signer.header_without_key_id(WPT)?, signer.header_with_key(DPOP)?);
        Ok(Self { signer, wpt, dpop })
    }

    /// The public half: what a WIT's `cnf` confirms.
    pub fn public_key(&self) -> &Jwk {
        self.signer.public_key()
    }

    /// Its algorithm's name, which the WIT's `cnf.jwk.alg` must say.
    pub fn algorithm(&self) -> crate::jwt::Algorithm {
        self.signer.algorithm()
    }

    /// A Workload Proof Token for one request that is sent with `wit`, which is that of the session where there is one.
    pub fn wpt(
        &self,
        wit: &str,
        target: &ProofTarget,
        session: Option<&SessionClaims>,
        entropy: &Entropy,
        now: OffsetDateTime,
    ) -> Result<SignedProof, JwtError> {
        let expires_at = (now + LIFETIME).truncate_to_second();
        let jti = entropy.hex::<16>();
        let claims = Wpt {
            aud: target.uri.as_str(),
            exp: expires_at.unix_timestamp(),
            iat: now.unix_timestamp(),
            jti: &jti,
            wth: &hash(wit),
            htm: target.method.as_str(),
            body_sha256: target.body.map(|body| body.encoded()),
            session,
        };
        Ok(SignedProof { token: self.signer.sign_as(&self.wpt, &claims)?, jti, expires_at })
    }

    /// A DPoP proof for one request, with `access_token` where there is one yet, and the server's nonce.
    pub fn dpop(
        &self,
        target: &ProofTarget,
        access_token: Option<&str>,
        nonce: Option<&str>,
        entropy: &Entropy,
        now: OffsetDateTime,
    ) -> Result<SignedProof, JwtError> {
        let jti = entropy.hex::<16>();
        let claims = Dpop {
            jti: &jti,
            htm: target.method.as_str(),
            htu: target.uri.as_str(),
            iat: now.unix_timestamp(),
            ath: access_token.map(hash),
            nonce,
            body_sha256: target.body.map(|body| body.encoded()),
        };
        let expires_at = (now + LIFETIME).truncate_to_second();
        Ok(SignedProof { token: self.signer.sign_as(&self.dpop, &claims)?, jti, expires_at })
    }
}

/// The unpadded base64url SHA-256 of a token, as `wth`, `tth` and `ath` have it.
pub(super) fn hash(token: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, token.as_bytes()))
}

#[derive(Serialize)]
struct Wpt<'a> {
    aud: &'a str,
    exp: i64,
    iat: i64,
    jti: &'a str,
    wth: &'a str,
    htm: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_sha256: Option<String>,
    #[serde(flatten)]
    session: Option<&'a SessionClaims>,
}

#[derive(Serialize)]
struct Dpop<'a> {
    jti: &'a str,
    htm: &'a str,
    htu: &'a str,
    iat: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ath: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_sha256: Option<String>,
}
