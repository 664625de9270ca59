//! What the WIT of a session says beyond that of a process: `docs/session-profile.md` is its definition.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The private claim `tether` of a session's WIT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitSession {
    /// The session's id.
    pub sid: String,
    /// Where its proofs may go: a URI prefix as in `serves`, and nowhere else.
    pub target: String,
    /// The token's scopes, separated by single spaces; empty for none.
    pub scope: String,
    /// Whether it is good for one call.
    pub one_use: bool,
    /// 2: tether holds the key. 3: and checks the process at every signature.
    pub binding: u8,
    /// Where the issuing node can be asked (RFC 7662); absent when it answers on its own host only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub introspect: Option<String>,
}

impl WitSession {
    /// The claim of a WIT; `None` when it has none.
    ///
    /// # Errors
    /// It is there and malformed.
    pub fn of(claims: &Map<String, Value>) -> Result<Option<Self>, serde_json::Error> {
        claims.get("tether").map(Self::deserialize).transpose()
    }
}
