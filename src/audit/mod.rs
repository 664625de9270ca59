//! Who got what, who was refused and why, and who changed what: one closed set of events.
//!
//! Each event goes to the log under the target `tether::audit` and to whoever subscribed. Events carry ids, serials
//! and reasons; never a token, a key or the content of a document.

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
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
        /// `x509`, `jwt` or `wit`.
        kind: &'static str,
        /// What its theft is worth: 0 bearer, 1 key in the workload, 2 and more key held by tether.
        binding: u8,
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
    /// A verifier was told that a token of this node does not stand.
    TokenRefused {
        /// The verifier.
        caller: Caller,
        /// Whom the token identifies.
        spiffe_id: String,
        /// Its `jti`.
        serial: String,
        /// Why: a stable label.
        reason: &'static str,
    },
    /// A key is held for a process, and a credential was issued for it.
    KeyHeld {
        /// Who asked.
        caller: Caller,
        /// For whom, where that is another.
        #[serde(skip_serializing_if = "Option::is_none")]
        on_behalf_of: Option<Caller>,
        /// `x509` or `wit`.
        kind: &'static str,
        /// The identity.
        spiffe_id: String,
        /// The registration entry it came from.
        entry: String,
        /// The certificate's serial number or the token's `jti`.
        serial: String,
        /// The binding level.
        binding: u8,
        /// When it ends.
        #[serde(with = "time::serde::rfc3339")]
        not_after: OffsetDateTime,
    },
    /// A held key signed.
    KeyUsed {
        /// Who asked.
        caller: Caller,
        /// For whom, where that is another.
        #[serde(skip_serializing_if = "Option::is_none")]
        on_behalf_of: Option<Caller>,
        /// `wpt`, `dpop` or `tls`.
        kind: &'static str,
        /// The identity.
        spiffe_id: String,
        /// The certificate's serial number or the token's `jti`.
        serial: String,
        /// Method and URI of the request that is proven.
        #[serde(skip_serializing_if = "Option::is_none")]
        request: Option<String>,
    },
    /// A tool asked about a request, and its caller is who it says.
    ProofAccepted {
        /// Who asked.
        caller: Caller,
        /// Who sent the request.
        spiffe_id: String,
        /// Method and URI.
        request: String,
    },
    /// A tool asked about a request, and its caller is not who it says.
    ProofRefused {
        /// Who asked.
        caller: Caller,
        /// Why not: a stable label.
        reason: &'static str,
        /// Why not, for a person.
        detail: String,
        /// Method and URI.
        request: String,
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
    /// Issued credentials ended before their time.
    CredentialsEnded {
        /// What ended: a process, a unit, an entry, an authority.
        what: String,
        /// Why: a stable label.
        reason: &'static str,
        /// How many credentials.
        count: usize,
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

impl Event {
    /// Whether somebody did not get what it wanted.
    fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. }
                | Self::TokenRefused { .. }
                | Self::ProofRefused { .. }
                | Self::ConnectionRefused { .. }
                | Self::EntriesRefused { .. }
        )
    }
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
        let line = Line::of(&event);
        if event.is_refusal() {
            line.log_warning();
        } else {
            line.log();
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
        Line::of(&event).log_debug();
        let _ = self.subscribers.send(event);
    }

    /// Every event from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.subscribers.subscribe()
    }
}

/// The fields of an event as a log line has them, so that a JSON log can be searched by them.
#[derive(Default)]
struct Line<'a> {
    event: &'static str,
    caller: Option<&'a Caller>,
    on_behalf_of: Option<&'a Caller>,
    kind: Option<&'static str>,
    binding: Option<u8>,
    spiffe_id: Option<&'a str>,
    entry: Option<&'a str>,
    serial: Option<&'a str>,
    audience: Option<String>,
    not_after: Option<String>,
    reason: Option<&'static str>,
    detail: Option<String>,
    subject: Option<&'a str>,
    change: Option<&'static str>,
}

