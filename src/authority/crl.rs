//! Revocation lists: one for each CA of this node, signed with the key of that CA.
//!
//! Signing CAs have lists of what they signed for workloads. The list of an embedded root is always empty, because
//! revoking a signing CA replaces its root; it is there for verifiers that look for a list at every step of a path, which
//! nginx, Envoy and rustls do unless they are told otherwise. For a root or intermediate from files there is none: its
//! list belongs to whoever keeps it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use time::OffsetDateTime;

use super::AuthorityError;
use super::signers::BACKDATE;
use super::slot::Slot;
use crate::x509::{Certificate, Issuer, Revoked, Validity};

/// How long a list is good for when its CA lives that long. It is replaced at half of that, and whenever it changes: a
/// verifier that lost its agent goes on for at least the other half.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// A CA of this node, for signing its revocation list.
#[derive(Debug)]
pub struct CrlAuthority {
    id: Arc<str>,
    issuer: Arc<Issuer>,
    chain: Bytes,
    pub(super) not_after: OffsetDateTime,
}

/// A revocation list in DER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCrl {
    /// Whose list it is.
    pub authority: Arc<str>,
    /// The list.
    pub der: Bytes,
    /// The authority's certificate, and what leads from it towards the bundle, in DER: for those who have never seen it.
    pub issuer: Bytes,
    /// Its nextUpdate: nobody should go by it after that.
    pub next_update: OffsetDateTime,
    /// Before this nobody believes it: for a clock that is set back.
    pub this_update: OffsetDateTime,
    /// When it is to be signed again though nothing has changed; `None` when it lasts to the end of its CA.
    pub renew_at: Option<OffsetDateTime>,
}

impl CrlAuthority {
    /// `above` leads from the CA towards the bundle, in DER.
    pub(super) fn new(slot: &Slot, issuer: Arc<Issuer>, above: &[u8]) -> Self {
        let chain = Bytes::from([issuer.certificate().der(), above].concat());
        Self { id: slot.id.as_str().into(), issuer, chain, not_after: slot.not_after }
    }

    /// The authority's id, as the ledger names it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The certificate of the CA.
    pub fn certificate(&self) -> &Certificate {
        self.issuer.certificate()
    }

    pub(super) fn issuer(&self) -> &Arc<Issuer> {
        &self.issuer
    }

    /// Signs the list of what this CA revoked. `number` is greater than that of every list before (RFC 5280, 5.2.3).
    ///
    /// # Errors
    /// The CA has ended.
    pub fn sign(&self, revoked: &[Revoked], now: OffsetDateTime, number: u64) -> Result<SignedCrl, AuthorityError> {
        let full = now + LIFE;
        let next_update = full.min(self.not_after);
        let validity = Validity { not_before: now - BACKDATE, not_after: next_update };
        Ok(SignedCrl {
            authority: self.id.clone(),
            der: Bytes::copy_from_slice(&self.issuer.sign_crl(revoked, validity, number)?),
            issuer: self.chain.clone(),
            next_update,
            this_update: validity.not_before,
            renew_at: (next_update == full).then(|| now + LIFE / 2),
        })
    }
}
