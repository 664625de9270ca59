//! The Workload API: what each call answers, and when.

use std::collections::BTreeSet;

use prost_types::value::Kind;
use serde_json::json;
use tether::id::TrustDomain;
use tether::proto::workload::X509svidResponse;
use tether::x509::{Chain, X509Authorities, verify};
use tonic::Code;
use x509_parser::asn1_rs::{Any, FromDer as _, Tag};

use super::x509_issuer::{parse, split, uris};
use crate::harness::TestAgent;
use crate::support::foreign::{Foreign, federate_with};
use crate::support::forge::{decode, members};
use crate::support::raw::{self, RPCS};
use crate::support::{
    AUDIENCE, DOMAIN, DOMAIN_ID, create, entry, jwt, jwt_bundles, names, published, refused, run, validate,
    validate_for, x509, x509_bundles,
};
use crate::table::{Rule, Shown};

pub const RULES: &[Rule] = &[
    Rule {
        id: "WL-01",
        binds: "end",
        says: "the X.509 and JWT profiles are there, all five calls",
        shown: Shown::Test(|| run(profiles())),
    },
    Rule {
        id: "WL-06",
        binds: "end",
        says: "an empty mandatory field is InvalidArgument",
        shown: Shown::Test(|| run(empty_fields())),
    },
    Rule {
        id: "WL-10",
        binds: "end",
        says: "bundle maps are keyed by the trust domain's SPIFFE ID, without a slash at its end",
        shown: Shown::Test(|| run(keys())),
    },
    Rule {
        id: "WL-12",
        binds: "end",
        says: "the order of identities is stable over calls, connections and restarts",
        shown: Shown::Test(|| run(order())),
    },
    Rule {
        id: "WL-13",
        binds: "end",
        says: "a hint stands in one SVID of a message only",
        shown: Shown::Test(|| run(hints())),
    },
    Rule {
        id: "WL-15",
        binds: "end",
        says: "a hint of 1024 bytes arrives and one of 1025 is refused where it is configured",
        shown: Shown::Test(|| run(long_hint())),
    },
    Rule {
        id: "WL-17",
        binds: "end",
        says: "there is one X509-SVID for each identity, and never a message without one",
        shown: Shown::Test(|| run(one_each())),
    },
    Rule {
        id: "WL-18",
        binds: "end",
        says: "no mandatory field is empty, and spiffe_id is the certificate's",
        shown: Shown::Test(|| run(x509_fields())),
    },
    Rule {
        id: "WL-19",
        binds: "end",
        says: "x509_svid is DER certificates, leaf first, which lead to the bundle",
        shown: Shown::Test(|| run(x509_fields())),
    },
    Rule {
        id: "WL-20",
        binds: "end",
        says: "x509_svid_key is one PKCS#8 key in DER, the leaf's",
        shown: Shown::Test(|| run(x509_key())),
    },
    Rule {
        id: "WL-21",
        binds: "end",
        says: "bundle is the published CA certificates of the SVID's own trust domain",
        shown: Shown::Test(|| run(own_bundle())),
    },
    Rule {
        id: "WL-22",
        binds: "end",
        says: "federated_bundles has foreign trust domains only, those the entry names; every crl is one whole list",
        shown: Shown::Test(|| run(federated())),
    },
    Rule {
        id: "WL-23",
        binds: "end",
        says: "without an identity there are neither X509-SVIDs nor X.509 bundles",
        shown: Shown::Test(|| run(denied(&[RPCS[0], RPCS[1]]))),
    },
    Rule {
        id: "WL-24",
        binds: "end",
        says: "FetchX509Bundles has our own trust domain and the foreign ones the caller may see",
        shown: Shown::Test(|| run(x509_bundle_map())),
    },
    Rule {
        id: "WL-26",
        binds: "end",
        says: "FetchJWTSVID without an audience, or with an empty one, is InvalidArgument",
        shown: Shown::Test(|| run(no_audience())),
    },
    Rule {
        id: "WL-27",
        binds: "end",
        says: "the token's aud is exactly what was asked for",
        shown: Shown::Test(|| run(audiences())),
    },
    Rule {
        id: "WL-28",
        binds: "end",
        says: "without spiffe_id there is a token for each identity, with it for that one",
        shown: Shown::Test(|| run(which_identity())),
    },
    Rule {
        id: "WL-29",
        binds: "end",
        says: "no identity or one that is not ours is PermissionDenied; a malformed one is InvalidArgument",
        shown: Shown::Test(|| run(not_granted())),
    },
    Rule {
        id: "WL-30",
        binds: "end",
        says: "every JWT-SVID has its SPIFFE ID and a compact token",
        shown: Shown::Test(|| run(jwt_fields())),
    },
    Rule {
        id: "WL-31",
        binds: "end",
        says: "FetchJWTBundles has JWK Sets of token keys only, our own always among them",
        shown: Shown::Test(|| run(jwt_bundle_map())),
    },
    Rule {
        id: "WL-32",
        binds: "end",
        says: "without an identity there are no JWT bundles",
        shown: Shown::Test(|| run(denied(&[RPCS[3]]))),
    },
    Rule {
        id: "WL-33",
        binds: "end",
        says: "ValidateJWTSVID needs an audience and a token",
        shown: Shown::Test(|| run(validate_fields())),
    },
    Rule {
        id: "WL-34",
        binds: "end",
        says: "tokens of our own and of visible foreign trust domains are validated, others are not",
        shown: Shown::Test(|| run(validate_domains())),
    },
    Rule {
        id: "WL-35",
        binds: "end",
        says: "a token that does not hold is InvalidArgument",
        shown: Shown::Test(|| run(invalid())),
    },
    Rule {
        id: "WL-36",
        binds: "end",
        says: "the answer has the subject and its claims, sub, aud and exp among them",
        shown: Shown::Test(|| run(claims())),
    },
    Rule {
        id: "WL-39",
        binds: "end",
        says: "every JWK for workloads has a kid and only RFC 7517 members",
        shown: Shown::Test(|| run(plain_jwks())),
    },
];

