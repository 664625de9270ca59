//! What became of everything a session was given.

use time::OffsetDateTime;

use super::model::{EndReason, SessionId};

/// Written when a session ends, and the same for everybody who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The session.
    pub session: SessionId,
    /// Why it ended.
    pub reason: EndReason,
    /// When.
    pub ended_at: OffsetDateTime,
    /// Every session that ended with it, itself first.
    pub ended: Vec<SessionId>,
    /// How many private keys were wiped.
    pub keys_wiped: u32,
    /// What was revoked: refused from now on by everyone who asks.
    pub revoked: Vec<Disposed>,
    /// What cannot be taken back.
    pub remaining: Vec<Disposed>,
}

/// One credential that a session had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disposed {
    /// `wit`, `jwt` or `proof`.
    pub kind: &'static str,
    /// Its id in the ledger; empty for proofs.
    pub id: String,
    /// Where to; empty for proofs.
    pub target: String,
    /// Worthless everywhere from then on.
    pub until: OffsetDateTime,
}

impl Receipt {
    /// Adds what became of a session below.
    pub(super) fn take_in(&mut self, below: &Self) {
        self.ended.extend_from_slice(&below.ended);
        self.keys_wiped += below.keys_wiped;
        self.revoked.extend_from_slice(&below.revoked);
        self.remaining.extend_from_slice(&below.remaining);
    }
}
