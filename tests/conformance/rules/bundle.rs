//! SPIFFE bundles: what is published, read over the admin socket, and what a foreign bundle does once it was set there.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tether::bundle::Bundle;
use tether::id::TrustDomain;
use tether::proto::admin::{DeleteBundleRequest, RotateAuthorityRequest, ShowBundlesRequest};
use tether::proto::workload::{JwtBundlesRequest, X509BundlesRequest};
use tether::x509::{Certificate, Issuer, KeyType, PrivateKey, ProfileError, Serial, Validity, self_signed_root};
use tonic::Code;

use super::x509_issuer::split;
use crate::harness::{TestAgent, next, within};
use crate::support::foreign::{Foreign, header};
use crate::support::forge::{Ca, members, x509_jwk};
use crate::support::{
    DOMAIN, DOMAIN_ID, jwt_bundles, published, refused, run, set_bundle, validate, x509, x509_bundles, x509_stream,
};
use crate::table::{Rule, Shown};

const NO_MAP: Shown = Shown::NotOurs("tether publishes and reads single bundles, no bundle maps");

pub const RULES: &[Rule] = &[
    Rule {
        id: "X509-24",
        binds: "cli",
        says: "an x509-svid key without a certificate is skipped and the others are kept",
        shown: Shown::Test(|| run(without_x5c())),
    },
    Rule {
        id: "X509-25",
        binds: "cli",
        says: "of several certificates in x5c the first counts",
        shown: Shown::Test(|| run(several_x5c())),
    },
    Rule {
        id: "X509-26",
        binds: "cli",
        says: "a trust domain without x509-svid keys has no X.509 bundle, and its absence is no news",
        shown: Shown::Test(|| run(no_x509())),
    },
    Rule {
        id: "BUN-01",
        binds: "pub",
        says: "the published bundle is a JWK Set",
        shown: Shown::Test(|| run(jwk_set())),
    },
    Rule {
        id: "BUN-02",
        binds: "pub,cli",
        says: "keys is an array: a bundle without is refused, an empty one is written as []",
        shown: Shown::Test(|| run(keys())),
    },
    Rule {
        id: "BUN-03",
        binds: "cli,val",
        says: "an empty set means that nothing of the trust domain is believed any more",
        shown: Shown::Test(|| run(empty())),
    },
    Rule {
        id: "BUN-04",
        binds: "cli",
        says: "a key of unknown type or use, or without use, is skipped alone",
        shown: Shown::Test(|| run(unknown())),
    },
    Rule {
        id: "BUN-05",
        binds: "pub",
        says: "every published key has kty and use, and use is case-sensitive",
        shown: Shown::Test(|| run(kty_and_use())),
    },
    Rule {
        id: "BUN-06",
        binds: "pub",
        says: "the published bundle has a sequence number",
        shown: Shown::Test(|| run(sequence())),
    },
    Rule {
        id: "BUN-07",
        binds: "pub",
        says: "the sequence number grows with every change and with nothing else, over restarts too",
        shown: Shown::Test(|| run(sequence())),
    },
    Rule {
        id: "BUN-08",
        binds: "pub,cli",
        says: "sequence numbers have 64 bits and longer ones do not wrap",
        shown: Shown::Test(|| run(large_sequences())),
    },
    Rule {
        id: "BUN-09",
        binds: "pub",
        says: "the published bundle has a refresh hint in whole seconds",
        shown: Shown::Test(|| run(refresh_hint())),
    },
    Rule {
        id: "BUN-10",
        binds: "cli",
        says: "unknown members of the document are tolerated",
        shown: Shown::Test(|| run(extra_members())),
    },
    Rule {
        id: "BUN-11",
        binds: "pub",
        says: "the published bundle has no members beyond the standard's",
        shown: Shown::Test(|| run(jwk_set())),
    },
    Rule {
        id: "BUN-12",
        binds: "cli",
        says: "a bundle is kept with the name of its trust domain, which it does not say itself",
        shown: Shown::Review(
            "`bundle::Bundle` carries its `TrustDomain`, given by whoever sets it; `trust` keeps a map by it",
        ),
    },
    Rule {
        id: "BUN-13",
        binds: "cli",
        says: "bundles of two trust domains are never merged",
        shown: Shown::Test(|| run(apart())),
    },
    Rule {
        id: "BUN-14",
        binds: "iss",
        says: "an authority that names another trust domain cannot be used for this one",
        shown: Shown::Library(other_domain),
    },
    Rule {
        id: "BUN-15",
        binds: "cli",
        says: "without a refresh hint a bundle is fetched every few minutes",
        shown: Shown::NotOurs("bundles are set by an operator; nothing is fetched"),
    },
    Rule { id: "BUN-16", binds: "pub", says: "a bundle map is keyed by trust domain name", shown: NO_MAP },
    Rule { id: "BUN-17", binds: "pub", says: "names in a bundle map are unique", shown: NO_MAP },
    Rule { id: "BUN-18", binds: "cli", says: "a bundle map with a name twice is refused", shown: NO_MAP },
    Rule { id: "BUN-19", binds: "pub", says: "bundles in a map have no refresh hint", shown: NO_MAP },
    Rule { id: "BUN-20", binds: "cli", says: "a bundle map is loaded whole or not at all", shown: NO_MAP },
];

