//! `tether approval`: for whoever decides what agents may do.
//!
//! What an agent wrote is shown so that nothing in it can look like something else.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::proto::admin::{ApprovalView, ApproveRequest, DenyRequest, ListApprovalsRequest};

use super::args::ApprovalCommand;
use super::failure::{Exit, Failure};
use super::output::{Text, Tone, identifier, relative};
use super::session::{MIN_DIGITS, acts, only};
use super::{Admin, Context};

/// The digits of an approval's id.
const ALL_DIGITS: usize = 16;

pub(super) async fn run(command: ApprovalCommand, context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    match command {
        ApprovalCommand::List { all } => {
            let listed = admin.answer(admin.approvals().list(ListApprovalsRequest { all })).await?;
            list(&listed.approvals, context)
        }
        ApprovalCommand::Approve { id, ttl, uses, note } => {
            let ttl_seconds = match ttl.map(|ttl| u32::try_from(ttl.as_secs())) {
                None => 0,
                Some(Ok(seconds)) if seconds > 0 => seconds,
                Some(_) => return Err(Failure::new(Exit::Usage, "--ttl takes a second or more")),
            };
            let id = named(&id, &admin).await?;
            let view = admin.answer(admin.approvals().approve(ApproveRequest { id, ttl_seconds, uses, note })).await?;
            show(&view, context)
        }
        ApprovalCommand::Deny { id, note } => {
            let id = named(&id, &admin).await?;
            let view = admin.answer(admin.approvals().deny(DenyRequest { id, note })).await?;
            show(&view, context)
        }
    }
}

/// The whole id.
async fn named(id: &str, admin: &Admin) -> Result<String, Failure> {
    let id = id.to_ascii_lowercase();
    let is_hex = id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hex || !(MIN_DIGITS..=ALL_DIGITS).contains(&id.len()) {
        let text = format!("an approval's id has {ALL_DIGITS} hex digits, of which the first {MIN_DIGITS} are enough");
        return Err(Failure::new(Exit::Usage, text));
    }
    if id.len() == ALL_DIGITS {
        return Ok(id);
    }
    let known = admin.answer(admin.approvals().list(ListApprovalsRequest { all: true })).await?.approvals;
    only(&id, known.into_iter().map(|approval| approval.id), "approval", "tether approval list --all")
}

fn list(approvals: &[ApprovalView], context: &mut Context) -> Result<(), Failure> {
    if context.output.is_json() {
        let approvals = approvals.iter().map(ApprovalDocument::from).collect();
        return context.json(&ListDocument { approvals });
    }
    let now = context.host.now();
    for (i, approval) in approvals.iter().enumerate() {
        if i > 0 {
            context.output.line("")?;
        }
        fields(approval, now, context)?;
    }
    if approvals.is_empty() {
        context.output.note("nothing waits for an approval");
    }
    Ok(())
}

fn show(approval: &ApprovalView, context: &mut Context) -> Result<(), Failure> {
    if context.output.is_json() {
        return context.json(&ApprovalDocument::from(approval));
    }
    let now = context.host.now();
    fields(approval, now, context)
}

