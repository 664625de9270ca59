//! Tokens of a provider that is ours, with real keys, read from a file: where keys come from is `keys::tests`.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::datetime;

use super::*;
use crate::base::clock::ManualClock;
use crate::jwt::tests::Forger;
use crate::user::UserProof;

pub(super) const NOW: OffsetDateTime = datetime!(2026-11-23 12:00 UTC);
const ISSUER: &str = "https://login.example.com/realm";

/// An issuer and the keys it publishes in a file.
struct Scene {
    dir: tempfile::TempDir,
    key: Forger,
    settings: IssuerSettings,
    clock: Clock,
    hand: ManualClock,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (clock, hand) = Clock::manual(NOW);
        let settings = settings(KeySource::File(dir.path().join("jwks.json")));
        let key = Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
        let scene = Self { dir, key, settings, clock, hand };
        scene.publish(&json!({ "keys": [public(&scene.key, "k1")] }));
        scene
    }

    fn publish(&self, keys: &Value) {
        std::fs::write(self.path(), keys.to_string()).unwrap();
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("jwks.json")
    }

    fn issuers(&self) -> Issuers {
        let table = IssuerTable::from([(ISSUER.to_owned(), self.settings.clone())]);
        Issuers::new(table, &self.clock, &Entropy::system())
    }

    async fn check(&self, token: &str) -> Result<User, UserError> {
        self.issuers().user_of(token).await
    }

    fn sign(&self, claims: &Value) -> String {
        self.key.sign(r#"{"alg":"ES256","kid":"k1","typ":"JWT"}"#, &claims.to_string())
    }
}

pub(super) fn settings(keys: KeySource) -> IssuerSettings {
    IssuerSettings {
        audience: "tether".to_owned(),
        keys,
        algorithms: IssuerSettings::ALGORITHMS.to_vec(),
        authorized_parties: Vec::new(),
        max_age: None,
        max_ttl: None,
        ca_file: None,
    }
}

/// A key as it is published.
pub(super) fn public(key: &Forger, id: &str) -> Value {
    let mut members = key.jwk().to_json();
    members.insert("kid".to_owned(), id.into());
    members.insert("use".to_owned(), "sig".into());
    Value::Object(members)
}

pub(super) fn claims(issuer: &str) -> Value {
    let now = NOW.unix_timestamp();
    json!({ "iss": issuer, "sub": "248289761001", "aud": "tether", "iat": now - 60, "exp": now + 300 })
}

/// Sound claims with members set, or taken away by `null`.
fn claims_with(changes: Value) -> Value {
    let mut claims = claims(ISSUER);
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

fn label(checked: Result<User, UserError>) -> &'static str {
    checked.map_or_else(|error| error.as_str(), |_| "proven")
}

#[tokio::test]
async fn a_sound_token_proves_its_subject_until_it_expires() {
    let scene = Scene::new();
    let user = scene.check(&scene.sign(&claims_with(json!({ "sid": "s-1", "acr": "mfa" })))).await.unwrap();
    assert_eq!((user.issuer.as_str(), user.subject.as_str()), (ISSUER, "248289761001"));
    let expires_at = NOW + Duration::from_secs(300);
    let proof = UserProof::Token { expires_at, session: Some("s-1".into()), context: Some("mfa".into()) };
    assert_eq!(user.proof, proof);
    assert_eq!(user.to_string(), format!("{ISSUER}#248289761001"));
}

