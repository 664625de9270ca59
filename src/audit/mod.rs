//! Who got what, who was refused and why, and who changed what: one closed set of events.
//!
//! Each event goes to the log under the target `tether::audit` and to whoever subscribed. Events carry ids, serials
//! and reasons; never a token, a key or the content of a document.

use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::broadcast;

/// Subscribers that fall this many events behind miss some and are told so.
const BACKLOG: usize = 1024;

/// Who an event is about, as the kernel told us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Caller {
    /// The instance, or empty when the caller was gone before it could be held.
    pub instance: String,
    /// The process id at the time, for people; never evidence.
    pub pid: i32,
    /// The user id.
    pub uid: u32,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// An SVID left the agent.
    SvidIssued {
        /// To whom.
        caller: Caller,
        /// `x509` or `jwt`.
        kind: &'static str,
        /// The identity.
        spiffe_id: String,
        /// The registration entry it came from.
        entry: String,
        /// The certificate's serial number or the token's `jti`.
        serial: String,
        /// The audiences of a token.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        audience: Vec<String>,
        /// When it ends.
        #[serde(with = "time::serde::rfc3339")]
        not_after: OffsetDateTime,
    },
    /// A caller was refused an SVID or a bundle.
    Refused {
        /// Who.
        caller: Caller,
        /// Why: a stable label.
        reason: &'static str,
        /// Why, for a person.
        detail: String,
    },
    /// A connection was refused or cut.
    ConnectionRefused {
        /// Who.
        caller: Caller,
        /// Why: a stable label.
        reason: &'static str,
        /// Why, for a person.
        detail: String,
    },
    /// An authority changed its state.
    AuthorityChanged {
        /// Which.
        id: String,
        /// What it signs.
        kind: &'static str,
        /// `prepared`, `activated`, `removed` or `revoked`.
        change: &'static str,
    },
    /// The registration entries changed.
    EntriesChanged {
        /// How many there are now.
        count: usize,
        /// The new generation.
        generation: u64,
    },
    /// An entry source has mistakes; nothing changed.
    EntriesRefused {
        /// Each mistake with file, line and column.
        mistakes: Vec<String>,
    },
    /// An operator used the admin API to change something.
    Admin {
        /// Who.
        caller: Caller,
        /// What: the method.
        action: &'static str,
        /// On what.
        subject: String,
    },
}

/// Records events; clones share the subscribers.
#[derive(Clone, Debug)]
pub struct Audit {
    subscribers: broadcast::Sender<Event>,
}

impl Default for Audit {
    fn default() -> Self {
        Self { subscribers: broadcast::Sender::new(BACKLOG) }
    }
}

impl Audit {
    /// Records an event.
    pub fn record(&self, event: Event) {
        let text = serde_json::to_string(&event).expect("events are plain data");
        match &event {
            Event::Refused { .. } | Event::ConnectionRefused { .. } | Event::EntriesRefused { .. } => {
                tracing::warn!(target: "tether::audit", "{text}");
            }
            _ => tracing::info!(target: "tether::audit", "{text}"),
        }
        // Nobody listening is fine.
        let _ = self.subscribers.send(event);
    }

    /// Records an event that happens with every call: made only when somebody looks, and logged at debug level.
    pub fn record_frequent(&self, event: impl FnOnce() -> Event) {
        let logged = tracing::enabled!(target: "tether::audit", tracing::Level::DEBUG);
        if !logged && self.subscribers.receiver_count() == 0 {
            return;
        }
        let event = event();
        let text = serde_json::to_string(&event).expect("events are plain data");
        tracing::debug!(target: "tether::audit", "{text}");
        let _ = self.subscribers.send(event);
    }

    /// Every event from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.subscribers.subscribe()
    }
}
