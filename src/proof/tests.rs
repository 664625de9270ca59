//! The rules of proofs as vectors.

use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::datetime;

use super::*;
use crate::base::entropy::Entropy;
use crate::id::{SpiffeId, TrustDomain};
use crate::wit::{Confirmation, WitAuthorities, WitClaims, WitSigner};
use crate::x509::{KeyType, PrivateKey};

const NOW: OffsetDateTime = datetime!(2026-11-01 12:00:00.5 UTC);
const LEEWAY: Duration = Duration::from_secs(10);
const URI: &str = "https://tool.example.com/charge";

/// An issuer, a workload with a WIT, and its key.
struct World {
    keys: WitAuthorities,
    wit: String,
    key: ProofKey,
    /// The same key, for signing what no proof may be.
    forger: EcdsaKeyPair,
}

fn forger(key: &PrivateKey) -> EcdsaKeyPair {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.to_pkcs8().unwrap().expose()).unwrap()
}

fn sign(pair: &EcdsaKeyPair, header: &Value, claims: &Value) -> String {
    let input =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = pair.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
}

impl World {
    fn new() -> Self {
        let authority = WitSigner::new(&PrivateKey::generate(KeyType::EcP256).unwrap()).unwrap();
        let workload = PrivateKey::generate(KeyType::EcP256).unwrap();
        let key = ProofKey::new(&workload).unwrap();
        let wit = authority
            .sign(&WitClaims {
                sub: &SpiffeId::parse("spiffe://example.org/agent/a").unwrap(),
                exp: NOW + Duration::from_secs(300),
                iat: NOW,
                jti: "wit-1",
                cnf: &Confirmation::of(key.public_key().clone()),
                session: None,
            })
            .unwrap();
        let domain = TrustDomain::parse("example.org").unwrap();
        let keys = WitAuthorities::new(domain, [(authority.key_id().to_owned(), authority.public_key().clone())]);
        Self { keys, wit, key, forger: forger(&workload) }
    }

    fn proof(&self) -> String {
        self.key.wpt(&self.wit, &target("POST", URI), None, &Entropy::system(), NOW).unwrap().token
    }

    /// Sound claims with one member set, or taken away by `null`.
    fn claims_with(&self, name: &str, value: Value) -> Value {
        let now = NOW.unix_timestamp();
        let mut claims =
            json!({ "aud": URI, "exp": now + 30, "iat": now, "jti": "1", "wth": make::hash(&self.wit), "htm": "POST" });
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value,
        }
        claims
    }

    fn forge(&self, claims: &Value) -> String {
        sign(&self.forger, &json!({ "alg": "ES256", "typ": "wpt+jwt" }), claims)
    }

    fn check(&self, proof: &str) -> Result<CheckedProof, ProofError> {
        self.check_as(proof, "POST", URI, None, NOW)
    }

    fn check_as(
        &self,
        proof: &str,
        method: &str,
        uri: &str,
        body: Option<BodyDigest>,
        now: OffsetDateTime,
    ) -> Result<CheckedProof, ProofError> {
        let target = target(method, uri);
        let expected = Expected { method: &target.method, uri: &target.uri, body };
        check_wpt(Presented { wit: &self.wit, proof, txn_token: None }, expected, |_| Some(&self.keys), now, LEEWAY)
    }
}

fn target(method: &str, uri: &str) -> ProofTarget {
    ProofTarget { method: Method::parse(method).unwrap(), uri: TargetUri::parse(uri).unwrap(), body: None }
}

#[test]
fn a_proof_holds_for_its_own_request_and_names_who_made_it() {
    let world = World::new();
    let checked = world.check(&world.proof()).unwrap();
    assert_eq!(checked.wit.spiffe_id().to_string(), "spiffe://example.org/agent/a");
    assert_eq!(checked.thumbprint, world.key.public_key().thumbprint());
    assert_eq!(checked.jti.len(), 32, "128 bits");
    assert_eq!(checked.made_at, NOW.truncate_to_second());
    assert_eq!(checked.expires_at, NOW.truncate_to_second() + LIFETIME);
    assert_ne!(checked.jti, world.check(&world.proof()).unwrap().jti);
}

