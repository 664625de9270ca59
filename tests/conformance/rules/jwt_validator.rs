//! `ValidateJWTSVID`, with tokens of a foreign trust domain whose keys the test holds.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use std::time::Duration;
use tonic::Code;

use crate::harness::TestAgent;
use crate::support::foreign::{Foreign, KEY_ID, federate_with, header};
use crate::support::forge::Forger;
use crate::support::{AUDIENCE, jwt, refused, run, validate};
use crate::table::{Rule, Shown};

pub const RULES: &[Rule] = &[
    Rule {
        id: "JWT-01",
        binds: "iss,val",
        says: "only compact serialization is issued and believed",
        shown: Shown::Test(|| run(compact())),
    },
    Rule {
        id: "JWT-02",
        binds: "iss,val",
        says: "an algorithm outside the nine is refused before anything else is looked at",
        shown: Shown::Test(|| run(algorithms())),
    },
    Rule {
        id: "JWT-03",
        binds: "val",
        says: "all nine algorithms verify, ES512 too",
        shown: Shown::Test(|| run(nine())),
    },
    Rule {
        id: "JWT-04",
        binds: "val",
        says: "an algorithm verifies only with the kind of key it is for",
        shown: Shown::Test(|| run(nine())),
    },
    Rule {
        id: "JWT-06",
        binds: "val",
        says: "crit is refused, and a key inside the token is never used",
        shown: Shown::Test(|| run(critical())),
    },
    Rule {
        id: "JWT-07",
        binds: "iss,val",
        says: "issued tokens have a kid; one without is tried against the domain's keys; an unknown kid is refused",
        shown: Shown::Test(|| run(key_id())),
    },
    Rule {
        id: "JWT-08",
        binds: "iss,val",
        says: "typ is absent, JWT or JOSE, and nothing else",
        shown: Shown::Test(|| run(types())),
    },
    Rule {
        id: "JWT-10",
        binds: "val",
        says: "a subject that is absent or no SPIFFE ID is refused",
        shown: Shown::Test(|| {
            run(claims_refused(
                "sub",
                &[Value::Null, json!(""), json!("workload"), json!(1), json!(["spiffe://partner.example/workload"])],
            ))
        }),
    },
    Rule {
        id: "JWT-11",
        binds: "iss,val",
        says: "the verifier's audience must be among the token's; a string is as good as an array",
        shown: Shown::Test(|| run(audiences())),
    },
    Rule {
        id: "JWT-13",
        binds: "iss,val",
        says: "a token without exp, or past it by more than the leeway, is refused",
        shown: Shown::Test(|| run(expiry())),
    },
    Rule {
        id: "JWT-14",
        binds: "val",
        says: "nbf counts when it is there; iat, jti and unknown claims do not disturb",
        shown: Shown::Test(|| run(other_claims())),
    },
    Rule {
        id: "JWT-16",
        binds: "val",
        says: "the keys of the subject's trust domain count, and no others, even under the same kid",
        shown: Shown::Test(|| run(own_keys())),
    },
    Rule {
        id: "JWT-18",
        binds: "val,cli",
        says: "keys for X.509 or WIT do not verify tokens, and a domain without jwt-svid keys has no tokens",
        shown: Shown::Test(|| run(other_uses())),
    },
    Rule {
        id: "JWT-20",
        binds: "val",
        says: "the same token may be validated again",
        shown: Shown::Test(|| run(again())),
    },
    Rule {
        id: "JWT-21",
        binds: "val",
        says: "base64url is read strictly, size is bounded, and times may have fractions",
        shown: Shown::Test(|| run(strict())),
    },
];

async fn refuse(agent: &TestAgent, token: &str, words: &str) {
    refused(validate(agent, token).await, Code::InvalidArgument, words);
}

async fn accept(agent: &TestAgent, token: &str) {
    validate(agent, token).await.expect("nothing is wrong with it");
}

