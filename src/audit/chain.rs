//! The chain: each record ends in the SHA-256 of its own bytes, and names that of the one before.
//!
//! A record is one line: `{"version":1,"seq":N,"time":T,"node":NODE,"prev":HASH,"event":NAME,...,"hash":HASH}`. Its hash
//! is over exactly these bytes, without `,"hash":"..."`: over everything before it and the closing brace.

use aws_lc_rs::digest::{Context, SHA256};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::line::REDACTED;
use super::{Caller, Record, Value};
use crate::base::entropy::hex;

/// The version of the format.
pub(super) const VERSION: u64 = 1;
/// Fields that every record has; no event has a field of these names.
#[cfg(test)]
pub(super) const OF_THE_CHAIN: &[&str] = &["version", "seq", "time", "node", "prev", "event", "hash"];
/// No record is longer, by far.
pub(super) const MAX_RECORD: usize = 1024 * 1024;
/// A longer text is cut.
const MAX_TEXT: usize = 4096;
/// A longer text in a list is cut.
const MAX_ITEM: usize = 1024;
/// What does not fit into so many bytes of a list is counted.
const MAX_LIST: usize = 64 * 1024;

const HASH_FIELD: &[u8] = b",\"hash\":\"";
/// `,"hash":"` and 64 digits and `"}`.
const SEAL: usize = HASH_FIELD.len() + HASH_DIGITS + 2;
const HASH_DIGITS: usize = 64;

/// One record, by its number and its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number. The first of a chain is 1.
    pub seq: u64,
    /// SHA-256 of its bytes, in hex.
    pub hash: String,
}

impl Link {
    /// What the first record of a chain follows.
    pub(super) fn genesis() -> Self {
        Self { seq: 0, hash: "0".repeat(HASH_DIGITS) }
    }

    /// `SEQ:HASH`, as `tether audit verify` prints it.
    pub fn parse(text: &str) -> Option<Self> {
        let (seq, hash) = text.split_once(':')?;
        Self::new(seq.parse().ok()?, hash)
    }

    /// `None` when there cannot be such a record.
    pub(super) fn new(seq: u64, hash: &str) -> Option<Self> {
        // Numbers that are followed by others without end.
        (seq <= u64::MAX / 2 && is_hash(hash)).then(|| Self { seq, hash: hash.to_owned() })
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == HASH_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// SHA-256 of these parts, one after the other, in hex.
pub(super) fn sha256(parts: &[&[u8]]) -> String {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    hex(context.finish().as_ref())
}

/// Writes the record that follows `before` at the end of `out`, with its newline, and returns its link.
pub(super) fn write(out: &mut Vec<u8>, before: &Link, node: &str, now: OffsetDateTime, record: &Record) -> Link {
    let begin = out.len();
    let seq = before.seq + 1;
    out.extend_from_slice(b"{\"version\":1,\"seq\":");
    out.extend_from_slice(seq.to_string().as_bytes());
    name(out, "time");
    text(out, &rfc3339(now, time::Duration::MICROSECOND), MAX_TEXT);
    name(out, "node");
    text(out, node, MAX_TEXT);
    name(out, "prev");
    text(out, &before.hash, MAX_TEXT);
    name(out, "event");
    text(out, record.event().name(), MAX_TEXT);
    record.each_field(|field, value| {
        name(out, field);
        match value {
            None => text(out, REDACTED, MAX_TEXT),
            Some(value) => put(out, value),
        }
    });
    let hash = sha256(&[&out[begin..], b"}"]);
    out.extend_from_slice(HASH_FIELD);
    out.extend_from_slice(hash.as_bytes());
    out.extend_from_slice(b"\"}\n");
    Link { seq, hash }
}

fn name(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn put(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::Absent => out.extend_from_slice(b"null"),
        Value::Text(value) => text(out, &value, MAX_TEXT),
        Value::Texts(values) => list(out, values),
        Value::Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Flag(flag) => out.extend_from_slice(if flag { b"true" } else { b"false" }),
        Value::Time(at) => text(out, &rfc3339(at, time::Duration::SECOND), MAX_TEXT),
        Value::Caller(Caller { instance, pid, uid }) => {
            out.extend_from_slice(b"{\"instance\":");
            text(out, instance, MAX_TEXT);
            out.extend_from_slice(format!(",\"pid\":{pid},\"uid\":{uid}}}").as_bytes());
        }
    }
}

fn list(out: &mut Vec<u8>, values: &[String]) {
    let begin = out.len();
    out.push(b'[');
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        if out.len() - begin > MAX_LIST {
            text(out, &format!("and {} more", values.len() - index), MAX_ITEM);
            break;
        }
        text(out, value, MAX_ITEM);
    }
    out.push(b']');
}

fn text(out: &mut Vec<u8>, text: &str, limit: usize) {
    let written = if text.len() <= limit {
        serde_json::to_writer(&mut *out, text)
    } else {
        let end = (0..=limit).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        serde_json::to_writer(&mut *out, &format!("{}…", &text[..end]))
    };
    written.expect("a text is always JSON, and a buffer takes everything");
}

fn rfc3339(at: OffsetDateTime, to_the: time::Duration) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    let at = if to_the == time::Duration::SECOND { at.truncate_to_second() } else { at.truncate_to_microsecond() };
    // Years beyond 9999 have no RFC 3339 form.
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

/// What the chain knows of a record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sealed {
    /// Its number, and the hash it says it has.
    pub(super) link: Link,
    /// The hash of the one before, as it says.
    pub(super) prev: String,
    pub(super) node: String,
    pub(super) time: OffsetDateTime,
    pub(super) event: String,
    /// Of `audit_retired`: the last record that was removed.
    pub(super) retired: Option<Link>,
    /// Whether its bytes have the hash it says.
    pub(super) holds: bool,
}

#[derive(Deserialize)]
struct Head<'a> {
    version: u64,
    seq: u64,
    time: &'a str,
    node: &'a str,
    prev: &'a str,
    event: &'a str,
    #[serde(default)]
    through: Option<u64>,
    #[serde(default)]
    through_hash: Option<&'a str>,
    hash: &'a str,
}

impl Sealed {
    /// Reads a line, without its newline; `None` when it is no record of this version.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        let head: Head<'_> = serde_json::from_slice(line).ok()?;
        let body = line.len().checked_sub(SEAL)?;
        // The hash must be where it is left out of the hash, and nowhere else.
        let sealed = line.get(body..)?;
        let holds = sealed.starts_with(HASH_FIELD)
            && sealed.get(HASH_FIELD.len()..HASH_FIELD.len() + HASH_DIGITS)? == head.hash.as_bytes()
            && sealed.ends_with(b"\"}")
            && sha256(&[&line[..body], b"}"]) == head.hash;
        let is_of_this_version = head.version == VERSION && is_hash(head.prev);
        let retired = head.through.zip(head.through_hash).filter(|_| head.event == "audit_retired");
        is_of_this_version.then_some(Self {
            link: Link::new(head.seq, head.hash)?,
            prev: head.prev.to_owned(),
            node: head.node.to_owned(),
            time: OffsetDateTime::parse(head.time, &Rfc3339).ok()?,
            event: head.event.to_owned(),
            retired: retired.and_then(|(seq, hash)| Link::new(seq, hash)),
            holds,
        })
    }
}
