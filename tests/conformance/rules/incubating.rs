//! What is incubating: the WIT profile of the Workload API, which is off unless it was chosen.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tether::jwt::{Jwk, Jws, JwtSigner, read_private_jwk};
use tether::proto::admin::{DeleteEntryRequest, RotateAuthorityRequest};
use tether::proto::workload::JwtBundlesRequest;
use tether::x509::KeyType;
use tonic::Code;

use crate::harness::{TestAgent, next, within};
use crate::support::foreign::Foreign;
use crate::support::forge::{decode, members};
use crate::support::raw::{self, RPCS};
use crate::support::wit::{self, wit, wit_bundle_stream, wit_bundles, wit_stream};
use crate::support::{DOMAIN_ID, create, entry, jwt_bundles, names, published, refused, run};
use crate::table::{Rule, Shown};

pub const RULES: &[Rule] = &[
    Rule {
        id: "STA-01",
        binds: "end,iss",
        says: "without `wit.enabled` there is no WIT profile and no wit-svid key is published; with it there are both",
        shown: Shown::Test(|| run(off_and_on())),
    },
    Rule {
        id: "STA-02",
        binds: "end",
        says: "the version names the commit of the specification",
        shown: Shown::Unit("src/cli/tests.rs", "the_command_line_is_consistent_and_documents_itself"),
    },
    Rule {
        id: "STA-03",
        binds: "end",
        says: "a section's own level counts before its document's",
        shown: Shown::Review("`[wit]` switches what Workload API section 7 says and nothing else has a switch"),
    },
    Rule {
        id: "WL-40",
        binds: "end",
        says: "while it is off both WIT calls are Unimplemented, after the header was checked",
        shown: Shown::Test(|| run(off())),
    },
    Rule {
        id: "WL-42",
        binds: "end",
        says: "FetchWITSVID streams WIT-SVIDs: of each identity, or of the one that was asked for",
        shown: Shown::Test(|| run(which_identity())),
    },
    Rule {
        id: "WL-43",
        binds: "end",
        says: "every WIT-SVID has its SPIFFE ID, a token and a key, and a hint stands in one only",
        shown: Shown::Test(|| run(fields())),
    },
    Rule {
        id: "WL-44",
        binds: "end",
        says: "wit_svid_key is a private JWK with alg, and the key that the token names",
        shown: Shown::Test(|| run(keys())),
    },
    Rule {
        id: "WL-45",
        binds: "end",
        says: "without an identity there are neither WIT-SVIDs nor WIT bundles, and losing it ends their streams",
        shown: Shown::Test(|| run(denied())),
    },
    Rule {
        id: "WL-46",
        binds: "end",
        says: "FetchWITBundles has JWK Sets of WIT keys only, our own always among them",
        shown: Shown::Test(|| run(bundles())),
    },
    Rule {
        id: "WL-47",
        binds: "end",
        says: "each WIT-SVID is renewed on the stream well before it ends, and every message has them all",
        shown: Shown::Test(|| run(renewal())),
    },
];

fn uses(bundle: &Value) -> BTreeSet<&str> {
    bundle["keys"].as_array().unwrap().iter().map(|key| key["use"].as_str().unwrap()).collect()
}

async fn off_and_on() {
    let agent = TestAgent::start().await;
    assert!(!agent.config().wit.enabled, "the default");
    assert_eq!(uses(&published(&agent).await), BTreeSet::from(["jwt-svid", "x509-svid"]));
    refused(wit(&agent, "").await, Code::Unimplemented, "wit.enabled");
    refused(wit_bundles(&agent).await, Code::Unimplemented, "wit.enabled");
    let sockets = std::fs::read_dir(agent.socket().parent().unwrap()).unwrap();
    assert_eq!(sockets.count(), 1, "and no broker's socket");
    let agent = wit::agent().await;
    assert_eq!(uses(&published(&agent).await), BTreeSet::from(["jwt-svid", "wit-svid", "x509-svid"]));
    assert_eq!(wit(&agent, "").await.unwrap().len(), 1);
}

async fn off() {
    let agent = TestAgent::start().await;
    for method in &RPCS[5..] {
        refused(raw::call_agent(&agent, method, &["true"]).await, Code::Unimplemented, "WIT");
        refused(raw::call_agent(&agent, method, &[]).await, Code::InvalidArgument, "workload.spiffe.io");
    }
}

