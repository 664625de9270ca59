//! The rules of JWT-SVID as vectors. Ids are those of the SPIFFE conformance checklist.

use std::collections::HashMap;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
    RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::{Value, json};
use time::macros::datetime;

use super::*;
use crate::x509::{KeyType, PrivateKey};

const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
const WORKLOAD: &str = "spiffe://example.org/unit/billing";
const AUDIENCE: &str = "https://api.example.com";
const LEEWAY: Duration = Duration::from_secs(10);

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

/// A key of any of the nine kinds, which signs whatever header and claims it is given.
pub(crate) enum Forger {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
}

impl Forger {
    pub(crate) fn ec(algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        Self::Ec(EcdsaKeyPair::generate(algorithm).unwrap())
    }

    pub(crate) fn rsa(encoding: &'static dyn RsaEncoding) -> Self {
        Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap(), encoding)
    }

    pub(crate) fn jwk(&self) -> Jwk {
        let spki: PublicKeyX509Der<'_> = match self {
            Self::Ec(pair) => pair.public_key().as_der().unwrap(),
            Self::Rsa(pair, _) => pair.public_key().as_der().unwrap(),
        };
        Jwk::from_spki(spki.as_ref()).unwrap()
    }

    pub(crate) fn sign(&self, header: &str, claims: &str) -> String {
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = match self {
            Self::Ec(pair) => pair.sign(&SystemRandom::new(), input.as_bytes()).unwrap().as_ref().to_vec(),
            Self::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &SystemRandom::new(), input.as_bytes(), &mut signature).unwrap();
                signature
            }
        };
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn claims() -> Value {
    json!({ "sub": WORKLOAD, "aud": [AUDIENCE], "exp": NOW.unix_timestamp() + 300, "iat": NOW.unix_timestamp() })
}

/// Sound claims with one member set, or taken away by `null`.
fn claims_with(name: &str, value: Value) -> String {
    let mut claims = claims();
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims.to_string()
}

fn authorities(keys: &[(&str, &Forger)]) -> JwtAuthorities {
    JwtAuthorities::new(domain(), keys.iter().map(|(key_id, forger)| ((*key_id).to_owned(), forger.jwk())))
}

fn check(token: &str, keys: &JwtAuthorities) -> Result<JwtSvid, JwtError> {
    validate(token, AUDIENCE, |domain| (domain == keys.trust_domain()).then_some(keys), NOW, LEEWAY)
}

#[test]
fn each_of_the_nine_algorithms_verifies_with_its_own_kind_of_key_and_no_other() {
    // JWT-02, JWT-03, JWT-04
    let forgers: Vec<(Algorithm, Forger)> = vec![
        (Algorithm::Es256, Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING)),
        (Algorithm::Es384, Forger::ec(&ECDSA_P384_SHA384_FIXED_SIGNING)),
        (Algorithm::Es512, Forger::ec(&ECDSA_P521_SHA512_FIXED_SIGNING)),
        (Algorithm::Rs256, Forger::rsa(&RSA_PKCS1_SHA256)),
        (Algorithm::Rs384, Forger::rsa(&RSA_PKCS1_SHA384)),
        (Algorithm::Rs512, Forger::rsa(&RSA_PKCS1_SHA512)),
        (Algorithm::Ps256, Forger::rsa(&RSA_PSS_SHA256)),
        (Algorithm::Ps384, Forger::rsa(&RSA_PSS_SHA384)),
        (Algorithm::Ps512, Forger::rsa(&RSA_PSS_SHA512)),
    ];
    assert_eq!(forgers.len(), Algorithm::ALL.len());
    for (algorithm, forger) in &forgers {
        let keys = authorities(&[("k", forger)]);
        for claimed in Algorithm::ALL {
            let header = json!({ "alg": claimed.name(), "kid": "k", "typ": "JWT" }).to_string();
            let token = forger.sign(&header, &claims().to_string());
            assert_eq!(check(&token, &keys).is_ok(), claimed == *algorithm, "{claimed:?} by a key for {algorithm:?}");
            // The same without a key ID: other kinds of keys are not tried.
            let header = json!({ "alg": claimed.name() }).to_string();
            let token = forger.sign(&header, &claims().to_string());
            assert_eq!(check(&token, &keys).is_ok(), claimed == *algorithm, "{claimed:?} by {algorithm:?}, no kid");
        }
        // What is published reads back as the same key.
        assert_eq!(Jwk::from_json(&forger.jwk().to_json()).unwrap(), forger.jwk());
        assert!(!forger.jwk().to_json().contains_key("d"), "JWT-17: public parameters only");
    }
}

