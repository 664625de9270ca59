//! What audit is told of credentials: before they are released, and when they end.

use super::{Issuer, Refusal};
use crate::audit::Event;
use crate::ledger::{self, Reason};
use crate::metrics::Kind;

impl Issuer {
    /// Records that a credential is about to be released; what cannot be recorded is not.
    pub(super) fn before(&self, id: &str, event: Event) -> Result<(), Refusal> {
        if let Err(error) = self.audit.before(event) {
            self.ledger.withdraw(id, Reason::NotRecorded)?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Records that credentials ended before their time, if any did.
    pub(crate) fn record_ended(&self, what: String, reason: Reason, count: usize) {
        if count > 0 {
            self.audit.record(Event::CredentialsEnded { what, reason: reason.as_str(), count });
        }
    }
}

/// The kind, as metrics name it.
impl From<ledger::Kind> for Kind {
    fn from(kind: ledger::Kind) -> Self {
        match kind {
            ledger::Kind::X509 => Self::X509,
            ledger::Kind::Jwt => Self::Jwt,
            ledger::Kind::Wit => Self::Wit,
        }
    }
}