async fn compact() {
    let (agent, foreign) = Foreign::partner().await;
    let token = foreign.token(&agent);
    accept(&agent, &token).await;
    let [header, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    let json = [
        json!({ "protected": header, "payload": payload, "signature": signature }),
        json!({ "payload": payload, "signatures": [{ "protected": header, "signature": signature }] }),
        json!({ "protected": header, "header": { "kid": "k" }, "payload": payload, "signature": signature }),
    ];
    for json in json {
        refuse(&agent, &json.to_string(), "compact").await;
    }
    for parts in [
        header.to_owned(),
        format!("{header}.{payload}"),
        format!("{token}."),
        format!("{token}.{signature}"),
        format!("{token}.x.y"),
        "..".to_owned(),
        format!("{header}.{payload}."),
    ] {
        refuse(&agent, &parts, "").await;
    }
    let issued = jwt(&agent, &[AUDIENCE], "").await.unwrap().remove(0).svid;
    assert_eq!(issued.split('.').count(), 3);
}

async fn algorithms() {
    let (agent, foreign) = Foreign::partner().await;
    for alg in ["none", "None", "", "HS256", "HS384", "HS512", "EdDSA", "ES256K", "es256", "RSA-OAEP", "A128KW"] {
        // Everything else about it is wrong too: the algorithm is what it is refused for.
        let token = foreign.key.sign(&json!({ "alg": alg, "typ": "x", "crit": ["y"] }), &json!({}));
        refuse(&agent, &token, "the algorithm is not one of").await;
    }
    let token = foreign.key.sign(&json!({ "kid": KEY_ID }), &foreign.claims(&agent));
    refuse(&agent, &token, "the algorithm is not one of").await;
    // A key's public bytes as the secret of an HMAC, and no signature at all.
    let input = |header: Value| {
        let claims = foreign.claims(&agent).to_string();
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims))
    };
    let unsigned = format!("{}.", input(json!({ "alg": "none" })));
    refuse(&agent, &unsigned, "the algorithm is not one of").await;
    let secret = foreign.key.jwk().to_string();
    let hmac = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
    let signed = input(json!({ "alg": "HS256", "kid": KEY_ID }));
    let tag = aws_lc_rs::hmac::sign(&hmac, signed.as_bytes());
    refuse(&agent, &format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag)), "the algorithm is not one of").await;
}

fn forgers() -> Vec<(&'static str, Forger)> {
    vec![
        ("ES256", Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING)),
        ("ES384", Forger::ec(&ECDSA_P384_SHA384_FIXED_SIGNING)),
        ("ES512", Forger::ec(&ECDSA_P521_SHA512_FIXED_SIGNING)),
        ("RS256", Forger::rsa(&RSA_PKCS1_SHA256)),
        ("RS384", Forger::rsa(&RSA_PKCS1_SHA384)),
        ("RS512", Forger::rsa(&RSA_PKCS1_SHA512)),
        ("PS256", Forger::rsa(&RSA_PSS_SHA256)),
        ("PS384", Forger::rsa(&RSA_PSS_SHA384)),
        ("PS512", Forger::rsa(&RSA_PSS_SHA512)),
    ]
}

async fn nine() {
    let (agent, foreign) = Foreign::partner().await;
    let forgers = forgers();
    let keys = forgers.iter().map(|(name, forger)| {
        let mut key = forger.jwk();
        key["use"] = json!("jwt-svid");
        key["kid"] = json!(name);
        key
    });
    foreign.set(&agent, &json!({ "keys": keys.collect::<Vec<_>>() })).await;
    for (right, forger) in &forgers {
        for (claimed, _) in &forgers {
            let token = forger.sign(&json!({ "alg": claimed, "kid": right }), &foreign.claims(&agent));
            assert_eq!(validate(&agent, &token).await.is_ok(), claimed == right, "{claimed} by a key for {right}");
        }
    }
}

async fn critical() {
    let (agent, foreign) = Foreign::partner().await;
    for crit in [json!(["exp"]), json!([]), json!(["b64"]), json!("exp")] {
        let header = json!({ "alg": "ES256", "kid": KEY_ID, "crit": crit, "exp": 1, "b64": true });
        refuse(&agent, &foreign.key.sign(&header, &foreign.claims(&agent)), "crit").await;
    }
    let own = Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let embedded = json!({ "alg": "ES256", "jwk": own.jwk(), "jku": "https://partner.example/keys" });
    refuse(&agent, &own.sign(&embedded, &foreign.claims(&agent)), "").await;
    let mut embedded = embedded;
    embedded["kid"] = json!(KEY_ID);
    refuse(&agent, &own.sign(&embedded, &foreign.claims(&agent)), "signature").await;
}

