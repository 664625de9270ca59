//! The test vectors of `docs/session-profile.md`: made here once, checked in, and judged here each time.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::call::agree_offline;
use super::*;
use crate::jwt::Jwk;
use crate::policy::Effect;
use crate::proof::{BodyDigest, Method, ProofTarget, TargetUri};
use crate::wit::WitAuthorities;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/session-profile/vectors.json");
const NOW: i64 = 1_767_268_800; // 2026-01-01T12:00:00Z
const NODE: &str = "0123456789abcdef0123456789abcdef";
const SID: &str = "0123456789abcdef0123456789abcdef.00112233445566778899aabbccddeeff";
const AGENT: &str = "spiffe://example.org/agent/refunds";
const URI: &str = "https://tool.example.com/api/refund";
#[derive(Deserialize)]
struct Vectors {
    leeway: u64,
    trust_domain: String,
    wit_keys: Value,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    now: i64,
    headers: std::collections::HashMap<String, String>,
    request: Request,
    result: Outcome,
}

#[derive(Deserialize)]
struct Request {
    method: String,
    uri: String,
    #[serde(default)]
    body_sha256: Option<String>,
    #[serde(default)]
    tool: String,
    #[serde(default)]
    arguments_sha256: Option<String>,
    #[serde(default)]
    effect: Option<String>,
    #[serde(default)]
    scopes: Vec<String>,
    #[serde(default)]
    min_binding: u8,
    #[serde(default)]
    require_session: bool,
}

#[derive(Deserialize, Debug, PartialEq)]
struct Outcome {
    valid: bool,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    spiffe_id: String,
    #[serde(default)]
    session: String,
    #[serde(default)]
    subject: String,
    #[serde(default)]
    effect: String,
    #[serde(default)]
    scopes: Vec<String>,
}

impl Outcome {
    fn refused(inactive: &Inactive) -> Self {
        Self {
            valid: false,
            reason: inactive.as_str().to_owned(),
            spiffe_id: String::new(),
            session: String::new(),
            subject: String::new(),
            effect: String::new(),
            scopes: Vec::new(),
        }
    }
}

fn authorities(domain: &str, keys: &Value) -> WitAuthorities {
    let keys = keys["keys"].as_array().unwrap().iter().map(|key| {
        let key = key.as_object().unwrap();
        assert_eq!(key["use"], "wit-svid");
        (key["kid"].as_str().unwrap().to_owned(), Jwk::from_json(key).unwrap())
    });
    WitAuthorities::new(TrustDomain::parse(domain).unwrap(), keys)
}

/// What a verifier that knows the keys and asks nobody says.
fn judge(case: &Case, keys: &WitAuthorities, leeway: u64) -> Result<Outcome, Inactive> {
    let digest = |text: &Option<String>| text.as_deref().map(|text| BodyDigest::parse(text).unwrap());
    let request = &case.request;
    let target = ProofTarget {
        method: Method::parse(&request.method).unwrap(),
        uri: TargetUri::parse(&request.uri).unwrap(),
        body: digest(&request.body_sha256),
    };
    let call = Call {
        tool: request.tool.clone(),
        arguments: digest(&request.arguments_sha256),
        effect: request.effect.as_deref().map(|effect| Effect::parse(effect).unwrap()),
        scopes: request.scopes.clone(),
        min_binding: request.min_binding,
        require_session: request.require_session,
        ..Call::of(target)
    };
    let header = |name: &str| case.headers.get(name).map(String::as_str);
    let presented = Presented {
        wit: header("Workload-Identity-Token").ok_or(Inactive::NoProof)?,
        proof: header("Authorization").and_then(|value| value.strip_prefix("WPT ")).ok_or(Inactive::NoProof)?,
        txn_token: header("Txn-Token"),
    };
    let expected = Expected { method: &call.target.method, uri: &call.target.uri, body: call.target.body };
    let now = OffsetDateTime::from_unix_timestamp(case.now).unwrap();
    let known = |domain: &TrustDomain| (domain == keys.trust_domain()).then_some(keys);
    let checked = check_wpt(presented, expected, known, now, std::time::Duration::from_secs(leeway))?;
    let of_wit = WitSession::of(checked.wit.claims()).map_err(|_| Inactive::Claim("tether"))?;
    let spiffe_id = checked.wit.spiffe_id().to_string();
    let Some((wit, proof)) = of_wit.zip(checked.session) else {
        call.without_session()?;
        let none = Outcome::refused(&Inactive::NoProof);
        return Ok(Outcome { valid: true, reason: String::new(), spiffe_id, ..none });
    };
    let agreed = agree_offline(&wit, checked.wit.spiffe_id(), &proof, &call)?;
    call.is_bound(wit.binding)?;
    Ok(Outcome {
        valid: true,
        reason: String::new(),
        spiffe_id,
        session: wit.sid,
        subject: proof.sub,
        effect: agreed.effect.as_str().to_owned(),
        scopes: agreed.scopes,
    })
}

