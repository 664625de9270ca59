//! An event as it is written: how loud, and without what a policy wants left out.

use std::collections::BTreeSet;

use super::{Event, Schema, Value};

/// How much of a person's attention an event is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// It happens with every call: in the log at level debug.
    Frequent,
    /// In the log at level info.
    Usual,
    /// Somebody did not get what it wanted, or something is wrong: in the log at level warn.
    Warning,
}

/// Fields that tie records together or say how it was decided: no policy can have them left out.
const KEPT: &[&str] = &[
    "caller",
    "session",
    "parent",
    "txn",
    "serial",
    "proof",
    "approval",
    "action",
    "allowed",
    "active",
    "reason",
    "user_ok",
    "agent_ok",
    "policy_ok",
    "policies",
    "set",
    "state",
];

impl Event {
    /// How loud it is in the log.
    pub fn level(&self) -> Level {
        match self {
            Self::Refused { .. }
            | Self::TokenRefused { .. }
            | Self::ProofRefused { .. }
            | Self::ConnectionRefused { .. }
            | Self::RefusalsFolded { .. }
            | Self::EntriesRefused { .. }
            | Self::PolicyRefused { .. }
            | Self::Decided { allowed: false, .. }
            | Self::CallChecked { active: false, .. }
            | Self::SuspiciousUse { .. }
            | Self::AuditRepaired { .. }
            | Self::StateRepaired { .. }
            | Self::AuditInterrupted { .. } => Level::Warning,
            Self::SvidIssued { kind: "jwt", .. }
            | Self::KeyUsed { .. }
            | Self::ProofAccepted { .. }
            | Self::ProofMade { .. }
            | Self::TokenMinted { .. }
            | Self::Decided { .. }
            | Self::CallChecked { .. }
            | Self::CallReported { .. } => Level::Frequent,
            _ => Level::Usual,
        }
    }

    /// How many records it stands for.
    pub(super) fn stands_for(&self) -> u64 {
        match self {
            Self::RefusalsFolded { count, .. } => *count,
            _ => 1,
        }
    }

    /// Whether there is a field of this name that a policy may have left out (`@redact`).
    pub fn is_redactable(name: &str) -> bool {
        let known = |schema: &Schema| schema.fields.iter().any(|field| field.name == name);
        !KEPT.contains(&name) && Self::SCHEMA.iter().any(known)
    }

    /// This event with the text `redacted` in place of these fields, in the durable record and in the log alike. Fields
    /// that tie records together stay, whatever is named.
    pub fn redacted(self, fields: &BTreeSet<String>) -> Record {
        let redacted = fields.iter().filter(|name| Self::is_redactable(name)).cloned().collect();
        Record { event: self, redacted }
    }
}

/// An event as it is written: perhaps without some of its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    event: Event,
    redacted: BTreeSet<String>,
}

impl From<Event> for Record {
    fn from(event: Event) -> Self {
        Self { event, redacted: BTreeSet::new() }
    }
}

impl Record {
    /// The event, whole.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The event, whole: for those in this process who subscribed.
    pub fn into_event(self) -> Event {
        self.event
    }

    /// Shows each field that there is to `visit`, in order, and `None` in place of one that is left out on purpose.
    pub fn each_field<'a>(&'a self, mut visit: impl FnMut(&'static str, Option<Value<'a>>)) {
        self.event.each_field(|name, value| {
            if !value.is_absent() {
                visit(name, (!self.redacted.contains(name)).then_some(value));
            }
        });
    }
}
