//! What every clone of the audit writes to: the log, who waits for it, and how it is.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::chain::Link;
use super::files::{Disk, Part};
use super::folding::Folding;
use super::log::Log;
use super::{AuditError, OnFailure, Record, Settings, head, resume};
use crate::base::clock::Clock;
use crate::base::drain;
use crate::base::durable;
use crate::base::text::chain;

/// Records that nobody waits for are on disk at the latest this long after they were written.
pub const SYNC_WITHIN: Duration = Duration::from_secs(1);

/// Whether records are written.
pub(super) type Health = watch::Sender<Result<(), String>>;

#[derive(Debug)]
pub(super) struct Sink {
    log: Mutex<Log>,
    /// Which refusals are not written one by one.
    pub(super) folding: Folding,
    clock: Clock,
    on_failure: OnFailure,
    node: String,
    head: PathBuf,
    health: Arc<Health>,
    /// Something was written, or could not be.
    dirty: Notify,
    /// The last record, while somebody follows.
    written: watch::Sender<u64>,
    /// Whether the agent stops: nobody should wait for more records.
    closing: watch::Sender<bool>,
    /// The last record that is on disk; held while more is brought there, so that many wait for one sync.
    durable: tokio::sync::Mutex<Link>,
}

/// Waits for records.
#[derive(Clone, Debug)]
pub struct Follow {
    written: watch::Receiver<u64>,
    closing: watch::Receiver<bool>,
}

impl Follow {
    /// Whether there may be more records, as soon as there may be.
    pub async fn more(&mut self) -> bool {
        tokio::select! {
            written = self.written.changed() => written.is_ok(),
            // Whoever closes the log is gone with it.
            _ = self.closing.wait_for(|closing| *closing) => false,
        }
    }
}

impl Sink {
    /// Opens the log. Blocks.
    pub(super) fn open(
        settings: Settings,
        node: &str,
        clock: Clock,
        disk: Box<dyn Disk>,
        health: Arc<Health>,
    ) -> Result<Self, AuditError> {
        let (on_failure, head) = (settings.on_failure, settings.head.clone());
        let log = resume::open(settings, node, disk, clock.now())?;
        let sink = Self {
            written: watch::Sender::new(log.last().seq),
            log: Mutex::new(log),
            folding: Folding::new(clock.clone()),
            clock,
            on_failure,
            node: node.to_owned(),
            head,
            health,
            dirty: Notify::new(),
            closing: watch::Sender::new(false),
            durable: tokio::sync::Mutex::new(Link::genesis()),
        };
        sink.dirty.notify_one();
        Ok(sink)
    }

    /// Writes what has happened, whatever becomes of the record.
    pub(super) fn record(&self, record: &Record) {
        // It is lost, and that is counted.
        let _ = self.write(record, true);
    }

    /// Writes what is about to happen, and returns its number; `None` when it may happen without a record.
    pub(super) fn before(&self, record: &Record) -> Result<Option<u64>, AuditError> {
        match (self.write(record, self.on_failure == OnFailure::Alarm), self.on_failure) {
            (Ok(seq), _) => Ok(Some(seq)),
            (Err(_), OnFailure::Alarm) => Ok(None),
            (Err(error), OnFailure::Refuse) => Err(error),
        }
    }

    /// The same, and waits until it is on disk.
    pub(super) async fn synced(&self, record: &Record) -> Result<(), AuditError> {
        let Some(seq) = self.before(record)? else { return Ok(()) };
        match (self.sync_through(seq).await, self.on_failure) {
            (Err(error), OnFailure::Refuse) => Err(error),
            _ => Ok(()),
        }
    }

    fn write(&self, record: &Record, happens: bool) -> Result<u64, AuditError> {
        let mut log = self.lock();
        let now = self.clock.now();
        let written = log.write(now, record);
        if let Err(error) = &written {
            let lost = if happens { record.event().stands_for() } else { 0 };
            log.failed(now, error, lost);
        }
        let (seq, failure) = (log.last().seq, log.failure());
        drop(log);
        self.is(failure);
        self.dirty.notify_one();
        written?;
        if self.written.receiver_count() > 0 {
            self.written.send_replace(seq);
        }
        Ok(seq)
    }

