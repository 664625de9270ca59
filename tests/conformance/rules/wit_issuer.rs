//! WIT-SVIDs as they come from the socket.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tether::bundle::Bundle;
use tether::id::TrustDomain;
use tether::jwt::Jws;
use tether::proto::admin::RotateAuthorityRequest;
use tether::x509::KeyType;
use tonic::Code;

use crate::harness::{TestAgent, next, within};
use crate::support::foreign::{Foreign, KEY_ID};
use crate::support::forge::{Decoded, decode, members};
use crate::support::wit::{self, wit, wit_stream};
use crate::support::{AUDIENCE, DOMAIN, jwt, published, refused, run, set_bundle, validate};
use crate::table::{Rule, Shown};

pub const RULES: &[Rule] = &[
    Rule {
        id: "WIT-03",
        binds: "iss",
        says: "each key that signs has a kid of its own, and rotation brings another",
        shown: Shown::Test(|| run(rotation())),
    },
    Rule {
        id: "WIT-06",
        binds: "iss",
        says: "the header of a WIT has alg, kid and typ and nothing else",
        shown: Shown::Test(|| run(form())),
    },
    Rule {
        id: "WIT-12",
        binds: "iss",
        says: "both keys are ES256 unless something else was chosen",
        shown: Shown::Test(|| run(default_algorithm())),
    },
    Rule {
        id: "WIT-13",
        binds: "iss",
        says: "jti is the node's id and 128 random bits",
        shown: Shown::Unit("src/authority/tests.rs", "every_token_id_begins_with_the_node_and_occurs_once"),
    },
    Rule {
        id: "WIT-18",
        binds: "iss",
        says: "a WIT has no iss, not even where JWT-SVIDs have one",
        shown: Shown::Test(|| run(no_issuer())),
    },
    Rule {
        id: "WIT-21",
        binds: "iss",
        says: "every WIT has alg, kid, typ, sub, exp and cnf.jwk with alg, and no aud",
        shown: Shown::Test(|| run(form())),
    },
    Rule {
        id: "WIT-22",
        binds: "iss",
        says: "one process has one WIT over all its connections, until it is renewed",
        shown: Shown::Test(|| run(one_each())),
    },
    Rule {
        id: "WIT-23",
        binds: "val",
        says: "nobody is authenticated by a WIT alone",
        shown: Shown::Review(
            "no call takes a WIT without a proof; `wit::WitSvid` says so where it is made, what only reads is named \
             `UnverifiedWit`, and `proof::check_wpt` is what makes a checked request of the two",
        ),
    },
    Rule {
        id: "WIT-24",
        binds: "cli,val",
        says: "a WIT is no bearer token: it is refused where one is expected",
        shown: Shown::As("WIT-30"),
    },
    Rule {
        id: "WIT-25",
        binds: "cli",
        says: "a WIT is presented with a WPT",
        shown: Shown::Unit("src/proof/tests.rs", "a_proof_holds_for_its_own_request_and_names_who_made_it"),
    },
    Rule {
        id: "WIT-26",
        binds: "cli",
        says: "a proof is good for 30 seconds",
        shown: Shown::Unit("src/proof/tests.rs", "a_proof_is_good_for_a_moment"),
    },
    Rule {
        id: "WIT-27",
        binds: "val",
        says: "a proof may be held to one use",
        shown: Shown::Unit("src/proof/tests.rs", "a_proof_counts_once_for_each_asker_and_key"),
    },
    Rule {
        id: "WIT-28",
        binds: "pub",
        says: "the published bundle has each WIT key with use wit-svid and a kid that no other key has",
        shown: Shown::Test(|| run(published_keys())),
    },
    Rule {
        id: "WIT-30",
        binds: "val",
        says: "ValidateJWTSVID refuses WITs, and the WIT validator JWT-SVIDs",
        shown: Shown::Test(|| run(cross_type())),
    },
];

async fn token(agent: &TestAgent) -> (String, Decoded) {
    let token = wit(agent, "").await.unwrap().remove(0).wit_svid;
    let decoded = decode(&token);
    (token, decoded)
}

/// Believes a token by what the agent publishes.
async fn by_the_bundle(agent: &TestAgent, token: &str) -> Result<(), tether::wit::WitError> {
    let domain = TrustDomain::parse(DOMAIN).unwrap();
    let bundle = Bundle::parse(&domain, published(agent).await.to_string().as_bytes()).unwrap().bundle;
    tether::wit::validate(token, |_| Some(bundle.wit()), agent.clock().now(), Duration::ZERO).map(drop)
}

async fn rotation() {
    let agent = wit::agent().await;
    let (_, first) = token(&agent).await;
    let rotate = RotateAuthorityRequest { kind: "wit".to_owned(), now: true };
    within(async { agent.authorities().await.rotate(rotate).await }).await.unwrap();
    // What was issued before is good until it is renewed.
    agent.clock().advance(Duration::from_secs(170));
    let (renewed, second) = token(&agent).await;
    assert_ne!(first.header["kid"], second.header["kid"]);
    by_the_bundle(&agent, &renewed).await.expect("the new key is published");
}

