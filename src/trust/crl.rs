//! The revocation lists of this node: one for each of its CAs, made from what the ledger says is revoked.
//!
//! Promises: [`Crls::current`] has every serial that was revoked before it was called; lists are signed once for each
//! change, however many ask, and what could not be signed is tried again after a second at the earliest; the number of
//! a list is greater than that of every list before it, over restarts and clocks that are set back too (RFC 5280,
//! section 5.2.3).
//!
//! Beside them stand the lists that other nodes of the trust domain handed over, for as long as each is good for.
//!
//! Does not: have lists of foreign trust domains, or of nodes that were never heard. A verifier that knows several of
//! them cannot refuse whatever is on no list it has; ours takes the issuer without a list as not revoking.

mod others;

use std::fmt;
use std::sync::{Arc, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::{Mutex, watch};

use super::{Snapshot, Trust};
use crate::authority::{AuthorityError, CrlAuthority, SignedCrl, Signers};
use crate::base::clock::Clock;
use crate::base::drain;
use crate::ledger::{Ledger, Reason, RevokedCertificate};
use crate::metrics::Metrics;
use crate::store::{Change, Expect, Space, Store, StoreError};
use crate::x509::{Crl, RevocationReason, Revoked, Serial, X509Error, crl_to_pem};

use self::others::Others;
pub use self::others::{Handed, HandedError};

/// What the lists of one message may have together to go with X.509-SVIDs: gRPC clients stop reading at 4 MiB, and a
/// process must not lose its identity because many others lost theirs.
const MOST_BESIDE_SVIDS: usize = 1 << 20;
/// Between two announcements.
const PAUSE: Duration = Duration::from_secs(1);

const NUMBER: &str = "crl-number";
/// How many numbers are taken from the store at once: those of an hour, as one is used for at most each millisecond.
const NUMBERS: u64 = 3_600_000;

/// Why lists could not be signed; those before are still there.
#[derive(Debug, Error)]
pub enum CrlError {
    /// A CA could not sign its list.
    #[error("a revocation list cannot be signed")]
    Authority(#[from] AuthorityError),
    /// The number of the next list could not be kept.
    #[error("the number of the next revocation list cannot be stored")]
    Store(#[from] StoreError),
    /// The task that signs ended early.
    #[error("the agent is stopping")]
    Stopping,
}

/// Says what is revoked: the ledger.
pub trait Revocations: fmt::Debug + Send + Sync {
    /// The revoked certificates of one authority that have not expired and whose keys are not held by tether.
    fn revoked(&self, authority: &str) -> Vec<Revoked>;

    /// Counts the changes of what `revoked` answers. A change is counted after it is in the answer.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// The revocation lists of one moment: one for each CA of this node that has not ended, then those of other nodes.
#[derive(Debug)]
pub struct CrlSet {
    lists: Vec<List>,
    others: Arc<Others>,
    der: Vec<Bytes>,
    /// Read when somebody judges by them.
    parsed: OnceLock<Vec<Crl>>,
    bytes: usize,
    made_from: MadeFrom,
    /// Given to what was signed for this set; greater than in any set before.
    number: u64,
    renew_at: Option<OffsetDateTime>,
    /// From when on all lists of this node are believed.
    begins: Option<OffsetDateTime>,
}

#[derive(Clone, Debug)]
struct List {
    signed: SignedCrl,
    revoked: Vec<Revoked>,
}

/// Which state of revocations, authorities and lists of other nodes is in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MadeFrom {
    revocations: u64,
    signers: u64,
    others: u64,
}

impl CrlSet {
    fn new(lists: Vec<List>, others: Arc<Others>, made_from: MadeFrom, number: u64) -> Self {
        let own = lists.iter().map(|list| list.signed.der.clone());
        let der: Vec<Bytes> = own.chain(others.der()).collect();
        Self {
            bytes: der.iter().map(Bytes::len).sum(),
            renew_at: lists.iter().filter_map(|list| list.signed.renew_at).chain(others.next_end()).min(),
            begins: lists.iter().map(|list| list.signed.this_update).max(),
            der,
            parsed: OnceLock::new(),
            lists,
            others,
            made_from,
            number,
        }
    }

    /// The lists of this node, for others: each with what leads from its CA towards the bundle.
    pub fn to_hand_over(&self) -> impl Iterator<Item = Handed> {
        let handed = |list: &List| Handed { issuer: list.signed.issuer.clone(), der: list.signed.der.clone() };
        self.lists.iter().map(handed)
    }

    /// How many of the lists are those of other nodes.
    pub fn of_others(&self) -> usize {
        self.der.len() - self.lists.len()
    }

    /// Each list as it is judged by; read once.
    ///
    /// # Errors
    /// One is no list. They are ours, or were read before, so that is a mistake of the agent's.
    pub fn parsed(&self) -> Result<&[Crl], X509Error> {
        if let Some(parsed) = self.parsed.get() {
            return Ok(parsed);
        }
        let own = self.lists.iter().map(|list| Crl::from_der(&list.signed.der));
        let parsed = own.chain(self.others.crls().map(Ok)).collect::<Result<_, _>>()?;
        Ok(self.parsed.get_or_init(|| parsed))
    }

    /// Each list in DER.
    pub fn der(&self) -> &[Bytes] {
        &self.der
    }

    /// Each list as a PEM block.
    pub fn to_pem(&self) -> Vec<String> {
        self.der.iter().map(|der| crl_to_pem(der)).collect()
    }

    /// The lists that go with X.509-SVIDs: all, or none when they are too large for that. A message does not say which,
    /// so nobody is to be judged by these: our client library does not read them.
    pub fn beside_svids(&self) -> &[Bytes] {
        if self.is_left_out() { &[] } else { &self.der }
    }

    /// Whether the lists are too large to go with X.509-SVIDs.
    pub fn is_left_out(&self) -> bool {
        self.bytes > MOST_BESIDE_SVIDS
    }

    /// What the lists have together, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many certificates are on those of this node.
    pub fn revoked(&self) -> usize {
        self.lists.iter().map(|list| list.revoked.len()).sum()
    }

    /// Whether the lists have begun, for a clock that was set back, and none is half over.
    fn is_in_time(&self, now: OffsetDateTime) -> bool {
        self.begins.is_none_or(|begins| begins <= now) && self.renew_at.is_none_or(|renew_at| now < renew_at)
    }

    /// The list of an authority, while it can serve as the list of these certificates.
    fn still_good(&self, authority: &str, revoked: &[Revoked], now: OffsetDateTime) -> Option<&List> {
        let list = self.lists.iter().find(|list| &*list.signed.authority == authority)?;
        let is_fresh = list.signed.this_update <= now && list.signed.renew_at.is_none_or(|renew_at| now < renew_at);
        (is_fresh && list.revoked == revoked).then_some(list)
    }
}

/// The lists as one stream sends them: those of the moment at first, then what is announced.
///
/// A stream may look again for many reasons, and often: that alone neither signs lists nor shows new ones before they
/// are announced. Another CA is a reason: what it signs is refused by those who have no list of it and look for one.
#[derive(Debug)]
pub struct CrlFeed {
    crls: Crls,
    shown: std::sync::Mutex<Option<Arc<CrlSet>>>,
}

impl CrlFeed {
    /// The lists for the next message of this stream.
    pub async fn lists(&self) -> Arc<CrlSet> {
        let shown = self.shown().clone();
        let lists = match shown {
            None => self.crls.current().await,
            Some(shown) => {
                let announced = self.crls.0.announced.borrow().clone();
                // At first a stream may have been ahead of the announcements.
                let newest = if announced.number > shown.number { announced } else { shown };
                let is_of_these_cas = newest.made_from.signers == self.crls.state().signers;
                if is_of_these_cas { newest } else { self.crls.current().await }
            }
        };
        *self.shown() = Some(lists.clone());
        lists
    }

    fn shown(&self) -> MutexGuard<'_, Option<Arc<CrlSet>>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the revocation lists. Clones are the same.
#[derive(Clone, Debug)]
pub struct Crls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    trust: watch::Receiver<Arc<Snapshot>>,
    revocations: Arc<dyn Revocations>,
    changes: watch::Receiver<u64>,
    clock: Clock,
    metrics: Metrics,
    /// Locked while signing: who asks meanwhile waits for the same lists.
    signing: Mutex<Signing>,
    /// What other nodes handed over, and the count of its changes.
    others: watch::Sender<(Arc<Others>, u64)>,
    latest: watch::Sender<Arc<CrlSet>>,
    announced: watch::Sender<Arc<CrlSet>>,
}

#[derive(Debug)]
struct Signing {
    numbers: Numbers,
    /// What could not be signed, and when that was tried last.
    failed: Option<(MadeFrom, OffsetDateTime)>,
}

impl Crls {
    /// Signs the first lists.
    ///
    /// # Errors
    /// They cannot be signed.
    pub async fn open(
        trust: &Trust,
        revocations: Arc<dyn Revocations>,
        store: Store,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Self, CrlError> {
        let others = Arc::new(Others::default());
        let nothing = MadeFrom { revocations: 0, signers: 0, others: 0 };
        let none = Arc::new(CrlSet::new(Vec::new(), others.clone(), nothing, 0));
        let inner = Inner {
            trust: trust.watch(),
            changes: revocations.changes(),
            revocations,
            clock,
            metrics,
            signing: Mutex::new(Signing { numbers: Numbers::open(store).await?, failed: None }),
            others: watch::Sender::new((others, 0)),
            latest: watch::Sender::new(none.clone()),
            announced: watch::Sender::new(none),
        };
        let crls = Self(Arc::new(inner));
        let first = crls.sign(&mut crls.0.signing.lock().await.numbers).await?;
        crls.0.announced.send_replace(first);
        Ok(crls)
    }

    /// The lists as they are now: with everything that was revoked before the call.
    ///
    /// When they cannot be signed, which is logged, these are the last ones that could: a verifier refuses those when
    /// they are stale, and that is better than none.
    pub async fn current(&self) -> Arc<CrlSet> {
        let latest = self.latest();
        if self.is_current(&latest) {
            return latest;
        }
        let mut signing = self.0.signing.lock().await;
        let latest = self.latest();
        if self.is_current(&latest) {
            return latest;
        }
        let (state, now) = (self.state(), self.0.clock.now());
        // Also for a clock that was set back since.
        if signing.failed.is_some_and(|(what, at)| what == state && (now - at).abs() < PAUSE) {
            return latest;
        }
        match self.sign(&mut signing.numbers).await {
            Ok(set) => {
                signing.failed = None;
                set
            }
            Err(error) => {
                if signing.failed.replace((state, now)).is_none() {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(error, "revocation lists stay as they were, trying again");
                }
                latest
            }
        }
    }

    /// The lists that were signed last; while the agent runs, those of about a second ago at the oldest.
    pub fn latest(&self) -> Arc<CrlSet> {
        self.0.latest.borrow().clone()
    }

    /// The lists for a new stream.
    pub fn feed(&self) -> CrlFeed {
        CrlFeed { crls: self.clone(), shown: std::sync::Mutex::default() }
    }

    /// Announces new lists, at most once a second.
    pub fn watch(&self) -> watch::Receiver<Arc<CrlSet>> {
        self.0.announced.subscribe()
    }

    /// Signs the lists when something changes or they are half over, and announces them, until the agent stops.
    pub async fn announce(self, mut drain: drain::Watcher) {
        let inner = &self.0;
        let (mut trust, mut changes, mut others) =
            (inner.trust.clone(), inner.changes.clone(), inner.others.subscribe());
        loop {
            // What changes while these are signed is seen as the next change.
            others.mark_unchanged();
            trust.mark_unchanged();
            changes.mark_unchanged();
            let current = self.current().await;
            inner.announced.send_if_modified(|announced| {
                let is_new = !Arc::ptr_eq(announced, &current);
                if is_new {
                    *announced = current.clone();
                }
                is_new
            });
            tokio::select! {
                () = drain.draining() => return,
                () = inner.clock.pause(PAUSE) => {}
            }
            if !self.is_current(&current) {
                continue;
            }
            let renewal = async {
                match current.renew_at {
                    Some(at) => inner.clock.sleep_until_or_set(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = drain.draining() => return,
                changed = trust.changed() => if changed.is_err() { return },
                changed = changes.changed() => if changed.is_err() { return },
                changed = others.changed() => if changed.is_err() { return },
                () = renewal => {}
            }
        }
    }

    fn is_current(&self, set: &CrlSet) -> bool {
        set.made_from == self.state() && set.is_in_time(self.0.clock.now())
    }

    fn state(&self) -> MadeFrom {
        let signers = self.0.trust.borrow().signers().generation();
        MadeFrom { revocations: *self.0.changes.borrow(), signers, others: self.0.others.borrow().1 }
    }

    async fn sign(&self, numbers: &mut Numbers) -> Result<Arc<CrlSet>, CrlError> {
        let signers = self.0.trust.borrow().signers().clone();
        // Before what is revoked is read: a change in between is then not missed but seen twice.
        let now = self.0.clock.now();
        let (others, changes_of_others) = self.0.others.borrow().clone();
        let made_from = MadeFrom {
            revocations: *self.0.changes.borrow(),
            signers: signers.generation(),
            others: changes_of_others,
        };
        let number = numbers.next(now).await?;
        // Long lists, and keys that are slow to sign, hold nobody else up.
        let crls = self.clone();
        let lists = tokio::task::spawn_blocking(move || crls.lists(&signers, now, number)).await;
        let lists = lists.map_err(|_| CrlError::Stopping)??;
        let set = Arc::new(CrlSet::new(lists, Arc::new(others.good_at(now)), made_from, number));
        self.report(&set);
        self.0.latest.send_replace(set.clone());
        Ok(set)
    }

    /// The list of each authority; those that would say the same as before are not signed again.
    fn lists(&self, signers: &Signers, now: OffsetDateTime, number: u64) -> Result<Vec<List>, CrlError> {
        let before = self.latest();
        let list = |authority: &CrlAuthority| -> Result<List, CrlError> {
            let revoked = self.0.revocations.revoked(authority.id());
            match before.still_good(authority.id(), &revoked, now) {
                Some(list) => Ok(list.clone()),
                None => Ok(List { signed: authority.sign(&revoked, now, number)?, revoked }),
            }
        };
        signers.crl_authorities(now).map(list).collect()
    }

    fn report(&self, set: &CrlSet) {
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.0.metrics.crl_revoked.set(gauge(set.revoked()));
        self.0.metrics.crl_size.set(gauge(set.bytes()));
        self.0.metrics.crl_left_out.set(i64::from(set.is_left_out()));
        match (self.latest().is_left_out(), set.is_left_out()) {
            (false, true) => tracing::warn!(
                bytes = set.bytes(),
                revoked = set.revoked(),
                "the revocation lists are too large to go with X.509-SVIDs: only FetchX509Bundles has them"
            ),
            (true, false) => tracing::info!("the revocation lists go with X.509-SVIDs again"),
            _ => {}
        }
    }
}

/// Gives each signing its number: the time in milliseconds, or one more than the last where that is not greater.
#[derive(Debug)]
struct Numbers {
    store: Store,
    /// Numbers below may have been used.
    next: u64,
    /// INVARIANT: the store has this, and every number that was used is below.
    reserved: u64,
}

impl Numbers {
    async fn open(store: Store) -> Result<Self, StoreError> {
        let reserved = store.get::<u64>(Space::Node, NUMBER).await?.map(|row| row.value).unwrap_or_default();
        Ok(Self { store, next: reserved, reserved })
    }

    async fn next(&mut self, now: OffsetDateTime) -> Result<u64, StoreError> {
        let milliseconds = u64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
        let number = self.next.max(milliseconds);
        if number >= self.reserved {
            let reserved = number.saturating_add(NUMBERS);
            self.store.apply(vec![Change::put(Space::Node, NUMBER, &reserved, Expect::Any)]).await?;
            self.reserved = reserved;
        }
        self.next = number.saturating_add(1);
        Ok(number)
    }
}

impl Revocations for Ledger {
    fn revoked(&self, authority: &str) -> Vec<Revoked> {
        let line = |certificate: RevokedCertificate| {
            // Serial numbers of certificates are ids of the ledger.
            let serial = Serial::from_hex(&certificate.serial)?;
            Some(Revoked { serial, at: certificate.at, reason: reason(certificate.reason) })
        };
        Ledger::revoked(self, authority).into_iter().filter_map(line).collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.crl_changes()
    }
}

/// What a revocation list has for a reason of ours (RFC 5280, section 5.3.1).
fn reason(reason: Reason) -> RevocationReason {
    match reason {
        Reason::ProcessExited
        | Reason::ExecutableChanged
        | Reason::ExecutableHidden
        | Reason::UnitStopped
        | Reason::CgroupEmpty
        | Reason::Rebooted
        | Reason::AgentRestart
        | Reason::SessionEnded => RevocationReason::CessationOfOperation,
        Reason::NoLongerMatches
        | Reason::NotRecorded
        | Reason::LedgerRepaired
        | Reason::EntryGone
        | Reason::EntryDisabled
        | Reason::EntryExpired
        | Reason::AuthorityRevoked
        | Reason::ApprovalWithdrawn
        | Reason::PolicyDenied
        | Reason::Operator => RevocationReason::PrivilegeWithdrawn,
    }
}

#[cfg(test)]
mod tests;
