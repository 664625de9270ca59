//! The files of the log: named after the number of the record they begin with, so that their names are in order.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::AuditError;
use super::chain::MAX_RECORD;
use crate::base::durable::{Appender, DurableError, Syncer};

const SUFFIX: &str = ".jsonl";
/// Most records are much shorter.
const SHORT: usize = 64 * 1024;

/// One file, as far as it was written when this was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it is.
    pub path: PathBuf,
    /// The number of its first record, by its name.
    pub first: u64,
    /// How many bytes of it count.
    pub bytes: u64,
}

/// Where the file that begins with this record is.
pub(super) fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}{SUFFIX}"))
}

/// The files of a directory, the oldest first.
pub fn parts(dir: &Path) -> Result<Vec<Part>, AuditError> {
    let failed = |source| AuditError::List { path: dir.to_owned(), source };
    let mut parts = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).filter(|digits| digits.len() == 20);
        let Some(first) = number.and_then(|digits| digits.parse().ok()) else { continue };
        parts.push(Part { path: entry.path(), first, bytes: entry.metadata().map_err(failed)?.len() });
    }
    parts.sort_by_key(|part| part.first);
    Ok(parts)
}

/// At most `most` bytes of a file that end at `end`.
pub(super) fn before(path: &Path, end: u64, most: usize) -> Result<Vec<u8>, AuditError> {
    let read = || {
        let begin = end.saturating_sub(most as u64);
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        file.take(end - begin).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source: io::Error| AuditError::Read { path: path.to_owned(), source })
}

/// The end of a file: its last whole line, and what was not written whole after it.
#[derive(Debug)]
pub(super) struct Tail {
    /// The last line, without its newline; `None` when there is none, or it is longer than a record can be.
    pub(super) line: Option<Vec<u8>>,
    /// How many bytes the whole lines have.
    pub(super) whole: u64,
    /// What follows them.
    pub(super) torn: Vec<u8>,
}

/// Reads the end of a file.
pub(super) fn tail(part: &Part) -> Result<Tail, AuditError> {
    let short = read_tail(part, SHORT)?;
    // Few records are as long as they can be.
    if short.line.is_some() { Ok(short) } else { read_tail(part, 2 * MAX_RECORD) }
}

fn read_tail(part: &Part, most: usize) -> Result<Tail, AuditError> {
    let mut bytes = before(&part.path, part.bytes, most)?;
    let begin = part.bytes - bytes.len() as u64;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let torn = bytes.split_off(whole);
    bytes.pop();
    let line_begin = bytes.iter().rposition(|byte| *byte == b'\n').map(|newline| newline + 1);
    let line_begin = line_begin.or_else(|| (begin == 0).then_some(0)).filter(|_| whole > 0);
    Ok(Tail { line: line_begin.map(|at| bytes.split_off(at)), whole: begin + whole as u64, torn })
}

/// How many whole lines a file has. Reads all of it.
pub(super) fn lines(part: &Part) -> Result<u64, AuditError> {
    let count = || {
        let mut file = BufReader::new(File::open(&part.path)?.take(part.bytes));
        let mut lines = 0;
        loop {
            let bytes = file.fill_buf()?;
            if bytes.is_empty() {
                return Ok(lines);
            }
            lines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
            let read = bytes.len();
            file.consume(read);
        }
    };
    count().map_err(|source: io::Error| AuditError::Read { path: part.path.clone(), source })
}

/// The first line of a file, without its newline; `None` when it has none that could be a record.
pub(super) fn first_line(part: &Part) -> Result<Option<Vec<u8>>, AuditError> {
    for most in [SHORT, MAX_RECORD] {
        let mut begin = before(&part.path, part.bytes.min(most as u64), most)?;
        if let Some(newline) = begin.iter().position(|byte| *byte == b'\n') {
            begin.truncate(newline);
            return Ok(Some(begin));
        }
    }
    Ok(None)
}

/// A file that records are appended to.
pub(super) trait RecordFile: Send + fmt::Debug {
    /// Appends all or nothing.
    fn append(&mut self, record: &[u8]) -> Result<(), DurableError>;

    /// How many bytes it has.
    fn length(&self) -> u64;

    /// What syncs it.
    fn syncer(&self) -> Syncer;
}

impl RecordFile for Appender {
    fn append(&mut self, record: &[u8]) -> Result<(), DurableError> {
        Appender::append(self, record)
    }

    fn length(&self) -> u64 {
        Appender::length(self)
    }

    fn syncer(&self) -> Syncer {
        Appender::syncer(self)
    }
}

/// Where files come from: the disk, and in tests one that fails.
pub(super) trait Disk: Send + fmt::Debug {
    /// A new file.
    fn create(&self, path: &Path) -> Result<Box<dyn RecordFile>, DurableError>;

    /// A file that is there, cut to `length` bytes.
    fn resume(&self, path: &Path, length: u64) -> Result<Box<dyn RecordFile>, DurableError>;
}

/// The disk.
#[derive(Debug)]
pub(super) struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> Result<Box<dyn RecordFile>, DurableError> {
        Ok(Box::new(Appender::create(path)?))
    }

    fn resume(&self, path: &Path, length: u64) -> Result<Box<dyn RecordFile>, DurableError> {
        Ok(Box::new(Appender::resume(path, length)?))
    }
}