#[test]
fn the_header_of_a_wpt_is_algorithm_and_type_and_that_of_dpop_has_the_public_key() {
    let world = World::new();
    let header = |token: &str| -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap()).unwrap()
    };
    assert_eq!(header(&world.proof()), json!({ "alg": "ES256", "typ": "wpt+jwt" }));
    let dpop = world.key.dpop(&target("GET", URI), None, None, &Entropy::system(), NOW).unwrap();
    let expected = json!({ "alg": "ES256", "typ": "dpop+jwt", "jwk": world.key.public_key().to_json() });
    assert_eq!(header(&dpop.token), expected);
}

#[test]
fn a_proof_is_good_for_no_other_method_uri_or_body() {
    let world = World::new();
    let proof = world.proof();
    for same in [URI, "https://tool.example.com:443/charge?amount=1#x", "HTTPS://Tool.Example.Com/%63harge"] {
        assert!(world.check_as(&proof, "POST", same, None, NOW).is_ok(), "{same}");
    }
    for other in ["https://tool.example.com/charge/", "https://tool.example.com/", "http://tool.example.com/charge"] {
        assert!(matches!(world.check_as(&proof, "POST", other, None, NOW), Err(ProofError::Uri)), "{other}");
    }
    for other in ["GET", "post"] {
        assert!(matches!(world.check_as(&proof, other, URI, None, NOW), Err(ProofError::Method)), "{other}");
    }
    let body = BodyDigest::of(b"{\"amount\":1}");
    assert!(matches!(world.check_as(&proof, "POST", URI, Some(body), NOW), Err(ProofError::Body)), "not covered");
    let with_body = ProofTarget { body: Some(body), ..target("POST", URI) };
    let proof = world.key.wpt(&world.wit, &with_body, None, &Entropy::system(), NOW).unwrap().token;
    assert!(world.check_as(&proof, "POST", URI, Some(body), NOW).is_ok());
    let other = Some(BodyDigest::of(b"{\"amount\":1000}"));
    assert!(matches!(world.check_as(&proof, "POST", URI, other, NOW), Err(ProofError::Body)));
}

#[test]
fn a_proof_is_good_for_a_moment() {
    let world = World::new();
    let proof = world.proof();
    let at = |seconds| world.check_as(&proof, "POST", URI, None, NOW + time::Duration::seconds(seconds));
    assert!(at(0).is_ok() && at(39).is_ok() && at(-10).is_ok());
    assert!(matches!(at(40), Err(ProofError::Expired(_))));
    assert!(matches!(at(-11), Err(ProofError::TooLong)), "made in the future");
}

#[test]
fn the_claims_of_a_wpt_are_held_to_every_rule() {
    let world = World::new();
    let now = NOW.unix_timestamp();
    type Check = fn(&ProofError) -> bool;
    let refused: Vec<(&str, Value, Check)> = vec![
        ("aud absent", world.claims_with("aud", Value::Null), |e| matches!(e, ProofError::Claim("aud"))),
        ("aud a list", world.claims_with("aud", json!([URI])), |e| matches!(e, ProofError::Claim("aud"))),
        ("aud no URI", world.claims_with("aud", json!("tool")), |e| matches!(e, ProofError::Uri)),
        ("htm absent", world.claims_with("htm", Value::Null), |e| matches!(e, ProofError::Claim("htm"))),
        ("htm another", world.claims_with("htm", json!("GET")), |e| matches!(e, ProofError::Method)),
        ("exp absent", world.claims_with("exp", Value::Null), |e| matches!(e, ProofError::Claim("exp"))),
        ("exp too far", world.claims_with("exp", json!(now + 41)), |e| matches!(e, ProofError::TooLong)),
        ("exp past", world.claims_with("exp", json!(now - 11)), |e| matches!(e, ProofError::Expired(_))),
        ("iat malformed", world.claims_with("iat", json!("x")), |e| matches!(e, ProofError::Claim("iat"))),
        ("jti absent", world.claims_with("jti", Value::Null), |e| matches!(e, ProofError::Claim("jti"))),
        ("jti empty", world.claims_with("jti", json!("")), |e| matches!(e, ProofError::Claim("jti"))),
        ("jti endless", world.claims_with("jti", json!("x".repeat(129))), |e| matches!(e, ProofError::Claim("jti"))),
        ("wth absent", world.claims_with("wth", Value::Null), |e| matches!(e, ProofError::Claim("wth"))),
        ("wth of another", world.claims_with("wth", json!(make::hash("x"))), |e| matches!(e, ProofError::WitHash)),
        ("tth of nothing", world.claims_with("tth", json!("x")), |e| matches!(e, ProofError::OtherToken)),
        ("oth unknown", world.claims_with("oth", json!({ "x": "y" })), |e| matches!(e, ProofError::OtherToken)),
        ("oth malformed", world.claims_with("oth", json!("x")), |e| matches!(e, ProofError::Claim("oth"))),
    ];
    for (rule, claims, check_error) in refused {
        let error = world.check(&world.forge(&claims)).expect_err(rule);
        assert!(check_error(&error), "{rule}: {error:?}");
    }
    for good in
        [world.claims_with("x", json!(1)), world.claims_with("iat", Value::Null), world.claims_with("oth", json!({}))]
    {
        assert!(world.check(&world.forge(&good)).is_ok(), "{good}");
    }
}

