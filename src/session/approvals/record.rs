//! One approval: what was asked, and what became of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::ApprovalError;
use crate::audit::Event;
use crate::base::text::is_hidden;
use crate::id::SpiffeId;
use crate::policy::{Action, Effect};
use crate::session::SessionId;
use crate::user::{User, UserProof};

/// How far the clock may go back behind a decision before the decision no longer holds: small corrections are no attack.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);
/// The longest target; of a session that is to begin, all of them.
const MAX_TARGET: usize = 16 << 10;
/// The longest method, tool name, digest.
const MAX_NAME: usize = 256;
/// The longest reason of a policy that is kept; more is cut off.
const MAX_WHY: usize = 1024;
/// The longest note of whoever decides.
const MAX_NOTE: usize = 256;
/// So many policies are named; more are left out.
const MAX_POLICIES: usize = 32;

/// An approval's name: 64 random bits in hex, short enough to be typed. It is no credential.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ApprovalId(Arc<str>);

impl ApprovalId {
    pub(super) fn new(random: String) -> Self {
        Self(random.into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What became of an approval. Only the first two lead anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalState {
    /// Nobody has decided yet.
    Pending,
    /// It allows what was asked.
    Granted,
    /// An approver said no.
    Denied,
    /// An approver said yes and took it back.
    Withdrawn,
    /// It allowed what was asked as often as it was to.
    Used,
    /// Its time was over, or its session's.
    Expired,
}

impl ApprovalState {
    /// The name in the API, the command line and audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Granted => "granted",
            Self::Denied => "denied",
            Self::Withdrawn => "withdrawn",
            Self::Used => "used",
            Self::Expired => "expired",
        }
    }

    /// Whether time can still end it.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Granted)
    }
}

/// What is asked, by whom, and why a person is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The session it happens in, or that is to begin.
    pub session: &'a SessionId,
    /// The agent.
    pub spiffe_id: &'a SpiffeId,
    /// The person it acts for.
    pub user: Option<&'a User>,
    /// The user id of the agent's process.
    pub uid: u32,
    /// What for.
    pub purpose: &'a str,
    /// What is to be done; of a call also what it does.
    pub action: Action,
    /// Where to: the URI or the audience; the targets of a session that is to begin.
    pub target: &'a str,
    /// The method of a call; empty otherwise.
    pub method: &'a str,
    /// The tool of a call; empty when there is none.
    pub tool: &'a str,
    /// SHA-256 of its arguments in hex; empty when unknown, and then no other approval than one of unknown arguments fits.
    pub arguments_sha256: &'a str,
    /// `wit` or `jwt` of a token that is to be minted; empty otherwise.
    pub kind: &'a str,
    /// What of: the scopes of a token that is to be minted, or of a session that is to begin; empty for calls. In any order.
    pub scopes: &'a [String],
    /// What the policy says to whoever approves.
    pub why: &'a str,
    /// The policies that want it.
    pub policies: &'a [String],
}

/// The one question an approval is about: equal in every field, or another question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matter {
    /// The session.
    pub session: SessionId,
    /// `start`, `delegate`, `mint` or `call`.
    pub action: String,
    /// Of a call: what it does.
    pub effect: Option<Effect>,
    /// Where to.
    pub target: String,
    /// The method of a call.
    pub method: String,
    /// The tool of a call.
    pub tool: String,
    /// SHA-256 of its arguments in hex; empty when unknown.
    pub arguments_sha256: String,
    /// `wit` or `jwt` of a token; empty otherwise.
    pub kind: String,
    /// Of a token, or of a session that is to begin; sorted.
    pub scopes: Vec<String>,
}

