//! The sessions on disk: one append-only file, written anew when most of it is dead.
//!
//! Promises: what is written survives the death of the agent (`write(2)`). Nothing is synced: a loss of power is a reboot,
//! which ends whoever acts. Keys are never in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::live::Used;
use super::model::{SessionId, State, Terms};
use crate::base::durable::{self, Appender, DurableError};
use crate::base::frames::{self, Unreadable};

const VERSION: u8 = 1;
const SUFFIX: &str = ".log";
/// A file is written anew when it has so many bytes and four times what lives in it.
const ENOUGH: u64 = 4 * 1024 * 1024;
/// No file is larger, by far.
const MAX_FILE: u64 = 1024 * 1024 * 1024;

/// A session as it is written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) terms: Terms,
    pub(super) state: State,
    pub(super) used: Used,
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub(super) ends_at: OffsetDateTime,
    pub(super) approval: Option<String>,
}

/// One record.
#[derive(Debug, Serialize, Deserialize)]
enum Record<'a> {
    Begin { version: u8, node: String },
    Session(std::borrow::Cow<'a, Stored>),
    Used { id: SessionId, used: Used },
    Ended { id: SessionId },
}

/// The file that is written to.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    node: String,
    number: u64,
    file: Appender,
    buffer: Vec<u8>,
    /// The length at which it is written anew.
    limit: u64,
}

impl Journal {
    /// Reads what lives and begins a new file with it.
    pub(super) fn open(dir: &Path, node: &str) -> Result<(Self, Vec<Stored>), DurableError> {
        durable::private_dir(dir)?;
        let mut numbers = numbers(dir);
        numbers.sort_unstable();
        let mut living = BTreeMap::new();
        // The newest file that begins as one: an interrupted rewrite leaves the older one.
        for number in numbers.iter().rev() {
            if let Some(read) = read(&durable::read(&path(dir, *number), MAX_FILE)?, node) {
                living = read;
                break;
            }
        }
        let living: Vec<Stored> = living.into_values().collect();
        let number = numbers.last().map_or(1, |last| last + 1);
        let (file, limit) = rewrite(dir, number, node, &living)?;
        for old in numbers {
            durable::remove(&path(dir, old))?;
        }
        Ok((Self { dir: dir.to_owned(), node: node.to_owned(), number, file, buffer: Vec::new(), limit }, living))
    }

    /// A session began, or changed its state.
    pub(super) fn session(&mut self, stored: &Stored) -> Result<(), DurableError> {
        self.append(&Record::Session(std::borrow::Cow::Borrowed(stored)))
    }

    /// A session used some of its budget.
    pub(super) fn used(&mut self, id: &SessionId, used: Used) -> Result<(), DurableError> {
        self.append(&Record::Used { id: id.clone(), used })
    }

    /// A session ended.
    pub(super) fn ended(&mut self, id: &SessionId) -> Result<(), DurableError> {
        self.append(&Record::Ended { id: id.clone() })
    }

    /// Whether it is time to write it anew.
    pub(super) fn is_wasteful(&self) -> bool {
        self.file.length() > self.limit
    }

    /// Writes it anew with what lives.
    pub(super) fn rewrite(&mut self, living: &[Stored]) -> Result<(), DurableError> {
        let number = self.number + 1;
        let (file, limit) = rewrite(&self.dir, number, &self.node, living)?;
        let old = path(&self.dir, self.number);
        (self.file, self.limit, self.number) = (file, limit, number);
        durable::remove(&old)
    }

    fn append(&mut self, record: &Record<'_>) -> Result<(), DurableError> {
        self.buffer.clear();
        put(&mut self.buffer, record);
        self.file.append(&self.buffer)
    }
}

fn put(buffer: &mut Vec<u8>, record: &Record<'_>) {
    frames::write(buffer, |mut to| {
        serde_json::to_writer(&mut to, record).expect("records have string keys, and memory does not fail");
        to
    });
}

fn rewrite(dir: &Path, number: u64, node: &str, living: &[Stored]) -> Result<(Appender, u64), DurableError> {
    let mut buffer = Vec::new();
    put(&mut buffer, &Record::Begin { version: VERSION, node: node.to_owned() });
    for stored in living {
        put(&mut buffer, &Record::Session(std::borrow::Cow::Borrowed(stored)));
    }
    let mut file = Appender::create(&path(dir, number))?;
    file.append(&buffer)?;
    // The only sync: the older file goes.
    file.syncer().sync()?;
    Ok((file, (4 * buffer.len() as u64).max(ENOUGH)))
}

/// What lives by the records of one file; `None` when it is none of ours or has no whole beginning.
fn read(bytes: &[u8], node: &str) -> Option<BTreeMap<SessionId, Stored>> {
    let (first, mut rest) = record(bytes).ok()?;
    if !matches!(first, Record::Begin { version: VERSION, node: of } if of == node) {
        return None;
    }
    let mut living: BTreeMap<SessionId, Stored> = BTreeMap::new();
    while !rest.is_empty() {
        let next = match record(rest) {
            Ok((next, after)) => {
                rest = after;
                next
            }
            Err(Unreadable::Torn) => break,
            Err(Unreadable::Damaged) => {
                tracing::error!("the journal of sessions is damaged: what was written after the damage is lost");
                break;
            }
        };
        match next {
            Record::Begin { .. } => {}
            Record::Session(stored) => {
                let stored = stored.into_owned();
                living.insert(stored.terms.id.clone(), stored);
            }
            Record::Used { id, used } => {
                if let Some(stored) = living.get_mut(&id) {
                    stored.used = used;
                }
            }
            Record::Ended { id } => drop(living.remove(&id)),
        }
    }
    Some(living)
}

fn record(bytes: &[u8]) -> Result<(Record<'static>, &[u8]), Unreadable> {
    let (payload, rest) = frames::read(bytes)?;
    Ok((serde_json::from_slice(payload).map_err(|_| Unreadable::Damaged)?, rest))
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:08}{SUFFIX}"))
}

fn numbers(dir: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let number = |name: std::ffi::OsString| name.to_str()?.strip_suffix(SUFFIX)?.parse().ok();
    entries.filter_map(|entry| number(entry.ok()?.file_name())).collect()
}