async fn key_id() {
    let (agent, foreign) = Foreign::partner().await;
    let claims = foreign.claims(&agent);
    accept(&agent, &foreign.key.sign(&json!({ "alg": "ES256" }), &claims)).await;
    refuse(&agent, &foreign.key.sign(&json!({ "alg": "ES256", "kid": "other" }), &claims), "no JWT authority").await;
    refuse(&agent, &foreign.key.sign(&json!({ "alg": "ES256", "kid": 1 }), &claims), "kid").await;
    let stranger = Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    refuse(&agent, &stranger.sign(&json!({ "alg": "ES256" }), &claims), "").await;
    let issued = jwt(&agent, &[AUDIENCE], "").await.unwrap().remove(0).svid;
    assert!(crate::support::forge::decode(&issued).header["kid"].is_string());
}

async fn types() {
    let (agent, foreign) = Foreign::partner().await;
    let with = |kind: Value| foreign.key.sign(&json!({ "alg": "ES256", "typ": kind }), &foreign.claims(&agent));
    for good in ["JWT", "JOSE"] {
        accept(&agent, &with(json!(good))).await;
    }
    for wrong in ["jwt", "Jwt", "jose", "at+jwt", "wit+jwt", "wpt+jwt", "dpop+jwt", "JWT ", ""] {
        refuse(&agent, &with(json!(wrong)), "type").await;
    }
    refuse(&agent, &with(json!(["JWT"])), "typ").await;
}

async fn claims_refused(name: &str, values: &[Value]) {
    let (agent, foreign) = Foreign::partner().await;
    for value in values {
        refuse(&agent, &foreign.token_with(&agent, name, value.clone()), "").await;
    }
    accept(&agent, &foreign.token(&agent)).await;
}

async fn audiences() {
    let (agent, foreign) = Foreign::partner().await;
    for good in [json!(AUDIENCE), json!([AUDIENCE]), json!(["https://other.example", AUDIENCE])] {
        accept(&agent, &foreign.token_with(&agent, "aud", good)).await;
    }
    let wrong = [
        Value::Null,
        json!([]),
        json!(""),
        json!("https://other.example"),
        json!(["https://other.example"]),
        json!([AUDIENCE.to_uppercase()]),
        json!(format!("{AUDIENCE}/")),
        json!([1, AUDIENCE]),
        json!({ AUDIENCE: true }),
    ];
    for wrong in wrong {
        refuse(&agent, &foreign.token_with(&agent, "aud", wrong), "").await;
    }
}

async fn expiry() {
    let (agent, foreign) = Foreign::partner().await;
    let now = agent.clock().now().unix_timestamp();
    for (exp, good) in [
        (Value::Null, false),
        (json!("soon"), false),
        (json!(now + 1), true),
        (json!(now - 5), true),
        (json!(now - 60), false),
        (json!(0), false),
        (json!(-1), false),
    ] {
        let token = foreign.token_with(&agent, "exp", exp.clone());
        assert_eq!(validate(&agent, &token).await.is_ok(), good, "{exp}");
    }
    // The same token, later.
    let token = foreign.token(&agent);
    accept(&agent, &token).await;
    agent.clock().advance(Duration::from_secs(400));
    refuse(&agent, &token, "expired").await;
}

async fn other_claims() {
    let (agent, foreign) = Foreign::partner().await;
    let now = agent.clock().now().unix_timestamp();
    for (nbf, good) in [(json!(now - 10), true), (json!(now + 5), true), (json!(now + 120), false), (json!("x"), false)]
    {
        let token = foreign.token_with(&agent, "nbf", nbf.clone());
        assert_eq!(validate(&agent, &token).await.is_ok(), good, "{nbf}");
    }
    for (name, value) in
        [("jti", json!("1")), ("iss", json!("x")), ("roles", json!([1, { "a": null }])), ("cnf", json!({}))]
    {
        accept(&agent, &foreign.token_with(&agent, name, value)).await;
    }
}

