//! `tether::wit::validate`, with WITs that no honest issuer signs, and the bundle of the trust domain they are from.

use std::time::Duration;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
};
use serde_json::{Value, json};
use tether::bundle::Bundle;
use tether::id::TrustDomain;
use tether::wit::{WitError, WitSvid, validate};
use time::OffsetDateTime;
use time::macros::datetime;

use crate::support::forge::Forger;
use crate::table::{Rule, Shown};

pub const RULES: &[Rule] = &[
    Rule {
        id: "WIT-01",
        binds: "iss,val",
        says: "only compact serialization is believed",
        shown: Shown::Library(compact),
    },
    Rule {
        id: "WIT-02",
        binds: "iss,val",
        says: "kid is there, and upper and lower case are different",
        shown: Shown::Library(key_id),
    },
    Rule { id: "WIT-04", binds: "iss,val", says: "typ is wit+jwt and nothing else", shown: Shown::Library(types) },
    Rule {
        id: "WIT-05",
        binds: "iss,val",
        says: "each of the nine algorithms verifies with its own kind of key, and no other does",
        shown: Shown::Library(algorithms),
    },
    Rule {
        id: "WIT-07",
        binds: "val",
        says: "unknown header parameters are ignored, keys among them, and crit is refused",
        shown: Shown::Library(header_parameters),
    },
    Rule { id: "WIT-08", binds: "iss,val", says: "sub is the SPIFFE ID of a workload", shown: Shown::Library(subject) },
    Rule {
        id: "WIT-09",
        binds: "iss,val",
        says: "cnf.jwk is one public key: no thumbprint, no private and no symmetric key",
        shown: Shown::Library(confirmation),
    },
    Rule {
        id: "WIT-10",
        binds: "iss,val",
        says: "cnf.jwk.alg is there and one of the nine",
        shown: Shown::Library(confirmation_algorithm),
    },
    Rule {
        id: "WIT-11",
        binds: "val",
        says: "cnf.jwk.alg is for that kind of key",
        shown: Shown::Library(confirmation_algorithm),
    },
    Rule { id: "WIT-14", binds: "val", says: "a WIT may be shown again", shown: Shown::Library(again) },
    Rule {
        id: "WIT-15",
        binds: "iss,val",
        says: "a WIT without exp, or past it by more than the leeway, is refused",
        shown: Shown::Library(expiry),
    },
    Rule {
        id: "WIT-16",
        binds: "val",
        says: "an nbf in the future is refused, without leeway",
        shown: Shown::Library(not_before),
    },
    Rule { id: "WIT-17", binds: "val", says: "iat is not looked at", shown: Shown::Library(issued_at) },
    Rule { id: "WIT-19", binds: "iss,val", says: "a WIT for an audience is refused", shown: Shown::Library(audience) },
    Rule { id: "WIT-20", binds: "val", says: "unknown claims are ignored", shown: Shown::Library(unknown_claims) },
    Rule {
        id: "WIT-29",
        binds: "val,cli",
        says: "only keys with use wit-svid count, and a trust domain without any has no WITs",
        shown: Shown::Library(key_use),
    },
    Rule {
        id: "WIT-31",
        binds: "val",
        says: "the keys of the subject's trust domain count, and no others, even under the same kid",
        shown: Shown::Library(other_domains),
    },
    Rule {
        id: "WIT-32",
        binds: "iss",
        says: "the sample of the standard reads as it is printed there",
        shown: Shown::Unit("src/wit/tests.rs", "the_sample_of_the_standard_reads_as_printed"),
    },
];

const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
const DOMAIN: &str = "partner.example";
const LEEWAY: Duration = Duration::from_secs(10);

/// A trust domain whose WIT key the test has, and the key of a workload in it.
struct Issuer {
    key: Forger,
    held: Forger,
}

