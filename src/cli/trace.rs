//! `tether session trace`: one task from its start to its end, with all below it, as the audit log has it.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::proto::admin::QueryAuditRequest;

use super::Context;
use super::audit::{clock, details, each, text, tone};
use super::failure::{Exit, Failure};
use super::output::{Text, Tone, identifier};
use super::session::SESSION_VARIABLE;

/// So much of an id is shown inside of a tree.
const SHORT_ID: usize = 10;

type Record = Map<String, Value>;

/// Shows the session that is named, or else that of the environment, on the admin socket: role viewer.
pub(super) async fn run(id: Option<String>, context: &mut Context) -> Result<(), Failure> {
    let id = id.or_else(|| context.host.variable(SESSION_VARIABLE).map(str::to_owned));
    let id = id.ok_or_else(|| {
        Failure::new(Exit::Usage, format!("name the session, as an argument or in {SESSION_VARIABLE}"))
    })?;
    let admin = context.admin()?;
    let request = QueryAuditRequest { session: id.clone(), below: true, ..QueryAuditRequest::default() };
    let answer = admin.answer(admin.audit_log().query(request)).await?;
    let mut records = Vec::new();
    each(&admin, answer, |line| {
        if let Ok(Value::Object(record)) = serde_json::from_str(&line) {
            records.push(record);
        }
        Ok(())
    })
    .await?;
    let mut roots = trees(records);
    match roots.len() {
        0 => Err(Failure::new(
            Exit::Failure,
            format!(
                "the audit log has no session `{}`: give an id, or 6 or more of its first digits; older records may have \
                 been removed, see `[audit] keep`",
                identifier(&id)
            ),
        )),
        1 => show(&roots.remove(0), context),
        _ => {
            let ids: Vec<_> = roots.iter().map(|root| identifier(&root.id)).collect();
            let text = format!("several sessions begin with `{}`: {}", identifier(&id), ids.join(", "));
            Err(Failure::new(Exit::Usage, text))
        }
    }
}

/// A session as the records tell it.
#[derive(Debug, Serialize)]
struct Traced {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    /// `active`, `pending_approval`, `suspended` or `ended`, after the last record.
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_reason: Option<String>,
    records: Vec<Record>,
    children: Vec<Traced>,
}

/// The sessions that no other one is above of, in the order of their first records.
fn trees(records: Vec<Record>) -> Vec<Traced> {
    let mut order: Vec<String> = Vec::new();
    let mut sessions: HashMap<String, Traced> = HashMap::new();
    for record in records {
        let id = text(&record, "session").to_owned();
        let traced = sessions.entry(id.clone()).or_insert_with(|| {
            order.push(id.clone());
            Traced {
                id,
                parent: None,
                state: "active".to_owned(),
                end_reason: None,
                records: Vec::new(),
                children: Vec::new(),
            }
        });
        match text(&record, "event") {
            "session_started" => {
                traced.state = text(&record, "state").to_owned();
                traced.parent = Some(text(&record, "parent").to_owned()).filter(|parent| !parent.is_empty());
            }
            "session_activated" | "session_resumed" => traced.state = "active".to_owned(),
            "session_suspended" => traced.state = "suspended".to_owned(),
            "session_ended" => {
                traced.state = "ended".to_owned();
                traced.end_reason = Some(text(&record, "reason").to_owned());
            }
            _ => {}
        }
        traced.records.push(record);
    }
    // A child's first record comes after its parent's: from the last on, each has all that are below it.
    let mut roots = Vec::new();
    for id in order.iter().rev() {
        let Some(mut traced) = sessions.remove(id) else { continue };
        traced.children.reverse();
        let above = traced.parent.as_ref().and_then(|parent| sessions.get_mut(parent));
        match above {
            Some(parent) => parent.children.push(traced),
            None => roots.push(traced),
        }
    }
    roots.reverse();
    roots
}

fn show(traced: &Traced, context: &mut Context) -> Result<(), Failure> {
    if context.output.is_json() {
        return context.json(traced);
    }
    print(traced, "", context)
}

/// What a session began with, that is worth a line of its own.
const TERMS: &[(&str, &str)] = &[
    ("spiffe_id", "agent"),
    ("user", "user"),
    ("purpose", "purpose"),
    ("targets", "targets"),
    ("scopes", "scopes"),
    ("launched", "launched"),
];

fn print(traced: &Traced, indent: &str, context: &mut Context) -> Result<(), Failure> {
    let (tone, state) = match (&traced.end_reason, traced.state.as_str()) {
        (Some(reason), _) => (Tone::Plain, format!("ended: {reason}")),
        (None, "active") => (Tone::Good, "active".to_owned()),
        (None, state) => (Tone::Weak, state.to_owned()),
    };
    let session = format!("{indent}session {}  ", identifier(&traced.id));
    context.output.line(Text::from(session).then_toned(tone, state))?;
    let inside = format!("{indent}│ ");
    let started = traced.records.iter().find(|record| text(record, "event") == "session_started");
    match started {
        Some(started) => {
            for (field, label) in TERMS {
                if let Some(value) = started.get(*field) {
                    context.output.line(&format!("{inside}{label:<9}{}", words(value)))?;
                }
            }
        }
        None => context.output.line(&format!("{inside}its start is older than what is kept"))?,
    }
    let mut children = traced.children.iter().peekable();
    let mut shown = vec![false; traced.records.len()];
    for (at, record) in traced.records.iter().enumerate() {
        if std::mem::replace(&mut shown[at], true) {
            continue;
        }
        // What began in between stands in between.
        while let Some(child) = children.next_if(|child| seq(child.records.first()) < seq(Some(record))) {
            print(child, &inside, context)?;
        }
        step(record, &inside, context)?;
        let txn = text(record, "txn");
        if txn.is_empty() {
            continue;
        }
        // The same call, seen by others.
        for (later, other) in traced.records.iter().enumerate().skip(at + 1) {
            if !shown[later] && text(other, "txn") == txn {
                shown[later] = true;
                step(other, &format!("{inside}└ "), context)?;
            }
        }
    }
    children.try_for_each(|child| print(child, &inside, context))
}

