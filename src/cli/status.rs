//! `tether status` and `tether log level`.
//!
//! The agent makes the document; this shows whatever is in it. A newer agent's status is thus readable with an older
//! command.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::LogFilter;
use crate::proto::admin::{LogLevelRequest, StatusRequest};

use super::args::StatusArgs;
use super::failure::{Exit, Failure};
use super::output::relative;
use super::{Admin, Context};

/// How long `--watch` waits before it asks again.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Moves a terminal's cursor home and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(super) async fn run(args: StatusArgs, context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    loop {
        let document = fetch(&admin).await?;
        if args.watch && context.output.is_terminal() && !context.output.is_json() {
            context.output.text(CLEAR)?;
        }
        if context.output.is_json() {
            context.output.json(&document)?;
        } else {
            context.output.text(&render(&document, context.host.now()))?;
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

async fn fetch(admin: &Admin) -> Result<Map<String, Value>, Failure> {
    let answer = admin.answer(admin.agent().status(StatusRequest {})).await?;
    serde_json::from_str(&answer.json)
        .map_err(|error| Failure::new(Exit::Failure, format!("the agent's status is not JSON: {error}")))
}

/// The document for a person: a line for each value, a block for each object, a line for each item of a list.
fn render(document: &Map<String, Value>, now: OffsetDateTime) -> String {
    let mut text = String::new();
    let is_line = |value: &&Value| !matches!(value, Value::Object(_) | Value::Array(_));
    for (name, value) in document.iter().filter(|(name, value)| *name != "version" && is_line(value)) {
        text.push_str(&format!("{}: {}\n", spaced(name), scalar(value, now)));
    }
    for (name, value) in document.iter().filter(|(_, value)| !is_line(value)) {
        text.push_str(&format!("\n{}\n", spaced(name)));
        block(value, now, &mut text);
    }
    text
}

fn block(value: &Value, now: OffsetDateTime, text: &mut String) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                text.push_str(&format!("  {}: {}\n", spaced(name), inline(value, now)));
            }
        }
        Value::Array(items) if items.is_empty() => text.push_str("  none\n"),
        Value::Array(items) => {
            for item in items {
                text.push_str(&format!("  {}\n", inline(item, now)));
            }
        }
        other => text.push_str(&format!("  {}\n", scalar(other, now))),
    }
}

fn inline(value: &Value, now: OffsetDateTime) -> String {
    match value {
        Value::Object(fields) => {
            let parts: Vec<_> =
                fields.iter().map(|(name, value)| format!("{} {}", spaced(name), inline(value, now))).collect();
            parts.join(", ")
        }
        Value::Array(items) => items.iter().map(|item| inline(item, now)).collect::<Vec<_>>().join("; "),
        other => scalar(other, now),
    }
}

fn scalar(value: &Value, now: OffsetDateTime) -> String {
    match value {
        Value::String(text) => match OffsetDateTime::parse(text, &Rfc3339) {
            Ok(at) => format!("{text} ({})", relative(at, now)),
            Err(_) => text.clone(),
        },
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    }
}

fn spaced(name: &str) -> String {
    name.replace('_', " ")
}

#[derive(Serialize)]
struct LevelDocument {
    level: String,
}

pub(super) async fn log_level(level: Option<LogFilter>, context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    let request = LogLevelRequest { level: level.map(|level| level.to_string()).unwrap_or_default() };
    let level = admin.answer(admin.agent().log_level(request)).await?.level;
    if context.output.is_json() {
        return context.json(&LevelDocument { level });
    }
    Ok(context.output.line(&level)?)
}
