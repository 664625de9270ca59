use std::time::Duration;

use time::macros::datetime;

use super::*;
use crate::audit::Audit;
use crate::authority::keys::{KeyStore, Wrapping};
use crate::authority::slot::Kind;
use crate::authority::{Authority, Config, Source};
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::x509::KeyType;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn signers_that_arrive_after_newer_ones_are_not_published() {
    let dir = tempfile::tempdir().unwrap();
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
        longest_jwt: Duration::from_secs(3600),
    };
    let (clock, _hand) = Clock::manual(datetime!(2026-01-01 00:00 UTC));
    let store = Store::open(&dir.path().join("store")).await.unwrap();
    let keys = KeyStore::open(dir.path().join("keys"), Wrapping::default(), Entropy::system()).unwrap();
    let opened = Authority::open(config, clock, Entropy::system(), store.clone(), keys, Audit::default()).await;
    let (authority, first) = opened.unwrap();
    let trust = Trust::open(domain, first.clone(), false, store).await.unwrap();
    let compromised = first.slots().iter().find(|slot| slot.kind == Kind::X509Signing).unwrap().id.clone();

    let earlier = authority.rotate(Kind::Jwt, false).await.unwrap();
    let later = authority.revoke(&compromised).await.unwrap();
    trust.authority_changed(later.clone()).await.unwrap();
    let sequence = trust.current().own().sequence();
    trust.authority_changed(earlier).await.unwrap();
    trust.authority_changed(first).await.unwrap();
    assert_eq!(trust.current().signers().generation(), later.generation());
    assert!(!trust.current().signers().stands(&compromised));
    assert_eq!(trust.current().own().sequence(), sequence);
}
