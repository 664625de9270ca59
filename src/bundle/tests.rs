//! The rules of SPIFFE bundles as vectors. Ids are those of the SPIFFE conformance checklist.

use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::jwt::JwtSigner;
use crate::x509::{Issuer, KeyType, PrivateKey, Serial, Validity, self_signed_root};

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn root(kind: KeyType, n: u8) -> Issuer {
    let validity = Validity { not_before: datetime!(2026-01-01 0:00 UTC), not_after: datetime!(2027-01-01 0:00 UTC) };
    let key = PrivateKey::generate(kind).unwrap();
    self_signed_root(domain(), key, validity, &Serial::from_random([n; 16])).unwrap()
}

fn bundle() -> Bundle {
    let roots = [root(KeyType::EcP256, 1), root(KeyType::EcP384, 2)];
    let signer = JwtSigner::new(&PrivateKey::generate(KeyType::EcP256).unwrap()).unwrap();
    let x509 = X509Authorities::new(domain(), roots.iter().map(|root| root.certificate().clone())).unwrap();
    let jwt = JwtAuthorities::new(domain(), [(signer.key_id().to_owned(), signer.public_key().clone())]);
    Bundle::new(x509, jwt).with_sequence(7).with_refresh_hint(DEFAULT_REFRESH_HINT)
}

fn document(bundle: &Bundle) -> Value {
    serde_json::from_str(&bundle.to_json().unwrap()).unwrap()
}

/// The names of an object's members. Their order means nothing.
fn names(value: &Value) -> Vec<&String> {
    let mut names: Vec<_> = value.as_object().unwrap().keys().collect();
    names.sort();
    names
}

fn parse(document: &Value) -> ParsedBundle {
    Bundle::parse(&domain(), document.to_string().as_bytes()).unwrap()
}