/// The certificates of the foreign trust domain as workloads get them.
async fn foreign_roots(agent: &TestAgent, foreign: &Foreign) -> Vec<Vec<u8>> {
    x509_bundles(agent).await.bundles.get(&foreign.id()).map(|der| split(der)).unwrap_or_default()
}

async fn without_x5c() {
    let (agent, foreign) = Foreign::partner().await;
    let broken = |x5c: Value| {
        let mut key = Ca::root("broken", agent.clock().now()).jwk();
        match x5c {
            Value::Null => drop(key.as_object_mut().unwrap().remove("x5c")),
            x5c => key["x5c"] = x5c,
        }
        key
    };
    let another = Ca::root("another", agent.clock().now());
    let keys = [
        broken(Value::Null),
        foreign.root.jwk(),
        broken(json!([])),
        broken(json!([""])),
        broken(json!("text")),
        broken(json!(["AAAA"])),
        another.jwk(),
    ];
    foreign.set(&agent, &json!({ "keys": keys })).await;
    assert_eq!(foreign_roots(&agent, &foreign).await, [foreign.root.der.clone(), another.der]);
}

async fn several_x5c() {
    let (agent, foreign) = Foreign::partner().await;
    let now = agent.clock().now();
    let (first, second) = (Ca::root("first", now), Ca::root("second", now));
    foreign.set(&agent, &json!({ "keys": [x509_jwk(&[&first.der, &second.der])] })).await;
    assert_eq!(foreign_roots(&agent, &foreign).await, [first.der]);
}

async fn no_x509() {
    let (agent, foreign) = Foreign::partner().await;
    let mut client = agent.workload().await;
    let mut svids = x509_stream(&mut client).await;
    let mut bundles = within(client.fetch_x509_bundles(X509BundlesRequest {})).await.unwrap().into_inner();
    next(&mut svids).await.unwrap();
    next(&mut bundles).await.unwrap();
    foreign.set(&agent, &json!({ "keys": [foreign.jwt_key()] })).await;
    assert!(next(&mut svids).await.unwrap().federated_bundles.is_empty());
    assert_eq!(next(&mut bundles).await.unwrap().bundles.into_keys().collect::<Vec<_>>(), [DOMAIN_ID]);
    validate(&agent, &foreign.token(&agent)).await.expect("its tokens are believed");
    // No bundle at all, then one without X.509 keys again: the same to these streams, so the next message is the root.
    let delete = DeleteBundleRequest { trust_domain: foreign.domain.clone() };
    within(async { agent.bundles().await.delete(delete).await }).await.unwrap();
    foreign.set(&agent, &json!({ "keys": [foreign.jwt_key()] })).await;
    foreign.set(&agent, &foreign.bundle()).await;
    assert_eq!(next(&mut svids).await.unwrap().federated_bundles[&foreign.id()], foreign.root.der);
    assert_eq!(next(&mut bundles).await.unwrap().bundles[&foreign.id()], foreign.root.der);
}

async fn jwk_set() {
    let agent = TestAgent::start().await;
    let bundle = published(&agent).await;
    assert_eq!(members(&bundle), BTreeSet::from(["keys", "spiffe_refresh_hint", "spiffe_sequence"]));
    for key in bundle["keys"].as_array().expect("an array") {
        let own = match key["use"].as_str() {
            Some("x509-svid") => "x5c",
            Some("jwt-svid") => "kid",
            other => panic!("use {other:?}"),
        };
        assert_eq!(members(key), BTreeSet::from(["crv", "kty", own, "use", "x", "y"]));
    }
}