async fn which_identity() {
    let agent = wit::agent_without_entries().await;
    agent.write_entries("two.toml", &(entry("a", "a", "") + &entry("b", "b", ""))).await;
    let of = |svids: Vec<tether::proto::workload::Witsvid>| -> Vec<String> {
        svids.into_iter().map(|svid| svid.spiffe_id).collect()
    };
    let (a, b) = (format!("{DOMAIN_ID}/a"), format!("{DOMAIN_ID}/b"));
    assert_eq!(of(wit(&agent, "").await.unwrap()), [a, b.clone()]);
    assert_eq!(of(wit(&agent, &b).await.unwrap()), [b]);
    for other in [format!("{DOMAIN_ID}/other"), DOMAIN_ID.to_owned(), "spiffe://elsewhere.example/a".to_owned()] {
        refused(wit(&agent, &other).await, Code::PermissionDenied, "not an identity");
    }
    for malformed in ["a", "/a", "spiffe://", "https://dev.tether.internal/a"] {
        refused(wit(&agent, malformed).await, Code::InvalidArgument, "spiffe_id");
    }
}

async fn fields() {
    let agent = wit::agent_without_entries().await;
    let hint = |name: &str| entry(name, name, "hint = \"internal\"");
    agent.write_entries("hints.toml", &(hint("a") + &hint("b") + &entry("c", "c", ""))).await;
    let svids = wit(&agent, "").await.unwrap();
    assert_eq!(names(svids.iter().map(|svid| svid.spiffe_id.as_str())).len(), 3);
    let mut hints: Vec<&str> = svids.iter().map(|svid| svid.hint.as_str()).collect();
    hints.sort_unstable();
    assert_eq!(hints, ["", "", "internal"], "WL-13");
    for svid in &svids {
        assert_eq!(decode(&svid.wit_svid).claims["sub"], svid.spiffe_id);
        assert!(!svid.wit_svid_key.is_empty());
    }
    let keys: BTreeSet<_> = svids.iter().map(|svid| &svid.wit_svid_key).collect();
    assert_eq!(keys.len(), 3, "each with its own key");
}

async fn keys() {
    for (key_type, alg, private) in [
        (KeyType::EcP256, "ES256", &["d"][..]),
        (KeyType::EcP384, "ES384", &["d"]),
        (KeyType::Rsa2048, "RS256", &["d", "dp", "dq", "p", "q", "qi"]),
    ] {
        let agent = TestAgent::configured(|config| {
            config.wit.enabled = true;
            config.authority.key_type = key_type;
        })
        .await;
        let svid = wit(&agent, "").await.unwrap().remove(0);
        let mut key: Value = serde_json::from_str(&svid.wit_svid_key).expect("JSON, and no PEM");
        assert_eq!(key["alg"], alg);
        for name in private {
            assert!(key.as_object_mut().unwrap().remove(*name).expect(name).is_string());
        }
        assert_eq!(
            key,
            decode(&svid.wit_svid).claims["cnf"]["jwk"],
            "without its private part it is what the WIT names"
        );
        // It signs what that key believes.
        let (private, algorithm) = read_private_jwk(&svid.wit_svid_key).expect("a whole key");
        assert_eq!(algorithm.name(), alg);
        let signed = JwtSigner::with_type(&private, "wpt+jwt").unwrap().sign(&json!({})).unwrap();
        let named = Jwk::from_json(key.as_object().unwrap()).unwrap();
        Jws::parse(&signed).unwrap().verify(&named).expect("the key is the one it names");
    }
}

async fn denied() {
    let agent = wit::agent_without_entries().await;
    for method in &RPCS[5..] {
        refused(raw::call_agent(&agent, method, &["true"]).await, Code::PermissionDenied, "no registration entry");
    }
    create(&agent, entry("mine", "mine", "")).await.unwrap();
    let mut client = agent.workload().await;
    let mut wits = wit_stream(&mut client, "").await.unwrap();
    let mut bundles = wit_bundle_stream(&mut client).await.unwrap();
    next(&mut wits).await.unwrap();
    next(&mut bundles).await.unwrap();
    let delete = DeleteEntryRequest { id: "mine".to_owned() };
    within(async { agent.entries().await.delete(delete).await }).await.unwrap();
    refused(next(&mut wits).await, Code::PermissionDenied, "");
    refused(next(&mut bundles).await, Code::PermissionDenied, "no registration entry");
}