#[test]
fn without_iat_a_proof_is_as_old_as_it_can_be() {
    let world = World::new();
    let checked = world.check(&world.forge(&world.claims_with("iat", Value::Null))).unwrap();
    assert_eq!(checked.made_at, NOW.truncate_to_second());
}

#[test]
fn a_transaction_token_beside_the_proof_must_be_covered_by_it() {
    let world = World::new();
    let post = target("POST", URI);
    let check = |proof: &str, txn_token| {
        let expected = Expected { method: &post.method, uri: &post.uri, body: None };
        check_wpt(Presented { wit: &world.wit, proof, txn_token }, expected, |_| Some(&world.keys), NOW, LEEWAY)
    };
    let covering = world.forge(&world.claims_with("tth", json!(make::hash("txn"))));
    assert!(check(&covering, Some("txn")).is_ok());
    assert!(matches!(check(&covering, Some("other")), Err(ProofError::OtherToken)));
    assert!(matches!(check(&world.proof(), Some("txn")), Err(ProofError::OtherToken)));
}

#[test]
fn only_the_key_of_the_wit_and_its_algorithm_make_a_proof() {
    let world = World::new();
    let other = PrivateKey::generate(KeyType::EcP256).unwrap();
    let (theirs, claims) = (forger(&other), world.claims_with("x", Value::Null));
    let jwk = ProofKey::new(&other).unwrap().public_key().to_json();
    for header in [
        json!({ "alg": "ES256", "typ": "wpt+jwt" }),
        // A key in the header of a WPT is never used.
        json!({ "alg": "ES256", "typ": "wpt+jwt", "jwk": jwk }),
    ] {
        let result = world.check(&sign(&theirs, &header, &claims));
        assert!(matches!(result, Err(ProofError::Jws(JwtError::Signature))), "{header}: {result:?}");
    }
    type Check = fn(&ProofError) -> bool;
    let refused: [(Value, Check); 7] = [
        (json!({ "alg": "ES256" }), |e| matches!(e, ProofError::Type(_))),
        (json!({ "alg": "ES256", "typ": "JWT" }), |e| matches!(e, ProofError::Type(_))),
        (json!({ "alg": "ES256", "typ": "dpop+jwt" }), |e| matches!(e, ProofError::Type(_))),
        (json!({ "alg": "ES384", "typ": "wpt+jwt" }), |e| matches!(e, ProofError::Algorithm)),
        (json!({ "alg": "none", "typ": "wpt+jwt" }), |e| matches!(e, ProofError::Jws(JwtError::Algorithm))),
        (json!({ "alg": "HS256", "typ": "wpt+jwt" }), |e| matches!(e, ProofError::Jws(JwtError::Algorithm))),
        (json!({ "alg": "ES256", "typ": "wpt+jwt", "crit": ["x"] }), |e| {
            matches!(e, ProofError::Jws(JwtError::Critical))
        }),
    ];
    for (header, check_error) in refused {
        let error = world.check(&sign(&world.forger, &header, &claims)).expect_err("refused");
        assert!(check_error(&error), "{header}: {error:?}");
    }
}

#[test]
fn the_wit_comes_first_and_is_no_proof_of_itself() {
    let mut world = World::new();
    assert!(matches!(world.check(&world.wit.clone()), Err(ProofError::Type(_))));
    let proof = world.proof();
    world.wit = proof;
    assert!(matches!(world.check("not even a token"), Err(ProofError::Wit(_))));
    let (a, b) = (World::new(), World::new());
    let mixed = World { wit: b.wit.clone(), keys: b.keys.clone(), ..World::new() };
    assert!(matches!(mixed.check(&a.proof()), Err(ProofError::Jws(JwtError::Signature))), "a proof with another's WIT");
}