fn step(record: &Record, indent: &str, context: &mut Context) -> Result<(), Failure> {
    let when = format!("{indent}{}  ", clock(text(record, "time")));
    Ok(context.output.line(Text::from(when).then_toned(tone(record), told(record)))?)
}

fn seq(record: Option<&Record>) -> u64 {
    record.and_then(|record| record.get("seq")).and_then(Value::as_u64).unwrap_or(u64::MAX)
}

/// What a record says, as a sentence for those that every trace has.
fn told(record: &Record) -> String {
    let field = |name: &str| text(record, name);
    let list = |name: &str| record.get(name).map(words).unwrap_or_default();
    let number = |name: &str| record.get(name).map(Value::to_string).unwrap_or_default();
    let with = |label: &str, name: &str| match record.get(name) {
        Some(value) => format!(", {label}{}", words(value)),
        None => String::new(),
    };
    let caller = || match record.get("caller") {
        Some(caller) => format!("pid {} (uid {})", caller["pid"], caller["uid"]),
        None => "the agent".to_owned(),
    };
    let policies = || with("by ", "policies");
    match text(record, "event") {
        "session_started" => format!(
            "started by {} as {}, until {}{}{}",
            caller(),
            field("state"),
            field("not_after"),
            with("approval ", "approval"),
            policies()
        ),
        "session_activated" => format!("active{}", with("approval ", "approval")),
        "session_suspended" => format!("suspended by {}", field("by")),
        "session_resumed" => format!("resumed by {}", field("by")),
        "session_ended" => {
            let revoked = record.get("revoked").and_then(Value::as_array).map_or(0, Vec::len);
            let by = with("by ", "by");
            format!(
                "ended: {}{by}; keys wiped: {}, credentials revoked: {revoked}",
                field("reason"),
                number("keys_wiped")
            )
        }
        "token_minted" => format!(
            "token {} {} for {}{}, until {}{}",
            field("kind"),
            short(text(record, "serial")),
            field("target"),
            with("scopes ", "scopes"),
            field("not_after"),
            policies()
        ),
        "proof_made" => format!(
            "call {} {}{} ({}){}{}{}",
            field("method"),
            field("uri"),
            with("tool ", "tool"),
            field("effect"),
            with("arguments sha256:", "arguments_sha256"),
            with("approval ", "approval"),
            policies()
        ),
        "decided" => format!(
            "{} of {}{}: {}, {}{}{}{}{}",
            field("action"),
            field("target"),
            with("tool ", "tool"),
            if record.get("allowed") == Some(&Value::Bool(true)) { "allowed" } else { "not allowed" },
            field("reason"),
            checks(record),
            with("approval ", "approval"),
            policies(),
            with("errors ", "errors"),
        ),
        "call_checked" => {
            let good = record.get("active") == Some(&Value::Bool(true));
            let verdict = if good { "good".to_owned() } else { format!("refused, {}", field("reason")) };
            format!("checked by {}: {verdict}{}{}", caller(), checks(record), policies())
        }
        "call_reported" => format!(
            "the tool says: {}{}{}",
            field("outcome"),
            with("", "note"),
            with("result sha256:", "result_sha256")
        ),
        "approval_requested" => format!(
            "approval {} wanted for {} of {}{}: {}",
            field("approval"),
            field("action"),
            list("target"),
            with("tool ", "tool"),
            field("why")
        ),
        "approval_decided" => {
            format!("approval {} {} by {}{}", field("approval"), field("verdict"), field("by"), with("", "note"))
        }
        "suspicious_use" => format!("SUSPICIOUS {} by {}: {}", field("what"), caller(), field("detail")),
        event => format!("{event} {}", details(record, &["session", "txn"])),
    }
}

/// The three questions, as far as they were asked.
fn checks(record: &Record) -> String {
    let answer = |(field, label): &(&str, &str)| {
        let yes = record.get(*field)?.as_bool()?;
        Some(format!("{label} {}", if yes { "yes" } else { "no" }))
    };
    let asked = [("user_ok", "user"), ("agent_ok", "agent"), ("policy_ok", "policy")];
    let answers: Vec<_> = asked.iter().filter_map(answer).collect();
    if answers.is_empty() { String::new() } else { format!(" ({})", answers.join(", ")) }
}

fn words(value: &Value) -> String {
    match value {
        Value::Array(values) => values.iter().map(words).collect::<Vec<_>>().join(" "),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The beginning of an id, without the node in front of it.
fn short(id: &str) -> String {
    let own = id.rsplit_once('.').map_or(id, |(_, own)| own);
    identifier(own.get(..SHORT_ID).unwrap_or(own))
}
