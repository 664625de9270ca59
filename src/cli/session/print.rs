//! How sessions and receipts look.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::Context;
use crate::cli::failure::Failure;
use crate::cli::output::{Tone, identifier, relative};
use crate::proto::session::{DisposalReceipt, Disposed, Session, State};
use crate::session::SessionDocument;

/// So much of an id is shown in a list: 40 bits of a random number.
const SHORT_ID: usize = 10;

#[derive(Serialize)]
struct ListDocument {
    sessions: Vec<Value>,
    total: u64,
}

/// Prints sessions, each as its document; `total` is how many there are where not all were sent.
pub(super) fn list(sessions: Vec<Value>, total: Option<u64>, context: &mut Context) -> Result<(), Failure> {
    let sent = u64::try_from(sessions.len()).unwrap_or(u64::MAX);
    let total = total.unwrap_or(sent);
    if context.output.is_json() {
        context.json(&ListDocument { sessions, total })?;
    } else {
        let now = context.host.now();
        let rows: Vec<_> = sessions.iter().map(|session| row(session, now)).collect();
        context.output.table(&["ID", "STATE", "PURPOSE", "SPIFFE ID", "USER", "PID", "CALLS", "ENDS"], &rows)?;
    }
    if sent < total {
        context.output.note(&format!("only the newest {sent} of {total}"));
    }
    Ok(())
}

fn row(session: &Value, now: OffsetDateTime) -> Vec<String> {
    let text = |field: &str| identifier(session[field].as_str().unwrap_or_default());
    let when = |field: &str| at(&text(field)).map(|at| relative(at, now)).unwrap_or_default();
    let number = |field: &str| session[field].as_u64().unwrap_or_default();
    let ends = match text("end_reason").as_str() {
        "" => when("expires_at"),
        reason => format!("{reason} {}", when("ended_at")),
    };
    vec![
        short(&text("id")).to_owned(),
        text("state"),
        text("purpose"),
        text("spiffe_id"),
        text("user"),
        number("pid").to_string(),
        of(number("calls"), number("max_calls")),
        ends,
    ]
}

/// `3`, or `3 of 10` where there is a limit.
fn of(used: u64, limit: u64) -> String {
    if limit == 0 { used.to_string() } else { format!("{used} of {limit}") }
}

/// The beginning of an id, without the node in front of it.
fn short(id: &str) -> &str {
    let own = id.rsplit_once('.').map_or(id, |(_, own)| own);
    own.get(..SHORT_ID).unwrap_or(own)
}