impl Issuer {
    fn new() -> Self {
        Self::with(Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING))
    }

    fn with(key: Forger) -> Self {
        Self { key, held: Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING) }
    }

    fn bundle_with_use(&self, domain: &str, purpose: &str) -> Bundle {
        let mut key = self.key.jwk();
        key["use"] = json!(purpose);
        key["kid"] = json!("k");
        let document = json!({ "keys": [key] }).to_string();
        Bundle::parse(&TrustDomain::parse(domain).unwrap(), document.as_bytes()).unwrap().bundle
    }

    fn claims(&self) -> Value {
        let mut jwk = self.held.jwk();
        jwk["alg"] = json!("ES256");
        let now = NOW.unix_timestamp();
        json!({ "sub": format!("spiffe://{DOMAIN}/workload"), "exp": now + 300, "iat": now, "cnf": { "jwk": jwk } })
    }

    /// Sound claims with one set; `null` takes it away.
    fn claims_with(&self, name: &str, value: Value) -> Value {
        let mut claims = self.claims();
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value,
        }
        claims
    }

    /// Sound claims with one member of the confirmation key set; `null` takes it away.
    fn with_key_member(&self, name: &str, value: Value) -> Value {
        let mut claims = self.claims();
        let jwk = claims["cnf"]["jwk"].as_object_mut().unwrap();
        match value {
            Value::Null => drop(jwk.remove(name)),
            value => drop(jwk.insert(name.to_owned(), value)),
        }
        claims
    }

    fn check(&self, token: &str) -> Result<WitSvid, WitError> {
        let bundle = self.bundle_with_use(DOMAIN, "wit-svid");
        validate(token, |_| Some(bundle.wit()), NOW, LEEWAY)
    }

    fn check_header(&self, header: &Value) -> bool {
        self.check(&self.key.sign(header, &self.claims())).is_ok()
    }

    fn check_claims(&self, claims: &Value) -> bool {
        self.check(&self.key.sign(&header(), claims)).is_ok()
    }
}

fn header() -> Value {
    json!({ "alg": "ES256", "kid": "k", "typ": "wit+jwt" })
}

fn header_with(name: &str, value: Value) -> Value {
    let mut header = header();
    match value {
        Value::Null => drop(header.as_object_mut().unwrap().remove(name)),
        value => header[name] = value,
    }
    header
}

fn compact() {
    let issuer = Issuer::new();
    let token = issuer.key.sign(&header(), &issuer.claims());
    assert!(issuer.check(&token).is_ok());
    let parts: Vec<&str> = token.split('.').collect();
    let flattened = json!({ "protected": parts[0], "payload": parts[1], "signature": parts[2] }).to_string();
    let general = json!({
        "payload": parts[1], "signatures": [{ "protected": parts[0], "signature": parts[2] }],
    });
    let wrong = [
        flattened,
        general.to_string(),
        format!("{}.{}", parts[0], parts[1]),
        format!("{token}.x"),
        format!("{token}="),
        format!(" {token}"),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}.{}", parts[0], parts[1], "A".repeat(86)),
    ];
    for token in wrong {
        assert!(issuer.check(&token).is_err(), "{token}");
    }
}

fn key_id() {
    let issuer = Issuer::new();
    for wrong in [Value::Null, json!(""), json!("K"), json!("k "), json!("other"), json!(["k"])] {
        assert!(!issuer.check_header(&header_with("kid", wrong.clone())), "{wrong}");
    }
}

fn types() {
    let issuer = Issuer::new();
    let wrong =
        ["JWT", "JOSE", "WIT+JWT", "Wit+jwt", "application/wit+jwt", "wit", "wpt+jwt", "dpop+jwt", "wit+jwt ", ""];
    for wrong in wrong.map(|kind| json!(kind)).into_iter().chain([Value::Null, json!(["wit+jwt"])]) {
        assert!(!issuer.check_header(&header_with("typ", wrong.clone())), "{wrong}");
    }
}

fn algorithms() {
    let nine = [
        ("ES256", Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING)),
        ("ES384", Forger::ec(&ECDSA_P384_SHA384_FIXED_SIGNING)),
        ("ES512", Forger::ec(&ECDSA_P521_SHA512_FIXED_SIGNING)),
        ("RS256", Forger::rsa(&RSA_PKCS1_SHA256)),
        ("RS384", Forger::rsa(&RSA_PKCS1_SHA384)),
        ("RS512", Forger::rsa(&RSA_PKCS1_SHA512)),
        ("PS256", Forger::rsa(&RSA_PSS_SHA256)),
        ("PS384", Forger::rsa(&RSA_PSS_SHA384)),
        ("PS512", Forger::rsa(&RSA_PSS_SHA512)),
    ];
    let names: Vec<&str> = nine.iter().map(|(name, _)| *name).collect();
    for (name, key) in nine {
        let issuer = Issuer::with(key);
        for claimed in names.iter().chain(&["none", "HS256", "HS512", "EdDSA", "ES256K", "es256", ""]) {
            assert_eq!(
                issuer.check_header(&header_with("alg", json!(claimed))),
                *claimed == name,
                "{claimed} by {name}"
            );
        }
        assert!(!issuer.check_header(&header_with("alg", Value::Null)));
    }
}

