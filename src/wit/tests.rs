//! The rules of WIT-SVID as vectors. Ids are those of the SPIFFE conformance checklist.

use std::time::Duration;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
    RSA_PKCS1_SHA256, RSA_PSS_SHA512,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use time::macros::datetime;

use super::*;
use crate::jwt::tests::Forger;
use crate::jwt::{Algorithm, Jws, parse_strict};
use crate::x509::KeyType;

const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
const WORKLOAD: &str = "spiffe://example.org/unit/billing";
const HEADER: &str = r#"{"alg":"ES256","kid":"k","typ":"wit+jwt"}"#;

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn forger() -> Forger {
    Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING)
}

fn authorities(key_id: &str, forger: &Forger) -> WitAuthorities {
    WitAuthorities::new(domain(), [(key_id.to_owned(), forger.jwk())])
}

fn check(token: &str, keys: &WitAuthorities) -> Result<WitSvid, WitError> {
    validate(token, |domain| (domain == keys.trust_domain()).then_some(keys), NOW, Duration::ZERO)
}

fn cnf(key: &Jwk, algorithm: &str) -> Value {
    let mut jwk = Value::Object(key.to_json());
    jwk["alg"] = algorithm.into();
    json!({ "jwk": jwk })
}

fn claims(key: &Jwk) -> Value {
    json!({
        "sub": WORKLOAD, "exp": NOW.unix_timestamp() + 300, "iat": NOW.unix_timestamp(), "jti": "1", "cnf": cnf(key, "ES256"),
    })
}

/// Sound claims with one member set, or taken away by `null`.
fn claims_with(key: &Jwk, name: &str, value: Value) -> String {
    let mut claims = claims(key);
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims.to_string()
}

#[test]
fn what_is_signed_here_is_believed_and_has_the_members_of_the_standard_and_no_other() {
    // WIT-01, WIT-04 to WIT-06, WIT-12, WIT-18, WIT-19, WIT-21
    for (kind, algorithm) in [(KeyType::EcP256, "ES256"), (KeyType::EcP384, "ES384"), (KeyType::Rsa2048, "RS256")] {
        let signer = WitSigner::new(&PrivateKey::generate(kind).unwrap()).unwrap();
        let held = Jwk::from_spki(PrivateKey::generate(kind).unwrap().public_key()).unwrap();
        let sub = SpiffeId::parse(WORKLOAD).unwrap();
        let (exp, confirmation) = (NOW + Duration::from_secs(300), Confirmation::of(held.clone()));
        let token = signer
            .sign(&WitClaims { sub: &sub, exp, iat: NOW, jti: "node.1", cnf: &confirmation, session: None })
            .unwrap();

        let keys = WitAuthorities::new(domain(), [(signer.key_id().to_owned(), signer.public_key().clone())]);
        let wit = check(&token, &keys).unwrap();
        assert_eq!((wit.spiffe_id(), wit.expires_at(), wit.token_id()), (&sub, exp, Some("node.1")));
        assert_eq!((wit.confirmation(), wit.key_id()), (&confirmation, signer.key_id()));
        assert_eq!((wit.confirmation().key(), wit.confirmation().algorithm().name()), (&held, algorithm));

        let header = token.split('.').next().unwrap();
        let header = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, header).unwrap();
        let mut header: Vec<_> = parse_strict(&header).unwrap().into_iter().map(|(name, _)| name).collect();
        header.sort();
        assert_eq!(header, ["alg", "kid", "typ"]);
        let claims = Jws::parse(&token).unwrap().claims().unwrap();
        let mut names: Vec<_> = claims.keys().collect();
        names.sort();
        assert_eq!(names, ["cnf", "exp", "iat", "jti", "sub"]);
        assert_eq!(claims["cnf"], cnf(&held, algorithm));
    }
}