impl Matter {
    /// The question, when it can be put before a person: bounded, and printable ASCII alone, so that it cannot pose as
    /// another one.
    pub(super) fn of(asked: &Asked<'_>) -> Result<Self, ApprovalError> {
        let scopes = sorted(asked.scopes);
        let all_scopes = scopes.join(" ");
        let fields = [
            ("scopes", all_scopes.as_str(), MAX_TARGET),
            ("kind", asked.kind, MAX_NAME),
            ("target", asked.target, MAX_TARGET),
            ("method", asked.method, MAX_NAME),
            ("tool", asked.tool, MAX_NAME),
            ("arguments_sha256", asked.arguments_sha256, MAX_NAME),
            ("purpose", asked.purpose, MAX_NAME),
        ];
        // Cutting off or replacing would make one question of two.
        for (field, text, most) in fields {
            if text.len() > most {
                return Err(ApprovalError::Text { field, why: "is too long to be put before a person" });
            }
            if !text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
                let why = "has other characters than printable ASCII, and cannot be put before a person";
                return Err(ApprovalError::Text { field, why });
            }
        }
        Ok(Self {
            session: asked.session.clone(),
            action: asked.action.as_str().to_owned(),
            effect: effect(asked.action),
            target: asked.target.to_owned(),
            method: asked.method.to_owned(),
            tool: asked.tool.to_owned(),
            arguments_sha256: asked.arguments_sha256.to_owned(),
            kind: asked.kind.to_owned(),
            scopes,
        })
    }

    /// Whether exactly this is asked.
    pub(super) fn is(&self, asked: &Asked<'_>) -> bool {
        self.session == *asked.session
            && self.action == asked.action.as_str()
            && self.effect == effect(asked.action)
            && self.target == asked.target
            && self.method == asked.method
            && self.tool == asked.tool
            && self.arguments_sha256 == asked.arguments_sha256
            && self.kind == asked.kind
            && self.scopes == sorted(asked.scopes)
    }
}

fn sorted(scopes: &[String]) -> Vec<String> {
    let mut scopes = scopes.to_vec();
    scopes.sort();
    scopes.dedup();
    scopes
}

fn effect(action: Action) -> Option<Effect> {
    if let Action::Call(effect) = action { Some(effect) } else { None }
}

/// One question and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Its name.
    pub id: ApprovalId,
    /// What was asked.
    pub matter: Matter,
    /// The agent.
    pub spiffe_id: SpiffeId,
    /// The person it acts for.
    pub user: Option<User>,
    /// The user id of the agent's process, which decides nothing here.
    pub uid: u32,
    /// What for.
    pub purpose: String,
    /// What the policy says to whoever approves.
    pub why: String,
    /// The policies that want it.
    pub policies: Vec<String>,
    /// What became of it.
    pub state: ApprovalState,
    /// When it was asked.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub requested_at: OffsetDateTime,
    /// When somebody decided, last.
    #[serde(with = "time::serde::timestamp::nanoseconds::option")]
    pub decided_at: Option<OffsetDateTime>,
    /// While it is pending: when the question lapses. Afterwards: when what was allowed ends.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub expires_at: OffsetDateTime,
    /// When it came to its last state.
    #[serde(with = "time::serde::timestamp::nanoseconds::option")]
    pub closed_at: Option<OffsetDateTime>,
    /// How often it may still be used; 0 unless it is granted.
    pub uses_left: u32,
    /// The user id of whoever decided last.
    pub decided_by: Option<u32>,
    /// What they said to it.
    pub note: String,
}

impl Approval {
    /// A question nobody has decided yet.
    pub(super) fn pending(
        id: ApprovalId,
        matter: Matter,
        asked: &Asked<'_>,
        now: OffsetDateTime,
        lapses: OffsetDateTime,
    ) -> Self {
        Self {
            id,
            matter,
            spiffe_id: asked.spiffe_id.clone(),
            user: asked.user.cloned(),
            uid: asked.uid,
            purpose: asked.purpose.to_owned(),
            why: line(asked.why, MAX_WHY),
            policies: asked.policies.iter().take(MAX_POLICIES).map(|policy| line(policy, MAX_NAME)).collect(),
            state: ApprovalState::Pending,
            requested_at: now,
            decided_at: None,
            expires_at: lapses,
            closed_at: None,
            uses_left: 0,
            decided_by: None,
            note: String::new(),
        }
    }

    /// Its state at `now`: what has lapsed is expired, whether or not that was written down yet.
    pub fn state_at(&self, now: OffsetDateTime) -> ApprovalState {
        if self.state.is_open() && !self.is_in_time(now) { ApprovalState::Expired } else { self.state }
    }