#[tokio::test]
async fn each_rule_about_claims_refuses_by_its_own_name() {
    let scene = Scene::new();
    let issuers = scene.issuers();
    let now = NOW.unix_timestamp();
    let long = "x".repeat(256);
    for (changes, expected) in [
        (json!({}), "proven"),
        // Who made it: to the letter, before anything else is looked at.
        (json!({ "iss": null }), "token_claim"),
        (json!({ "iss": [ISSUER] }), "token_claim"),
        (json!({ "iss": format!("{ISSUER}/") }), "token_issuer"),
        (json!({ "iss": ISSUER.to_uppercase() }), "token_issuer"),
        (json!({ "iss": "https://evil.example.com/realm" }), "token_issuer"),
        (json!({ "iss": "" }), "token_issuer"),
        // For whom: us, and us alone unless the issuer names the client.
        (json!({ "aud": ["tether"] }), "proven"),
        (json!({ "aud": ["tether", "tether"] }), "proven"),
        (json!({ "aud": null }), "token_claim"),
        (json!({ "aud": [] }), "token_claim"),
        (json!({ "aud": [1] }), "token_claim"),
        (json!({ "aud": { "tether": 1 } }), "token_claim"),
        (json!({ "aud": vec!["tether"; 65] }), "token_claim"),
        (json!({ "aud": "Tether" }), "token_audience"),
        (json!({ "aud": "tether2" }), "token_audience"),
        (json!({ "aud": ["mail", "calendar"] }), "token_audience"),
        (json!({ "aud": ["tether", "mail"] }), "token_authorized_party"),
        (json!({ "aud": ["tether", "mail"], "azp": "mail" }), "token_authorized_party"),
        (json!({ "aud": ["tether", "mail"], "azp": "tether" }), "proven"),
        (json!({ "aud": "tether", "azp": "mail" }), "proven"),
        (json!({ "azp": 1 }), "token_claim"),
        // When: no leeway at the end, ten seconds for an issuer whose clock is ahead.
        (json!({ "exp": null }), "token_claim"),
        (json!({ "exp": "soon" }), "token_claim"),
        (json!({ "exp": 1e300 }), "token_claim"),
        (json!({ "exp": now }), "token_expired"),
        (json!({ "exp": now - 1 }), "token_expired"),
        (json!({ "exp": -1 }), "token_expired"),
        (json!({ "exp": now + 1 }), "proven"),
        (json!({ "nbf": now + 10 }), "proven"),
        (json!({ "nbf": now + 11 }), "token_not_yet_valid"),
        (json!({ "iat": now + 10 }), "proven"),
        (json!({ "iat": now + 11 }), "token_not_yet_valid"),
        (json!({ "iat": "then" }), "token_claim"),
        (json!({ "iat": null }), "proven"),
        (json!({ "iat": 0 }), "proven"),
        // Whom.
        (json!({ "sub": null }), "token_claim"),
        (json!({ "sub": 7 }), "token_claim"),
        (json!({ "sub": "" }), "token_claim"),
        (json!({ "sub": long[..255] }), "proven"),
        (json!({ "sub": long }), "token_claim"),
        (json!({ "sub": "alice\nmallory" }), "token_claim"),
        (json!({ "sub": "alice\u{0}" }), "token_claim"),
        (json!({ "sub": "alice\u{202e}" }), "token_claim"),
        (json!({ "sub": " alice" }), "token_claim"),
        (json!({ "sub": "Alice Example" }), "proven"),
        (json!({ "sub": "spiffe://example.org/agent/a" }), "token_workload"),
        (json!({ "sid": 1 }), "token_claim"),
        (json!({ "acr": "\t" }), "token_claim"),
    ] {
        assert_eq!(label(issuers.user_of(&scene.sign(&claims_with(changes.clone()))).await), expected, "{changes}");
    }
}