/// The path of each identity, in order.
pub fn ids(answer: &X509svidResponse) -> Vec<&str> {
    names(answer.svids.iter().map(|svid| svid.spiffe_id.as_str()))
}

async fn profiles() {
    let agent = TestAgent::start().await;
    assert_eq!(x509(&agent).await.svids.len(), 1);
    assert_eq!(x509_bundles(&agent).await.bundles.len(), 1);
    let token = jwt(&agent, &[AUDIENCE], "").await.unwrap().remove(0).svid;
    assert_eq!(jwt_bundles(&agent).await.bundles.len(), 1);
    validate(&agent, &token).await.unwrap();
}

async fn empty_fields() {
    let agent = TestAgent::start().await;
    // An empty message has no audience, no token.
    for method in [RPCS[2], RPCS[4]] {
        refused(raw::call_agent(&agent, method, &["true"]).await, Code::InvalidArgument, "audience");
    }
    refused(validate(&agent, "").await, Code::InvalidArgument, "svid");
}

async fn keys() {
    let (agent, foreign) = Foreign::partner().await;
    let expected = BTreeSet::from([DOMAIN_ID.to_owned(), foreign.id()]);
    assert_eq!(x509_bundles(&agent).await.bundles.into_keys().collect::<BTreeSet<_>>(), expected);
    assert_eq!(jwt_bundles(&agent).await.bundles.into_keys().collect::<BTreeSet<_>>(), expected);
    assert_eq!(x509(&agent).await.federated_bundles.into_keys().collect::<Vec<_>>(), [foreign.id()]);
}

async fn order() {
    let mut agent = TestAgent::start().await;
    let many: String = ["c", "a", "d", "b"].iter().map(|name| entry(name, name, "audiences = [\"*\"]")).collect();
    agent.write_entries("many.toml", &many).await;
    let first = x509(&agent).await;
    let in_order = ids(&first);
    assert_eq!(in_order.len(), 5);
    for _ in 0..3 {
        assert_eq!(ids(&x509(&agent).await), in_order);
    }
    agent.restart().await;
    assert_eq!(ids(&x509(&agent).await), in_order);
    let tokens = jwt(&agent, &[AUDIENCE], "").await.unwrap();
    assert_eq!(names(tokens.iter().map(|svid| svid.spiffe_id.as_str())), in_order);
}

async fn hints() {
    let agent = TestAgent::without_entries().await;
    let hint = |name: &str, hint: &str| entry(name, name, &format!("hint = \"{hint}\"\naudiences = [\"*\"]"));
    agent.write_entries("hints.toml", &(hint("a", "internal") + &hint("b", "internal") + &hint("c", "external"))).await;
    let answer = x509(&agent).await;
    let x509_hints: Vec<&str> = answer.svids.iter().map(|svid| svid.hint.as_str()).collect();
    let tokens = jwt(&agent, &[AUDIENCE], "").await.unwrap();
    let jwt_hints: Vec<&str> = tokens.iter().map(|svid| svid.hint.as_str()).collect();
    for hints in [x509_hints, jwt_hints] {
        let mut sorted = hints;
        sorted.sort_unstable();
        assert_eq!(sorted, ["", "external", "internal"], "all three are there, one without its hint");
    }
}

