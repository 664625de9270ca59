//! JWT-SVIDs as they come from the socket.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tether::jwt::Jws;
use tonic::Code;

use crate::harness::TestAgent;
use crate::support::forge::{Decoded, decode, members};
use crate::support::{AUDIENCE, DOMAIN, DOMAIN_ID, entry, jwt, jwt_bundles, published, refused, run};
use crate::table::{Rule, Shown};

pub const RULES: &[Rule] = &[
    Rule {
        id: "JWT-05",
        binds: "iss",
        says: "the header of a token has alg, kid and typ and nothing else",
        shown: Shown::Test(|| run(header())),
    },
    Rule { id: "JWT-09", binds: "iss", says: "sub is the workload's SPIFFE ID", shown: Shown::Test(|| run(subject())) },
    Rule {
        id: "JWT-12",
        binds: "iss",
        says: "audiences are only those asked for, and only those the entry allows",
        shown: Shown::Test(|| run(narrow())),
    },
    Rule {
        id: "JWT-15",
        binds: "iss,val",
        says: "claims beyond sub, aud and exp are registered ones: iat, jti, and iss when configured",
        shown: Shown::Test(|| run(claims())),
    },
    Rule {
        id: "JWT-17",
        binds: "pub",
        says: "the published bundle has each token key with use jwt-svid, a kid and public parameters only",
        shown: Shown::Test(|| run(published_keys())),
    },
    Rule {
        id: "JWT-19",
        binds: "cli",
        says: "tokens travel as bearer credentials",
        shown: Shown::NotOurs("the agent hands tokens out; who carries them is the workload"),
    },
    Rule {
        id: "JWT-22",
        binds: "iss",
        says: "aud is an array, iat and typ are set, and exp lies within the key's life",
        shown: Shown::Test(|| run(good_manners())),
    },
];

async fn token(agent: &TestAgent) -> (String, Decoded) {
    let token = jwt(agent, &[AUDIENCE], "").await.unwrap().remove(0).svid;
    let decoded = decode(&token);
    (token, decoded)
}

async fn header() {
    for key_type in [tether::x509::KeyType::EcP256, tether::x509::KeyType::EcP384, tether::x509::KeyType::Rsa2048] {
        let agent = TestAgent::configured(|config| config.authority.jwt_key_type = Some(key_type)).await;
        let (token, decoded) = token(&agent).await;
        assert_eq!(members(&decoded.header), BTreeSet::from(["alg", "kid", "typ"]));
        let alg = decoded.header["alg"].as_str().unwrap();
        assert!(["ES256", "ES384", "RS256"].contains(&alg));
        assert_eq!(Jws::parse(&token).unwrap().header().algorithm.name(), alg);
    }
}

async fn subject() {
    let agent = TestAgent::start().await;
    agent.write_entries("more.toml", &entry("more", "more", "audiences = [\"*\"]")).await;
    let svids = jwt(&agent, &[AUDIENCE], "").await.unwrap();
    assert_eq!(svids.len(), 2);
    for svid in svids {
        assert_eq!(decode(&svid.svid).claims["sub"], svid.spiffe_id);
    }
}

async fn narrow() {
    let agent = TestAgent::without_entries().await;
    let allowed = "audiences = [\"https://a.example\", \"https://b.example\"]";
    agent.write_entries("narrow.toml", &entry("narrow", "narrow", allowed)).await;
    let svids = jwt(&agent, &["https://b.example"], "").await.unwrap();
    assert_eq!(decode(&svids[0].svid).claims["aud"], json!(["https://b.example"]));
    let both = jwt(&agent, &["https://a.example", "https://elsewhere.example"], "").await;
    refused(both, Code::PermissionDenied, "https://elsewhere.example");
}

async fn claims() {
    let agent = TestAgent::start().await;
    let (_, decoded) = token(&agent).await;
    assert_eq!(members(&decoded.claims), BTreeSet::from(["aud", "exp", "iat", "jti", "sub"]));
    let issuer = "https://oidc.example.org";
    let agent = TestAgent::configured(|config| config.authority.jwt_issuer = Some(issuer.to_owned())).await;
    let (_, decoded) = token(&agent).await;
    assert_eq!(members(&decoded.claims), BTreeSet::from(["aud", "exp", "iat", "iss", "jti", "sub"]));
    assert_eq!(decoded.claims["iss"], issuer);
}

async fn published_keys() {
    let agent = TestAgent::start().await;
    let (_, decoded) = token(&agent).await;
    let bundle = published(&agent).await;
    let keys: Vec<&Value> = bundle["keys"].as_array().unwrap().iter().filter(|key| key["use"] == "jwt-svid").collect();
    assert!(!keys.is_empty());
    let ids: BTreeSet<_> = keys.iter().map(|key| key["kid"].as_str().expect("it has a kid")).collect();
    assert_eq!(ids.len(), keys.len(), "each its own");
    assert!(ids.contains(decoded.header["kid"].as_str().unwrap()), "the key of this token is among them");
    for key in keys {
        assert_eq!(members(key), BTreeSet::from(["crv", "kid", "kty", "use", "x", "y"]));
    }
}

async fn good_manners() {
    let agent = TestAgent::configured(|config| config.authority.jwt_key_ttl = Duration::from_secs(600)).await;
    for _ in 0..6 {
        let (_, decoded) = token(&agent).await;
        let now = agent.clock().now().unix_timestamp();
        assert_eq!(decoded.header["typ"], "JWT");
        assert!(decoded.claims["aud"].is_array());
        assert_eq!(decoded.claims["iat"], now);
        let expiry = decoded.claims["exp"].as_i64().expect("whole seconds");
        let (trust, kid) = (agent.state().trust().current(), decoded.header["kid"].as_str().unwrap());
        let slot = trust.signers().slots().iter().find(|slot| slot.id == kid).expect("the key is in force");
        assert!(now < expiry && expiry <= slot.not_after.unix_timestamp());
        agent.clock().advance(Duration::from_secs(97));
    }
    let bundle = jwt_bundles(&agent).await.bundles;
    assert!(bundle.contains_key(DOMAIN_ID), "{DOMAIN}");
}