#[test]
fn a_header_is_held_to_every_rule() {
    let forger = Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let keys = authorities(&[("k", &forger)]);
    type Check = fn(&JwtError) -> bool;
    let refused: &[(&str, &str, Check)] = &[
        ("JWT-02 none", r#"{"alg":"none","kid":"k"}"#, |e| matches!(e, JwtError::Algorithm)),
        ("JWT-02 symmetric", r#"{"alg":"HS256","kid":"k"}"#, |e| matches!(e, JwtError::Algorithm)),
        ("JWT-02 EdDSA", r#"{"alg":"EdDSA","kid":"k"}"#, |e| matches!(e, JwtError::Algorithm)),
        ("JWT-02 ES256K", r#"{"alg":"ES256K","kid":"k"}"#, |e| matches!(e, JwtError::Algorithm)),
        ("JWT-02 case", r#"{"alg":"es256","kid":"k"}"#, |e| matches!(e, JwtError::Algorithm)),
        ("JWT-02 absent", r#"{"kid":"k"}"#, |e| matches!(e, JwtError::Algorithm)),
        ("JWT-02 first of all", r#"{"alg":"none","kid":"k","typ":"x","crit":["y"]}"#, |e| {
            matches!(e, JwtError::Algorithm)
        }),
        ("JWT-02 not a string", r#"{"alg":256,"kid":"k"}"#, |e| matches!(e, JwtError::Member("alg"))),
        ("JWT-06 crit", r#"{"alg":"ES256","kid":"k","crit":["exp"],"exp":1}"#, |e| matches!(e, JwtError::Critical)),
        ("JWT-06 empty crit", r#"{"alg":"ES256","kid":"k","crit":[]}"#, |e| matches!(e, JwtError::Critical)),
        ("JWT-07 unknown kid", r#"{"alg":"ES256","kid":"other"}"#, |e| matches!(e, JwtError::UnknownKey(_))),
        ("JWT-07 kid is no string", r#"{"alg":"ES256","kid":1}"#, |e| matches!(e, JwtError::Member("kid"))),
        ("JWT-08 lower case", r#"{"alg":"ES256","kid":"k","typ":"jwt"}"#, |e| matches!(e, JwtError::Type)),
        ("JWT-08 access token", r#"{"alg":"ES256","kid":"k","typ":"at+jwt"}"#, |e| matches!(e, JwtError::Type)),
        ("JWT-08 WIT", r#"{"alg":"ES256","kid":"k","typ":"wit+jwt"}"#, |e| matches!(e, JwtError::Type)),
        ("a name twice", r#"{"alg":"ES256","kid":"x","kid":"k"}"#, |e| matches!(e, JwtError::Json { .. })),
        ("a name twice, escaped", r#"{"alg":"ES256","kid":"x","k\u0069d":"k"}"#, |e| {
            matches!(e, JwtError::Json { .. })
        }),
        ("not an object", r#"["ES256"]"#, |e| matches!(e, JwtError::Json { .. })),
        ("not JSON", "ES256", |e| matches!(e, JwtError::Json { .. })),
        ("something after it", r#"{"alg":"ES256","kid":"k"}{}"#, |e| matches!(e, JwtError::Json { .. })),
    ];
    for (rule, header, check_error) in refused {
        let error = check(&forger.sign(header, &claims().to_string()), &keys).expect_err(rule);
        assert!(check_error(&error), "{rule}: {error:?}");
    }
    let accepted = [
        r#"{"alg":"ES256","kid":"k","typ":"JWT"}"#,
        r#"{"alg":"ES256","kid":"k","typ":"JOSE"}"#,
        r#"{"alg":"ES256","kid":"k"}"#,
        r#"{"alg":"ES256"}"#,
    ];
    for header in accepted {
        assert!(check(&forger.sign(header, &claims().to_string()), &keys).is_ok(), "{header}");
    }
}

#[test]
fn a_key_inside_the_token_is_never_used() {
    // JWT-06
    let (ours, theirs) = (Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING), Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING));
    let keys = authorities(&[("k", &ours)]);
    let headers = [
        json!({ "alg": "ES256", "jwk": theirs.jwk().to_json() }),
        json!({ "alg": "ES256", "kid": "k", "jwk": theirs.jwk().to_json() }),
        json!({ "alg": "ES256", "kid": "k", "jku": "https://evil.example/keys" }),
    ];
    for header in headers {
        let result = check(&theirs.sign(&header.to_string(), &claims().to_string()), &keys);
        assert!(matches!(result, Err(JwtError::Signature)), "{header}: {result:?}");
    }
}

#[test]
fn claims_are_held_to_every_rule() {
    let forger = Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let keys = authorities(&[("k", &forger)]);
    let now = NOW.unix_timestamp();
    type Check = fn(&JwtError) -> bool;
    let aud: Check = |e| matches!(e, JwtError::Member("aud"));
    let exp: Check = |e| matches!(e, JwtError::Member("exp"));
    let refused: Vec<(&str, String, Check)> = vec![
        ("JWT-10 sub absent", claims_with("sub", Value::Null), |e| matches!(e, JwtError::Member("sub"))),
        ("JWT-10 sub is no string", claims_with("sub", json!([WORKLOAD])), |e| matches!(e, JwtError::Member("sub"))),
        ("JWT-10 sub is no SPIFFE ID", claims_with("sub", json!("billing")), |e| matches!(e, JwtError::Subject(_))),
        ("JWT-11 aud absent", claims_with("aud", Value::Null), aud),
        ("JWT-11 aud empty", claims_with("aud", json!([])), aud),
        ("JWT-11 aud no strings", claims_with("aud", json!([AUDIENCE, 1])), aud),
        ("JWT-21 aud too many", claims_with("aud", json!(vec![AUDIENCE; 257])), aud),
        ("JWT-11 other audience", claims_with("aud", json!(["https://other"])), |e| matches!(e, JwtError::Audience(_))),
        ("JWT-11 part of an audience", claims_with("aud", json!("https://api.example.com/x")), |e| {
            matches!(e, JwtError::Audience(_))
        }),
        ("JWT-13 exp absent", claims_with("exp", Value::Null), exp),
        ("JWT-13 exp is no number", claims_with("exp", json!("1")), exp),
        ("JWT-13 exp out of range", claims_with("exp", json!(u64::MAX)), exp),
        ("JWT-13 exp out of any range", claims_with("exp", json!(1e300)), exp),
        ("JWT-13 expired", claims_with("exp", json!(now - 10)), |e| matches!(e, JwtError::Expired(_))),
        ("JWT-14 nbf in the future", claims_with("nbf", json!(now + 11)), |e| matches!(e, JwtError::NotYetValid(_))),
        ("JWT-14 nbf malformed", claims_with("nbf", json!("x")), |e| matches!(e, JwtError::Member("nbf"))),
        ("JWT-16 another trust domain", claims_with("sub", json!("spiffe://other.example/a")), |e| {
            matches!(e, JwtError::UnknownTrustDomain(_))
        }),
        ("a name twice", claims().to_string().replacen('{', r#"{"sub":"spiffe://example.org/admin","#, 1), |e| {
            matches!(e, JwtError::Json { .. })
        }),
    ];
    let header = r#"{"alg":"ES256","kid":"k"}"#;
    for (rule, claims, check_error) in refused {
        let error = check(&forger.sign(header, &claims), &keys).expect_err(rule);
        assert!(check_error(&error), "{rule}: {error:?}");
    }
    let accepted = [
        ("JWT-11 one audience as a string", claims_with("aud", json!(AUDIENCE))),
        ("JWT-11 one of two audiences", claims_with("aud", json!(["https://other", AUDIENCE]))),
        ("JWT-13 just expired, within leeway", claims_with("exp", json!(now - 9))),
        ("JWT-21 fractions of a second", claims_with("exp", json!(now as f64 + 0.5))),
        ("JWT-14 nbf within leeway", claims_with("nbf", json!(now + 10))),
        ("JWT-14 iat in the future", claims_with("iat", json!(now + 1000))),
        ("JWT-14 unknown claims", claims_with("cnf", json!({ "a": [1, null, true] }))),
        ("ID-11 a SPIFFE ID of 2048 bytes", {
            claims_with("sub", json!(format!("spiffe://example.org/{}", "a".repeat(2048 - 21))))
        }),
    ];
    for (rule, claims) in accepted {
        let svid = check(&forger.sign(header, &claims), &keys).expect(rule);
        assert!(!svid.claims().is_empty());
    }
    let replayed = forger.sign(header, &claims().to_string());
    assert!(check(&replayed, &keys).is_ok() && check(&replayed, &keys).is_ok(), "JWT-20");
}

#[test]
fn only_strict_compact_serialization_is_read() {
    // JWT-01, JWT-21
    let forger = Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let keys = authorities(&[("k", &forger)]);
    let token = forger.sign(r#"{"alg":"ES256","kid":"k"}"#, &claims().to_string());
    let [header, payload, signature]: [&str; 3] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
    let padded = URL_SAFE.encode(r#"{"alg":"ES256","kid":"k" }"#);
    assert!(padded.ends_with('='));
    let refused = [
        String::new(),
        "..".to_owned(),
        format!("{header}.{payload}"),
        format!("{header}.{payload}.{signature}."),
        format!("{header}.{payload}.{signature}.x"),
        format!(".{token}"),
        format!("{token}="),
        format!("{token}\n"),
        format!(" {token}"),
        format!("{padded}.{payload}.{signature}"),
        format!("{header}.{payload}.+/{}", &signature[2..]),
        json!({ "protected": header, "payload": payload, "signature": signature }).to_string(),
    ];
    for token in refused {
        let result = check(&token, &keys);
        assert!(matches!(result, Err(JwtError::NotCompact | JwtError::Json { .. })), "{token}: {result:?}");
    }
    let long = claims_with("pad", json!("x".repeat(MAX_TOKEN_BYTES)));
    assert!(matches!(check(&forger.sign("{}", &long), &keys), Err(JwtError::TooLong)));
    for signature in ["", "AA", &signature[..signature.len() - 2]] {
        assert!(matches!(check(&format!("{header}.{payload}.{signature}"), &keys), Err(JwtError::Signature)));
    }
}

#[test]
fn the_same_key_id_in_two_trust_domains_is_two_keys() {
    // JWT-16
    let (ours, theirs) = (Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING), Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING));
    let other = TrustDomain::parse("other.example").unwrap();
    let mut all = HashMap::from([(domain(), authorities(&[("k", &ours)]))]);
    all.insert(other.clone(), JwtAuthorities::new(other.clone(), [("k".to_owned(), theirs.jwk())]));
    let check = |token: &str| validate(token, AUDIENCE, |domain| all.get(domain), NOW, LEEWAY);
    let header = r#"{"alg":"ES256","kid":"k"}"#;
    let in_other = claims_with("sub", json!("spiffe://other.example/a"));
    assert!(check(&ours.sign(header, &claims().to_string())).is_ok());
    assert!(check(&theirs.sign(header, &in_other)).is_ok());
    assert!(matches!(check(&theirs.sign(header, &claims().to_string())), Err(JwtError::Signature)));
    assert!(matches!(check(&ours.sign(header, &in_other)), Err(JwtError::Signature)));
    // A caller that answers with the keys of the wrong domain, or with none, is not believed.
    let wrong = |token| validate(token, AUDIENCE, |_| all.get(&other), NOW, LEEWAY);
    assert!(matches!(wrong(&theirs.sign(header, &claims().to_string())), Err(JwtError::UnknownTrustDomain(_))));
    let empty = JwtAuthorities::new(domain(), []);
    let token = ours.sign(header, &claims().to_string());
    assert!(validate(&token, AUDIENCE, |_| Some(&empty), NOW, LEEWAY).is_err(), "JWT-18");
}

#[test]
fn without_a_key_id_every_fitting_key_of_the_domain_is_tried() {
    // JWT-07
    let forgers = [(); 3].map(|()| Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING));
    let stranger = Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let keys = authorities(&[("a", &forgers[0]), ("b", &forgers[1]), ("c", &forgers[2])]);
    let header = r#"{"alg":"ES256"}"#;
    for forger in &forgers {
        assert!(check(&forger.sign(header, &claims().to_string()), &keys).is_ok());
    }
    assert!(matches!(check(&stranger.sign(header, &claims().to_string()), &keys), Err(JwtError::Signature)));
    let none_fits = stranger.sign(r#"{"alg":"RS256"}"#, &claims().to_string());
    assert!(matches!(check(&none_fits, &keys), Err(JwtError::UnknownKey(_))));
}

#[test]
fn what_tether_signs_has_the_members_of_the_standard_and_verifies() {
    for (kind, algorithm) in
        [(KeyType::EcP256, Algorithm::Es256), (KeyType::EcP384, Algorithm::Es384), (KeyType::Rsa2048, Algorithm::Rs256)]
    {
        let signer = JwtSigner::new(&PrivateKey::generate(kind).unwrap()).unwrap();
        assert_eq!(signer.algorithm(), algorithm);
        let audience = [AUDIENCE.to_owned(), "second".to_owned()];
        let claims = JwtClaims {
            sub: &SpiffeId::parse(WORKLOAD).unwrap(),
            aud: &audience,
            exp: NOW + time::Duration::minutes(5),
            iat: NOW,
            jti: "n-1",
            iss: None,
        };
        let token = signer.sign(&claims).unwrap();
        let part = |n: usize| -> Value {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(n).unwrap()).unwrap()).unwrap()
        };
        assert_eq!(part(0), json!({ "alg": algorithm.name(), "kid": signer.key_id(), "typ": "JWT" }), "JWT-05");
        let now = NOW.unix_timestamp();
        let expected = json!({ "sub": WORKLOAD, "aud": audience, "exp": now + 300, "iat": now, "jti": "n-1" });
        assert_eq!(part(1), expected, "JWT-09, JWT-22, WL-27");

        let keys = JwtAuthorities::new(domain(), [(signer.key_id().to_owned(), signer.public_key().clone())]);
        let svid = check(&token, &keys).unwrap();
        assert_eq!((svid.spiffe_id().as_str(), svid.audience()), (WORKLOAD, &audience[..]));
        assert_eq!((svid.expires_at(), svid.token_id()), (claims.exp, Some("n-1")));
        let with_issuer = signer.sign(&JwtClaims { iss: Some("https://issuer"), ..claims }).unwrap();
        assert_eq!(check(&with_issuer, &keys).unwrap().claims()["iss"], "https://issuer");
    }
}

#[test]
fn a_thumbprint_is_that_of_rfc_7638() {
    // RFC 7638, section 3.1
    let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
    let jwk = json!({ "kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29" });
    let jwk = Jwk::from_json(jwk.as_object().unwrap()).unwrap();
    assert_eq!(jwk.thumbprint(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
}

#[test]
fn keys_that_are_none_are_refused() {
    let good = Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING).jwk().to_json();
    let with = |name: &str, value: Value| {
        let mut members = good.clone();
        members.insert(name.to_owned(), value);
        Jwk::from_json(&members)
    };
    assert!(Jwk::from_json(&good).is_ok());
    assert!(matches!(with("kty", json!("oct")), Err(JwkError::Kind)));
    assert!(matches!(with("kty", json!(1)), Err(JwkError::Parameter("kty"))));
    assert!(matches!(with("crv", json!("secp256k1")), Err(JwkError::Kind)));
    assert!(matches!(with("crv", json!("P-384")), Err(JwkError::Parameter("x"))));
    assert!(matches!(with("x", json!("AA")), Err(JwkError::Parameter("x"))));
    assert!(matches!(with("y", good["x"].clone()), Err(JwkError::Parameter(_))), "not on the curve");
    let rsa = |n: usize, e: &str| {
        let n = URL_SAFE_NO_PAD.encode([&[0x80][..], &vec![1; n / 8 - 1]].concat());
        Jwk::from_json(json!({ "kty": "RSA", "n": n, "e": e }).as_object().unwrap())
    };
    assert!(rsa(2048, "AQAB").is_ok());
    assert!(matches!(rsa(2040, "AQAB"), Err(JwkError::RsaSize(2040))));
    assert!(matches!(rsa(8200, "AQAB"), Err(JwkError::RsaSize(8200))));
    assert!(matches!(rsa(2048, ""), Err(JwkError::Parameter("e"))));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        fuzz_token(&bytes);
        let token = format!("{}.{}.AA", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#), URL_SAFE_NO_PAD.encode(&bytes));
        fuzz_token(token.as_bytes());
    }

    #[test]
    fn any_number_in_a_date_is_read_or_refused(seconds in any::<f64>()) {
        let keys = JwtAuthorities::new(domain(), []);
        let _ = check(&format!("{}.e30.AA", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#)), &keys);
        let members = json!({ "exp": seconds });
        let _ = super::svid::numeric_date(members.as_object().unwrap(), "exp");
    }
}
