//! What the lists promise over revocations, rotations, restarts and clocks, with a ledger that says what a test wants.

use std::collections::BTreeMap;
use std::sync::Mutex as Lock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tempfile::TempDir;
use time::macros::datetime;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::*;
use crate::audit::Audit;
use crate::authority::keys::{KeyStore, Wrapping};
use crate::authority::slot::{Kind, State};
use crate::authority::{Authority, Config, Source};
use crate::base::clock::ManualClock;
use crate::base::entropy::Entropy;
use crate::id::TrustDomain;
use crate::x509::{Crl, KeyType, RevocationReason, Serial};

pub(super) const START: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);
const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// A ledger of nothing but revocations.
#[derive(Debug, Default)]
pub(super) struct Script {
    revoked: Lock<BTreeMap<String, Vec<Revoked>>>,
    changes: watch::Sender<u64>,
    /// How often lists were made from it, counted by authority.
    asked: AtomicUsize,
    /// Lists cannot be made from it.
    broken: AtomicBool,
}

impl Script {
    pub(super) fn revoke(&self, authority: &str, serials: impl IntoIterator<Item = Serial>, at: OffsetDateTime) {
        let reason = RevocationReason::CessationOfOperation;
        let lines = serials.into_iter().map(|serial| Revoked { serial, at, reason });
        self.revoked.lock().unwrap().entry(authority.to_owned()).or_default().extend(lines);
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Revocations for Script {
    fn revoked(&self, authority: &str) -> Vec<Revoked> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        assert!(!self.broken.load(Ordering::Relaxed), "as the test wants it");
        self.revoked.lock().unwrap().get(authority).cloned().unwrap_or_default()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

pub(super) struct Bench {
    dir: TempDir,
    clock: Clock,
    pub(super) hand: ManualClock,
    pub(super) script: Arc<Script>,
}

pub(super) struct Node {
    authority: Authority,
    pub(super) trust: Trust,
    pub(super) crls: Crls,
}

impl Bench {
    pub(super) fn new() -> Self {
        let (clock, hand) = Clock::manual(START);
        let script = Arc::new(Script::default());
        Self { dir: tempfile::tempdir().unwrap(), clock, hand, script }
    }

    pub(super) async fn open(&self) -> Node {
        let domain = TrustDomain::parse("example.org").unwrap();
        let config = Config {
            domain: domain.clone(),
            node: "0".repeat(32),
            source: Source::Embedded,
            key_type: KeyType::EcP256,
            jwt_key_type: KeyType::EcP256,
            jwt_issuer: None,
            root_ttl: DAY * 365,
            ca_ttl: DAY,
            jwt_key_ttl: DAY * 30,
            propagation: Duration::from_secs(10),
            jwt_propagation: Duration::from_secs(10),
            longest_jwt: HOUR,
        };
        let store = Store::open(&self.dir.path().join("store")).await.unwrap();
        let keys = KeyStore::open(self.dir.path().join("keys"), Wrapping::default(), Entropy::system()).unwrap();
        let (clock, entropy) = (self.clock.clone(), Entropy::system());
        let opened = Authority::open(config, clock, entropy, store.clone(), keys, Audit::default()).await;
        let (authority, signers) = opened.unwrap();
        let trust = Trust::open(domain, signers, false, store.clone()).await.unwrap();
        let script: Arc<dyn Revocations> = self.script.clone();
        let crls = Crls::open(&trust, script, store, self.clock.clone(), Metrics::default()).await.unwrap();
        Node { authority, trust, crls }
    }
}

impl Node {
    fn signing(&self, wanted: impl Fn(&State) -> bool) -> String {
        let signers = self.trust.current().signers().clone();
        let slot = signers.slots().iter().find(|slot| slot.kind == Kind::X509Signing && wanted(&slot.state));
        slot.expect("there is one").id.clone()
    }

    pub(super) fn active(&self) -> String {
        self.signing(|state| *state == State::Active)
    }

    async fn advance(&self) {
        let (signers, _) = self.authority.advance().await.unwrap();
        self.trust.authority_changed(signers).await.unwrap();
    }

    /// On how many of the present lists this serial is.
    pub(super) async fn lists_with(&self, serial: u8) -> usize {
        let set = self.crls.current().await;
        set.der().iter().filter(|der| Crl::from_der(der).unwrap().revokes(&numbered(serial))).count()
    }
}

pub(super) fn numbered(n: u8) -> Serial {
    Serial::from_random([n; 16])
}

fn number(der: &[u8]) -> u64 {
    let (rest, list) = CertificateRevocationList::from_der(der).unwrap();
    assert!(rest.is_empty());
    list.crl_number().unwrap().try_into().unwrap()
}

#[tokio::test]
async fn what_was_revoked_before_the_call_is_on_the_lists_and_they_are_signed_only_when_something_changed() {
    let bench = Bench::new();
    let node = bench.open().await;
    let first = node.crls.current().await;
    assert!(Arc::ptr_eq(&first, &node.crls.current().await));
    assert_eq!(node.lists_with(1).await, 0);

    bench.script.revoke(&node.active(), [numbered(1)], START);
    let (one, other) = tokio::join!(node.crls.current(), node.crls.current());
    assert!(Arc::ptr_eq(&one, &other), "signed once for both");
    assert_eq!(node.lists_with(1).await, 1);
    assert_eq!(one.revoked(), 1);
    let unchanged = first.der().iter().filter(|der| one.der().contains(der)).count();
    assert_eq!(unchanged, first.der().len() - 1, "a list that says the same is not signed again");
}

#[tokio::test]
async fn however_many_streams_open_each_change_is_signed_once() {
    let bench = Bench::new();
    let node = bench.open().await;
    for n in 1..=3 {
        bench.script.revoke(&node.active(), [numbered(n)], START);
        let before = bench.script.asked.load(Ordering::Relaxed);
        let opened = futures_util::future::join_all((0..100).map(|_| async { node.crls.feed().lists().await })).await;
        assert!(opened.iter().all(|set| Arc::ptr_eq(set, &opened[0])));
        assert_eq!(opened[0].revoked(), usize::from(n));
        assert_eq!(bench.script.asked.load(Ordering::Relaxed) - before, 2, "the root and the signing CA, once each");
    }
}

#[tokio::test]
async fn however_many_streams_open_what_cannot_be_signed_is_tried_once_a_second_and_after_a_change() {
    let bench = Bench::new();
    let node = bench.open().await;
    let first = node.crls.current().await;
    let tries = async || {
        let before = bench.script.asked.load(Ordering::Relaxed);
        for _ in 0..10 {
            assert!(Arc::ptr_eq(&first, &node.crls.feed().lists().await), "the last ones that could be signed");
        }
        bench.script.asked.load(Ordering::Relaxed) - before
    };
    bench.script.broken.store(true, Ordering::Relaxed);
    bench.script.revoke(&node.active(), [numbered(1)], START);
    assert_eq!((tries().await, tries().await), (1, 0));
    bench.hand.advance(Duration::from_secs(1));
    assert_eq!((tries().await, tries().await), (1, 0), "the second is over");
    bench.script.revoke(&node.active(), [numbered(2)], START);
    assert_eq!((tries().await, tries().await), (1, 0), "a change is no reason to wait");
    bench.hand.set(START);
    assert_eq!((tries().await, tries().await), (1, 0), "nor is a clock that was set back");
    bench.script.broken.store(false, Ordering::Relaxed);
    bench.hand.advance(Duration::from_secs(1));
    assert_eq!(node.crls.current().await.revoked(), 2);
}

#[tokio::test]
async fn every_ca_that_has_not_ended_has_a_list_also_an_empty_one_and_also_when_it_signs_no_more() {
    let bench = Bench::new();
    let node = bench.open().await;
    assert_eq!(node.crls.current().await.der().len(), 2, "the root and the signing CA");
    let first = node.active();
    bench.script.revoke(&first, [numbered(1)], START);

    bench.hand.advance(HOUR * 9);
    node.advance().await;
    let prepared = node.signing(|state| matches!(state, State::Prepared { .. }));
    assert_eq!(node.crls.current().await.der().len(), 3, "and the prepared one");
    bench.hand.advance(HOUR * 4);
    node.advance().await;
    assert_eq!((node.active(), node.signing(|state| matches!(state, State::Retired { .. }))), (prepared, first));
    assert_eq!(node.lists_with(1).await, 1, "a retired CA keeps its list");
    bench.script.revoke(&node.active(), [numbered(2)], START);
    assert_eq!((node.lists_with(1).await, node.lists_with(2).await), (1, 1));

    bench.hand.advance(HOUR * 12);
    node.advance().await;
    assert_eq!((node.lists_with(1).await, node.lists_with(2).await), (0, 1), "with a CA ends its list");
}

#[tokio::test]
async fn with_a_revoked_authority_its_list_is_gone_and_its_successors_list_begins() {
    let bench = Bench::new();
    let node = bench.open().await;
    let compromised = node.active();
    bench.script.revoke(&compromised, [numbered(1)], START);
    assert_eq!(node.lists_with(1).await, 1);
    let signers = node.authority.revoke(&compromised).await.unwrap();
    node.trust.authority_changed(signers).await.unwrap();
    let set = node.crls.current().await;
    assert_eq!((set.der().len(), set.revoked()), (2, 0));
    bench.script.revoke(&node.active(), [numbered(2)], START);
    assert_eq!((node.lists_with(1).await, node.lists_with(2).await), (0, 1));
}

#[tokio::test]
async fn a_list_is_good_for_a_day_or_to_the_end_of_its_ca_and_is_replaced_at_half() {
    let bench = Bench::new();
    let node = bench.open().await;
    let first = node.crls.current().await;
    let next_update = |set: &CrlSet| set.lists.iter().map(|list| list.signed.next_update).collect::<Vec<_>>();
    assert_eq!(next_update(&first), [START + DAY, START + DAY], "of the root and of the signing CA");
    bench.hand.advance(HOUR * 12 - Duration::from_secs(1));
    assert!(Arc::ptr_eq(&first, &node.crls.current().await));
    bench.hand.advance(Duration::from_secs(1));
    let second = node.crls.current().await;
    assert_eq!(next_update(&second), [START + HOUR * 36, START + DAY], "the signing CA lives no longer than that");
    for der in second.der() {
        let (_, list) = CertificateRevocationList::from_der(der).unwrap();
        assert!(list.last_update().timestamp() < bench.clock.now().unix_timestamp(), "good where a clock is behind");
    }
}

#[tokio::test]
async fn the_number_of_a_list_grows_over_restarts_and_when_the_clock_is_set_back() {
    let bench = Bench::new();
    let mut last = 0;
    let mut grows = |set: &CrlSet| {
        let highest = set.der().iter().map(|der| number(der)).max().unwrap();
        assert!(highest > last, "{highest} after {last}");
        last = highest;
    };
    for round in 0..3 {
        let node = bench.open().await;
        grows(&*node.crls.current().await);
        for n in 0..5 {
            bench.script.revoke(&node.active(), [numbered(round * 10 + n)], START);
            grows(&*node.crls.current().await);
        }
        bench.hand.set(START - DAY * u32::from(round));
    }
    assert!(last >= 1_767_225_600_000, "it begins with the time in milliseconds");
}

#[tokio::test]
async fn new_lists_are_announced_at_once_and_then_at_most_once_a_second() {
    let bench = Bench::new();
    let node = bench.open().await;
    let mut announced = node.crls.watch();
    let (trigger, watcher) = drain::channel();
    let announcer = tokio::spawn(node.crls.clone().announce(watcher));
    bench.hand.advance(Duration::from_secs(2));
    bench.script.revoke(&node.active(), [numbered(1)], START);
    announced.changed().await.unwrap();
    assert_eq!(announced.borrow_and_update().revoked(), 1);

    for n in 2..=9 {
        bench.script.revoke(&node.active(), [numbered(n)], START);
        tokio::task::yield_now().await;
    }
    assert_eq!(node.crls.current().await.revoked(), 9, "who asks has them at once");
    assert!(!announced.has_changed().unwrap(), "the second is not over");
    bench.hand.advance(Duration::from_secs(1));
    announced.changed().await.unwrap();
    assert_eq!(announced.borrow_and_update().revoked(), 9, "all in one");
    trigger.drain().await;
    announcer.await.unwrap();
}

#[tokio::test]
async fn lists_too_large_for_a_message_with_svids_are_left_out_there_and_nowhere_else() {
    let bench = Bench::new();
    let node = bench.open().await;
    assert_eq!(node.crls.current().await.beside_svids().len(), 2);
    let many = (0..30_000u32).map(|n| {
        let mut octets = [0; 16];
        octets[8..12].copy_from_slice(&n.to_be_bytes());
        Serial::from_random(octets)
    });
    bench.script.revoke(&node.active(), many, START);
    let set = node.crls.current().await;
    assert!(set.is_left_out() && set.beside_svids().is_empty());
    assert_eq!((set.der().len(), set.revoked()), (2, 30_000));
}