#[test]
fn every_vector_of_the_profile_is_judged_as_it_says() {
    let vectors: Vectors = serde_json::from_str(&std::fs::read_to_string(FILE).unwrap()).unwrap();
    let keys = authorities(&vectors.trust_domain, &vectors.wit_keys);
    assert!(vectors.cases.len() > 30);
    for case in &vectors.cases {
        let judged = judge(case, &keys, vectors.leeway);
        let outcome = judged.unwrap_or_else(|inactive| Outcome::refused(&inactive));
        assert_eq!(outcome, case.result, "{}", case.name);
    }
}

#[test]
fn a_person_is_asked_about_what_the_agent_says_and_not_about_the_words_of_whoever_checks() {
    let digest = BodyDigest::of(b"arguments");
    let claims = |tool: Option<&str>, arguments: Option<BodyDigest>| -> SessionClaims {
        let tether = json!({
            "sid": SID, "purpose": "p", "boundary": "task", "effect": "write", "tool": tool,
            "arguments_sha256": arguments.map(|digest| digest.encoded()),
        });
        serde_json::from_value(json!({ "sub": AGENT, "txn": "t", "tether": tether })).unwrap()
    };
    let agreed = |tool: &str, arguments: &str| Agreed {
        tool: tool.to_owned(),
        rpc: String::new(),
        arguments_sha256: arguments.to_owned(),
        effect: Effect::Irreversible,
        scopes: Vec::new(),
    };
    assert!(is_said_by(&claims(None, None), &agreed("", "")));
    assert!(is_said_by(&claims(Some("refund"), Some(digest)), &agreed("refund", &digest.hex())));
    assert!(!is_said_by(&claims(None, None), &agreed("refund", "")));
    assert!(!is_said_by(&claims(Some("refund"), None), &agreed("refund", &digest.hex())));
}

/// A key that is forgotten once the file is written.
struct Key(EcdsaKeyPair);

impl Key {
    fn new(pkcs8: &[u8]) -> Self {
        Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).unwrap())
    }

    fn jwk(&self) -> Value {
        let point = self.0.public_key().as_ref();
        json!({
            "kty": "EC", "crv": "P-256",
            "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..65]),
        })
    }

    fn sign(&self, header: &str, claims: &str) -> String {
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.0.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn hash(text: &str) -> String {
    BodyDigest::of(text.as_bytes()).encoded()
}

/// `base` with some members replaced, or taken away by `null`.
fn with(base: &Value, changes: &Value) -> Value {
    let mut members: Map<String, Value> = base.as_object().unwrap().clone();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(members.remove(name)),
            Value::Object(_) if members.get(name).is_some_and(Value::is_object) => {
                let inner = with(&members[name], value);
                members.insert(name.clone(), inner);
            }
            value => drop(members.insert(name.clone(), value.clone())),
        }
    }
    Value::Object(members)
}