async fn long_hint() {
    let agent = TestAgent::without_entries().await;
    let with = |length: usize| format!("hint = \"{}\"", "é".repeat(length / 2) + &"x".repeat(length % 2));
    refused(create(&agent, entry("long", "long", &with(1025))).await, Code::InvalidArgument, "1024");
    create(&agent, entry("long", "long", &with(1024))).await.unwrap();
    assert_eq!(x509(&agent).await.svids[0].hint.len(), 1024);
}

async fn one_each() {
    let agent = TestAgent::without_entries().await;
    agent.write_entries("two.toml", &(entry("a", "a", "") + &entry("b", "b", ""))).await;
    let answer = x509(&agent).await;
    assert_eq!(ids(&answer).into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(["a", "b"]));
    let keys: BTreeSet<_> = answer.svids.iter().map(|svid| &svid.x509_svid_key).collect();
    assert_eq!(keys.len(), 2, "each with its own key");
    // Two entries for one identity are one identity.
    agent.write_entries("two.toml", &(entry("a", "a", "") + &entry("b", "a", ""))).await;
    assert_eq!(ids(&x509(&agent).await), ["a"]);
    agent.remove_entries("two.toml").await;
    refused(raw::call_agent(&agent, RPCS[0], &["true"]).await, Code::PermissionDenied, "");
}

async fn x509_fields() {
    let agent = TestAgent::start().await;
    agent.write_entries("more.toml", &entry("more", "more", "hint = \"more\"")).await;
    for svid in x509(&agent).await.svids {
        assert!(!svid.x509_svid.is_empty() && !svid.x509_svid_key.is_empty() && !svid.bundle.is_empty());
        let chain = split(&svid.x509_svid);
        assert_eq!(uris(&parse(&chain[0])), [svid.spiffe_id.as_str()], "the leaf is first");
        let mut above = chain[1..].to_vec();
        above.extend(split(&svid.bundle));
        for (below, above) in chain.iter().zip(&above) {
            parse(below).verify_signature(Some(parse(above).public_key())).expect("each is signed by the next");
        }
        let authorities = X509Authorities::from_der(TrustDomain::parse(DOMAIN).unwrap(), &svid.bundle).unwrap();
        let chain = Chain::from_der(&svid.x509_svid).unwrap();
        let believed = verify(&chain, &authorities, agent.clock().now(), &[]).unwrap();
        assert_eq!(believed.spiffe_id().as_str(), svid.spiffe_id);
    }
}

async fn x509_key() {
    for key_type in [tether::x509::KeyType::EcP256, tether::x509::KeyType::EcP384, tether::x509::KeyType::Rsa2048] {
        let agent = TestAgent::configured(|config| config.authority.key_type = key_type).await;
        let svid = x509(&agent).await.svids.remove(0);
        // SEQUENCE { INTEGER 0, SEQUENCE algorithm, OCTET STRING key }: PKCS#8. PKCS#1 has its modulus second, SEC 1 an
        // INTEGER 1 first.
        let (rest, info) = Any::from_der(&svid.x509_svid_key).expect("DER");
        assert!(rest.is_empty(), "one key and nothing after it");
        let (rest, version) = Any::from_der(info.data).unwrap();
        let (rest, algorithm) = Any::from_der(rest).unwrap();
        let (_, key) = Any::from_der(rest).unwrap();
        assert_eq!((version.tag(), version.data), (Tag::Integer, &[0][..]));
        assert_eq!((algorithm.tag(), key.tag()), (Tag::Sequence, Tag::OctetString));
        let der = rustls_pki_types::PrivatePkcs8KeyDer::from(svid.x509_svid_key.to_vec());
        let key = rcgen::KeyPair::try_from(&der).expect("another implementation reads it");
        let leaf = split(&svid.x509_svid).remove(0);
        assert_eq!(rcgen::PublicKeyData::subject_public_key_info(&key), parse(&leaf).public_key().raw);
    }
}

async fn own_bundle() {
    let (agent, foreign) = Foreign::partner().await;
    let svid = x509(&agent).await.svids.remove(0);
    let published = published(&agent).await;
    let published = published["keys"].as_array().unwrap().iter().filter_map(|key| key["x5c"][0].as_str());
    let decode = |text| base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
    assert_eq!(split(&svid.bundle), published.map(decode).collect::<Vec<_>>());
    assert!(!split(&svid.bundle).contains(&foreign.root.der));
    assert_eq!(x509_bundles(&agent).await.bundles[DOMAIN_ID], svid.bundle);
}

