//! `tether audit`: what happened, and whether that is all of it.

use serde_json::{Map, Value};
use time::format_description::well_known::Rfc3339;
use tonic::Streaming;

use crate::audit::{self, Link};
use crate::base::text::chain;
use crate::proto::admin::{AuditRecords, QueryAuditRequest, TailRequest, VerifyAuditRequest};

use super::args::{AuditCommand, Moment, QueryArgs, VerifyAuditArgs};
use super::failure::{Exit, Failure};
use super::output::{Text, Tone};
use super::{Admin, Context};

/// What every record has and what a person does not read line by line.
const OF_THE_CHAIN: &[&str] = &["version", "seq", "time", "node", "prev", "event", "hash"];

pub(super) async fn run(command: AuditCommand, context: &mut Context) -> Result<(), Failure> {
    match command {
        AuditCommand::Tail { lines, follow } => {
            let admin = context.admin()?;
            let records = admin.answer(admin.audit_log().tail(TailRequest { last: lines, once: !follow })).await?;
            each(&admin, records, |line| print(&line, context)).await
        }
        AuditCommand::Query(args) => {
            let admin = context.admin()?;
            let request = request(args, context);
            let records = admin.answer(admin.audit_log().query(request)).await?;
            each(&admin, records, |line| print(&line, context)).await
        }
        AuditCommand::Verify(args) => verify(args, context).await,
    }
}

/// Shows each line of a stream to `take`.
pub(super) async fn each(
    admin: &Admin,
    mut records: Streaming<AuditRecords>,
    mut take: impl FnMut(String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    loop {
        let message = records.message().await.map_err(|status| Failure::from_admin(&admin.endpoint, &status))?;
        let Some(AuditRecords { lines }) = message else { return Ok(()) };
        lines.into_iter().try_for_each(&mut take)?;
    }
}

fn request(args: QueryArgs, context: &Context) -> QueryAuditRequest {
    let QueryArgs { since, until, event, session, below, txn, spiffe_id, user, limit } = args;
    let text = |text: Option<String>| text.unwrap_or_default();
    let time = |moment: Option<Moment>| {
        let at = moment.map(|moment| match moment {
            Moment::At(at) => at,
            Moment::Ago(span) => context.host.now() - span,
        });
        at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
    };
    QueryAuditRequest {
        since: time(since),
        until: time(until),
        events: event,
        session: text(session),
        txn: text(txn),
        spiffe_id: text(spiffe_id),
        user: text(user),
        limit: limit.unwrap_or_default(),
        below,
    }
}

fn print(line: &str, context: &mut Context) -> Result<(), Failure> {
    if context.output.is_json() {
        return Ok(context.output.document(line)?);
    }
    let Ok(Value::Object(record)) = serde_json::from_str(line) else {
        // Nothing is left out because it is not understood.
        return Ok(context.output.line(line)?);
    };
    let seq = record.get("seq").map(Value::to_string).unwrap_or_default();
    let when = format!("{}  {seq:>6}  ", clock(text(&record, "time")));
    let event = Text::from(when).then_toned(tone(&record), text(&record, "event"));
    Ok(context.output.line(event.then(format!("  {}", details(&record, &[]))))?)
}

/// Whether somebody did not get what it wanted.
pub(super) fn tone(record: &Map<String, Value>) -> Tone {
    let refused = |field: &str| record.get(field) == Some(&Value::Bool(false));
    match text(record, "event") {
        "refused" | "token_refused" | "proof_refused" | "connection_refused" | "refusals_folded"
        | "entries_refused" | "policy_refused" | "suspicious_use" | "audit_repaired" | "state_repaired"
        | "audit_interrupted" => Tone::Bad,
        "decided" if refused("allowed") => Tone::Bad,
        "call_checked" if refused("active") => Tone::Bad,
        _ => Tone::Plain,
    }
}

/// A field as text; empty when there is none.
pub(super) fn text<'a>(record: &'a Map<String, Value>, field: &str) -> &'a str {
    record.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// To the millisecond.
pub(super) fn clock(time: &str) -> String {
    let Some((to_the_second, rest)) = time.trim_end_matches('Z').split_once('.') else { return time.to_owned() };
    format!("{to_the_second}.{:0<3}Z", rest.get(..3).unwrap_or(rest))
}