fn header_parameters() {
    let (issuer, attacker) = (Issuer::new(), Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING));
    assert!(issuer.check_header(&header_with("foo", json!({ "a": [1] }))));
    for crit in [json!(["foo"]), json!([]), json!("foo"), json!(["exp"])] {
        let mut header = header_with("crit", crit.clone());
        header["foo"] = json!(1);
        assert!(!issuer.check_header(&header), "{crit}");
    }
    for (name, value) in [("jwk", attacker.jwk()), ("jku", json!("https://a.example")), ("x5c", json!(["AAAA"]))] {
        let header = header_with(name, value);
        assert!(issuer.check_header(&header), "{name} is ignored");
        assert!(issuer.check(&attacker.sign(&header, &issuer.claims())).is_err(), "{name} is not believed");
    }
    // Nor is the key that the token speaks of.
    assert!(issuer.check(&issuer.held.sign(&header(), &issuer.claims())).is_err());
}

fn subject() {
    let issuer = Issuer::new();
    let at = |path: &str| json!(format!("spiffe://{DOMAIN}{path}"));
    for wrong in [
        Value::Null,
        json!(""),
        json!("workload"),
        json!(["spiffe://partner.example/workload"]),
        json!(1),
        at("/"),
        at("/a/"),
        at("/a//b"),
        at("/%61"),
        at("/a?b"),
        json!("https://partner.example/workload"),
        json!("spiffe://Partner.example/workload"),
    ] {
        assert!(!issuer.check_claims(&issuer.claims_with("sub", wrong.clone())), "{wrong}");
    }
    assert!(issuer.check_claims(&issuer.claims_with("sub", at("/A/b.c_d-e"))));
}