async fn federated() {
    let (agent, foreign) = Foreign::partner().await;
    let hidden = Foreign::new("hidden.example", &agent);
    hidden.set(&agent, &hidden.bundle()).await;
    let answer = x509(&agent).await;
    assert_eq!(answer.federated_bundles.len(), 1);
    assert_eq!(split(&answer.federated_bundles[&foreign.id()]), [&foreign.root.der[..]]);
    assert!(!answer.crl.is_empty(), "the CAs of this node have lists");
    for crl in answer.crl {
        tether::x509::Crl::from_der(&crl).expect("each is one list");
    }
}

async fn denied(methods: &[&str]) {
    let agent = TestAgent::without_entries().await;
    for method in methods {
        refused(raw::call_agent(&agent, method, &["true"]).await, Code::PermissionDenied, "no registration entry");
    }
}

async fn x509_bundle_map() {
    let (agent, foreign) = Foreign::partner().await;
    let hidden = Foreign::new("hidden.example", &agent);
    hidden.set(&agent, &hidden.bundle()).await;
    let bundles = x509_bundles(&agent).await.bundles;
    assert_eq!(bundles.len(), 2);
    assert_eq!(split(&bundles[&foreign.id()]), [&foreign.root.der[..]]);
    assert!(!bundles[DOMAIN_ID].is_empty());
    federate_with(&agent, &[]).await;
    assert_eq!(x509_bundles(&agent).await.bundles.into_keys().collect::<Vec<_>>(), [DOMAIN_ID]);
}

async fn no_audience() {
    let agent = TestAgent::start().await;
    for audience in [&[][..], &[""], &["demo", ""]] {
        refused(jwt(&agent, audience, "").await, Code::InvalidArgument, "audience");
    }
}

async fn audiences() {
    let agent = TestAgent::start().await;
    for asked in [&["a"][..], &["b", "a"], &["https://x.example/ü?q=1#f", " ", "a"]] {
        let token = jwt(&agent, asked, "").await.unwrap().remove(0).svid;
        assert_eq!(decode(&token).claims["aud"], json!(asked));
        for audience in asked {
            validate_for(&agent, &token, audience).await.unwrap();
        }
        refused(validate_for(&agent, &token, "elsewhere").await, Code::InvalidArgument, "audience");
    }
}

async fn which_identity() {
    let agent = TestAgent::without_entries().await;
    let any = "audiences = [\"*\"]";
    agent.write_entries("two.toml", &(entry("a", "a", any) + &entry("b", "b", any) + &entry("c", "c", ""))).await;
    let of = |svids: &[tether::proto::workload::Jwtsvid]| -> Vec<String> {
        svids.iter().map(|svid| svid.spiffe_id.clone()).collect()
    };
    let (a, b) = (format!("{DOMAIN_ID}/a"), format!("{DOMAIN_ID}/b"));
    let all = jwt(&agent, &[AUDIENCE], "").await.unwrap();
    assert_eq!(of(&all), [a, b.clone()], "all that may have one for this audience");
    let one = jwt(&agent, &[AUDIENCE], &b).await.unwrap();
    assert_eq!(of(&one), [&b[..]]);
    assert_eq!(decode(&one[0].svid).claims["sub"], b);
}

async fn not_granted() {
    let agent = TestAgent::without_entries().await;
    refused(jwt(&agent, &[AUDIENCE], "").await, Code::PermissionDenied, "no registration entry");
    agent.write_entries("mine.toml", &entry("mine", "mine", "audiences = [\"*\"]")).await;
    for other in [format!("{DOMAIN_ID}/other"), DOMAIN_ID.to_owned(), "spiffe://elsewhere.example/mine".to_owned()] {
        refused(jwt(&agent, &[AUDIENCE], &other).await, Code::PermissionDenied, "not an identity");
    }
    for malformed in ["mine", "/mine", "spiffe://", "https://dev.tether.internal/mine"] {
        refused(jwt(&agent, &[AUDIENCE], malformed).await, Code::InvalidArgument, "spiffe_id");
    }
}

async fn jwt_fields() {
    let agent = TestAgent::start().await;
    agent.write_entries("more.toml", &entry("more", "more", "audiences = [\"*\"]\nhint = \"more\"")).await;
    let svids = jwt(&agent, &[AUDIENCE], "").await.unwrap();
    assert_eq!(svids.len(), 2);
    for svid in svids {
        assert_eq!(decode(&svid.svid).claims["sub"], svid.spiffe_id);
        assert_eq!(validate(&agent, &svid.svid).await.unwrap().spiffe_id, svid.spiffe_id);
    }
}