#[tokio::test]
async fn each_rule_about_the_header_refuses_by_its_own_name() {
    let scene = Scene::new();
    let issuers = scene.issuers();
    let claims = claims(ISSUER).to_string();
    for (header, expected) in [
        (json!({ "alg": "ES256", "kid": "k1" }), "proven"),
        (json!({ "alg": "ES256", "kid": "k1", "typ": "at+jwt" }), "proven"),
        (json!({ "alg": "ES256", "kid": "k1", "typ": "application/AT+JWT" }), "proven"),
        (json!({ "alg": "ES256", "kid": "k1", "typ": "jwt" }), "proven"),
        (json!({ "alg": "ES256" }), "proven"), // the only key there is
        (json!({ "alg": "ES256", "kid": "k2" }), "token_key"),
        (json!({ "alg": "ES256", "kid": "" }), "token_key"),
        (json!({ "alg": "ES256", "kid": 1 }), "token_malformed"),
        (json!({ "kid": "k1" }), "token_malformed"),
        (json!({ "alg": "none", "kid": "k1" }), "token_malformed"),
        (json!({ "alg": "HS256", "kid": "k1" }), "token_malformed"),
        (json!({ "alg": "es256", "kid": "k1" }), "token_malformed"),
        (json!({ "alg": "ES256", "kid": "k1", "crit": ["exp"] }), "token_malformed"),
        (json!({ "alg": "ES384", "kid": "k1" }), "token_algorithm"),
        (json!({ "alg": "RS256", "kid": "k1" }), "token_key"), // allowed, and not a key for it
        // Ours, and others that are no word about who is there.
        (json!({ "alg": "ES256", "kid": "k1", "typ": "wit+jwt" }), "token_type"),
        (json!({ "alg": "ES256", "kid": "k1", "typ": "wpt+jwt" }), "token_type"),
        (json!({ "alg": "ES256", "kid": "k1", "typ": "dpop+jwt" }), "token_type"),
        (json!({ "alg": "ES256", "kid": "k1", "typ": "logout+jwt" }), "token_type"),
        (json!({ "alg": "ES256", "kid": "k1", "typ": "JOSE" }), "token_type"),
    ] {
        assert_eq!(label(issuers.user_of(&scene.key.sign(&header.to_string(), &claims)).await), expected, "{header}");
    }
}