async fn form() {
    for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let agent = TestAgent::configured(|config| {
            config.wit.enabled = true;
            config.authority.jwt_key_type = Some(key_type);
        })
        .await;
        let (token, decoded) = token(&agent).await;
        assert_eq!(members(&decoded.header), BTreeSet::from(["alg", "kid", "typ"]));
        assert_eq!(decoded.header["typ"], "wit+jwt");
        assert_eq!(decoded.header["alg"], Jws::parse(&token).unwrap().header().algorithm.name());
        assert_eq!(members(&decoded.claims), BTreeSet::from(["cnf", "exp", "iat", "jti", "sub"]));
        assert_eq!(members(&decoded.claims["cnf"]), BTreeSet::from(["jwk"]));
        let now = agent.clock().now().unix_timestamp();
        assert_eq!((&decoded.claims["iat"], &decoded.claims["exp"]), (&json!(now), &json!(now + 300)));
        by_the_bundle(&agent, &token).await.expect("it follows every rule");
    }
}

async fn default_algorithm() {
    let (_, decoded) = token(&wit::agent().await).await;
    assert_eq!((&decoded.header["alg"], &decoded.claims["cnf"]["jwk"]["alg"]), (&json!("ES256"), &json!("ES256")));
    assert_eq!(members(&decoded.claims["cnf"]["jwk"]), BTreeSet::from(["alg", "crv", "kty", "x", "y"]));
}

async fn no_issuer() {
    let agent = TestAgent::configured(|config| {
        config.wit.enabled = true;
        config.authority.jwt_issuer = Some("https://oidc.example.org".to_owned());
    })
    .await;
    assert!(token(&agent).await.1.claims.get("iss").is_none());
}

async fn one_each() {
    let agent = wit::agent().await;
    // What is kept goes with the last connection: this one stays.
    let mut client = agent.workload().await;
    let mut open = wit_stream(&mut client, "").await.unwrap();
    let first = next(&mut open).await.unwrap().svids;
    let second = wit(&agent, "").await.unwrap();
    assert_eq!(first, second);
    agent.clock().advance(Duration::from_secs(170));
    let renewed = wit(&agent, "").await.unwrap();
    assert_ne!(renewed[0].wit_svid_key, first[0].wit_svid_key, "with a key of its own");
}

async fn published_keys() {
    let agent = wit::agent().await;
    let rotate = RotateAuthorityRequest { kind: "wit".to_owned(), now: true };
    within(async { agent.authorities().await.rotate(rotate).await }).await.unwrap();
    // Further authorities of our own trust domain, one of them under the kid of ours and one under that of another.
    let (token, decoded) = token(&agent).await;
    let other = Foreign::new("other.example", &agent);
    let key = |kid: &Value, purpose: &str| {
        let mut key = other.key.jwk();
        key["kid"] = kid.clone();
        key["use"] = json!(purpose);
        key
    };
    let taken = decoded.header["kid"].clone();
    let keys = [
        key(&taken, "jwt-svid"),
        key(&taken, "wit-svid"),
        key(&json!("twice"), "jwt-svid"),
        key(&json!("twice"), "wit-svid"),
        key(&json!("once"), "wit-svid"),
    ];
    set_bundle(&agent, DOMAIN, &json!({ "keys": keys }).to_string()).await.unwrap();
    let bundle = published(&agent).await;
    let keys = bundle["keys"].as_array().unwrap();
    let key_ids: Vec<&str> = keys.iter().filter_map(|key| key["kid"].as_str()).collect();
    let unique: BTreeSet<&str> = key_ids.iter().copied().collect();
    assert_eq!(unique.len(), key_ids.len(), "{key_ids:?}");
    assert!(unique.contains("once") && unique.contains("twice"));
    let wit: Vec<&Value> = keys.iter().filter(|key| key["use"] == "wit-svid").collect();
    assert_eq!(wit.len(), 3, "two of ours and one further");
    for key in wit {
        assert_eq!(members(key), BTreeSet::from(["crv", "kid", "kty", "use", "x", "y"]));
    }
    by_the_bundle(&agent, &token).await.expect("our own key is the one under its kid");
}

async fn cross_type() {
    let agent = wit::agent().await;
    let (token, _) = token(&agent).await;
    refused(validate(&agent, &token).await, Code::InvalidArgument, "type");
    let jwt_svid = jwt(&agent, &[AUDIENCE], "").await.unwrap().remove(0).svid;
    by_the_bundle(&agent, &jwt_svid).await.expect_err("a JWT-SVID");

    // A WIT with everything a JWT-SVID has, signed by a key for JWT-SVIDs.
    let foreign = Foreign::new("partner.example", &agent);
    foreign.federate(&agent).await;
    let mut claims = foreign.claims(&agent);
    claims["cnf"] = decode(&token).claims["cnf"].clone();
    let with_type = |kind: &str| foreign.key.sign(&json!({ "alg": "ES256", "kid": KEY_ID, "typ": kind }), &claims);
    validate(&agent, &with_type("JWT")).await.expect("but for its type it is one");
    refused(validate(&agent, &with_type("wit+jwt")).await, Code::InvalidArgument, "type");
}
