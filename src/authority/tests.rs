//! What an authority promises over crashes, rotations and revocations, on a clock that the test moves.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use time::OffsetDateTime;
use time::macros::datetime;

use super::slot::State;
use super::*;
use crate::base::clock::ManualClock;
use crate::policy::{Lifetimes, Policy};
use crate::x509::{
    Certificate, Chain, Crl, PrivateKey, RevocationReason, Revoked, Serial, Validity, X509Authorities, X509Error,
    self_signed_root, verify,
};

const NODE: &str = "00112233445566778899aabbccddeeff";
const START: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

struct Bench {
    dir: TempDir,
    config: Config,
    clock: Clock,
    hand: ManualClock,
}

impl Bench {
    fn new(source: impl FnOnce(&Path) -> Source) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (clock, hand) = Clock::manual(START);
        let config = Config {
            domain: TrustDomain::parse("example.org").unwrap(),
            node: NODE.to_owned(),
            source: source(dir.path()),
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
        Self { dir, config, clock, hand }
    }

    fn embedded() -> Self {
        Self::new(|_| Source::Embedded)
    }

    async fn open(&self) -> Result<(Authority, Arc<Signers>), AuthorityError> {
        let store = Store::open(&self.dir.path().join("store")).await?;
        let keys = KeyStore::open(self.keys(), keys::Wrapping::default(), Entropy::system())?;
        let (clock, entropy) = (self.clock.clone(), Entropy::system());
        Authority::open(self.config.clone(), clock, entropy, store, keys, Audit::default()).await
    }

    fn keys(&self) -> std::path::PathBuf {
        self.dir.path().join("keys")
    }

