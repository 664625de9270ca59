//! Reading records: from a place on, from the end, and those that a filter picks. A record is passed on as the line it is.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::AuditError;
use super::chain::{MAX_RECORD, Sealed};
use super::files::{self, Part};

/// So many bytes are read at a time.
const CHUNK: usize = 256 * 1024;
/// A session is named by so many digits of its random part at least.
const FEWEST_DIGITS: usize = 6;

/// A place in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The number of the first record of the file.
    file: u64,
    offset: u64,
}

impl Cursor {
    /// Before the first record.
    pub fn at_the_first() -> Self {
        Self::default()
    }

    /// Behind the last record.
    pub fn at_the_end(parts: &[Part]) -> Self {
        parts.last().map(|part| Self { file: part.first, offset: part.bytes }).unwrap_or_default()
    }

    /// The next lines; none when this is the end for now. Blocks.
    pub fn read(&mut self, parts: &[Part]) -> Result<Vec<String>, AuditError> {
        let from = self.file;
        for part in parts.iter().filter(|part| part.first >= from) {
            if part.first > self.file {
                *self = Self { file: part.first, offset: 0 };
            }
            let failed = |source| AuditError::Read { path: part.path.clone(), source };
            for most in [CHUNK, MAX_RECORD + 1] {
                let most = most.min(usize::try_from(part.bytes.saturating_sub(self.offset)).unwrap_or(most));
                let mut bytes = match read_at(part, self.offset, most) {
                    // It was removed meanwhile, as configured.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    read => read.map_err(failed)?,
                };
                let Some(newline) = bytes.iter().rposition(|byte| *byte == b'\n') else { continue };
                bytes.truncate(newline);
                self.offset += newline as u64 + 1;
                return Ok(lines(&bytes));
            }
        }
        Ok(Vec::new())
    }
}

fn read_at(part: &Part, offset: u64, most: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(&part.path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn lines(bytes: &[u8]) -> Vec<String> {
    bytes.split(|byte| *byte == b'\n').map(|line| String::from_utf8_lossy(line).into_owned()).collect()
}

/// The last `count` lines. Blocks.
pub fn last_lines(parts: &[Part], count: usize) -> Result<Vec<String>, AuditError> {
    let mut found: Vec<String> = Vec::new();
    for part in parts.iter().rev() {
        let wanted = count - found.len();
        if wanted == 0 {
            break;
        }
        let mut most = CHUNK;
        let mut whole = loop {
            let bytes = files::before(&part.path, part.bytes, most)?;
            let is_all = bytes.len() as u64 == part.bytes;
            // The first line may be a part of one, unless this is the whole file.
            let begin = if is_all { Some(0) } else { bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1) };
            let end = bytes.iter().rposition(|byte| *byte == b'\n');
            let whole = match (begin, end) {
                (Some(begin), Some(end)) if begin <= end => lines(&bytes[begin..end]),
                _ => Vec::new(),
            };
            if is_all || whole.len() >= wanted {
                break whole;
            }
            most = most.saturating_mul(4);
        };
        let mut newest = whole.split_off(whole.len().saturating_sub(wanted));
        newest.append(&mut found);
        found = newest;
    }
    Ok(found)
}

/// Which records are wanted. Each that is set must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Not before.
    pub since: Option<OffsetDateTime>,
    /// Before.
    pub until: Option<OffsetDateTime>,
    /// One of these events.
    pub events: Vec<String>,
    /// Of this session: its id, or six digits or more that its random part begins with.
    pub session: Option<String>,
    /// And of every session below it.
    pub below: bool,
    /// Of this transaction.
    pub txn: Option<String>,
    /// About this identity; with `/*` at its end about all below it.
    pub spiffe_id: Option<String>,
    /// For this person.
    pub user: Option<String>,
}