#[test]
fn dpop_is_held_to_every_rule() {
    let world = World::new();
    let post = target("POST", URI);
    let thumbprint = world.key.public_key().thumbprint();
    let check = |proof: &str, token: &str, jkt: &str, nonce| {
        let expected = Expected { method: &post.method, uri: &post.uri, body: None };
        check_dpop(proof, expected, token, jkt, nonce, NOW, LEEWAY)
    };
    let proof = world.key.dpop(&post, Some("at"), Some("n"), &Entropy::system(), NOW).unwrap().token;
    assert_eq!(check(&proof, "at", &thumbprint, Some("n")).unwrap().thumbprint, thumbprint);
    assert!(check(&proof, "at", &thumbprint, None).is_ok());
    assert!(matches!(check(&proof, "other", &thumbprint, None), Err(ProofError::TokenHash)));
    assert!(matches!(check(&proof, "at", "other", None), Err(ProofError::Binding)));
    assert!(matches!(check(&proof, "at", &thumbprint, Some("m")), Err(ProofError::Nonce)));
    let wpt = world.proof();
    assert!(matches!(check(&wpt, "at", &thumbprint, None), Err(ProofError::Type(_))));

    let jwk = Value::Object(world.key.public_key().to_json());
    let mut private = jwk.clone();
    private["d"] = "AA".into();
    let claims = |name: &str, value: Value| {
        let mut claims =
            json!({ "jti": "1", "htm": "POST", "htu": URI, "iat": NOW.unix_timestamp(), "ath": make::hash("at") });
        claims[name] = value;
        claims
    };
    let good = claims("x", Value::Null);
    let now = NOW.unix_timestamp();
    let header = json!({ "alg": "ES256", "typ": "dpop+jwt", "jwk": jwk });
    type Check = fn(&ProofError) -> bool;
    let refused: Vec<(Value, Value, Check)> = vec![
        (json!({ "alg": "ES256", "typ": "dpop+jwt" }), good.clone(), |e| matches!(e, ProofError::Key)),
        (json!({ "alg": "ES256", "typ": "dpop+jwt", "jwk": private }), good.clone(), |e| matches!(e, ProofError::Key)),
        (json!({ "alg": "ES384", "typ": "dpop+jwt", "jwk": jwk }), good, |e| matches!(e, ProofError::Algorithm)),
        (header.clone(), claims("htm", json!("GET")), |e| matches!(e, ProofError::Method)),
        (header.clone(), claims("htu", json!("https://other/")), |e| matches!(e, ProofError::Uri)),
        (header.clone(), claims("iat", Value::Null), |e| matches!(e, ProofError::Claim("iat"))),
        (header.clone(), claims("iat", json!(now - 40)), |e| matches!(e, ProofError::Expired(_))),
        (header.clone(), claims("iat", json!(now + 11)), |e| matches!(e, ProofError::TooLong)),
        (header.clone(), claims("ath", Value::Null), |e| matches!(e, ProofError::Claim("ath"))),
    ];
    for (header, claims, check_error) in refused {
        let error = check(&sign(&world.forger, &header, &claims), "at", &thumbprint, None).expect_err("refused");
        assert!(check_error(&error), "{header} {claims}: {error:?}");
    }
}

#[test]
fn one_resource_has_one_normal_form() {
    let rows = [
        ("https://a", "https://a/"),
        ("HTTPS://A.Example/", "https://a.example/"),
        ("https://a:443/b", "https://a/b"),
        ("http://a:80/b", "http://a/b"),
        ("https://a:80/b", "https://a:80/b"),
        ("https://a:/b", "https://a/b"),
        ("https://a:08443/", "https://a:8443/"),
        ("https://a/b?c=d#e", "https://a/b"),
        ("https://a?c", "https://a/"),
        ("https://a/%7euser/%2f%e2%82%ac", "https://a/~user/%2F%E2%82%AC"),
        ("https://a//b/", "https://a//b/"),
        ("https://a/b;..;x/..c;.", "https://a/b;..;x/..c;."),
        ("https://0X7F.Example/", "https://0x7f.example/"),
        ("https://[2001:DB8:0::1]:8443/x", "https://[2001:db8::1]:8443/x"),
        ("http://127.0.0.1:8080/x", "http://127.0.0.1:8080/x"),
    ];
    for (text, normal) in rows {
        assert_eq!(TargetUri::parse(text).unwrap().as_str(), normal, "{text}");
        assert_eq!(TargetUri::parse(normal).unwrap().as_str(), normal, "{normal} is its own normal form");
    }
}