fn at(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// One change on one line.
pub(super) fn line(session: &Session, now: OffsetDateTime) -> String {
    let state = session.state().as_str_name().to_lowercase();
    let (id, purpose) = (&session.id, identifier(&session.purpose));
    match session.state() {
        State::Ended => format!("{}  {id}  {state}: {}  {purpose}", session.ended_at, session.end_reason),
        _ => format!("{}  {id}  {state}  {purpose}", crate::cli::output::time(now)),
    }
}

/// Prints one session.
pub(super) fn show(session: &Session, context: &mut Context) -> Result<(), Failure> {
    if context.output.is_json() {
        return context.json(&SessionDocument::from(session));
    }
    let now = context.host.now();
    let when = |text: &str| at(text).map_or_else(|| text.to_owned(), |at| format!("{text} ({})", relative(at, now)));
    let output = &context.output;
    let state = match session.state() {
        State::Active => format!("{} until {}", output.toned(Tone::Good, "active"), when(&session.expires_at)),
        State::PendingApproval => {
            format!("{} {}", output.toned(Tone::Weak, "waits for approval"), identifier(&session.approval))
        }
        State::Suspended => output.toned(Tone::Weak, "suspended"),
        State::Ended => {
            format!("{} at {}: {}", output.toned(Tone::Bad, "ended"), when(&session.ended_at), session.end_reason)
        }
        State::Unspecified => "unknown: the agent is newer than this command".to_owned(),
    };
    let user = match session.user.as_str() {
        "" => "nobody: the agent acts for itself".to_owned(),
        user => identifier(user),
    };
    let budget = session.budget.unwrap_or_default();
    let heartbeat = match session.heartbeat_seconds {
        0 => String::new(),
        seconds => format!("every {seconds} s, next {}", when(&session.heartbeat_due)),
    };
    let scope = session.scope().as_str_name().to_lowercase();
    let mut fields = vec![
        ("id", session.id.clone()),
        ("state", state),
        ("SPIFFE ID", session.spiffe_id.clone()),
        ("entry", identifier(&session.entry)),
        ("for", user),
        ("purpose", identifier(&session.purpose)),
        ("targets", identifier(&session.targets.join(" "))),
        ("scopes", identifier(&session.scopes.join(" "))),
        ("boundary", session.boundary().as_str_name().to_lowercase()),
        ("acts", format!("{scope} {} of uid {}: {}", session.pid, session.uid, session.tie)),
        ("binding", session.binding.to_string()),
        ("calls", of(session.calls.into(), budget.max_calls.into())),
        ("tokens", of(session.tokens.into(), budget.max_tokens.into())),
        ("started", when(&session.started_at)),
        ("heartbeat", heartbeat),
        ("parent", session.parent.clone()),
        ("resumes", identifier(&session.resumes)),
        ("launched", identifier(&session.launched.join(" "))),
        ("key", session.key_thumbprint.clone()),
    ];
    fields.retain(|(_, value)| !value.is_empty());
    Ok(context.output.fields(&fields)?)
}

/// Prints what became of what a session was given.
pub(super) fn receipt(receipt: &DisposalReceipt, context: &mut Context) -> Result<(), Failure> {
    if context.output.is_json() {
        return context.json(&ReceiptDocument::from(receipt));
    }
    let before = if receipt.had_ended { ", before this command" } else { "" };
    let mut fields = vec![
        ("session", receipt.session.clone()),
        ("ended", format!("{} at {}{before}", receipt.end_reason, receipt.ended_at)),
    ];
    let below = receipt.ended.iter().filter(|id| **id != receipt.session);
    fields.extend(below.map(|id| ("with it", id.clone())));
    fields.push(("keys wiped", receipt.keys_wiped.to_string()));
    let disposed = |what: &Disposed| {
        let id = if what.id.is_empty() { String::new() } else { format!(" {}", what.id) };
        format!("{}{id} for {}", what.kind, identifier(&what.target))
    };
    fields.extend(receipt.revoked.iter().map(|what| ("revoked", disposed(what))));
    let left = |what: &Disposed| format!("{}; at services that do not ask, until {}", disposed(what), what.until);
    fields.extend(receipt.remaining.iter().map(|what| ("remains", left(what))));
    for kept in &receipt.kept {
        let until = if kept.until.is_empty() { "as long as there is room" } else { kept.until.as_str() };
        fields.push(("kept", format!("{}, until {until}", kept.what)));
    }
    Ok(context.output.fields(&fields)?)
}

#[derive(Serialize)]
struct ReceiptDocument<'a> {
    session: &'a str,
    end_reason: &'a str,
    ended_at: &'a str,
    had_ended: bool,
    ended: &'a [String],
    keys_wiped: u32,
    revoked: Vec<DisposedDocument<'a>>,
    remaining: Vec<DisposedDocument<'a>>,
    kept: Vec<KeptDocument<'a>>,
}

#[derive(Serialize)]
struct DisposedDocument<'a> {
    kind: &'a str,
    id: Option<&'a str>,
    target: &'a str,
    until: Option<&'a str>,
}

#[derive(Serialize)]
struct KeptDocument<'a> {
    what: &'a str,
    until: Option<&'a str>,
}

impl<'a> From<&'a DisposalReceipt> for ReceiptDocument<'a> {
    fn from(receipt: &'a DisposalReceipt) -> Self {
        let unless_empty = |text: &'a str| Some(text).filter(|text| !text.is_empty());
        let disposed = |all: &'a [Disposed]| {
            let document = |what: &'a Disposed| DisposedDocument {
                kind: &what.kind,
                id: unless_empty(&what.id),
                target: &what.target,
                until: unless_empty(&what.until),
            };
            all.iter().map(document).collect()
        };
        let kept = receipt.kept.iter();
        Self {
            session: &receipt.session,
            end_reason: &receipt.end_reason,
            ended_at: &receipt.ended_at,
            had_ended: receipt.had_ended,
            ended: &receipt.ended,
            keys_wiped: receipt.keys_wiped,
            revoked: disposed(&receipt.revoked),
            remaining: disposed(&receipt.remaining),
            kept: kept.map(|kept| KeptDocument { what: &kept.what, until: unless_empty(&kept.until) }).collect(),
        }
    }
}