async fn keys() {
    let (agent, foreign) = Foreign::partner().await;
    for wrong in ["{}", "{\"keys\":null}", "{\"keys\":{}}", "{\"keys\":\"\"}", "{\"keys\":[],\"keys\":[]}", "[]", ""] {
        refused(set_bundle(&agent, &foreign.domain, wrong).await, Code::InvalidArgument, "bundle");
    }
    validate(&agent, &foreign.token(&agent)).await.expect("what was refused changed nothing");
    foreign.set(&agent, &json!({ "keys": [foreign.root.jwk()] })).await;
    assert_eq!(&jwt_bundles(&agent).await.bundles[&foreign.id()][..], b"{\"keys\":[]}");
}

async fn empty() {
    let (agent, foreign) = Foreign::partner().await;
    let mut client = agent.workload().await;
    let mut x509 = within(client.fetch_x509_bundles(X509BundlesRequest {})).await.unwrap().into_inner();
    let mut jwt = within(client.fetch_jwt_bundles(JwtBundlesRequest {})).await.unwrap().into_inner();
    assert_eq!(next(&mut x509).await.unwrap().bundles.len(), 2);
    next(&mut jwt).await.unwrap();
    validate(&agent, &foreign.token(&agent)).await.unwrap();
    foreign.set(&agent, &json!({ "keys": [] })).await;
    assert!(!next(&mut x509).await.unwrap().bundles.contains_key(&foreign.id()), "it is gone from open streams");
    assert_eq!(&next(&mut jwt).await.unwrap().bundles[&foreign.id()][..], b"{\"keys\":[]}");
    refused(validate(&agent, &foreign.token(&agent)).await, Code::InvalidArgument, "no JWT authorities");
}

async fn unknown() {
    let (agent, foreign) = Foreign::partner().await;
    let with = |name: &str, value: Value| {
        let mut key = foreign.jwt_key();
        key["kid"] = json!("strange");
        match value {
            Value::Null => drop(key.as_object_mut().unwrap().remove(name)),
            value => key[name] = value,
        }
        key
    };
    let keys = [
        json!({ "kty": "oct", "k": "AAAA", "use": "jwt-svid", "kid": "oct" }),
        with("kty", json!("X")),
        with("kty", Value::Null),
        foreign.root.jwk(),
        with("use", json!("sig")),
        with("use", json!("wit-svid")),
        with("use", Value::Null),
        json!("not an object"),
        foreign.jwt_key(),
    ];
    foreign.set(&agent, &json!({ "keys": keys })).await;
    validate(&agent, &foreign.token(&agent)).await.expect("the good key is there");
    let mut strange = header();
    strange["kid"] = json!("strange");
    let token = foreign.key.sign(&strange, &foreign.claims(&agent));
    refused(validate(&agent, &token).await, Code::InvalidArgument, "no JWT authority");
    assert_eq!(foreign_roots(&agent, &foreign).await, [&foreign.root.der[..]]);
}

async fn kty_and_use() {
    let (agent, foreign) = Foreign::partner().await;
    for key in published(&agent).await["keys"].as_array().unwrap() {
        assert!(["EC", "RSA"].contains(&key["kty"].as_str().unwrap()));
        assert!(["x509-svid", "jwt-svid"].contains(&key["use"].as_str().unwrap()));
    }
    let (mut root, mut key) = (foreign.root.jwk(), foreign.jwt_key());
    root["use"] = json!("X509-SVID");
    key["use"] = json!("Jwt-Svid");
    foreign.set(&agent, &json!({ "keys": [root, key] })).await;
    assert!(foreign_roots(&agent, &foreign).await.is_empty());
    refused(validate(&agent, &foreign.token(&agent)).await, Code::InvalidArgument, "no JWT authorities");
}