fn confirmation() {
    let issuer = Issuer::new();
    let jwk = issuer.claims()["cnf"]["jwk"].clone();
    for wrong in [
        Value::Null,
        json!({}),
        json!("key"),
        json!([{ "jwk": jwk }]),
        json!({ "jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" }),
        json!({ "x5t#S256": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" }),
        json!({ "kid": "k" }),
        json!({ "jku": "https://partner.example/keys", "kid": "k" }),
        json!({ "jwk": null }),
        json!({ "jwk": "key" }),
        json!({ "jwk": [jwk] }),
        json!({ "jwk": jwk, "jku": "https://partner.example/keys" }),
        json!({ "jwk": { "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" } }),
        json!({ "jwk": { "kty": "oct", "k": "c2VjcmV0", "alg": "ES256" } }),
        json!({ "jwk": { "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "alg": "EdDSA" } }),
    ] {
        assert!(!issuer.check_claims(&issuer.claims_with("cnf", wrong.clone())), "{wrong}");
    }
    for (name, value) in
        [("d", json!("AQ")), ("k", json!("AQ")), ("x", json!("AQ")), ("x", json!(1)), ("y", Value::Null)]
    {
        assert!(!issuer.check_claims(&issuer.with_key_member(name, value.clone())), "{name}: {value}");
    }
    let wit = issuer.check(&issuer.key.sign(&header(), &issuer.claims())).unwrap();
    assert_eq!(Value::Object(wit.confirmation().to_json()), jwk, "it is what the token says");
}

fn confirmation_algorithm() {
    let issuer = Issuer::new();
    for wrong in
        [Value::Null, json!("EdDSA"), json!("ECDH-ES"), json!("HS256"), json!("none"), json!(""), json!(["ES256"])]
    {
        assert!(!issuer.check_claims(&issuer.with_key_member("alg", wrong.clone())), "{wrong}");
    }
    let kinds = [
        (Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING), &["ES256"][..]),
        (Forger::ec(&ECDSA_P384_SHA384_FIXED_SIGNING), &["ES384"]),
        (Forger::ec(&ECDSA_P521_SHA512_FIXED_SIGNING), &["ES512"]),
        (Forger::rsa(&RSA_PKCS1_SHA256), &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
    ];
    for (held, fitting) in kinds {
        for alg in ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"] {
            let mut jwk = held.jwk();
            jwk["alg"] = json!(alg);
            let token = issuer.key.sign(&header(), &issuer.claims_with("cnf", json!({ "jwk": jwk })));
            match issuer.check(&token) {
                Ok(wit) => assert!(fitting.contains(&alg) && wit.confirmation().algorithm().name() == alg),
                Err(error) => assert!(!fitting.contains(&alg), "{alg}: {error:?}"),
            }
        }
    }
}

fn again() {
    let issuer = Issuer::new();
    let token = issuer.key.sign(&header(), &issuer.claims_with("jti", json!("once")));
    for _ in 0..3 {
        assert!(issuer.check(&token).is_ok());
    }
}

fn expiry() {
    let issuer = Issuer::new();
    let at = |seconds: i64| json!(NOW.unix_timestamp() + seconds);
    for wrong in [Value::Null, at(-11), at(-10), at(-3600), json!("soon"), json!([1]), json!(-1), json!(1e300)] {
        assert!(!issuer.check_claims(&issuer.claims_with("exp", wrong.clone())), "{wrong}");
    }
    for good in [at(-9), at(1), json!(NOW.unix_timestamp() as f64 + 0.5), json!(253_402_300_799_i64)] {
        assert!(issuer.check_claims(&issuer.claims_with("exp", good.clone())), "{good}");
    }
}

fn not_before() {
    let issuer = Issuer::new();
    let at = |seconds: i64| json!(NOW.unix_timestamp() + seconds);
    for wrong in [at(1), at(10), at(3600), json!("today"), json!(1e300)] {
        assert!(!issuer.check_claims(&issuer.claims_with("nbf", wrong.clone())), "{wrong}");
    }
    for good in [at(0), at(-30), json!(0)] {
        assert!(issuer.check_claims(&issuer.claims_with("nbf", good.clone())), "{good}");
    }
}

fn issued_at() {
    let issuer = Issuer::new();
    for iat in [Value::Null, json!(NOW.unix_timestamp() + 3600), json!(0), json!("yesterday")] {
        assert!(issuer.check_claims(&issuer.claims_with("iat", iat.clone())), "{iat}");
    }
}

fn audience() {
    let issuer = Issuer::new();
    for aud in [json!("https://api.example.com"), json!(["https://api.example.com"]), json!([]), json!("")] {
        assert!(!issuer.check_claims(&issuer.claims_with("aud", aud.clone())), "{aud}");
    }
}

fn unknown_claims() {
    let issuer = Issuer::new();
    for (name, value) in [("roles", json!([1, { "a": null }])), ("iss", json!("x")), ("act", json!({})), ("", json!(1))]
    {
        assert!(issuer.check_claims(&issuer.claims_with(name, value)), "{name}");
    }
}

fn key_use() {
    let issuer = Issuer::new();
    let token = issuer.key.sign(&header(), &issuer.claims());
    let by = |purpose: &str| {
        let bundle = issuer.bundle_with_use(DOMAIN, purpose);
        validate(&token, |_| Some(bundle.wit()), NOW, LEEWAY)
    };
    assert!(by("wit-svid").is_ok());
    for other in ["jwt-svid", "x509-svid", "sig", "WIT-SVID", ""] {
        assert!(matches!(by(other), Err(WitError::UnknownTrustDomain(_))), "{other}");
    }
}

fn other_domains() {
    let (issuer, other) = (Issuer::new(), Issuer::new());
    let theirs = other.bundle_with_use("other.example", "wit-svid");
    let token = other.key.sign(&header(), &issuer.claims());
    assert!(issuer.check(&token).is_err(), "their key under our kid");
    let asked = |domain: &TrustDomain| {
        assert_eq!(domain.as_str(), DOMAIN, "whose keys are asked for is the subject's trust domain");
        Some(theirs.wit())
    };
    assert!(matches!(validate(&token, asked, NOW, LEEWAY), Err(WitError::UnknownTrustDomain(_))), "keys of another");
    assert!(matches!(validate(&token, |_| None, NOW, LEEWAY), Err(WitError::UnknownTrustDomain(_))));
}