    /// Says how it is, when that is news.
    fn is(&self, failure: Option<String>) {
        let news = failure.map_or(Ok(()), Err);
        self.health.send_if_modified(|health| {
            match (&*health, &news) {
                (Ok(()), Err(why)) => tracing::error!(%why, "the audit log cannot be written"),
                (Err(_), Ok(())) => tracing::warn!("the audit log is written again"),
                _ => {}
            }
            let is_news = *health != news;
            *health = news;
            is_news
        });
    }

    /// Returns when everything up to this record is on disk.
    async fn sync_through(&self, seq: u64) -> Result<Link, AuditError> {
        let mut durable = self.durable.lock().await;
        if durable.seq >= seq {
            return Ok(durable.clone());
        }
        let unsynced = self.lock().take_unsynced();
        let (files, dead) = (unsynced.files.clone(), unsynced.dead.clone());
        let work = move || {
            files.iter().try_for_each(durable::Syncer::sync)?;
            dead.iter().try_for_each(|path| durable::remove(path))
        };
        let done = tokio::task::spawn_blocking(work).await.map_err(|_| AuditError::Stopping);
        match done.and_then(|done| done.map_err(AuditError::from)) {
            Ok(()) => {
                *durable = unsynced.through;
                Ok(durable.clone())
            }
            Err(error) => {
                self.lock().still_unsynced(unsynced);
                self.is(Some(chain(&error)));
                Err(error)
            }
        }
    }

    /// Brings everything that is written to disk, and says so in the head.
    pub(super) async fn sync(&self) {
        let seq = self.lock().last().seq;
        let link = match self.sync_through(seq).await {
            Ok(link) => link,
            Err(error) => {
                tracing::error!(error = %chain(&error), "the audit log cannot be synced: its last records may not survive a loss of power");
                return;
            }
        };
        let (path, node) = (self.head.clone(), self.node.clone());
        let written = tokio::task::spawn_blocking(move || head::write(&path, &node, &link)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(error = %chain(&error), "the head of the audit log cannot be written: a missing end would not be noticed");
        }
    }

    /// Does what nobody waits for, until the drain: syncs, tries again after a failure, gives up what is too old.
    pub(super) async fn keep(&self, mut drain: drain::Watcher) {
        let patience = self.lock().patience();
        loop {
            let due = patience.map(|patience| self.clock.now() + patience);
            let grown_old = async {
                match due {
                    Some(due) => self.clock.sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = drain.draining() => break,
                () = self.dirty.notified() => {}
                () = grown_old => self.grow_old(),
            }
            // One sync for all that is written meanwhile.
            tokio::select! {
                () = drain.draining() => break,
                () = tokio::time::sleep(SYNC_WITHIN) => {}
            }
            self.try_again();
            self.sync().await;
        }
        self.closing.send_replace(true);
        self.sync().await;
    }

    fn grow_old(&self) {
        let now = self.clock.now();
        if let Err(error) = self.lock().grow_old(now) {
            tracing::warn!(error = %chain(&error), "old records of the audit log cannot be given up now");
        }
    }

    /// After a failure, writes that there was one: nobody may be there to record anything else.
    fn try_again(&self) {
        let mut log = self.lock();
        if log.failure().is_none() {
            return;
        }
        let written = log.say_what_was_lost(self.clock.now());
        let failure = log.failure();
        drop(log);
        self.is(failure);
        if written.is_err() {
            self.dirty.notify_one();
        }
    }

    /// The files, as far as they are written now.
    pub(super) fn parts(&self) -> Vec<Part> {
        self.lock().parts()
    }

    /// The head file's path.
    pub(super) fn head(&self) -> PathBuf {
        self.head.clone()
    }

    /// Told of every record from now on.
    pub(super) fn follow(&self) -> Follow {
        Follow { written: self.written.subscribe(), closing: self.closing.subscribe() }
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
