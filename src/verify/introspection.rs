//! RFC 7662 in both directions: what is asked as a form, and what is answered as JSON. `docs/session-profile.md`,
//! section 9, is its definition.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Call, InSession, Rpc, RpcVerdict, SessionView, Verified, form};
use crate::policy::Effect;
use crate::proof::{BodyDigest, Method, Presented, ProofTarget, TargetUri};

/// The body of every answer that is not a yes, whatever the reason.
pub const INACTIVE: &str = "{\"active\":false}";
/// The longest question: two tokens of the longest kind, a URI, and what is said of the calls inside a request.
pub const MAX_FORM_BYTES: usize = 96 * 1024;
/// Names of scopes and tools, and how many of them.
const MAX_NAME_BYTES: usize = 256;
const MAX_SCOPES: usize = 64;
/// The most calls inside one request.
const MAX_RPCS: usize = 64;
const NAMES: [&str; 14] = [
    "token",
    "token_type_hint",
    "proof",
    "method",
    "uri",
    "txn_token",
    "body_sha256",
    "tool",
    "arguments_sha256",
    "effect",
    "scope",
    "min_binding",
    "require_session",
    "rpcs",
];

/// A question: what was presented, and what the asker says of the request.
#[derive(Clone, Debug)]
pub struct Introspected {
    /// The request.
    pub call: Call,
    token: String,
    proof: Option<String>,
    txn_token: Option<String>,
}

impl Introspected {
    /// Reads a form; `None` when it is not one, or lacks `token`, `method` or `uri`.
    pub fn parse(body: &str) -> Option<Self> {
        let mut fields = form::decode(body, &NAMES)?;
        let mut take = |name: &str| fields.remove(name).filter(|value| !value.is_empty());
        let digest = |text: Option<String>| match text {
            None => Some(None),
            Some(text) => BodyDigest::parse(&text).map(Some),
        };
        let target = ProofTarget {
            method: Method::parse(&take("method")?).ok()?,
            uri: TargetUri::parse(&take("uri")?).ok()?,
            body: digest(take("body_sha256"))?,
        };
        let scopes: Vec<String> = take("scope").unwrap_or_default().split(' ').map(str::to_owned).collect();
        let scopes: Vec<String> = scopes.into_iter().filter(|scope| !scope.is_empty()).collect();
        let effect = match take("effect") {
            None => None,
            Some(name) => Some(Effect::parse(&name)?),
        };
        let call = Call {
            tool: take("tool").unwrap_or_default(),
            arguments: digest(take("arguments_sha256"))?,
            effect,
            min_binding: take("min_binding").map_or(Some(0), |level| level.parse().ok())?,
            require_session: take("require_session").map_or(Some(false), |text| text.parse().ok())?,
            rpcs: take("rpcs").map_or(Some(Vec::new()), |text| rpcs(&text))?,
            ..Call::of(target)
        };
        let fits = call.tool.len() <= MAX_NAME_BYTES
            && scopes.len() <= MAX_SCOPES
            && scopes.iter().all(|scope| scope.len() <= MAX_NAME_BYTES);
        let asked = Self {
            call: Call { scopes, ..call },
            token: take("token")?,
            proof: take("proof"),
            txn_token: take("txn_token"),
        };
        fits.then_some(asked)
    }

    /// The WIT and its proof; `None` without a proof: a WIT alone is nobody's.
    pub fn presented(&self) -> Option<Presented<'_>> {
        let proof = self.proof.as_deref()?;
        Some(Presented { wit: &self.token, proof, txn_token: self.txn_token.as_deref() })
    }
}

/// A call inside a request, as one node tells another of it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToldRpc {
    method: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    tool: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    arguments_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    effect: Option<Effect>,
}

/// The calls inside a request; `None` when they are none that may be asked about.
fn rpcs(text: &str) -> Option<Vec<Rpc>> {
    let told: Vec<ToldRpc> = serde_json::from_str(text).ok()?;
    let fits = |told: &ToldRpc| !told.method.is_empty() && told.method.len().max(told.tool.len()) <= MAX_NAME_BYTES;
    if told.len() > MAX_RPCS || !told.iter().all(fits) {
        return None;
    }
    let rpc = |told: ToldRpc| {
        let arguments = match told.arguments_sha256 {
            Some(digest) => Some(BodyDigest::parse(&digest)?),
            None => None,
        };
        Some(Rpc { method: told.method, tool: told.tool, arguments, effect: told.effect })
    };
    told.into_iter().map(rpc).collect()
}

fn told(rpcs: &[Rpc]) -> Option<String> {
    let told = |rpc: &Rpc| ToldRpc {
        method: rpc.method.clone(),
        tool: rpc.tool.clone(),
        arguments_sha256: rpc.arguments.map(|digest| digest.encoded()),
        effect: rpc.effect,
    };
    let told: Vec<ToldRpc> = rpcs.iter().map(told).collect();
    if told.is_empty() { None } else { serde_json::to_string(&told).ok() }
}

/// The form that asks `call` of another node.
pub(super) fn question(call: &Call, presented: Presented<'_>) -> String {
    let digest = |digest: Option<BodyDigest>| digest.map(|digest| digest.encoded());
    let optional = [
        ("txn_token", presented.txn_token.map(str::to_owned)),
        ("body_sha256", digest(call.target.body)),
        ("tool", Some(call.tool.clone()).filter(|tool| !tool.is_empty())),
        ("arguments_sha256", digest(call.arguments)),
        ("effect", call.effect.map(|effect| effect.as_str().to_owned())),
        ("scope", Some(call.scopes.join(" ")).filter(|scope| !scope.is_empty())),
        ("min_binding", Some(call.min_binding.to_string())),
        ("require_session", Some(call.require_session.to_string())),
        ("rpcs", told(&call.rpcs)),
    ];
    let required = [
        ("token", presented.wit),
        ("proof", presented.proof),
        ("method", call.target.method.as_str()),
        ("uri", call.target.uri.as_str()),
    ];
    let optional = optional.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
    form::encode(required.into_iter().chain(optional))
}

