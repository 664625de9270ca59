//! The log on disk: a chain of records in files that only grow, of which the oldest are removed.
//!
//! INVARIANT: `last` is the record that the newest file ends in. A record that could not be written was never there.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use time::OffsetDateTime;

use super::chain::{self, Link};
use super::files::{self, Disk, Part, RecordFile};
use super::{AuditError, Event, Record, Settings};
use crate::base::durable::{DurableError, Syncer};
use crate::base::text::chain;

/// How many files there are at least: the record that says which were removed must not be removed with them.
const FEWEST: usize = 2;
/// With a limit of age, a file covers no more than this part of it.
const SPAN: u32 = 4;

/// The files, and where the chain is.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) settings: Settings,
    pub(super) node: String,
    disk: Box<dyn Disk>,
    file: Box<dyn RecordFile>,
    /// The files, the newest last.
    files: VecDeque<Kept>,
    last: Link,
    unsynced: Vec<Syncer>,
    dead: Vec<PathBuf>,
    buffer: Vec<u8>,
    failing: Option<Failing>,
}

/// One file.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) path: PathBuf,
    pub(super) first: u64,
    /// When its first record was written.
    pub(super) since: OffsetDateTime,
    pub(super) bytes: u64,
    /// Its last record, once another file has begun.
    pub(super) last: Option<Link>,
}

/// Since when records cannot be written.
#[derive(Debug)]
struct Failing {
    since: OffsetDateTime,
    lost: u64,
    why: String,
}

/// What a sync is to do: files to sync, and then files to remove. Then everything up to `through` is on disk.
#[derive(Debug)]
pub(super) struct Unsynced {
    pub(super) files: Vec<Syncer>,
    pub(super) dead: Vec<PathBuf>,
    pub(super) through: Link,
}

/// Where a log goes on.
pub(super) struct Resumed {
    pub(super) files: VecDeque<Kept>,
    pub(super) last: Link,
    /// How many bytes of the newest file are whole, when it is to be gone on with; else a new one is begun.
    pub(super) whole: Option<u64>,
}

impl Log {
    /// Goes on after `resumed`.
    pub(super) fn go_on(
        settings: Settings,
        node: &str,
        disk: Box<dyn Disk>,
        resumed: Resumed,
        now: OffsetDateTime,
    ) -> Result<Self, AuditError> {
        let Resumed { mut files, last, whole } = resumed;
        let newest = files.back_mut().zip(whole);
        let file = match newest {
            Some((newest, whole)) => {
                newest.bytes = whole;
                disk.resume(&newest.path, whole)?
            }
            None => {
                let (first, path) = (last.seq + 1, files::path(&settings.dir, last.seq + 1));
                let file = disk.create(&path)?;
                files.push_back(Kept { path, first, since: now, bytes: 0, last: None });
                file
            }
        };
        Ok(Self {
            settings,
            node: node.to_owned(),
            disk,
            unsynced: vec![file.syncer()],
            file,
            files,
            last,
            dead: Vec::new(),
            buffer: Vec::new(),
            failing: None,
        })
    }

    /// Writes a record. First, if records were lost, one that says so.
    pub(super) fn write(&mut self, now: OffsetDateTime, record: &Record) -> Result<(), DurableError> {
        self.say_what_was_lost(now)?;
        self.rotate_when_due(now);
        self.append(now, record)
    }

    /// Tries again to write after a failure; fine when there was none.
    pub(super) fn say_what_was_lost(&mut self, now: OffsetDateTime) -> Result<(), DurableError> {
        let Some(Failing { since, lost, why }) = &self.failing else { return Ok(()) };
        let interrupted = Event::AuditInterrupted { since: *since, lost: *lost, why: why.clone() };
        self.append(now, &interrupted.into())?;
        self.failing = None;
        Ok(())
    }

    /// Takes note that a record could not be written, and how much is `lost`: what it was about happened all the same.
    pub(super) fn failed(&mut self, now: OffsetDateTime, why: &DurableError, lost: u64) {
        let failing = self.failing.get_or_insert_with(|| Failing { since: now, lost: 0, why: chain(why) });
        failing.lost += lost;
    }