#[test]
fn what_is_published_reads_back_and_has_only_the_members_of_the_standard() {
    let bundle = bundle();
    let document = document(&bundle);
    assert_eq!(names(&document), ["keys", "spiffe_refresh_hint", "spiffe_sequence"]);
    assert_eq!(document["spiffe_sequence"], 7, "BUN-06, BUN-07");
    assert_eq!(document["spiffe_refresh_hint"], 300, "BUN-09");
    let keys = document["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 3, "X509-21, JWT-17");
    for (key, certificate) in keys.iter().zip(bundle.x509().certificates()) {
        assert_eq!(names(key), ["crv", "kty", "use", "x", "x5c", "y"], "X509-22, BUN-05, BUN-11");
        assert_eq!(key["use"], "x509-svid", "X509-22");
        assert_eq!(key["x5c"], json!([STANDARD.encode(certificate.der())]), "X509-22");
        let from_parameters = Jwk::from_json(key.as_object().unwrap()).unwrap();
        assert_eq!(from_parameters, Jwk::from_spki(certificate.public_key()).unwrap(), "X509-21");
    }
    assert_eq!(names(&keys[2]), ["crv", "kid", "kty", "use", "x", "y"], "JWT-17, BUN-11");
    let again = parse(&document);
    assert_eq!((again.bundle, again.skipped), (bundle, vec![]));
}

#[test]
fn the_set_for_workloads_has_jwt_keys_only_and_each_has_a_key_id() {
    // WL-31, WL-39
    let bundle = bundle();
    let set: Value = serde_json::from_str(&bundle.jwt_jwks()).unwrap();
    let keys = set["keys"].as_array().unwrap();
    assert_eq!(set.as_object().unwrap().len(), 1);
    assert_eq!(keys.len(), 1);
    assert_eq!(names(&keys[0]), ["crv", "kid", "kty", "x", "y"]);
    let empty = Bundle::new(bundle.x509().clone(), JwtAuthorities::new(domain(), []));
    assert_eq!(empty.jwt_jwks(), r#"{"keys":[]}"#, "BUN-02, AMB-11");
}

#[test]
fn wit_keys_are_published_as_such_and_enter_no_other_set() {
    // WIT-28, WIT-29, WL-31, WL-46
    let without = bundle();
    let wit = PrivateKey::generate(KeyType::EcP256).unwrap();
    let key = Jwk::from_spki(wit.public_key()).unwrap();
    let jwt_key_id = without.jwt().iter().next().unwrap().0.to_owned();
    let keys = [("wit".to_owned(), key.clone()), (jwt_key_id.clone(), key)];
    let bundle = without.clone().with_wit(WitAuthorities::new(domain(), keys));
    assert_eq!(bundle.wit().iter().map(|(key_id, _)| key_id).collect::<Vec<_>>(), ["wit"], "a kid is that of one key");
    assert_eq!(bundle.jwt_jwks(), without.jwt_jwks());
    let published = document(&bundle);
    let uses: Vec<_> = published["keys"].as_array().unwrap().iter().map(|key| key["use"].as_str().unwrap()).collect();
    assert_eq!(uses, ["x509-svid", "x509-svid", "jwt-svid", "wit-svid"]);
    let parsed = parse(&published);
    assert_eq!((&parsed.bundle, parsed.skipped.as_slice()), (&bundle, &[][..]));

    let set: Value = serde_json::from_str(&bundle.wit_jwks()).unwrap();
    assert_eq!(set["keys"].as_array().unwrap().len(), 1);
    assert_eq!(set["keys"][0]["kid"], "wit");
    assert_eq!(without.wit_jwks(), r#"{"keys":[]}"#, "AMB-11");
}

#[test]
fn a_document_that_is_no_bundle_is_refused_whole() {
    let refused = [
        ("BUN-02 no keys", "{}"),
        ("BUN-02 keys null", r#"{"keys":null}"#),
        ("BUN-02 keys an object", r#"{"keys":{}}"#),
        ("BUN-01 no object", r#"[]"#),
        ("BUN-01 no JSON", "keys"),
        ("BUN-09 a text as hint", r#"{"keys":[],"spiffe_refresh_hint":"60"}"#),
        ("BUN-09 a fraction as hint", r#"{"keys":[],"spiffe_refresh_hint":1.5}"#),
        ("BUN-07 a negative sequence", r#"{"keys":[],"spiffe_sequence":-1}"#),
        ("a name twice", r#"{"keys":[],"keys":[]}"#),
        ("a name twice in a key", r#"{"keys":[{"use":"jwt-svid","use":"x509-svid"}]}"#),
    ];
    for (rule, document) in refused {
        assert!(Bundle::parse(&domain(), document.as_bytes()).is_err(), "{rule}");
    }
}

#[test]
fn sequences_of_64_bits_are_kept_and_longer_ones_do_not_wrap() {
    // BUN-08
    let cases = [
        ("9007199254740993", (1 << 53) + 1),
        ("9223372036854775808", 1 << 63),
        ("18446744073709551615", u64::MAX),
        ("18446744073709551616", u64::MAX),
        ("340282366920938463463374607431768211456", u64::MAX),
    ];
    for (text, expected) in cases {
        let document = format!(r#"{{"keys":[],"spiffe_sequence":{text}}}"#);
        let parsed = Bundle::parse(&domain(), document.as_bytes()).unwrap();
        assert_eq!(parsed.bundle.sequence(), Some(expected), "{text}");
    }
}

#[test]
fn an_empty_set_means_believe_nothing() {
    // BUN-03, BUN-10
    let parsed = parse(&json!({ "keys": [], "unknown": { "member": 1 } }));
    assert!(parsed.bundle.is_empty() && parsed.skipped.is_empty());
    assert_eq!((parsed.bundle.sequence(), parsed.bundle.refresh_hint()), (None, None), "BUN-15");
    assert_eq!(document(&parsed.bundle), json!({ "keys": [] }), "BUN-02");
}

#[test]
fn keys_that_cannot_be_used_are_skipped_and_the_others_kept() {
    let good = document(&bundle());
    let (x509, jwt) = (&good["keys"][0], &good["keys"][2]);
    let with = |key: &Value, name: &str, value: Value| {
        let mut key = key.clone();
        match value {
            Value::Null => drop(key.as_object_mut().unwrap().remove(name)),
            value => key[name] = value,
        }
        key
    };
    let leaf_is_no_authority = {
        let issuer = root(KeyType::EcP256, 3);
        let id = crate::id::SpiffeId::parse("spiffe://example.org/a").unwrap();
        let leaf = issuer.sign_leaf(&crate::x509::LeafParams {
            spiffe_id: &id,
            public_key: issuer.key().public_key(),
            dns_names: &[],
            validity: Validity {
                not_before: datetime!(2026-01-01 0:00 UTC),
                not_after: datetime!(2026-01-02 0:00 UTC),
            },
            serial: &Serial::from_random([4; 16]),
        });
        STANDARD.encode(leaf.unwrap())
    };
    let skipped = [
        ("BUN-04 no use", with(jwt, "use", Value::Null)),
        ("BUN-04 unknown use", with(jwt, "use", json!("sig"))),
        ("BUN-05 use in upper case", with(x509, "use", json!("X509-SVID"))),
        ("WIT-28 wit key without kid", with(&with(jwt, "use", json!("wit-svid")), "kid", Value::Null)),
        ("WIT-28 wit key with the kid of another", with(jwt, "use", json!("wit-svid"))),
        ("BUN-04 unknown kty", with(jwt, "kty", json!("X"))),
        ("BUN-04 unknown kty of a certificate", with(x509, "kty", json!("X"))),
        ("BUN-04 symmetric", with(jwt, "kty", json!("oct"))),
        ("BUN-04 no kty", with(jwt, "kty", Value::Null)),
        ("X509-24 no x5c", with(x509, "x5c", Value::Null)),
        ("X509-24 empty x5c", with(x509, "x5c", json!([]))),
        ("X509-22 x5c not base64", with(x509, "x5c", json!(["-_-_"]))),
        ("X509-22 x5c no certificate", with(x509, "x5c", json!(["AAAA"]))),
        ("X509-21 x5c of a leaf", with(x509, "x5c", json!([leaf_is_no_authority]))),
        ("JWT-17 no kid", with(jwt, "kid", Value::Null)),
        ("JWT-17 empty kid", with(jwt, "kid", json!(""))),
        ("JWT-17 malformed key", with(jwt, "x", json!("AA"))),
        ("no object", json!("key")),
    ];
    for (rule, key) in skipped {
        let parsed = parse(&json!({ "keys": [key, x509, jwt] }));
        assert_eq!(parsed.skipped.len(), 1, "{rule}");
        assert_eq!(parsed.skipped[0].index, 0, "{rule}");
        assert!(parsed.bundle.wit().is_empty(), "{rule}");
        let kept = (parsed.bundle.x509().certificates().len(), parsed.bundle.jwt().iter().count());
        assert_eq!(kept, (1, 1), "{rule}");
    }
    let two = json!([x509["x5c"][0], good["keys"][1]["x5c"][0]]);
    let parsed = parse(&json!({ "keys": [with(x509, "x5c", two)] }));
    assert_eq!(parsed.bundle.x509().certificates().len(), 1, "X509-25: the first counts");
    assert!(parsed.bundle.jwt().is_empty(), "JWT-18");
    assert!(parse(&json!({ "keys": [jwt] })).bundle.x509().is_empty(), "X509-26");
}

#[test]
fn a_bundle_reads_from_pem_and_carries_its_certificates_as_der_too() {
    let bundle = bundle();
    let from_pem = Bundle::from_pem(&domain(), bundle.x509().to_pem().as_bytes()).unwrap();
    assert_eq!(from_pem.x509(), bundle.x509());
    let from_der = X509Authorities::from_der(domain(), &bundle.x509().to_der()).unwrap();
    assert_eq!(&from_der, bundle.x509(), "WL-21");
    assert!(Bundle::from_pem(&domain(), b"nothing").is_err());
}

#[test]
#[should_panic(expected = "a bundle is of one trust domain")]
fn authorities_of_two_trust_domains_are_never_joined() {
    // BUN-13
    let other = TrustDomain::parse("other.example").unwrap();
    let _ = Bundle::new(bundle().x509().clone(), JwtAuthorities::new(other, []));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        fuzz_bundle(&bytes);
    }

    #[test]
    fn arbitrary_members_of_keys_never_make_the_reader_panic(
        purpose in "(x509|jwt|wit)-svid", kty in "EC|RSA|oct", text in "[A-Za-z0-9_=/+-]{0,100}",
    ) {
        let key = json!({
            "use": purpose, "kty": kty, "kid": text, "x5c": [text], "crv": "P-256", "x": text, "y": text, "n": text, "e": text,
        });
        fuzz_bundle(json!({ "keys": [key] }).to_string().as_bytes());
    }
}