/// The fields of a record on one line, without those of the chain and these.
pub(super) fn details(record: &Map<String, Value>, without: &[&str]) -> String {
    let shown =
        record.iter().filter(|(name, _)| !OF_THE_CHAIN.contains(&name.as_str()) && !without.contains(&name.as_str()));
    shown.map(|(name, value)| format!("{name}={}", shown_value(value))).collect::<Vec<_>>().join(" ")
}

fn shown_value(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() || text.contains([' ', '"', '=']) => format!("\"{text}\""),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(shown_value).collect::<Vec<_>>().join(","),
        // Of a process; its instance is for programs.
        Value::Object(fields) if fields.contains_key("pid") => {
            let field = |name| fields.get(name).map(Value::to_string).unwrap_or_default();
            format!("pid:{},uid:{}", field("pid"), field("uid"))
        }
        other => other.to_string(),
    }
}

async fn verify(args: VerifyAuditArgs, context: &mut Context) -> Result<(), Failure> {
    let report = match args.dir {
        Some(dir) => {
            let head = args.head.unwrap_or_else(|| audit::head_path(&dir));
            let failed = |error: audit::AuditError| Failure::new(Exit::Failure, chain(&error));
            // The head first: what it names was written before the files are looked at.
            let expected = audit::expected(&head, args.noted.as_slice()).map_err(failed)?;
            let parts = audit::parts(&dir).map_err(failed)?;
            let report = audit::verify(&parts, &expected).map_err(failed)?;
            serde_json::to_value(report).map_err(|error| Failure::new(Exit::Failure, error.to_string()))?
        }
        None => {
            let admin = context.admin()?;
            let noted = args.noted.as_ref().map(Link::to_string).unwrap_or_default();
            let answer = admin.answer(admin.audit_log().verify(VerifyAuditRequest { noted })).await?;
            let unreadable = |_| Failure::new(Exit::Failure, "the agent's answer is not JSON");
            serde_json::from_str(&answer.json).map_err(unreadable)?
        }
    };
    if context.output.is_json() {
        context.json(&report)?;
    } else {
        show(&report, context)?;
    }
    if report["ok"] == Value::Bool(true) { Ok(()) } else { Err(Failure::silent(Exit::Invalid)) }
}

fn show(report: &Value, context: &mut Context) -> Result<(), Failure> {
    let number = |field: &str| report[field].as_u64().unwrap_or_default();
    let word = |field: &str| report[field].as_str().unwrap_or_default();
    let begins = match word("begins") {
        "at_the_first" => "with the first record of the chain",
        "after_retired" => "after records that were removed as configured, which a record says",
        "nowhere" => "there is no record",
        _ => "after records that are missing",
    };
    let head = match word("head") {
        "found" => "the record it must have at least is there",
        "unknown" => "not known where it must end: whether records are missing at the end was not checked",
        _ => "a record that it must have is not there",
    };
    let ok = report["ok"] == Value::Bool(true);
    let verdict = if ok { ("in order", Tone::Good) } else { ("broken", Tone::Bad) };
    let mut fields = vec![
        ("chain", Text::toned(verdict.1, verdict.0)),
        ("records", number("records").to_string().into()),
        ("files", number("files").to_string().into()),
        ("begins", begins.into()),
        ("ends", head.into()),
        ("last", word("last").into()),
    ];
    if number("torn") > 0 {
        let torn =
            format!("{} bytes at the end: a record that is being written, or a crash in the middle", number("torn"));
        fields.push(("torn", torn.into()));
    }
    context.output.fields(&fields)?;
    for problem in report["problems"].as_array().into_iter().flatten() {
        let part = |field: &str| problem[field].as_str().unwrap_or_default();
        let record = problem["seq"].as_u64().map(|seq| format!("record {seq}: ")).unwrap_or_default();
        let place = format!("{}:{}: ", part("file"), problem["line"]);
        let kind = Text::from(place).then_toned(Tone::Bad, part("kind"));
        context.output.line(kind.then(format!(": {record}{}", part("what"))))?;
    }
    if number("more_problems") > 0 {
        context.output.line(format!("and {} more", number("more_problems")))?;
    }
    Ok(())
}
