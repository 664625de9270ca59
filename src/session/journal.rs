//! The sessions on disk: one append-only file, written anew when most of it is dead.
//!
//! Promises: what is written survives the death of the agent (`write(2)`). Nothing is synced: a loss of power is a reboot,
//! which ends whoever acts. Keys are never in it, nor are bearer tokens; WITs are, which are worth nothing without the key.
//!
//! INVARIANT: it knows by itself what lives, and asks nobody: whoever writes to it holds no other lock that is taken here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::live::{Token, Used};
use super::model::{SessionId, State, Terms};
use crate::base::durable::{self, Appender, DurableError};
use crate::base::frames::{self, Unreadable};

const VERSION: u8 = 2;
const SUFFIX: &str = ".log";
/// A file is written anew when it has so many bytes and four times what lives in it.
const ENOUGH: u64 = 4 * 1024 * 1024;
/// No file is larger, by far.
const MAX_FILE: u64 = 1024 * 1024 * 1024;

/// A session as it is written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) terms: Arc<Terms>,
    pub(super) state: State,
    pub(super) used: Used,
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub(super) ends_at: OffsetDateTime,
    pub(super) approval: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tokens: Vec<Token>,
}

/// One record.
#[derive(Debug, Serialize, Deserialize)]
enum Record<'a> {
    Begin {
        version: u8,
        node: String,
    },
    /// What lived when the file was begun is above: a file without it was not finished.
    Whole,
    Session(Cow<'a, Stored>),
    Token(SessionId, Cow<'a, Token>),
    Used {
        id: SessionId,
        used: Used,
    },
    Ended {
        id: SessionId,
    },
    /// The clock stood here: it must not stand before that after a restart.
    Clock {
        at: i64,
    },
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) living: Vec<Stored>,
    /// The latest time that was written.
    pub(super) latest: Option<OffsetDateTime>,
}

/// The file that is written to.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    node: String,
    number: u64,
    file: Appender,
    living: BTreeMap<SessionId, Stored>,
    latest: i64,
    buffer: Vec<u8>,
    /// The length at which it is written anew.
    limit: u64,
}

