//! Proofs that were copied on their way, and proofs that a workload forges with a key of its own.

use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tether::jwt::{Jws, read_private_jwk};

use super::Attack;
use super::tokens::{Verifier, headers};
use crate::orders::{Headers, Wit};
use crate::scene::{Process, Scene, URI};
use crate::target::Side;

const BOTH: &[Side] = &[Side::Naive, Side::Tether];

pub const ATTACKS: &[Attack] = &[
    Attack::new("a proof is shown again", replayed).on(BOTH),
    Attack::new("a proof is shown with another method", other_method).on(BOTH),
    Attack::new("a proof is shown with another URI", other_uri).on(BOTH),
    Attack::new("a proof is shown half a minute and the leeway later", late).on(BOTH),
    Attack::new("a proof is shown after its process exited", after_exit),
    Attack::new("a proof is shown after its process executed another program", after_exec),
    Attack::new("a proof is shown after an operator revoked what it stands on", after_revocation).on(BOTH),
    Attack::new("a copied WIT key makes proofs after its process exited", copied_key_after_exit),
    Attack::new("a proof is shown with the WIT of another", other_wit).on(&[Side::Tether]),
    Attack::new("a proof is shown on another host of the trust domain", other_host).on(&[Side::Tether]),
    Attack::new("a proof is shown that was made before the agent was started", before_start).on(&[Side::Tether]),
    Attack::new("a workload forges proofs with the key of its WIT", forged).on(&[Side::Tether]),
];

pub const LIMITS: &[Attack] =
    &[Attack::new("KNOWN LIMIT: a proof works once for who shows it first, for the one request it is for", first)
        .on(BOTH)];

/// Of a process that is over: whether it was looked at first, or the ledger was told first.
const OVER: &str = "ended|revoked";

/// A request that the victim has proven, and that nobody has seen yet.
fn proven(verifier: &Verifier) -> (Process, Headers) {
    let mut victim = verifier.scene.victim();
    let wit = victim.hold_wit();
    let headers = victim.prove(&wit.key).unwrap();
    (victim, headers)
}

fn replayed(side: Side) {
    let mut verifier = Verifier::on(side);
    let (_victim, headers) = proven(&verifier);
    verifier.accepts_request(&headers);
    verifier.refuses_request(&headers, "replayed");
}

fn other_method(side: Side) {
    let mut verifier = Verifier::on(side);
    let (_victim, headers) = proven(&verifier);
    verifier.refuses_at("DELETE", URI, &headers, "another_method");
    verifier.accepts_request(&headers);
}

fn other_uri(side: Side) {
    let mut verifier = Verifier::on(side);
    let (_victim, headers) = proven(&verifier);
    for other in ["https://tool.example.com/refund", "https://tool.example.com/charge/", "https://tool.example.com/"] {
        verifier.refuses_at("POST", other, &headers, "another_uri");
    }
    verifier.accepts_request(&headers);
}

fn late(side: Side) {
    let mut verifier = Verifier::on(side);
    let (_victim, headers) = proven(&verifier);
    verifier.scene.agent().clock().advance(Duration::from_secs(41));
    verifier.refuses_request(&headers, "proof_expired");
}

fn after_exit(side: Side) {
    let mut verifier = Verifier::on(side);
    let (mut victim, headers) = proven(&verifier);
    victim.end();
    verifier.refuses_request(&headers, OVER);
}

fn after_exec(side: Side) {
    let mut verifier = Verifier::on(side);
    let (mut victim, headers) = proven(&verifier);
    victim.exec(verifier.scene.stage().thief());
    verifier.refuses_request(&headers, OVER);
}

fn after_revocation(side: Side) {
    let mut verifier = Verifier::on(side);
    let (mut victim, headers) = proven(&verifier);
    verifier.scene.revoke("victim");
    verifier.refuses_request(&headers, "revoked");
    let anew = victim.hold_wit();
    let anew = victim.prove(&anew.key).unwrap();
    verifier.accepts_request(&anew);
}

/// The key was in the workload, which is what `FetchWITSVID` is for. The thief goes on making proofs with it.
fn copied_key_after_exit(side: Side) {
    let mut verifier = Verifier::on(side);
    let mut victim = verifier.scene.victim();
    let thief = Forger::new(victim.fetch_wit());
    let now = verifier.scene.agent().clock().now().unix_timestamp();
    let request = |jti: &str| thief.request(&thief.named_proof(now, jti));
    verifier.accepts_request(&request("while the process lives"));
    victim.end();
    verifier.refuses_request(&request("after it ended"), OVER);
}

fn other_wit(side: Side) {
    let mut verifier = Verifier::on(side);
    let (_victim, proven) = proven(&verifier);
    let wit = verifier.scene.thief().hold_wit().document;
    let mixed = headers(&[("Workload-Identity-Token", &wit), ("Authorization", &proven["Authorization"])]);
    verifier.refuses_request(&mixed, "proof_invalid");
}

/// It knows the key that signed the WIT, and not whether the WIT stands.
fn other_host(side: Side) {
    let (here, mut there) = Scene::two_hosts(side);
    let mut victim = here.victim();
    let wit = victim.hold_wit();
    let headers = victim.prove(&wit.key).unwrap();
    assert!(here.tool().check(&headers).active);
    assert_eq!(there.tool().check(&headers).reason, "another_node");
    there.recorded("another_node");
}