async fn own_keys() {
    let agent = TestAgent::start().await;
    let (a, b) = (Foreign::new("a.example", &agent), Foreign::new("b.example", &agent));
    let unknown = Foreign::new("unknown.example", &agent);
    for foreign in [&a, &b] {
        foreign.set(&agent, &foreign.bundle()).await;
    }
    federate_with(&agent, &["a.example", "b.example"]).await;
    accept(&agent, &a.token(&agent)).await;
    accept(&agent, &b.token(&agent)).await;
    refuse(&agent, &a.key.sign(&header(), &b.claims(&agent)), "").await;
    refuse(&agent, &b.key.sign(&json!({ "alg": "ES256" }), &a.claims(&agent)), "").await;
    refuse(&agent, &unknown.token(&agent), "unknown.example").await;
    // A bundle that is there, but not for this caller.
    federate_with(&agent, &["a.example"]).await;
    refuse(&agent, &b.token(&agent), "b.example").await;
}

async fn other_uses() {
    let (agent, foreign) = Foreign::partner().await;
    let token = foreign.token(&agent);
    accept(&agent, &token).await;
    for wrong in ["x509-svid", "wit-svid", "sig", "JWT-SVID"] {
        let mut key = foreign.jwt_key();
        key["use"] = json!(wrong);
        foreign.set(&agent, &json!({ "keys": [foreign.root.jwk(), key] })).await;
        refuse(&agent, &token, "no JWT authorities").await;
    }
}

async fn again() {
    let (agent, foreign) = Foreign::partner().await;
    let token = foreign.token_with(&agent, "jti", json!("once"));
    for _ in 0..3 {
        accept(&agent, &token).await;
    }
}

async fn strict() {
    let (agent, foreign) = Foreign::partner().await;
    // Claims whose encodings differ between the alphabets, and that need padding.
    let claims = foreign.claims_with(&agent, "x", json!("???>>>~~~ÿÿ"));
    let (header, claims) = (header().to_string(), claims.to_string());
    let signed = |header: &str, claims: &str| {
        let input = format!("{header}.{claims}");
        let signature = URL_SAFE_NO_PAD.encode(foreign.key.signature(&input));
        (input, signature)
    };
    let (input, signature) = signed(&URL_SAFE_NO_PAD.encode(&header), &URL_SAFE_NO_PAD.encode(&claims));
    accept(&agent, &format!("{input}.{signature}")).await;
    refuse(&agent, &format!("{input}.{signature}="), "compact").await;
    refuse(&agent, &format!("{input}.{signature}\n"), "compact").await;
    refuse(&agent, &format!(" {input}.{signature}"), "compact").await;
    let padded = claims.clone() + &" ".repeat((4 - claims.len() % 3) % 3);
    for other in [URL_SAFE.encode(format!("{padded} ")), STANDARD_NO_PAD.encode(&claims)] {
        if other == URL_SAFE_NO_PAD.encode(&claims) {
            continue;
        }
        let (input, signature) = signed(&URL_SAFE_NO_PAD.encode(&header), &other);
        refuse(&agent, &format!("{input}.{signature}"), "compact").await;
    }
    let long = foreign.token_with(&agent, "x", json!("x".repeat(20_000)));
    refuse(&agent, &long, "longer than").await;
    let many: Vec<_> = (0..1000).map(|n| n.to_string()).collect();
    refuse(&agent, &foreign.token_with(&agent, "aud", json!(many)), "").await;
    let now = agent.clock().now().unix_timestamp() as f64;
    accept(&agent, &foreign.token_with(&agent, "exp", json!(now + 60.5))).await;
    refuse(&agent, &foreign.token_with(&agent, "exp", json!(now - 60.5)), "expired").await;
    accept(&agent, &foreign.token_with(&agent, "exp", json!(253_402_300_799_i64))).await;
}
