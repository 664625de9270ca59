//! Who got what, who was refused and why, and who changed what: one closed set of events, as a chain of records on disk.
//!
//! # What it promises
//! [`Audit::before`] returns when the record is in the kernel's hands (`write(2)`): it survives the death of the agent,
//! and what it is about has not happened yet. [`Audit::synced`] returns when it is on disk: it survives a loss of
//! power. Every other record is on disk within [`SYNC_WITHIN`]. Each record names the hash of the one before, so that
//! one that was changed, left out or put elsewhere is found ([`verify`]). A flood of refusals does not push the others
//! out: most of them are counted, and the count is a record ([`Event::RefusalsFolded`]). Records carry ids, serials,
//! digests and reasons; never a token, a key, a prompt or the content of a document.
//!
//! # What it does not
//! Whoever may write to the agent's files can write another chain from some record on, and another head. That shows only
//! to somebody who has a record of theirs: a copy of the log elsewhere, or a noted head.
//!
//! Each event also goes to the log under the target `tether::audit`, and to whoever subscribed.

mod chain;
mod error;
mod event;
mod field;
mod files;
mod folding;
mod head;
mod line;
mod log;
mod query;
mod record;
mod resume;
mod settings;
mod sink;
#[cfg(test)]
mod tests;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{broadcast, watch};

pub use self::chain::Link;
pub use self::error::AuditError;
pub use self::event::Event;
pub use self::field::{Caller, FieldSchema, Schema, Value};
use self::files::RealDisk;
pub use self::files::{Part, parts};
pub use self::head::head_path;
pub use self::query::{Cursor, Filter, Picker, fuzz_record, last_lines};
pub use self::record::{Level, Record};
pub use self::resume::set_aside_of_others;
pub use self::settings::{OnFailure, Settings};
pub use self::sink::{Follow, SYNC_WITHIN};
use self::sink::{Health, Sink};
pub use self::verify::{Begins, Expected, HeadSays, Problem, Report, expected, verify};
use crate::base::clock::Clock;
use crate::base::drain;

/// Subscribers that fall this many events behind miss some and are told so.
const BACKLOG: usize = 1024;

/// Records events; clones share the log and the subscribers.
#[derive(Clone, Debug)]
pub struct Audit {
    subscribers: broadcast::Sender<Event>,
    health: Arc<Health>,
    sink: Option<Arc<Sink>>,
}

impl Default for Audit {
    /// Without a file: events go to the log and to subscribers alone.
    fn default() -> Self {
        let health = Arc::new(Health::new(Ok(())));
        Self { subscribers: broadcast::Sender::new(BACKLOG), health, sink: None }
    }
}

impl Audit {
    /// Opens the log of this node. What a crash left behind is repaired, and a record says so. Blocks.
    pub fn open(settings: Settings, node: &str, clock: Clock) -> Result<Self, AuditError> {
        Self::default().with_log(settings, node, clock)
    }

    /// The same events, to the same subscribers, and into a log. Blocks.
    pub fn with_log(self, settings: Settings, node: &str, clock: Clock) -> Result<Self, AuditError> {
        let sink = Sink::open(settings, node, clock, Box::new(RealDisk), self.health.clone())?;
        Ok(Self { sink: Some(Arc::new(sink)), ..self })
    }

    /// Records what has happened: a refusal, an end. Written when this returns. That it could not be is no error here: it
    /// raises the alarm, and the loss is counted in a record of its own once that can be written.
    ///
    /// Of many refusals of one user for one reason the most are counted, and told of as [`Event::RefusalsFolded`], in the
    /// durable log and in the agent's. Subscribers get each of them.
    pub fn record(&self, record: impl Into<Record>) {
        let record = record.into();
        match &self.sink {
            Some(sink) if sink.folding.folds(record.event()) => self.publish(record),
            sink => {
                if let Some(sink) = sink {
                    sink.record(&record);
                }
                self.tell(record);
            }
        }
    }

    /// Records what is about to happen. Written when this returns; on an error it must not happen. Whether a log that
    /// cannot be written is an error is configured.
    pub fn before(&self, record: impl Into<Record>) -> Result<(), AuditError> {
        let record = record.into();
        if let Some(sink) = &self.sink {
            sink.before(&record)?;
        }
        self.tell(record);
        Ok(())
    }

    /// The same, and the record survives a loss of power: ends, revocations, approvals.
    pub async fn synced(&self, record: impl Into<Record>) -> Result<(), AuditError> {
        let record = record.into();
        if let Some(sink) = &self.sink {
            sink.synced(&record).await?;
        }
        self.tell(record);
        Ok(())
    }

    fn tell(&self, record: Record) {
        line::log(&record);
        self.publish(record);
    }

    fn publish(&self, record: Record) {
        // Nobody listening is fine.
        let _ = self.subscribers.send(record.into_event());
    }

    /// Every event from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.subscribers.subscribe()
    }

    /// Whether records are written, and if not why not.
    pub fn healthy(&self) -> watch::Receiver<Result<(), String>> {
        self.health.subscribe()
    }

    /// Keeps the log until the drain: on disk, no older than it may be, and tried again after a failure. Tells how many
    /// refusals were counted.
    pub async fn keep(&self, drain: drain::Watcher) {
        if let Some(sink) = &self.sink {
            tokio::join!(sink.keep(drain.clone()), self.tell_of_folded(sink, drain));
        }
    }

    async fn tell_of_folded(&self, sink: &Sink, mut drain: drain::Watcher) {
        loop {
            tokio::select! {
                () = drain.draining() => return,
                () = sink.folding.is_due() => sink.folding.take().into_iter().for_each(|event| self.record(event)),
            }
        }
    }

    /// The last thing an agent does: whoever reads the log knows that it did not crash.
    pub async fn stop(&self) {
        if let Some(sink) = &self.sink {
            sink.folding.end().into_iter().for_each(|event| self.record(event));
        }
        self.record(Event::AgentStopped {});
        if let Some(sink) = &self.sink {
            sink.sync().await;
        }
    }

    /// The files, as far as they are written now; `None` without a log.
    pub fn parts(&self) -> Option<Vec<Part>> {
        self.sink.as_ref().map(|sink| sink.parts())
    }

    /// The file that says which record was the last.
    pub fn head(&self) -> Option<PathBuf> {
        self.sink.as_ref().map(|sink| sink.head())
    }

    /// Waits for more. Look at [`Self::parts`] after subscribing.
    pub fn follow(&self) -> Option<Follow> {
        self.sink.as_ref().map(|sink| sink.follow())
    }
}
