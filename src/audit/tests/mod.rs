//! The log in a directory of its own, with a clock that is moved by hand and a disk that can fail.

mod documented;
mod failing;
mod floods;
mod recovery;
mod written;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use time::OffsetDateTime;

use super::files::{Disk, RecordFile};
use super::*;
use crate::base::clock::ManualClock;
use crate::base::durable::{DurableError, Syncer};

const NODE: &str = "0123456789abcdef0123456789abcdef";

struct World {
    dir: tempfile::TempDir,
    clock: Clock,
    hand: ManualClock,
    settings: Settings,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (clock, hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        let settings = Settings {
            dir: dir.path().join("audit"),
            head: dir.path().join("audit.head"),
            rotate: 64 * 1024,
            keep: 1000,
            keep_for: None,
            on_failure: OnFailure::Refuse,
        };
        Self { dir, clock, hand, settings }
    }

    /// Small files: each has a few records.
    fn rotating(rotate: u64, keep: usize) -> Self {
        let mut world = Self::new();
        world.settings.rotate = rotate;
        world.settings.keep = keep;
        world
    }

    fn open(&self) -> Audit {
        Audit::open(self.settings.clone(), NODE, self.clock.clone()).unwrap()
    }

    fn parts(&self) -> Vec<Part> {
        parts(&self.settings.dir).unwrap()
    }

    fn verify(&self) -> Report {
        verify(&self.parts(), &expected(&self.settings.head, &[]).unwrap()).unwrap()
    }

    /// All records, as JSON.
    fn records(&self) -> Vec<serde_json::Value> {
        let lines = last_lines(&self.parts(), usize::MAX).unwrap();
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn events(&self) -> Vec<String> {
        self.records().iter().map(|record| record["event"].as_str().unwrap().to_owned()).collect()
    }

    fn newest(&self) -> PathBuf {
        self.parts().pop().unwrap().path
    }
}

fn refused(detail: impl Into<String>) -> Event {
    Event::Refused { caller: caller(), reason: "no_identity", detail: detail.into() }
}

fn caller() -> Caller {
    Caller { instance: "an-instance".to_owned(), pid: 7, uid: 1000 }
}

/// A disk that is full while the flag is set.
#[derive(Clone, Debug, Default)]
struct FullDisk(Arc<AtomicBool>);

impl FullDisk {
    fn fills(&self, full: bool) {
        self.0.store(full, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), DurableError> {
        if !self.0.load(Ordering::Relaxed) {
            return Ok(());
        }
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        Err(DurableError::Io { action: "append to", path: PathBuf::from("audit"), source })
    }
}

#[derive(Debug)]
struct FullFile(FullDisk, Box<dyn RecordFile>);

impl RecordFile for FullFile {
    fn append(&mut self, record: &[u8]) -> Result<(), DurableError> {
        self.0.check()?;
        self.1.append(record)
    }

    fn length(&self) -> u64 {
        self.1.length()
    }

    fn syncer(&self) -> Syncer {
        self.1.syncer()
    }
}

impl Disk for FullDisk {
    fn create(&self, path: &std::path::Path) -> Result<Box<dyn RecordFile>, DurableError> {
        self.check()?;
        Ok(Box::new(FullFile(self.clone(), RealDisk.create(path)?)))
    }

    fn resume(&self, path: &std::path::Path, length: u64) -> Result<Box<dyn RecordFile>, DurableError> {
        Ok(Box::new(FullFile(self.clone(), RealDisk.resume(path, length)?)))
    }
}

impl World {
    fn open_on(&self, disk: &FullDisk) -> Audit {
        let audit = Audit::default();
        let (settings, clock, health) = (self.settings.clone(), self.clock.clone(), audit.health.clone());
        let sink = Sink::open(settings, NODE, clock, Box::new(disk.clone()), health).unwrap();
        Audit { sink: Some(Arc::new(sink)), ..audit }
    }
}