#[test]
fn what_readers_could_disagree_about_is_no_target() {
    let rows = [
        ("/path", TargetError::NotAbsolute),
        ("ftp://a/", TargetError::NotAbsolute),
        ("https:/a", TargetError::NotAbsolute),
        ("https://user@a/", TargetError::UserInfo),
        ("https://a@b/", TargetError::UserInfo),
        ("https://", TargetError::Host),
        ("https:///x", TargetError::Host),
        ("https://a b/", TargetError::Host),
        ("https://a\\b/", TargetError::Host),
        ("https://ä.example/", TargetError::Host),
        ("https://127.1/", TargetError::Host),
        ("https://0x7f000001/", TargetError::Host),
        ("https://0X7F000001/", TargetError::Host),
        ("https://a.0X1/", TargetError::Host),
        ("https://2130706433/", TargetError::Host),
        ("https://[::1/", TargetError::Port),
        ("https://[fe80::1%25eth0]/", TargetError::Host),
        ("https://a:0/", TargetError::Port),
        ("https://a:65536/", TargetError::Port),
        ("https://a:+1/", TargetError::Port),
        ("https://a/b/../c", TargetError::Path),
        ("https://a/b/./c", TargetError::Path),
        ("https://a/b/%2e%2E/c", TargetError::Path),
        ("https://a/..", TargetError::Path),
        ("https://a/b/..;x/c", TargetError::Path),
        ("https://a/b/.;/c", TargetError::Path),
        ("https://a/b/..;", TargetError::Path),
        ("https://a/b/%2e.;x=y/c", TargetError::Path),
        ("https://a/b/..%3bx/c", TargetError::Path),
        ("https://a/b%2f..%2fc", TargetError::Path),
        ("https://a/b/..%2Fc", TargetError::Path),
        ("https://a/b\\c", TargetError::Path),
        ("https://a/b%5cc", TargetError::Path),
        ("https://a/%00", TargetError::Path),
        ("https://a/%", TargetError::Path),
        ("https://a/%2", TargetError::Path),
        ("https://a/%zz", TargetError::Path),
        ("https://a/ b", TargetError::Path),
        ("https://a/\u{20ac}", TargetError::Path),
    ];
    for (text, error) in rows {
        assert_eq!(TargetUri::parse(text), Err(error), "{text}");
    }
    assert_eq!(TargetUri::parse(&format!("https://a/{}", "x".repeat(5000))), Err(TargetError::TooLong));
    for method in ["", "GET ", "GE T", "GET\r\n", "X-TRA:", &"X".repeat(33)] {
        assert_eq!(Method::parse(method), Err(TargetError::Method), "{method:?}");
    }
}

#[test]
fn a_prefix_ends_where_a_segment_ends() {
    let covers = |prefix: &str, uri: &str| UriPrefix::parse(prefix).unwrap().covers(&TargetUri::parse(uri).unwrap());
    for (prefix, uri) in [
        ("*", "https://anything/"),
        ("https://a", "https://a/b"),
        ("https://a/", "https://a/b"),
        ("https://a/b", "https://a/b"),
        ("https://a/b", "https://a/b/c"),
        ("https://a/b/", "https://a/b/c"),
        ("https://a/b", "https://A:443/b/c?d"),
    ] {
        assert!(covers(prefix, uri), "{prefix} {uri}");
    }
    for (prefix, uri) in [
        ("https://a/b", "https://a/bc"),
        ("https://a/b/", "https://a/b"),
        ("https://a", "https://a.evil.example/"),
        ("https://a", "https://a:8443/"),
        ("https://a", "http://a/"),
        ("https://a/b", "https://a/B"),
    ] {
        assert!(!covers(prefix, uri), "{prefix} {uri}");
    }
}

