//! A question written down: for `tether policy test` and `tether policy explain`. The format is in `docs/policy.md`.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::question::{
    Action, AgentFacts, Decision, Effect, IssueFacts, Question, ReachFacts, SessionFacts, ToolFacts,
};
use crate::base::mistake::{Lines, Mistake};
use crate::id::SpiffeId;
use crate::registry::parse_lifetime;
use crate::user::{User, UserProof};

/// The longest lifetime a case may have.
const MAX_LIFETIME: Duration = Duration::from_secs(366 * 86_400);

/// What a case expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// It may go ahead.
    Allow,
    /// It may not.
    Deny,
    /// It may once a person agreed.
    StepUp,
}

impl Expect {
    /// What a decision comes to.
    pub fn of(decision: &Decision) -> Self {
        match (decision.allowed, &decision.obligations.step_up) {
            (true, _) => Self::Allow,
            (false, Some(_)) => Self::StepUp,
            (false, None) => Self::Deny,
        }
    }

    /// `allow`, `deny` or `step_up`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::StepUp => "step_up",
        }
    }
}

/// One question, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What it is called; its number in the file where it has no name.
    pub name: String,
    /// The line where it begins, counted from 1; 0 where it was no file.
    pub line: u32,
    /// What it expects.
    pub expect: Option<Expect>,
    /// The policies it expects to decide, by id.
    pub policies: Option<Vec<String>>,
    action: Action,
    agent: SpiffeId,
    entry: String,
    owner: String,
    user: Option<User>,
    session: Option<SessionCase>,
    tool: Option<ToolCase>,
    issue: Option<IssueCase>,
    reach: Option<ReachFacts>,
    approved: bool,
    time: Option<OffsetDateTime>,
}

impl Case {
    /// What is to be done.
    pub fn action(&self) -> Action {
        self.action
    }

    /// By whom.
    pub fn agent(&self) -> &SpiffeId {
        &self.agent
    }