    /// Whether what it allowed may stand at `now`: it was granted, not withdrawn, and its time is not over. Also when it
    /// is used up: a session that was allowed to start goes on until then.
    pub fn stands(&self, now: OffsetDateTime) -> bool {
        matches!(self.state, ApprovalState::Granted | ApprovalState::Used) && self.is_in_time(now)
    }

    /// Whether it may be used at `now`.
    pub(super) fn is_usable(&self, now: OffsetDateTime) -> bool {
        self.state == ApprovalState::Granted && self.uses_left > 0 && self.is_in_time(now)
    }

    /// The end, and the beginning too: a clock that was set back must not make it last longer.
    fn is_in_time(&self, now: OffsetDateTime) -> bool {
        let begun = self.decided_at.unwrap_or(self.requested_at);
        begun <= now + CLOCK_TOLERANCE && now < self.expires_at
    }

    /// Whether `uid` is a party to it, who cannot decide it.
    pub(super) fn party(&self, uid: u32) -> Option<Party> {
        if uid == self.uid {
            return Some(Party::Agent);
        }
        match self.user.as_ref().map(|user| &user.proof) {
            Some(UserProof::Local { uid: user, .. }) if *user == uid => Some(Party::User),
            _ => None,
        }
    }

    /// As it is when somebody has decided.
    pub(super) fn decided(&self, state: ApprovalState, by: u32, note: &str, now: OffsetDateTime) -> Self {
        Self {
            state,
            decided_at: Some(now),
            decided_by: Some(by),
            note: line(note, MAX_NOTE),
            uses_left: 0,
            closed_at: (!state.is_open()).then_some(now),
            ..self.clone()
        }
    }

    /// As it is with one use less.
    pub(super) fn used_once(&self, now: OffsetDateTime) -> Self {
        let uses_left = self.uses_left.saturating_sub(1);
        let used = uses_left == 0;
        let state = if used { ApprovalState::Used } else { self.state };
        Self { uses_left, state, closed_at: used.then_some(now), ..self.clone() }
    }

    /// As it is when its time, or its session's, is over.
    pub(super) fn expired(&self, now: OffsetDateTime) -> Self {
        Self { state: ApprovalState::Expired, uses_left: 0, closed_at: Some(now), ..self.clone() }
    }
}

/// Who cannot decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The agent that asks.
    Agent,
    /// The person it acts for.
    User,
}

/// `text` on one line of at most `most` bytes, with a space for what does not show.
fn line(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if is_hidden(c) { ' ' } else { c }).collect()
}

/// For the audit log: somebody is asked.
pub(super) fn requested(approval: &Approval, action: &'static str) -> Event {
    let matter = &approval.matter;
    Event::ApprovalRequested {
        approval: approval.id.to_string(),
        session: matter.session.to_string(),
        txn: String::new(),
        spiffe_id: approval.spiffe_id.to_string(),
        user: approval.user.as_ref().map(ToString::to_string),
        action,
        target: matter.target.clone(),
        method: matter.method.clone(),
        tool: matter.tool.clone(),
        arguments_sha256: matter.arguments_sha256.clone(),
        why: approval.why.clone(),
        policies: approval.policies.clone(),
        expires_at: Some(approval.expires_at),
    }
}

/// For the audit log: somebody has decided.
pub(super) fn decided(approval: &Approval, by: u32) -> Event {
    let granted = approval.state == ApprovalState::Granted;
    let verdict = if granted { "approved" } else { approval.state.as_str() };
    Event::ApprovalDecided {
        caller: None,
        approval: approval.id.to_string(),
        session: approval.matter.session.to_string(),
        verdict,
        by: format!("uid {by}"),
        expires_at: granted.then_some(approval.expires_at),
        uses: approval.uses_left,
        note: approval.note.clone(),
    }
}

/// For the audit log: one use less.
pub(super) fn used(approval: &Approval) -> Event {
    Event::ApprovalUsed {
        approval: approval.id.to_string(),
        session: approval.matter.session.to_string(),
        txn: String::new(),
        uses_left: Some(approval.uses_left),
    }
}

/// For the audit log: it is over, and why.
pub(super) fn ended(approval: &Approval, reason: &'static str) -> Event {
    Event::ApprovalEnded { approval: approval.id.to_string(), session: approval.matter.session.to_string(), reason }
}
