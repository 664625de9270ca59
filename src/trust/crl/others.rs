//! Lists that other nodes of the trust domain handed over.
//!
//! Promises: a list is taken when it is signed by an authority that leads to our own bundle, is not of an authority of
//! this node, and is newer than the one that is there; it stays until its end, whatever becomes of the node; the size of
//! what one node hands over is bounded.
//!
//! Does not: outlive a restart of this agent. The nodes hand them over again.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;
use time::OffsetDateTime;

use super::Crls;
use crate::x509::{Chain, Crl, VerifiedCrl, X509Error, verify_crl};

/// The most lists of one node: one for each CA of it that has not ended.
const MAX_LISTS: usize = 32;
/// What they may have together.
const MAX_BYTES: usize = 8 << 20;

/// A list as one node hands it to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// The certificate of the authority that signed it, then what leads towards the bundle, in DER.
    pub issuer: Bytes,
    /// The list in DER.
    pub der: Bytes,
}

/// Why lists are not taken.
#[derive(Debug, Error)]
pub enum HandedError {
    /// A list does not hold by our own bundle.
    #[error("a revocation list is not believed")]
    List(#[from] X509Error),
    /// A list claims to be of an authority of this node.
    #[error("a revocation list is of an authority of this node, which signs its own")]
    Ours,
    /// There are more lists, or larger ones, than a node has.
    #[error("there are more than {MAX_LISTS} revocation lists, or they have more than {MAX_BYTES} bytes together")]
    TooMuch,
}

/// The lists of other nodes, by the name of their authority.
#[derive(Clone, Debug, Default)]
pub(super) struct Others(BTreeMap<Vec<u8>, Other>);

#[derive(Clone, Debug)]
struct Other {
    /// Which node handed it over.
    node: Arc<str>,
    list: VerifiedCrl,
    der: Bytes,
}

impl Others {
    pub(super) fn der(&self) -> impl Iterator<Item = Bytes> {
        self.0.values().map(|other| other.der.clone())
    }

    pub(super) fn crls(&self) -> impl Iterator<Item = Crl> {
        self.0.values().map(|other| other.list.crl().clone())
    }

    /// When the first of them is over.
    pub(super) fn next_end(&self) -> Option<OffsetDateTime> {
        self.0.values().map(|other| other.list.next_update()).min()
    }

    /// Those that are not over.
    pub(super) fn good_at(&self, now: OffsetDateTime) -> Self {
        let good = self.0.iter().filter(|(_, other)| other.list.next_update() > now);
        Self(good.map(|(issuer, other)| (issuer.clone(), other.clone())).collect())
    }

    /// Puts one in the place of an older one of the same authority, and says whether anything changed.
    fn put(&mut self, other: Other) -> bool {
        let is_newer = |known: &Other| other.list.is_newer_than(&known.list);
        let changes = self.0.get(other.list.issuer()).is_none_or(is_newer);
        if changes {
            self.0.insert(other.list.issuer().to_vec(), other);
        }
        changes
    }

    /// What a node has here.
    fn size_of(&self, node: &str) -> (usize, usize) {
        let of_node = self.0.values().filter(|other| *other.node == *node);
        of_node.fold((0, 0), |(lists, bytes), other| (lists + 1, bytes + other.der.len()))
    }
}

impl Crls {
    /// Takes what another node hands over: all of it, or nothing. Blocks while signatures are checked.
    ///
    /// # Errors
    /// A list is not to be believed, or it is too much. What was there before stays.
    pub fn take(&self, node: &str, handed: &[Handed]) -> Result<(), HandedError> {
        if handed.len() > MAX_LISTS || handed.iter().map(|list| list.der.len()).sum::<usize>() > MAX_BYTES {
            return Err(HandedError::TooMuch);
        }
        let (trust, now) = (self.0.trust.borrow().clone(), self.0.clock.now());
        let node: Arc<str> = node.into();
        let mut taken = Vec::new();
        for Handed { issuer, der } in handed {
            let issuers = Chain::from_der(issuer)?;
            let ca = issuers.leaf();
            if trust.signers().crl_authorities(now).any(|own| own.certificate().subject() == ca.subject()) {
                return Err(HandedError::Ours);
            }
            let list = verify_crl(der, &issuers, trust.own().x509(), now)?;
            taken.push(Other { node: node.clone(), list, der: der.clone() });
        }
        let mut outcome = Ok(());
        self.0.others.send_if_modified(|(others, changes)| {
            let mut next = others.good_at(now);
            let mut is_new = false;
            for other in taken {
                is_new |= next.put(other);
            }
            let (lists, bytes) = next.size_of(&node);
            if lists > MAX_LISTS || bytes > MAX_BYTES {
                outcome = Err(HandedError::TooMuch);
                return false;
            }
            if is_new {
                *others = Arc::new(next);
                *changes += 1;
            }
            is_new
        });
        outcome
    }
}

#[cfg(test)]
mod tests;