#[test]
fn a_header_that_breaks_a_rule_is_refused() {
    let key = forger();
    let keys = authorities("k", &key);
    let body = claims(&forger().jwk()).to_string();
    let cases = [
        ("WIT-02 no kid", r#"{"alg":"ES256","typ":"wit+jwt"}"#),
        ("WIT-02 empty kid", r#"{"alg":"ES256","kid":"","typ":"wit+jwt"}"#),
        ("WIT-02 kid in another case", r#"{"alg":"ES256","kid":"K","typ":"wit+jwt"}"#),
        ("WIT-02 unknown kid", r#"{"alg":"ES256","kid":"other","typ":"wit+jwt"}"#),
        ("WIT-04 no typ", r#"{"alg":"ES256","kid":"k"}"#),
        ("WIT-04 JWT", r#"{"alg":"ES256","kid":"k","typ":"JWT"}"#),
        ("WIT-04 upper case", r#"{"alg":"ES256","kid":"k","typ":"WIT+JWT"}"#),
        ("WIT-04 media type", r#"{"alg":"ES256","kid":"k","typ":"application/wit+jwt"}"#),
        ("WIT-04 a proof", r#"{"alg":"ES256","kid":"k","typ":"wpt+jwt"}"#),
        ("WIT-05 none", r#"{"alg":"none","kid":"k","typ":"wit+jwt"}"#),
        ("WIT-05 symmetric", r#"{"alg":"HS256","kid":"k","typ":"wit+jwt"}"#),
        ("WIT-05 EdDSA", r#"{"alg":"EdDSA","kid":"k","typ":"wit+jwt"}"#),
        ("WIT-05 no alg", r#"{"kid":"k","typ":"wit+jwt"}"#),
        ("WIT-05 for another kind of key", r#"{"alg":"RS256","kid":"k","typ":"wit+jwt"}"#),
        ("WIT-07 crit", r#"{"alg":"ES256","kid":"k","typ":"wit+jwt","crit":["foo"],"foo":1}"#),
        ("a name twice", r#"{"alg":"ES256","alg":"ES256","kid":"k","typ":"wit+jwt"}"#),
    ];
    for (rule, header) in cases {
        assert!(check(&key.sign(header, &body), &keys).is_err(), "{rule}");
    }
    assert!(check(&key.sign(HEADER, &body), &keys).is_ok());
    let unknown = r#"{"alg":"ES256","kid":"k","typ":"wit+jwt","foo":1}"#;
    assert!(check(&key.sign(unknown, &body), &keys).is_ok(), "WIT-07");
}

#[test]
fn a_key_in_the_token_never_checks_the_token() {
    let (key, attacker) = (forger(), forger());
    let keys = authorities("k", &key);
    let body = claims(&forger().jwk()).to_string();
    let jwk = Value::Object(attacker.jwk().to_json());
    for (name, value) in [("jwk", jwk), ("jku", json!("https://example.org/keys")), ("x5u", json!("https://a/b"))] {
        let header = json!({ "alg": "ES256", "kid": "k", "typ": "wit+jwt", name: value }).to_string();
        assert!(matches!(check(&attacker.sign(&header, &body), &keys), Err(WitError::Token(JwtError::Signature))));
    }
    // Nor does the key it speaks of: a WIT that is signed by its own subject is worth nothing.
    let own = claims(&attacker.jwk()).to_string();
    assert!(matches!(check(&attacker.sign(HEADER, &own), &keys), Err(WitError::Token(JwtError::Signature))));
}

#[test]
fn claims_that_break_a_rule_are_refused() {
    let key = forger();
    let keys = authorities("k", &key);
    let held = forger().jwk();
    let at = |seconds: i64| json!(NOW.unix_timestamp() + seconds);
    let cases = [
        ("WIT-08 no sub", "sub", Value::Null),
        ("WIT-08 a trust domain", "sub", json!("spiffe://")),
        ("WIT-08 no SPIFFE ID", "sub", json!("billing")),
        ("WIT-08 a list", "sub", json!([WORKLOAD])),
        ("WIT-31 of another trust domain", "sub", json!("spiffe://other.example/unit/billing")),
        ("WIT-15 no exp", "exp", Value::Null),
        ("WIT-15 over", "exp", at(-1)),
        ("WIT-15 over now", "exp", at(0)),
        ("WIT-15 text", "exp", json!("tomorrow")),
        ("WIT-16 not yet", "nbf", at(10)),
        ("WIT-16 text", "nbf", json!("today")),
        ("WIT-19 aud", "aud", json!(["https://api.example.com"])),
        ("WIT-19 empty aud", "aud", json!([])),
        ("WIT-09 no cnf", "cnf", Value::Null),
        ("WIT-09 text", "cnf", json!("key")),
        ("WIT-09 empty", "cnf", json!({})),
        ("WIT-09 a thumbprint", "cnf", json!({ "jkt": held.thumbprint() })),
        ("WIT-09 a certificate", "cnf", json!({ "x5t#S256": held.thumbprint() })),
    ];
    for (rule, name, value) in cases {
        assert!(check(&key.sign(HEADER, &claims_with(&held, name, value)), &keys).is_err(), "{rule}");
    }
    let accepted = [
        ("WIT-16 nbf now", "nbf", at(0)),
        ("WIT-17 iat in the future", "iat", at(3600)),
        ("WIT-17 iat that is no time", "iat", json!("yesterday")),
        ("WIT-13 no jti", "jti", Value::Null),
        ("WIT-20 another claim", "https://example.org/role", json!("reader")),
        ("WIT-15 a fraction", "exp", json!(NOW.unix_timestamp() as f64 + 0.5)),
    ];
    for (rule, name, value) in accepted {
        let checked = check(&key.sign(HEADER, &claims_with(&held, name, value)), &keys);
        assert!(checked.is_ok(), "{rule}: {checked:?}");
    }
}

#[test]
fn a_confirmation_key_is_public_and_of_the_kind_its_algorithm_is_for() {
    let key = forger();
    let keys = authorities("k", &key);
    let checked = |cnf: Value| check(&key.sign(HEADER, &claims_with(&forger().jwk(), "cnf", cnf)), &keys);
    let (p256, p384) = (forger().jwk(), Forger::ec(&ECDSA_P384_SHA384_FIXED_SIGNING).jwk());
    let p521 = Forger::ec(&ECDSA_P521_SHA512_FIXED_SIGNING).jwk();
    let rsa = Forger::rsa(&RSA_PKCS1_SHA256).jwk();

    // WIT-10, WIT-11: of nine algorithms and four kinds of keys, each goes with its own.
    for held in [&p256, &p384, &p521, &rsa] {
        for algorithm in Algorithm::ALL {
            let believed = checked(cnf(held, algorithm.name()));
            assert_eq!(believed.is_ok(), held.fits(algorithm), "{algorithm:?}: {believed:?}");
        }
        for other in ["EdDSA", "ECDH-ES", "HS256", "none", "es256", ""] {
            assert!(checked(cnf(held, other)).is_err(), "{other}");
        }
    }
    let with = |name: &str, value: Value| {
        let mut cnf = cnf(&p256, "ES256");
        match value {
            Value::Null => drop(cnf["jwk"].as_object_mut().unwrap().remove(name)),
            value => cnf["jwk"][name] = value,
        }
        cnf
    };
    let mut refused = vec![
        ("WIT-10 no alg", with("alg", Value::Null)),
        ("WIT-10 alg is no text", with("alg", json!(["ES256"]))),
        ("WIT-09 symmetric", json!({ "jwk": { "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" } })),
        (
            "WIT-09 symmetric with an alg of the list",
            json!({ "jwk": { "kty": "oct", "k": "c2VjcmV0", "alg": "ES256" } }),
        ),
        ("WIT-09 OKP", json!({ "jwk": { "kty": "OKP", "crv": "Ed25519", "x": "AA", "alg": "EdDSA" } })),
        ("WIT-09 not a point", with("y", json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"))),
        ("WIT-09 half a key", with("y", Value::Null)),
        ("WIT-09 a list", json!({ "jwk": [cnf(&p256, "ES256")["jwk"]] })),
    ];
    for secret in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
        refused.push(("WIT-09 a private key", with(secret, json!("AQ"))));
    }
    for second in ["jwe", "jku"] {
        let mut cnf = cnf(&p256, "ES256");
        cnf[second] = json!("https://example.org/key");
        refused.push(("WIT-09 two keys", cnf));
    }
    for (rule, cnf) in refused {
        assert!(matches!(checked(cnf.clone()), Err(WitError::Confirmation(_))), "{rule}: {cnf}");
    }
}

#[test]
fn every_algorithm_of_the_list_signs_wits_with_its_own_kind_of_key() {
    let body = claims(&forger().jwk()).to_string();
    for (forger, name) in [
        (Forger::ec(&ECDSA_P384_SHA384_FIXED_SIGNING), "ES384"),
        (Forger::ec(&ECDSA_P521_SHA512_FIXED_SIGNING), "ES512"),
        (Forger::rsa(&RSA_PSS_SHA512), "PS512"),
    ] {
        for claimed in Algorithm::ALL {
            let header = json!({ "alg": claimed.name(), "kid": "k", "typ": "wit+jwt" }).to_string();
            let believed = check(&forger.sign(&header, &body), &authorities("k", &forger));
            assert_eq!(believed.is_ok(), claimed.name() == name, "{claimed:?} by {name}");
        }
    }
}

#[test]
fn the_leeway_forgives_at_the_end_and_not_at_the_beginning() {
    // WIT-15, WIT-16
    let (key, leeway) = (forger(), Duration::from_secs(10));
    let keys = authorities("k", &key);
    let held = forger().jwk();
    let believed = |name, seconds: i64| {
        let token = key.sign(HEADER, &claims_with(&held, name, json!(NOW.unix_timestamp() + seconds)));
        validate(&token, |_| Some(&keys), NOW, leeway).is_ok()
    };
    assert!(believed("exp", -9) && !believed("exp", -10));
    assert!(believed("nbf", 0) && !believed("nbf", 1));
}

#[test]
fn keys_of_another_trust_domain_are_not_asked_even_when_they_are_offered() {
    // WIT-31: the same key ID in two trust domains is two keys.
    let (ours, theirs) = (forger(), forger());
    let other = TrustDomain::parse("other.example").unwrap();
    let foreign = WitAuthorities::new(other.clone(), [("k".to_owned(), theirs.jwk())]);
    let keys = authorities("k", &ours);
    let token = theirs.sign(HEADER, &claims(&forger().jwk()).to_string());
    assert!(matches!(check(&token, &keys), Err(WitError::Token(JwtError::Signature))));
    let offered = validate(&token, |_| Some(&foreign), NOW, Duration::ZERO);
    assert!(matches!(offered, Err(WitError::UnknownTrustDomain(_))));
    let none = WitAuthorities::new(domain(), []);
    assert!(matches!(check(&token, &none), Err(WitError::UnknownTrustDomain(_))), "WIT-29: no WIT keys, no WITs");
}

#[test]
fn one_wit_is_believed_as_often_as_it_is_shown() {
    // WIT-14
    let key = forger();
    let (keys, token) = (authorities("k", &key), key.sign(HEADER, &claims(&forger().jwk()).to_string()));
    assert!(check(&token, &keys).is_ok() && check(&token, &keys).is_ok());
}

#[test]
fn a_wit_is_no_jwt_svid_and_a_jwt_svid_no_wit() {
    // WIT-30, whichever keys are asked.
    let key = forger();
    let (wit_keys, jwt_keys) = (authorities("k", &key), JwtAuthorities::new(domain(), [("k".to_owned(), key.jwk())]));
    let jwt_valid = |token: &str| crate::jwt::validate(token, "a", |_| Some(&jwt_keys), NOW, Duration::ZERO).is_ok();
    let body = claims_with(&forger().jwk(), "aud", json!(["a"]));
    let jwt = key.sign(r#"{"alg":"ES256","kid":"k","typ":"JWT"}"#, &body);
    assert!(jwt_valid(&jwt) && check(&jwt, &wit_keys).is_err());
    let wit = key.sign(HEADER, &claims(&forger().jwk()).to_string());
    assert!(!jwt_valid(&wit) && check(&wit, &wit_keys).is_ok());
    assert!(!jwt_valid(&key.sign(HEADER, &body)), "not by an audience either");
}

#[test]
fn the_sample_of_the_standard_reads_as_printed() {
    // WIT-32: WIT-SVID, appendix A. The issuer's key is not given, so its signature is all that fails.
    let token = concat!(
        "eyJhbGciOiJFUzI1NiIsImtpZCI6ImxRU2kzaFpGbmRhMkQtWEprajF6bDdmb0pvdWl3STRuckF5aHk0alppSmciLCJ0eXAiOiJ3aXQrand0In0.",
        "eyJjbmYiOnsiandrIjp7ImFsZyI6IkVTMjU2IiwiY3J2IjoiUC0yNTYiLCJrdHkiOiJFQyIsIngiOiJyelA3bUxDS0FIV21zTTZYMEV3VklTQ1",
        "9oSTN1amN1OTVmZlVreWVER0dvIiwieSI6InVPcmZEbGp0WDltM2pZLWhzeWhMSllheHRHa3pEdjVlNWttQ2U1OFo5N2cifX0sImV4cCI6MTc2NT",
        "Q1NjUwMywiaWF0IjoxNzY1NDUyOTAzLCJqdGkiOiIxeWoxOVY0TWNPQXpNY0ZpN3F2c2dfQWdDeGxyWTVFX3g1MDl3bEtLUXRjIiwic3ViIjoic3",
        "BpZmZlOi8vZXhhbXBsZS5jb20vbXktd29ya2xvYWQifQ.",
        "sfhEvZNdY_kWrICF08lX0u__rn39YnTavnW-VPBS20zgowDh6-X43v5eOUKZbjZf06yLBQM-Mry5w1g1QFsCkg",
    );
    let key_id = "lQSi3hZFnda2D-XJkj1zl7foJouiwI4nrAyhy4jZiJg";
    let jws = Jws::parse(token).unwrap();
    assert_eq!((jws.header().key_id.as_deref(), jws.header().kind.as_deref()), (Some(key_id), Some(WIT_TYPE)));
    let claims = jws.claims().unwrap();
    assert_eq!(claims["sub"], "spiffe://example.com/my-workload");
    let confirmation = Confirmation::parse(&claims["cnf"]).unwrap();
    assert_eq!(confirmation.algorithm(), Algorithm::Es256);
    assert_eq!(confirmation.key().to_json()["x"], "rzP7mLCKAHWmsM6X0EwVISC_hI3ujcu95ffUkyeDGGo");

    let keys = WitAuthorities::new(TrustDomain::parse("example.com").unwrap(), [(key_id.to_owned(), forger().jwk())]);
    let then = datetime!(2025-12-11 12:00 UTC);
    let checked = validate(token, |_| Some(&keys), then, Duration::ZERO);
    assert!(matches!(checked, Err(WitError::Token(JwtError::Signature))), "{checked:?}");
}

proptest! {
    #[test]
    fn arbitrary_claims_never_make_the_validator_panic(
        sub in ".{0,40}", exp in any::<f64>(), nbf in any::<i64>(), kty in "EC|RSA|oct|OKP", alg in "[A-Z0-9]{0,6}", x in "[A-Za-z0-9_-]{0,60}",
    ) {
        let key = forger();
        let claims = json!({
            "sub": sub, "exp": exp, "nbf": nbf,
            "cnf": { "jwk": { "kty": kty, "crv": "P-256", "x": x, "y": x, "n": x, "e": x, "alg": alg } },
        });
        fuzz_wit(key.sign(HEADER, &claims.to_string()).as_bytes(), &authorities("k", &key), NOW);
    }
}
