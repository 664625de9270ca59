//! How sessions and receipts look.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::Context;
use crate::cli::failure::Failure;
use crate::cli::output::{Text, Tone, identifier, relative};
use crate::proto::session::{DisposalReceipt, Disposed, Session, State};

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
pub(super) fn show(session: &Value, context: &mut Context) -> Result<(), Failure> {
    if context.output.is_json() {
        return context.json(session);
    }
    let now = context.host.now();
    let text = |field: &str| identifier(session[field].as_str().unwrap_or_default());
    let number = |field: &str| session[field].as_u64().unwrap_or_default();
    let list = |field: &str| {
        let items = session[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        identifier(&items.collect::<Vec<_>>().join(" "))
    };
    let when = |field: &str| {
        let text = text(field);
        at(&text).map_or(text.clone(), |at| format!("{text} ({})", relative(at, now)))
    };
    let state = match text("state").as_str() {
        "active" => Text::toned(Tone::Good, "active").then(format!(" until {}", when("expires_at"))),
        "pending_approval" => Text::toned(Tone::Weak, "waits for approval").then(format!(" {}", text("approval"))),
        "suspended" => Text::toned(Tone::Weak, "suspended"),
        "ended" => Text::toned(Tone::Bad, "ended").then(format!(" at {}: {}", when("ended_at"), text("end_reason"))),
        other => other.into(),
    };
    let user = match text("user").as_str() {
        "" => "nobody: the agent acts for itself".to_owned(),
        user => user.to_owned(),
    };
    let heartbeat = match number("heartbeat_seconds") {
        0 => String::new(),
        seconds => format!("every {seconds} s, next {}", when("heartbeat_due")),
    };
    let mut fields = vec![
        ("id", text("id").into()),
        ("state", state),
        ("SPIFFE ID", text("spiffe_id").into()),
        ("entry", text("entry").into()),
        ("for", user.into()),
        ("purpose", text("purpose").into()),
        ("targets", list("targets").into()),
        ("scopes", list("scopes").into()),
        ("boundary", text("boundary").into()),
        ("acts", acts(session).into()),
        ("bound to", text("tie").into()),
        ("binding", number("binding").to_string().into()),
        ("calls", of(number("calls"), number("max_calls")).into()),
        ("tokens", of(number("tokens"), number("max_tokens")).into()),
        ("started", when("started_at").into()),
        ("heartbeat", heartbeat.into()),
        ("parent", text("parent").into()),
        ("resumes", text("resumes").into()),
        ("launched", list("launched").into()),
        ("key", text("key_thumbprint").into()),
    ];
    fields.retain(|(_, value)| !value.is_empty());
    Ok(context.output.fields(&fields)?)
}

/// Who acts in a session, in words.
pub(in crate::cli) fn acts(session: &Value) -> String {
    let number = |field: &str| session[field].as_u64().unwrap_or_default();
    let (pid, uid) = (number("pid"), number("uid"));
    match session["scope"].as_str() {
        Some("tree") => format!("process {pid} and all it starts, uid {uid}"),
        Some("cgroup") => format!("every process in the cgroup of process {pid}, uid {uid}"),
        _ => format!("process {pid}, uid {uid}"),
    }
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
        let target = if what.target.is_empty() { String::new() } else { format!(" for {}", identifier(&what.target)) };
        match what.id.as_str() {
            "" => format!("{}{target}", what.kind),
            id => format!("{} {id}{target}", what.kind),
        }
    };
    fields.extend(receipt.revoked.iter().map(|what| ("revoked", disposed(what))));
    let left = |what: &Disposed| format!("{}; at services that do not ask, until {}", disposed(what), what.until);
    fields.extend(receipt.remaining.iter().map(|what| ("remains", left(what))));
    for kept in &receipt.kept {
        let until = if kept.until.is_empty() { String::new() } else { format!(", until {}", kept.until) };
        fields.push(("kept", format!("in the {}{until}", kept.what)));
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