impl Journal {
    /// Reads what lives and begins a new file with it.
    pub(super) fn open(dir: &Path, node: &str) -> Result<(Self, Read), DurableError> {
        durable::private_dir(dir)?;
        let mut numbers = numbers(dir);
        numbers.sort_unstable();
        let mut state = Replayed::default();
        // The newest file that was begun to its end: an interrupted rewrite leaves the older one.
        for number in numbers.iter().rev() {
            let bytes = match durable::read(&path(dir, *number), MAX_FILE) {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::error!(%error, "a journal of sessions cannot be read: its sessions are over");
                    continue;
                }
            };
            if let Some(read) = read(&bytes, node) {
                state = read;
                break;
            }
        }
        let Replayed { living, latest } = state;
        let number = numbers.last().map_or(1, |last| last + 1);
        let (file, limit) = rewrite(dir, number, node, &living, latest)?;
        for old in numbers {
            durable::remove(&path(dir, old))?;
        }
        let read = Read {
            living: living.values().cloned().collect(),
            latest: OffsetDateTime::from_unix_timestamp(latest).ok().filter(|_| latest > 0),
        };
        let (dir, node) = (dir.to_owned(), node.to_owned());
        Ok((Self { dir, node, number, file, living, latest, buffer: Vec::new(), limit }, read))
    }

    /// A session began, or changed its state.
    pub(super) fn session(&mut self, mut stored: Stored) -> Result<(), DurableError> {
        self.append(&Record::Session(Cow::Borrowed(&stored)))?;
        if let Some(known) = self.living.remove(&stored.terms.id) {
            stored.used = stored.used.max(known.used);
            stored.tokens = known.tokens;
        }
        self.living.insert(stored.terms.id.clone(), stored);
        self.make_room();
        Ok(())
    }

    /// A session got a token.
    pub(super) fn token(&mut self, id: &SessionId, token: &Token) -> Result<(), DurableError> {
        self.append(&Record::Token(id.clone(), Cow::Borrowed(token)))?;
        if let Some(stored) = self.living.get_mut(id) {
            stored.tokens.push(token.clone());
        }
        self.make_room();
        Ok(())
    }

    /// Sessions used some of their budgets. Of two that write at once the later may come first: the larger counts.
    pub(super) fn used(&mut self, used: &[(SessionId, Used)]) -> Result<(), DurableError> {
        for (id, used) in used {
            self.append(&Record::Used { id: id.clone(), used: *used })?;
            if let Some(stored) = self.living.get_mut(id) {
                stored.used = stored.used.max(*used);
            }
        }
        self.make_room();
        Ok(())
    }

    /// A session ended.
    pub(super) fn ended(&mut self, id: &SessionId) -> Result<(), DurableError> {
        self.living.remove(id);
        self.append(&Record::Ended { id: id.clone() })
    }

    /// The clock stands at `now`.
    pub(super) fn clock(&mut self, now: OffsetDateTime) -> Result<(), DurableError> {
        self.latest = self.latest.max(now.unix_timestamp());
        let at = self.latest;
        self.append(&Record::Clock { at })?;
        self.make_room();
        Ok(())
    }

    /// Writes it anew with what lives, when most of it is dead. What cannot be written anew now goes on as it is.
    fn make_room(&mut self) {
        if self.file.length() <= self.limit {
            return;
        }
        let now = self.latest;
        for stored in self.living.values_mut() {
            stored.tokens.retain(|token| token.expires_at.unix_timestamp() > now);
        }
        let number = self.number + 1;
        match rewrite(&self.dir, number, &self.node, &self.living, self.latest) {
            Ok((file, limit)) => {
                let old = path(&self.dir, self.number);
                (self.file, self.limit, self.number) = (file, limit, number);
                if let Err(error) = durable::remove(&old) {
                    tracing::warn!(%error, "an old journal of sessions cannot be removed");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the journal of sessions cannot be written anew, trying again later");
                self.limit = self.limit.saturating_add(ENOUGH);
            }
        }
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

fn rewrite(
    dir: &Path,
    number: u64,
    node: &str,
    living: &BTreeMap<SessionId, Stored>,
    latest: i64,
) -> Result<(Appender, u64), DurableError> {
    let mut buffer = Vec::new();
    put(&mut buffer, &Record::Begin { version: VERSION, node: node.to_owned() });
    put(&mut buffer, &Record::Clock { at: latest });
    for stored in living.values() {
        put(&mut buffer, &Record::Session(Cow::Borrowed(stored)));
    }
    put(&mut buffer, &Record::Whole);
    let mut file = Appender::create(&path(dir, number))?;
    file.append(&buffer)?;
    Ok((file, (4 * buffer.len() as u64).max(ENOUGH)))
}

#[derive(Debug, Default)]
struct Replayed {
    living: BTreeMap<SessionId, Stored>,
    latest: i64,
}

/// What lives by the records of one file; `None` when it is none of ours, or was not begun to its end.
fn read(bytes: &[u8], node: &str) -> Option<Replayed> {
    let (first, mut rest) = record(bytes).ok()?;
    if !matches!(first, Record::Begin { version: VERSION, node: of } if of == node) {
        return None;
    }
    let mut state = Replayed::default();
    let mut is_whole = false;
    while !rest.is_empty() {
        let next = match record(rest) {
            Ok((next, after)) => {
                rest = after;
                next
            }
            Err(Unreadable::Torn) if !frames::one_follows(rest) => break,
            // An end may be among what cannot be read, and what has ended must not come back.
            Err(Unreadable::Torn | Unreadable::Damaged) => {
                tracing::error!("the journal of sessions is damaged: all of its sessions are over");
                state.living.clear();
                break;
            }
        };
        match next {
            Record::Begin { .. } => {}
            Record::Whole => is_whole = true,
            Record::Session(stored) => {
                let mut stored = stored.into_owned();
                if let Some(known) = state.living.remove(&stored.terms.id) {
                    stored.used = stored.used.max(known.used);
                    stored.tokens.extend(known.tokens);
                }
                state.living.insert(stored.terms.id.clone(), stored);
            }
            Record::Token(id, token) => {
                if let Some(stored) = state.living.get_mut(&id) {
                    stored.tokens.push(token.into_owned());
                }
            }
            Record::Used { id, used } => {
                if let Some(stored) = state.living.get_mut(&id) {
                    stored.used = stored.used.max(used);
                }
            }
            Record::Ended { id } => drop(state.living.remove(&id)),
            Record::Clock { at } => state.latest = state.latest.max(at),
        }
    }
    is_whole.then_some(state)
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