    /// Why records cannot be written, when they cannot.
    pub(super) fn failure(&self) -> Option<String> {
        let failing = self.failing.as_ref()?;
        let lost = if failing.lost > 0 { format!("; {} records are lost", failing.lost) } else { String::new() };
        Some(format!("{}{lost}", failing.why))
    }

    fn append(&mut self, now: OffsetDateTime, record: &Record) -> Result<(), DurableError> {
        self.buffer.clear();
        let link = chain::write(&mut self.buffer, &self.last, &self.node, now, record);
        self.file.append(&self.buffer)?;
        self.last = link;
        if let Some(newest) = self.files.back_mut() {
            newest.bytes = self.file.length();
        }
        Ok(())
    }

    /// Begins a new file when this one has enough. Where that is not possible now, this one grows.
    fn rotate_when_due(&mut self, now: OffsetDateTime) {
        let span = self.settings.keep_for.map(|keep| keep / SPAN);
        let Some(newest) = self.files.back().filter(|newest| newest.bytes > 0) else { return };
        let is_old = span.is_some_and(|span| now - newest.since >= span);
        if newest.bytes < self.settings.rotate && !is_old {
            return;
        }
        if let Err(error) = self.rotate(now) {
            tracing::warn!(%error, "a new file of the audit log cannot be begun, trying again with the next record");
        }
    }

    fn rotate(&mut self, now: OffsetDateTime) -> Result<(), DurableError> {
        let first = self.last.seq + 1;
        let path = files::path(&self.settings.dir, first);
        let file = self.disk.create(&path)?;
        self.unsynced.push(file.syncer());
        self.file = file;
        if let Some(former) = self.files.back_mut() {
            former.last = Some(self.last.clone());
        }
        self.files.push_back(Kept { path, first, since: now, bytes: 0, last: None });
        tracing::info!(target: "tether::audit", head = %self.last, "audit_rotated");
        self.retire(now)
    }

    /// Gives up the oldest files, as far as there are too many or they are too old. They are removed by the next sync,
    /// after the record that says so is on disk.
    pub(super) fn retire(&mut self, now: OffsetDateTime) -> Result<(), DurableError> {
        let keep = self.settings.keep.max(FEWEST);
        let too_old = |since: OffsetDateTime| self.settings.keep_for.is_some_and(|keep_for| now - since >= keep_for);
        let (count, mut files) = (self.files.len(), 0);
        while files + FEWEST <= count && (count - files > keep || too_old(self.files[files].since)) {
            files += 1;
        }
        let Some(through) = files.checked_sub(1).and_then(|last| self.files[last].last.clone()) else { return Ok(()) };
        let retired = Event::AuditRetired { files, through: through.seq, through_hash: through.hash };
        self.append(now, &retired.into())?;
        self.dead.extend(self.files.drain(..files).map(|file| file.path));
        Ok(())
    }

    /// Does what is due by the clock alone: an idle log must not keep records for longer than it may.
    pub(super) fn grow_old(&mut self, now: OffsetDateTime) -> Result<(), DurableError> {
        self.rotate_when_due(now);
        self.retire(now)
    }

    /// How long until [`Self::grow_old`] should be called again, with a limit of age.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.settings.keep_for.map(|keep_for| keep_for / SPAN / 2)
    }

    /// What is to be done so that everything written so far survives a loss of power.
    pub(super) fn take_unsynced(&mut self) -> Unsynced {
        let files = std::mem::take(&mut self.unsynced);
        self.unsynced.push(self.file.syncer());
        Unsynced { files, dead: std::mem::take(&mut self.dead), through: self.last.clone() }
    }

    /// The sync failed: the next one does it.
    pub(super) fn still_unsynced(&mut self, unsynced: Unsynced) {
        self.unsynced.splice(0..0, unsynced.files);
        self.dead.splice(0..0, unsynced.dead);
    }

    /// The last record.
    pub(super) fn last(&self) -> &Link {
        &self.last
    }

    /// The files, as far as they are written now.
    pub(super) fn parts(&self) -> Vec<Part> {
        let part = |file: &Kept| Part { path: file.path.clone(), first: file.first, bytes: file.bytes };
        self.files.iter().map(part).collect()
    }
}
