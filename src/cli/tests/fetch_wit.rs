//! `tether fetch wit`, and what `tether fetch bundle` says of WITs.

use super::*;
use crate::jwt::{Jwk, read_private_jwk};
use crate::proto::workload::{JwtBundlesResponse, WitBundlesResponse, WitsvidResponse, X509BundlesResponse};
use crate::wit::UnverifiedWit;

fn two_wits(td: &Documents) -> WitsvidResponse {
    WitsvidResponse { svids: vec![td.wit("/a", "internal"), td.wit("/b", "")] }
}

#[test]
fn fetch_wit_prints_what_scripts_rely_on() {
    let td = Documents::of("example.org");
    let served = workload(|script| script.wit.push_back(two_wits(&td)));
    let done = tether("fetch wit --output json", &served);
    assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
    let json = done.json();
    assert_eq!(keys(&json), ["svids", "version"]);
    let svid = &json["svids"][0];
    assert_eq!(keys(svid), ["expires_at", "hint", "spiffe_id", "wit_svid", "wit_svid_key"]);
    assert_eq!((&svid["spiffe_id"], &svid["hint"]), (&json!("spiffe://example.org/a"), &json!("internal")));
    assert_eq!((&svid["expires_at"], &json["svids"][1]["hint"]), (&json!("2026-11-22T12:05:00Z"), &Value::Null));
    let wit = UnverifiedWit::read(svid["wit_svid"].as_str().expect("text")).expect("a WIT");
    let (key, _) = read_private_jwk(svid["wit_svid_key"].as_str().expect("text")).expect("a private key");
    assert_eq!(wit.confirmation.key(), &Jwk::from_spki(key.public_key()).expect("a key"));
}

#[test]
fn fetch_wit_tells_a_person_the_key_by_its_thumbprint_and_keeps_it_to_itself() {
    let td = Documents::of("example.org");
    let answer = two_wits(&td);
    let wit = UnverifiedWit::read(&answer.svids[0].wit_svid).expect("a WIT");
    let served = workload(|script| script.wit.push_back(answer));
    let done = tether("fetch wit", &served);
    let key = format!("key        ES256 {}\n", wit.confirmation.key().thumbprint());
    for expected in ["SPIFFE ID  spiffe://example.org/a\n", "expires    2026-11-22T12:05:00Z (5m left)\n", &key] {
        assert!(done.data.contains(expected), "{}", done.data);
    }
    assert!(!done.data.contains(r#""d""#) && !done.data.contains("eyJ"), "{}", done.data);
}

#[test]
fn fetch_wit_writes_the_token_and_its_key_for_their_owner() {
    let td = Documents::of("example.org");
    let served = workload(|script| script.wit.push_back(two_wits(&td)));
    let dir = tempfile::tempdir().expect("a directory");
    let line = format!("fetch wit --spiffe-id spiffe://example.org/b --write {}", dir.path().display());
    let done = tether(&line, &served);
    assert_eq!((done.exit, done.data.as_str()), (Exit::Ok, ""), "{}", done.chatter);
    for (name, mode) in [("wit_svid.token", 0o644), ("wit_svid_key.json", 0o600)] {
        let meta = std::fs::metadata(dir.path().join(name)).expect(name);
        assert_eq!(meta.mode() & 0o7777, mode, "{name}");
    }
    let token = std::fs::read_to_string(dir.path().join("wit_svid.token")).expect("there");
    assert_eq!(UnverifiedWit::read(&token).expect("a WIT").spiffe_id.as_str(), "spiffe://example.org/b");
    assert!(done.chatter.contains("until 2026-11-22T12:05:00Z"), "{}", done.chatter);
}

#[test]
fn an_agent_without_the_wit_profile_is_told_apart_from_one_that_denies() {
    let served = workload(|_| ());
    for line in ["fetch wit", "fetch wit --watch"] {
        let done = tether(line, &served);
        assert_eq!(done.exit, Exit::Failure);
        assert!(done.chatter.contains("does not offer"), "{}", done.chatter);
    }
}

#[test]
fn fetch_bundle_has_wit_keys_only_where_they_are_offered() {
    let td = Documents::of("example.org");
    let fill = |script: &mut crate::client::fake::Script| {
        let bundles = [(td.domain_id(), td.bundle().into())].into();
        script.x509_bundles.push_back(X509BundlesResponse { bundles, ..X509BundlesResponse::default() });
        script.jwt_bundles.push_back(JwtBundlesResponse { bundles: [(td.domain_id(), td.jwks().into())].into() });
    };
    let bundle =
        |served: &Served| tether("fetch bundle --output json", served).json()["bundles"]["example.org"].clone();
    let without = bundle(&workload(fill));
    assert!(without.get("wit_jwks").is_none() && without["jwks"]["keys"].is_array(), "{without}");
    let with = bundle(&workload(|script| {
        fill(script);
        script.wit_bundles.push_back(WitBundlesResponse { bundles: [(td.domain_id(), td.wit_jwks())].into() });
    }));
    assert_eq!(with["wit_jwks"]["keys"].as_array().expect("an array").len(), 1, "{with}");
}