#[tokio::test]
async fn only_a_signature_by_the_issuers_own_key_is_believed() {
    let scene = Scene::new();
    let issuers = scene.issuers();
    let good = scene.sign(&claims(ISSUER));
    let other = Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let (header, claims) = (r#"{"alg":"ES256","kid":"k1"}"#, claims(ISSUER).to_string());
    // A key in the token is not looked at.
    let embedded = json!({ "alg": "ES256", "kid": "k1", "jwk": other.jwk().to_json() }).to_string();
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let resigned = format!("{signed}.{}", other.sign(header, &claims).rsplit_once('.').unwrap().1);
    let unsigned = format!("{signed}.");
    let swapped = other.sign(header, &claims);
    let swapped = format!("{}.{signature}", swapped.rsplit_once('.').unwrap().0);
    for token in [&other.sign(header, &claims), &other.sign(&embedded, &claims), &resigned, &unsigned, &swapped] {
        assert_eq!(label(issuers.user_of(token).await), "token_signature", "{token}");
    }
    let twice = scene.key.sign(header, &claims.replacen('{', r#"{"sub":"mallory","#, 1));
    for token in ["", "a.b.c", "a.b", &format!("{good}.x"), &twice, &format!("{}{good}", "x".repeat(16 * 1024))] {
        assert_eq!(label(issuers.user_of(token).await), "token_malformed", "{token}");
    }
    assert_eq!(label(issuers.user_of(&good).await), "proven");
}

#[tokio::test]
async fn each_algorithm_is_believed_from_its_own_keys_where_the_issuer_may_use_it() {
    let mut scene = Scene::new();
    let keys: Vec<(Algorithm, Forger)> = vec![
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
    let published: Vec<Value> = keys.iter().map(|(algorithm, key)| public(key, algorithm.name())).collect();
    scene.publish(&json!({ "keys": published }));
    let usual = scene.issuers();
    scene.settings.algorithms = Algorithm::ALL.to_vec();
    let all = scene.issuers();
    for (algorithm, key) in &keys {
        let header = json!({ "alg": algorithm.name(), "kid": algorithm.name() }).to_string();
        let token = key.sign(&header, &claims(ISSUER).to_string());
        let is_usual = IssuerSettings::ALGORITHMS.contains(algorithm);
        assert_eq!(label(usual.user_of(&token).await), if is_usual { "proven" } else { "token_algorithm" });
        assert_eq!(label(all.user_of(&token).await), "proven", "{algorithm:?}");
        // Its name claimed by another kind of key.
        let header = json!({ "alg": "PS256", "kid": algorithm.name() }).to_string();
        let token = key.sign(&header, &claims(ISSUER).to_string());
        assert_eq!(label(all.user_of(&token).await) == "proven", *algorithm == Algorithm::Ps256, "{algorithm:?}");
    }
}

#[tokio::test]
async fn what_the_configuration_asks_beyond_is_asked() {
    let mut scene = Scene::new();
    let now = NOW.unix_timestamp();
    scene.settings.max_age = Some(Duration::from_secs(600));
    scene.settings.max_ttl = Some(Duration::from_secs(120));
    scene.settings.authorized_parties = vec!["shell".to_owned()];
    let token = |changes: Value| {
        let mut claims = claims_with(json!({ "azp": "shell" }));
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        scene.sign(&claims)
    };
    let issuers = scene.issuers();
    for (changes, expected) in [
        (json!({}), "proven"),
        (json!({ "iat": now - 610 }), "proven"),
        (json!({ "iat": now - 611 }), "token_too_old"),
        (json!({ "azp": "chat" }), "token_authorized_party"),
        (json!({ "azp": "tether" }), "token_authorized_party"),
        (json!({ "azp": "shell", "aud": ["tether", "mail"] }), "proven"),
    ] {
        assert_eq!(label(issuers.user_of(&token(changes.clone())).await), expected, "{changes}");
    }
    let no_time = scene.sign(&claims_with(json!({ "azp": "shell", "iat": null })));
    assert_eq!(label(issuers.user_of(&no_time).await), "token_claim");
    let no_party = scene.sign(&claims(ISSUER));
    assert_eq!(label(issuers.user_of(&no_party).await), "token_authorized_party");

    let user = issuers.user_of(&token(json!({}))).await.unwrap();
    assert_eq!(user.expires_at(), Some(NOW + Duration::from_secs(120)), "a long token proves for a short time");
    let user = issuers.user_of(&token(json!({ "exp": now + 60 }))).await.unwrap();
    assert_eq!(user.expires_at(), Some(NOW + Duration::from_secs(60)));
    scene.hand.advance(Duration::from_secs(301));
    assert_eq!(label(issuers.user_of(&token(json!({}))).await), "token_expired");
}

#[tokio::test]
async fn without_an_issuer_no_token_proves_anybody_and_what_a_stranger_calls_itself_is_shown_in_part() {
    let scene = Scene::new();
    let none = Issuers::new(IssuerTable::new(), &scene.clock, &Entropy::system());
    assert_eq!(label(none.user_of(&scene.sign(&claims(ISSUER))).await), "no_issuers");
    let odd = format!("https://evil.example.com/\u{1b}[2J\n{}", "x".repeat(10_000));
    let error = scene.check(&scene.sign(&claims(&odd))).await.unwrap_err();
    let shown = error.to_string();
    assert!(shown.len() < 400 && !shown.contains(['\n', '\u{1b}']), "{shown}");
}

#[tokio::test]
async fn keys_in_a_file_are_read_again_when_it_changes_and_a_broken_file_proves_nobody() {
    let scene = Scene::new();
    let issuers = scene.issuers();
    let old = scene.sign(&claims(ISSUER));
    assert_eq!(label(issuers.user_of(&old).await), "proven");

    let next = Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let new = next.sign(r#"{"alg":"ES256","kid":"k2"}"#, &claims(ISSUER).to_string());
    assert_eq!(label(issuers.user_of(&new).await), "token_key");
    scene.publish(&json!({ "keys": [public(&scene.key, "k1"), public(&next, "k2")] }));
    assert_eq!(label(issuers.user_of(&new).await), "proven");
    assert_eq!(label(issuers.user_of(&old).await), "proven");
    // As packages and secrets are updated: another file takes its place.
    let beside = scene.dir.path().join("new");
    std::fs::write(&beside, json!({ "keys": [public(&next, "k2")] }).to_string()).unwrap();
    std::fs::rename(&beside, scene.path()).unwrap();
    assert_eq!(label(issuers.user_of(&old).await), "token_key");
    assert_eq!(label(issuers.user_of(&new).await), "proven");

    for broken in ["", "{", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[]}"#, r#"{"keys":[],"keys":[]}"#] {
        std::fs::write(scene.path(), broken).unwrap();
        let error = issuers.user_of(&new).await.unwrap_err();
        assert!(error.as_str() == "keys_unavailable" && error.is_temporary(), "{broken}");
    }
    std::fs::remove_file(scene.path()).unwrap();
    assert_eq!(label(issuers.user_of(&new).await), "keys_unavailable");
    scene.publish(&json!({ "keys": [public(&next, "k2")] }));
    assert_eq!(label(issuers.user_of(&new).await), "proven");
}

#[test]
fn of_a_set_the_keys_for_signatures_are_taken_and_others_left_out() {
    let (ec, rsa) = (Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING), Forger::rsa(&RSA_PKCS1_SHA256));
    let with = |key: &Forger, changes: Value| {
        let mut members = public(key, "k");
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(members.as_object_mut().unwrap().remove(name)),
                value => members[name] = value.clone(),
            }
        }
        members
    };
    let header = |algorithm: &str, id: Option<&str>| {
        let mut header = json!({ "alg": algorithm });
        if let Some(id) = id {
            header["kid"] = id.into();
        }
        Jws::parse(&ec.sign(&header.to_string(), "{}")).unwrap().header().clone()
    };
    let counts = |keys: Value, algorithm: &str, id: Option<&str>| match KeySet::parse(
        json!({"keys": keys}).to_string().as_bytes(),
    ) {
        Ok(set) => set.for_token(&header(algorithm, id)).count(),
        Err(_) => 99,
    };
    let symmetric = json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "k", "alg": "HS256" });
    for (keys, algorithm, id, expected) in [
        (json!([with(&ec, json!({}))]), "ES256", Some("k"), 1),
        (json!([with(&ec, json!({ "use": null }))]), "ES256", Some("k"), 1),
        (json!([with(&ec, json!({ "use": "enc" }))]), "ES256", Some("k"), 99),
        (json!([with(&ec, json!({ "key_ops": ["verify"] }))]), "ES256", Some("k"), 1),
        (json!([with(&ec, json!({ "key_ops": ["deriveKey"] }))]), "ES256", Some("k"), 99),
        (json!([with(&ec, json!({ "alg": "ES256" }))]), "ES256", Some("k"), 1),
        (json!([with(&ec, json!({ "alg": "ES384" }))]), "ES256", Some("k"), 99),
        (json!([with(&rsa, json!({ "alg": "PS256" }))]), "RS256", Some("k"), 0),
        (json!([with(&rsa, json!({ "alg": "PS256" }))]), "PS256", Some("k"), 1),
        (json!([with(&rsa, json!({}))]), "RS256", Some("other"), 0),
        (json!([with(&ec, json!({ "x": "AA" }))]), "ES256", Some("k"), 99),
        (json!([symmetric]), "ES256", Some("k"), 99),
        (json!([symmetric, with(&ec, json!({}))]), "ES256", Some("k"), 1),
        (json!([with(&ec, json!({ "kid": null }))]), "ES256", None, 1),
        (json!([with(&ec, json!({ "kid": null }))]), "ES256", Some("k"), 0),
        (json!([with(&ec, json!({})), with(&rsa, json!({}))]), "ES256", None, 1),
        (json!([with(&ec, json!({})), with(&ec, json!({ "kid": "l" }))]), "ES256", None, 0),
        (json!(vec![with(&ec, json!({})); 129]), "ES256", Some("k"), 99),
        (json!([1, "a", with(&ec, json!({}))]), "ES256", Some("k"), 1),
    ] {
        assert_eq!(counts(keys.clone(), algorithm, id), expected, "{algorithm} {id:?} {keys}");
    }
}