async fn sequence() {
    let mut agent = TestAgent::start().await;
    let number = |bundle: Value| bundle["spiffe_sequence"].as_u64().expect("a whole number");
    let content = |bundle: &Value| bundle["keys"].clone();
    let mut last = published(&agent).await;
    let rotations = [("jwt", true), ("x509-root", true), ("jwt", false), ("x509-root", false)];
    for (kind, now) in rotations {
        let rotate = RotateAuthorityRequest { kind: kind.to_owned(), now };
        within(async { agent.authorities().await.rotate(rotate).await }).await.unwrap();
        let bundle = published(&agent).await;
        assert_ne!(content(&bundle), content(&last), "{kind}");
        assert!(number(bundle.clone()) > number(last), "{kind}");
        // What is not in the bundle does not count.
        x509(&agent).await;
        Foreign::new("partner.example", &agent).federate(&agent).await;
        assert_eq!(number(published(&agent).await), number(bundle.clone()));
        agent.restart().await;
        let restarted = published(&agent).await;
        assert_eq!(content(&restarted), content(&bundle), "{kind}");
        assert_eq!(number(restarted.clone()), number(bundle));
        last = restarted;
    }
}

async fn large_sequences() {
    let (agent, foreign) = Foreign::partner().await;
    let domain = TrustDomain::parse(&foreign.domain).unwrap();
    for (sent, kept) in [
        ("9007199254740993", 9_007_199_254_740_993),
        ("9223372036854775808", 9_223_372_036_854_775_808),
        ("18446744073709551615", u64::MAX),
        ("18446744073709551616", u64::MAX),
        ("99999999999999999999999999", u64::MAX),
    ] {
        let content = format!("{{\"spiffe_sequence\":{sent},\"keys\":[]}}");
        set_bundle(&agent, &foreign.domain, &content).await.unwrap();
        let request = ShowBundlesRequest { trust_domain: foreign.domain.clone() };
        let shown = within(async { agent.bundles().await.show(request).await }).await.unwrap().into_inner();
        let read = Bundle::parse(&domain, shown.bundles[0].jwks.as_bytes()).unwrap().bundle;
        assert_eq!(read.sequence(), Some(kept), "{sent}");
    }
}

async fn refresh_hint() {
    let agent = TestAgent::start().await;
    let hint = published(&agent).await["spiffe_refresh_hint"].as_u64().expect("a whole number");
    assert!((1..=3600).contains(&hint));
    for wrong in ["300.5", "\"300\"", "-1", "null"] {
        let content = format!("{{\"spiffe_refresh_hint\":{wrong},\"keys\":[]}}");
        refused(set_bundle(&agent, "partner.example", &content).await, Code::InvalidArgument, "bundle");
    }
}

async fn extra_members() {
    let (agent, foreign) = Foreign::partner().await;
    let mut bundle = foreign.bundle();
    bundle["spiffe_future"] = json!({ "a": [1, null] });
    bundle["comment"] = json!("hello");
    bundle["keys"][1]["alg"] = json!("ES256");
    bundle["keys"][1]["key_ops"] = json!(["verify"]);
    foreign.set(&agent, &bundle).await;
    validate(&agent, &foreign.token(&agent)).await.unwrap();
}

async fn apart() {
    let (agent, foreign) = Foreign::partner().await;
    let bundles = x509_bundles(&agent).await.bundles;
    let own = split(&bundles[DOMAIN_ID]);
    assert!(!own.contains(&foreign.root.der) && foreign_roots(&agent, &foreign).await == [&foreign.root.der[..]]);
    // A key of the partner's under our own trust domain's name is ours then; nothing of the partner's becomes so.
    let token = foreign.token_with(&agent, "sub", json!(format!("{DOMAIN_ID}/user/root")));
    refused(validate(&agent, &token).await, Code::InvalidArgument, DOMAIN);
}

fn other_domain() {
    let now = time::macros::datetime!(2026-03-01 12:00 UTC);
    let validity = Validity { not_before: now, not_after: now + Duration::from_secs(3600) };
    let domain = |name| TrustDomain::parse(name).unwrap();
    let key = || PrivateKey::generate(KeyType::EcP256).unwrap();
    let root = self_signed_root(domain("a.example"), key(), validity, &Serial::from_random([1; 16])).unwrap();
    let certificate: Certificate = root.certificate().clone();
    let error = Issuer::new(domain("b.example"), certificate, root.into_key()).expect_err("it is a.example's");
    assert!(matches!(error, ProfileError::OtherTrustDomain(_)), "{error}");
}
