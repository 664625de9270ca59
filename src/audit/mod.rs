//! Who got what, who was refused and why, and who changed what: one closed set of events.

mod error;
mod event;
mod field;
mod line;
mod record;

use tokio::sync::broadcast;

pub use self::error::AuditError;
pub use self::event::{Caller, Event};
pub use self::field::{FieldSchema, Schema, Value};
pub use self::record::{Level, Record};

/// Subscribers that fall this many events behind miss some and are told so.
const BACKLOG: usize = 1024;

/// Records events; clones share the log and the subscribers.
#[derive(Clone, Debug)]
pub struct Audit {
    subscribers: broadcast::Sender<Event>,
}

impl Default for Audit {
    /// Without a file: events go to the log and to subscribers alone.
    fn default() -> Self {
        Self { subscribers: broadcast::Sender::new(BACKLOG) }
    }
}

impl Audit {
    /// Records what has happened: a refusal, an end. Written when this returns; that it could not be is no error here, it
    /// raises the alarm.
    pub fn record(&self, record: impl Into<Record>) {
        self.tell(record.into());
    }

    /// Records what is about to happen. Written when this returns; what fails here must not happen.
    pub fn before(&self, record: impl Into<Record>) -> Result<(), AuditError> {
        self.tell(record.into());
        Ok(())
    }

    /// The same, and the record survives a loss of power: ends, revocations, approvals.
    #[allow(clippy::unused_async, reason = "it waits for a disk where there is a file")]
    pub async fn synced(&self, record: impl Into<Record>) -> Result<(), AuditError> {
        self.tell(record.into());
        Ok(())
    }

    fn tell(&self, record: Record) {
        line::log(&record);
        // Nobody listening is fine.
        let _ = self.subscribers.send(record.into_event());
    }

    /// Every event from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.subscribers.subscribe()
    }
}