/// Everything there is to decide by.
fn fields(approval: &ApprovalView, now: OffsetDateTime, context: &mut Context) -> Result<(), Failure> {
    let at = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
    let when = |text: &str| at(text).map_or_else(|| text.to_owned(), |at| relative(at, now));
    let state = match approval.state.as_str() {
        "pending" => {
            let (asked, lapses) = (when(&approval.requested_at), when(&approval.expires_at));
            Text::toned(Tone::Weak, "pending").then(format!(", asked {asked}, {lapses}"))
        }
        "granted" => {
            let (ends, uses) = (when(&approval.expires_at), approval.uses_left);
            Text::toned(Tone::Good, "granted").then(format!(", {ends}, to be used {uses} more {}", times(uses)))
        }
        "used" => format!("used, what it allowed ends: {}", approval.expires_at).into(),
        other => Text::toned(Tone::Bad, other),
    };
    let who = match approval.user.as_str() {
        "" => format!("{}, for nobody but itself", approval.spiffe_id),
        user => format!("{}, for {}", approval.spiffe_id, identifier(user)),
    };
    let wants = [approval.action.as_str(), approval.method.as_str(), approval.target.as_str()].map(identifier);
    let wants: Vec<_> = wants.into_iter().filter(|part| !part.is_empty()).collect();
    let decided = match approval.decided_by.as_str() {
        "" => String::new(),
        by => format!("by uid {by}, {}", when(&approval.decided_at)),
    };
    let token = match approval.kind.as_str() {
        "jwt" => "bearer JWT: whoever has it can use it".to_owned(),
        "wit" => "WIT, of use with proofs alone".to_owned(),
        other => identifier(other),
    };
    let session = session(approval, now);
    let mut fields = vec![
        ("approval", approval.id.clone().into()),
        ("state", state),
        ("agent", who.into()),
        ("wants to", wants.join(" ").into()),
        ("token", token.into()),
        ("scopes", identifier(&approval.scopes.join(" ")).into()),
        ("tool", identifier(&approval.tool).into()),
        ("arguments", if_any("SHA-256 ", &approval.arguments_sha256).into()),
        ("effect", identifier(&approval.effect).into()),
        ("purpose", identifier(&approval.purpose).into()),
        ("why", approval.why.clone().into()),
        ("policies", identifier(&approval.policies.join(" ")).into()),
        ("session", session.into()),
        ("decided", decided.into()),
        ("note", approval.note.clone().into()),
    ];
    fields.retain(|(_, value)| !value.is_empty());
    Ok(context.output.fields(&fields)?)
}

/// The session in a line: who acts, how often, and until when.
fn session(approval: &ApprovalView, now: OffsetDateTime) -> String {
    let id = identifier(&approval.session);
    let Ok(session) = serde_json::from_str::<Value>(&approval.session_json) else { return id };
    let limits =
        [("calls", "max_calls"), ("tokens", "max_tokens")].map(|(what, field)| match session[field].as_u64() {
            None | Some(0) => format!("any number of {what}"),
            Some(most) => format!("{most} {what}"),
        });
    let boundary = identifier(session["boundary"].as_str().unwrap_or_default());
    let ends = session["expires_at"].as_str().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    let ends = ends.map(|at| format!(", {}", relative(at, now))).unwrap_or_default();
    format!("{id}: {}; one {boundary}, {}{ends}", acts(&session), limits.join(", "))
}

fn times(count: u32) -> &'static str {
    if count == 1 { "time" } else { "times" }
}

fn if_any(before: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{before}{}", identifier(text)) }
}

#[derive(Serialize)]
struct ListDocument<'a> {
    approvals: Vec<ApprovalDocument<'a>>,
}

#[derive(Serialize)]
struct ApprovalDocument<'a> {
    id: &'a str,
    state: &'a str,
    session: &'a str,
    spiffe_id: &'a str,
    user: Option<&'a str>,
    purpose: &'a str,
    action: &'a str,
    target: &'a str,
    method: Option<&'a str>,
    tool: Option<&'a str>,
    arguments_sha256: Option<&'a str>,
    effect: Option<&'a str>,
    kind: Option<&'a str>,
    scopes: &'a [String],
    why: &'a str,
    policies: &'a [String],
    requested_at: &'a str,
    decided_at: Option<&'a str>,
    expires_at: Option<&'a str>,
    uses_left: u32,
    decided_by: Option<&'a str>,
    note: Option<&'a str>,
    session_document: Option<Value>,
}

impl<'a> From<&'a ApprovalView> for ApprovalDocument<'a> {
    fn from(view: &'a ApprovalView) -> Self {
        let unless_empty = |text: &'a str| Some(text).filter(|text| !text.is_empty());
        Self {
            id: &view.id,
            state: &view.state,
            session: &view.session,
            spiffe_id: &view.spiffe_id,
            user: unless_empty(&view.user),
            purpose: &view.purpose,
            action: &view.action,
            target: &view.target,
            method: unless_empty(&view.method),
            tool: unless_empty(&view.tool),
            arguments_sha256: unless_empty(&view.arguments_sha256),
            effect: unless_empty(&view.effect),
            kind: unless_empty(&view.kind),
            scopes: &view.scopes,
            why: &view.why,
            policies: &view.policies,
            requested_at: &view.requested_at,
            decided_at: unless_empty(&view.decided_at),
            expires_at: unless_empty(&view.expires_at),
            uses_left: view.uses_left,
            decided_by: unless_empty(&view.decided_by),
            note: unless_empty(&view.note),
            session_document: serde_json::from_str(&view.session_json).ok(),
        }
    }
}