/// One line at one level; fields that an event does not have are left out.
macro_rules! log_at {
    ($level:ident, $line:expr) => {{
        let line = $line;
        tracing::$level!(
            target: "tether::audit",
            instance = line.caller.map(|caller| caller.instance.as_str()).filter(|instance| !instance.is_empty()),
            pid = line.caller.map(|caller| caller.pid),
            uid = line.caller.map(|caller| caller.uid),
            on_behalf_of = line.on_behalf_of.map(|other| other.instance.as_str()),
            kind = line.kind,
            binding = line.binding,
            change = line.change,
            spiffe_id = line.spiffe_id,
            entry = line.entry,
            serial = line.serial,
            audience = line.audience,
            not_after = line.not_after,
            reason = line.reason,
            detail = line.detail,
            subject = line.subject,
            "{}",
            line.event
        );
    }};
}

impl<'a> Line<'a> {
    fn of(event: &'a Event) -> Self {
        let none = Self::default();
        match event {
            Event::SvidIssued { caller, kind, binding, spiffe_id, entry, serial, audience, not_after } => Self {
                event: "svid_issued",
                caller: Some(caller),
                kind: Some(kind),
                binding: Some(*binding),
                spiffe_id: Some(spiffe_id),
                entry: Some(entry),
                serial: Some(serial),
                audience: (!audience.is_empty()).then(|| audience.join(" ")),
                not_after: not_after.truncate_to_second().format(&Rfc3339).ok(),
                ..none
            },
            Event::TokenRefused { caller, spiffe_id, serial, reason } => Self {
                event: "token_refused",
                caller: Some(caller),
                spiffe_id: Some(spiffe_id),
                serial: Some(serial),
                reason: Some(reason),
                ..none
            },
            Event::KeyHeld { caller, on_behalf_of, kind, spiffe_id, entry, serial, binding, not_after } => Self {
                event: "key_held",
                caller: Some(caller),
                on_behalf_of: on_behalf_of.as_ref(),
                kind: Some(kind),
                spiffe_id: Some(spiffe_id),
                entry: Some(entry),
                serial: Some(serial),
                not_after: not_after.truncate_to_second().format(&Rfc3339).ok(),
                binding: Some(*binding),
                ..none
            },
            Event::KeyUsed { caller, on_behalf_of, kind, spiffe_id, serial, request } => Self {
                event: "key_used",
                caller: Some(caller),
                on_behalf_of: on_behalf_of.as_ref(),
                kind: Some(kind),
                spiffe_id: Some(spiffe_id),
                serial: Some(serial),
                subject: request.as_deref(),
                ..none
            },
            Event::ProofAccepted { caller, spiffe_id, request } => Self {
                event: "proof_accepted",
                caller: Some(caller),
                spiffe_id: Some(spiffe_id),
                subject: Some(request),
                ..none
            },
            Event::ProofRefused { caller, reason, detail, request } => Self {
                event: "proof_refused",
                caller: Some(caller),
                reason: Some(reason),
                detail: Some(detail.clone()),
                subject: Some(request),
                ..none
            },
            Event::Refused { caller, reason, detail } => Self {
                event: "refused",
                caller: Some(caller),
                reason: Some(reason),
                detail: Some(detail.clone()),
                ..none
            },
            Event::CredentialsEnded { what, reason, count } => Self {
                event: "credentials_ended",
                subject: Some(what),
                reason: Some(reason),
                detail: Some(format!("{count} credentials")),
                ..none
            },
            Event::ConnectionRefused { caller, reason, detail } => Self {
                event: "connection_refused",
                caller: Some(caller),
                reason: Some(reason),
                detail: Some(detail.clone()),
                ..none
            },
            Event::AuthorityChanged { id, kind, change } => {
                Self { event: "authority_changed", subject: Some(id), kind: Some(kind), change: Some(change), ..none }
            }
            Event::EntriesChanged { count, generation } => Self {
                event: "entries_changed",
                detail: Some(format!("{count} entries, generation {generation}")),
                ..none
            },
            Event::EntriesRefused { mistakes } => {
                Self { event: "entries_refused", detail: Some(mistakes.join("; ")), ..none }
            }
            Event::Admin { caller, action, subject } => {
                Self { event: "admin", caller: Some(caller), change: Some(action), subject: Some(subject), ..none }
            }
        }
    }

    fn log(self) {
        log_at!(info, self);
    }

    fn log_warning(self) {
        log_at!(warn, self);
    }

    fn log_debug(self) {
        log_at!(debug, self);
    }
}
