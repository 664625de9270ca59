//! What a request is given for the target, in place of what the program may have written there.

use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderName};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use super::super::mcp::Message;
use super::bearer;
use super::program::{Program, Task};
use super::refusal::Refusal;
use super::target::Misdirected;
use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::client::session::{Call, Digest, ProofScheme};
use crate::proof::TargetUri;

/// How a request shows whose it is, beside the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// Not at all: the certificate says it.
    None,
    /// By a Workload Identity Token and a proof of this very request (draft-ietf-wimse-wpt-02).
    Wpt {
        /// Whether the proof covers the body too, which is read whole for that.
        cover_body: bool,
    },
    /// By a DPoP proof (RFC 9449), for the access token that the program sends along.
    Dpop,
    /// By a bearer JWT-SVID for this audience.
    Bearer {
        /// For whom.
        audience: String,
    },
}

/// What is known of a request beyond its head.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) body: Option<Digest>,
    /// For an MCP server.
    pub(super) message: Option<Message>,
}

/// Headers that say who somebody is. Only proxies write them.
const IDENTITY: [&str; 4] =
    ["workload-identity-token", "workload-proof-token", "x-forwarded-client-cert", "proxy-authorization"];
const DPOP: HeaderName = HeaderName::from_static("dpop");
const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");

impl Credential {
    /// Removes what only this proxy may say: all of it, whatever else the request is given.
    pub(super) fn strip(&self, headers: &mut HeaderMap) {
        let own: Vec<HeaderName> = headers.keys().filter(|name| is_identity(name.as_str())).cloned().collect();
        for name in own {
            headers.remove(name);
        }
        match self {
            Self::Wpt { .. } | Self::Bearer { .. } => {
                headers.remove(AUTHORIZATION);
            }
            // The access token is the program's own.
            Self::Dpop => {
                headers.remove(DPOP);
            }
            Self::None => {}
        }
    }

    /// Whether a 401 of the target's is about what this proxy showed it, and not about what the program did.
    pub(super) fn is_ours_alone(&self) -> bool {
        matches!(self, Self::Wpt { .. } | Self::Bearer { .. })
    }

    /// Whether it is made for each request, by an agent that says in which session.
    pub(super) fn is_proof(&self) -> bool {
        matches!(self, Self::Wpt { .. } | Self::Dpop)
    }

    /// Gives the request, whose URI is absolute, what it is to show, and says in which session that was made.
    pub(super) async fn attach(
        &self,
        head: &mut Parts,
        known: &Known,
        program: &Program,
        task: &Task,
        clock: &Clock,
    ) -> Result<Option<String>, Refusal> {
        let scheme = match self {
            Self::None => return Ok(task.session.clone()),
            Self::Bearer { audience } => {
                let header = bearer::header(program, task, audience, clock).await?;
                head.headers.insert(AUTHORIZATION, header);
                return Ok(task.session.clone());
            }
            Self::Wpt { .. } => ProofScheme::Wpt,
            Self::Dpop => {
                let access_token = access_token(&head.headers);
                ProofScheme::Dpop { access_token, nonce: task.nonce() }
            }
        };
        let uri = TargetUri::parse(&head.uri.to_string()).map_err(Misdirected::Path)?;
        let mut call = Call { body: known.body, scheme, ..Call::new(head.method.as_str(), uri.as_str()) };
        if let Some(rpc) = known.message.as_ref().and_then(Message::only) {
            (call.rpc, call.tool, call.arguments, call.effect) = (rpc.method, rpc.tool, rpc.arguments, rpc.effect);
        }
        let proof = program.patiently(|| program.sessions().prove_any(&call)).await?;
        head.headers.extend(proof.headers);
        Ok(proof.session)
    }

    /// Learns the nonce that the target wants in proofs, and says whether it refused for the lack of that one.
    pub(super) fn learn(&self, task: &Task, answer: &HeaderMap) -> bool {
        let nonce = answer.get(DPOP_NONCE).and_then(|nonce| nonce.to_str().ok()).filter(|_| *self == Self::Dpop);
        nonce.is_some_and(|nonce| task.replace_nonce(nonce.to_owned()))
    }
}

/// Also under the names that CGI and its like take for the same.
fn is_identity(name: &str) -> bool {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    IDENTITY.contains(&name.as_str()) || name.starts_with("tether-")
}

/// What the program sends as `Authorization: DPoP` (RFC 9449, section 7.1).
fn access_token(headers: &HeaderMap) -> Option<Arc<Secret<String>>> {
    let (scheme, token) =
        headers.get(AUTHORIZATION).and_then(|value: &HeaderValue| value.to_str().ok())?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("DPoP").then(|| Arc::new(Secret::new(token.trim().to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(headers: &[(&'static str, &'static str)], credential: &Credential) -> Vec<String> {
        let headers =
            headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut headers: HeaderMap = headers.collect();
        credential.strip(&mut headers);
        let mut left: Vec<String> = headers.keys().map(ToString::to_string).collect();
        left.sort_unstable();
        left
    }

    #[test]
    fn what_only_a_proxy_may_say_is_removed_whatever_the_program_says() {
        let sent = [
            ("authorization", "Bearer mine"),
            ("workload-identity-token", "x"),
            ("tether-user", "root"),
            ("tether_anything", "x"),
            ("x-forwarded-client-cert", "URI=spiffe://td/other"),
            ("proxy-authorization", "Basic x"),
            ("dpop", "x"),
            ("accept", "*/*"),
        ];
        let bearer = Credential::Bearer { audience: "a".to_owned() };
        for replaced in [Credential::Wpt { cover_body: false }, bearer] {
            assert_eq!(names(&sent, &replaced), ["accept", "dpop"], "{replaced:?}");
        }
        assert_eq!(names(&sent, &Credential::Dpop), ["accept", "authorization"]);
        assert_eq!(names(&sent, &Credential::None), ["accept", "authorization", "dpop"]);
    }

    #[test]
    fn the_access_token_of_a_dpop_proof_is_the_one_the_program_sends() {
        let token = |value: &'static str| {
            let headers = [(AUTHORIZATION, HeaderValue::from_static(value))].into_iter().collect();
            access_token(&headers).map(|token| token.expose().clone())
        };
        assert_eq!(token("DPoP abc").as_deref(), Some("abc"));
        assert_eq!(token("dpop  abc").as_deref(), Some("abc"));
        assert_eq!(token("Bearer abc"), None);
    }
}
