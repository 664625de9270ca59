//! What an authority promises over crashes, rotations and revocations, on a clock that the test moves.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use time::OffsetDateTime;
use time::macros::datetime;

use super::*;
use crate::base::clock::ManualClock;
use crate::policy::{Lifetimes, Policy};
use crate::x509::{Chain, X509Authorities, verify};

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
            source: source(dir.path()),
            key_type: KeyType::EcP256,
            jwt_key_type: KeyType::EcP256,
            jwt_issuer: None,
            root_ttl: DAY * 365,
            ca_ttl: DAY,
            jwt_key_ttl: DAY * 30,
            propagation: Duration::from_secs(10),
            longest_jwt: HOUR,
        };
        Self { dir, config, clock, hand }
    }

    fn embedded() -> Self {
        Self::new(|_| Source::Embedded)
    }

    async fn open(&self) -> Result<(Authority, Arc<Signers>), AuthorityError> {
        let store = Store::open(&self.dir.path().join("store")).await?;
        let keys = KeyStore::open(self.keys())?;
        let (clock, entropy) = (self.clock.clone(), Entropy::system());
        Authority::open(self.config.clone(), clock, entropy, store, keys, Audit::default()).await
    }

    fn keys(&self) -> std::path::PathBuf {
        self.dir.path().join("keys")
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
    std::fs::write(dir.join(format!("{name}.key")), root.key().to_pem().unwrap().expose()).unwrap();
    let (certificate, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
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
async fn a_key_that_a_crash_left_without_a_journal_record_is_removed() {
    let bench = Bench::embedded();
    drop(bench.open().await.unwrap());
    let orphan = bench.keys().join("orphan.pk8");
    std::fs::write(&orphan, "half a key").unwrap();
    bench.open().await.unwrap();
    assert!(!orphan.exists());
    assert_eq!(std::fs::read_dir(bench.keys()).unwrap().count(), 3);
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