/// A [`Filter`] at work. Lines must come in their order: a session is known to be below another from the record of its
/// start.
#[derive(Clone, Debug)]
pub struct Picker {
    wanted: Filter,
    /// The sessions that were found to be wanted.
    tree: HashSet<String>,
}

#[derive(Deserialize)]
struct Fields<'a> {
    time: &'a str,
    event: &'a str,
    #[serde(borrow, default)]
    session: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    parent: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    txn: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    spiffe_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    user: Option<Cow<'a, str>>,
}

impl Picker {
    /// Picks what the filter wants.
    pub fn new(wanted: Filter) -> Self {
        Self { wanted, tree: HashSet::new() }
    }

    /// Whether the record on this line is wanted.
    pub fn picks(&mut self, line: &str) -> bool {
        let wanted = &self.wanted;
        // Most lines of a long log are about something else, and need not be understood.
        let is_escaped = |text: &str| text.contains(['"', '\\']) || text.contains(char::is_control);
        let mentions =
            |text: &Option<String>| text.as_deref().is_none_or(|text| is_escaped(text) || line.contains(text));
        if !mentions(&wanted.txn) || !mentions(&wanted.user) {
            return false;
        }
        if wanted.session.is_some() && !line.contains("\"session\":") {
            return false;
        }
        let Ok(fields) = serde_json::from_str::<Fields<'_>>(line) else { return false };
        // First of all, and whatever else is wanted: it learns which sessions are below.
        if !self.is_of_session(&fields) {
            return false;
        }
        let wanted = &self.wanted;
        let is = |wanted: &Option<String>, found: &Option<Cow<'_, str>>| {
            wanted.as_deref().is_none_or(|wanted| found.as_deref() == Some(wanted))
        };
        (wanted.events.is_empty() || wanted.events.iter().any(|event| event == fields.event))
            && wanted.is_in_time(fields.time)
            && is(&wanted.txn, &fields.txn)
            && is(&wanted.user, &fields.user)
            && wanted.spiffe_id.as_deref().is_none_or(|wanted| fields.spiffe_id.is_some_and(|id| is_id(wanted, &id)))
    }

    fn is_of_session(&mut self, fields: &Fields<'_>) -> bool {
        let Some(wanted) = &self.wanted.session else { return true };
        let Some(session) = fields.session.as_deref() else { return false };
        let is_below = fields.parent.as_deref().is_some_and(|parent| self.tree.contains(parent));
        let is_of = names(wanted, session) || (self.wanted.below && (is_below || self.tree.contains(session)));
        if is_of && self.wanted.below && !self.tree.contains(session) {
            self.tree.insert(session.to_owned());
        }
        is_of
    }
}

impl Filter {
    fn is_in_time(&self, time: &str) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let Ok(time) = OffsetDateTime::parse(time, &Rfc3339) else { return false };
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time < until)
    }
}

/// Whether a person who writes `wanted` means this session.
fn names(wanted: &str, session: &str) -> bool {
    let begins = |text: &str, digits: usize| digits >= FEWEST_DIGITS && text.starts_with(wanted);
    match wanted.split_once('.') {
        Some((_, random)) => session == wanted || begins(session, random.len()),
        None => session.split_once('.').is_some_and(|(_, random)| begins(random, wanted.len())),
    }
}

fn is_id(wanted: &str, id: &str) -> bool {
    match wanted.strip_suffix("/*") {
        Some(above) => id.strip_prefix(above).is_some_and(|rest| rest.starts_with('/')),
        None => id == wanted,
    }
}

/// For the fuzzer: whatever the bytes are, reading them as a record ends; whether they are one whose hash holds.
pub fn fuzz_record(bytes: &[u8]) -> bool {
    let line = String::from_utf8_lossy(bytes);
    let below = Filter { session: Some("abcdef".to_owned()), below: true, ..Filter::default() };
    for filter in [below, Filter::default()] {
        Picker::new(filter).picks(&line);
    }
    Sealed::read(bytes).is_some_and(|record| record.holds)
}