/// Makes the file anew: `cargo test --lib verify::tests -- --ignored`.
#[test]
#[ignore = "writes docs/session-profile/vectors.json"]
#[allow(clippy::too_many_lines, reason = "one table")]
fn the_vectors_are_made() {
    let new_key = || {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        Key::new(pkcs8.as_ref())
    };
    let (authority, key, other) = (new_key(), new_key(), new_key());
    let thumbprint = |key: &Key| Jwk::from_json(key.jwk().as_object().unwrap()).unwrap().thumbprint();
    let kid = thumbprint(&authority);
    let published = with(&authority.jwk(), &json!({ "use": "wit-svid", "kid": kid }));
    let cnf = json!({ "jwk": with(&key.jwk(), &json!({ "alg": "ES256" })) });
    let wit_header = json!({ "alg": "ES256", "kid": kid, "typ": "wit+jwt" });
    let wit_claims = json!({
        "sub": AGENT, "exp": NOW + 300, "iat": NOW - 5, "jti": format!("{NODE}.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
        "cnf": cnf,
        "tether": {
            "sid": SID, "target": "https://tool.example.com/api", "scope": "refund:read refund:write",
            "one_use": false, "binding": 3,
        },
    });
    let proof_header = json!({ "alg": "ES256", "typ": "wpt+jwt" });
    let proof_claims = json!({
        "aud": URI, "exp": NOW + 29, "iat": NOW - 1, "jti": "5f1d0c2e9b7a4c3d8e6f102132435465", "htm": "POST",
        "sub": "alice", "sub_id": { "format": "iss_sub", "iss": "https://login.example.org", "sub": "alice" },
        "act": { "sub": AGENT }, "scope": "refund:write", "txn": "case-4711",
        "tether": { "sid": SID, "purpose": "refund", "boundary": "task", "effect": "write" },
    });
    let wit_of = |claims: &Value| authority.sign(&wit_header.to_string(), &claims.to_string());
    let wit = wit_of(&wit_claims);
    let proof_for = |wit: &str, changes: &Value| {
        let bound = with(&proof_claims, &json!({ "wth": hash(wit) }));
        key.sign(&proof_header.to_string(), &with(&bound, changes).to_string())
    };
    let headers =
        |wit: &str, proof: &str| json!({ "Workload-Identity-Token": wit, "Authorization": format!("WPT {proof}") });
    let request = json!({ "method": "POST", "uri": URI });
    let yes = json!({
        "valid": true, "spiffe_id": AGENT, "session": SID, "subject": "alice", "effect": "write",
        "scopes": ["refund:write"],
    });
    let no = |reason: &str| json!({ "valid": false, "reason": reason });
    let mut cases = Vec::new();
    let mut case = |name: &str, now: i64, headers: Value, request: Value, result: Value| {
        cases.push(json!({ "name": name, "now": now, "headers": headers, "request": request, "result": result }));
    };
    // With a changed proof, a changed request and a changed WIT.
    let good = headers(&wit, &proof_for(&wit, &json!({})));
    let changed = |changes: Value| headers(&wit, &proof_for(&wit, &changes));
    let of_wit = |changes: Value| {
        let wit = wit_of(&with(&wit_claims, &changes));
        headers(&wit, &proof_for(&wit, &json!({})))
    };
    let asked = |changes: Value| with(&request, &changes);

    case("a request of a session", NOW, good.clone(), request.clone(), yes.clone());
    case("two seconds ahead of the clock", NOW - 3, good.clone(), request.clone(), yes.clone());
    case("within the leeway after its end", NOW + 38, good.clone(), request.clone(), yes.clone());
    case("past its end and the leeway", NOW + 39, good.clone(), request.clone(), no("proof_expired"));
    case("from further ahead than the leeway", NOW - 12, good.clone(), request.clone(), no("proof_expired"));
    case(
        "a life longer than proofs have",
        NOW,
        changed(json!({ "exp": NOW + 3600 })),
        request.clone(),
        no("proof_expired"),
    );
    case("another method", NOW, good.clone(), asked(json!({ "method": "PUT" })), no("another_method"));
    case("the method in lower case", NOW, good.clone(), asked(json!({ "method": "post" })), no("another_method"));
    case(
        "another path",
        NOW,
        good.clone(),
        asked(json!({ "uri": "https://tool.example.com/api/refunds" })),
        no("another_uri"),
    );
    case(
        "another host",
        NOW,
        good.clone(),
        asked(json!({ "uri": "https://other.example.com/api/refund" })),
        no("another_uri"),
    );
    case(
        "the same URI, spelled in another way",
        NOW,
        changed(json!({ "aud": "HTTPS://Tool.Example.COM:443/api/%72efund" })),
        request.clone(),
        yes.clone(),
    );
    case(
        "query and fragment do not count",
        NOW,
        good.clone(),
        asked(json!({ "uri": format!("{URI}?id=1#a") })),
        yes.clone(),
    );
    case(
        "a dot segment in the proof",
        NOW,
        changed(json!({ "aud": "https://tool.example.com/api/x/../refund" })),
        request.clone(),
        no("another_uri"),
    );
    case(
        "below the target by characters and not by segments",
        NOW,
        changed(json!({ "aud": "https://tool.example.com/apikeys" })),
        asked(json!({ "uri": "https://tool.example.com/apikeys" })),
        no("target"),
    );
    case(
        "the target itself",
        NOW,
        changed(json!({ "aud": "https://tool.example.com/api" })),
        asked(json!({ "uri": "https://tool.example.com/api" })),
        yes.clone(),
    );
    case(
        "a scope that the token has and the proof has",
        NOW,
        good.clone(),
        asked(json!({ "scopes": ["refund:write"] })),
        yes.clone(),
    );
    case(
        "a scope that the token has and the proof has not",
        NOW,
        good.clone(),
        asked(json!({ "scopes": ["refund:read"] })),
        no("scope"),
    );
    case(
        "a scope in the proof that the token has not",
        NOW,
        changed(json!({ "scope": "admin" })),
        request.clone(),
        no("scope"),
    );
    case("a binding level that suffices", NOW, good.clone(), asked(json!({ "min_binding": 3 })), yes.clone());
    case("a binding level that does not suffice", NOW, good.clone(), asked(json!({ "min_binding": 4 })), no("binding"));
    let body = hash("{\"amount\":1}");
    let covered = changed(json!({ "body_sha256": body }));
    case("a body that is covered", NOW, covered.clone(), asked(json!({ "body_sha256": body })), yes.clone());
    case("another body", NOW, covered, asked(json!({ "body_sha256": hash("{\"amount\":9}") })), no("another_body"));
    case("a body that is not covered", NOW, good.clone(), asked(json!({ "body_sha256": body })), no("another_body"));
    let txn = |headers: Value| with(&headers, &json!({ "Txn-Token": "a.transaction.token" }));
    let tth = json!({ "tth": hash("a.transaction.token") });
    case("a transaction token that is covered", NOW, txn(changed(tth.clone())), request.clone(), yes.clone());
    case(
        "a transaction token that is not covered",
        NOW,
        txn(good.clone()),
        request.clone(),
        no("proof_of_another_token"),
    );
    case("a transaction token that is not there", NOW, changed(tth), request.clone(), no("proof_of_another_token"));
    case(
        "another kind of token is covered",
        NOW,
        changed(json!({ "oth": { "x": "y" } })),
        request.clone(),
        no("proof_of_another_token"),
    );
    case(
        "the hash of another WIT",
        NOW,
        changed(json!({ "wth": hash("x") })),
        request.clone(),
        no("proof_of_another_token"),
    );
    case(
        "a proof of no session with the WIT of one",
        NOW,
        changed(json!({ "tether": null, "sub": null, "sub_id": null, "act": null, "scope": null, "txn": null })),
        request.clone(),
        no("proof_of_another_token"),
    );
    case(
        "a proof of another session",
        NOW,
        changed(json!({ "tether": { "sid": format!("{NODE}.ff") } })),
        request.clone(),
        no("proof_of_another_token"),
    );
    case(
        "another agent acts than the WIT is of",
        NOW,
        changed(json!({ "act": { "sub": "spiffe://example.org/agent/other" } })),
        request.clone(),
        no("proof_of_another_token"),
    );
    case(
        "an agent that another one delegated to",
        NOW,
        changed(json!({ "act": { "sub": AGENT, "act": { "sub": "spiffe://example.org/agent/desk" } } })),
        request.clone(),
        yes.clone(),
    );
    case(
        "an agent that acts for nobody",
        NOW,
        changed(json!({ "sub": AGENT, "sub_id": null, "act": null })),
        request.clone(),
        with(&yes, &json!({ "subject": AGENT })),
    );
    let tool = changed(json!({ "tether": { "tool": "refund", "arguments_sha256": body } }));
    case(
        "tool and arguments that asker and proof agree on",
        NOW,
        tool.clone(),
        asked(json!({ "tool": "refund", "arguments_sha256": body })),
        yes.clone(),
    );
    case("tool and arguments that the proof alone names", NOW, tool.clone(), request.clone(), yes.clone());
    case("another tool", NOW, tool.clone(), asked(json!({ "tool": "delete" })), no("tool"));
    case("other arguments", NOW, tool, asked(json!({ "arguments_sha256": hash("x") })), no("arguments"));
    case(
        "the asker knows that it is graver",
        NOW,
        good.clone(),
        asked(json!({ "effect": "irreversible" })),
        with(&yes, &json!({ "effect": "irreversible" })),
    );
    case("the asker says that it is less grave", NOW, good.clone(), asked(json!({ "effect": "read" })), yes.clone());
    case(
        "a write that is said to be a read",
        NOW,
        changed(json!({ "tether": { "effect": "read" } })),
        request.clone(),
        no("effect"),
    );
    case(
        "an effect that nobody knows",
        NOW,
        changed(json!({ "tether": { "effect": "none" } })),
        request.clone(),
        no("effect"),
    );
    case("an unknown claim is ignored", NOW, changed(json!({ "x-more": 1 })), request.clone(), yes.clone());
    case("a WIT that has expired", NOW, of_wit(json!({ "exp": NOW - 10 })), request.clone(), no("wit_invalid"));
    case("a WIT within the leeway after its end", NOW, of_wit(json!({ "exp": NOW - 9 })), request.clone(), yes.clone());
    case("a WIT with an audience", NOW, of_wit(json!({ "aud": URI })), request.clone(), no("wit_invalid"));
    case(
        "a WIT whose subject is not a SPIFFE ID",
        NOW,
        of_wit(json!({ "sub": "alice" })),
        request.clone(),
        no("wit_invalid"),
    );
    case(
        "a WIT of another trust domain",
        NOW,
        of_wit(json!({ "sub": "spiffe://example.com/a" })),
        request.clone(),
        no("wit_invalid"),
    );
    case("a WIT without a key", NOW, of_wit(json!({ "cnf": null })), request.clone(), no("wit_invalid"));
    let unknown = authority.sign(&with(&wit_header, &json!({ "kid": "x" })).to_string(), &wit_claims.to_string());
    case(
        "a WIT by an unknown key",
        NOW,
        headers(&unknown, &proof_for(&unknown, &json!({}))),
        request.clone(),
        no("wit_invalid"),
    );
    let forged = other.sign(&wit_header.to_string(), &wit_claims.to_string());
    case(
        "a WIT that somebody else signed",
        NOW,
        headers(&forged, &proof_for(&forged, &json!({}))),
        request.clone(),
        no("wit_invalid"),
    );
    let typed = authority.sign(&with(&wit_header, &json!({ "typ": "JWT" })).to_string(), &wit_claims.to_string());
    case(
        "a WIT of another type",
        NOW,
        headers(&typed, &proof_for(&typed, &json!({}))),
        request.clone(),
        no("wit_invalid"),
    );
    let bound = with(&proof_claims, &json!({ "wth": hash(&wit) })).to_string();
    let header = |changes: Value| with(&proof_header, &changes).to_string();
    case(
        "a proof that somebody else signed",
        NOW,
        headers(&wit, &other.sign(&header(json!({})), &bound)),
        request.clone(),
        no("proof_invalid"),
    );
    case(
        "a proof of another type",
        NOW,
        headers(&wit, &key.sign(&header(json!({ "typ": "JWT" })), &bound)),
        request.clone(),
        no("proof_invalid"),
    );
    case(
        "a proof by another algorithm",
        NOW,
        headers(&wit, &key.sign(&header(json!({ "alg": "ES384" })), &bound)),
        request.clone(),
        no("proof_invalid"),
    );
    case(
        "a proof that demands an extension",
        NOW,
        headers(&wit, &key.sign(&header(json!({ "crit": ["b64"] })), &bound)),
        request.clone(),
        no("proof_invalid"),
    );
    let own_key = with(&proof_header, &json!({ "jwk": other.jwk() })).to_string();
    case(
        "a proof that brings its own key",
        NOW,
        headers(&wit, &other.sign(&own_key, &bound)),
        request.clone(),
        no("proof_invalid"),
    );
    let unsigned = format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode("{\"alg\":\"none\",\"typ\":\"wpt+jwt\"}"),
        URL_SAFE_NO_PAD.encode(&bound)
    );
    case("a proof without a signature", NOW, headers(&wit, &unsigned), request.clone(), no("proof_invalid"));
    let twice = bound.replacen('{', "{\"htm\":\"PUT\",", 1);
    case(
        "a claim that is there twice",
        NOW,
        headers(&wit, &key.sign(&header(json!({})), &twice)),
        request.clone(),
        no("proof_invalid"),
    );
    case("no method in the proof", NOW, changed(json!({ "htm": null })), request.clone(), no("proof_invalid"));
    case("no id in the proof", NOW, changed(json!({ "jti": null })), request.clone(), no("proof_invalid"));
    case("a malformed session claim", NOW, changed(json!({ "tether": 1 })), request.clone(), no("proof_invalid"));
    case("a WIT alone", NOW, json!({ "Workload-Identity-Token": wit }), request.clone(), no("no_proof"));
    case(
        "a WIT as a bearer token",
        NOW,
        json!({ "Authorization": format!("Bearer {wit}") }),
        request.clone(),
        no("no_proof"),
    );
    let process = wit_of(&with(&wit_claims, &json!({ "tether": null })));
    let nothing = json!({ "tether": null, "sub": null, "sub_id": null, "act": null, "scope": null, "txn": null });
    let outside = headers(&process, &proof_for(&process, &nothing));
    case(
        "a request in no session",
        NOW,
        outside.clone(),
        request.clone(),
        json!({ "valid": true, "spiffe_id": AGENT }),
    );
    case(
        "a request in no session where one is required",
        NOW,
        outside,
        asked(json!({ "require_session": true })),
        no("no_session"),
    );

    let file = json!({
        "version": 1, "leeway": 10, "trust_domain": "example.org", "wit_keys": { "keys": [published] },
        "thumbprint": thumbprint(&key), "cases": cases,
    });
    std::fs::create_dir_all(std::path::Path::new(FILE).parent().unwrap()).unwrap();
    std::fs::write(FILE, format!("{file:#}\n")).unwrap();
}