    fn key_files(&self) -> BTreeSet<String> {
        let names = std::fs::read_dir(self.keys()).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Every row has its key, and every key its row.
    async fn assert_rows_and_keys_agree(&self) {
        let store = Store::open(&self.dir.path().join("store")).await.unwrap();
        let rows = store.list::<Slot>(Space::Authorities).await.unwrap();
        let rows: BTreeSet<String> = rows.into_iter().map(|(id, _)| format!("{id}.pk8")).collect();
        assert_eq!(rows, self.key_files());
    }

    async fn leaf(&self, signers: &Signers) -> Chain {
        let policy = Policy::new(Lifetimes { x509: HOUR, jwt: HOUR });
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let grant = policy.own_x509(&self.config.domain, "0");
        let signed = signers.sign_x509(grant, key.public_key(), self.clock.now()).await.unwrap();
        Chain::from_der(&signed.chain).unwrap()
    }

    fn believes(&self, roots: &[Certificate], chain: &Chain) -> bool {
        let authorities = X509Authorities::new(self.config.domain.clone(), roots.iter().cloned()).unwrap();
        verify(chain, &authorities, self.clock.now(), &[]).is_ok()
    }
}

/// Writes a root made by somebody else.
fn write_root(dir: &Path, name: &str) -> Source {
    let key = PrivateKey::generate(KeyType::EcP384).unwrap();
    let validity = Validity { not_before: START - HOUR, not_after: START + DAY * 300 };
    let serial = Serial::from_random(Entropy::system().bytes());
    let root = self_signed_root(TrustDomain::parse("example.org").unwrap(), key, validity, &serial).unwrap();
    std::fs::write(dir.join(format!("{name}.pem")), root.certificate().to_pem()).unwrap();
    let (certificate, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    std::fs::write(&key, root.key().to_pem().unwrap().expose()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    Source::Disk(DiskFiles { certificate, key, bundle: None })
}

#[tokio::test]
async fn the_same_authorities_sign_after_a_restart() {
    let bench = Bench::embedded();
    let (authority, first) = bench.open().await.unwrap();
    drop(authority);
    let (_authority, second) = bench.open().await.unwrap();
    assert_eq!(first.slots(), second.slots());
    assert!(bench.believes(first.roots(), &bench.leaf(&second).await));
}

#[tokio::test]
async fn what_a_crash_left_without_a_journal_record_is_removed_and_the_files_of_others_are_not() {
    let bench = Bench::embedded();
    drop(bench.open().await.unwrap());
    let serial = "0123456789abcdef0123456789abcdef";
    let thumbprint = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";
    let orphans = [format!("{serial}.pk8"), format!("{thumbprint}.pk8"), format!(".{serial}.pk8.42.tmp")];
    let foreign = ["root-backup.pk8", "notes.txt", ".notes.42.tmp", "0123.pk8", "0123456789ABCDEF0123456789ABCDEF.pk8"];
    for name in orphans.iter().map(String::as_str).chain(foreign) {
        std::fs::write(bench.keys().join(name), "half a key").unwrap();
    }
    bench.open().await.unwrap();
    assert!(orphans.iter().all(|name| !bench.keys().join(name).exists()));
    assert!(foreign.iter().all(|name| bench.keys().join(name).exists()));
    assert_eq!(bench.key_files().len(), 4 + foreign.len());
}

#[tokio::test]
async fn a_missing_or_damaged_key_is_named_and_nothing_is_replaced_behind_the_operators_back() {
    let bench = Bench::embedded();
    let (authority, signers) = bench.open().await.unwrap();
    let jwt = signers.slots().iter().find(|slot| slot.kind == Kind::Jwt).unwrap().id.clone();
    drop((authority, signers));
    let path = bench.keys().join(format!("{jwt}.pk8"));
    std::fs::write(&path, "not a key").unwrap();
    let error = bench.open().await.unwrap_err().to_string();
    assert!(error.contains(&jwt) && error.contains("restore"), "{error}");
    std::fs::remove_file(&path).unwrap();
    assert!(bench.open().await.is_err());
}

#[tokio::test]
async fn every_signing_authority_that_ends_was_followed_in_time() {
    let bench = Bench::embedded();
    let (authority, mut signers) = bench.open().await.unwrap();
    for _ in 0..24 * 3 {
        let chain = bench.leaf(&signers).await;
        bench.hand.advance(HOUR);
        let before = signers.roots().to_vec();
        signers = authority.advance().await.unwrap().0;
        assert!(bench.believes(&before, &bench.leaf(&signers).await), "no bundle has to change for a signing CA");
        let _still_inside_its_own_life = chain;
    }
    let signing = signers.slots().iter().filter(|slot| slot.kind == Kind::X509Signing).count();
    assert!(signing <= 3, "old ones go: {:?}", signers.slots());
}

#[tokio::test]
async fn revoking_a_signing_authority_replaces_its_root_because_verifiers_believe_the_root() {
    let bench = Bench::embedded();
    let (authority, before) = bench.open().await.unwrap();
    let old = bench.leaf(&before).await;
    let signing = before.slots().iter().find(|slot| slot.kind == Kind::X509Signing).unwrap();
    let after = authority.revoke(&signing.id).await.unwrap();
    assert!(!bench.believes(after.roots(), &old));
    assert!(bench.believes(after.roots(), &bench.leaf(&after).await));
    assert!(!after.stands(&signing.id));
    assert!(
        after.stands(after.slots().iter().find(|slot| slot.kind == Kind::Jwt).unwrap().id.as_str()),
        "JWT keys stay"
    );
    assert_eq!(std::fs::read_dir(bench.keys()).unwrap().count(), after.slots().len(), "revoked keys are destroyed");
    assert!(matches!(authority.revoke("nobody").await, Err(AuthorityError::Unknown(_))));
}

#[tokio::test]
async fn a_prepared_authority_can_be_revoked_without_touching_what_signs() {
    let bench = Bench::embedded();
    let (authority, _) = bench.open().await.unwrap();
    let prepared = authority.rotate(Kind::Jwt, false).await.unwrap();
    let id = prepared.slots().iter().find(|slot| matches!(slot.state, State::Prepared { .. })).unwrap().id.clone();
    let after = authority.revoke(&id).await.unwrap();
    let states: Vec<_> = after.slots().iter().filter(|slot| slot.kind == Kind::Jwt).map(|slot| slot.state).collect();
    assert_eq!(states, [State::Active]);
}

#[tokio::test]
async fn nodes_with_the_same_files_believe_each_other() {
    let one = Bench::new(|dir| write_root(dir, "root"));
    let mut other = Bench::embedded();
    other.config.source = one.config.source.clone();
    let (_a, first) = one.open().await.unwrap();
    let (_b, second) = other.open().await.unwrap();
    assert!(one.believes(first.roots(), &other.leaf(&second).await));
    assert!(other.believes(second.roots(), &one.leaf(&first).await));
    assert_ne!(first.slots(), second.slots(), "their signing CAs are their own");
}

#[tokio::test]
async fn every_ca_of_this_node_has_a_revocation_list_and_a_root_from_files_has_none_of_ours() {
    for (bench, expected) in [(Bench::embedded(), 2), (Bench::new(|dir| write_root(dir, "root")), 1)] {
        let (_authority, signers) = bench.open().await.unwrap();
        let authorities: Vec<_> = signers.crl_authorities(bench.clock.now()).collect();
        assert_eq!(authorities.len(), expected);
        let leaf = bench.leaf(&signers).await;
        let line = Revoked {
            serial: leaf.leaf().serial().clone(),
            at: bench.clock.now(),
            reason: RevocationReason::CessationOfOperation,
        };
        let signing = authorities.last().unwrap();
        let list = Crl::from_der(&signing.sign(&[line], bench.clock.now(), 1).unwrap().der).unwrap();
        let roots = X509Authorities::new(bench.config.domain.clone(), signers.roots().iter().cloned()).unwrap();
        assert!(matches!(verify(&leaf, &roots, bench.clock.now(), &[list]), Err(X509Error::Revoked)));
    }
}

#[tokio::test]
async fn replaced_files_are_followed_on_reload_and_unusable_ones_change_nothing() {
    let bench = Bench::new(|dir| write_root(dir, "root"));
    let (authority, before) = bench.open().await.unwrap();
    let old = bench.leaf(&before).await;
    assert_eq!(authority.reload_files().await.unwrap().unwrap().slots(), before.slots(), "the same files: no change");

    let certificate = bench.dir.path().join("root.pem");
    let good = std::fs::read(&certificate).unwrap();
    std::fs::write(&certificate, "rubbish").unwrap();
    assert!(authority.reload_files().await.is_err());
    std::fs::write(&certificate, good).unwrap();
    assert_eq!(authority.advance().await.unwrap().0.slots(), before.slots());

    write_root(bench.dir.path(), "root");
    let after = authority.reload_files().await.unwrap().unwrap();
    assert!(!bench.believes(after.roots(), &old));
    assert!(bench.believes(after.roots(), &bench.leaf(&after).await));
    assert!(matches!(authority.rotate(Kind::X509Root, true).await, Err(AuthorityError::RootOnDisk)));
}

#[tokio::test]
async fn an_embedded_root_survives_a_time_in_which_the_root_came_from_files() {
    let mut bench = Bench::embedded();
    let (authority, embedded) = bench.open().await.unwrap();
    let root = embedded.slots().iter().find(|slot| slot.kind == Kind::X509Root).unwrap().clone();
    drop(authority);
    bench.assert_rows_and_keys_agree().await;

    bench.config.source = write_root(bench.dir.path(), "root");
    let (authority, disk) = bench.open().await.unwrap();
    assert!(bench.believes(disk.roots(), &bench.leaf(&disk).await));
    assert!(!bench.believes(embedded.roots(), &bench.leaf(&disk).await));
    assert!(disk.slots().iter().all(|slot| slot.kind != Kind::X509Root), "it is neither published nor shown");
    drop(authority);
    bench.assert_rows_and_keys_agree().await;

    bench.config.source = Source::Embedded;
    let (authority, back) = bench.open().await.unwrap();
    assert!(back.slots().contains(&root), "the same root");
    assert!(bench.believes(embedded.roots(), &bench.leaf(&back).await));
    let signing = back.slots().iter().filter(|slot| slot.kind == Kind::X509Signing).count();
    assert_eq!(signing, 1, "{:?}", back.slots());
    drop(authority);
    bench.assert_rows_and_keys_agree().await;
}

#[tokio::test]
async fn an_embedded_root_that_rests_can_be_destroyed_by_its_id() {
    let mut bench = Bench::embedded();
    let (authority, embedded) = bench.open().await.unwrap();
    let root = embedded.slots().iter().find(|slot| slot.kind == Kind::X509Root).unwrap().clone();
    drop(authority);
    bench.config.source = write_root(bench.dir.path(), "root");
    let (authority, before) = bench.open().await.unwrap();
    let after = authority.revoke(&root.id).await.unwrap();
    assert_eq!(before.slots(), after.slots());
    assert!(!bench.keys().join(format!("{}.pk8", root.id)).exists());
}

#[tokio::test]
async fn a_revocation_holds_even_when_the_key_file_cannot_be_removed_and_the_file_goes_later() {
    let bench = Bench::embedded();
    let (authority, before) = bench.open().await.unwrap();
    let jwt = before.slots().iter().find(|slot| slot.kind == Kind::Jwt).unwrap().id.clone();
    // What is no file cannot be removed as one, whoever asks.
    let key = bench.keys().join(format!("{jwt}.pk8"));
    std::fs::remove_file(&key).unwrap();
    std::fs::create_dir(&key).unwrap();
    let after = authority.revoke(&jwt).await.unwrap();
    assert!(!after.stands(&jwt) && after.jwt_keys().iter().all(|(id, _)| *id != jwt));
    assert!(after.generation() > before.generation());

    let again = authority.revoke(&jwt).await.expect("asking twice is fine");
    assert_eq!((again.generation(), again.slots()), (after.generation(), after.slots()));
    std::fs::remove_dir(&key).unwrap();
    std::fs::write(&key, "the key").unwrap();
    let (later, _) = authority.advance().await.unwrap();
    assert!(!key.exists());
    assert_eq!(later.generation(), after.generation(), "nothing else has changed");
}

#[tokio::test]
async fn a_change_is_ended_even_when_whoever_asked_for_it_has_gone() {
    let bench = Bench::embedded();
    let (authority, before) = bench.open().await.unwrap();
    let jwt = before.slots().iter().find(|slot| slot.kind == Kind::Jwt).unwrap().id.clone();
    let mut generation = authority.watch();
    tokio::select! {
        biased;
        done = authority.revoke(&jwt) => panic!("the store answered at once: {done:?}"),
        () = std::future::ready(()) => {}
    }
    generation.changed().await.unwrap();
    let (after, _) = authority.advance().await.unwrap();
    assert!(!after.stands(&jwt));
    drop((authority, generation));
    bench.assert_rows_and_keys_agree().await;
}

#[tokio::test]
async fn a_draft_that_cannot_be_put_into_force_changes_nothing() {
    let bench = Bench::embedded();
    let (authority, before) = bench.open().await.unwrap();
    let files = bench.key_files();
    let root = before.slots().iter().find(|slot| slot.kind == Kind::X509Root).unwrap();
    let path = bench.keys().join(format!("{}.pk8", root.id));
    let key = std::fs::read(&path).unwrap();
    std::fs::write(&path, "not a key").unwrap();
    assert!(authority.rotate(Kind::X509Signing, true).await.is_err());
    std::fs::write(&path, key).unwrap();
    assert_eq!(authority.advance().await.unwrap().0.generation(), before.generation());
    assert_eq!(bench.key_files(), files);
}

#[tokio::test]
async fn each_change_has_a_larger_generation_and_no_change_has_the_same() {
    let bench = Bench::embedded();
    let (authority, first) = bench.open().await.unwrap();
    assert_eq!(authority.advance().await.unwrap().0.generation(), first.generation());
    let second = authority.rotate(Kind::Jwt, false).await.unwrap();
    let third = authority.rotate(Kind::X509Signing, true).await.unwrap();
    assert!(first.generation() < second.generation() && second.generation() < third.generation());
    assert_eq!(*authority.watch().borrow(), third.generation());
}

#[tokio::test]
async fn a_signing_authority_always_has_room_for_the_longest_svid_that_may_be_asked_for() {
    let bench = Bench::embedded();
    let (authority, _) = bench.open().await.unwrap();
    for _ in 0..24 * 4 {
        bench.hand.advance(HOUR / 2);
        let (signers, _) = authority.advance().await.unwrap();
        let active = |slot: &&Slot| slot.kind == Kind::X509Signing && slot.state == State::Active;
        let signing = signers.slots().iter().find(active).unwrap();
        assert!(signing.not_after - bench.clock.now() >= bench.config.ca_ttl / 2);
    }
}

#[tokio::test]
async fn unusable_files_are_refused_with_the_reason() {
    let bench = Bench::new(|dir| {
        write_root(dir, "other");
        let Source::Disk(files) = write_root(dir, "root") else { unreachable!("a disk authority was written") };
        Source::Disk(DiskFiles { key: dir.join("other.key"), ..files })
    });
    let error = bench.open().await.unwrap_err().to_string();
    assert!(error.contains("is not its own"), "{error}");
}

#[tokio::test]
async fn a_clock_that_jumps_a_year_ahead_ends_with_new_authorities_that_sign() {
    let bench = Bench::embedded();
    let (authority, before) = bench.open().await.unwrap();
    bench.hand.advance(DAY * 400);
    let (after, next) = authority.advance().await.unwrap();
    assert!(next > bench.clock.now());
    assert!(bench.believes(after.roots(), &bench.leaf(&after).await));
    assert!(before.slots().iter().all(|slot| !after.stands(&slot.id)));
}

#[tokio::test]
async fn a_journal_without_a_wit_key_gets_one_and_keeps_everything_else() {
    let bench = Bench::embedded();
    let (authority, before) = bench.open().await.unwrap();
    drop(authority);
    // As an agent left it that knew no WIT keys.
    let store = Store::open(&bench.dir.path().join("store")).await.unwrap();
    let wit = before.slots().iter().find(|slot| slot.kind == Kind::Wit).unwrap();
    store.apply(vec![Change::delete(Space::Authorities, &wit.id, Expect::Any)]).await.unwrap();
    drop(store);

    let (authority, after) = bench.open().await.unwrap();
    drop(authority);
    let others = |signers: &Signers| -> Vec<Slot> {
        signers.slots().iter().filter(|slot| slot.kind != Kind::Wit).cloned().collect()
    };
    assert_eq!(others(&before), others(&after));
    assert_eq!(after.slots().iter().filter(|slot| slot.kind == Kind::Wit).count(), 1);
    assert!(!after.stands(&wit.id) && after.wit_keys().iter().count() == 1);
    bench.assert_rows_and_keys_agree().await;
}

#[tokio::test]
async fn a_new_wit_key_is_known_before_it_signs_and_a_retired_one_until_its_last_wit_is_out() {
    // WIT-03, WIT-28
    let bench = Bench::embedded();
    let (authority, first) = bench.open().await.unwrap();
    let first_key = first.wit_keys().iter().next().unwrap().0.to_owned();
    let prepared = authority.rotate(Kind::Wit, false).await.unwrap();
    assert_eq!(prepared.wit_keys().iter().count(), 2);
    assert_eq!(&*prepared.wit.id, first_key);
    bench.hand.advance(bench.config.propagation);
    let (active, _) = authority.advance().await.unwrap();
    assert_ne!(&*active.wit.id, first_key);
    assert!(active.wit_keys().find(&first_key).is_some());
    bench.hand.advance(bench.config.longest_jwt);
    let (later, _) = authority.advance().await.unwrap();
    assert!(later.wit_keys().find(&first_key).is_none());
    let key_ids: BTreeSet<_> = later.jwt_keys().iter().map(|(key_id, _)| key_id.as_str()).collect();
    assert!(later.wit_keys().iter().all(|(key_id, _)| !key_ids.contains(key_id)));
}

#[tokio::test]
async fn every_token_id_begins_with_the_node_and_occurs_once() {
    // WIT-13
    let bench = Bench::embedded();
    let (_authority, signers) = bench.open().await.unwrap();
    let ids: BTreeSet<String> = (0..100_000).map(|_| signers.token_id()).collect();
    assert_eq!(ids.len(), 100_000);
    let is_hex = |text: &str| text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    assert!(ids.iter().all(|id| id.strip_prefix(NODE).and_then(|id| id.strip_prefix('.')).is_some_and(is_hex)));
}

#[tokio::test]
async fn a_new_jwt_key_is_published_as_long_as_outside_services_keep_keys_before_a_rotation_lets_it_sign() {
    let mut bench = Bench::embedded();
    bench.config.jwt_propagation = DAY;
    let (authority, first) = bench.open().await.unwrap();
    let rotated = authority.rotate(Kind::Jwt, false).await.unwrap();
    assert_eq!((rotated.jwt_keys().len(), &*rotated.jwt.id), (2, &*first.jwt.id));
    bench.hand.advance(DAY - Duration::from_secs(1));
    let (waiting, next) = authority.advance().await.unwrap();
    assert_eq!(&*waiting.jwt.id, &*first.jwt.id, "it signs before everybody knows it");
    assert!(next <= bench.hand.now() + Duration::from_secs(1));
    bench.hand.advance(Duration::from_secs(1));
    let (active, _) = authority.advance().await.unwrap();
    assert_ne!(&*active.jwt.id, &*first.jwt.id);
    assert!(active.jwt_keys().iter().any(|(id, _)| *id == *first.jwt.id), "its last tokens are still out");
}