#[test]
fn a_proof_counts_once_for_each_asker_and_key() {
    let mut cache = ReplayCache::new(NOW, ReplayLimits::default());
    let (made, ends) = (NOW + time::Duration::SECOND, NOW + time::Duration::seconds(40));
    assert_eq!(cache.note("a", "k1", "j", made, ends, made), Ok(()));
    assert_eq!(cache.note("a", "k1", "j", made, ends, made), Err(ReplayError::Replayed));
    assert!(cache.has("a", "k1", "j") && !cache.has("b", "k1", "j") && !cache.has("a", "k9", "j"));
    assert_eq!(cache.note("b", "k1", "j", made, ends, made), Ok(()));
    assert_eq!(cache.note("a", "k2", "j", made, ends, made), Ok(()));
    assert_eq!(cache.note("a", "k1", "i", made, ends, made), Ok(()));
    assert_eq!(cache.len(), 4);
}

#[test]
fn a_proof_from_before_the_cache_began_is_refused() {
    let mut cache = ReplayCache::new(NOW, ReplayLimits::default());
    let ends = NOW + time::Duration::seconds(40);
    let mut note = |jti, made| cache.note("a", "k", jti, made, ends, NOW);
    assert_eq!(note("1", NOW - time::Duration::SECOND), Err(ReplayError::BeforeStart));
    // Times in proofs are whole seconds: this one may be from just before.
    assert_eq!(note("2", NOW.truncate_to_second()), Err(ReplayError::BeforeStart));
    assert_eq!(note("3", NOW.truncate_to_second() + time::Duration::SECOND), Ok(()));
}

#[test]
fn the_memory_of_proofs_is_bounded_and_what_is_over_makes_room() {
    let mut cache = ReplayCache::new(NOW, ReplayLimits { all: 3, one_asker: 2, one_key: 2 });
    let at = |seconds| NOW + time::Duration::seconds(seconds);
    assert_eq!(cache.note("a", "k", "1", at(1), at(10), at(1)), Ok(()));
    assert_eq!(cache.note("a", "k", "2", at(1), at(20), at(1)), Ok(()));
    assert_eq!(cache.note("a", "k", "3", at(1), at(20), at(1)), Err(ReplayError::Full), "one asker");
    assert_eq!(cache.note("b", "k", "1", at(1), at(20), at(1)), Ok(()));
    assert_eq!(cache.note("b", "k", "2", at(1), at(20), at(1)), Err(ReplayError::Full), "all");
    assert_eq!(cache.note("a", "k", "3", at(10), at(50), at(10)), Ok(()), "the first is over");
    assert_eq!(
        cache.note("a", "k", "1", at(1), at(10), at(5)),
        Err(ReplayError::BeforeStart),
        "the clock was set back"
    );
    assert_eq!(cache.note("a", "k", "2", at(1), at(20), at(10)), Err(ReplayError::Replayed));
    assert_eq!(cache.len(), 3);
}

#[test]
fn one_key_leaves_half_of_an_askers_room_to_others() {
    let mut cache = ReplayCache::new(NOW, ReplayLimits { all: 100, one_asker: 8, one_key: 2 });
    let at = |seconds| NOW + time::Duration::seconds(seconds);
    let mut note = |key: &str, jti: u32, now: OffsetDateTime| {
        cache.note("a", key, &jti.to_string(), now, now + time::Duration::seconds(10), now)
    };
    for jti in 0..4 {
        assert_eq!(note("greedy", jti, at(1)), Ok(()), "nobody else wants it: {jti}");
    }
    assert_eq!(note("greedy", 4, at(1)), Err(ReplayError::Full));
    assert_eq!(note("greedy", 3, at(1)), Err(ReplayError::Replayed), "what is full still remembers");
    for key in ["b", "c"] {
        for jti in 0..2 {
            assert_eq!(note(key, jti, at(1)), Ok(()), "its share: {key} {jti}");
        }
        assert_eq!(note(key, 2, at(1)), Err(ReplayError::Full), "no more than its share: {key}");
    }
    assert_eq!(note("d", 0, at(1)), Err(ReplayError::Full), "the asker's");
    assert_eq!(note("greedy", 5, at(11)), Ok(()), "what is over counts no more");
    assert_eq!(cache.len(), 1);
}

proptest! {
    #[test]
    fn a_target_in_normal_form_reads_back_as_itself(text in "(?i:https?)://[a-zA-Z0-9.\\[\\]:@-]{0,12}[ -~]{0,24}") {
        if let Ok(uri) = TargetUri::parse(&text) {
            prop_assert_eq!(TargetUri::parse(uri.as_str()).unwrap(), uri);
        }
    }
}
