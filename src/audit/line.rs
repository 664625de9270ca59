//! An event as a line of the log, with its fields as fields, so that a JSON log can be searched by them.

use time::format_description::well_known::Rfc3339;

use super::record::{Level, Record};
use super::{Caller, Value};
use crate::base::text::one_word;

/// What stands in place of a field that a policy wants left out.
pub(super) const REDACTED: &str = "redacted";

/// Writes a record to the log, if anybody wants it there.
pub(super) fn log(record: &Record) {
    let level = record.event().level();
    let wanted = match level {
        Level::Warning => tracing::enabled!(target: "tether::audit", tracing::Level::WARN),
        Level::Usual => tracing::enabled!(target: "tether::audit", tracing::Level::INFO),
        Level::Frequent => tracing::enabled!(target: "tether::audit", tracing::Level::DEBUG),
    };
    if wanted {
        write(level, &Line::of(record));
    }
}

/// The fields of a record.
struct Line<'a> {
    event: &'static str,
    caller: Option<&'a Caller>,
    on_behalf_of: Option<&'a Caller>,
    texts: Vec<(&'static str, String)>,
}

/// Makes the function that writes a line. Fields that an event does not have are left out; those that few events have
/// share `more`, for a log's fields are known to the compiler.
macro_rules! lines {
    ($($field:ident)+) => {
        const NAMED: &[&str] = &[$(stringify!($field)),+];

        fn write(level: Level, line: &Line<'_>) {
            macro_rules! at {
                ($macro:ident) => {
                    tracing::$macro!(
                        target: "tether::audit",
                        instance = line.caller.map(|caller| caller.instance.as_str()).filter(|name| !name.is_empty()),
                        pid = line.caller.map(|caller| caller.pid),
                        uid = line.caller.map(|caller| caller.uid),
                        on_behalf_of = line.on_behalf_of.map(|other| other.instance.as_str()),
                        $($field = line.text(stringify!($field)),)+
                        more = line.more(),
                        "{}",
                        line.event
                    )
                };
            }
            match level {
                Level::Warning => at!(warn),
                Level::Usual => at!(info),
                Level::Frequent => at!(debug),
            }
        }
    };
}

lines! {
    session txn spiffe_id user purpose kind binding change action subject what entry serial audience target request tool
    approval reason not_after detail
}

impl<'a> Line<'a> {
    fn of(record: &'a Record) -> Self {
        let mut line = Self { event: record.event().name(), caller: None, on_behalf_of: None, texts: Vec::new() };
        record.each_field(|name, value| match (name, value) {
            ("caller", Some(Value::Caller(caller))) => line.caller = Some(caller),
            ("on_behalf_of", Some(Value::Caller(caller))) => line.on_behalf_of = Some(caller),
            (name, value) => line.texts.push((name, value.map_or_else(|| REDACTED.to_owned(), text))),
        });
        line
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.texts.iter().find(|(known, _)| *known == name).map(|(_, text)| text.as_str())
    }

    fn more(&self) -> Option<String> {
        let more = self.texts.iter().filter(|(name, _)| !NAMED.contains(name));
        let more: Vec<_> = more.map(|(name, text)| format!("{name}={}", one_word(text))).collect();
        (!more.is_empty()).then(|| more.join(" "))
    }
}

fn text(value: Value<'_>) -> String {
    match value {
        Value::Absent => String::new(),
        Value::Text(text) => text.into_owned(),
        Value::Texts(texts) => texts.join(" "),
        Value::Number(number) => number.to_string(),
        Value::Flag(flag) => flag.to_string(),
        Value::Time(time) => time.truncate_to_second().format(&Rfc3339).unwrap_or_else(|_| time.to_string()),
        Value::Caller(caller) => caller.instance.clone(),
    }
}