async fn jwt_bundle_map() {
    let (agent, foreign) = Foreign::partner().await;
    let x509_only = Foreign::new("x509.example", &agent);
    x509_only.set(&agent, &json!({ "keys": [x509_only.root.jwk()] })).await;
    federate_with(&agent, &[&foreign.domain, "x509.example"]).await;
    let bundles = jwt_bundles(&agent).await.bundles;
    assert_eq!(bundles.len(), 3);
    for (domain, bundle) in &bundles {
        let set: serde_json::Value = serde_json::from_slice(bundle).expect("UTF-8 JSON");
        let keys = set["keys"].as_array().expect("an array");
        assert_eq!(keys.len(), usize::from(domain != "spiffe://x509.example"), "{set}");
        assert!(keys.iter().all(|key| key.get("x5c").is_none()));
    }
    let token = jwt(&agent, &[AUDIENCE], "").await.unwrap().remove(0).svid;
    let own: serde_json::Value = serde_json::from_slice(&bundles[DOMAIN_ID]).unwrap();
    assert_eq!(own["keys"][0]["kid"], decode(&token).header["kid"]);
}

async fn validate_fields() {
    let agent = TestAgent::start().await;
    let token = jwt(&agent, &[AUDIENCE], "").await.unwrap().remove(0).svid;
    refused(validate_for(&agent, &token, "").await, Code::InvalidArgument, "audience");
    refused(validate_for(&agent, "", AUDIENCE).await, Code::InvalidArgument, "svid");
    refused(validate_for(&agent, "", "").await, Code::InvalidArgument, "audience");
}

async fn validate_domains() {
    let (agent, foreign) = Foreign::partner().await;
    let own = jwt(&agent, &[AUDIENCE], "").await.unwrap().remove(0);
    assert_eq!(validate(&agent, &own.svid).await.unwrap().spiffe_id, own.spiffe_id);
    assert_eq!(validate(&agent, &foreign.token(&agent)).await.unwrap().spiffe_id, foreign.workload());
    let hidden = Foreign::new("hidden.example", &agent);
    hidden.set(&agent, &hidden.bundle()).await;
    refused(validate(&agent, &hidden.token(&agent)).await, Code::InvalidArgument, "hidden.example");
    let unknown = Foreign::new("unknown.example", &agent);
    refused(validate(&agent, &unknown.token(&agent)).await, Code::InvalidArgument, "unknown.example");
}

async fn invalid() {
    let (agent, foreign) = Foreign::partner().await;
    let token = foreign.token(&agent);
    let (signed, _) = token.rsplit_once('.').unwrap();
    let wrong = [
        "x".to_owned(),
        format!("{signed}.{}", "A".repeat(86)),
        foreign.token_with(&agent, "exp", json!(1)),
        foreign.token_with(&agent, "aud", json!("elsewhere")),
    ];
    for token in wrong {
        refused(validate(&agent, &token).await, Code::InvalidArgument, "not valid");
    }
}

async fn claims() {
    let (agent, foreign) = Foreign::partner().await;
    let now = agent.clock().now().unix_timestamp();
    for aud in [json!(AUDIENCE), json!([AUDIENCE, "b"])] {
        let answer = validate(&agent, &foreign.token_with(&agent, "aud", aud.clone())).await.unwrap();
        assert_eq!(answer.spiffe_id, foreign.workload());
        let claims = answer.claims.expect("claims").fields;
        let kind = |name: &str| claims[name].kind.clone().expect("a value");
        assert_eq!(kind("sub"), Kind::StringValue(foreign.workload()));
        assert_eq!(kind("exp"), Kind::NumberValue((now + 300) as f64));
        match (kind("aud"), aud) {
            (Kind::StringValue(value), serde_json::Value::String(sent)) => assert_eq!(value, sent),
            (Kind::ListValue(list), serde_json::Value::Array(sent)) => assert_eq!(list.values.len(), sent.len()),
            other => panic!("{other:?}"),
        }
    }
}

async fn plain_jwks() {
    let (agent, _foreign) = Foreign::partner().await;
    for bundle in jwt_bundles(&agent).await.bundles.values() {
        let set: serde_json::Value = serde_json::from_slice(bundle).unwrap();
        assert_eq!(members(&set), BTreeSet::from(["keys"]));
        for key in set["keys"].as_array().unwrap() {
            assert_eq!(members(key), BTreeSet::from(["crv", "kid", "kty", "x", "y"]));
        }
    }
}
