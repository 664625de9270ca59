//! What the proofs and the WIT of a session say beyond those of a process: `docs/session-profile.md` is their definition.
//!
//! Names that are registered carry what they are registered for: `sub` (RFC 7519), `sub_id` (RFC 9493), `act` and `scope`
//! (RFC 8693), `txn` (RFC 8417). Everything else is in the one private claim `tether`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The claims a Workload Proof Token of a session carries on top of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionClaims {
    /// For whom: the user's subject; the agent's SPIFFE ID when it acts for nobody.
    pub sub: String,
    /// The user and who vouches for it; absent when the agent acts for nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_id: Option<SubjectId>,
    /// Who acts for the user; absent when the agent acts for nobody and nobody delegated to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<Actor>,
    /// The scopes, separated by single spaces; absent when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The transaction the call is part of.
    pub txn: String,
    /// The session itself.
    pub tether: TetherClaims,
}

/// A subject of an issuer (RFC 9493, section 3.2.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubjectId {
    /// Always `iss_sub`.
    pub format: String,
    /// Who vouches.
    pub iss: String,
    /// For whom.
    pub sub: String,
}

/// Who acts, and for whom that acts in turn (RFC 8693, section 4.1): the one that calls is the outermost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The SPIFFE ID.
    pub sub: String,
    /// The agent that delegated to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<Box<Actor>>,
}

impl Actor {
    /// The actors from the outermost on.
    pub fn chain(&self) -> impl Iterator<Item = &str> {
        std::iter::successors(Some(self), |actor| actor.act.as_deref()).map(|actor| actor.sub.as_str())
    }
}

/// The private claim of a proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TetherClaims {
    /// The session's id.
    pub sid: String,
    /// What for.
    pub purpose: String,
    /// `tool_call`, `request` or `task`.
    pub boundary: String,
    /// What the call does: `read`, `write` or `irreversible`.
    pub effect: String,
    /// The tool behind the URI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// Unpadded base64url of the SHA-256 of the tool's arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments_sha256: Option<String>,
    /// The approval that allowed this call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
}

impl SessionClaims {
    /// The claims of a proof; `None` when it has none of a session.
    ///
    /// # Errors
    /// There is a `tether` claim and something is malformed.
    pub fn of(claims: &Map<String, Value>) -> Result<Option<Self>, serde_json::Error> {
        if !claims.contains_key("tether") {
            return Ok(None);
        }
        Self::deserialize(&Value::Object(claims.clone())).map(Some)
    }
}