/// What the node that issued a WIT says of it to another node, beside what it says to everybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ToNode {
    /// The session; absent for a request that was made in none.
    pub(super) session: Option<SessionView>,
    /// Whether an approval that this node knows was given for exactly this call.
    pub(super) approved: bool,
    /// Whether the WIT is good for one call.
    #[serde(default)]
    pub(super) one_use: bool,
    /// What this node says of each call inside the request.
    #[serde(default)]
    pub(super) rpcs: Vec<SaidRpc>,
}

/// What a node says of a call inside a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SaidRpc {
    pub(super) allowed: bool,
    /// Whether an approval was given for exactly this call.
    #[serde(default)]
    pub(super) approved: bool,
    /// What to approve.
    #[serde(default)]
    pub(super) approval: Option<String>,
}

impl SaidRpc {
    fn of(verdict: &RpcVerdict) -> Self {
        let approval = verdict.outcome.as_ref().err().and_then(|refused| refused.approval.clone());
        Self { allowed: verdict.outcome.is_ok(), approved: verdict.approved, approval }
    }
}

/// An answer of another node.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) active: bool,
    #[serde(default)]
    pub(super) binding: u8,
    pub(super) tether: Option<ToNode>,
}

/// The answer about a good request.
pub fn answer(call: &Call, verified: &Verified, to_node: bool) -> Value {
    let agent = verified.spiffe_id.as_str();
    let mut answer = json!({
        "active": true,
        "token_type": "WPT",
        "client_id": agent,
        "sub": agent,
        "aud": call.target.uri.as_str(),
        "iat": verified.made_at.unix_timestamp(),
        "exp": verified.expires_at.unix_timestamp(),
        "jti": verified.token_id,
        "cnf": { "jkt": verified.thumbprint },
        "binding": verified.binding,
    });
    if let Some(session) = &verified.session {
        add_session(&mut answer, session);
    }
    if let Some(decided) = &verified.decided {
        answer["effect"] = decided.effect.as_str().into();
        if !decided.redact.is_empty() {
            answer["redact"] = decided.redact.iter().cloned().collect();
        }
    }
    if to_node {
        let session = verified.session.as_ref();
        let approved = session.is_some_and(|session| session.approved);
        answer["tether"] = json!(ToNode {
            session: session.map(|session| session.view.clone()),
            approved,
            one_use: verified.one_use,
            rpcs: verified.rpcs.iter().map(SaidRpc::of).collect(),
        });
    }
    answer
}

fn add_session(answer: &mut Value, session: &InSession) {
    let view = &session.view;
    let (sub, acting) = view.parties();
    answer["sub"] = sub.into();
    if let Some(user) = &view.user {
        answer["sub_id"] = json!({ "format": "iss_sub", "iss": user.issuer, "sub": user.subject });
    }
    let nested = |inner: Option<Value>, sub: &&str| match inner {
        None => Some(json!({ "sub": sub })),
        Some(inner) => Some(json!({ "sub": sub, "act": inner })),
    };
    if let Some(act) = acting.iter().rev().fold(None, nested) {
        answer["act"] = act;
    }
    if !session.agreed.scopes.is_empty() {
        answer["scope"] = session.agreed.scopes.join(" ").into();
    }
    answer["session"] = view.id.as_str().into();
    answer["purpose"] = view.purpose.as_str().into();
    answer["txn"] = session.txn.as_str().into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_to_another_node_is_read_there_as_it_was_meant() {
        let target = ProofTarget {
            method: Method::parse("POST").unwrap(),
            uri: TargetUri::parse("https://tool.example.com/a%2Fb").unwrap(),
            body: Some(BodyDigest::of(b"body")),
        };
        let call = Call {
            tool: "refund now".to_owned(),
            arguments: Some(BodyDigest::of(b"arguments")),
            effect: Some(Effect::Irreversible),
            scopes: vec!["a".to_owned(), "b:c".to_owned()],
            min_binding: 3,
            require_session: true,
            ..Call::of(target)
        };
        let presented = Presented { wit: "w.i.t", proof: "p.p.t", txn_token: Some("t&=+ x") };
        let read = Introspected::parse(&question(&call, presented)).unwrap();
        assert_eq!(format!("{:?}", read.call), format!("{call:?}"));
        assert_eq!(format!("{:?}", read.presented().unwrap()), format!("{presented:?}"));
    }

    #[test]
    fn a_question_without_what_it_is_about_is_none() {
        let good = "token=a&proof=b&method=GET&uri=https%3A%2F%2Ftool";
        assert!(Introspected::parse(good).unwrap().presented().is_some());
        assert!(Introspected::parse("token=a&method=GET&uri=https%3A%2F%2Ftool").unwrap().presented().is_none());
        for bad in [
            "proof=b&method=GET&uri=https%3A%2F%2Ftool",
            "token=a&proof=b&uri=https%3A%2F%2Ftool",
            "token=a&proof=b&method=GET",
            "token=a&proof=b&method=GET&uri=tool",
            &format!("{good}&body_sha256=x"),
            &format!("{good}&effect=none"),
            &format!("{good}&min_binding=-1"),
            &format!("{good}&require_session=maybe"),
            &format!("{good}&token=c"),
            &format!("{good}&more=c"),
        ] {
            assert!(Introspected::parse(bad).is_none(), "{bad}");
        }
    }
}