    /// Asks the question. A case without a time asks about `now`.
    pub fn ask<T>(&self, now: OffsetDateTime, answer: impl FnOnce(&Question<'_>) -> T) -> T {
        let session = self.session.as_ref().map(SessionCase::facts);
        let tool = self.tool.as_ref().map(ToolCase::facts);
        let issue = self.issue.as_ref().map(IssueCase::facts);
        answer(&Question {
            action: self.action,
            agent: AgentFacts { spiffe_id: &self.agent, entry: &self.entry, owner: &self.owner },
            user: self.user.as_ref(),
            session,
            issue,
            tool,
            reach: self.reach,
            approved: self.approved,
            now: self.time.unwrap_or(now),
        })
    }
}

/// The cases of a file: one table, or many `[[case]]`; otherwise every mistake. `path` is for the mistakes.
pub fn read_cases(path: &Path, text: &str) -> Result<Vec<Case>, Vec<Mistake>> {
    let lines = Lines::new(text);
    let at = |span: std::ops::Range<usize>, message: String| {
        let (line, column) = lines.position(span.start);
        Mistake { path: path.into(), line, column, message }
    };
    let file: File = toml::from_str(text).map_err(|error| {
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        vec![at(error.span().unwrap_or_default(), message)]
    })?;
    let (mut cases, mut mistakes) = (Vec::new(), Vec::new());
    for (index, written) in file.case.into_iter().enumerate() {
        let span = written.span();
        match written.into_inner().read(format!("case {}", index + 1)) {
            Ok(case) => cases.push(Case { line: lines.line(span.start), ..case }),
            Err(message) => mistakes.push(at(span, message)),
        }
    }
    if cases.is_empty() && mistakes.is_empty() {
        mistakes.push(Mistake::whole(path, "there is no case: write `[[case]]` and what it asks"));
    }
    if mistakes.is_empty() { Ok(cases) } else { Err(mistakes) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    case: Vec<toml::Spanned<Written>>,
}

/// A case as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Option<String>,
    agent: String,
    #[serde(default)]
    entry: String,
    #[serde(default)]
    owner: String,
    user: Option<UserCase>,
    session: Option<SessionCase>,
    action: String,
    effect: Option<String>,
    tool: Option<ToolCase>,
    issue: Option<IssueCase>,
    reach: Option<ReachCase>,
    #[serde(default)]
    approved: bool,
    time: Option<String>,
    expect: Option<Expect>,
    policies: Option<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct UserCase {
    kind: String,
    issuer: String,
    subject: String,
    acr: Option<String>,
    node: String,
}

impl Default for UserCase {
    fn default() -> Self {
        Self { kind: "oidc".to_owned(), issuer: String::new(), subject: String::new(), acr: None, node: String::new() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SessionCase {
    id: String,
    purpose: String,
    targets: Vec<String>,
    scopes: Vec<String>,
    boundary: String,
    binding: u8,
    depth: u32,
    lifetime: String,
    #[serde(skip)]
    lasts: Duration,
    tokens: u32,
    calls: u32,
    max_tokens: u32,
    max_calls: u32,
    launched: Vec<String>,
}

impl Default for SessionCase {
    fn default() -> Self {
        Self {
            id: "case".to_owned(),
            purpose: String::new(),
            targets: Vec::new(),
            scopes: Vec::new(),
            boundary: "task".to_owned(),
            binding: 3,
            depth: 0,
            lifetime: "15m".to_owned(),
            lasts: Duration::ZERO,
            tokens: 0,
            calls: 0,
            max_tokens: 0,
            max_calls: 0,
            launched: Vec::new(),
        }
    }
}

impl SessionCase {
    fn facts(&self) -> SessionFacts<'_> {
        SessionFacts {
            id: &self.id,
            parent: None,
            depth: self.depth,
            purpose: &self.purpose,
            targets: &self.targets,
            scopes: &self.scopes,
            boundary: &self.boundary,
            binding: self.binding,
            lifetime: self.lasts,
            tokens: self.tokens,
            calls: self.calls,
            max_tokens: self.max_tokens,
            max_calls: self.max_calls,
            launched: &self.launched,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolCase {
    uri: String,
    #[serde(default)]
    method: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    rpc: String,
    #[serde(default)]
    arguments_sha256: String,
    #[serde(default = "wit")]
    kind: String,
}

fn wit() -> String {
    super::WIT.to_owned()
}

impl ToolCase {
    fn facts(&self) -> ToolFacts<'_> {
        ToolFacts {
            uri: &self.uri,
            method: &self.method,
            name: &self.name,
            rpc: &self.rpc,
            arguments_sha256: &self.arguments_sha256,
            kind: &self.kind,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct IssueCase {
    kind: String,
    #[serde(default)]
    audience: Vec<String>,
    #[serde(default)]
    binding: u8,
}

impl IssueCase {
    fn facts(&self) -> IssueFacts<'_> {
        IssueFacts { kind: &self.kind, audience: &self.audience, binding: self.binding }
    }
}

/// How the caller of a `reach` showed who it is: by a proof, unless it is said otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ReachCase {
    proof: bool,
    binding: u8,
}

impl Default for ReachCase {
    fn default() -> Self {
        Self { proof: true, binding: 3 }
    }
}

impl ReachCase {
    fn facts(&self) -> ReachFacts {
        ReachFacts { proof: self.proof, binding: self.binding }
    }
}

impl Written {
    fn read(self, unnamed: String) -> Result<Case, String> {
        let agent = SpiffeId::parse(&self.agent);
        let agent = agent.map_err(|error| format!("`agent` is no SPIFFE ID: {error}"))?;
        let action = self.action()?;
        let missing = |what: &str| format!("`{}` needs `{what}`", self.action);
        let is_issue = action == Action::Issue;
        let mut session = self.session;
        if let Some(session) = &mut session {
            let lifetime = parse_lifetime(&session.lifetime, MAX_LIFETIME);
            session.lasts = lifetime.map_err(|error| format!("`session.lifetime`: {error}"))?;
        }
        let in_session = matches!(action, Action::Start | Action::Delegate | Action::Mint | Action::Call(_));
        if in_session && session.is_none() {
            return Err(missing("session = { purpose = .. }"));
        }
        let at_tool = matches!(action, Action::Mint | Action::Call(_) | Action::Reach(_) | Action::Classify);
        if at_tool && self.tool.is_none() {
            return Err(missing("tool = { uri = .. }"));
        }
        if is_issue && !self.issue.as_ref().is_some_and(|issue| matches!(&*issue.kind, "x509" | "jwt" | "wit")) {
            return Err(missing("issue = { kind = \"x509\", \"jwt\" or \"wit\" }"));
        }
        let time = self.time.map(|text| OffsetDateTime::parse(&text, &Rfc3339)).transpose();
        Ok(Case {
            name: self.name.unwrap_or(unnamed),
            line: 0,
            expect: self.expect,
            policies: self.policies,
            action,
            agent,
            entry: self.entry,
            owner: self.owner,
            user: self.user.map(UserCase::read).transpose()?,
            session: session.filter(|_| in_session),
            tool: self.tool,
            issue: self.issue,
            reach: matches!(action, Action::Reach(_)).then(|| self.reach.unwrap_or_default().facts()),
            approved: self.approved,
            time: time.map_err(|_| "`time` is a text such as \"2026-03-01T09:30:00Z\"".to_owned())?,
        })
    }

    fn action(&self) -> Result<Action, String> {
        let effect = self.effect.as_deref().map(|effect| {
            Effect::parse(effect).ok_or_else(|| format!("`effect` is read, write or irreversible, not `{effect}`"))
        });
        let effect = effect.transpose()?;
        let by_method = || Effect::of_method(self.tool.as_ref().map_or("", |tool| tool.method.as_str()));
        let action = match self.action.as_str() {
            "issue" => Action::Issue,
            "start" => Action::Start,
            "delegate" => Action::Delegate,
            "mint" => Action::Mint,
            "call" => return Ok(Action::Call(effect.unwrap_or_else(by_method))),
            "reach" => return Ok(Action::Reach(effect.unwrap_or_else(by_method))),
            "classify" => Action::Classify,
            name => Action::Call(Effect::parse(name).ok_or_else(|| {
                format!(
                    "`action` is issue, start, delegate, mint, call, read, write, irreversible, reach or classify, not \
                     `{name}`"
                )
            })?),
        };
        if effect.is_some() {
            return Err("`effect` goes with action = \"call\" or \"reach\" alone".to_owned());
        }
        Ok(action)
    }
}

impl UserCase {
    fn read(self) -> Result<User, String> {
        let Self { kind, issuer, subject, acr, node } = self;
        let proof = match kind.as_str() {
            "oidc" => UserProof::Token { expires_at: OffsetDateTime::UNIX_EPOCH, session: None, context: acr },
            "local" => UserProof::Local { uid: 0, node, login_session: None },
            other => return Err(format!("`user.kind` is local or oidc, not `{other}`")),
        };
        Ok(User { issuer, subject, proof })
    }
}

#[cfg(test)]
mod tests;