/// Nobody knows any more which proofs of that time were shown already.
fn before_start(side: Side) {
    let mut verifier = Verifier::on(side);
    let mut victim = verifier.scene.victim();
    let (wit, now) = (victim.fetch_wit(), verifier.scene.agent().clock().now().unix_timestamp());
    let forger = Forger::new(wit);
    let shown = forger.request(&forger.proof(now));
    verifier.accepts_request(&shown);
    verifier.scene.restart();
    verifier.refuses_request(&shown, "before_start");
}

/// The thief is faster, or keeps the request from arriving. The owner of the proof is told.
fn first(side: Side) {
    let mut verifier = Verifier::on(side);
    let (_victim, headers) = proven(&verifier);
    verifier.accepts_request(&headers);
    // The owner's own request.
    verifier.refuses_request(&headers, "replayed");
}

/// Whoever has a WIT whose key is its own can make any bytes up for it. What must hold all the same is what a proof is.
fn forged(side: Side) {
    let mut verifier = Verifier::on(side);
    let mut victim = verifier.scene.victim();
    let forger = Forger::new(victim.fetch_wit());
    let now = verifier.scene.agent().clock().now().unix_timestamp();
    let honest = forger.proof(now);
    let claims = |name: &str, value: Value| {
        let mut claims = forger.claims(now);
        claims[name] = value;
        forger.sign(&json!({ "typ": "wpt+jwt", "alg": "ES256" }), &claims)
    };
    let header = |header: Value| forger.sign(&header, &forger.claims(now));
    let own_key = forger.public.clone();
    let rows = [
        ("another token's `wth`", claims("wth", json!("A".repeat(43))), "proof_of_another_token"),
        ("`wth` missing", claims("wth", Value::Null), "proof_invalid"),
        ("another method", claims("htm", json!("GET")), "another_method"),
        ("another URI", claims("aud", json!("https://tool.example.com/refund")), "another_uri"),
        ("two audiences", claims("aud", json!([URI, "https://else.example.com/"])), "proof_invalid"),
        ("expired", claims("exp", json!(now - 11)), "proof_expired"),
        ("good for an hour", claims("exp", json!(now + 3600)), "proof_expired"),
        ("made in the future", claims("iat", json!(now + 60)), "proof_expired"),
        ("without a `jti`", claims("jti", json!("")), "proof_invalid"),
        ("no algorithm", forger.unsigned(now), "proof_invalid"),
        ("HS256 by the public key", forger.by_public_key(now), "proof_invalid"),
        ("ES384 by a key for ES256", header(json!({ "typ": "wpt+jwt", "alg": "ES384" })), "proof_invalid"),
        ("a plain JWT", header(json!({ "typ": "JWT", "alg": "ES256" })), "proof_invalid"),
        ("a DPoP proof", header(json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": own_key })), "proof_invalid"),
        ("`crit`", header(json!({ "typ": "wpt+jwt", "alg": "ES256", "crit": ["exp"], "exp": 1 })), "proof_invalid"),
        ("the thief's key in the header", forger.by_another_key(now), "proof_invalid"),
    ];
    for (what, proof, reason) in rows {
        eprintln!("{what}");
        verifier.refuses_request(&forger.request(&proof), reason);
    }
    verifier.accepts_request(&forger.request(&honest));
}

/// A workload that signs what it likes with the key of its WIT.
struct Forger {
    wit: Wit,
    pair: EcdsaKeyPair,
    public: Value,
}

impl Forger {
    fn new(wit: Wit) -> Self {
        let (key, _) = read_private_jwk(&wit.key).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.to_pkcs8().unwrap().expose()).unwrap();
        let public = Jws::parse(&wit.token).unwrap().claims().unwrap()["cnf"]["jwk"].clone();
        Self { wit, pair, public }
    }

    fn claims(&self, now: i64) -> Value {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, self.wit.token.as_bytes());
        json!({
            "aud": URI, "htm": "POST", "iat": now, "exp": now + 30,
            "jti": "forged", "wth": URL_SAFE_NO_PAD.encode(digest),
        })
    }

    /// One that has no fault.
    fn proof(&self, now: i64) -> String {
        self.named_proof(now, "forged")
    }

    fn named_proof(&self, now: i64, jti: &str) -> String {
        let mut claims = self.claims(now);
        claims["jti"] = json!(jti);
        self.sign(&json!({ "typ": "wpt+jwt", "alg": "ES256" }), &claims)
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        signed_by(&self.pair, header, claims)
    }

    fn unsigned(&self, now: i64) -> String {
        format!("{}.", input(&json!({ "typ": "wpt+jwt", "alg": "none" }), &self.claims(now)))
    }

    /// A verifier that lets the header choose would take the public key for a shared secret.
    fn by_public_key(&self, now: i64) -> String {
        let input = input(&json!({ "typ": "wpt+jwt", "alg": "HS256" }), &self.claims(now));
        let secret = hmac::Key::new(hmac::HMAC_SHA256, self.public.to_string().as_bytes());
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&secret, input.as_bytes())))
    }

    /// A verifier that takes the key from the header would believe anybody.
    fn by_another_key(&self, now: i64) -> String {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = aws_lc_rs::signature::KeyPair::public_key(&pair).as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        let jwk = json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y });
        signed_by(&pair, &json!({ "typ": "wpt+jwt", "alg": "ES256", "jwk": jwk }), &self.claims(now))
    }

    fn request(&self, proof: &str) -> Headers {
        headers(&[("Workload-Identity-Token", &self.wit.token), ("Authorization", &format!("WPT {proof}"))])
    }
}

fn input(header: &Value, claims: &Value) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn signed_by(pair: &EcdsaKeyPair, header: &Value, claims: &Value) -> String {
    let input = input(header, claims);
    let signature = pair.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
}