async fn bundles() {
    let agent = wit::agent().await;
    let foreign = Foreign::new("partner.example", &agent);
    let mut wit_key = foreign.key.jwk();
    wit_key["use"] = json!("wit-svid");
    wit_key["kid"] = json!("w");
    foreign.federate(&agent).await;
    foreign.set(&agent, &json!({ "keys": [foreign.root.jwk(), foreign.jwt_key(), wit_key] })).await;
    let hidden = Foreign::new("hidden.example", &agent);
    hidden.set(&agent, &hidden.bundle()).await;

    let mut client = agent.workload().await;
    let mut stream = wit_bundle_stream(&mut client).await.unwrap();
    let mut jwt_stream = within(client.fetch_jwt_bundles(JwtBundlesRequest {})).await.unwrap().into_inner();
    let told = next(&mut stream).await.unwrap().bundles;
    let jwt_told = next(&mut jwt_stream).await.unwrap();
    let domains: BTreeSet<&str> = told.keys().map(String::as_str).collect();
    assert_eq!(domains, BTreeSet::from([DOMAIN_ID, &foreign.id()]));
    let key_ids = |set: &str| -> Vec<String> {
        let set: Value = serde_json::from_str(set).expect("JSON");
        let keys = set["keys"].as_array().expect("an array");
        assert!(keys.iter().all(|key| members(key) == BTreeSet::from(["crv", "kid", "kty", "x", "y"])), "{set}");
        keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(key_ids(&told[&foreign.id()]), ["w"]);
    let token = wit(&agent, "").await.unwrap().remove(0).wit_svid;
    assert_eq!(key_ids(&told[DOMAIN_ID]), [decode(&token).header["kid"].as_str().unwrap()]);
    // WL-31: none of them is among the token keys, and these are not told of what concerns the others.
    for set in jwt_bundles(&agent).await.bundles.values() {
        let of_jwt = key_ids(std::str::from_utf8(set).unwrap());
        assert!(of_jwt.iter().all(|key_id| told.values().all(|set| !key_ids(set).contains(key_id))));
    }
    for kind in ["wit", "jwt"] {
        let rotate = RotateAuthorityRequest { kind: kind.to_owned(), now: true };
        within(async { agent.authorities().await.rotate(rotate).await }).await.unwrap();
    }
    let rotated = next(&mut stream).await.unwrap().bundles;
    assert_eq!(key_ids(&rotated[DOMAIN_ID]).len(), 2, "the new key beside the old one");
    let jwt_rotated = next(&mut jwt_stream).await.unwrap();
    assert_ne!(jwt_told, jwt_rotated, "the first that these hear is of their own key");
}

async fn renewal() {
    let agent = wit::agent_without_entries().await;
    let ttl = |name: &str, ttl: &str| entry(name, name, &format!("jwt_ttl = \"{ttl}\""));
    agent.write_entries("two.toml", &(ttl("long", "10m") + &ttl("short", "2m"))).await;
    let mut stream = wit_stream(&mut agent.workload().await, "").await.unwrap();
    let of = |svids: &[tether::proto::workload::Witsvid], path: &str| {
        let svid = svids.iter().find(|svid| svid.spiffe_id.ends_with(path)).expect("every message has them all");
        (svid.wit_svid.clone(), decode(&svid.wit_svid).claims["exp"].as_i64().unwrap())
    };
    let first = next(&mut stream).await.unwrap().svids;
    let (mut short, mut ends) = of(&first, "/short");
    for _ in 0..3 {
        agent.clock().advance(Duration::from_secs(70));
        let told = next(&mut stream).await.unwrap().svids;
        let now = agent.clock().now().unix_timestamp();
        let (renewed, renewed_ends) = of(&told, "/short");
        assert!(renewed != short && now < ends && renewed_ends == now + 120, "renewed before the last one ended");
        (short, ends) = (renewed, renewed_ends);
        assert_eq!(of(&told, "/long"), of(&first, "/long"), "and the other is as it was");
    }
}
