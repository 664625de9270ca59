//! `tether status` and `tether log level`.
//!
//! The agent makes the document; this shows whatever is in it. A newer agent's status is thus readable with an older
//! command.

mod frame;
mod watch;

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

pub(super) async fn run(args: StatusArgs, context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    if args.watch {
        return watch::run(&admin, context).await;
    }
    let document = fetch(&admin).await?;
    if context.output.is_json() { Ok(context.output.json(&document)?) } else { print(&document, context) }
}

async fn fetch(admin: &Admin) -> Result<Map<String, Value>, Failure> {
    let answer = admin.answer(admin.agent().status(StatusRequest {})).await?;
    serde_json::from_str(&answer.json)
        .map_err(|error| Failure::new(Exit::Failure, format!("the agent's status is not JSON: {error}")))
}

/// The document for a person: a line for each value, then a block for each object and a table for each list.
fn print(document: &Map<String, Value>, context: &mut Context) -> Result<(), Failure> {
    let now = context.host.now();
    let is_block = |value: &Value| matches!(value, Value::Object(_) | Value::Array(_));
    let lines = document.iter().filter(|(name, value)| *name != "version" && !is_block(value));
    let lines: Vec<_> = lines.map(|(name, value)| (spaced(name), inline(value, now))).collect();
    fields(&lines, context)?;
    for (name, value) in document.iter().filter(|(_, value)| is_block(value)) {
        context.output.line("")?;
        context.output.line(spaced(name).to_uppercase())?;
        match value {
            Value::Object(block) => {
                let lines: Vec<_> = block.iter().map(|(name, value)| (spaced(name), inline(value, now))).collect();
                fields(&lines, context)?;
            }
            Value::Array(items) => list(items, now, context)?,
            _ => {}
        }
    }
    Ok(())
}

fn fields(lines: &[(String, String)], context: &mut Context) -> Result<(), Failure> {
    let lines: Vec<_> = lines.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    Ok(context.output.fields(&lines)?)
}

/// Objects become the rows of a table; anything else a line each.
fn list(items: &[Value], now: OffsetDateTime, context: &mut Context) -> Result<(), Failure> {
    let objects: Vec<_> = items.iter().filter_map(Value::as_object).collect();
    if let Some(first) = objects.first().filter(|_| objects.len() == items.len()) {
        let names: Vec<_> = first.keys().map(|name| spaced(name)).collect();
        let header: Vec<_> = names.iter().map(String::as_str).collect();
        let cell =
            |object: &Map<String, Value>, name: &String| object.get(name).map_or_else(String::new, |v| inline(v, now));
        let rows: Vec<_> = objects.iter().map(|object| first.keys().map(|name| cell(object, name)).collect()).collect();
        return Ok(context.output.table(&header, &rows)?);
    }
    if items.is_empty() {
        return Ok(context.output.line("none")?);
    }
    for item in items {
        context.output.line(&inline(item, now))?;
    }
    Ok(())
}

fn inline(value: &Value, now: OffsetDateTime) -> String {
    match value {
        Value::Object(fields) => {
            let parts: Vec<_> =
                fields.iter().map(|(name, value)| format!("{} {}", spaced(name), inline(value, now))).collect();
            parts.join(", ")
        }
        Value::Array(items) if items.is_empty() => "none".to_owned(),
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
